"""From the arguments of a cross-entropy call to its loss: arguments -> route -> weights -> rule.

``arguments`` checks the arguments once and parses them into a ``Problem``. ``route`` decides how it
is computed, ``weights`` turns the options into weights of three numbers per row, and a rule of
``ops`` (or the formulas of ``maths``) computes the loss.
"""

"""An extension of griffe, which reads docstrings for the API reference: doctests become code.

Markdown takes ``>>>`` for a quotation. The extension puts such paragraphs between fences.
"""

from typing import Any

import griffe


def fenced(text: str) -> str:
    """Return a docstring with a fence around each paragraph that begins with ``>>>``."""
    paragraphs = text.split("\n\n")
    for i, paragraph in enumerate(paragraphs):
        if paragraph.startswith(">>> "):
            paragraphs[i] = f"```pycon\n{paragraph.rstrip()}\n```"
    return "\n\n".join(paragraphs)


class Doctests(griffe.Extension):
    """Fences for the doctests of all modules, classes and functions."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)

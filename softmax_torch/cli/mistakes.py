"""Mistakes on the command line: the error that reports them, and the nearest right name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

__all__ = ["UsageError", "nearest", "or_nearest"]

SIMILAR = 0.6
"""Least similarity of a name that is offered for another; ``difflib`` calls it a good match."""

BEGINNING = 4
"""Letters from which on the beginning of a name is near it, as Cosine is near CosineAnnealingLR."""

LISTED = 12
"""Most names that a message lists where none is near."""


class UsageError(ValueError):
    """A command line or configuration that cannot be used; its message is written for the user."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the most similar of some names, or None.

    A name is compared with the whole of another and with what follows its last dot, since users
    leave out what they do not know: ``--max_epochs`` is near ``--trainer.max_epochs``.
    """
    name = name.removeprefix("--")
    best, score = None, SIMILAR
    for other in sorted(names):
        whole = other.removeprefix("--")
        for part in {whole, whole.rpartition(".")[2]}:
            # The whole counts a little more, so that equals are decided by it.
            similarity = SequenceMatcher(None, name.lower(), part.lower()).ratio()
            similarity -= 0.01 * (part != whole)
            if len(name) >= BEGINNING and part.lower().startswith(name.lower()):
                similarity = max(similarity, SIMILAR + 0.01 * len(name) / len(part))
            if similarity > score:
                best, score = other, similarity
    return best


def or_nearest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return the end of a message about an unknown name: "; nearest: ..." or the names."""
    names = sorted(names)
    found = nearest(name, names)
    if found is not None:
        return f"; nearest: {prefix}{found}"
    if not names or len(names) > LISTED:
        return ""
    return f"; expected one of {', '.join(f'{prefix}{other}' for other in names)}"

"""Count categories that training never saw, to report or refuse them.

Such a value gives zeros in x. A program counts them within a context:

    with counting_unknown(UnknownCategories()) as found: ...
    found.messages()    column city: 12 of 300 values, such as 'Oslo', treated as no category

Outside of such a context, ``TablePreprocessing`` warns with the same words.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field

import numpy as np

from softmax_torch.readers.numpy_files import Array
from softmax_torch.readers.tables import Chunk

__all__ = [
    "UnknownCategories",
    "UnknownCategoryWarning",
    "counting_by_default",
    "counting_unknown",
    "note_unknown",
    "warn_of",
]

SHOWN_COLUMNS = 8
"""Most columns to report by name."""


class UnknownCategoryWarning(UserWarning):
    """Some values of a table are categories that training never saw."""


@dataclass
class UnknownCategories:
    """Counts of unknown categories.

    Args:
        refuse: whether to raise ValueError for the first one.
        counts: number of unknown values, number of values, and an example, by column.
    """

    refuse: bool = False
    counts: dict[str, tuple[int, int, str]] = field(default_factory=dict)

    def add(self, name: str, unknown: Array, chunk: Chunk) -> None:
        """Add a column of a chunk, of whose values a mask (n,) tells which are unknown."""
        count, total, example = self.counts.get(name, (0, 0, ""))
        if unknown.any() and not count:
            row = int(unknown.argmax())
            example = str(chunk.text(name)[row])
            if self.refuse:
                raise ValueError(
                    f"{chunk.locate(row)}, column {name}: expected a category of the training "
                    f"samples, got {example}"
                )
        self.counts[name] = count + int(np.count_nonzero(unknown)), total + len(unknown), example

    def messages(self) -> list[str]:
        """Return a line for each column with unknown categories, most of them first."""
        found = [(name, *rest) for name, rest in self.counts.items() if rest[0]]
        found.sort(key=lambda entry: -entry[1])
        lines = [
            f"column {name}: {count} of {total} values, such as {example!r}, treated as no category"
            for name, count, total, example in found[:SHOWN_COLUMNS]
        ]
        more = len(found) - SHOWN_COLUMNS
        return [*lines, *([f"and {more} more columns"] if more > 0 else [])]


CURRENT: ContextVar[UnknownCategories | None] = ContextVar("unknown categories", default=None)


@contextmanager
def counting_unknown(found: UnknownCategories) -> Iterator[UnknownCategories]:
    """Add what is encoded within the context to these counts."""
    token = CURRENT.set(found)
    try:
        yield found
    finally:
        CURRENT.reset(token)


@contextmanager
def counting_by_default(found: UnknownCategories) -> Iterator[None]:
    """Add what is encoded within the context to these counts, unless an outer context counts it."""
    if CURRENT.get() is not None:
        yield
        return
    with counting_unknown(found):
        yield


def warn_of(found: UnknownCategories) -> None:
    """Warn of the unknown categories that were counted, if there are any."""
    lines = found.messages()
    if lines:
        # The caller of Predictor.predict_proba, past this function and ``tensor``.
        warnings.warn("; ".join(lines), UnknownCategoryWarning, stacklevel=4)


def note_unknown(name: str, unknown: Array, chunk: Chunk) -> None:
    """Add a column of a chunk to the current counts; outside of all contexts, do nothing."""
    found = CURRENT.get()
    if found is not None:
        found.add(name, unknown, chunk)

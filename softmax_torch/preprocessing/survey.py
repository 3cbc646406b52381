"""Which columns of a table are numbers and which categories: decided once, on a whole file.

A column is of numbers where all its values are, and of categories where none is, or where it was
said. One that has both is refused, since either choice would be wrong for somebody: a "?" among
ages, which would make a category of every age, or a "12" among codes. So are categories that
tell samples apart and classes not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence

from softmax_torch.preprocessing.chunks import Chunk, Source, listed
from softmax_torch.preprocessing.columns import CategoriesSoFar, NumbersSoFar

__all__ = ["MOST_CATEGORIES", "Survey"]

MOST_CATEGORIES = 1000
"""Categories that a column has at most."""

FEW = 20
"""Rows in which all values of a column of text may be different."""


class Survey:
    """What the columns of a file hold, as its chunks go by.

    Args:
        names: the columns.
        categorical: those of them that are categories, whatever they look like.
    """

    def __init__(self, names: Sequence[str], categorical: Sequence[str]) -> None:
        self.seen = [Seen(name, name in categorical) for name in names]

    def add(self, chunk: Chunk) -> None:
        """Look at some rows; ValueError for a column of a type that cannot be used."""
        for seen in self.seen:
            seen.add(chunk)

    def columns(self, source: Source) -> list[NumbersSoFar | CategoriesSoFar]:
        """Something to be fitted for each column, after all chunks of a file.

        Raises:
            ValueError: a column that is empty, of numbers and text, or of identifiers.
        """
        for seen in self.seen:
            seen.check(source)
        identifiers = [seen.name for seen in self.seen if seen.identifies]
        if identifiers:
            raise ValueError(
                f"{source.name}: expected columns that tell classes apart, got "
                f"{listed(identifiers)} with another value in each row, or with more than "
                f"{MOST_CATEGORIES} categories; leave out what tells samples apart: "
                f"{flag('ignore', identifiers)}"
            )
        return [
            CategoriesSoFar(seen.name) if seen.is_text else NumbersSoFar(seen.name)
            for seen in self.seen
        ]


class Seen:
    """What one column held so far."""

    def __init__(self, name: str, categorical: bool) -> None:
        self.name, self.categorical = name, categorical
        self.number: tuple[int, str] | None = None  # the first one, and its row
        self.text: tuple[int, str] | None = None
        self.present = 0  # values that are not missing
        self.categories: set[str] = set()  # no more than it takes to see that there are too many

    @property
    def is_text(self) -> bool:
        return self.categorical or self.number is None

    @property
    def identifies(self) -> bool:
        """Whether it has too many categories, or a value of its own for every row."""
        count = len(self.categories)
        return self.is_text and (count > MOST_CATEGORIES or FEW <= count == self.present)

    def add(self, chunk: Chunk) -> None:
        number, text = chunk.kinds(self.name)
        if number is not None and self.number is None:
            self.number = chunk.first + number, str(chunk.column(self.name)[number])
        if text is not None and self.text is None:
            self.text = chunk.first + text, str(chunk.column(self.name)[text])
        if text is not None or self.categorical:
            values = chunk.text(self.name).drop_null()
            self.present += len(values)
            if len(self.categories) <= MOST_CATEGORIES:
                self.categories.update(values.unique().to_pylist())

    def check(self, source: Source) -> None:
        if self.number is None and self.text is None:
            raise ValueError(
                f"{source.name}, column {self.name}: expected at least one value, got none; "
                f"leave it out: {flag('ignore', [self.name])}"
            )
        if self.categorical or self.number is None or self.text is None:
            return
        (number_row, number), (text_row, text) = self.number, self.text
        looks = "; decimals are written with a point" if decimal_comma(text) else ""
        raise ValueError(
            f"{source.place(text_row)}, column {self.name}: expected a number as in "
            f"{source.place(number_row)}, which has {number}, got {text}{looks}; correct it, or "
            f"take all of them as categories ({flag('categorical', [self.name])}), or leave the "
            f"column out ({flag('ignore', [self.name])})"
        )


def decimal_comma(text: str) -> bool:
    """Whether it is a number, but for the comma in it."""
    whole, comma, fraction = text.removeprefix("-").partition(",")
    return bool(comma) and whole.isdigit() and fraction.isdigit()


def flag(option: str, names: Sequence[str]) -> str:
    """The flag of the command line that names columns."""
    return f"--data.{option} '{json.dumps(names, ensure_ascii=False)}'"

"""Fit the columns of a table: decide which are numeric, then take statistics of training rows.

    Survey           on all rows of a file        numeric or categorical, for each column
    NumericFit       on the training rows         mean and standard deviation
    CategoricalFit   on the training rows         categories, and whether values are missing

A column is numeric if all its values are numbers, and categorical if none is or the user lists it
as categorical. A column with both is refused, since either choice may be wrong: a "?" among ages
would make each age a category, and a "12" may be a code. A column that identifies samples, such as
a name, is refused too, and so is one whose texts are numbers or dates in another way of writing
(``preprocessing.disguises``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from softmax_torch.preprocessing.disguises import Disguises, disguise_of
from softmax_torch.preprocessing.table import CategoricalColumn, NumericColumn
from softmax_torch.readers.numpy_files import Array
from softmax_torch.readers.table_format import setting
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import Chunk, format_columns

__all__ = ["MAX_CATEGORIES", "CategoricalFit", "NumericFit", "Survey"]

MAX_CATEGORIES = 1000
"""Largest number of categories of a column."""

FEW_ROWS = 20
"""With fewer rows, all values of a text column may differ by chance."""


class Survey:
    """The kinds of values in the columns of a file, gathered chunk by chunk.

    Args:
        names: the columns.
        categorical: those of the columns that are categorical whatever their values.
    """

    def __init__(self, names: Sequence[str], categorical: Sequence[str]) -> None:
        self.surveyed = [ColumnSurvey(name, name in categorical) for name in names]

    def add(self, chunk: Chunk) -> None:
        """Add the rows of a chunk; raise ValueError for a column of an unusable type."""
        for column in self.surveyed:
            column.add(chunk)

    def fits(self, source: Source) -> list[NumericFit | CategoricalFit]:
        """Return an unfitted column of the right kind for each column, after the last chunk.

        Raises:
            ValueError: a column is empty, has numbers and text, or identifies samples.
        """
        for column in self.surveyed:
            column.check(source)
        identifiers = [column.name for column in self.surveyed if column.identifies_samples]
        if identifiers:
            raise ValueError(
                f"{source.name}: expected columns that tell classes apart, got "
                f"{format_columns(identifiers)} with another value in each row, or with more than "
                f"{MAX_CATEGORIES} categories; leave out columns that identify samples: "
                f"{setting('ignore', identifiers)}"
            )
        return [
            CategoricalFit(column.name) if column.is_categorical else NumericFit(column.name)
            for column in self.surveyed
        ]


class ColumnSurvey:
    """The kinds of values in one column, so far."""

    def __init__(self, name: str, categorical: bool) -> None:
        self.name, self.categorical = name, categorical
        self.number: tuple[int, str] | None = None  # row and value of the first number
        self.text: tuple[int, str] | None = None  # row and value of the first other value
        self.present = 0  # values that are not missing
        self.categories: set[str] = set()  # no longer filled once there are too many
        self.disguises = Disguises(name)

    @property
    def is_categorical(self) -> bool:
        return self.categorical or self.number is None

    @property
    def identifies_samples(self) -> bool:
        """Whether the column has too many categories, or another value in each row."""
        count = len(self.categories)
        return self.is_categorical and (count > MAX_CATEGORIES or FEW_ROWS <= count == self.present)

    def add(self, chunk: Chunk) -> None:
        number, text = chunk.first_number_and_text(self.name)
        if number is not None and self.number is None:
            self.number = chunk.first + number, str(chunk.column(self.name)[number])
        if text is not None and self.text is None:
            self.text = chunk.first + text, str(chunk.column(self.name)[text])
        if text is not None or self.categorical:
            texts = chunk.text(self.name)
            if not self.categorical:
                self.disguises.add(texts, chunk.first, chunk.source.format)
            values = texts.drop_null()
            self.present += len(values)
            if len(self.categories) <= MAX_CATEGORIES:
                self.categories.update(values.unique().to_pylist())

    def check(self, source: Source) -> None:
        """Raise ValueError if the column is empty, or has both numbers and text."""
        if self.number is None and self.text is None:
            raise ValueError(
                f"{source.name}, column {self.name}: expected at least one value, got none; "
                f"leave the column out: {setting('ignore', [self.name])}"
            )
        if self.categorical or self.text is None:
            return
        if self.number is not None:
            raise self.mixed_error(source, self.number, self.text)
        if self.disguises.prevail:
            way, row, text = self.disguises.most()
            raise ValueError(
                f"{source.locate(row)}, column {self.name}: expected numbers or categories, got "
                f"{way.name} such as {text}; {way.advice}; or make the column categorical: "
                f"{setting('categorical', [self.name])}"
            )

    def mixed_error(
        self, source: Source, number: tuple[int, str], text: tuple[int, str]
    ) -> ValueError:
        """Return the error for a column with numbers and text."""
        way = disguise_of(text[1], self.name, source.format)
        hint = f", one of {way.name}; {way.advice}" if way else ""
        return ValueError(
            f"{source.locate(text[0])}, column {self.name}: expected a number as in "
            f"{source.locate(number[0])}, which has {number[1]}, got {text[1]}{hint}; correct the "
            f"value, or take it as missing ({setting('missing', [text[1]])}), or make the column "
            f"categorical ({setting('categorical', [self.name])}), or leave it out "
            f"({setting('ignore', [self.name])})"
        )


class NumericFit:
    """Mean, standard deviation and missing values of a column, updated chunk by chunk.

    The update of Chan, Golub, LeVeque (1979):

    mean = mean_a + (mean_b - mean_a) n_b / n
    M    = M_a + M_b + (mean_b - mean_a)^2 n_a n_b / n         sum of squares around the mean

    The first number is subtracted from all numbers and added to the mean at the end: numbers around
    1e9 that differ by 1 would otherwise lose half of the digits of their deviation.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.first, self.n, self.mean, self.squares = 0.0, 0, 0.0, 0.0
        self.missing = 0
        self.least, self.most = math.inf, -math.inf

    def add(self, chunk: Chunk, rows: Array) -> None:
        """Add the rows of a chunk that a boolean mask (n,) selects."""
        values = chunk.numbers(self.name)[rows]
        present = ~np.isnan(values)
        self.missing += len(values) - int(present.sum())
        values = values[present]
        if len(values) == 0:
            return
        self.least, self.most = min(self.least, values.min()), max(self.most, values.max())
        if self.n == 0:
            self.first = float(values[0])
        with np.errstate(over="ignore", invalid="ignore"):  # reported by ``column``
            values = values - self.first
            n, mean = self.n + len(values), float(values.mean())
            difference = mean - self.mean
            self.squares += float(np.square(values - mean).sum())
            self.squares += difference * difference * self.n * len(values) / n
            self.mean += difference * len(values) / n
        self.n = n

    def column(self) -> NumericColumn:
        """Return the fitted column.

        Raises:
            ValueError: there were no values, or their deviation overflows.
        """
        if self.n == 0:
            raise empty_error(self.name)
        if self.least == self.most:  # rounding could leave a deviation of almost 0
            return NumericColumn(self.name, float(self.least), 1.0)
        deviation = math.sqrt(self.squares / self.n)
        if not 0 < deviation < math.inf:
            raise ValueError(
                f"column {self.name}: expected numbers with a standard deviation, got numbers from "
                f"{self.least} to {self.most}"
            )
        return NumericColumn(self.name, self.first + self.mean, deviation)


class CategoricalFit:
    """The categories and the missing values of a column, collected chunk by chunk."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.values: set[str] = set()
        self.missing = 0

    def add(self, chunk: Chunk, rows: Array) -> None:
        """Add the rows of a chunk that a boolean mask (n,) selects."""
        text = chunk.text(self.name).filter(pa.array(rows))
        self.missing += text.null_count
        self.values.update(value for value in text.unique().to_pylist() if value is not None)

    def column(self) -> CategoricalColumn:
        """Return the fitted column; raise ValueError if there were no values."""
        if not self.values:
            raise empty_error(self.name)
        return CategoricalColumn(self.name, tuple(sorted(self.values)), self.missing > 0)


def empty_error(name: str) -> ValueError:
    """Return the error for a column without values in the training rows."""
    return ValueError(
        f"column {name}: expected at least one value in the training samples, got none; leave the "
        f"column out: {setting('ignore', [name])}"
    )

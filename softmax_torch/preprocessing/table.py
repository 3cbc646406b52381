"""Preprocessing of tables: each row becomes one vector.

    row           ->  x = [numeric columns | categorical columns | ...],  in the columns' order
    numeric           x = (value - mean) / deviation            0 where the value is missing
    categorical       x_k = 1 if value is category k, else 0    one number for each category

Mean, standard deviation and categories come from the training samples
(``softmax_torch.preprocessing.table_fitting``). If training samples have missing values, missing is
a category of its own; otherwise a missing value, like a category that training never saw, gives
zeros; ``preprocessing.unknown_categories`` counts the latter. A value that is a number has the
category of the same number, whatever type it comes in (``preprocessing.categories``). A column of
words that suddenly holds numbers, or the reverse, is an error. A column of dates is numeric: days
since 1970-01-01.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow.compute as pc
import torch
from torch import Tensor

from softmax_torch.preprocessing.categories import AMBIGUOUS, UNKNOWN, alike, find_categories
from softmax_torch.preprocessing.interface import Preprocessing
from softmax_torch.preprocessing.unknown_categories import (
    UnknownCategories,
    counting_by_default,
    note_unknown,
    warn_of,
)
from softmax_torch.readers.memory_tables import chunk_in_memory
from softmax_torch.readers.numpy_files import Array
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import Chunk, read_chunks

__all__ = ["CategoricalColumn", "Column", "NumericColumn", "TablePreprocessing"]

ENCODED_ROWS = 1 << 16
"""Rows of a file that are encoded together."""

MISSING = "(missing)"
"""Name of the category, or group, of a missing value."""


@dataclass(frozen=True)
class NumericColumn:
    """A column of numbers, standardised.

    Args:
        name: name of the column.
        mean, deviation: mean and standard deviation of the training samples; the latter divides by
            n, not n - 1.
    """

    name: str
    mean: float
    deviation: float

    @property
    def features(self) -> tuple[str, ...]:
        """Name of the one feature."""
        return (self.name,)

    def encode(self, chunk: Chunk) -> Array:
        """Return the standardised column, float32 (n, 1).

        Raises:
            ValueError: a value is not a number, or is too far from the mean for float32.
        """
        values = chunk.numbers(self.name)
        with np.errstate(over="ignore"):  # reported below
            x = ((values - self.mean) / self.deviation).astype(np.float32)
        infinite = np.flatnonzero(np.isinf(x))
        if len(infinite):
            raise ValueError(
                f"{chunk.locate(int(infinite[0]))}, column {self.name}: expected a number that is "
                "less than 1e38 standard deviations from the mean, got "
                f"{values[infinite[0]]}"
            )
        return np.nan_to_num(x, nan=0.0)[:, None]

    def state_dict(self) -> dict[str, Any]:
        """Return serializable state; the inverse of ``from_state_dict``."""
        return {"kind": "numbers", **asdict(self)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """Rebuild the column from its state."""
        return cls(state["name"], state["mean"], state["deviation"])


@dataclass(frozen=True)
class CategoricalColumn:
    """A column of categories, one-hot.

    Args:
        name: name of the column.
        values: the categories, sorted.
        missing: whether a missing value is a category of its own, the last one.
    """

    name: str
    values: tuple[str, ...]
    missing: bool

    @property
    def features(self) -> tuple[str, ...]:
        """One name for each category."""
        values = (*self.values, *([MISSING] if self.missing else []))
        return tuple(f"{self.name}={value}" for value in values)

    def codes(self, chunk: Chunk) -> Array:
        """Return codes, int64 (n,): the category's index, len(values) if missing, -1 if unknown.

        Raises:
            ValueError: a number is the value of several categories; or all values are unknown, and
                are numbers where training had words, or words where training had numbers. Zeros
                would hide that columns were swapped.
        """
        text = chunk.text(self.name).combine_chunks().dictionary_encode()
        t, format = chunk.column(self.name).type, chunk.source.format
        distinct = text.dictionary.to_pylist()
        found = find_categories(distinct, t, self.values, format)
        each = np.array([*found, len(self.values)], dtype=np.int64)
        codes: Array = each[pc.fill_null(text.indices, len(distinct)).to_numpy()]
        if AMBIGUOUS in found:
            row = int((codes == AMBIGUOUS).argmax())
            got = chunk.text(self.name)[row].as_py()
            raise ValueError(
                f"{chunk.locate(row)}, column {self.name}: expected one of the categories "
                f"{', '.join(alike(got, self.values, format))}, got the number {got}, which may be "
                "any of them; read the column as text"
            )
        if found and max(found) == UNKNOWN:
            self._check_kind(chunk)
        return codes

    def _check_kind(self, chunk: Chunk) -> None:
        """Raise ValueError unless a column without known values has training's kind of values."""
        number, word = chunk.first_number_and_text(self.name)
        row = number if word is None else word if number is None else None
        if row is None or not self.values:
            return
        are_numbers = [value is not None for value in chunk.source.format.values(self.values)]
        if any(are_numbers) if word is None else not all(are_numbers):
            return
        raise ValueError(
            f"{chunk.locate(row)}, column {self.name}: expected one of the "
            f"{len(self.values)} categories of training, such as {', '.join(self.values[:3])}, got "
            f"{chunk.text(self.name)[row]}"
        )

    def encode(self, chunk: Chunk) -> Array:
        """Return the one-hot column, float32 (n, categories)."""
        codes = self.codes(chunk)
        note_unknown(self.name, codes == UNKNOWN, chunk)
        # If training had no missing values, no feature has the code len(values).
        x: Array = (codes[:, None] == np.arange(len(self.features))).astype(np.float32)
        return x

    def state_dict(self) -> dict[str, Any]:
        """Return serializable state; the inverse of ``from_state_dict``."""
        return {"kind": "categories", **asdict(self), "values": list(self.values)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """Rebuild the column from its state."""
        return cls(state["name"], tuple(state["values"]), state["missing"])


Column = NumericColumn | CategoricalColumn


class TablePreprocessing(Preprocessing):
    """Rows of a table with named columns; columns that it does not name are ignored.

    Args:
        columns: how each column is encoded.
        class_names: one name for each class.
        id_column: column of a file with the names of its rows; None for row numbers.
        format: how texts are written; see ``TableFormat``.
        target: column of the classes in files that have them; None if unknown.
        group_column: column by whose values figures are given too, in files that have classes;
            None without one. Predictions do not need it.
    """

    kind = "table"

    def __init__(
        self,
        columns: Sequence[Column],
        class_names: Sequence[str],
        id_column: str | None = None,
        format: TableFormat | None = None,
        target: str | None = None,
        group_column: str | None = None,
    ) -> None:
        self.columns, self.class_names = tuple(columns), tuple(class_names)
        self.id_column, self.target, self.group_column = id_column, target, group_column
        self.format = format or TableFormat()
        self.feature_names = tuple(name for column in columns for name in column.features)

    @property
    def in_features(self) -> int:
        """D, the number of numeric columns plus that of all categories."""
        return len(self.feature_names or ())

    @property
    def names(self) -> list[str]:
        """Names of the columns that are encoded."""
        return [column.name for column in self.columns]

    def tensor(self, raw: Any) -> Tensor:
        """Return rows as x (n, D), float32.

        Args:
            raw: a data frame of pandas or polars, or a pyarrow table; a dict of columns; a list of
                dicts, one for each row; or the path of a file with a table.

        Raises:
            FileNotFoundError, TypeError, ValueError: raw is something else, lacks a column, or has
                a value that cannot be used; the message names its row, or its line in a text file.

        Warns:
            UnknownCategoryWarning: categories that training never saw, unless a context of
                ``counting_unknown`` counts them.
        """
        unknown = UnknownCategories()
        with counting_by_default(unknown):
            if isinstance(raw, str | Path):
                chunks = read_chunks(Source.from_path(raw, self.format), ENCODED_ROWS)
                x = torch.cat([self.encode(chunk) for chunk in chunks])
            else:
                x = self.encode(chunk_in_memory(raw, self.names, self.format))
        warn_of(unknown)
        return x

    def read(self, path: Path, rows: int) -> Iterator[tuple[list[str], Tensor]]:
        """Yield the rows of a file; text files and Parquet may be larger than memory.

        Unknown categories are reported at the end, as by ``tensor``.
        """
        unknown = UnknownCategories()
        for chunk in read_chunks(Source.from_path(path, self.format), rows):
            with counting_by_default(unknown):
                x = self.encode(chunk)
            yield self.ids(chunk), x
        warn_of(unknown)

    def encode(self, chunk: Chunk) -> Tensor:
        """Return x (n, D), float32, of the rows in a chunk."""
        chunk.require(self.names)
        return torch.from_numpy(np.hstack([column.encode(chunk) for column in self.columns]))

    def ids(self, chunk: Chunk) -> list[str]:
        """Return the names of the rows in a chunk."""
        if self.id_column is None:
            return chunk.row_numbers
        chunk.require([self.id_column])
        return chunk.raw_text(self.id_column)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "columns": [column.state_dict() for column in self.columns],
            "class_names": list(self.class_names),
            "id_column": self.id_column,
            "target": self.target,
            "group_column": self.group_column,
            **self.format.state_dict(),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        columns = [
            (NumericColumn if column["kind"] == "numbers" else CategoricalColumn).from_state_dict(
                column
            )
            for column in state["columns"]
        ]
        return cls(
            columns,
            state["class_names"],
            state["id_column"],
            TableFormat.from_state_dict(state),
            *(state.get(name) for name in ("target", "group_column")),  # of later versions
        )

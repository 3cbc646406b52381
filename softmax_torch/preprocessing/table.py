"""Tables: columns of numbers and of categories become one vector for each row.

    row  ->  x = [numbers, standardised | categories, one-hot | ...],  in the order of the columns

See ``softmax_torch.preprocessing.columns`` for what becomes of a column, and of missing values, and
``softmax_torch.preprocessing.chunks`` for the files that can be read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from softmax_torch.preprocessing.base import Preprocessing
from softmax_torch.preprocessing.chunks import Chunk, Source, chunks, in_memory
from softmax_torch.preprocessing.columns import Categories, Column, Numbers

__all__ = ["TablePreprocessing"]


class TablePreprocessing(Preprocessing):
    """Rows of a table with named columns.

    Columns that it does not know, such as the one with the classes, are no matter.

    Args:
        columns: what becomes of each column.
        class_names: a name for each class.
        id_column: the column with what rows are called, in files; None for their numbers.
        delimiter: between the columns of a .csv; None for a comma.
    """

    kind = "table"

    def __init__(
        self,
        columns: Sequence[Column],
        class_names: Sequence[str],
        id_column: str | None = None,
        delimiter: str | None = None,
    ) -> None:
        self.columns, self.class_names = tuple(columns), tuple(class_names)
        self.id_column, self.delimiter = id_column, delimiter
        self.feature_names = tuple(name for column in columns for name in column.features)

    @property
    def in_features(self) -> int:
        """D: columns of numbers, and the categories of all others."""
        return len(self.feature_names or ())

    @property
    def names(self) -> list[str]:
        """The columns that are looked at."""
        return [column.name for column in self.columns]

    def tensor(self, raw: Any) -> Tensor:
        """Rows as x (n, D), float32.

        Args:
            raw: a data frame of pandas or polars, or a pyarrow table; a dict of columns; a list of
                dicts, one a row; or the path of a file with a table.

        Raises:
            FileNotFoundError, TypeError, ValueError: it is something else, lacks a column, or has
                a value in it that cannot be used; with its row, or its line in a text file.
        """
        if isinstance(raw, str | Path):
            source = Source.of(raw, self.delimiter)
            return torch.cat([self.encode(chunk) for chunk in chunks(source, ROWS)])
        return self.encode(in_memory(raw, self.names))

    def read(self, path: Path, rows: int) -> Iterator[tuple[list[str], Tensor]]:
        """The rows of a file; of text files and of Parquet, more than memory holds."""
        for chunk in chunks(Source.of(path, self.delimiter), rows):
            yield self.ids(chunk), self.encode(chunk)

    def encode(self, chunk: Chunk) -> Tensor:
        """x (n, D), float32, of some rows."""
        chunk.require(self.names)
        return torch.from_numpy(np.hstack([column.encode(chunk) for column in self.columns]))

    def ids(self, chunk: Chunk) -> list[str]:
        """What some rows are called."""
        if self.id_column is None:
            return chunk.ids
        chunk.require([self.id_column])
        return chunk.labels(self.id_column)

    def state_dict(self) -> dict[str, Any]:
        """What it takes to make it again."""
        return {
            "kind": self.kind,
            "columns": [column.state_dict() for column in self.columns],
            "class_names": list(self.class_names),
            "id_column": self.id_column,
            "delimiter": self.delimiter,
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """The one that was saved."""
        columns = [
            (Numbers if saved["kind"] == "numbers" else Categories).from_state_dict(saved)
            for saved in state["columns"]
        ]
        return cls(columns, state["class_names"], state["id_column"], state["delimiter"])


ROWS = 1 << 16
"""Rows of a file that are encoded together."""

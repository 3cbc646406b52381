"""The columns of a table as an exported model is given them.

    numbers   float64 (n, K)   NaN where a value is missing
    codes     int64 (n, M)     the number of the category; that of their end where a value is
                               missing; -1 where training never saw it (``Categories.codes``)

    x = [(numbers - mean) / deviation | codes, one-hot],  in the order of the columns

torch has no strings. ONNX has, and takes each column by its name: numbers as float64 (n,), the
others as strings (n,), with "" where a value is missing. A string has to be as the preprocessing
reads it: without spaces around it, a number without a fraction as an integer, and a boolean as true
or false.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from softmax_torch.export.raw import Front, Value
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.preprocessing.chunks import MISSING, Chunk, Source, chunks, in_memory
from softmax_torch.preprocessing.columns import Categories, Column, Numbers

__all__ = ["UNKNOWN", "TableFront", "codes_of"]

UNKNOWN = -1
"""Code of a category that training never saw."""


class TableFront(Front):
    """Rows of a table."""

    mean: Tensor
    deviation: Tensor
    source: Tensor
    category: Tensor
    order: Tensor

    def __init__(self, preprocessing: TablePreprocessing) -> None:
        super().__init__()
        self.preprocessing = preprocessing
        numbers = [column for column in preprocessing.columns if isinstance(column, Numbers)]
        others = [column for column in preprocessing.columns if isinstance(column, Categories)]
        for name in ("mean", "deviation"):
            values = [getattr(column, name) for column in numbers]
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        # Of each feature that is a category: its column of codes, and its code.
        at = [(m, k) for m, column in enumerate(others) for k in range(len(column.features))]
        self.register_buffer("source", torch.tensor([m for m, _ in at], dtype=torch.int64))
        self.register_buffer("category", torch.tensor([k for _, k in at], dtype=torch.int64))
        # Where the features of each column are, when all numbers stand before all categories.
        places, end = {}, 0
        grouped: list[Column] = [*numbers, *others]
        for column in grouped:
            places[column.name] = range(end, end + len(column.features))
            end = places[column.name].stop
        order = [place for column in preprocessing.columns for place in places[column.name]]
        self.register_buffer("order", torch.tensor(order))
        groups: dict[str, Sequence[Column]] = {"numbers": numbers, "codes": others}
        self.columns = {name: columns for name, columns in groups.items() if columns}
        types = {"numbers": "float64", "codes": "int64"}
        self.inputs = tuple(
            Value(name, types[name], ("n", len(columns))) for name, columns in self.columns.items()
        )

    def samples(self, raw: Any, rows: int) -> pa.Table:
        """Rows of a file, of a data frame, of a dict of columns or of a list of dicts."""
        if isinstance(raw, str | Path):
            source = Source.of(raw, self.preprocessing.delimiter)
            return next(chunks(source, rows)).table
        return in_memory(raw, self.preprocessing.names).table.slice(0, rows)

    def tensors(self, samples: pa.Table) -> tuple[Tensor, ...]:
        """Numbers (n, K), if there are any, and codes (n, M), if there are any."""
        chunk = in_memory(samples, self.preprocessing.names)
        return tuple(
            torch.from_numpy(np.stack([encoded(column, chunk) for column in columns], 1))
            for columns in self.columns.values()
        )

    def arrays(self, samples: pa.Table) -> dict[str, np.ndarray[Any, Any]]:
        """Each column by its name."""
        chunk = in_memory(samples, self.preprocessing.names)
        return {
            column.name: chunk.numbers(column.name)
            if isinstance(column, Numbers)
            else np.array(chunk.text(column.name).fill_null("").to_pylist(), dtype=object)
            for column in self.preprocessing.columns
        }

    def forward(self, *tensors: Tensor) -> Tensor:
        """x (n, D)."""
        given = dict(zip(self.columns, tensors, strict=True))
        groups = []
        if "numbers" in given:
            x = ((given["numbers"] - self.mean) / self.deviation).float()
            groups.append(torch.where(x.isnan(), 0.0, x))
        if "codes" in given:
            groups.append((given["codes"].index_select(1, self.source) == self.category).float())
        return torch.cat(groups, 1).index_select(1, self.order)


def codes_of(column: Categories) -> dict[str, int]:
    """The code of each text in a column; all others are ``UNKNOWN``."""
    codes = {value: code for code, value in enumerate(column.values)}
    if column.missing:
        codes |= dict.fromkeys(MISSING, len(column.values))
    return codes


def encoded(column: Column, chunk: Chunk) -> np.ndarray[Any, Any]:
    """A column as float64 (n,), or as codes, int64 (n,)."""
    return chunk.numbers(column.name) if isinstance(column, Numbers) else column.codes(chunk)

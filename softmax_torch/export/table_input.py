"""The preprocessing of tables within an exported model, whose inputs are matrices of columns.

    numbers   float64 (n, K)   NaN where a value is missing
    codes     int64 (n, M)     index of the category; the number of categories where the value is
                               missing; -1 where training never saw it (``CategoricalColumn.codes``)

    x = [(numbers - mean) / deviation | codes, one-hot],  in the order of the columns

torch has no strings. ONNX has: an ONNX file takes each column under its name, numeric columns as
float64 (n,), dates as days since 1970-01-01, and categorical columns as strings (n,), with "" where
a value is missing. Strings must be written as the preprocessing reads them: without spaces around
them, a boolean as true or false. A category that is a number may also be written as Python and
NumPy write this number, such as 1.5 for 1.50, or 1234 or 1234.0 for 01234, if no other category has
the same value.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from softmax_torch.export.input_modules import InputModule, TensorSpec
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.preprocessing.categories import UNKNOWN
from softmax_torch.preprocessing.table import CategoricalColumn, Column, NumericColumn
from softmax_torch.readers.memory_tables import chunk_in_memory
from softmax_torch.readers.numpy_files import Array
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import Chunk, read_chunks

__all__ = ["UNKNOWN", "TableInput", "category_codes"]


class TableInput(InputModule):
    """Rows of a table."""

    mean: Tensor
    deviation: Tensor
    source: Tensor
    category: Tensor
    order: Tensor

    def __init__(self, preprocessing: TablePreprocessing) -> None:
        super().__init__()
        self.preprocessing, self.table_format = preprocessing, preprocessing.format
        numeric = [col for col in preprocessing.columns if isinstance(col, NumericColumn)]
        categorical = [col for col in preprocessing.columns if isinstance(col, CategoricalColumn)]
        for name in ("mean", "deviation"):
            values = [getattr(column, name) for column in numeric]
            self.register_buffer(name, torch.tensor(values, dtype=torch.float64))
        # For each categorical feature: its column in the matrix of codes, and its code.
        features = [(m, k) for m, col in enumerate(categorical) for k in range(len(col.features))]
        self.register_buffer("source", torch.tensor([m for m, _ in features], dtype=torch.int64))
        self.register_buffer("category", torch.tensor([k for _, k in features], dtype=torch.int64))
        # ``forward`` computes numeric features first; ``order`` restores the order of the columns.
        positions, end = {}, 0
        grouped: list[Column] = [*numeric, *categorical]
        for column in grouped:
            positions[column.name] = range(end, end + len(column.features))
            end = positions[column.name].stop
        order = [at for column in preprocessing.columns for at in positions[column.name]]
        self.register_buffer("order", torch.tensor(order))
        groups: dict[str, Sequence[Column]] = {"numbers": numeric, "codes": categorical}
        self.columns = {name: columns for name, columns in groups.items() if columns}
        dtypes = {"numbers": "float64", "codes": "int64"}
        self.inputs = tuple(
            TensorSpec(name, dtypes[name], ("n", len(columns)))
            for name, columns in self.columns.items()
        )

    def samples(self, raw: Any, rows: int) -> pa.Table:
        """Return the first rows of a file, a data frame, a dict of columns or a list of dicts."""
        if isinstance(raw, str | Path):
            source = Source.from_path(raw, self.preprocessing.format)
            return next(read_chunks(source, rows)).table
        return self.chunk(raw).table.slice(0, rows)

    def chunk(self, raw: Any) -> Chunk:
        """Return a table in memory as the preprocessing reads it."""
        return chunk_in_memory(raw, self.preprocessing.names, self.preprocessing.format)

    def tensors(self, samples: pa.Table) -> tuple[Tensor, ...]:
        """Return numbers (n, K) and codes (n, M), each only if it has columns."""
        chunk = self.chunk(samples)
        return tuple(
            torch.from_numpy(np.stack([column_values(column, chunk) for column in columns], 1))
            for columns in self.columns.values()
        )

    def arrays(self, samples: pa.Table) -> dict[str, Array]:
        """Return each column under its name."""
        chunk = self.chunk(samples)
        return {
            column.name: chunk.numbers(column.name)
            if isinstance(column, NumericColumn)
            else category_texts(column, chunk)
            for column in self.preprocessing.columns
        }

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return x (n, D)."""
        given = dict(zip(self.columns, tensors, strict=True))
        groups = []
        if "numbers" in given:
            x = ((given["numbers"] - self.mean) / self.deviation).float()
            groups.append(torch.where(x.isnan(), 0.0, x))
        if "codes" in given:
            groups.append((given["codes"].index_select(1, self.source) == self.category).float())
        return torch.cat(groups, 1).index_select(1, self.order)


def category_codes(column: CategoricalColumn, format: TableFormat) -> dict[str, int]:
    """Return the code of each text that a column knows; all others are ``UNKNOWN``."""
    codes = {value: code for code, value in enumerate(column.values)}
    values = format.values(column.values)
    counts = Counter(values)
    for code, value in enumerate(values):
        if value is not None and counts[value] == 1:
            for text in number_texts(value):
                codes.setdefault(text, code)
    if column.missing:
        codes |= dict.fromkeys(format.missing_texts, len(column.values))
    return codes


def number_texts(value: Decimal) -> list[str]:
    """Return how Python and NumPy write a number: as a float, and a whole one as an integer."""
    number = float(value)
    if not math.isfinite(number):
        return []
    whole = number.is_integer() and abs(value) < 2**63
    return [repr(number), *([str(int(value))] if whole else [])]


def category_texts(column: CategoricalColumn, chunk: Chunk) -> Array:
    """Return a categorical column as the texts that an ONNX file takes, (n,)."""
    codes, texts = column.codes(chunk), chunk.text(column.name).fill_null("").to_pylist()
    known = [
        column.values[code] if 0 <= code < len(column.values) else text
        for code, text in zip(codes.tolist(), texts, strict=True)
    ]
    return np.array(known, dtype=object)


def column_values(column: Column, chunk: Chunk) -> Array:
    """Return a numeric column as float64 (n,), or the codes of a categorical one, int64 (n,)."""
    if isinstance(column, NumericColumn):
        return chunk.numbers(column.name)
    return column.codes(chunk)

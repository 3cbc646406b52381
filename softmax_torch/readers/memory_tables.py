"""Tables in memory: data frames of pandas or polars, pyarrow tables, dicts, lists of dicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from softmax_torch.readers.python_values import to_arrow
from softmax_torch.readers.table_format import TableFormat
from softmax_torch.readers.table_source import Source
from softmax_torch.readers.tables import Chunk, check_unique_names

__all__ = ["chunk_in_memory"]


def chunk_in_memory(raw: Any, names: Sequence[str], format: TableFormat | None = None) -> Chunk:
    """Return a table in memory as one chunk.

    Args:
        raw: a data frame of pandas or polars, or any other object with ``__arrow_c_stream__``; a
            dict of columns; a list of dicts, one for each row.
        names: the columns that are needed; others may be dropped.
        format: how its texts are written.

    Raises:
        TypeError: raw is something else.
        ValueError: a column has values of several types.
    """
    if isinstance(raw, list | tuple) and raw and all(isinstance(row, Mapping) for row in raw):
        present = [name for name in names if any(name in row for row in raw)]
        raw = {name: [row.get(name) for row in raw] for name in present}
    is_series = hasattr(raw, "iloc") and not hasattr(raw, "columns")  # one row or column of pandas
    if is_series or not (isinstance(raw, Mapping) or hasattr(raw, "__arrow_c_stream__")):
        raise TypeError(
            "inputs: expected a data frame, a dict of columns, a list of dicts or the path of a "
            f"table, got {type(raw).__name__}"
        )
    try:
        if isinstance(raw, Mapping):
            table = table_of_columns({name: raw[name] for name in names if name in raw})
        else:
            table = pa.table(only(raw, set(names)))
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise ValueError(f"inputs: expected columns of one type each, got: {error}") from None
    source = Source("inputs", format=format or TableFormat())
    check_unique_names(source, table)
    return Chunk(table, source)


def only(frame: Any, names: set[str]) -> Any:
    """Return a data frame without the columns that are not needed, which may hold any objects."""
    if hasattr(frame, "iloc") and frame.columns.is_unique:  # pandas
        return frame.loc[:, [str(name) in names for name in frame.columns]]
    if hasattr(frame, "get_columns"):  # polars
        return table_of_columns(
            {column.name: column for column in frame.get_columns() if column.name in names}
        )
    return frame


def table_of_columns(columns: Mapping[str, Any]) -> pa.Table:
    """Return columns by name as a table."""
    return pa.table({name: to_arrow(values) for name, values in columns.items()})

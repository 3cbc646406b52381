"""Columns of Python objects as pyarrow arrays, whichever object stands for a missing value.

Missing are None, NaN, pandas.NA and NaT, also among texts and booleans.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

__all__ = ["to_arrow", "to_arrow_or_text", "to_text"]


def to_arrow(values: Any) -> Any:
    """Return values of one type, a sequence or an array, as a pyarrow array.

    Raises:
        pa.ArrowException, TypeError, ValueError: the values have several types.
    """
    if hasattr(values, "__arrow_c_array__") or hasattr(values, "__arrow_c_stream__"):
        if str(getattr(values, "dtype", "")) != "Object":
            return values if isinstance(values, pa.ChunkedArray) else pa.chunked_array(values)
        values = values.to_list()  # polars stores Python objects as their addresses
    return pa.array(values, from_pandas=True)


def to_arrow_or_text(values: Sequence[Any]) -> Any:
    """Return values as a pyarrow array, as text where they have several types."""
    try:
        return pa.array(values, from_pandas=True)
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return to_text(values)


def to_text(values: Sequence[Any]) -> Any:
    """Return values as a pyarrow array of text, with null for missing ones."""
    missing = [value is None or value != value for value in values]
    texts = [None if none else str(v) for v, none in zip(values, missing, strict=True)]
    return pa.array(texts, pa.string())

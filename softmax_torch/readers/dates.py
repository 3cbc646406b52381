"""Dates as numbers: days since 1970-01-01, with a fraction for the time of the day.

    2020-01-02              18263
    2020-01-02T06:00        18263.25
    2020-01-02 06:00+06:00  18263         an instant, as UTC

A date without a zone is taken as it is written.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from softmax_torch.readers.numpy_files import Array

__all__ = ["DATE_PATTERN", "days", "is_date_type"]

ZONE = r"(Z|[+-]\d{2}:?\d{2})"
DATE_PATTERN = (
    rf"^\d{{4}}-\d{{2}}-\d{{2}}([T ]\d{{2}}(:\d{{2}}(:\d{{2}}(\.\d{{1,9}})?)?)?{ZONE}?)?$"
)
"""Regular expression of dates as ISO 8601 writes them."""

UNITS_PER_DAY = {"s": 86400, "ms": 86400 * 10**3, "us": 86400 * 10**6, "ns": 86400 * 10**9}


def is_date_type(t: pa.DataType) -> bool:
    """Return whether a type of pyarrow has dates or instants."""
    return bool(pa.types.is_date(t) or pa.types.is_timestamp(t))


def days(column: pa.ChunkedArray) -> Array:
    """Return a column of dates, instants or ISO texts as days, float64 (n,); NaN for null.

    Raises:
        pa.ArrowInvalid: a text is not a date.
        TypeError: the column has another type.
    """
    if pa.types.is_null(column.type):
        return np.full(len(column), np.nan)
    if pa.types.is_string(column.type):
        return days_of_texts(column)
    if not is_date_type(column.type):
        raise TypeError(f"expected dates, instants or text, got {column.type}")
    if pa.types.is_date(column.type):
        column = column.cast(pa.timestamp("s"))
    counts = column.cast(pa.int64()).to_numpy(zero_copy_only=False)
    result: Array = counts / UNITS_PER_DAY[column.type.unit]
    return result


def days_of_texts(texts: pa.ChunkedArray) -> Array:
    """Return ISO texts as days; only those with a zone are converted to UTC."""
    if not pc.all(pc.match_substring_regex(texts, DATE_PATTERN), min_count=0).as_py():
        raise pa.ArrowInvalid("expected dates, got a text that is not one")
    zoned = pc.match_substring_regex(texts, rf"[T ].*{ZONE}$")
    result: Array = np.full(len(texts), np.nan)
    for has_zone, zone in ((False, None), (True, "UTC")):
        rows = pc.fill_null(pc.equal(zoned, has_zone), False)
        instants: Any = texts.filter(rows).cast(pa.timestamp("us", zone))
        result[rows.to_numpy()] = days(instants)
    return result

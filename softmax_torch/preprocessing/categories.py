"""Find the category of a value: by its text, or by its value where both are numbers.

    known from a text file    "1.50"  "01234"  "true"
    a text "1.50"             1.50      exactly this text
    a text "1.5"              1.50      no such text, and the only number of this value
    a number 1.5 or 1234      1.50, 01234

A number of a data frame has no text of its own, since the reader of its file dropped it. If several
categories have its value, such as 1.5 and 1.50, it is refused: either choice may be wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from softmax_torch.readers.table_format import TableFormat

__all__ = ["AMBIGUOUS", "UNKNOWN", "alike", "find_categories"]

UNKNOWN = -1
"""Code of a category that training never saw."""

AMBIGUOUS = -2
"""Code of a number that is the value of several categories."""

ROUNDED: dict[str, Callable[[Decimal], Any]] = {
    "double": float,
    "float": lambda value: float(np.float32(value)),
    "halffloat": lambda value: float(np.float16(value)),
}
"""Rounding of a value to the types of pyarrow that round; others are exact."""


def find_categories(
    texts: Sequence[str], t: pa.DataType, known: tuple[str, ...], format: TableFormat
) -> list[int]:
    """Return the index in ``known`` of each text, ``UNKNOWN`` or ``AMBIGUOUS``.

    Args:
        texts: values of a column as text, without missing ones.
        t: type of the column.
        known: the categories, as texts in ``format``.
        format: how texts of the column are written.
    """
    codes = {text: code for code, text in enumerate(known)}
    types = pa.types
    is_number = types.is_integer(t) or types.is_floating(t) or types.is_decimal(t)
    found = [UNKNOWN if is_number else codes.get(text, UNKNOWN) for text in texts]
    rest = [k for k, code in enumerate(found) if code == UNKNOWN]
    if rest:
        kind = str(t) if types.is_floating(t) else "exact"
        by_value, rounded = index_of_values(known, format, kind), ROUNDED.get(kind, exact)
        # pyarrow writes numbers with a point, whatever the format of texts.
        given = [texts[k] for k in rest]
        values = TableFormat().values(given) if is_number else values_of(given, format)
        for k, value in zip(rest, values, strict=True):
            code = None if value is None else by_value.get(rounded(value))
            found[k] = codes.get(texts[k], UNKNOWN) if code is None else code
    return found


def exact(value: Decimal) -> Any:
    """Return a value unchanged."""
    return value


@lru_cache(maxsize=256)
def index_of_values(known: tuple[str, ...], format: TableFormat, kind: str) -> dict[Any, int]:
    """Return the code of each value of the categories that are numbers, rounded to a type."""
    index: dict[Any, int] = {}
    rounded = ROUNDED.get(kind, exact)
    with np.errstate(over="ignore"):
        for code, value in enumerate(values_of(known, format)):
            if value is not None:
                key = rounded(value)
                index[key] = AMBIGUOUS if key in index else code
    return index


def values_of(texts: Sequence[str], format: TableFormat) -> list[Decimal | None]:
    """Return the value of each text in a format, or with a decimal point if it is none there."""
    pairs = zip(format.values(texts), TableFormat().values(texts), strict=True)
    return [plain if value is None else value for value, plain in pairs]


def alike(text: str, known: Sequence[str], format: TableFormat) -> list[str]:
    """Return the categories that have the same value as a text of pyarrow, to about 7 digits."""
    [value] = values_of([text], TableFormat())
    return [
        other
        for other, number in zip(known, values_of(known, format), strict=True)
        if value is not None
        and number is not None
        and abs(number - value) <= abs(value) * Decimal("1e-6")
    ]

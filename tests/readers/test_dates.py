"""Dates of any type and text become days since 1970-01-01."""

import datetime as dt
import math
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from softmax_torch.readers.memory_tables import chunk_in_memory
from softmax_torch.readers.table_format import TableFormat

DAY = TableFormat(dates=("day",))
SIX = dt.datetime(2020, 1, 2, 6)


@pytest.mark.parametrize(
    ("values", "days"),
    [
        (["2020-01-02", "", "1969-12-31"], [18263, math.nan, -1]),
        (["2020-01-02T06:00", "2020-01-02 06:00:00.000", "2020-01-02 06"], [18263.25] * 3),
        (["2020-01-02T06:00Z", "2020-01-02T06:00+06:00", "2020-01-02"], [18263.25, 18263, 18263]),
        ([dt.date(2020, 1, 2), None, math.nan], [18263, math.nan, math.nan]),
        ([SIX, pd.NaT], [18263.25, math.nan]),
        (pd.Series([SIX, None]), [18263.25, math.nan]),
        (pd.Series(pd.to_datetime(["2020-01-02 07:00+01:00"])), [18263.25]),
        (pl.Series([SIX, None]), [18263.25, math.nan]),
        (pl.Series([dt.date(2020, 1, 2)]), [18263]),
        (pa.array([SIX], pa.timestamp("ns")), [18263.25]),
        (pa.array([dt.date(2020, 1, 2)], pa.date64()), [18263]),
        ([None, None], [math.nan, math.nan]),
    ],
)
def test_dates_are_days(values: Any, days: list[float]) -> None:
    chunk = chunk_in_memory({"day": values}, ["day"], DAY)
    np.testing.assert_array_equal(chunk.numbers("day"), days)
    expected = None if all(map(math.isnan, days)) else 0
    assert chunk.first_number_and_text("day") == (expected, None)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            ["2020-01-02", "2020-02-31"],
            r"row 1, column day: expected a date such as .* 2020-02-31$",
        ),
        (["2020-01-02", None, "5"], r"row 2, column day: expected a date .* got 5$"),
        ([20200101], r"column day: expected dates, got int64$"),
    ],
)
def test_values_that_are_no_dates_are_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunk_in_memory({"day": values}, ["day"], DAY).numbers("day")


def test_dates_that_are_not_asked_for_are_refused() -> None:
    chunk = chunk_in_memory({"day": [SIX]}, ["day"])
    with pytest.raises(
        ValueError,
        match=r"got timestamp\[us\]; turn dates into numbers: --data.dates '\[\"day\"\]'",
    ):
        chunk.numbers("day")

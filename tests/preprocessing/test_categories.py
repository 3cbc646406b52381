"""A value has the category of the same text or number, whatever type brings it."""

import io
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
import torch

from softmax_torch.export.table_input import TableInput, category_codes
from softmax_torch.preprocessing import TablePreprocessing
from softmax_torch.preprocessing.table import CategoricalColumn
from softmax_torch.preprocessing.unknown_categories import UnknownCategories, counting_unknown
from softmax_torch.readers.memory_tables import chunk_in_memory
from softmax_torch.readers.table_format import TableFormat

TEXT = "zip,price\n01234,1.50\n20500,2.25\n00501,3.00\n"
ZIPS, PRICES = ("00501", "01234", "20500"), ("1.50", "2.25", "3")
COLUMNS = (CategoricalColumn("zip", ZIPS, False), CategoricalColumn("price", PRICES, True))
EXPECTED = [[0, 1, 0, 1, 0, 0, 0], [0, 0, 1, 0, 1, 0, 0], [1, 0, 0, 0, 0, 1, 0]]


def codes(column: CategoricalColumn, values: Any, format: TableFormat | None = None) -> list[int]:
    return column.codes(chunk_in_memory({column.name: values}, [column.name], format)).tolist()


FRAMES = {
    "text": lambda: pd.read_csv(io.StringIO(TEXT), dtype=str),
    "pandas": lambda: pd.read_csv(io.StringIO(TEXT)),
    "float32": lambda: pd.read_csv(io.StringIO(TEXT)).astype("float32"),
    "objects": lambda: pd.read_csv(io.StringIO(TEXT)).astype(object),
    "arrow": lambda: pd.read_csv(io.StringIO(TEXT), dtype_backend="pyarrow"),
    "polars": lambda: pl.read_csv(io.StringIO(TEXT)),
    "records": lambda: pd.read_csv(io.StringIO(TEXT)).to_dict("records"),
    "decimals": lambda: {
        "zip": [Decimal("1234.00"), Decimal(20500), Decimal(501)],
        "price": [Decimal("1.5"), Decimal("2.250"), Decimal(3)],
    },
    "other texts": lambda: {"zip": ["1234", "20500.0", "501"], "price": ["1.5", "2.25", "3.0"]},
}


@pytest.mark.parametrize("kind", FRAMES)
def test_a_number_has_the_category_of_its_text(kind: str) -> None:
    """pandas.read_csv reads 1.50 as 1.5, and the zip code 01234 as 1234."""
    found = TablePreprocessing(COLUMNS, ("no", "yes"))
    assert found.tensor(FRAMES[kind]()).tolist() == EXPECTED


@pytest.mark.parametrize(
    ("known", "values", "expected"),
    [
        (("1.50",), ["1.5", "1.50", "1,5", "x"], [0, 0, -1, -1]),
        (("1.5", "1.50"), ["1.50", "1.5"], [1, 0]),  # texts tell them apart
        (("0.1",), np.array([0.1], np.float32), [0]),
        (("0.10",), np.array([0.1], np.float32), [0]),  # the nearest number of 32 bits
        (("0.1", "0.30000000000000004"), [0.1, 0.1 + 0.2, 0.3], [0, 1, -1]),
        (("10000000000",), [1e10], [0]),  # pyarrow writes 1e+10
        (("9007199254740992", "9007199254740993"), [2**53, 2**53 + 1], [0, 1]),
        (("false", "true"), [True, False, None], [1, 0, 2]),
        (("FALSE", "x"), ["x", "1"], [1, -1]),
        (("1", "2"), [1.0, math.nan, 2.5], [0, 2, -1]),
        (("inf", "1"), [math.inf, 1.0], [0, 1]),
        (("\u22125",), [-5], [0]),
        (("1e400", "1"), [1.0], [1]),
    ],
)
def test_texts_come_first_and_numbers_second(known: Any, values: Any, expected: list[int]) -> None:
    assert codes(CategoricalColumn("a", known, True), values) == expected


def test_numbers_in_another_format_than_the_categories() -> None:
    german = TableFormat(decimal=",", thousands=".")
    column = CategoricalColumn("a", ("1,50", "1.000", "2.5"), False)
    assert codes(column, [1.5, 1000.0, 2.5], german) == [0, 1, 2]
    assert codes(column, ["1,5", "1000", "2.50"], german) == [0, 1, 2]


@pytest.mark.parametrize(
    ("known", "values", "categories"),
    [
        (("1.5", "1.50", "2"), [2.0, 1.5], "1.5, 1.50, got the number 1.5"),
        (("01", "1", "2"), [2, 1], "01, 1, got the number 1"),
        (("1.5", "1.50", "2"), ["2", "1.500"], "1.5, 1.50, got the number 1.500"),
    ],
)
def test_a_number_of_several_categories_is_refused(
    known: Any, values: Any, categories: str
) -> None:
    column = CategoricalColumn("a", known, False)
    with pytest.raises(ValueError, match=f"row 1, column a: expected one .* {categories}, which"):
        codes(column, values)
    assert codes(column, values[:1]) == [2]


def test_exported_tables_have_the_same_categories() -> None:
    """The strings that ONNX takes, as read by this package and as NumPy writes numbers."""
    preprocessing = TablePreprocessing(COLUMNS, ("no", "yes"))
    module = TableInput(preprocessing)
    frame = FRAMES["pandas"]()
    table = module.samples(frame, 3)
    assert torch.equal(module(*module.tensors(table)), torch.tensor(EXPECTED).float())
    for column, given in ((COLUMNS[0], frame["zip"]), (COLUMNS[1], frame["price"])):
        known, expected = category_codes(column, TableFormat()), codes(column, given)
        for texts in (module.arrays(table)[column.name], given.astype(str), given.astype(float)):
            assert [known[str(text)] for text in texts] == expected
    unseen = module.arrays(pa.table({"zip": [7], "price": pa.array([None], pa.float64())}))
    assert [texts.tolist() for texts in unseen.values()] == [["7"], [""]]
    twice = category_codes(CategoricalColumn("a", ("1.5", "1.50"), False), TableFormat())
    assert twice == {"1.5": 0, "1.50": 1}
    missing = category_codes(CategoricalColumn("a", ("x",), True), TableFormat(missing=("?",)))
    assert missing["?"] == missing["NA"] == missing[""] == 1


def test_missing_values_of_every_kind() -> None:
    """NaN, None, pandas.NA and NaT within objects, records and columns of polars."""
    found = TablePreprocessing([CategoricalColumn("a", ("x",), True)], ("no", "yes"))
    values = ["x", math.nan, None, pd.NA, pd.NaT]
    expected = [[1, 0]] + 4 * [[0, 1]]
    for raw in (
        {"a": values},
        {"a": np.array(values, dtype=object)},
        [{"a": value} for value in values],
        pd.DataFrame({"a": pd.Series(values, dtype=object)}),
        pl.DataFrame({"a": pl.Series(values, dtype=pl.Object)}),
        {"a": pl.Series(values, dtype=pl.Object)},
    ):
        assert found.tensor(raw).tolist() == expected
    flags = TablePreprocessing([CategoricalColumn("a", ("true",), True)], ("no", "yes"))
    assert flags.tensor({"a": [True, math.nan, pd.NA]}).tolist() == [[1, 0], [0, 1], [0, 1]]


def test_unknown_values_of_typed_columns_are_counted() -> None:
    found = TablePreprocessing(COLUMNS, ("no", "yes"))
    with counting_unknown(UnknownCategories()) as unknown:
        found.tensor({"zip": [1234, 7, 8], "price": [1.5, None, 9.0]})
    assert unknown.messages() == [
        "column zip: 2 of 3 values, such as '7', treated as no category",
        "column price: 1 of 3 values, such as '9', treated as no category",
    ]

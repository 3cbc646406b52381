"""Numbers and missing values as a format writes them."""

from typing import Any

import pyarrow as pa
import pytest

from softmax_torch.readers.memory_tables import chunk_in_memory
from softmax_torch.readers.table_format import TableFormat

GERMAN = TableFormat(decimal=",", thousands=".")


@pytest.mark.parametrize(
    ("format", "text", "number"),
    [
        (TableFormat(), "1.5", 1.5),
        (TableFormat(), "\u22125", -5),
        (TableFormat(), "1,234", None),
        (TableFormat(decimal=","), "1,5", 1.5),
        (TableFormat(decimal=","), ",5e2", 50),
        (TableFormat(decimal=","), "1.5", None),  # a decimal point could be a separator
        (GERMAN, "1.234.567,5", 1234567.5),
        (GERMAN, "-1.234", -1234),
        (GERMAN, "12345,5", 12345.5),
        (GERMAN, "1.23,4", None),
        (TableFormat(thousands=","), "12,34,567.5", 1234567.5),  # as India groups digits
        (TableFormat(thousands=","), "1,5", None),  # not 15
        (TableFormat(thousands="_"), "1_000", 1000),
        (TableFormat(thousands="'"), "1'000.5", 1000.5),
    ],
)
def test_texts_of_numbers(format: TableFormat, text: str, number: float | None) -> None:
    chunk = chunk_in_memory({"a": [text, None]}, ["a"], format)
    if number is None:
        assert chunk.first_number_and_text("a") == (None, 0)
        with pytest.raises(ValueError, match=r"row 0, column a: expected a number, got"):
            chunk.numbers("a")
    else:
        assert chunk.first_number_and_text("a") == (0, None)
        assert chunk.numbers("a")[0] == number
        assert float(format.values([text])[0] or 0) == number


def test_infinity_and_nan_have_no_exact_value() -> None:
    assert TableFormat().values(["1.50", "-inf", "NAN", "x"]) == [1.5, None, None, None]


def test_a_format_is_not_that_of_numbers_in_memory() -> None:
    chunk = chunk_in_memory({"a": [1.5, 2.0]}, ["a"], GERMAN)
    assert chunk.numbers("a").tolist() == [1.5, 2]
    assert chunk.text("a").to_pylist() == ["1.5", "2"]
    assert chunk_in_memory({"a": ["1.000"]}, ["a"], GERMAN).text("a").to_pylist() == ["1.000"]


def test_texts_that_mean_missing() -> None:
    texts = {"a": ["NA", "?", " - ", "", "x"]}
    found = chunk_in_memory(texts, ["a"], TableFormat(missing=("?", "- ")))
    assert found.text("a").to_pylist() == [None, None, None, None, "x"]
    found = chunk_in_memory(texts, ["a"], TableFormat(present=("NA",)))
    assert found.text("a").to_pylist() == ["NA", "?", "-", None, "x"]
    empty = chunk_in_memory({"a": pa.array([1.0, float("nan")])}, ["a"], TableFormat())
    assert empty.text("a").to_pylist() == ["1", None]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decimal": ""}, "decimal: expected one character, got ''"),
        ({"decimal": "5"}, "decimal: expected a separator, such as a comma, got '5'"),
        ({"thousands": "-"}, "thousands: expected a separator, such as a comma, got '-'"),
        ({"decimal": ",", "thousands": ","}, "thousands: expected another character than decimal"),
        ({"delimiter": "::"}, "delimiter: expected one character, got '::'"),
    ],
)
def test_formats_that_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TableFormat(**options)


def test_a_state_rebuilds_the_format() -> None:
    found = TableFormat(";", ",", ".", ("?",), dates=("day",))
    assert TableFormat.from_state_dict(found.state_dict()) == found
    assert TableFormat.from_state_dict({"delimiter": ";"}) == TableFormat(";")

"""Columns whose texts are numbers or dates in another way of writing are refused, with the fix."""

import random
from typing import Any

import pytest

from softmax_torch.preprocessing.table_fitting import CategoricalFit, NumericFit, Survey
from softmax_torch.readers.memory_tables import chunk_in_memory
from softmax_torch.readers.table_format import TableFormat


def surveyed(values: Any, format: TableFormat | None = None, categorical: Any = ()) -> Any:
    chunk = chunk_in_memory({"a": values}, ["a"], format)
    survey = Survey(["a"], categorical)
    survey.add(chunk)
    [fit] = survey.fits(chunk.source)
    return fit


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,5", "numbers with a decimal comma such as 1,5; --data.decimal ,;"),
        ("-0,125", "numbers with a decimal comma such as -0,125; --data.decimal ,;"),
        ("1.234,5", "decimal comma such as 1.234,5; --data.decimal , --data.thousands .;"),
        ("1,234", r"grouped digits such as 1,234; --data.thousands , \(or --data.decimal ,"),
        ("1,234.5", "grouped digits such as 1,234.5; --data.thousands ,"),
        ("1 234", "grouped digits such as 1 234; --data.thousands ' '"),
        ("1'234.5", "grouped digits such as 1'234.5; --data.thousands"),
        ("1_000", "grouped digits such as 1_000; --data.thousands _"),
        ("$1.50", r"amounts of money such as \$1.50; write them without"),
        ("1.234,50 €", "amounts of money such as"),
        ("5%", "percentages such as 5%; write them without"),
        ("2020-12-31", r"dates such as 2020-12-31; read them as days: --data.dates '\[\"a\"\]'"),
        ("2020-12-31T12:30:00Z", "read them as days"),
        ("31.12.2020", "dates such as 31.12.2020; write them as 2020-12-31, and read"),
        ("12/31/2020 5:30 PM", "write them as 2020-12-31"),
        ("31/12/20", "write them as 2020-12-31"),
        ("Dec 31, 2020", "write them as 2020-12-31"),
        ("31-dec-2020", "write them as 2020-12-31"),
    ],
)
def test_numbers_and_dates_in_disguise_are_refused(text: str, message: str) -> None:
    advice = r"; or make the column categorical: --data.categorical '\[\"a\"\]'$"
    with pytest.raises(ValueError, match=f"^inputs, row 1, column a: expected numbers .*{message}"):
        surveyed([None, text, text, "x"])
    with pytest.raises(ValueError, match=advice):
        surveyed([text])
    assert isinstance(surveyed([text], categorical=["a"]), CategoricalFit)
    assert isinstance(surveyed([text, "x", "y"]), CategoricalFit)  # most values are words


@pytest.mark.parametrize(
    "text", ["1.2.3", "A4", "10-12", "3x4", "12:30", "a,b", "1,2,3", "No. 5", "2020-Q1", "C++"]
)
def test_words_with_digits_are_categories(text: str) -> None:
    assert isinstance(surveyed([text] * 3), CategoricalFit)


@pytest.mark.parametrize(
    ("texts", "format"),
    [
        (["1,5", "2"], TableFormat(decimal=",")),
        (["1.234,5", "3"], TableFormat(decimal=",", thousands=".")),
        (["1_000", "1"], TableFormat(thousands="_")),
        (["2020-12-31", None], TableFormat(dates=("a",))),
        (["\u22125", "5"], TableFormat()),
    ],
)
def test_the_advice_makes_numbers_of_them(texts: Any, format: TableFormat) -> None:
    assert isinstance(surveyed(texts, format), NumericFit)


def test_one_fraction_tells_a_decimal_comma() -> None:
    with pytest.raises(ValueError, match=r"decimal comma such as 1,5; --data.decimal ,;"):
        surveyed(["1,234"] * 9 + ["1,5"])


def test_a_disguised_number_among_numbers_is_explained() -> None:
    with pytest.raises(ValueError, match=r"row 2, .* got 5%, one of percentages; write them"):
        surveyed(["1", "2", "5%"])


def test_many_different_texts_are_looked_at_in_part() -> None:
    rng = random.Random(0)
    texts = [f"{rng.randrange(10**6)},{rng.randrange(10, 99)}" for _ in range(5000)]
    with pytest.raises(ValueError, match="decimal comma"):
        surveyed(texts)

"""Texts that are numbers or dates in another way of writing, and the setting that reads them.

    1,5   1.234,5   1,234   1'234   1_000   $1.50   5%   2020-12-31   31.12.2020   Dec 31, 2020

A column of such texts would become a category for each number, which fits the training samples and
knows nothing of new ones.
"""

from __future__ import annotations

import re
from collections import Counter
from functools import lru_cache
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from softmax_torch.readers.dates import DATE_PATTERN
from softmax_torch.readers.table_format import TableFormat, setting

__all__ = ["Disguise", "Disguises", "disguise_of"]

MONTHS = "(?i:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*"
TIME = r"([ T]\d{1,2}:\d{2}(:\d{2})?( ?(?i:[ap]m))?)?"
OTHER_DATES = "|".join(
    (
        r"\d{1,2}(?P<a>[/.-])\d{1,2}(?P=a)\d{4}",
        r"\d{2}(?P<b>[/.-])\d{2}(?P=b)\d{2}",
        r"\d{4}(?P<c>[/.])\d{1,2}(?P=c)\d{1,2}",
        rf"\d{{1,2}}\.?[ -]{MONTHS}\.?[ -]\d{{2,4}}",
        rf"{MONTHS}\.? \d{{1,2}},? \d{{4}}",
    )
)
SIGN = "[+\\-\u2212]?"
CURRENCY = "[$\u20ac\u00a3\u00a5\u20b9]"
THOUSANDS = (",", ".", "'", "\u2019", "_", " ", "\u00a0", "\u202f")
"""Separators of groups of digits that are recognized."""

SAMPLED_ROWS = 2000
"""Rows of a chunk that are looked at. 65,536 different texts would take a second."""


class Disguise(NamedTuple):
    """A way of writing.

    Attributes:
        name: what the texts are, for a message.
        pattern: regular expression of the texts.
        advice: how to have them read as numbers.
    """

    name: str
    pattern: str
    advice: str


def grouped(separator: str, fraction: str = "") -> str:
    """Return a pattern of numbers whose digits are grouped."""
    t = re.escape(separator)
    return rf"^{SIGN}[1-9]\d{{0,2}}({t}\d{{2,3}})*{t}\d{{3}}{fraction}$"


@lru_cache(maxsize=256)
def disguises(column: str) -> list[Disguise]:
    """Return the ways of writing that are recognized, the more special ones first."""
    comma = setting("decimal", ",")
    found = [
        Disguise("dates", DATE_PATTERN, f"read them as days: {setting('dates', [column])}"),
        Disguise(
            "dates",
            rf"^({OTHER_DATES}){TIME}$",
            f"write them as 2020-12-31, and read them as days: {setting('dates', [column])}",
        ),
        Disguise(
            "numbers with a decimal comma",
            grouped(".", r",\d+"),
            f"{comma} {setting('thousands', '.')}",
        ),
    ]
    for separator in THOUSANDS:
        fraction = r"(,\d+)?" if separator == "." else r"(\.\d+)?"
        advice = setting("thousands", separator)
        if separator == ",":
            advice += f" (or {comma}, if these are fractions)"
        found.append(Disguise("numbers with grouped digits", grouped(separator, fraction), advice))
    number = r"(\d[\d.,']*|[.,]\d+)"
    return [
        *found,
        Disguise("numbers with a decimal comma", rf"^{SIGN}\d*,\d+$", comma),
        Disguise(
            "amounts of money",
            rf"^({SIGN}{CURRENCY} ?{SIGN}{number}|{SIGN}{number} ?{CURRENCY})$",
            "write them without the currency",
        ),
        Disguise("percentages", rf"^{SIGN}{number} ?%$", "write them without the percent sign"),
    ]


def disguise_of(text: str, column: str, format: TableFormat) -> Disguise | None:
    """Return the way in which a text is written if it is a number or a date, or None."""
    if re.match(format.number_pattern, text):
        return None
    return next((way for way in disguises(column) if re.match(way.pattern, text)), None)


class Disguises:
    """Counts of disguised numbers and dates in a column, gathered chunk by chunk."""

    def __init__(self, column: str) -> None:
        self.column = column
        self.present = 0  # values that were looked at
        self.counts: Counter[Disguise] = Counter()
        self.examples: dict[Disguise, tuple[int, str]] = {}

    def add(self, texts: pa.ChunkedArray, first: int, format: TableFormat) -> None:
        """Add texts of a column, the first of which stands in row ``first``."""
        texts = texts.slice(0, SAMPLED_ROWS)
        counted = pc.value_counts(texts.drop_null())
        for text, count in zip(
            counted.field("values").to_pylist(), counted.field("counts").to_pylist(), strict=True
        ):
            self.present += count
            way = disguise_of(text, self.column, format)
            if way is not None:
                self.counts[way] += count
                if way not in self.examples:
                    self.examples[way] = first + pc.index(texts, text).as_py(), text

    @property
    def prevail(self) -> bool:
        """Whether most values are disguised."""
        return 2 * self.counts.total() > self.present

    def most(self) -> tuple[Disguise, int, str]:
        """Return the way of writing to name, with the row and text of an example.

        1,5 tells a decimal comma where 1,234 alone could have grouped digits.
        """
        way, _ = max(
            self.counts.items(),
            key=lambda item: (item[0].name == "numbers with a decimal comma", item[1]),
        )
        return way, *self.examples[way]

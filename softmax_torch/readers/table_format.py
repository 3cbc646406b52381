"""How the texts of a table are read: which mean missing, and how numbers and dates are written.

    missing     an empty text, MISSING_TEXTS, and further texts on request
    a number    [sign] digits [decimal digits] [e [sign] digits]     sign: + - or U+2212
    digits      1234, or with a thousands separator 1,234 too

The last group of grouped digits has three digits and the others two or three, as in 12,34,567.
Otherwise 1,5 would be read as 15 where the separators were mixed up.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

__all__ = ["MISSING_TEXTS", "TableFormat", "setting"]

MISSING_TEXTS = ("", "NA", "N/A", "NaN", "nan", "null", "NULL")
"""Texts that always stand for a missing value."""

MINUS = "\u2212"
"""The minus sign of typography."""


@dataclass(frozen=True)
class TableFormat:
    r"""The way in which the texts of a table are written.

    Args:
        delimiter: between the columns of a .csv, such as ; or \t for a tab; None for a comma.
        decimal: between the whole part of a number and its fraction, such as a comma.
        thousands: between groups of digits; None if digits are not grouped.
        missing: texts that mean missing besides ``MISSING_TEXTS``.
        present: those of ``MISSING_TEXTS`` that are values instead, such as a class NA. A state
            does not hold them: they matter to the labels of training files alone.
        dates: names of the columns whose values are dates.

    Raises:
        ValueError: a separator is no single character, or cannot be told from another one.
    """

    delimiter: str | None = None
    decimal: str = "."
    thousands: str | None = None
    missing: tuple[str, ...] = ()
    present: tuple[str, ...] = ()
    dates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("delimiter", "decimal", "thousands"):
            given = getattr(self, name)
            if given is not None and len(given) != 1:
                raise ValueError(f"{name}: expected one character, got {given!r}")
        for name, given in (("decimal", self.decimal), ("thousands", self.thousands)):
            if given is not None and (given.isalnum() or given in f"+-{MINUS}"):
                raise ValueError(f"{name}: expected a separator, such as a comma, got {given!r}")
        if self.decimal == self.thousands:
            raise ValueError(
                f"thousands: expected another character than decimal, got {self.thousands!r} twice"
            )

    @property
    def missing_texts(self) -> tuple[str, ...]:
        """All texts that mean a missing value."""
        texts = (*MISSING_TEXTS, *(text.strip() for text in self.missing))
        return tuple(text for text in dict.fromkeys(texts) if text not in self.present)

    @property
    def number_pattern(self) -> str:
        """Regular expression of the texts that are numbers."""
        digits, d = r"\d+", re.escape(self.decimal)
        if self.thousands is not None:
            t = re.escape(self.thousands)
            digits = rf"(\d{{1,3}}({t}\d{{2,3}})*{t}\d{{3}}|\d+)"
        number = rf"({digits}({d}\d*)?|{d}\d+)([eE][+-]?\d+)?"
        return rf"^[+\-{MINUS}]?({number}|(?i:inf|infinity|nan))$"

    def to_float(self, texts: Any) -> Any:
        """Return an array of texts as float64; null stays null.

        Raises:
            pa.ArrowInvalid: a text is not a number.
        """
        if self.decimal == "." and self.thousands is None:
            try:  # almost always; the way below takes six times as long
                return texts.cast(pa.float64())
            except pa.ArrowInvalid:
                pass
        numbers = pc.match_substring_regex(texts, self.number_pattern)
        if pc.all(numbers, min_count=0).as_py():
            return self.plain(texts).cast(pa.float64())
        raise pa.ArrowInvalid("expected numbers, got a text that is not one")

    def plain(self, texts: Any) -> Any:
        """Return texts of numbers as Python writes them."""
        if self.thousands is not None:
            texts = pc.replace_substring(texts, self.thousands, "")
        texts = pc.replace_substring(texts, self.decimal, ".")
        return pc.replace_substring(texts, MINUS, "-")

    def values(self, texts: Sequence[str]) -> list[Decimal | None]:
        """Return the exact value of each text, None for texts that are not finite numbers."""
        found = pa.array(texts, pa.string())
        are_numbers = pc.match_substring_regex(found, self.number_pattern).to_pylist()
        plain = self.plain(found).to_pylist()
        numbers = [
            Decimal(text) if is_number else None
            for text, is_number in zip(plain, are_numbers, strict=True)
        ]
        return [None if n is None or not n.is_finite() else n for n in numbers]

    def state_dict(self) -> dict[str, Any]:
        """Return serializable state; the inverse of ``from_state_dict``."""
        return {
            "delimiter": self.delimiter,
            "decimal": self.decimal,
            "thousands": self.thousands,
            "missing": list(self.missing),
            "dates": list(self.dates),
        }

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> TableFormat:
        """Rebuild the format from its state; earlier versions wrote the delimiter alone."""
        lists = {name: tuple(state.get(name, ())) for name in ("missing", "dates")}
        return cls(state["delimiter"], state.get("decimal", "."), state.get("thousands"), **lists)


def setting(name: str, value: Any) -> str:
    """Return a setting of a table as the command line takes it, for advice in messages."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return f"--data.{name} {shlex.quote(text)}"

"""Tables of estimates with their uncertainty: as text, Markdown and HTML.

Text has the layout of statsmodels' summaries: facts of the whole, and a block a class.
"""

from __future__ import annotations

import html
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

__all__ = [
    "Block",
    "Row",
    "Table",
    "blocks_of",
    "column_heads",
    "columns_of_estimates",
    "frame_of",
]

NARROWEST, WIDEST = 14, 30
"""Width of the column of names in text; longer names are cut."""

NUMBER = 11
"""Width of a column of numbers in text."""


class Row(NamedTuple):
    """An estimate: its name, and estimate, standard error, z, p-value, lower and upper end."""

    name: str
    numbers: list[float]


class Block(NamedTuple):
    """The estimates of a class."""

    title: str
    rows: list[Row]


class Table(NamedTuple):
    """What a table shows: a title, names and values of facts, heads, blocks of rows, and notes."""

    title: str
    facts: list[tuple[str, str]]
    heads: list[str]
    blocks: list[Block]
    notes: list[str]

    def as_text(self) -> str:
        """Return the table that ``print`` shows."""
        _, facts, heads, blocks, notes = self
        shown = "".join(f"{head:>{NUMBER}}" for head in heads)
        names = [row.name for block in blocks for row in block.rows] + [b.title for b in blocks]
        first = min(WIDEST, max(NARROWEST, *map(_width, names)))
        width = max(first + NUMBER * len(heads), 78)
        lines = [self.title.center(width).rstrip(), "=" * width]
        half = (len(facts) + 1) // 2
        left, gap = (width - 2) // 2, "  "
        for (name, value), other in zip(facts[:half], [*facts[half:], ("", "")], strict=False):
            right = width - left - len(gap)
            line = _spread(name, value, left) + gap + _spread(*other, right)
            lines.append(line.rstrip())
        for number, block in enumerate(blocks):
            lines.append(("=" if number == 0 else "-") * width)
            lines.append(_padded(block.title, first) + shown)
            lines.append("-" * width)
            for row in block.rows:
                cells = _cells(row)
                lines.append(_padded(row.name, first) + "".join(f"{c:>{NUMBER}}" for c in cells))
        lines.append("=" * width)
        for note in notes:
            lines += textwrap.wrap(note, width)
        return "\n".join(lines)

    def as_markdown(self) -> str:
        """Return tables of Markdown."""
        lines = _markdown_row(["", ""]) + _markdown_row(["---", "---:"])
        for name, value in self.facts:
            lines += _markdown_row([_markdown(name), _markdown(value)])
        for block in self.blocks:
            lines += ["", *_markdown_row([_markdown(block.title), *map(_markdown, self.heads)])]
            lines += _markdown_row(["---", *["---:"] * len(self.heads)])
            for row in block.rows:
                lines += _markdown_row([_markdown(row.name), *_cells(row)])
        for note in self.notes:
            lines += ["", note]
        return "\n".join(lines) + "\n"

    def as_html(self) -> str:
        """Return tables of HTML, for notebooks."""
        escape = html.escape
        parts = [f"<table><caption>{escape(self.title)}</caption><tbody>"]
        parts += [
            f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
            for name, value in self.facts
        ]
        parts.append("</tbody></table>")
        heads = "".join(f'<th scope="col">{escape(h)}</th>' for h in self.heads)
        for block in self.blocks:
            parts.append(
                f'<table><thead><tr><th scope="col">{escape(block.title)}</th>{heads}</tr></thead>'
            )
            parts.append("<tbody>")
            for row in block.rows:
                cells = "".join(f"<td>{cell}</td>" for cell in _cells(row))
                parts.append(f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>')
            parts.append("</tbody></table>")
        parts += [f"<p>{escape(note)}</p>" for note in self.notes]
        return "\n".join(parts)


def columns_of_estimates(
    name: str,
    classes: Sequence[str],
    features: Sequence[str],
    estimates: Tensor,
    standard_errors: Tensor,
    z_values: Tensor,
    p_values: Tensor,
    intervals: Tensor,
) -> dict[str, list[Any]]:
    """Return columns with an entry for each estimate, class by class.

    The estimates and their numbers are (R, P), for R classes and P features; intervals (R, P, 2).
    ``name`` is that of the column of estimates.
    """
    numbers = {
        name: estimates,
        "standard_error": standard_errors,
        "z": z_values,
        "p_value": p_values,
        "lower": intervals[..., 0],
        "upper": intervals[..., 1],
    }
    return {
        "class": [each for each in classes for _ in features],
        "feature": list(features) * len(classes),
        **{key: values.flatten().tolist() for key, values in numbers.items()},
    }


def blocks_of(titles: Sequence[str], columns: dict[str, list[Any]]) -> list[Block]:
    """Return a block for each class, with this title, from ``columns_of_estimates``."""
    _, names, *numbers = columns.values()
    rows = [Row(name, values) for name, *values in zip(names, *numbers, strict=True)]
    P = len(rows) // len(titles)
    return [Block(title, rows[i * P : (i + 1) * P]) for i, title in enumerate(titles)]


def frame_of(columns: dict[str, list[Any]], index: list[str]) -> Any:
    """Return columns as a pandas frame with these as its index.

    Raises:
        ImportError: pandas is not installed.
    """
    import pandas as pd  # type: ignore[import-untyped] # it ships no types

    return pd.DataFrame(columns).set_index(index)


def column_heads(estimate: str, confidence: float, p_value: str = "P>|z|") -> list[str]:
    """Return the heads of the columns of numbers; ``estimate`` is the first."""
    tail = (1 - confidence) / 2
    return [estimate, "std err", "z", p_value, f"[{tail:.4g}", f"{1 - tail:.4g}]"]


def _cells(row: Row) -> list[str]:
    value, error, z, p, low, high = row.numbers
    return [_number(value), _number(error), f"{z:.3f}", _p_value(p), _number(low), _number(high)]


def _number(x: float) -> str:
    """Return x with four decimals, or in powers of ten where these would hide or flood it."""
    return f"{x:.4f}" if x == 0 or 1e-3 <= abs(x) < 1e4 or not math.isfinite(x) else f"{x:.3e}"


def _p_value(p: float) -> str:
    return f"{p:.3f}" if not p < 5e-4 else "<0.001"


def _width(text: str) -> int:
    """Return the number of places that text takes in a terminal."""
    wide = sum(unicodedata.east_asian_width(character) in "WF" for character in text)
    return len(text) + wide - sum(unicodedata.combining(character) > 0 for character in text)


def _padded(text: str, width: int) -> str:
    """Return text on one line in so many places, cut with an ellipsis if it is longer."""
    text = " ".join(text.split())
    if _width(text) > width:
        while _width(text) > width - 1:
            text = text[:-1]
        text += "…"
    return text + " " * (width - _width(text))


def _spread(name: str, value: str, width: int) -> str:
    return name + value.rjust(width - len(name))


def _markdown(text: str) -> str:
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")


def _markdown_row(cells: Sequence[str]) -> list[str]:
    return [f"| {' | '.join(cells)} |"]

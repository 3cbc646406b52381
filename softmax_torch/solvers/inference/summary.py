"""The tables of an ``Inference``: as text, columns, Markdown and HTML.

Text has the layout of statsmodels' summaries: figures of the whole fit, and a block of coefficients
for each class.
"""

from __future__ import annotations

import html
import math
import textwrap
import unicodedata
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from softmax_torch.solvers.inference.bootstrap import Bootstrap
from softmax_torch.solvers.inference.hypothesis_tests import TestResult
from softmax_torch.solvers.inference.model import FittedModel

__all__ = ["as_html", "as_markdown", "as_text", "columns_of"]

NARROWEST, WIDEST = 18, 30
"""Width of the column of names in text; longer names are cut."""

NUMBER = 11
"""Width of a column of numbers in text."""

NOTES = {
    "firth": "Firth's penalised likelihood: estimates without the bias of order 1/n.",
    "l2": "The penalty biases coefficients towards 0. Intervals and tests are about the "
    "coefficients that the penalised fit has in the population.",
}
"""What a penalty means, for readers of a summary."""


class Summarised(Protocol):
    """What a summary shows of an ``Inference``."""

    @property
    def coefficients(self) -> Tensor: ...
    @property
    def standard_errors(self) -> Tensor: ...
    @property
    def z_values(self) -> Tensor: ...
    @property
    def p_values(self) -> Tensor: ...
    @property
    def confidence_intervals(self) -> Tensor: ...
    @property
    def intervals(self) -> str: ...
    @property
    def bootstrap(self) -> Bootstrap | None: ...
    @property
    def row_names(self) -> tuple[str, ...]: ...
    @property
    def column_names(self) -> tuple[str, ...]: ...
    @property
    def class_names(self) -> tuple[str, ...]: ...
    @property
    def reference(self) -> int | None: ...
    @property
    def model(self) -> FittedModel: ...
    @property
    def groups(self) -> int | None: ...
    @property
    def likelihood_ratio(self) -> TestResult | None: ...
    @property
    def covariance_type(self) -> str: ...
    @property
    def penalty_text(self) -> str: ...
    @property
    def observations(self) -> float: ...
    @property
    def parameters(self) -> float: ...
    @property
    def confidence(self) -> float: ...
    @property
    def log_likelihood(self) -> float: ...
    @property
    def log_likelihood_null(self) -> float: ...
    @property
    def pseudo_r2(self) -> float: ...
    @property
    def aic(self) -> float: ...
    @property
    def bic(self) -> float: ...


class Row(NamedTuple):
    """A coefficient: name of its column and its numbers."""

    name: str
    numbers: list[float]


class Block(NamedTuple):
    """The coefficients of a class."""

    title: str
    rows: list[Row]


def columns_of(result: Summarised, odds_ratios: bool = False) -> dict[str, list[Any]]:
    """Return columns with an entry for each coefficient, class by class."""
    R, P = result.coefficients.shape
    columns: dict[str, list[Any]] = {
        "class": [name for name in result.row_names for _ in range(P)],
        "feature": list(result.column_names) * R,
        "coefficient": result.coefficients.flatten().tolist(),
        "standard_error": result.standard_errors.flatten().tolist(),
        "z": result.z_values.flatten().tolist(),
        "p_value": result.p_values.flatten().tolist(),
        "lower": result.confidence_intervals[..., 0].flatten().tolist(),
        "upper": result.confidence_intervals[..., 1].flatten().tolist(),
    }
    if result.bootstrap is not None:
        columns["bootstrap_standard_error"] = result.bootstrap.standard_errors.flatten().tolist()
        low, high = result.bootstrap.confidence_intervals.unbind(-1)
        columns["bootstrap_lower"], columns["bootstrap_upper"] = (
            ends.flatten().tolist() for ends in (low, high)
        )
    if odds_ratios:
        for name, of in (("", "coefficient"), ("_lower", "lower"), ("_upper", "upper")):
            columns[f"odds_ratio{name}"] = list(map(_exp, columns[of]))
    return columns


def as_text(result: Summarised, odds_ratios: bool = False) -> str:
    """Return the summary that ``print`` shows."""
    heads, blocks = _heads(result, odds_ratios), _blocks(result, odds_ratios)
    names = [row.name for block in blocks for row in block.rows] + [b.title for b in blocks]
    first = min(WIDEST, max(NARROWEST, *map(_width, names)))
    width = max(first + NUMBER * len(heads), 78)
    lines = ["Softmax regression".center(width).rstrip(), "=" * width]
    facts = _facts(result)
    half = (len(facts) + 1) // 2
    left, gap = (width - 2) // 2, "  "
    for (name, value), other in zip(facts[:half], [*facts[half:], ("", "")], strict=False):
        right = width - left - len(gap)
        line = _spread(name, value, left) + gap + _spread(*other, right)
        lines.append(line.rstrip())
    for number, block in enumerate(blocks):
        lines.append(("=" if number == 0 else "-") * width)
        lines.append(_padded(block.title, first) + "".join(f"{head:>{NUMBER}}" for head in heads))
        lines.append("-" * width)
        for row in block.rows:
            cells = _cells(row)
            lines.append(_padded(row.name, first) + "".join(f"{c:>{NUMBER}}" for c in cells))
    lines.append("=" * width)
    for note in _notes(result):
        lines += textwrap.wrap(note, width)
    return "\n".join(lines)


def as_markdown(result: Summarised, odds_ratios: bool = False) -> str:
    """Return the summary as tables of Markdown."""
    heads = _heads(result, odds_ratios)
    lines = _markdown_row(["", ""]) + _markdown_row(["---", "---:"])
    for name, value in _facts(result):
        lines += _markdown_row([_markdown(name), _markdown(value)])
    for block in _blocks(result, odds_ratios):
        lines += ["", *_markdown_row([_markdown(block.title), *map(_markdown, heads)])]
        lines += _markdown_row(["---", *["---:"] * len(heads)])
        for row in block.rows:
            lines += _markdown_row([_markdown(row.name), *_cells(row)])
    for note in _notes(result):
        lines += ["", note]
    return "\n".join(lines) + "\n"


def as_html(result: Summarised, odds_ratios: bool = False) -> str:
    """Return the summary as tables of HTML, for notebooks."""
    escape = html.escape
    parts = ["<table><caption>Softmax regression</caption><tbody>"]
    parts += [
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(value)}</td></tr>'
        for name, value in _facts(result)
    ]
    parts.append("</tbody></table>")
    heads = "".join(f'<th scope="col">{escape(h)}</th>' for h in _heads(result, odds_ratios))
    for block in _blocks(result, odds_ratios):
        parts.append(
            f'<table><thead><tr><th scope="col">{escape(block.title)}</th>{heads}</tr></thead>'
        )
        parts.append("<tbody>")
        for row in block.rows:
            cells = "".join(f"<td>{cell}</td>" for cell in _cells(row))
            parts.append(f'<tr><th scope="row">{escape(row.name)}</th>{cells}</tr>')
        parts.append("</tbody></table>")
    parts += [f"<p>{escape(note)}</p>" for note in _notes(result)]
    return "\n".join(parts)


def _facts(result: Summarised) -> list[tuple[str, str]]:
    """Return names and values of the figures of the whole fit."""
    whole = result.likelihood_ratio
    return [
        ("No. observations", f"{result.observations:.10g}"),
        ("Coefficients", f"{result.parameters:.4g}"),
        ("Df residuals", f"{result.observations - result.parameters:.6g}"),
        ("Covariance", result.covariance_type),
        ("Penalty", result.penalty_text),
        ("Confidence", f"{result.confidence:g}"),
        ("Log-likelihood", f"{result.log_likelihood:.6g}"),
        ("LL-null", f"{result.log_likelihood_null:.6g}"),
        ("LLR p-value", "-" if whole is None else f"{whole.p_value:.4g}"),
        ("Pseudo R-squared", f"{result.pseudo_r2:.4g}"),
        ("AIC", f"{result.aic:.6g}"),
        ("BIC", f"{result.bic:.6g}"),
    ]


def _heads(result: Summarised, odds_ratios: bool) -> list[str]:
    tail = (1 - result.confidence) / 2
    first = ["odds ratio", "std err"] if odds_ratios else ["coef", "std err"]
    p_value = "P>chi2" if result.intervals == "profile" else "P>|z|"
    return [*first, "z", p_value, f"[{tail:.4g}", f"{1 - tail:.4g}]"]


def _blocks(result: Summarised, odds_ratios: bool) -> list[Block]:
    P, columns = len(result.column_names), columns_of(result)
    numbers = ("coefficient", "standard_error", "z", "p_value", "lower", "upper")
    rows = []
    for name, *values in zip(columns["feature"], *(columns[each] for each in numbers), strict=True):
        if odds_ratios:
            ratio = _exp(values[0])
            values = [ratio, ratio * values[1], *values[2:4], *map(_exp, values[4:])]
        rows.append(Row(name, values))
    against = "the mean" if result.reference is None else result.class_names[result.reference]
    return [
        Block(f"{name} vs {against}", rows[i * P : (i + 1) * P])
        for i, name in enumerate(result.row_names)
    ]


def _notes(result: Summarised) -> list[str]:
    notes = []
    if result.model.penalty in NOTES:
        notes.append(NOTES[result.model.penalty])
    if result.intervals == "profile":
        notes.append("Intervals and p-values are those of likelihood-ratio tests (profiles).")
    if result.groups is not None:
        notes.append(f"The samples belong to {result.groups} groups.")
    boot = result.bootstrap
    if boot is not None:
        failed = f"; {boot.failed} of them had no optimum and were left out" if boot.failed else ""
        notes.append(
            f"Bootstrap intervals from {boot.resamples} resamples are in the attribute bootstrap"
            f"{failed}."
        )
    return notes


def _cells(row: Row) -> list[str]:
    value, error, z, p, low, high = row.numbers
    return [_number(value), _number(error), f"{z:.3f}", _p_value(p), _number(low), _number(high)]


def _number(x: float) -> str:
    """Return x with four decimals, or in powers of ten where these would hide or flood it."""
    return f"{x:.4f}" if x == 0 or 1e-3 <= abs(x) < 1e4 or not math.isfinite(x) else f"{x:.3e}"


def _p_value(p: float) -> str:
    return f"{p:.3f}" if not p < 5e-4 else "<0.001"


def _exp(x: float) -> float:
    return math.exp(x) if x < 709 else math.inf


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

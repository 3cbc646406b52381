"""Learning curves: how the figures of a run went, epoch by epoch.

What is drawn is what was logged: of gradient descent the objective, and the NLL and accuracy of
training and validation; of a solver the objective, its certificate (the duality gap relative to the
objective), the norm of the gradient, and the figures of the validation. Training figures are those
of each batch before its step, hence they lag behind by half an epoch.
"""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from softmax_torch.report.findings import Findings
from softmax_torch.report.picture import Picture
from softmax_torch.report.style import BLACK, BLUE, VERMILION, panels

__all__ = ["CURVES", "Curve", "pictures", "series"]

FEW = 40
"""Points up to which each has a mark."""


class Curve(NamedTuple):
    """Columns of metrics.csv that are drawn together."""

    name: str
    title: str
    columns: tuple[str, ...]
    log: bool = False


CURVES = (
    Curve("objective", "Objective", ("train/loss",)),
    Curve("nll", "NLL", ("train/nll", "val/nll")),
    Curve("accuracy", "Accuracy", ("train/accuracy", "val/accuracy")),
    Curve("gap", "Duality gap, relative", ("train/gap",), log=True),
    Curve("gradient-norm", "Norm of the gradient", ("train/gradient_norm",), log=True),
)

LOOKS = {"train": ("training", BLUE, "-", "o"), "val": ("validation", VERMILION, "--", "s")}
"""What a line is called, and how it looks."""


def series(history: list[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    """Epochs, counted from 1, and what was logged in a column."""
    rows = [row for row in history if row.get(column) and row.get("epoch")]
    return [int(row["epoch"]) + 1 for row in rows], [float(row[column]) for row in rows]


def pictures(findings: Findings) -> list[Picture]:
    """A picture for each kind of figure that was logged."""
    drawn = (_picture(findings, curve) for curve in CURVES)
    return [picture for picture in drawn if picture is not None]


def _picture(findings: Findings, curve: Curve) -> Picture | None:
    lines = {column: series(findings.history, column) for column in curve.columns}
    lines = {column: line for column, line in lines.items() if line[0]}
    if not lines:
        return None
    figure, [ax] = panels(curve.title, width=4.2, height=2.9)
    said = []
    for column, (epochs, values) in lines.items():
        words, color, dashes, mark = LOOKS[column.partition("/")[0]]
        ax.plot(
            epochs,
            values,
            dashes,
            color=color,
            marker=mark if len(epochs) <= FEW else "",
            markersize=3,
            linewidth=1.6,
            label=words,
        )
        said.append(
            f"{words} from {values[0]:.4g} in epoch {epochs[0]} to {values[-1]:.4g} in epoch "
            f"{epochs[-1]}"
        )
    at = _epoch_of(findings)
    if at is not None:
        ax.axvline(at, color=BLACK, linewidth=0.9, linestyle=":", label="this checkpoint")
    if curve.log and max(max(values) for _, values in lines.values()) > 0:
        ax.set_yscale("log")
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.legend(frameon=False, fontsize=9)
    alt = f"{curve.title} by epoch: {'; '.join(said)}."
    return Picture(f"learning-{curve.name}", figure, alt, f"{curve.title} by epoch.")


def _epoch_of(findings: Findings) -> int | None:
    """The epoch at whose end the checkpoint was written; None if it was written within one."""
    epochs, steps = series(findings.history, "step")
    return next((e for e, step in zip(epochs, steps, strict=True) if step == findings.step), None)

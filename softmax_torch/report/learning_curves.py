"""Learning curves: the metrics that a run logged, by epoch.

Gradient descent logs the objective, and NLL and accuracy of training and validation. A convex
solver logs the objective, its relative duality gap, the norm of the gradient, and the validation
metrics. Training metrics are computed on each batch before its step, so they lag validation by half
an epoch.
"""

from __future__ import annotations

from typing import NamedTuple

from matplotlib.ticker import MaxNLocator

from softmax_torch.report.plotting import BLACK, BLUE, VERMILION, CaptionedFigure, panels
from softmax_torch.report.run_results import RunResults

__all__ = ["PLOTS", "Plot", "draw", "logged_values"]

MAX_MARKERS = 40
"""Most epochs for which each gets a marker."""


class Plot(NamedTuple):
    """Columns of metrics.csv that one figure shows.

    ``log`` asks for a logarithmic axis; ``limits`` are the least and the largest possible value.
    """

    name: str
    title: str
    columns: tuple[str, ...]
    log: bool = False
    limits: tuple[float, float] | None = None


PLOTS = (
    Plot("objective", "Objective", ("train/loss",)),
    Plot("nll", "NLL", ("train/nll", "val/nll")),
    Plot("accuracy", "Accuracy", ("train/accuracy", "val/accuracy"), limits=(0, 1)),
    Plot("gap", "Relative duality gap", ("train/gap",), log=True),
    Plot("gradient-norm", "Gradient norm", ("train/gradient_norm",), log=True),
)

LINE_STYLES = {"train": ("training", BLUE, "-", "o"), "val": ("validation", VERMILION, "--", "s")}
"""Label, colour, line and marker by the part of a column's name before the slash."""


def logged_values(history: list[dict[str, str]], column: str) -> tuple[list[int], list[float]]:
    """Return the epochs that logged a column, counted from 1, and its values."""
    rows = [row for row in history if row.get(column) and row.get("epoch")]
    return [int(row["epoch"]) + 1 for row in rows], [float(row[column]) for row in rows]


def draw(results: RunResults) -> list[CaptionedFigure]:
    """Draw a figure for each of ``PLOTS`` with a column that was logged."""
    figures = (_draw(results, plot) for plot in PLOTS)
    return [figure for figure in figures if figure is not None]


def _draw(results: RunResults, plot: Plot) -> CaptionedFigure | None:
    lines = {column: logged_values(results.history, column) for column in plot.columns}
    lines = {column: line for column, line in lines.items() if line[0]}
    if not lines:
        return None
    figure, [ax] = panels(plot.title, width=4.2, height=2.9)
    descriptions = []
    for column, (epochs, values) in lines.items():
        name, color, dashes, marker = LINE_STYLES[column.partition("/")[0]]
        ax.plot(
            epochs,
            values,
            dashes,
            color=color,
            marker=marker if len(epochs) <= MAX_MARKERS else "",
            markersize=3,
            linewidth=1.6,
            label=name,
        )
        descriptions.append(
            f"{name} from {values[0]:.4g} in epoch {epochs[0]} to {values[-1]:.4g} in epoch "
            f"{epochs[-1]}"
        )
    epoch = _checkpoint_epoch(results)
    if epoch is not None:
        ax.axvline(epoch, color=BLACK, linewidth=0.9, linestyle=":", label="this checkpoint")
    if plot.log and max(max(values) for _, values in lines.values()) > 0:
        ax.set_yscale("log")
    if plot.limits is not None:
        low, high = ax.get_ylim()
        ax.set_ylim(max(low, plot.limits[0]), min(high, plot.limits[1]))
    ax.set_xlabel("epoch")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len({epoch for epochs, _ in lines.values() for epoch in epochs}) == 1:
        ax.set_xticks(next(iter(lines.values()))[0])  # the locator finds no integer but one
    # Below the axes, where it covers no point.
    figure.legend(frameon=False, fontsize=9, ncols=3, loc="outside lower center")
    alt = f"{plot.title} by epoch: {'; '.join(descriptions)}."
    return CaptionedFigure(f"learning-{plot.name}", figure, alt, f"{plot.title} by epoch.")


def _checkpoint_epoch(results: RunResults) -> int | None:
    """Return the epoch that ended with the checkpoint; None for a checkpoint within an epoch."""
    epochs, steps = logged_values(results.history, "step")
    return next((e for e, step in zip(epochs, steps, strict=True) if step == results.step), None)

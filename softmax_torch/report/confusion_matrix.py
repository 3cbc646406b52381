"""The confusion matrix: rows are true classes, columns are predicted classes.

A cell shows its count. Its colour is its share of the row; with few classes the share is written
too. With more than ``MAX_CLASSES`` classes, bars of the most confused pairs take the place of the
matrix.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softmax_torch.report.class_metrics import most_confused
from softmax_torch.report.plotting import VERMILION, CaptionedFigure, display_width, label, panels
from softmax_torch.report.run_results import MAX_CLASSES, RunResults

__all__ = ["draw"]

MAX_WRITTEN_SHARES = 12
"""Most classes with the share written in each cell: more leave no room for a second line."""

BAR_PAIRS = 20
"""Number of most confused pairs to draw as bars."""


def draw(results: RunResults, counts: npt.NDArray[np.int64]) -> CaptionedFigure:
    """Draw the matrix of counts (C, C), or its most confused pairs."""
    C = len(counts)
    correct, n = int(np.trace(counts)), int(counts.sum())
    pairs = [
        f"{results.class_names[i]} was predicted as {results.class_names[j]} {count} times"
        for i, j, count, _ in most_confused(counts, 5)
    ]
    summary = f"{correct} of {n} predictions are correct; {'; '.join(pairs) or 'none is wrong'}."
    if C > MAX_CLASSES:
        caption = f"The {BAR_PAIRS} most confused pairs of {C} classes on the test set."
        return CaptionedFigure("confusion", _bars(results, counts), f"{caption} {summary}", caption)
    few = C <= MAX_WRITTEN_SHARES
    shares = "below it its share of the row" if few else "its colour is its share of the row"
    caption = (
        f"Rows are true classes, columns are predicted classes. A cell shows its count; {shares}."
    )
    alt = f"Confusion matrix of {C} classes on the test set: {summary}"
    return CaptionedFigure("confusion", _matrix(results, counts), alt, caption)


def _matrix(results: RunResults, counts: npt.NDArray[np.int64]) -> Figure:
    C = len(counts)
    few = C <= MAX_WRITTEN_SHARES
    cell, size = (0.44, 8.5) if few else (0.27, 5.5)
    names = [label(name, 16) for name in results.class_names]
    matrix, longest = max(2.0, cell * C), 0.09 * max(map(display_width, names))
    side = matrix + longest + 0.5
    bar = 0.0 if few else 0.9
    figure, [ax] = panels("Confusion matrix", width=side + bar, height=side + 0.3)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, j in zip(*counts.nonzero(), strict=True):
        text = f"{counts[i, j]}"
        if few:
            text += f"\n{shares[i, j]:.0%}" if shares[i, j] >= 0.005 else "\n<1%"
        color = "white" if shares[i, j] > 0.55 else "black"
        ax.text(j, i, text, ha="center", va="center", fontsize=size, color=color)
    upright = longest < matrix / C
    ax.set_xticks(range(C), names, rotation=0 if upright else 90, fontsize=size + 1)
    ax.set_yticks(range(C), names, fontsize=size + 1)
    ax.set_xlabel("predicted")
    ax.set_ylabel("true")
    ax.grid(visible=False)
    ax.tick_params(length=0)
    if not few:
        figure.colorbar(image, ax=ax, label="share of the row", shrink=0.6, aspect=30)
    return figure


def _bars(results: RunResults, counts: npt.NDArray[np.int64]) -> Figure:
    pairs = most_confused(counts, BAR_PAIRS)
    figure, [ax] = panels("Most confused classes", width=5.0, height=0.8 + 0.24 * len(pairs))
    names = [label(name, 14) for name in results.class_names]
    ax.barh(range(len(pairs)), [pair.samples for pair in pairs], color=VERMILION, height=0.7)
    for row, pair in enumerate(pairs):
        ax.annotate(
            f"{pair.samples} ({pair.share:.0%})",
            (pair.samples, row),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    ax.set_yticks(
        range(len(pairs)),
        [f"{names[pair.true]} → {names[pair.predicted]}" for pair in pairs],
        fontsize=8,
    )
    ax.invert_yaxis()
    ax.margins(x=0.2)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(visible=False, axis="y")
    ax.set_xlabel("test samples (share of the true class)")
    return figure

"""The confusion matrix: rows are true classes, columns what they were taken for.

A cell has its count, and its colour, and with few classes its text too, says which share of the row
it is. Of more than ``MANY`` classes the cells that matter, the most confused pairs, are drawn as
bars.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from softmax_torch.report.classes import most_confused
from softmax_torch.report.findings import MANY, Findings
from softmax_torch.report.picture import Picture
from softmax_torch.report.style import VERMILION, label, panels, width

__all__ = ["picture"]

FEW = 12
"""Classes up to which a cell has room for two lines."""

PAIRS = 20
"""Of most confused classes."""


def picture(findings: Findings, counts: npt.NDArray[np.int64]) -> Picture:
    """The matrix of these counts (C, C), or its most confused pairs."""
    C = len(counts)
    right, n = int(np.trace(counts)), int(counts.sum())
    pairs = [
        f"{findings.class_names[i]} taken for {findings.class_names[j]} {count} times"
        for i, j, count, _ in most_confused(counts, 5)
    ]
    said = f"{right} of {n} samples are right; {'; '.join(pairs) or 'none is confused'}."
    if C > MANY:
        caption = f"The {PAIRS} most confused pairs of {C} classes on the test set."
        return Picture("confusion", _bars(findings, counts), f"{caption} {said}", caption)
    shares = "its share of the row below" if C <= FEW else "its share of the row as colour"
    caption = f"Rows are true classes, columns predicted ones; a cell has its count, and {shares}."
    alt = f"Confusion matrix of {C} classes on the test set: {said}"
    return Picture("confusion", _matrix(findings, counts), alt, caption)


def _matrix(findings: Findings, counts: npt.NDArray[np.int64]) -> Figure:
    C = len(counts)
    few = C <= FEW
    cell, size = (0.44, 8.5) if few else (0.27, 5.5)
    names = [label(name, 16) for name in findings.class_names]
    matrix, longest = max(2.0, cell * C), 0.09 * max(map(width, names))
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


def _bars(findings: Findings, counts: npt.NDArray[np.int64]) -> Figure:
    pairs = most_confused(counts, PAIRS)
    figure, [ax] = panels("Most confused classes", width=5.0, height=0.8 + 0.24 * len(pairs))
    names = [label(name, 14) for name in findings.class_names]
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

"""The diagram of cross-entropy: what a prediction costs, and what it is told to change.

    nll = -log p_y = lse - z_y          dz_y = p_y - 1

Left: the loss against the probability of the true class. It is 0 for certainty, log C for a guess
among C classes, and has no upper bound. Right: two classes, against the margin z_y - z_k of the
true class over the other one. Where the prediction is confidently wrong the loss grows by 1 with
each unit of the margin and the gradient is -1, the largest that it gets; where it is confidently
right both come to nothing.
"""

from __future__ import annotations

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from softmax_torch import maths
from softmax_torch.functional import cross_entropy
from softmax_torch.report.style import BLACK, BLUE, GREY, VERMILION, panels

__all__ = ["draw", "nll_and_gradient"]

MARGINS = (-5.0, 0.0, 5.0)
"""Of the predictions that are marked."""

WORDS = ("confidently wrong", "undecided: $\\log\\,2$", "confidently right")
"""What these are."""

PLACES = ((9, 3, "left"), (7, 9, "left"))
"""Where that is written, in points from the mark, and which end of the words is there; that of the
last mark depends on the panel."""


def nll_and_gradient(margin: Tensor) -> tuple[Tensor, Tensor]:
    """nll and dz_y of two logits whose margin z_y - z_k is given, each (n,)."""
    z = torch.stack([margin, torch.zeros_like(margin)], 1)
    y = torch.zeros(len(z), dtype=torch.int64)
    dz = maths.row_vjp(z, maths.Target(y), maths.RowValues(torch.ones_like(margin)))
    return cross_entropy(z, y, reduction="none"), dz[:, 0]


def draw() -> Figure:
    """The diagram."""
    figure, (left, right) = panels("Loss of a probability", "Loss and gradient of a margin")
    marks = torch.tensor(MARGINS, dtype=torch.float64)
    at_marks, slope_at_marks = nll_and_gradient(marks)

    p_y = torch.linspace(0.002, 1, 500, dtype=torch.float64)[:-1]
    nll, _ = nll_and_gradient(p_y.logit())
    left.plot(p_y.tolist(), nll.tolist(), color=BLUE, linewidth=2)
    left.plot(marks.sigmoid().tolist(), at_marks.tolist(), "o", color=BLACK, zorder=3)
    _name(left, marks.sigmoid(), at_marks, (4, 18, "right"))
    left.set_xlabel("probability of the true class $p_y$")
    left.set_ylabel(r"loss $nll = -\log\ p_y$")
    left.set_xlim(0, 1.02)
    left.set_ylim(0, 6.3)

    margin = torch.linspace(-6.2, 6.2, 249, dtype=torch.float64)
    nll, slope = nll_and_gradient(margin)
    right.axhline(0, color=GREY, linewidth=0.8)
    right.plot(margin.tolist(), nll.tolist(), color=BLUE, linewidth=2, label="loss $nll$")
    right.plot(
        margin.tolist(),
        slope.tolist(),
        "--",
        color=VERMILION,
        linewidth=2,
        label="gradient $dz_y = p_y - 1$",
    )
    for values in (at_marks, slope_at_marks):
        right.plot(marks.tolist(), values.tolist(), "o", color=BLACK, zorder=3)
    _name(right, marks, at_marks, (0, 8, "center"))
    right.set_xlabel("margin of the true class $z_y - z_k$")
    right.set_xlim(-7, 7.6)
    right.set_ylim(-1.4, 6.3)
    right.legend(frameon=False, loc="center right")
    return figure


def _name(ax: Axes, x: Tensor, loss: Tensor, last: tuple[int, int, str]) -> None:
    """Write beside each mark what it is."""
    for at, words, (dx, dy, side) in zip(
        zip(x.tolist(), loss.tolist(), strict=True), WORDS, (*PLACES, last), strict=True
    ):
        ax.annotate(words, at, (dx, dy), textcoords="offset points", ha=side, fontsize=9)

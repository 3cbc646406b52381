"""Draw the figures of the documentation: softmax.svg, cross-entropy.svg and gradient-descent.svg.

    python docs/figures.py [FOLDER]

writes them into a folder, by default the folder of this script. The same matplotlib on the same
machine gives the same bytes each time.

``softmax``: logits z become probabilities, and a temperature T sharpens or flattens them.

    p_c = exp(z_c / T) / sum_k exp(z_k / T)

The left panel has five logits and their probabilities at three temperatures. For T -> 0 the largest
logit gets probability 1; for T -> infinity every class gets 1 / C. In the right panel one of three
logits moves, and all probabilities with it, since they sum to 1.

``cross_entropy``: the loss of a prediction, and its gradient in the logit of the true class.

    nll = -log p_y = lse - z_y          dz_y = p_y - 1

The left panel has the loss against the probability of the true class. It is 0 for a certain and
correct prediction, log C for a guess among C classes, and has no upper bound. The right panel has
two classes, and the margin z_y - z_k of the true class over the other one. Where the prediction is
confidently wrong the loss grows by 1 with each unit of the margin, and the gradient is close to -1,
its limit. Where it is confidently right both are close to 0.

``gradient_descent``: paths of four methods on the same objective.

    F(W) = 1/n sum_i nll_i + l2/2 ||W||^2,   z_i = W x_i,   W = [[-w_1, -w_2], [w_1, w_2]]

Two classes and two features have four weights. Only differences between classes count: from a start
whose columns sum to 0 every step keeps that, as the entries of p - y sum to 0. Two numbers
therefore describe W, and F can be drawn as a map.

    gradient descent   w - t g on all samples, with a line search for t
    mini-batch SGD     w - t g on 8 samples at a time with a fixed t: cheap steps that never settle
    L-BFGS             estimates the curvature from past gradients
    Newton             w - H^-1 g, solved by conjugate gradients

``softmax_torch.solvers.fit`` computes the paths on all samples; ``SoftmaxRegression.loss`` and
``torch.optim.SGD`` compute the path of SGD. All seeds are fixed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from softmax_torch import SoftmaxRegression
from softmax_torch.functional import cross_entropy as nll_of
from softmax_torch.report.plotting import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    panels,
    render,
)
from softmax_torch.solvers import ConvergenceWarning, fit

FOLDER = Path(__file__).parent

LOGITS = torch.tensor([3.0, 2.0, 1.0, 0.0, -1.0], dtype=torch.float64)
"""Logits of the left panel of ``softmax``."""

TEMPERATURES = ((0.5, BLUE, ""), (1.0, ORANGE, "///"), (4.0, GREEN, "..."))
"""Temperature, colour and hatch of its bars."""

FIXED_LOGITS = (1.0, -1.0)
"""Logits of the right panel of ``softmax`` that do not move."""

MARGINS = (-5.0, 0.0, 5.0)
"""Margins of the predictions that ``cross_entropy`` marks."""

MARK_NAMES = ("confidently wrong", "undecided: $\\log\\,2$", "confidently right")

MARK_OFFSETS = ((9, 3, "left"), (7, 9, "left"))
"""Offset of a name from its mark, in points, and its alignment there. The offset of the last name
depends on the panel."""

C = 1.0
"""Inverse strength of the penalty, as in scikit-learn."""

START = (0.0, 2.5)
"""w where all paths begin."""

TOL = 1e-8
"""Relative duality gap where the full-batch paths end."""

MAX_STEPS = 100
"""Full-batch paths end here if they have not reached the optimum."""

BATCH, EPOCHS, LR = 8, 3, 1.0
"""Batch size, epochs and learning rate of SGD."""

SMALLEST_DIFFERENCE = 1e-12
"""Smaller differences of F are rounding errors and are not drawn."""


def softmax() -> Figure:
    """Draw probabilities at three temperatures, and probabilities as one logit moves."""
    figure, (left, right) = panels(
        "Logits become probabilities", "One logit moves, all probabilities follow"
    )
    classes, width = range(len(LOGITS)), 0.27
    for i, (T, color, hatch) in enumerate(TEMPERATURES):
        left.bar(
            [c + (i - 1) * width for c in classes],
            probabilities(LOGITS, T).tolist(),
            width,
            color=color,
            hatch=hatch,
            edgecolor="white",
            linewidth=0.5,
            label=f"$T = {T:g}$",
        )
    left.set_xticks(classes, [f"$z_{c} = {z:g}$" for c, z in enumerate(LOGITS.tolist())])
    left.grid(visible=False, axis="x")
    left.set_ylabel(r"$p_c = \exp(z_c/T)\ /\ \sum_k \exp(z_k/T)$")
    left.set_ylim(0, 1)
    left.legend(title="temperature", frameon=False)

    moving = torch.linspace(-5, 7, 121, dtype=torch.float64)
    z = torch.stack([moving, *(torch.full_like(moving, fixed) for fixed in FIXED_LOGITS)], 1)
    names = [
        "$p_0$, of $z_0$",
        *(f"$p_{c + 1}$, of $z_{c + 1} = {fixed:g}$" for c, fixed in enumerate(FIXED_LOGITS)),
    ]
    styles = ((BLUE, "-"), (VERMILION, "--"), (GREEN, ":"))
    for p_c, name, (color, dashes) in zip(probabilities(z).T, names, styles, strict=True):
        right.plot(moving.tolist(), p_c.tolist(), dashes, color=color, linewidth=2, label=name)
    right.set_xlabel("logit $z_0$")
    right.set_ylabel("probability $p_c$")
    right.set_ylim(0, 1)
    right.legend(frameon=False, loc="center right")
    return figure


def probabilities(z: Tensor, T: float = 1.0) -> Tensor:
    """Return probabilities (..., C) of logits z at a temperature, of a module with weight I / T."""
    classes = z.shape[-1]
    model = SoftmaxRegression(classes, classes, bias=False, dtype=z.dtype)
    with torch.no_grad():
        model.linear.weight.copy_(torch.eye(classes) / T)
        return model.predict_proba(z)


def cross_entropy() -> Figure:
    """Draw the loss of a probability, and loss and gradient of a margin."""
    figure, (left, right) = panels("Loss of a probability", "Loss and gradient of a margin")
    marks = torch.tensor(MARGINS, dtype=torch.float64)
    nll_at_marks, gradient_at_marks = nll_and_gradient(marks)

    p_y = torch.linspace(0.002, 1, 500, dtype=torch.float64)[:-1]
    nll, _ = nll_and_gradient(p_y.logit())
    left.plot(p_y.tolist(), nll.tolist(), color=BLUE, linewidth=2)
    left.plot(marks.sigmoid().tolist(), nll_at_marks.tolist(), "o", color=BLACK, zorder=3)
    write_mark_names(left, marks.sigmoid(), nll_at_marks, (4, 18, "right"))
    left.set_xlabel("probability of the true class $p_y$")
    left.set_ylabel(r"loss $nll = -\log\ p_y$")
    left.set_xlim(0, 1.02)
    left.set_ylim(0, 6.3)

    margin = torch.linspace(-6.2, 6.2, 249, dtype=torch.float64)
    nll, gradient = nll_and_gradient(margin)
    right.axhline(0, color=GREY, linewidth=0.8)
    right.plot(margin.tolist(), nll.tolist(), color=BLUE, linewidth=2, label="loss $nll$")
    right.plot(
        margin.tolist(),
        gradient.tolist(),
        "--",
        color=VERMILION,
        linewidth=2,
        label="gradient $dz_y = p_y - 1$",
    )
    for values in (nll_at_marks, gradient_at_marks):
        right.plot(marks.tolist(), values.tolist(), "o", color=BLACK, zorder=3)
    write_mark_names(right, marks, nll_at_marks, (0, 8, "center"))
    right.set_xlabel("margin of the true class $z_y - z_k$")
    right.set_xlim(-7, 7.6)
    right.set_ylim(-1.4, 6.3)
    right.legend(frameon=False, loc="center right")
    return figure


def nll_and_gradient(margin: Tensor) -> tuple[Tensor, Tensor]:
    """Return nll and dz_y, each (n,), of two logits with the margin z_y - z_k (n,)."""
    z = torch.stack([margin, torch.zeros_like(margin)], 1).requires_grad_()
    nll = nll_of(z, torch.zeros(len(z), dtype=torch.int64), reduction="none")
    [dz] = torch.autograd.grad(nll.sum(), z)
    return nll.detach(), dz[:, 0]


def write_mark_names(ax: Axes, x: Tensor, loss: Tensor, last_offset: tuple[int, int, str]) -> None:
    """Write the name of each mark beside it."""
    points = zip(x.tolist(), loss.tolist(), strict=True)
    offsets = (*MARK_OFFSETS, last_offset)
    for point, name, (dx, dy, side) in zip(points, MARK_NAMES, offsets, strict=True):
        ax.annotate(name, point, (dx, dy), textcoords="offset points", ha=side, fontsize=9)


def gradient_descent() -> Figure:
    """Draw paths on a map of the objective, and the objective by step."""
    X, y = overlapping_clouds()
    paths = {
        "mini-batch SGD": (sgd_path(X, y), ORANGE, ".-"),
        "gradient descent": (full_batch_path(X, y, "gradient_descent"), BLUE, "o-"),
        "L-BFGS": (full_batch_path(X, y, "lbfgs"), GREEN, "s--"),
        "Newton": (full_batch_path(X, y, "newton"), VERMILION, "D:"),
    }
    optimum = paths["Newton"][0][-1]
    least = float(objective(X, y, optimum[None]))
    figure, (left, right) = panels(
        "Ways down the objective $F(w)$", "How fast they get there", height=4.0
    )
    w_1 = torch.linspace(-0.6, 3.0, 81, dtype=torch.float64)
    w_2 = torch.linspace(-3.2, 3.0, 81, dtype=torch.float64)
    F = objective(X, y, torch.cartesian_prod(w_2, w_1).flip(1)).view(81, 81)
    levels = [least + 0.002 * 2.0**i for i in range(12)]
    left.contour(w_1.tolist(), w_2.tolist(), F.tolist(), levels, colors="#a8a8a8", linewidths=0.7)
    for name, (path, color, style) in paths.items():
        left.plot(*path.T.tolist(), style, color=color, markersize=3.5, linewidth=1.4, label=name)
        above = objective(X, y, path) - least
        above[above < SMALLEST_DIFFERENCE] = torch.nan  # matplotlib leaves NaN out
        right.plot(above.tolist(), style, color=color, markersize=3.5, linewidth=1.4, label=name)
    left.plot(*START, "o", color=BLACK, markersize=6)
    left.annotate("start", START, (START[0] - 0.1, START[1] + 0.1), ha="right")
    left.plot(*optimum.tolist(), "*", color=BLACK, markersize=11, zorder=5, label="optimum")
    left.set_xlabel("weight $w_1$")
    left.set_ylabel("weight $w_2$")
    left.grid(visible=False)
    left.legend(loc="upper right", framealpha=1, edgecolor="white")
    right.set_yscale("log")
    right.set_xlabel("step")
    right.set_ylabel("$F(w) - F^*$")
    return figure


def overlapping_clouds() -> tuple[Tensor, Tensor]:
    """Return samples X (n, 2) of two classes y (n,).

    The features are correlated, so that F is a narrow valley.
    """
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(120) % 2
    X = torch.randn(len(y), 2, generator=generator, dtype=torch.float64)
    X[:, 1] = 0.8 * X[:, 0] + 0.4 * X[:, 1]
    X[:, 0] += 0.9 * (2 * y - 1)
    return X, y


def penalty_l2(n: int) -> float:
    """Return l2 of the strength C for n samples."""
    return 1 / (C * n)


def objective(X: Tensor, y: Tensor, w: Tensor) -> Tensor:
    """Return F (k,) at each w of (k, 2)."""
    k, n = len(w), len(y)
    z = torch.stack([-w, w], 1) @ X.T  # (k, 2, n)
    nll = nll_of(z, y.expand(k, n), reduction="none").mean(1)
    return nll + penalty_l2(n) * w.square().sum(1)  # ||W||^2 = 2 ||w||^2


def full_batch_path(X: Tensor, y: Tensor, solver: str) -> Tensor:
    """Return the path (steps, 2) of a solver: the results of fits with one more step each."""
    w = torch.tensor(START, dtype=torch.float64)
    start = replace(
        fit(X, y, C=C, fit_intercept=False), weight=torch.stack([-w, w]), bias=X.new_zeros(2)
    )
    path = [w]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of the fits before the last
        for steps in range(1, MAX_STEPS + 1):
            solution = fit(
                X,
                y,
                C=C,
                fit_intercept=False,
                solver=solver,
                tol=TOL,
                max_iter=steps,
                warm_start=start,
                dtype=torch.float64,
            )
            path.append(solution.weight[1])
            if solution.converged:
                break
    return torch.stack(path)


def sgd_path(X: Tensor, y: Tensor) -> Tensor:
    """Return the path (steps, 2) of mini-batch SGD."""
    w = torch.tensor(START, dtype=torch.float64)
    model = SoftmaxRegression(2, 2, bias=False, dtype=torch.float64)
    W = model.linear.weight
    with torch.no_grad():
        W.copy_(torch.stack([-w, w]))
    optimizer = torch.optim.SGD(model.parameters(), lr=LR)
    generator = torch.Generator().manual_seed(0)
    path = [w]
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(y), generator=generator).view(-1, BATCH):
            optimizer.zero_grad()
            loss = model.loss(X[rows], y[rows]) + penalty_l2(len(y)) / 2 * W.square().sum()
            torch.autograd.backward(loss)
            optimizer.step()
            path.append(W.detach()[1].clone())
    return torch.stack(path)


FIGURES: dict[str, Callable[[], Figure]] = {
    "softmax": softmax,
    "cross-entropy": cross_entropy,
    "gradient-descent": gradient_descent,
}


def main(args: Sequence[str] | None = None) -> None:
    """Write all figures as SVG; args are those of the command line by default."""
    parser = argparse.ArgumentParser(description="Draw the figures of the documentation.")
    parser.add_argument("folder", nargs="?", type=Path, default=FOLDER)
    folder = parser.parse_args(args).folder
    for name, draw in FIGURES.items():
        (folder / f"{name}.svg").write_bytes(render(draw(), "svg"))


if __name__ == "__main__":
    main()

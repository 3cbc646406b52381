"""The diagram of gradient descent: four ways down the same objective.

    F(W) = 1/S sum_i nll_i + l2/2 ||W||^2,   z_i = W x_i,   W = [[-w_1, -w_2], [w_1, w_2]]

Two classes and two features have four weights, of which only differences count: from a start whose
columns sum to 0 every step below keeps that, as the entries of p - y sum to 0. So two numbers say
it all, and F can be drawn as a map.

    gradient descent   w - t g, on all samples; t finds its own length
    mini-batch SGD     the same on 8 samples at a time with a fixed t: cheap, and never at rest
    L-BFGS             from gradients it learns the curvature
    Newton             w - H^-1 g, with conjugate gradients in place of an inverse

Full-batch paths come from ``softmax_torch.solvers``, SGD's from ``SoftmaxRegression.loss`` and
``torch.optim.SGD``. All seeds are fixed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from softmax_torch.modules import SoftmaxRegression
from softmax_torch.report.style import BLACK, BLUE, GREEN, ORANGE, VERMILION, panels
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.problem import SOLVERS, objective_of
from softmax_torch.solvers.run import Run

__all__ = ["Problem", "draw"]

C = 1.0
"""Inverse strength of the penalty, as in scikit-learn."""

START = (0.0, 2.5)
"""w where all paths begin."""

TOL = 1e-8
"""Relative duality gap where the full-batch paths end."""

BATCH, EPOCHS, RATE = 8, 3, 1.0
"""Of SGD."""


DIGITS = 1e-12
"""Differences of F below which rounding shows are not drawn."""


@dataclass(frozen=True)
class Problem:
    """Samples X (n, 2) of two classes y (n,), and the objective F over w = (w_1, w_2)."""

    X: Tensor
    y: Tensor
    objective: Objective
    penalty: Penalty

    @classmethod
    def made(cls) -> Problem:
        """Two overlapping clouds whose features go together, so that F is a narrow valley."""
        generator = torch.Generator().manual_seed(0)
        y = torch.arange(120) % 2
        X = torch.randn(len(y), 2, generator=generator, dtype=torch.float64)
        X[:, 1] = 0.8 * X[:, 0] + 0.4 * X[:, 1]
        X[:, 0] += 0.9 * (2 * y - 1)
        objective = objective_of(X, y, False, None, None, None, torch.float64)
        return cls(X, y, objective, Penalty.of_strength(C, 0.0, objective.total))

    def values(self, w: Tensor) -> Tensor:
        """F (n,) at each w of (n, 2)."""
        thetas = list(torch.stack([-w, w], 1))
        evaluated = self.objective.evaluate_many(thetas, [self.penalty] * len(w), torch.float64)
        return torch.tensor([at.value for at in evaluated], dtype=torch.float64)

    def full_batch(self, name: str) -> Tensor:
        """The path (steps, 2) of a solver of ``softmax_torch.solvers.fit``."""
        w = torch.tensor(START, dtype=torch.float64)
        solver = SOLVERS[name](self.objective, self.penalty, torch.stack([-w, w]), torch.float64)
        run, path = Run(solver, TOL), [solver.theta[1]]
        while not run.ended:
            run.advance()
            if solver.iterations == len(path):
                path.append(solver.theta[1])
        return torch.stack(path)

    def mini_batch(self) -> Tensor:
        """The path (steps, 2) of SGD."""
        w = torch.tensor(START, dtype=torch.float64)
        model = SoftmaxRegression(2, 2, bias=False, dtype=torch.float64)
        W = model.linear.weight
        with torch.no_grad():
            W.copy_(torch.stack([-w, w]))
        optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
        generator = torch.Generator().manual_seed(0)
        path = [w]
        for _ in range(EPOCHS):
            for rows in torch.randperm(len(self.y), generator=generator).view(-1, BATCH):
                optimizer.zero_grad()
                nll = model.loss(self.X[rows], self.y[rows])
                torch.autograd.backward(nll + self.penalty.l2 / 2 * W.square().sum())
                optimizer.step()
                path.append(W.detach()[1].clone())
        return torch.stack(path)


def draw() -> Figure:
    """The diagram."""
    problem = Problem.made()
    paths = {
        "mini-batch SGD": (problem.mini_batch(), ORANGE, ".-"),
        "gradient descent": (problem.full_batch("gradient_descent"), BLUE, "o-"),
        "L-BFGS": (problem.full_batch("lbfgs"), GREEN, "s--"),
        "Newton": (problem.full_batch("newton"), VERMILION, "D:"),
    }
    optimum = paths["Newton"][0][-1]
    least = float(problem.values(optimum[None]))
    figure, (left, right) = panels(
        "Ways down the objective $F(w)$", "How fast they get there", height=4.0
    )
    side_1 = torch.linspace(-0.6, 3.0, 81, dtype=torch.float64)
    side_2 = torch.linspace(-3.2, 3.0, 81, dtype=torch.float64)
    grid = torch.cartesian_prod(side_2, side_1).flip(1)
    F = problem.values(grid).view(81, 81)
    levels = [least + 0.002 * 2.0**i for i in range(12)]
    left.contour(
        side_1.tolist(), side_2.tolist(), F.tolist(), levels, colors="#a8a8a8", linewidths=0.7
    )
    for name, (path, color, look) in paths.items():
        left.plot(*path.T.tolist(), look, color=color, markersize=3.5, linewidth=1.4, label=name)
        above = problem.values(path) - least
        above[above < DIGITS] = torch.nan  # and matplotlib leaves it out
        right.plot(above.tolist(), look, color=color, markersize=3.5, linewidth=1.4, label=name)
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

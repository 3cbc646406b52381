"""A regularization path as a ``torch.optim.Optimizer``: each step fits one value of C.

The path begins with the smallest C, the strongest L2 penalty. Each fit begins at a prediction from
the last solutions (see ``solvers.path``), ends with its own certificate, and is then validated: the
best checkpoint has the C with the least validation NLL.

A fit depends on the data, its C and the last three solutions alone. A run that is resumed between
two fits continues with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from softmax_torch.solvers.fit import minimize
from softmax_torch.solvers.objective import Penalty
from softmax_torch.solvers.path import predicted
from softmax_torch.solvers.problem import make_solver, theta_of
from softmax_torch.training.convex_solver import LayerProblem

__all__ = ["ConvexPath"]

MAX_FIT_ITERATIONS = 1000
"""Largest number of iterations of one fit; fits of a path take about ten."""


class ConvexPath(Optimizer):
    """Full-batch fits of a linear layer to their optima, one value of C a step.

    Args:
        linear: the layer.
        kind: a name in ``solvers.problem.SOLVERS``, or "auto".
        tol: the relative duality gap at which a fit ends.
        Cs: inverse strengths of the penalty, in any order.

    Attributes:
        fits: metrics of the completed fits, from the smallest C: "C", "train/...", and "val/nll"
            and "val/accuracy" once they are validated.
    """

    def __init__(self, linear: nn.Linear, kind: str, tol: float, Cs: Sequence[float]) -> None:
        super().__init__(linear.parameters(), {})
        self.linear, self.kind, self.tol = linear, kind, tol
        self.Cs = sorted(Cs)
        self.fits: list[dict[str, float]] = []
        self._solved: list[tuple[float, Tensor]] = []  # log C and theta of the last three fits
        self._problem: LayerProblem | None = None
        self._row_space = True  # may be used; not in runs of earlier versions

    def bind(self, x: Tensor, y: Tensor, sample_weight: Tensor | None) -> None:
        """Set the samples of the fits, as ``ConvexSolver.bind`` does."""
        if self._problem is None:
            self._problem = LayerProblem(self.linear, x, y, sample_weight, self._row_space)
            self._row_space = self._problem.space is not None
            self._solved = [(at, theta.to(x.device)) for at, theta in self._solved]

    @torch.no_grad()
    # ``Optimizer.step`` has two overloads, one of which returns the loss of the closure.
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Fit with the next C, unless all fits are completed; the closure is not called."""
        problem = self._problem
        assert problem is not None, "bind comes first"
        if self.ended:
            return
        objective = problem.objective
        C = self.Cs[len(self.fits)]
        penalty = Penalty.of_strength(C, 0.0, objective.total)
        begin = predicted(self._solved, math.log(C), objective)
        solver = make_solver(self.kind, objective, penalty, begin)
        solution = minimize(solver, self.tol, MAX_FIT_ITERATIONS)
        theta = theta_of(solution, objective)
        problem.set_parameters(theta)
        self._solved = [*self._solved, (math.log(C), theta)][-3:]
        self.fits.append(
            {
                "C": C,
                "train/loss": solution.objective,
                "train/gradient_norm": solution.gradient_norm,
                "train/gap": solution.duality_gap / solution.objective,
            }
        )

    @property
    def bound(self) -> bool:
        """Whether samples are bound."""
        return self._problem is not None

    @property
    def ended(self) -> bool:
        """Whether all fits are completed."""
        return len(self.fits) == len(self.Cs)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of the last fit."""
        return dict(self.fits[-1])

    def keep_validation(self, metrics: Mapping[str, float]) -> None:
        """Add the validation's NLL and accuracy to the metrics of the last fit."""
        self.fits[-1] |= {name: metrics[name] for name in ("val/nll", "val/accuracy")}

    def certificate(self) -> str:
        """Return a statement about objective and duality gap of the last fit."""
        fit = self.fits[-1]
        return (
            f"objective {fit['train/loss']:.8f}, relative duality gap of {fit['train/gap']:.1e}, "
            f"C {fit['C']:g}"
        )

    def summary(self) -> str:
        """Return a statement about all fits."""
        largest = max(fit["train/gap"] for fit in self.fits)
        return (
            f"{len(self.fits)} values of C, {self.fits[0]['C']:g} to {self.fits[-1]['C']:g}; "
            f"relative duality gaps at most {largest:.1e}"
        )

    def ending(self) -> str:
        """Return how the fits ended, in a few words."""
        return f"fitted all {len(self.Cs)} values of C"

    def complaint(self) -> str:
        """Return a message that fits are missing; empty if none is."""
        if self.ended:
            return ""
        return (
            f"C: expected a fit for each of {len(self.Cs)} values, got {len(self.fits)}: "
            "trainer.max_epochs came first"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return metrics of the completed fits, and the last solutions."""
        row_space = {"row_space": True} if self._row_space else {}
        return {"fits": self.fits, "solved": self._solved} | row_space

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue after these fits; ValueError if the path began with other values of C."""
        fits = list(state_dict["fits"])
        if [fit["C"] for fit in fits] != self.Cs[: len(fits)]:
            raise ValueError(
                f"C: expected the values that the run began with, {[fit['C'] for fit in fits]} "
                f"first, got {self.Cs[: len(fits)]}"
            )
        self.fits, self._solved = fits, list(state_dict["solved"])
        self._row_space = state_dict.get("row_space", False)

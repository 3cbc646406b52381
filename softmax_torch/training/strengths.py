"""One strength of the penalty after another, each fitted to its optimum: an epoch for each.

The strengths C are gone through from the strongest penalty on. Each fit begins where the last ones
predict it (see ``solvers.path``), ends with a certificate of its own, and is then validated: the
best checkpoint is that of the C with the least NLL on samples that were not fitted to.

A fit depends on the data, its C and the last three solutions, and on nothing else. A run that is
resumed at one of them goes on with the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from softmax_torch.solvers.fit import minimize
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.path import predicted
from softmax_torch.solvers.problem import make_solver, theta_of
from softmax_torch.training.convex import objective_of, set_to

__all__ = ["ConvexPath"]

ITERATIONS = 1000
"""Of one fit at most; those of a path take some ten."""


class ConvexPath(Optimizer):
    """Fits a linear layer to all samples at once, with one strength of the penalty a step.

    Args:
        linear: the layer.
        kind: a name in ``solvers.problem.SOLVERS``, or "auto".
        tol: the relative duality gap that is enough.
        Cs: inverse strengths of the penalty, in any order.
    """

    def __init__(self, linear: nn.Linear, kind: str, tol: float, Cs: Sequence[float]) -> None:
        super().__init__(linear.parameters(), {})
        self.linear, self.kind, self.tol = linear, kind, tol
        self.Cs = sorted(Cs)
        self.fits: list[dict[str, float]] = []  # figures of those that are done
        self._solved: list[tuple[float, Tensor]] = []  # log C and theta of the last ones
        self._objective: Objective | None = None

    def bind(self, x: Tensor, y: Tensor, sample_weight: Tensor | None) -> None:
        """Take samples x (n, D) with class indices y (n,) as those of the fits, the first time."""
        if self._objective is None:
            self._objective = objective_of(self.linear, x, y, sample_weight)
            self._solved = [(at, theta.to(x.device)) for at, theta in self._solved]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """The fit for the next C, unless all are done; the closure is not called."""
        objective = self._objective
        assert objective is not None, "bind comes first"
        if self.ended:
            return
        C = self.Cs[len(self.fits)]
        penalty = Penalty.of_strength(C, 0.0, objective.total)
        begin = predicted(self._solved, math.log(C), objective)
        solver = make_solver(self.kind, objective, penalty, begin)
        solution = minimize(solver, self.tol, ITERATIONS)
        theta = theta_of(solution, objective)
        set_to(self.linear, theta)
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
        """Whether it has samples."""
        return self._objective is not None

    @property
    def ended(self) -> bool:
        """Whether all fits are done."""
        return len(self.fits) == len(self.Cs)

    def figures(self) -> dict[str, float]:
        """Those of the last fit."""
        return self.fits[-1]

    def certificate(self) -> str:
        """What is known of the last fit, in words."""
        fit = self.fits[-1]
        return (
            f"objective {fit['train/loss']:.8f}, relative duality gap of {fit['train/gap']:.1e}, "
            f"C {fit['C']:g}"
        )

    def summary(self) -> str:
        """What is known of all fits, in words."""
        largest = max(fit["train/gap"] for fit in self.fits)
        return (
            f"{len(self.fits)} values of C, {self.fits[0]['C']:g} to {self.fits[-1]['C']:g}, with "
            f"relative duality gaps of at most {largest:.1e}"
        )

    def complaint(self) -> str:
        """What to say where it was ended too early; empty if it was not."""
        if self.ended:
            return ""
        return (
            f"C: expected a fit for each of {len(self.Cs)} values, got {len(self.fits)}: "
            "trainer.max_epochs came first"
        )

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from."""
        return {"fits": self.fits, "solved": self._solved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there; ValueError if it was a path over other strengths."""
        fits = list(state_dict["fits"])
        if [fit["C"] for fit in fits] != self.Cs[: len(fits)]:
            raise ValueError(
                f"C: expected the values that the run began with, {[fit['C'] for fit in fits]} "
                f"first, got {self.Cs[: len(fits)]}"
            )
        self.fits, self._solved = fits, list(state_dict["solved"])

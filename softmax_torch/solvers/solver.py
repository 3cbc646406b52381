"""Base class of all solvers: a point, a step that improves it, and a state to resume from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Evaluated, Objective, Penalty

__all__ = ["Solver"]


class Solver(ABC):
    """A method that minimizes F from a starting point, one outer iteration at a time.

    Args:
        objective: the samples.
        penalty: the penalty that is added.
        theta: the starting point (K, P), float64. Without an L1 term the mean over the classes is
            subtracted from it, which changes no probability and lowers the penalty.
        dtype: dtype of the passes. It may be set to float64 between steps, before ``restart``.
        seed: seed of all random draws.

    Attributes:
        newton_takes_over: whether accurate Newton steps finish the fit where progress is slow.
        theta, value, gradient: the current point, the smooth part of F there, and its gradient.
        iterations: number of steps made.
    """

    newton_takes_over = True

    def __init__(
        self,
        objective: Objective,
        penalty: Penalty,
        theta: Tensor,
        dtype: torch.dtype,
        seed: int = 0,
    ) -> None:
        self.objective, self.penalty, self.dtype = objective, penalty, dtype
        self.seed, self.iterations = seed, 0
        Solver.restart(self, theta)
        self._prepare()

    def _prepare(self) -> None:  # noqa: B027 # most solvers have nothing to prepare
        """Prepare the first step, at the starting point."""

    def _evaluate(self, theta: Tensor) -> Evaluated:
        return self.objective.evaluate(theta, self.penalty, self.dtype)

    @abstractmethod
    def step(self) -> bool:
        """Make one outer iteration; return whether F fell, as far as ``dtype`` can show it."""

    def restart(self, theta: Tensor) -> None:
        """Continue from theta."""
        self.theta = theta if self.penalty.l1 else theta - theta.mean(0)
        self.value, self.gradient = self._evaluate(self.theta)

    def move_to(self, theta: Tensor, at_theta: Evaluated) -> None:
        """Take theta, with the smooth part of F and its gradient there, as the next iterate."""
        self.theta, (self.value, self.gradient) = theta, at_theta
        self.iterations += 1

    @property
    def objective_value(self) -> float:
        """F at the current point, as the passes computed it."""
        if self.penalty.l1 == 0:
            return self.value
        W = self.objective.weight_of(self.theta)
        return self.value + self.penalty.l1 * float(W.abs().sum())

    @property
    def descent(self) -> float:
        """An estimate of F - F* by the solver's quadratic model; inf if it has none."""
        return float("inf")

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a solver of the same problem resumes bit for bit."""
        return {
            "theta": self.theta,
            "gradient": self.gradient,
            "value": self.value,
            "iterations": self.iterations,
            "dtype": self.dtype,
            "passes": self.objective.passes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of ``state_dict``."""
        self.theta, self.gradient = state["theta"], state["gradient"]
        self.value, self.iterations = state["value"], state["iterations"]
        self.dtype = state["dtype"]
        self.objective.passes = state["passes"]

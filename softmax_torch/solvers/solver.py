"""What all solvers have in common: a point, a step that improves it, and a state to go on from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Evaluated, Objective, Penalty

__all__ = ["Solver"]


class Solver(ABC):
    """Minimizes F from a point on, one outer iteration at a time.

    Args:
        objective: the samples.
        penalty: what is added.
        theta: where to start, float64; without an L1 term the mean over the classes is taken out of
            it, which changes no probability and makes the penalty less.
        dtype: the type that passes are computed in; ``dtype`` may be set to float64 between steps,
            with ``restart`` after it.
        seed: of what is drawn at random.

    Attributes:
        hands_over: whether accurate Newton steps take over where steps gain little.
        theta, value, gradient: the point, the smooth part of F there, and its gradient.
        iterations: steps that were made.
    """

    hands_over = True

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

    def _evaluate(self, theta: Tensor) -> tuple[float, Tensor]:
        return self.objective.evaluate(theta, self.penalty, self.dtype)

    @abstractmethod
    def step(self) -> bool:
        """Make one outer iteration: whether F went down as far as ``dtype`` can tell."""

    def restart(self, theta: Tensor) -> None:
        """Go on from theta."""
        self.theta = theta if self.penalty.l1 else theta - theta.mean(0)
        self.value, self.gradient = self._evaluate(self.theta)

    def move_to(self, theta: Tensor, at_theta: Evaluated) -> None:
        """Take note of a better point that was found elsewhere, as an iteration."""
        self.theta, (self.value, self.gradient) = theta, at_theta
        self.iterations += 1

    @property
    def descent(self) -> float:
        """An estimate of F - F*, by a quadratic model where there is one."""
        return float("inf")

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` of a solver of the same problem goes on from, bit for bit."""
        return {
            "theta": self.theta,
            "gradient": self.gradient,
            "value": self.value,
            "iterations": self.iterations,
            "dtype": self.dtype,
            "passes": self.objective.passes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.theta, self.gradient = state["theta"], state["gradient"]
        self.value, self.iterations = state["value"], state["iterations"]
        self.dtype = state["dtype"]
        self.objective.passes = state["passes"]

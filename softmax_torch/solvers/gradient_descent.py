"""Gradient descent on all samples: theta - t g, the plain baseline.

Each iteration first tries twice the last step t and halves it until F falls by at least
t ||g||^2 / 2. Every t up to 1 / L achieves that, L the largest eigenvalue of the Hessian.
"""

from __future__ import annotations

from typing import Any

from softmax_torch.solvers.line_search import LineSearch
from softmax_torch.solvers.solver import Solver

__all__ = ["GradientDescent"]

SHORTEST_STEP = 1e-30
"""The shortest step that is tried."""


class GradientDescent(Solver):
    """Gradient descent with a backtracking line search."""

    length = 0.5
    newton_takes_over = False  # they would hide how gradient descent fares

    def step(self) -> bool:
        slope = -float(self.gradient.square().sum())
        search = LineSearch(self.value, slope, error=0.0, enough=0.5)
        for length in search.lengths(2 * self.length, SHORTEST_STEP):
            trial = self.theta - length * self.gradient
            at_trial = self._evaluate(trial)
            if search.accepts(length, at_trial.value, slope):
                self.move_to(trial, at_trial)
                self.length = length
                return True
        return False

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"length": self.length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.length = state["length"]

"""Gradient descent on all samples: theta - t g, the plain baseline.

The step t is doubled from one iteration to the next, and halved until F falls by t ||g||^2 / 2, as
it does for every t up to 1 / L, L the largest eigenvalue of the Hessian.
"""

from __future__ import annotations

from typing import Any

from softmax_torch.solvers.solver import Solver

__all__ = ["GradientDescent"]

SHORTEST = 1e-30


class GradientDescent(Solver):
    """Gradient descent whose step finds its own length."""

    length = 0.5
    hands_over = False  # it shows what gradient descent does

    def step(self) -> bool:
        square = float(self.gradient.square().sum())
        length = 2 * self.length
        while length > SHORTEST:
            trial = self.theta - length * self.gradient
            value, gradient = self._evaluate(trial)
            if value <= self.value - length * square / 2:
                self.theta, self.value, self.gradient = trial, value, gradient
                self.length = length
                self.iterations += 1
                return True
            length /= 2
        return False

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"length": self.length}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.length = state["length"]

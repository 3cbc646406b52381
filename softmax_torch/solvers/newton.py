"""Newton's method whose steps are found by preconditioned conjugate gradients (Newton-CG).

A step d approximately minimizes the quadratic model q(d) = g.d + d.H d / 2 of F. CG stops at the
inner iteration j where j (q_{j-1} - q_j) <= -ETA q_j: an iteration that lowers the model by less
than that share of the average inner iteration is not worth its pass (Nash & Sofer 1990; on logistic
regression Galli & Lin 2021, "A study on truncated Newton methods for linear classification").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.conjugate_gradients import conjugate_gradients
from softmax_torch.solvers.line_search import ROUNDING, LineSearch
from softmax_torch.solvers.preconditioner import sketch_of
from softmax_torch.solvers.sampled_hessian import SampledHessian
from softmax_torch.solvers.solver import Solver

__all__ = ["NewtonCG"]

ETA = 0.3
"""Share of the average descent of the inner iterations below which CG stops."""

MAX_CG_ITERATIONS = 200
"""CG iterations of a step, at most."""


class NewtonCG(Solver):
    """Newton-CG; every step computes a new preconditioner."""

    _descent = float("inf")

    def step(self) -> bool:
        d, slope = self._direction()
        self._descent = -slope / 2
        search = LineSearch(self.value, slope, ROUNDING[self.dtype] * abs(self.value))
        for length in search.lengths():
            trial = self.theta + length * d
            at_trial = self._evaluate(trial)
            if search.accepts(length, at_trial.value, abs(float((at_trial.gradient * d).sum()))):
                self.move_to(trial, at_trial)
                return True
        return False

    def _direction(self) -> tuple[Tensor, float]:
        """Return a descent direction d and its slope g.d."""
        seed = self.seed + self.iterations
        sampled = SampledHessian(self.objective, self.theta, seed, self.dtype)
        precondition = sketch_of(sampled).inverse(self.penalty.l2)

        def product(v: Tensor) -> Tensor:
            return self.objective.hessian_product(sampled.p, v, self.penalty)

        g, before = self.gradient, 0.0
        d = torch.zeros_like(g)
        for j, found in enumerate(conjugate_gradients(product, precondition, g), 1):
            d = found.d
            if j == MAX_CG_ITERATIONS or j * (before - found.model) <= -ETA * found.model:
                break
            before = found.model
        return d, float((g * d).sum())

    @property
    def descent(self) -> float:
        return self._descent

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"descent": self._descent}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._descent = state["descent"]

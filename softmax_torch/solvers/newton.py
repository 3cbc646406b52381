"""Newton's method, whose steps are found by preconditioned conjugate gradients.

A step d minimizes the quadratic model q(d) = g.d + d.H d / 2 of F, roughly: the inner iteration j
stops where j (q_{j-1} - q_j) <= -ETA q_j, since a step that is no better for the model by what the
average inner iteration gave is not worth its pass (Nash & Sofer 1990; on logistic regression Galli
& Lin 2021, "A study on truncated Newton methods for linear classification").
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.conjugate_gradients import conjugate_gradients
from softmax_torch.solvers.preconditioner import sketch_of
from softmax_torch.solvers.rows import Rows
from softmax_torch.solvers.solver import Solver

__all__ = ["NewtonCG"]

ETA = 0.3
"""Share of the average descent of the inner iterations below which one is the last."""

INNER = 200
"""Inner iterations of a step, at most."""

ENOUGH, SHORTEST = 1e-4, 1e-6
"""Share of the promised descent that a step has to make, and the shortest that is tried."""

ROUNDING = {torch.float32: 1e-7, torch.float64: 1e-15}
"""Relative to F, what an evaluation in this type may be off."""


class NewtonCG(Solver):
    """Newton-CG; the preconditioner is made anew for every step."""

    _descent = float("inf")

    def step(self) -> bool:
        d, slope = self._direction()
        self._descent = -slope / 2
        step, slack = 1.0, ROUNDING[self.dtype] * abs(self.value)
        while step >= SHORTEST and slope < 0:
            trial = self.theta + step * d
            value, gradient = self._evaluate(trial)
            # F itself, or its slope along d where F cannot tell (Hager & Zhang 2005).
            blind = -step * slope < slack
            flatter = abs(float((gradient * d).sum())) < -0.9 * slope
            if value <= self.value + ENOUGH * step * slope or (blind and flatter):
                self.theta, self.value, self.gradient = trial, value, gradient
                self.iterations += 1
                return True
            step /= 2
        return False

    def _direction(self) -> tuple[Tensor, float]:
        """Return a descent direction d and its slope g.d."""
        generator = torch.Generator().manual_seed(self.seed + self.iterations)
        rows = Rows(self.objective, self.theta, generator, self.dtype)
        precondition = sketch_of(rows).inverse(self.penalty.l2)

        def product(v: Tensor) -> Tensor:
            return self.objective.hessian_product(rows.p, v, self.penalty)

        g, before = self.gradient, 0.0
        d = torch.zeros_like(g)
        for j, found in enumerate(conjugate_gradients(product, precondition, g), 1):
            d = found.d
            if j == INNER or j * (before - found.model) <= -ETA * found.model:
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

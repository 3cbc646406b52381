"""L-BFGS on a preconditioner (Nocedal 1980; Morales & Nocedal 2000).

From the last steps s_j = theta_{j+1} - theta_j and the changes y_j of the gradient the inverse of
the Hessian is estimated by two loops, which start from a preconditioner M ~ H^-1 where the textbook
has a multiple of the identity:

    d = -(two loops)(g),    innermost  q -> gamma M q,    gamma = s.y / (y . M y) of the last step

With a good M a step needs no search: theta + d is evaluated first, and its gradient with it, and
only if F has not gone down enough there is a shorter step tried, by interpolation.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Evaluated, Objective, Penalty
from softmax_torch.solvers.preconditioner import Preconditioner, sketch
from softmax_torch.solvers.solver import Solver

__all__ = ["LBFGS", "PreconditionedLBFGS"]

MEMORY = 60
"""Steps that are remembered."""

ENOUGH = 1e-4
"""Share of the descent that the slope promises which a step has to make (Armijo)."""

NOISE = 1e-7
"""Relative descent below which F in float32 may not tell, and the slope decides."""

SHORTEST = 1e-6
"""Where a step this short does not descend, nothing that can be computed does."""

RENEW_FALLEN, FALLEN = 8, 0.01
"""The preconditioner is renewed after so many steps if F has fallen by this share since."""

RENEW = 50
"""After so many it is renewed in any case."""


class LBFGS:
    """The iteration, without the function: evaluate at ``trial`` and ``tell`` it, and so on.

    Several of these can share passes over the samples, since none of them makes any.

    Attributes:
        theta, value, gradient: the last point that was accepted.
        trial: the point to be evaluated next.
        step: its length, in units of the direction that was found.
        steps: how many were accepted.
        decrement: -g.d, twice the descent that a quadratic F would have for the step at hand.
    """

    def __init__(self, theta: Tensor, at_theta: Evaluated, precondition: Preconditioner) -> None:
        self.theta, (self.value, self.gradient) = theta, at_theta
        self.precondition = precondition
        self.step, self.steps = 1.0, 0
        self.memory: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=MEMORY)
        self.gamma = 1.0
        self._propose()

    def tell(self, at_trial: Evaluated) -> bool:
        """Take note of F at ``trial``: whether it was accepted. A new ``trial`` stands there."""
        value, gradient = at_trial
        step, slope = float(self.step), self.decrement
        good = value <= self.value - ENOUGH * step * slope
        if not good and step * slope < NOISE * abs(self.value):
            # F cannot tell; near a minimum along d its slope can (Hager & Zhang 2005).
            good = abs(float((gradient * self.direction).sum())) < 0.9 * slope
        if not good:
            fitted = slope * step**2 / (2 * (value - self.value + step * slope))
            fitted = fitted if fitted == fitted else 0.0  # NaN
            self.step = min(max(fitted, 0.1 * step), 0.6 * step)
            self.trial = self.theta + self.step * self.direction
            return False
        s, y = self.trial - self.theta, gradient - self.gradient
        sy = float((s * y).sum())
        yMy = float((y * self.precondition(y)).sum())
        if sy > 0 and yMy > 0:  # y may be so small that its square is 0
            self.memory.append((s, y, sy))
            self.gamma = sy / yMy
        self.theta, self.value, self.gradient = self.trial, value, gradient
        self.steps += 1
        self._propose()
        return True

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` goes on from, the preconditioner aside."""
        return {"memory": list(self.memory), "gamma": self.gamma}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.memory.extend(state["memory"])
        self.gamma = state["gamma"]
        self._propose()

    def _propose(self) -> None:
        q = self.gradient.clone()
        factors = []
        for s, y, sy in reversed(self.memory):
            factors.append(float((s * q).sum()) / sy)
            q.sub_(y, alpha=factors[-1])
        d = self.gamma * self.precondition(q)
        for (s, y, sy), factor in zip(self.memory, reversed(factors), strict=True):
            d.add_(s, alpha=factor - float((y * d).sum()) / sy)
        self.direction = d.neg_()
        self.decrement = -float((self.gradient * d).sum())
        self.step = 1.0
        self.trial = self.theta + d


class PreconditionedLBFGS(Solver):
    """L-BFGS whose preconditioner is renewed while F falls: the solver for smooth objectives.

    On MNIST from theta = 0 (C = 1) it takes 34 passes, renewal included, to a duality gap of 5e-7
    relative to F. To F itself within 1e-6 Newton-CG on a Kronecker preconditioner takes 150, and
    without one 850.
    """

    def __init__(
        self,
        objective: Objective,
        penalty: Penalty,
        theta: Tensor,
        dtype: torch.dtype,
        seed: int = 0,
    ) -> None:
        super().__init__(objective, penalty, theta, dtype, seed)
        self._sketch()

    @classmethod
    def of(
        cls, lbfgs: LBFGS, objective: Objective, penalty: Penalty, dtype: torch.dtype
    ) -> PreconditionedLBFGS:
        """Go on from an iteration that was begun elsewhere."""
        self = cls.__new__(cls)
        self.objective, self.penalty, self.dtype, self.seed = objective, penalty, dtype, 0
        self.iterations = self.sketched = lbfgs.steps
        self.lbfgs, self.sketched_theta, self.sketched_value = lbfgs, lbfgs.theta, lbfgs.value
        self.theta, self.value, self.gradient = lbfgs.theta, lbfgs.value, lbfgs.gradient
        return self

    def _sketch(self) -> None:
        generator = torch.Generator().manual_seed(self.seed + self.iterations)
        self.sketched, self.sketched_value = self.iterations, self.value
        self.sketched_theta = self.theta
        inverse = sketch(self.objective, self.theta, generator).inverse(self.penalty.l2)
        self.lbfgs = LBFGS(self.theta, Evaluated(self.value, self.gradient), inverse)

    def step(self) -> bool:
        age = self.iterations - self.sketched
        fallen = self.sketched_value - self.value > FALLEN * self.value
        if age >= (RENEW_FALLEN if fallen else RENEW):
            self._sketch()
        at_trial = Evaluated(*self._evaluate(self.lbfgs.trial))
        while not self.lbfgs.tell(at_trial):
            if self.lbfgs.step < SHORTEST:
                return False
            at_trial = Evaluated(*self._evaluate(self.lbfgs.trial))
        self.theta, self.value = self.lbfgs.theta, self.lbfgs.value
        self.gradient = self.lbfgs.gradient
        self.iterations += 1
        return True

    def restart(self, theta: Tensor) -> None:
        super().restart(theta)
        self.lbfgs = LBFGS(
            self.theta, Evaluated(self.value, self.gradient), self.lbfgs.precondition
        )

    @property
    def descent(self) -> float:
        return self.lbfgs.decrement / 2

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {
            "sketched": (self.sketched, self.sketched_value, self.sketched_theta),
            "lbfgs": self.lbfgs.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.sketched, self.sketched_value, self.sketched_theta = state["sketched"]
        generator = torch.Generator().manual_seed(self.seed + self.sketched)
        inverse = sketch(self.objective, self.sketched_theta, generator).inverse(self.penalty.l2)
        self.lbfgs = LBFGS(self.theta, Evaluated(self.value, self.gradient), inverse)
        self.lbfgs.load_state_dict(state["lbfgs"])
        self.objective.passes = state["passes"]

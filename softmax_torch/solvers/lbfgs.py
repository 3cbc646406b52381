"""L-BFGS with a preconditioner (Nocedal 1980; Morales & Nocedal 2000).

The two-loop recursion estimates H^-1 g from the curvature pairs: the last steps
s_j = theta_{j+1} - theta_j and the changes y_j of the gradient over them. Instead of a multiple of
the identity it starts from a preconditioner M ~ H^-1:

    d = -(two loops)(g),    innermost  q -> gamma M q,    gamma = s.y / (y . M y) of the last pair

With a good M a step needs no line search: theta + d is evaluated together with its gradient, and a
shorter step is tried only if F has not fallen enough there (see ``line_search``).
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.line_search import ROUNDING, SHORTEST, LineSearch
from softmax_torch.solvers.objective import Evaluated, Objective, Penalty
from softmax_torch.solvers.preconditioner import Preconditioner, sketch
from softmax_torch.solvers.solver import Solver

__all__ = ["LBFGS", "PreconditionedLBFGS"]

MEMORY = 60
"""Curvature pairs that are kept."""

RENEW_FALLEN, FALLEN = 8, 0.01
"""The preconditioner is renewed after so many steps if F has fallen by this share since."""

RENEW = 50
"""Steps after which the preconditioner is renewed in any case."""


class LBFGS:
    """The iteration without the objective: the caller evaluates F at ``trial`` and calls ``tell``.

    It makes no passes itself, so that several iterations can share passes over the samples.

    Attributes:
        theta, value, gradient: the last accepted point, F there and its gradient.
        trial: the point to evaluate next.
        step: length of the trial step along the current direction.
        steps: number of accepted steps.
        decrement: -g.d, twice the descent that a quadratic F would have over the current direction.
    """

    def __init__(self, theta: Tensor, at_theta: Evaluated, precondition: Preconditioner) -> None:
        self.theta, (self.value, self.gradient) = theta, at_theta
        self.precondition = precondition
        self.steps, self.step = 0, 1.0
        self.memory: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=MEMORY)
        self.gamma = 1.0
        self._propose()

    def tell(self, at_trial: Evaluated) -> bool:
        """Take F and its gradient at ``trial`` and set the next; return whether it was accepted."""
        value, gradient = at_trial
        # float32's rounding in either dtype: passes of a path may be in float32.
        error = ROUNDING[torch.float32] * abs(self.value)
        search = LineSearch(self.value, -self.decrement, error)
        if not search.accepts(self.step, value, abs(float((gradient * self.direction).sum()))):
            self.step = search.interpolated(self.step, value)
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
        """Return the curvature pairs and gamma; the preconditioner is not included."""
        return {"memory": list(self.memory), "gamma": self.gamma}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of ``state_dict``."""
        self.memory.extend(state["memory"])
        self.gamma = state["gamma"]
        self._propose()

    def _propose(self) -> None:
        """Compute the direction by the two-loop recursion, and the trial point at length 1."""
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

    On MNIST from theta = 0 (C = 1) it takes 37 passes, including those of the preconditioners, to a
    duality gap of 5e-7 relative to F. To reach F itself within 1e-6, Newton-CG takes 150 passes
    with a Kronecker preconditioner and 850 without one.
    """

    @classmethod
    def continuing(
        cls, lbfgs: LBFGS, objective: Objective, penalty: Penalty, dtype: torch.dtype
    ) -> PreconditionedLBFGS:
        """Return a solver that continues this iteration."""
        self = cls.__new__(cls)
        self.objective, self.penalty, self.dtype, self.seed = objective, penalty, dtype, 0
        self.iterations = self.sketched = lbfgs.steps
        self.lbfgs, self.sketched_theta, self.sketched_value = lbfgs, lbfgs.theta, lbfgs.value
        self.theta, self.value, self.gradient = lbfgs.theta, lbfgs.value, lbfgs.gradient
        return self

    def _prepare(self) -> None:
        """Sketch the Hessian at the current point, and begin without curvature pairs."""
        self.sketched, self.sketched_value = self.iterations, self.value
        self.sketched_theta = self.theta
        self._begin(self._inverse())

    def _inverse(self) -> Preconditioner:
        seed = self.seed + self.sketched
        return sketch(self.objective, self.sketched_theta, seed).inverse(self.penalty.l2)

    def _begin(self, precondition: Preconditioner) -> None:
        self.lbfgs = LBFGS(self.theta, Evaluated(self.value, self.gradient), precondition)

    def step(self) -> bool:
        age = self.iterations - self.sketched
        fallen = self.sketched_value - self.value > FALLEN * self.value
        if age >= (RENEW_FALLEN if fallen else RENEW):
            self._prepare()
        while not self.lbfgs.tell(self._evaluate(self.lbfgs.trial)):
            if self.lbfgs.step < SHORTEST:
                return False
        self.move_to(self.lbfgs.theta, Evaluated(self.lbfgs.value, self.lbfgs.gradient))
        return True

    def restart(self, theta: Tensor) -> None:
        super().restart(theta)
        self._begin(self.lbfgs.precondition)

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
        self._begin(self._inverse())
        self.lbfgs.load_state_dict(state["lbfgs"])
        self.objective.passes = state["passes"]

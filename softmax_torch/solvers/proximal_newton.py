"""Proximal Newton's method: the solver for an L1 term.

With f the smooth part of F and x = theta as one vector, a step from x to u minimizes

    m(u)  =  g.(u - x) + (u - x).B (u - x) / 2 + l1 ||u||_1

with g the gradient of f and B approximately its Hessian (Lee, Sun & Saunders 2014, "Proximal
Newton-type methods for minimizing composite functions"). u may differ from x on a working set of
coordinates: the bias, the weights that are not 0, and of the other weights those with |g| above l1
or close to it. The set has at most ``FIRST`` coordinates, or twice as many as there are weights
that are not 0, if that is more (Johnson & Guestrin 2015, "Blitz"). A backtracking line search along
u - x follows (Tseng & Yun 2009).

Far from the optimum many probabilities are 0 or 1 to rounding. Then B may be almost 0, and a step
far too long. If the line search fails or ends with a short step, B is damped by a multiple of the
subgradient, in units of a logit, so that the damping vanishes at the optimum (Doikov 2023,
"Minimizing quasi-self-concordant functions by gradient regularization of Newton method").

``hessian_model`` estimates B, ``l1_subproblem`` minimizes m.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.certificate import subgradient
from softmax_torch.solvers.conjugate_gradients import conjugate_gradients
from softmax_torch.solvers.hessian_model import RENEW, HessianModel, hessian_model
from softmax_torch.solvers.l1_subproblem import minimize_model
from softmax_torch.solvers.line_search import ROUNDING, LineSearch
from softmax_torch.solvers.objective import Evaluated
from softmax_torch.solvers.solver import Solver

__all__ = ["ProximalNewton"]

FIRST = 500
"""Coordinates of the first working set. On MNIST (C = 0.01) a fit takes 1.8 s with it, and 3.3 s
with 1500."""

SLACK = 0.1
"""A weight of 0 may be in the working set if |g| is above l1, or below it by at most this share."""

RENEW_FALLEN, FALLEN = 3, 0.002
"""B is renewed after so many steps if F has fallen by this share since."""

SHORT, LEAST, DAMPED, MOST = 0.1, 1 / 64, 8.0, 1e6
"""Length of a step below which the next step is damped; the least damping, the factor by which it
grows, and the largest damping."""

POLISH, POLISHED = 200, 1e-6
"""CG iterations of an accurate step (``_polish``) at most, and the relative residual it aims at."""

LATE, OFTEN = 30, 10
"""Iteration from which accurate steps are tried, and every how many iterations. Ordinary
problems end before."""

IDLE = 3
"""Consecutive steps that lower neither F nor its subgradient, after which only accurate steps are
made."""


class ProximalNewton(Solver):
    """Proximal Newton with working sets.

    On MNIST with C = 0.01 it takes 12 steps and 20 passes to a KKT residual of 1e-6. Half of the
    time goes into the preparation of the data.
    """

    newton_takes_over = False  # they need a smooth objective

    def _prepare(self) -> None:
        objective = self.objective
        l1 = torch.zeros_like(self.theta)
        objective.weight_of(l1).fill_(self.penalty.l1)
        self.l1 = l1.view(-1)
        # Subgradients times ``unit`` are in units of a logit, whatever the units of a column.
        unit = torch.ones_like(self.theta)
        spread = objective.spread
        objective.weight_of(unit).copy_(torch.where(spread > 0, spread, math.inf).reciprocal())
        self.unit = unit.view(-1)
        self.model: HessianModel | None = None
        self._descent = self.least = math.inf
        self.idle, self.damping = 0, 0.0

    def step(self) -> bool:
        r = self._subgradient().abs()
        if float(r.max()) == 0:
            return False
        if self.idle >= IDLE:
            return self._polish()
        if self.iterations >= LATE and self.iterations % OFTEN == 0 and self._polish():
            return True
        while not self._line_search(self._renewed(r)):
            # If F cannot show the descent, its subgradient may. Otherwise the step was too long.
            shows = 2 * self._descent > ROUNDING[self.dtype] * abs(self._current_total())
            if not shows or self.damping > MOST:
                return self._polish()
            self._damp(max(DAMPED * self.damping, LEAST))
        return True

    def _line_search(self, model: HessianModel) -> bool:
        """Search along the step to the minimum of the model; return whether a point was accepted.

        Its slope is g.d + l1 (||x + d||_1 - ||x||_1), an upper bound on the derivative of F.
        """
        at, x, g = model.at, self.theta.view(-1), self.gradient.view(-1)
        d = torch.zeros_like(x)
        d[at] = minimize_model(model, g[at], x[at], self.l1[at]) - x[at]
        slope = float(g @ d + self.l1 @ ((x + d).abs() - x.abs()))
        self._descent = -slope / 2
        F = self._total(x, self.value)
        search = LineSearch(0.0, slope, ROUNDING[self.dtype] * abs(F))
        for length in search.lengths():
            trial = x + length * d
            value, gradient = self._evaluate(trial.view_as(self.theta))
            change = self._total(trial, value) - F  # has more digits than F + a small number
            if search.accepts(length, change, self._slope(trial, gradient.view(-1), d)):
                break
        else:
            return False
        model.update(length * d[at], gradient.view(-1)[at] - g[at])
        self.move_to(trial.view_as(self.theta), Evaluated(value, gradient))
        largest = self._residual()
        idle = search.below_rounding(length) and largest >= self.least
        self.idle = self.idle + 1 if idle else 0
        self.least = min(self.least, largest)
        if length < SHORT:
            self._damp(max(DAMPED * self.damping, LEAST))
        elif length == 1 and self.damping > 0:
            self._damp(self.damping / DAMPED if self.damping > LEAST else 0.0)
        return True

    def _damp(self, damping: float) -> None:
        """Set the damping, and drop the model with the old damping."""
        self.damping, self.model = damping, None

    def _polish(self) -> bool:
        """Make an accurate Newton step among the weights that are not 0; return whether it helped.

        It helped if it halved the subgradient s, which still shows progress where F does not. With
        the signs of the weights fixed F is smooth, and H d = -s is solved by CG with the Hessian of
        all samples. Weights that would change their sign become 0.
        """
        if self.dtype != torch.float64:
            return False
        x, s = self.theta.view(-1), self._subgradient()
        face = (x != 0) | (s != 0) | (self.l1 == 0)
        at = face.nonzero().squeeze(1)
        none = torch.zeros_like(x[at])
        seed = self.seed + self.iterations
        model = hessian_model(self.objective, self.penalty, self.theta, at, seed, none)
        p = self.objective.probabilities(self.theta, torch.float64)
        everywhere = torch.ones_like(at, dtype=torch.bool)

        def whole(v: Tensor) -> Tensor:
            return torch.zeros_like(x).index_put_((at,), v).view_as(self.theta)

        def product(v: Tensor) -> Tensor:
            return self.objective.hessian_product(p, whole(v), self.penalty).view(-1)[at]

        def precondition(v: Tensor) -> Tensor:
            return model.solve_blocks(everywhere, v.unsqueeze(1)).squeeze(1)

        d, least = torch.zeros_like(s[at]), float((s * self.unit).norm())
        enough = POLISHED * least
        iterates = conjugate_gradients(product, precondition, s[at], model.diagonal)
        for j, (step, left, _) in enumerate(iterates, 1):
            residual = float((left * self.unit[at]).norm())
            if residual < least:
                d, least = step, residual
            if j == POLISH or least <= enough:
                break
        moved = x + whole(d).view(-1)
        crossed = (self.l1 > 0) & (x != 0) & (moved.sign() != x.sign())
        trial = moved.masked_fill(crossed, 0).view_as(self.theta)
        before = self.theta, self.value, self.gradient, self._residual()
        self.theta = trial
        self.value, self.gradient = self._evaluate(trial)
        allowed = self._total(x, before[1]) * (1 + ROUNDING[self.dtype])
        if self._residual() > 0.5 * before[3] or self._total(trial.view(-1), self.value) > allowed:
            self.theta, self.value, self.gradient = before[:3]
            return False
        self.iterations += 1
        self.idle, self.least, self.model = 0, self._residual(), None
        return True

    def _residual(self) -> float:
        """Return the largest entry of the subgradient, in units of a logit."""
        return float((self._subgradient() * self.unit).abs().max())

    def restart(self, theta: Tensor) -> None:
        super().restart(theta)
        self.least, self.idle = math.inf, 0

    @property
    def descent(self) -> float:
        return self._descent

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state |= {"descent": self._descent, "least": self.least, "idle": self.idle}
        state["damping"] = self.damping
        if self.model is not None:
            made = (self.model_iteration, self.model_theta, self.model_total, self.model_damping)
            state["model"] = (*made, self.model.at)
            state["pairs"] = list(self.model.pairs)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._descent, self.least, self.idle = state["descent"], state["least"], state["idle"]
        self.damping = state["damping"]
        self.model = None
        if "model" in state:
            *made, at = state["model"]
            self.model_iteration, self.model_theta, self.model_total, self.model_damping = made
            self.model = self._model(at)
            for s, y in state["pairs"]:
                self.model.update(s, y)
        self.objective.passes = state["passes"]

    def _current_total(self) -> float:
        return self._total(self.theta.view(-1), self.value)

    def _total(self, x: Tensor, value: float) -> float:
        """Return F at x, whose smooth part is ``value`` there."""
        return value + float(self.l1 @ x.abs())

    def _subgradient(self) -> Tensor:
        return subgradient(self.objective, self.theta, self.gradient, self.penalty.l1).view(-1)

    def _slope(self, x: Tensor, g: Tensor, d: Tensor) -> float:
        """Return the derivative of F along d at x, from the side from which d has led there."""
        return float(g @ d + self.l1 @ torch.where(x == 0, -d.abs(), x.sign() * d))

    def _renewed(self, r: Tensor) -> HessianModel:
        """Return the model, renewed if it is old or much of the subgradient r lies outside it."""
        F = self._current_total()
        if self.model is not None:
            outside = r.clone()
            outside[self.model.at] = 0
            life = RENEW_FALLEN if self.model_total - F > FALLEN * F else RENEW
            young = self.iterations - self.model_iteration < min(life, self.model.life)
            if young and 2 * float(outside.max()) <= float(r.max()):
                return self.model
        score = self.gradient.view(-1).abs() - self.l1
        inside = (self.theta.view(-1) != 0) | (self.l1 == 0)
        score[inside] = math.inf
        at = (score > -SLACK * self.l1).nonzero().squeeze(1)
        most = max(FIRST, 2 * int(inside.sum()))
        if len(at) > most:
            at = score.topk(most).indices.sort().values
        self.model_iteration, self.model_theta, self.model_total = self.iterations, self.theta, F
        self.model_damping = self.damping * self._residual()
        self.model = self._model(at)
        return self.model

    def _model(self, at: Tensor) -> HessianModel:
        seed = self.seed + self.model_iteration
        unit = self.unit[at]  # 0 for a column of zeros
        damping = self.model_damping * torch.where(unit > 0, unit, math.inf).reciprocal().square()
        return hessian_model(self.objective, self.penalty, self.model_theta, at, seed, damping)

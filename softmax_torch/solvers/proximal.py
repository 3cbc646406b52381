"""Proximal Newton's method, for an L1 term (Lee, Sun & Saunders 2014, "Proximal Newton-type
methods for minimizing composite functions").

With f the smooth part of F and x = theta as one vector, a step from x to u minimizes

    m(u)  =  g.(u - x) + (u - x).B (u - x) / 2 + l1 ||u||_1

with g the gradient of f and B about its Hessian, where u may differ from x on a working set of
coordinates: the bias, the weights that are not 0, and of the others those with |g| above l1 or next
to it, of which more are let in from step to step (Johnson & Guestrin 2015, "Blitz"). F is then
searched along u - x (Tseng & Yun 2009).

Far from the optimum B may be next to 0, where many probabilities are 0 or 1 to rounding, and a step
leads astray. Where the search along it fails or ends early, B is damped by a multiple of the
subgradient, in units of a logit, so that the damping vanishes at the optimum (Doikov 2023,
"Minimizing quasi-self-concordant functions by gradient regularization of Newton method").

What B is, ``curvature`` says; how m is minimized, ``subproblem``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers import curvature
from softmax_torch.solvers.certificate import subgradient
from softmax_torch.solvers.conjugate_gradients import conjugate_gradients
from softmax_torch.solvers.curvature import RENEW, Curvature
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.solver import Solver
from softmax_torch.solvers.subproblem import minimized

__all__ = ["ProximalNewton"]

FIRST = 500
"""Coordinates of the working set at first: it takes 1.8 s on MNIST (C = 0.01), with 1500 3.3 s."""

SLACK = 0.1
"""A weight of 0 is in the working set where |g| is within this share of l1."""

RENEW_FALLEN, FALLEN = 3, 0.002
"""B is sampled anew after so many steps if F has fallen by this share since."""

ENOUGH, SHORTEST = 1e-4, 1e-6
"""Share of the promised descent that a step has to make, and the shortest that is tried."""

ROUNDING = {torch.float32: 1e-7, torch.float64: 1e-15}
"""Relative to F, what an evaluation in this type may be off."""

SHORT, LEAST, DAMPED, MOST = 0.1, 1 / 64, 8.0, 1e6
"""Length of a step from which the next is damped; the least damping, by how much it grows, and the
most."""

POLISH, POLISHED = 200, 1e-6
"""CG iterations of the accurate steps at the end, at most, and how far the residual should fall."""

LATE, OFTEN = 30, 10
"""Iteration from which they are tried, and how often. Ordinary problems have ended before."""

IDLE = 3
"""Steps on end that neither F nor its subgradient tells to be any good, after which none is."""


class ProximalNewton(Solver):
    """The solver for an L1 term.

    On MNIST with C = 0.01 it takes 12 steps and 20 passes to a KKT residual of 1e-6, half of the
    time for the preparation of the data.
    """

    hands_over = False  # to steps for a smooth objective

    def __init__(
        self,
        objective: Objective,
        penalty: Penalty,
        theta: Tensor,
        dtype: torch.dtype,
        seed: int = 0,
    ) -> None:
        super().__init__(objective, penalty, theta, dtype, seed)
        l1 = torch.zeros_like(theta)
        objective.weight_of(l1).fill_(penalty.l1)
        self.l1 = l1.view(-1)
        # Subgradients times this are in units of a logit, whatever the units of a column.
        unit = torch.ones_like(theta)
        spread = objective.spread
        objective.weight_of(unit).copy_(torch.where(spread > 0, spread, math.inf).reciprocal())
        self.unit = unit.view(-1)
        self.model: Curvature | None = None
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
        while not self._searched(self._renewed(r)):
            # Where F cannot tell its subgradient may; otherwise the step was too long for B.
            told = 2 * self._descent > ROUNDING[self.dtype] * abs(self._total_here())
            if not told or self.damping > MOST:
                return self._polish()
            self._damp(max(DAMPED * self.damping, LEAST))
        return True

    def _searched(self, model: Curvature) -> bool:
        """Search F along the step to the minimum of the model; return whether a point was taken."""
        at, x, g = model.at, self.theta.view(-1), self.gradient.view(-1)
        d = torch.zeros_like(x)
        d[at] = minimized(model, g[at], x[at], self.l1[at]) - x[at]
        promised = float(g @ d + self.l1 @ ((x + d).abs() - x.abs()))
        self._descent = -promised / 2
        F, length = self._total(x, self.value), 1.0
        while promised < 0 and length >= SHORTEST:
            trial = x + length * d
            value, gradient = self._evaluate(trial.view_as(self.theta))
            change = self._total(trial, value) - F
            blind = -length * promised < ROUNDING[self.dtype] * abs(F)
            good = change <= ENOUGH * length * promised
            # Where F cannot tell its slope along d can (Hager & Zhang 2005), from the side of x.
            if good or (blind and self._slope(trial, gradient.view(-1), d) < -0.9 * promised):
                break
            length /= 2
        else:
            return False
        model.correct(length * d[at], gradient.view(-1)[at] - g[at])
        self.theta, self.value, self.gradient = trial.view_as(self.theta), value, gradient
        self.iterations += 1
        largest = self._residual()
        self.idle = self.idle + 1 if blind and largest >= self.least else 0
        self.least = min(self.least, largest)
        if length < SHORT:
            self._damp(max(DAMPED * self.damping, LEAST))
        elif length == 1 and self.damping > 0:
            self._damp(self.damping / DAMPED if self.damping > LEAST else 0.0)
        return True

    def _damp(self, damping: float) -> None:
        """Set the damping, which takes a new model."""
        self.damping, self.model = damping, None

    def _polish(self) -> bool:
        """Make an accurate Newton step among the weights that are not 0; return if that helped.

        Where F tells no more the subgradient still does. With the signs of the weights given F is
        smooth; H d = -s is solved by CG with the Hessian of all samples. Weights that would change
        their sign become 0.
        """
        if self.dtype != torch.float64:
            return False
        x, s = self.theta.view(-1), self._subgradient()
        face = (x != 0) | (s != 0) | (self.l1 == 0)
        at = face.nonzero().squeeze(1)
        none = torch.zeros_like(x[at])
        seed = self.seed + self.iterations
        model = curvature.on(self.objective, self.penalty, self.theta, at, seed, none)
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
            made = (self.made, self.made_at, self.made_total, self.made_damping)
            state["model"] = (*made, self.model.at)
            state["pairs"] = list(self.model.pairs)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._descent, self.least, self.idle = state["descent"], state["least"], state["idle"]
        self.damping = state["damping"]
        self.model = None
        if "model" in state:
            self.made, self.made_at, self.made_total, self.made_damping, at = state["model"]
            self.model = self._model(at)
            for s, y in state["pairs"]:
                self.model.correct(s, y)
        self.objective.passes = state["passes"]

    def _total_here(self) -> float:
        return self._total(self.theta.view(-1), self.value)

    def _total(self, x: Tensor, value: float) -> float:
        """F at x, where its smooth part is the value."""
        return value + float(self.l1 @ x.abs())

    def _subgradient(self) -> Tensor:
        return subgradient(self.objective, self.theta, self.gradient, self.penalty.l1).view(-1)

    def _slope(self, x: Tensor, g: Tensor, d: Tensor) -> float:
        """The derivative of F along d where d has led to x."""
        return float(g @ d + self.l1 @ torch.where(x == 0, -d.abs(), x.sign() * d))

    def _renewed(self, r: Tensor) -> Curvature:
        """The model, made anew if it is old or if much of the subgradient r lies outside of it."""
        F = self._total_here()
        if self.model is not None:
            outside = r.clone()
            outside[self.model.at] = 0
            life = RENEW_FALLEN if self.made_total - F > FALLEN * F else RENEW
            young = self.iterations - self.made < min(life, self.model.life)
            if young and 2 * float(outside.max()) <= float(r.max()):
                return self.model
        score = self.gradient.view(-1).abs() - self.l1
        inside = (self.theta.view(-1) != 0) | (self.l1 == 0)
        score[inside] = math.inf
        at = (score > -SLACK * self.l1).nonzero().squeeze(1)
        most = max(FIRST, 2 * int(inside.sum()))
        if len(at) > most:
            at = score.topk(most).indices.sort().values
        self.made, self.made_at, self.made_total = self.iterations, self.theta, F
        self.made_damping = self.damping * self._residual()
        self.model = self._model(at)
        return self.model

    def _model(self, at: Tensor) -> Curvature:
        seed = self.seed + self.made
        unit = self.unit[at]  # 0 for a column of zeros
        damping = self.made_damping * torch.where(unit > 0, unit, math.inf).reciprocal().square()
        return curvature.on(self.objective, self.penalty, self.made_at, at, seed, damping)

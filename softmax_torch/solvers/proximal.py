"""Proximal Newton's method, for an L1 term (Lee, Sun & Saunders 2014, "Proximal Newton-type
methods for minimizing composite functions").

With f the smooth part of F and x = theta as one vector, a step from x to u minimizes

    m(u)  =  g.(u - x) + (u - x).B (u - x) / 2 + l1 ||u||_1

with g the gradient of f and B about its Hessian, where u may differ from x on a working set of
coordinates: the bias, the weights that are not 0, and of the others those with |g| above l1 or next
to it, of which more are let in from step to step (Johnson & Guestrin 2015, "Blitz"). F is then
searched along u - x (Tseng & Yun 2009).

On the working set B couples coordinates of classes k and l by

    B_kl  =  1/S sum_i w_i p_ik ([k = l] - p_il) x_i x_i^T

Where it is small B is a matrix, summed over rows that are drawn by their curvature and counted
1 / probability fold. What the sample is off, and what has changed since, is corrected from steps s
and changes y of g by the BFGS formula B - B s (B s)^T / s.B s + y y^T / s.y in its compact form
B_0 - U M^-1 U^T (Byrd, Nocedal & Schnabel 1994). Where it is large there are products with the
Hessian of all samples, a pass each.

m is minimized by turns (as Chen, Curtis & Robinson 2017, "FaRSA"): accelerated proximal gradient
steps (Beck & Teboulle 2009, "FISTA") decide which weights are 0 and the signs of the others; among
those m is quadratic, and one solve leads to its minimum, or to where signs change, which are
weights that become 0. So the zeros are exact.

Without l2 to move the weights of a feature by the same amount for all classes changes nothing but
their L1 norm, which is least where their median is 0; B is 0 along it, and a solve would go far
astray. So the median is taken out first: it saves three quarters of the turns where C is large.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.certificate import subgradient
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.preconditioner import _Rows, _symmetric_product
from softmax_torch.solvers.solver import Solver

__all__ = ["ProximalNewton"]

FIRST = 500
"""Coordinates of the working set at first: it takes 1.8 s on MNIST (C = 0.01), with 1500 3.3 s."""

SLACK = 0.1
"""A weight of 0 is in the working set where |g| is within this share of l1."""

SAMPLED = 5000
"""Coordinates up to which B is a matrix, of 200 MB then."""

ROWS, ROWS_PER_COLUMN = 3000, 4
"""Rows that are drawn for a matrix, at least, and for each of its columns."""

ROW_BYTES = 1 << 28
"""What is held of them at a time."""

RIDGE, TINY = 2e-5, 1e-30
"""Added to B, relative to its diagonal, for directions in which it is 0 but for rounding."""

RENEW_FALLEN, FALLEN = 3, 0.002
"""B is sampled anew after so many steps if F has fallen by this share since."""

RENEW = 25
"""After so many it is in any case."""

INNER = 0.1
"""Largest subgradient of m at which a step ends, relative to that at its beginning."""

TURNS, GRADIENT_STEPS, SOLVES = 30, 10, 5
"""Turns at most in a step, and in each of them gradient steps and solves."""

CG_STEPS, CG_ENOUGH = 50, 0.1
"""Products that a solve may take, and how far the residual has to fall."""

ENOUGH, SHORTEST = 1e-4, 1e-6
"""Share of the promised descent that a step has to make, and the shortest that is tried."""

ROUNDING = {torch.float32: 1e-7, torch.float64: 1e-15}
"""Relative to F, what an evaluation in this type may be off."""

IDLE = 3
"""Steps on end that neither F nor its subgradient tells to be any good, after which none is."""


class ProximalNewton(Solver):
    """The solver for an L1 term.

    On MNIST with C = 0.01 it takes 12 steps and 20 passes to a KKT residual of 1e-6, half of the
    time for the preparation of the data.
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
        l1 = torch.zeros_like(theta)
        objective.weight_of(l1).fill_(penalty.l1)
        self.l1 = l1.view(-1)
        self.model: _Model | None = None
        self._descent = self.least = math.inf
        self.idle = 0

    def step(self) -> bool:
        r = self._subgradient().abs()
        if self.idle >= IDLE or float(r.max()) == 0:
            return False
        model = self._renewed(r)
        at, x, g = model.at, self.theta.view(-1), self.gradient.view(-1)
        d = torch.zeros_like(x)
        d[at] = _minimized(model, g[at], x[at], self.l1[at]) - x[at]
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
        largest = float(self._subgradient().abs().max())
        self.idle = self.idle + 1 if blind and largest >= self.least else 0
        self.least = min(self.least, largest)
        return True

    def restart(self, theta: Tensor) -> None:
        super().restart(theta)
        self.least, self.idle = math.inf, 0

    @property
    def descent(self) -> float:
        return self._descent

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        state |= {"descent": self._descent, "least": self.least, "idle": self.idle}
        if self.model is not None:
            state["model"] = (self.made, self.made_at, self.made_total, self.model.at)
            state["pairs"] = list(self.model.pairs)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._descent, self.least, self.idle = state["descent"], state["least"], state["idle"]
        self.model = None
        if "model" in state:
            self.made, self.made_at, self.made_total, at = state["model"]
            self.model = self._model(at)
            for s, y in state["pairs"]:
                self.model.correct(s, y)
        self.objective.passes = state["passes"]

    def _total(self, x: Tensor, value: float) -> float:
        """F at x, where its smooth part is the value."""
        return value + float(self.l1 @ x.abs())

    def _subgradient(self) -> Tensor:
        return subgradient(self.objective, self.theta, self.gradient, self.penalty.l1).view(-1)

    def _slope(self, x: Tensor, g: Tensor, d: Tensor) -> float:
        """The derivative of F along d where d has led to x."""
        return float(g @ d + self.l1 @ torch.where(x == 0, -d.abs(), x.sign() * d))

    def _renewed(self, r: Tensor) -> _Model:
        """The model, made anew if it is old or if much of the subgradient r lies outside of it."""
        F = self._total(self.theta.view(-1), self.value)
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
        self.model = self._model(at)
        return self.model

    def _model(self, at: Tensor) -> _Model:
        kind = _Sampled if len(at) <= SAMPLED else _Exact
        return kind(self.objective, self.penalty, self.made_at, at, self.seed + self.made)


class _Model:
    """B on the coordinates ``at``, in order, of theta: diagonal blocks of these sizes."""

    life = RENEW

    def __init__(
        self,
        objective: Objective,
        penalty: Penalty,
        theta: Tensor,
        at: Tensor,
        sizes: list[int],
        seed: int,
    ) -> None:
        self.objective, self.penalty, self.at, self.sizes = objective, penalty, at, sizes
        self.pairs: list[tuple[Tensor, Tensor]] = []
        (K, P), D = objective.shape, objective.samples.d
        k, column = at // P, at % P
        rows = _Rows(objective, theta, torch.Generator().manual_seed(seed))
        self.blocks: list[Tensor] = []
        for k_b, column_b in zip(torch.split(k, sizes), torch.split(column, sizes), strict=True):
            block = _hessian(rows, k_b, column_b)
            diagonal = block.diagonal()
            # A column of zeros has none of its own.
            unit = torch.where(diagonal > 0, diagonal, diagonal.mean()).clamp_min(TINY)
            diagonal.add_(RIDGE * unit + penalty.l2 * (column_b < D))
            self.blocks.append(block)
        self.diagonal = torch.cat([block.diagonal() for block in self.blocks])
        self.factors: list[tuple[Tensor, Tensor] | None] = [None] * len(sizes)
        place = torch.full((P, K), -1, device=at.device)
        place[column, k] = torch.arange(len(at), device=at.device)
        self.features = place[:D][(place[:D] >= 0).all(1)]  # those with all classes in ``at``

    def product(self, v: Tensor) -> Tensor:
        """B v."""
        raise NotImplementedError

    def solve(self, face: Tensor, r: Tensor) -> Tensor:
        """B^-1 r on a face, 0 elsewhere."""
        raise NotImplementedError

    def correct(self, s: Tensor, y: Tensor) -> None:
        """Take note that the gradient changed by y over a step s."""

    def bound(self) -> float:
        """At least the largest eigenvalue of B with its diagonal scaled to 1, roughly."""
        raise NotImplementedError

    def shifted(self, x: Tensor) -> Tensor:
        """x with the median of each feature at 0, where that changes nothing but the L1 norm."""
        if self.penalty.l2 > 0:
            return x
        x_features = x[self.features]
        middle = x_features.sort(1).values[
            :, [(x_features.shape[1] - 1) // 2, x_features.shape[1] // 2]
        ]
        x = x.clone()
        x[self.features] = x_features - middle[:, :1].clamp_min(0) - middle[:, 1:].clamp_max(0)
        return x

    def _solve_blocks(self, face: Tensor, r: Tensor) -> Tensor:
        """The blocks' inverses on a face times the columns r."""
        solved = torch.zeros_like(r)
        parts = zip(
            self.blocks, *(torch.split(t, self.sizes) for t in (face, r, solved)), strict=True
        )
        for i, (block, here, r_b, solved_b) in enumerate(parts):
            known = self.factors[i]
            if known is None or not here.equal(known[0]):
                known = self.factors[i] = here, _factor(block[here][:, here])
            if len(known[1]):
                solved_b[here] = torch.cholesky_solve(r_b[here], known[1])
        return solved


class _Sampled(_Model):
    """B as one matrix, from a sample of rows, with what the steps have told of it since."""

    def __init__(
        self, objective: Objective, penalty: Penalty, theta: Tensor, at: Tensor, seed: int
    ) -> None:
        super().__init__(objective, penalty, theta, at, [len(at)], seed)
        self.B = self.blocks[0]

    def product(self, v: Tensor) -> Tensor:
        r: Tensor = self.B @ v
        if self.pairs:
            r -= self.U @ torch.linalg.solve(self.M, self.U.T @ v)
        return r

    def solve(self, face: Tensor, r: Tensor) -> Tensor:
        if not self.pairs:
            return self._solve_blocks(face, r.unsqueeze(1)).squeeze(1)
        solved = self._solve_blocks(face, torch.cat([r.unsqueeze(1), self.U], 1))
        d, V = solved[:, 0], solved[:, 1:]
        return d.sub_(V @ torch.linalg.solve(self.U.T @ V - self.M, self.U.T @ d))

    def correct(self, s: Tensor, y: Tensor) -> None:
        if float(s @ y) < 0.01 * float(s @ self.product(s)):  # rounding: F is convex
            return
        self.pairs.append((s, y))
        S, Y = (torch.stack(part, 1) for part in zip(*self.pairs, strict=True))
        BS, SY = self.B @ S, S.T @ Y
        L = SY.tril(-1)
        self.U = torch.cat([BS, Y], 1)
        self.M = torch.cat(
            [torch.cat([S.T @ BS, L], 1), torch.cat([L.T, -SY.diagonal().diag()], 1)]
        )

    def bound(self) -> float:
        return _largest(self.product, self.diagonal)


class _Exact(_Model):
    """Products with the Hessian of all samples; blocks of one class each to precondition them."""

    life = 1

    def __init__(
        self, objective: Objective, penalty: Penalty, theta: Tensor, at: Tensor, seed: int
    ) -> None:
        counts = torch.bincount(at // objective.shape[1]).tolist()
        sizes = [min(SAMPLED, n - i) for n in counts for i in range(0, n, SAMPLED)]
        super().__init__(objective, penalty, theta, at, sizes, seed)
        self.p = objective.probabilities(theta, objective.samples.dtype)

    def product(self, v: Tensor) -> Tensor:
        whole = self.objective.zeros()
        whole.view(-1)[self.at] = v
        product = self.objective.hessian_product(self.p, whole, self.penalty)
        return product.view(-1)[self.at] + RIDGE * self.diagonal * v

    def solve(self, face: Tensor, r: Tensor) -> Tensor:
        """By preconditioned conjugate gradients."""
        r = r * face
        d, direction, rz, first = torch.zeros_like(r), r, 0.0, math.inf
        for step in range(CG_STEPS):
            z = self._solve_blocks(face, r.unsqueeze(1)).squeeze(1)
            before, rz = rz, float(r @ z)
            first = first if step else rz
            if rz <= CG_ENOUGH**2 * first and step:
                break
            direction = z + rz / before * direction if step else z
            Hd = self.product(direction) * face
            curvature = float(direction @ Hd)
            if curvature <= 0:
                break
            d, r = d + rz / curvature * direction, r - rz / curvature * Hd
        return d

    def bound(self) -> float:
        # diag p - p p^T is at most twice its own diagonal: its rows sum to 0 (Gershgorin).
        return 2 * max(_largest(block.mv, block.diagonal()) for block in self.blocks)


def _minimized(model: _Model, g: Tensor, x: Tensor, l1: Tensor) -> Tensor:
    """The u that minimizes g.(u - x) + (u - x).B (u - x) / 2 + sum l1 |u|."""

    def at(u: Tensor) -> tuple[Tensor, Tensor, float]:
        """u, the gradient of the quadratic there, and the value of it all."""
        q = g + model.product(u - x)
        return u, q, float((g + q) @ (u - x) / 2 + l1 @ u.abs())

    def residual() -> float:
        r = torch.where(u == 0, (q.abs() - l1).clamp_min(0), q + l1 * u.sign())
        return float((r * scale).abs().max())

    scale = model.diagonal.rsqrt()  # so that it does not matter what units features are in
    u, q, least = at(x)
    tolerance, bound, fruitless = INNER * residual(), model.bound(), 0
    for turn in range(TURNS):
        t = 1 / (bound * model.diagonal)
        if turn:
            trial = at(model.shifted(_descended(model, g, x, l1, t, u, q)))
            if trial[2] < least:
                (u, q, least), fruitless = trial, 0
            else:
                bound, fruitless = 4 * bound, fruitless + 1
        for _ in range(SOLVES):
            face = (u != 0) | (l1 == 0)
            d = model.solve(face, -(q + l1 * u.sign()))
            for halvings in range(10):
                moved = u + d / 2**halvings
                crossed = face & (l1 > 0) & (moved.sign() != u.sign())
                trial = at(moved.masked_fill(crossed, 0))
                if trial[2] < least:
                    break
            else:
                break
            (u, q, least), fruitless = trial, 0
            if not halvings and not crossed.any():
                break
        if residual() <= tolerance or fruitless > 1:
            break
    return u


def _descended(
    model: _Model, g: Tensor, x: Tensor, l1: Tensor, t: Tensor, u: Tensor, q: Tensor
) -> Tensor:
    """u after some accelerated proximal gradient steps of lengths t; q is the gradient at u."""
    v, momentum = u, 1.0
    for step in range(GRADIENT_STEPS):
        if step:
            q = g + model.product(v - x)
        v = v - t * q
        before, u = u, v.sign() * (v.abs() - t * l1).clamp_min(0)
        weight, momentum = momentum - 1, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        v = u + weight / momentum * (u - before)
    return u


def _hessian(rows: _Rows, k: Tensor, column: Tensor) -> Tensor:
    """The Hessian of the mean NLL in coordinates of these classes, in order, and columns."""
    objective = rows.objective
    counts = torch.bincount(k)
    classes = counts.nonzero().squeeze(1)
    counts, p = counts[classes], rows.p[:, classes]
    rows.wanted = max(ROWS, ROWS_PER_COLUMN * len(k))
    drawn, factor = rows._draw(rows.w * (p * (1 - p)).sum(1))
    p, w = p[drawn], rows.w[drawn] * factor * rows.scale
    H = torch.zeros(len(k), len(k), dtype=torch.float64, device=k.device)
    step = max(1, ROW_BYTES // (4 * max(len(k), objective.samples.d)))
    for drawn_b, p_b, w_b in zip(*(torch.split(part, step) for part in (drawn, p, w)), strict=True):
        x = objective.samples.rows(drawn_b if rows.pool is None else rows.pool[drawn_b])
        if objective.bias:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        x = x[:, column]
        p_k = (p_b * w_b.sqrt().unsqueeze(1)).repeat_interleave(counts, 1)
        part = -_symmetric_product(x * p_k) if len(counts) > 1 else torch.zeros_like(H)
        start = 0
        for j, n in enumerate(counts.tolist()):
            at = slice(start, start + n)
            c = (w_b * p_b[:, j] * (1 - p_b[:, j])).sqrt()
            part[at, at] = _symmetric_product(x[:, at] * c.unsqueeze(1))
            start += n
        H += part
    return objective.summed(H)


def _factor(A: Tensor) -> Tensor:
    """The Cholesky factor of A, with as much of a ridge as it takes."""
    ridge = 0.0
    while True:
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(A + ridge * A.diagonal().diag())
        if info.item() == 0:
            return factor
        ridge = 10 * ridge or RIDGE


def _largest(product: Callable[[Tensor], Tensor], diagonal: Tensor) -> float:
    """About the largest eigenvalue of a matrix with its diagonal scaled to 1, by its powers."""
    scale = diagonal.rsqrt()
    v = torch.ones_like(scale)
    for _ in range(15):
        v = scale * product(scale * (v / v.norm()))
    return 1.1 * float(v.norm())

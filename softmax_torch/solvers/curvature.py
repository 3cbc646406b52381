"""B, about the Hessian of the smooth part of F, on a working set of coordinates.

It couples coordinates of classes k and l by

    B_kl  =  1/S sum_i w_i p_ik ([k = l] - p_il) x_i x_i^T

Where it is small B is a matrix, summed over rows that are drawn by their curvature and counted
1 / probability fold. What the sample is off, and what has changed since, is corrected from steps s
and changes y of the gradient by the BFGS formula B - B s (B s)^T / s.B s + y y^T / s.y in its
compact form B_0 - U M^-1 U^T (Byrd, Nocedal & Schnabel 1994). Where it is large there are products
with the Hessian of all samples, a pass each.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.rows import Rows, symmetric_product

__all__ = ["RENEW", "Curvature", "Exact", "Sampled", "on"]

RENEW = 25
"""After so many it is in any case."""

SAMPLED = 5000
"""Coordinates up to which B is a matrix, of 200 MB then."""

CHEAP = 10**9
"""Multiplications of a factorization that always pay: some 20 ms."""

ROWS, ROWS_PER_COLUMN = 3000, 4
"""Rows that are drawn for a matrix, at least, and for each of its columns."""

RIDGE, TINY = 2e-5, 1e-30
"""Added to B, relative to its diagonal, for directions in which it is 0 but for rounding."""

CG_STEPS, CG_ENOUGH = 50, 0.1
"""Products that a solve may take, and how far the residual has to fall."""


class Curvature(ABC):
    """B at theta on the coordinates ``at``, in order, with the damping added to its diagonal.

    Its diagonal blocks are held as matrices.
    """

    life = RENEW

    def __init__(
        self,
        objective: Objective,
        penalty: Penalty,
        theta: Tensor,
        at: Tensor,
        seed: int,
        damping: Tensor,
    ) -> None:
        self.objective, self.penalty, self.theta = objective, penalty, theta
        self.at, self.damping = at, damping
        self.sizes = sizes = self._sizes()
        self.pairs: list[tuple[Tensor, Tensor]] = []
        (K, P), D = objective.shape, objective.samples.d
        k, column = at // P, at % P
        rows = Rows(objective, theta, torch.Generator().manual_seed(seed), objective.samples.dtype)
        self.blocks: list[Tensor] = []
        parts = (torch.split(t, sizes) for t in (k, column, damping))
        for k_b, column_b, damping_b in zip(*parts, strict=True):
            block = _hessian(rows, k_b, column_b)
            diagonal = block.diagonal()
            # A column of zeros has none of its own.
            unit = torch.where(diagonal > 0, diagonal, diagonal.mean()).clamp_min(TINY)
            diagonal.add_(RIDGE * unit + penalty.l2 * (column_b < D) + damping_b)
            self.blocks.append(block)
        self.diagonal = torch.cat([block.diagonal() for block in self.blocks])
        self.factors: list[tuple[Tensor, Tensor] | None] = [None] * len(sizes)
        place = torch.full((P, K), -1, device=at.device)
        place[column, k] = torch.arange(len(at), device=at.device)
        self.features = place[:D][(place[:D] >= 0).all(1)]  # those with all classes in ``at``

    @abstractmethod
    def _sizes(self) -> list[int]:
        """Return the sizes of the diagonal blocks."""

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Return B v."""

    @abstractmethod
    def solve(self, face: Tensor, r: Tensor) -> Tensor:
        """B^-1 r on a face, 0 elsewhere."""

    @abstractmethod
    def correct(self, s: Tensor, y: Tensor) -> None:
        """Take note that the gradient changed by y over a step s."""

    @abstractmethod
    def bound(self) -> float:
        """At least the largest eigenvalue of B with its diagonal scaled to 1, roughly."""

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

    def solve_blocks(self, face: Tensor, r: Tensor) -> Tensor:
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


class Sampled(Curvature):
    """B as one matrix, from a sample of rows, with what the steps have told of it since."""

    def _sizes(self) -> list[int]:
        return [len(self.at)]

    def product(self, v: Tensor) -> Tensor:
        r: Tensor = self.blocks[0] @ v
        if self.pairs:
            r -= self.U @ _solved(self.M, self.U.T @ v)
        return r

    def solve(self, face: Tensor, r: Tensor) -> Tensor:
        if not self.pairs:
            return self.solve_blocks(face, r.unsqueeze(1)).squeeze(1)
        solved = self.solve_blocks(face, torch.cat([r.unsqueeze(1), self.U], 1))
        d, V = solved[:, 0], solved[:, 1:]
        return d.sub_(V @ _solved(self.U.T @ V - self.M, self.U.T @ d))

    def correct(self, s: Tensor, y: Tensor) -> None:
        if float(s @ y) < 0.01 * float(s @ self.product(s)):  # rounding: F is convex
            return
        self.pairs.append((s, y))
        S, Y = (torch.stack(part, 1) for part in zip(*self.pairs, strict=True))
        BS, SY = self.blocks[0] @ S, S.T @ Y
        L = SY.tril(-1)
        self.U = torch.cat([BS, Y], 1)
        self.M = torch.cat(
            [torch.cat([S.T @ BS, L], 1), torch.cat([L.T, -SY.diagonal().diag()], 1)]
        )

    def bound(self) -> float:
        return _largest(self.product, self.diagonal)


class Exact(Curvature):
    """Products with the Hessian of all samples; blocks of one class each to precondition them."""

    life = 1

    @cached_property
    def p(self) -> Tensor:
        """Probabilities of all samples at theta (n, K)."""
        return self.objective.probabilities(self.theta, self.objective.samples.dtype)

    def _sizes(self) -> list[int]:
        counts = torch.bincount(self.at // self.objective.shape[1]).tolist()
        return [min(SAMPLED, n - i) for n in counts for i in range(0, n, SAMPLED)]

    def product(self, v: Tensor) -> Tensor:
        whole = self.objective.zeros()
        whole.view(-1)[self.at] = v
        product = self.objective.hessian_product(self.p, whole, self.penalty)
        return product.view(-1)[self.at] + (RIDGE * self.diagonal + self.damping) * v

    def solve(self, face: Tensor, r: Tensor) -> Tensor:
        """By preconditioned conjugate gradients."""
        r = r * face
        d, direction, rz, first = torch.zeros_like(r), r, 0.0, math.inf
        for step in range(CG_STEPS):
            z = self.solve_blocks(face, r.unsqueeze(1)).squeeze(1)
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

    def correct(self, s: Tensor, y: Tensor) -> None:
        """Nothing: it is the Hessian at the point that it was made for, and made anew each step."""

    def bound(self) -> float:
        # diag p - p p^T is at most twice its own diagonal: its rows sum to 0 (Gershgorin).
        return 2 * max(_largest(block.mv, block.diagonal()) for block in self.blocks)


def on(
    objective: Objective,
    penalty: Penalty,
    theta: Tensor,
    at: Tensor,
    seed: int,
    damping: Tensor,
) -> Curvature:
    """Return B at theta on the coordinates ``at``: a matrix if its factor costs less than passes.

    ``damping`` (len(at),) is added to its diagonal.

    With many classes and few samples it does not: 600 x 20 with 300 classes took 226 s with
    matrices of 5000 x 5000.
    """
    (K, P), m = objective.shape, len(at)
    passes = CG_STEPS * 4 * objective.samples.n * K * P
    small = m <= SAMPLED and m**3 / 3 <= max(CHEAP, passes)
    return (Sampled if small else Exact)(objective, penalty, theta, at, seed, damping)


def _hessian(rows: Rows, k: Tensor, column: Tensor) -> Tensor:
    """Return the Hessian of the mean NLL in coordinates of these classes, in order, and columns."""
    objective = rows.objective
    counts = torch.bincount(k)
    classes = counts.nonzero().squeeze(1)
    counts = counts[classes]
    rows.wanted = max(ROWS, ROWS_PER_COLUMN * len(k))
    curvatures = rows.curvatures
    c = curvatures[:, classes].sum(1)
    drawn = rows.draw(c, c * objective.influence if rows.n > rows.wanted else c)
    H = torch.zeros(len(k), len(k), dtype=torch.float64, device=k.device)
    for part in drawn.split(max(len(k), objective.samples.d)):
        x = rows.features(part.numbers)[:, column]
        p = rows.p[part.numbers][:, classes]
        root = (rows.w[part.numbers] * part.factor).sqrt().unsqueeze(1)
        p_k = (p * root).repeat_interleave(counts, 1)
        sum_of_part = -symmetric_product(x * p_k) if len(counts) > 1 else torch.zeros_like(H)
        start = 0
        for j, n in enumerate(counts.tolist()):
            at = slice(start, start + n)
            c_j = (curvatures[part.numbers, classes[j]] * part.factor).sqrt()
            sum_of_part[at, at] = symmetric_product(x[:, at] * c_j.unsqueeze(1))
            start += n
        H += sum_of_part
    return objective.summed(H)


def _solved(M: Tensor, v: Tensor) -> Tensor:
    """Return M^-1 v, of least norm where steps repeat each other and M is singular."""
    x: Tensor
    x, info = torch.linalg.solve_ex(M, v)
    if info.item():
        x = torch.linalg.pinv(M, hermitian=True) @ v
    return x


def _factor(A: Tensor) -> Tensor:
    """Return the Cholesky factor of A, whose diagonal is raised until there is one."""
    ridge = 0.0
    while ridge < 10 * len(A) + 1:
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(A + ridge * A.diagonal().diag())
        if info.item() == 0:
            return factor
        ridge = 10 * ridge or RIDGE
    raise AssertionError("a Hessian holds NaN or infinity; inputs are checked for these")


def _largest(product: Callable[[Tensor], Tensor], diagonal: Tensor) -> float:
    """Return about the largest eigenvalue of a matrix with its diagonal scaled to 1.

    It is at least 1. The power iteration begins at random: a vector of ones lies in the null space
    where all classes of a feature are in the working set.
    """
    scale = diagonal.rsqrt()
    v = torch.randn(scale.shape, generator=torch.Generator().manual_seed(0), dtype=scale.dtype)
    v = v.to(scale.device)
    for _ in range(15):
        v = scale * product(scale * (v / v.norm()))
    return max(1.1 * float(v.norm()), 1.0)

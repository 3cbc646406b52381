"""The model B of proximal Newton: an approximation to the Hessian of F on a working set.

Only the smooth part of F counts. B has the coordinates (class, column) of the working set, and l2
and a damping on its diagonal.

``SampledModel``  for small working sets: B is a matrix, estimated from drawn rows (see
                  ``sampled_hessian``). Sampling errors, and changes of the Hessian since, are
                  corrected from curvature pairs (steps s, changes y of the gradient) by the BFGS
                  formula B - B s (B s)^T / s.B s + y y^T / s.y in its compact form B_0 - U M^-1 U^T
                  (Byrd, Nocedal & Schnabel 1994).
``ExactModel``    for large ones: products with the Hessian of all samples, each of which takes a
                  pass.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.sampled_hessian import SampledHessian

__all__ = ["RENEW", "ExactModel", "HessianModel", "SampledModel", "hessian_model"]

RENEW = 25
"""Steps after which B is estimated again in any case."""

MATRIX = 5000
"""Coordinates up to which B is a matrix. At the limit it takes 200 MB."""

CHEAP_FACTORIZATION = 10**9
"""Multiplications up to which a factorization is always worth its cost: some 20 ms."""

RELATIVE_RIDGE, TINY = 2e-5, 1e-30
"""Added to the diagonal of B, relative to it and at least, for directions in which B is 0 up to
rounding."""

CG_STEPS, CG_ENOUGH = 50, 0.1
"""CG iterations of a solve at most, and the relative residual at which it stops."""


class HessianModel(ABC):
    """B at theta on the coordinates ``at``, with its diagonal blocks as matrices.

    Args:
        objective: the samples.
        penalty: its l2 is added to the diagonal, except at the bias.
        theta: (K, P).
        at: (M,) indices into theta as one vector, ascending.
        seed: seed of the draw of rows.
        damping: (M,), added to the diagonal.

    Attributes:
        diagonal: (M,) of B without the corrections by curvature pairs.
        pairs: the curvature pairs so far.
        life: steps after which the model must be renewed.
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
        sampled = SampledHessian(objective, theta, seed, objective.samples.dtype)
        self.blocks: list[Tensor] = []
        parts = (torch.split(t, sizes) for t in (k, column, damping))
        for k_b, column_b, damping_b in zip(*parts, strict=True):
            block = sampled.at(k_b, column_b)
            diagonal = block.diagonal()
            # A column of zeros has no curvature of its own.
            unit = torch.where(diagonal > 0, diagonal, diagonal.mean()).clamp_min(TINY)
            diagonal.add_(RELATIVE_RIDGE * unit + penalty.l2 * (column_b < D) + damping_b)
            self.blocks.append(block)
        self.diagonal = torch.cat([block.diagonal() for block in self.blocks])
        self.factors: list[tuple[Tensor, Tensor] | None] = [None] * len(sizes)
        place = torch.full((P, K), -1, device=at.device)
        place[column, k] = torch.arange(len(at), device=at.device)
        self.features = place[:D][(place[:D] >= 0).all(1)]  # features with all classes in ``at``

    @abstractmethod
    def _sizes(self) -> list[int]:
        """Return the sizes of the diagonal blocks."""

    @abstractmethod
    def product(self, v: Tensor) -> Tensor:
        """Return B v."""

    @abstractmethod
    def solve(self, face: Tensor, r: Tensor) -> Tensor:
        """Return B^-1 r among the coordinates of a face (a mask (M,)), and 0 elsewhere."""

    @abstractmethod
    def update(self, s: Tensor, y: Tensor) -> None:
        """Correct B by a curvature pair: the gradient changed by y over the step s."""

    @abstractmethod
    def largest_eigenvalue(self) -> float:
        """Return an approximate upper bound on the eigenvalues of B scaled to a diagonal of 1."""

    def median_centred(self, x: Tensor) -> Tensor:
        """Return x (M,) with the median over the classes subtracted, feature by feature.

        Without an l2 penalty this changes nothing but the L1 norm, which it minimizes. With an l2
        penalty x is returned unchanged.
        """
        if self.penalty.l2 > 0:
            return x
        x_features = x[self.features]
        K = x_features.shape[1]
        middle = x_features.sort(1).values[:, [(K - 1) // 2, K // 2]]
        x = x.clone()
        x[self.features] = x_features - middle[:, :1].clamp_min(0) - middle[:, 1:].clamp_max(0)
        return x

    def solve_blocks(self, face: Tensor, r: Tensor) -> Tensor:
        """Return the inverses of the diagonal blocks on a face times the columns r (M, N)."""
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


class SampledModel(HessianModel):
    """B as one matrix, from drawn rows and curvature pairs."""

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

    def update(self, s: Tensor, y: Tensor) -> None:
        if float(s @ y) < 0.01 * float(s @ self.product(s)):  # rounding, as F is convex
            return
        self.pairs.append((s, y))
        S, Y = (torch.stack(part, 1) for part in zip(*self.pairs, strict=True))
        BS, SY = self.blocks[0] @ S, S.T @ Y
        L = SY.tril(-1)
        self.U = torch.cat([BS, Y], 1)
        self.M = torch.cat(
            [torch.cat([S.T @ BS, L], 1), torch.cat([L.T, -SY.diagonal().diag()], 1)]
        )

    def largest_eigenvalue(self) -> float:
        return _largest(self.product, self.diagonal)


class ExactModel(HessianModel):
    """Products with the Hessian of all samples, preconditioned by blocks of one class each."""

    life = 1

    @cached_property
    def p(self) -> Tensor:
        """Class probabilities of all samples at theta (n, K)."""
        return self.objective.probabilities(self.theta, self.objective.samples.dtype)

    def _sizes(self) -> list[int]:
        counts = torch.bincount(self.at // self.objective.shape[1]).tolist()
        return [min(MATRIX, n - i) for n in counts for i in range(0, n, MATRIX)]

    def product(self, v: Tensor) -> Tensor:
        whole = self.objective.zeros()
        whole.view(-1)[self.at] = v
        product = self.objective.hessian_product(self.p, whole, self.penalty)
        return product.view(-1)[self.at] + (RELATIVE_RIDGE * self.diagonal + self.damping) * v

    def solve(self, face: Tensor, r: Tensor) -> Tensor:
        """Return B^-1 r on a face, by preconditioned conjugate gradients."""
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

    def update(self, s: Tensor, y: Tensor) -> None:
        """Do nothing: B is the Hessian at theta itself, and is renewed after each step."""

    def largest_eigenvalue(self) -> float:
        # diag p - p p^T is at most twice its own diagonal: its rows sum to 0 (Gershgorin).
        return 2 * max(_largest(block.mv, block.diagonal()) for block in self.blocks)


def hessian_model(
    objective: Objective, penalty: Penalty, theta: Tensor, at: Tensor, seed: int, damping: Tensor
) -> HessianModel:
    """Return B as a matrix if factoring it costs less than passes, otherwise as products.

    With many classes and few samples it costs more: 600 x 20 with 300 classes took 226 s with
    matrices of 5000 x 5000. For the arguments see ``HessianModel``.
    """
    (K, P), m = objective.shape, len(at)
    passes = CG_STEPS * 4 * objective.samples.n * K * P
    small = m <= MATRIX and m**3 / 3 <= max(CHEAP_FACTORIZATION, passes)
    kind = SampledModel if small else ExactModel
    return kind(objective, penalty, theta, at, seed, damping)


def _solved(M: Tensor, v: Tensor) -> Tensor:
    """Return M^-1 v; the solution of least norm where steps repeat each other and M is singular."""
    x: Tensor
    x, info = torch.linalg.solve_ex(M, v)
    if info.item():
        x = torch.linalg.pinv(M, hermitian=True) @ v
    return x


def _factor(A: Tensor) -> Tensor:
    """Return the Cholesky factor of A, after raising its diagonal until it has one."""
    ridge = 0.0
    while ridge < 10 * len(A) + 1:
        factor: Tensor
        factor, info = torch.linalg.cholesky_ex(A + ridge * A.diagonal().diag())
        if info.item() == 0:
            return factor
        ridge = 10 * ridge or RELATIVE_RIDGE
    raise AssertionError("a Hessian holds NaN or infinity; inputs are checked for these")


def _largest(product: Callable[[Tensor], Tensor], diagonal: Tensor) -> float:
    """Estimate the largest eigenvalue of a matrix scaled to a diagonal of 1; at least 1.

    The power iteration starts from a random vector: a vector of ones lies in the null space if all
    classes of a feature are in the working set.
    """
    scale = diagonal.rsqrt()
    v = torch.randn(scale.shape, generator=torch.Generator().manual_seed(0), dtype=scale.dtype)
    v = v.to(scale.device)
    for _ in range(15):
        v = scale * product(scale * (v / v.norm()))
    return max(1.1 * float(v.norm()), 1.0)

"""A linear program that decides whether classes can be separated: exact, for small problems.

A has a row for each sample i of class y and each other class k. The product of that row with a
direction delta (K, P) is the margin (delta_y - delta_k) . [x_i, 1]. The program

    maximize  sum t    subject to    A delta >= t,    0 <= t <= 1                    (primal)
    minimize  sum max(0, 1 - lambda)    subject to    A^T lambda = 0,  lambda >= 0   (dual)

has an optimum of one of two kinds. Either delta separates: no margin is below 0, and those above 0
are at least 1. Or every lambda is at least 1, which by Stiemke's theorem of alternatives shows that
no direction separates (see ``separation``). Newton steps on F find the same answer at a lower cost,
unless the margins of the separating direction have many scales.

Both programs are solved together by a primal-dual interior-point method with a predictor and a
corrector (Mehrotra 1992, "On the implementation of a primal-dual interior point method"). It ends
as soon as its point proves one of the answers:

 - Separation is proved by delta if no margin is below 0 by more than rounding.
 - Overlap is proved by lambda (1 - c), with c = A v and A^T diag(lambda) A v = A^T lambda, if c is
   below 1. That vector is above 0 and A^T times it is 0.

First the columns are centred, scaled and made orthonormal, and equal samples are merged.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective

__all__ = ["separating_direction"]

ENTRIES, PRODUCTS, UNKNOWNS = 1 << 24, 1e9, 1024
"""Largest n K P, n K P^2 and K P. On two cores 9000 samples, 10 classes and P = 100 take 1 s."""

RANK = 1e-12
"""Singular values of the scaled columns below this share of the largest count as 0."""

START = 1e3
"""First value of lambda and of the slacks. Starting from 1 takes three times as many iterations."""

MAX_ITERATIONS = 60
"""Iterations at most. Random problems of all kinds took at most 18."""

SEPARATED = 1e-10
"""Share of the largest margin below which a negative margin is rounding."""

BALANCED = 1e-13
"""Share of the sum of its absolute terms below which an entry of A^T lambda is rounding."""

NEAR_ONE = 0.1
"""Largest |c| that counts as a proof of overlap: the distance to 1 is far above rounding."""

FIRST_RIDGE, LARGEST_RIDGE = 1e-13, 1e-9
"""Added to the unit diagonal of a matrix before it is factored, and how far it may be raised."""

SHARE = 0.995
"""Largest share of the step at which the first slack or multiplier becomes 0."""

REFINEMENTS = 3
"""Steps of iterative refinement for a solution of the normal equations."""


def separating_direction(objective: Objective) -> Tensor | None:
    """Return a direction (K, P) that separates classes, or None if there is none.

    Its largest margin is at least 1. It is computed on the CPU, from half a pass.

    Raises:
        ArithmeticError: The program is larger than the limits, or rounding prevents a proof.
    """
    K, P = objective.shape
    n = int(objective.summed(objective.y.new_tensor(objective.samples.n)))
    if n * P > ENTRIES or K * P > UNKNOWNS:
        raise ArithmeticError("the samples are too many for a linear program")
    x, y = _samples(objective)
    if len(x) * K * P > ENTRIES or len(x) * K * P**2 > PRODUCTS:
        raise ArithmeticError("the distinct samples are too many for a linear program")
    basis, to_theta = _basis(x, objective.bias)
    if basis.shape[1] == 0:  # every sample is 0, and so is every margin
        return None
    delta = _Program(basis, y, K).solve()
    return None if delta is None else (delta @ to_theta).to(objective.samples.device)


def _samples(objective: Objective) -> tuple[Tensor, Tensor]:
    """Return the distinct samples (m, D) of weight > 0 of all processes, and their classes (m,)."""
    samples, processes = objective.samples, objective.processes
    counted = objective.weights > 0
    rows = samples.rows(counted.nonzero()[:, 0], torch.float64)
    rows = torch.cat([objective.y[counted].double().unsqueeze(1), rows], 1)
    rows = torch.unique(processes.concatenated(rows), dim=0).cpu()
    return rows[:, 1:], rows[:, 0].long()


def _basis(x: Tensor, bias: bool) -> tuple[Tensor, Tensor]:
    """Return an orthogonal basis (n, R) of the columns of [x, 1], and the map (R, P) to theta.

    The logits basis @ d^T are the logits of theta = d @ map. If there is a bias, it is the last
    column of the map.
    """
    n, D = x.shape
    centre = x.mean(0) if bias else x.new_zeros(D)
    x = x - centre
    spread = x.square().mean(0).sqrt()
    scale = torch.where(spread > 0, spread, 1.0)
    x = torch.cat([x / scale, x.new_ones(n, bias)], 1)
    U, S, Vh = torch.linalg.svd(x, full_matrices=False)
    kept = S > RANK * S[:1]
    to_theta = Vh[kept] * (math.sqrt(n) / S[kept]).unsqueeze(1)
    to_theta[:, :D] /= scale
    if bias:
        to_theta[:, -1] -= to_theta[:, :D] @ centre
    return U[:, kept] * math.sqrt(n), to_theta


class _Program:
    """The linear program of samples x (n, R) with classes y (n,), K classes.

    Vectors over the rows of A are stored as (n, K), with 0 at k = y. The coefficients of the last
    class are fixed at 0, as margins depend on differences of classes alone.
    """

    def __init__(self, x: Tensor, y: Tensor, K: int) -> None:
        self.x, self.y, self.K = x, y, K
        self.own = torch.nn.functional.one_hot(y, K).bool()
        self.rows = [(y == k).nonzero()[:, 0] for k in range(K)]

    def margins(self, delta: Tensor) -> Tensor:
        """Return A delta (n, K)."""
        z = self.x @ delta.T
        return z.gather(1, self.y.unsqueeze(1)) - z

    def transposed(self, v: Tensor) -> Tensor:
        """Return A^T v (K, R)."""
        r = -v
        r[self.own] = v.sum(1)
        return r.T @ self.x

    def factored(self, v: Tensor) -> _Factored:
        """Return the factored matrix A^T diag(v) A, without the last class."""
        K, R = self.K, self.x.shape[1]
        M = v.new_zeros(K, K, R, R)
        for a, rows in enumerate(self.rows):
            x = self.x[rows]
            blocks = (v[rows].T.unsqueeze(2) * x).mT @ x  # (K, R, R)
            classes = torch.arange(K)
            M[classes, classes] += blocks
            M[a, a] += blocks.sum(0)
            M[a] -= blocks
            M[:, a] -= blocks
        M = M[:-1, :-1].transpose(1, 2).reshape((K - 1) * R, (K - 1) * R)
        return _Factored(M)

    def solve(self) -> Tensor | None:
        """Return delta (K, R) that separates, or None if there is none.

        Raises:
            ArithmeticError: Rounding prevents a proof of either.
        """
        others = (~self.own).double()
        count = 3 * float(others.sum())
        delta = self.x.new_zeros(self.K, self.x.shape[1])
        # The slacks are s = A delta - t, t and u = 1 - t. Their multipliers are lambda, mu and nu,
        # with lambda = 1 + mu - nu.
        slacks = torch.stack([START * others, others / 2, others / 2])
        multipliers = START * others.repeat(3, 1, 1)
        for _ in range(MAX_ITERATIONS):
            margins = self.margins(delta)
            grown, shrunk = float(margins.max()), -float(margins.min())
            if grown >= 1 and shrunk <= SEPARATED * grown:
                return delta
            if self._overlap(multipliers[0]):
                return None
            step = _NewtonStep(self, margins, slacks, multipliers)
            products = slacks * multipliers
            _, dx, dy = step.towards(-products)  # the predictor aims at products of 0
            p, q = min(1.0, _longest(slacks, dx)), min(1.0, _longest(multipliers, dy))
            mean = float(products.sum()) / count
            reached = float(((slacks + p * dx) * (multipliers + q * dy)).sum()) / count
            aim = mean * (reached / mean) ** 3
            d_delta, dx, dy = step.towards(aim * others - products - dx * dy)
            p = min(1.0, SHARE * _longest(slacks, dx))
            q = min(1.0, SHARE * _longest(multipliers, dy))
            delta, slacks, multipliers = delta + p * d_delta, slacks + p * dx, multipliers + q * dy
        raise ArithmeticError("rounding prevents a proof")

    def _overlap(self, lam: Tensor) -> bool:
        """Return whether lambda is above 0 everywhere after a change that makes A^T lambda 0."""
        v = self.factored(lam).solve(self.transposed(lam))
        c = self.margins(v)
        if not float(c.abs().max()) <= NEAR_ONE:
            return False
        left = self.transposed(lam * (1 - c)).abs()
        terms = lam.sum(1) @ self.x.abs()
        return bool((left <= BALANCED * terms).all())


class _NewtonStep:
    """Newton steps towards the equations of both programs and given products slack * multiplier.

    Eliminating dt and dlambda leaves the normal equations in d_delta.
    """

    def __init__(
        self, program: _Program, margins: Tensor, slacks: Tensor, multipliers: Tensor
    ) -> None:
        self.program, self.slacks, self.multipliers = program, slacks, multipliers
        (s, t, u), (lam, mu, nu), others = slacks, multipliers, (~program.own).double()
        # The residuals of the equations for s, u and lambda.
        self.residuals = margins - t - s, others - t - u, lam - others - mu + nu
        self.a, self.b = _divided(lam, s), _divided(mu, t) + _divided(nu, u)
        self.factored = program.factored(_divided(self.a * self.b, self.a + self.b))

    def towards(self, change: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the steps of delta, slacks and multipliers.

        Args:
            change: change of each product slack * multiplier (3, n, K), to first order.
        """
        (s, t, u), (lam, _, nu), a, b = self.slacks, self.multipliers, self.a, self.b
        r_s, r_u, r_lam = self.residuals
        f = _divided(change[0] - lam * r_s, s)
        e = _divided(change[1], t) - _divided(change[2] - nu * r_u, u) - r_lam
        sums = self.program.transposed(lam + _divided(b * f + a * e, a + b))
        d_delta = self.factored.solve(sums)
        grow = self.program.margins(d_delta)
        dt = _divided(a * grow - f + e, a + b)
        dx = torch.stack([grow - dt + r_s, dt, r_u - dt])
        return d_delta, dx, _divided(change - self.multipliers * dx, self.slacks)


class _Factored:
    """A symmetric positive semidefinite matrix, scaled to a diagonal of 1, with its factor.

    Raises:
        ArithmeticError: The matrix is too far from positive semidefinite to be factored.
    """

    def __init__(self, M: Tensor) -> None:
        self.matrix = M
        diagonal = M.diagonal()
        self.scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt()
        scaled = self.scale.unsqueeze(1) * M * self.scale
        ridge = FIRST_RIDGE
        while ridge <= LARGEST_RIDGE:
            scaled.diagonal().fill_(1 + ridge)
            self.factor, failed = torch.linalg.cholesky_ex(scaled)
            if not failed:
                return
            ridge *= 10
        raise ArithmeticError("a matrix of the linear program cannot be factored")

    def solve(self, b: Tensor) -> Tensor:
        """Return the solution (K, R) for a right-hand side (K, R), 0 for the last class."""
        right = b[:-1].reshape(-1, 1)
        solution, residual = torch.zeros_like(right), right
        scale = self.scale.unsqueeze(1)
        for _ in range(REFINEMENTS):
            solution = solution + scale * torch.cholesky_solve(scale * residual, self.factor)
            residual = right - self.matrix @ solution
        return torch.cat([solution.view(len(b) - 1, -1), torch.zeros_like(b[-1:])])


def _divided(a: Tensor, b: Tensor) -> Tensor:
    """Return a / b, and 0 where both are 0: at the entries of a sample's own class."""
    return torch.where(b == 0, 0.0, a / b)


def _longest(x: Tensor, dx: Tensor) -> float:
    """Return the length of a step at which the first entry of x + length dx becomes 0."""
    return 1 / max(float(_divided(-dx, x).max()), 1e-8)

"""Approximate inverses of the Hessian, from a sample of the rows.

With curvatures c_ik = w_i p_ik (1 - p_ik) the Hessian of the mean negative log-likelihood has on
its diagonal one block a class,

    G_k = 1/S sum_i c_ik [x_i, 1] [x_i, 1]^T        (P, P)

and -1/S sum_i w_i p_ik p_il [x_i, 1] [x_i, 1]^T off it. Four approximations, by what they cost:

``Full``       all of it; (K P)^2 numbers.
``Blocks``     the diagonal blocks G_k + l2; K P^2 numbers.
``Kronecker``  A x G + l2, with G weighted by 1 - sum_k p_ik^2 and A (K, K) the mean of
               diag p - p p^T scaled to trace 1; P^2 + K^2 numbers.
``Diagonal``   the diagonal of the blocks, + l2; K P numbers.

A block needs few rows: most c_ik are next to nothing, since most samples are far from most classes.
Rows are drawn for each class with probability min(1, s c_ik) and counted 1 / probability fold. At
the optimum of MNIST (C = 1, P = 785) the eigenvalues of the preconditioned Hessian lie within

    Kronecker, 6000 rows     0.14 to 11.4       20 steps of CG to 1e-4 of the error in F
    Blocks, 1500 a class     0.48 to 6.7         9
    Blocks, 3000 a class     0.50 to 3.0         6
    Blocks, 6000 a class     0.50 to 1.9         5

and 3000 rows a class take 0.28 s, the time of some ten passes.

All logits of a sample can be moved by the same amount without changing a probability. theta is kept
orthogonal to these directions, in which the Hessian is l2 and a block is not: the mean over the
classes is taken out of every result. (Without that convergence stalls at 1e-3 of F.)
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective

__all__ = ["Preconditioner", "Sketch", "sketch"]

Preconditioner = Callable[[Tensor], Tensor]
"""A gradient (K, P) in, about H^-1 times it out, float64; linear, symmetric, positive."""

ROWS = 3000
"""Rows drawn for a Gram matrix, at least."""

ROWS_PER_COLUMN = 4
"""Rows drawn for each of its columns, at least."""

POOL = 1 << 18
"""Rows that are drawn from, at most."""

GRAM_BYTES = 1 << 30
"""Memory of the Gram matrices, at most."""

FULL = 256
"""K P up to which the whole Hessian is used: at 650, digits, a fit takes 0.21 s so, and 0.08 s with
the blocks."""

CHEAP = 10**11
"""Multiplications and additions that always pay: half a second of two cores."""

PASSES = 60
"""The same in passes over the samples: a Gram matrix is multiplied three times as fast."""

RIDGE = 1e-7
"""Added to the diagonal of a Gram matrix, in units of its entries: constant and repeated columns
leave it singular where the penalty is small."""


class Sketch(Protocol):
    """The Hessian of the negative log-likelihood at one theta, without the penalty."""

    def inverse(self, l2: float) -> Preconditioner:
        """About (H + l2)^-1."""
        ...


def sketch(objective: Objective, theta: Tensor, generator: torch.Generator) -> Sketch:
    """The best approximation at theta that pays for its building, from half a pass."""
    K, P = objective.shape
    rows = _Rows(objective, theta, generator)
    if K * P <= FULL:
        return Full(rows)
    bits, n = torch.finfo(objective.samples.dtype).bits, objective.samples.n
    for grams, kind in ((K, Blocks), (1, Kronecker)):
        # products of x with itself, and a factorization
        work = grams * P * P * (1.25 * min(n, rows.wanted) + 2 * P)
        if grams * P * P * bits // 8 <= GRAM_BYTES and work <= max(CHEAP, PASSES * 4 * n * K * P):
            return kind(rows)
    return Diagonal(rows)


class _Rows:
    """Probabilities and weights of the rows to draw from, and the Gram matrices of what is drawn.

    Where there are several processes each draws from its own rows, and the matrices are added up.
    """

    def __init__(self, objective: Objective, theta: Tensor, generator: torch.Generator) -> None:
        self.objective, self.generator = objective, generator
        samples, (_, P) = objective.samples, objective.shape
        p, w = objective.probabilities(theta, samples.dtype), objective.weight
        self.pool: Tensor | None = None
        self.scale = 1 / objective.total
        if len(p) > POOL:
            self.pool = self.random(len(p)).argsort()[:POOL].sort().values
            self.scale *= len(p) / POOL
            p, w = p[self.pool], None if w is None else w[self.pool]
        self.p = p
        self.w = torch.ones_like(p[:, 0]) if w is None else w.to(p.dtype)
        self.wanted = max(ROWS, ROWS_PER_COLUMN * P)

    def random(self, n: int) -> Tensor:
        """n numbers in [0, 1) that do not depend on the device."""
        return torch.rand(n, generator=self.generator).to(self.objective.samples.device)

    def gram(self, c: Tensor) -> Tensor:
        """1/S sum_i c_i [x_i, 1] [x_i, 1]^T (P, P), from rows drawn by c."""
        x, drawn, factor = self.some(c)
        x *= (c[drawn] * factor).sqrt().unsqueeze(1)
        return self.objective.summed(_symmetric_product(x))

    def some(self, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Rows [x, 1] drawn by c, their numbers in p and w, and what each counts for, over S."""
        drawn, factor = self._draw(c)
        x = self.objective.samples.rows(drawn if self.pool is None else self.pool[drawn])
        if self.objective.bias:
            x = torch.cat([x, x.new_ones(len(x), 1)], 1)
        return x, drawn, factor * self.scale

    def _draw(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Ascending row numbers, about as many as wanted, and 1 / probability of each."""
        if len(c) <= self.wanted:
            return torch.arange(len(c), device=c.device), torch.ones_like(c)
        probability = c * (self.wanted / c.sum().clamp_min(torch.finfo(c.dtype).tiny))
        for _ in range(3):  # what is cut off at 1 goes to the others
            probability.clamp_max_(1)
            probability *= self.wanted / probability.sum().clamp_min(1)
        drawn = (self.random(len(c)) < probability).nonzero().squeeze(1)
        return drawn, probability[drawn].clamp_max(1).reciprocal()


class Full:
    """The Hessian, in float64."""

    def __init__(self, rows: _Rows) -> None:
        p, w, D = rows.p, rows.w, rows.objective.samples.d
        x, drawn, factor = rows.some(w * (1 - p.square().sum(1)))
        x, p = x.double(), p[drawn].double()
        root = (w[drawn] * factor).double().sqrt().unsqueeze(1)
        P, K = x.shape[1], p.shape[1]
        px = ((root * p).unsqueeze(2) * x.unsqueeze(1)).view(len(x), K * P)
        H = -(px.T @ px).view(K, P, K, P)
        for k in range(K):
            y = x * (root * p[:, k : k + 1].sqrt())
            H[k, :, k] += y.T @ y
        self.H, self.D, self.P = rows.objective.summed(H.view(K * P, K * P)), D, P

    def inverse(self, l2: float) -> Preconditioner:
        penalized = (torch.arange(len(self.H), device=self.H.device) % self.P) < self.D
        inverse = _inverse(self.H, l2 * penalized)
        return lambda g: _centred((inverse @ g.flatten()).view(g.shape))


class Blocks:
    """The diagonal blocks of the Hessian, one a class."""

    def __init__(self, rows: _Rows) -> None:
        p, w, self.D = rows.p, rows.w, rows.objective.samples.d
        # At theta = 0, where a fit begins, all blocks are the same.
        same = bool((p[:1] == p).all())
        first = [0] if same else range(p.shape[1])
        grams = torch.stack([rows.gram(w * p[:, k] * (1 - p[:, k])) for k in first])
        self.grams = grams.expand(p.shape[1], -1, -1) if same else grams

    def inverse(self, l2: float) -> Preconditioner:
        penalized = torch.arange(self.grams.shape[1], device=self.grams.device) < self.D
        inverses = [_inverse(gram, l2 * penalized) for gram in _distinct(self.grams)]
        K = len(self.grams)

        def apply(g: Tensor) -> Tensor:
            q = g.to(inverses[0].dtype)
            if len(inverses) == 1:
                d = q @ inverses[0]
            else:  # K products of 0.2 ms each at P = 785, where bmm takes 3.5
                d = torch.stack([inverses[k] @ q[k] for k in range(K)])
            return _centred(d.double())

        return apply


class Kronecker:
    """A x G, in the basis of its eigenvectors."""

    def __init__(self, rows: _Rows) -> None:
        p, w = rows.p, rows.w
        gram = rows.gram(w * (1 - p.square().sum(1)))
        A = rows.objective.summed(torch.diag(w @ p) - (p * w.unsqueeze(1)).T @ p)
        self.a, self.V = torch.linalg.eigh(A / A.trace())
        self.e, self.U = torch.linalg.eigh(gram)

    def inverse(self, l2: float) -> Preconditioner:
        spectrum = self.a.clamp_min(0).unsqueeze(1) * self.e.clamp_min(0)
        spectrum = spectrum + (l2 + RIDGE * spectrum.mean())

        def apply(g: Tensor) -> Tensor:
            q = g.to(self.U.dtype)
            return _centred((self.V @ ((self.V.T @ q @ self.U) / spectrum) @ self.U.T).double())

        return apply


class Diagonal:
    """The diagonal of the Hessian, from rows drawn by 1 - sum_k p_ik^2."""

    def __init__(self, rows: _Rows) -> None:
        p, w = rows.p, rows.w
        x, drawn, factor = rows.some(w * (1 - p.square().sum(1)))
        p, w = p[drawn], w[drawn] * factor
        self.diagonal = rows.objective.summed(((p * (1 - p)) * w.unsqueeze(1)).T @ x.square())

    def inverse(self, l2: float) -> Preconditioner:
        diagonal = self.diagonal + (l2 + RIDGE * self.diagonal.mean())
        return lambda g: _centred(g / diagonal)


def _centred(d: Tensor) -> Tensor:
    return d - d.mean(0)


def _distinct(grams: Tensor) -> Tensor:
    return grams[:1] if grams.stride(0) == 0 else grams


def _symmetric_product(x: Tensor) -> Tensor:
    """x^T x, by four strips of which each is multiplied up to the diagonal: 5/8 of the work."""
    P = x.shape[1]
    product = x.new_empty(P, P)
    edges = [P * i // 4 for i in range(5)]
    for start, end in pairwise(edges):
        strip = x[:, start:end].T @ x[:, :end]
        product[start:end, :end] = strip
        product[:start, start:end] = strip[:, :start].T
    return product


def _inverse(gram: Tensor, l2: Tensor) -> Tensor:
    """(gram + diag l2)^-1, with as much of a ridge as it takes to be positive.

    The ridge is in units of each diagonal entry, so that the scale of a column does not matter.
    """
    diagonal = gram.diagonal()
    unit = diagonal + RIDGE * (diagonal.mean() + torch.finfo(gram.dtype).tiny)
    ridge = RIDGE
    while True:
        shifted = gram.clone()
        shifted.diagonal().add_(l2 + ridge * unit)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if info.item() == 0:
            return torch.cholesky_inverse(factor)
        ridge *= 10

"""Approximate inverses of the Hessian, from drawn rows and the exact diagonal.

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
``rows`` draws them so that each column is represented, and scales each column to the diagonal that
all samples have, so that neither a rare column nor a badly scaled one is lost. At the optimum of
MNIST (C = 1, P = 785) the eigenvalues of the preconditioned Hessian lie within

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
from typing import Protocol

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective
from softmax_torch.solvers.rows import Rows, missing

__all__ = ["Preconditioner", "Sketch", "sketch", "sketch_of"]

Preconditioner = Callable[[Tensor], Tensor]
"""A gradient (K, P) in, about H^-1 times it out, float64; linear, symmetric, positive."""

GRAM_BYTES = 1 << 30
"""Memory of the Gram matrices, at most."""

FULL = 256
"""K P up to which the whole Hessian is used: at 650, digits, a fit takes 0.21 s so, and 0.08 s with
the blocks."""

ALL_ROWS = 5 * 10**9
"""Multiplications up to which the whole Hessian is summed over all rows: 50 ms of two cores."""

CHEAP = 10**11
"""Multiplications and additions that always pay: half a second of two cores."""

PASSES = 60
"""The same in passes over the samples: a Gram matrix is multiplied three times as fast."""

RIDGE = {torch.float32: 1e-7, torch.float64: 1e-9}
"""Added to a Gram matrix that is scaled to a diagonal of 1: constant and repeated columns leave it
singular where the penalty is small."""


class Sketch(Protocol):
    """The Hessian of the negative log-likelihood at one theta, without the penalty."""

    def inverse(self, l2: float) -> Preconditioner:
        """Return about (H + l2)^-1."""
        ...


def sketch(objective: Objective, theta: Tensor, generator: torch.Generator) -> Sketch:
    """Return the best approximation at theta that pays for its building."""
    return sketch_of(Rows(objective, theta, generator, objective.samples.dtype))


def sketch_of(rows: Rows, full: int = FULL) -> Sketch:
    """Return the best approximation that pays for its building, from these rows.

    Args:
        full: K P up to which it is the whole Hessian, if beyond ``FULL`` all rows are cheap.
    """
    objective = rows.objective
    K, P = objective.shape
    if K * P <= FULL or (K * P <= full and rows.n * (K * P) ** 2 <= ALL_ROWS):
        return Full(rows)
    bits, n = torch.finfo(objective.samples.dtype).bits, objective.samples.n
    for grams, kind in ((K, Blocks), (1, Kronecker)):
        # products of x with itself, and a factorization
        work = grams * P * P * (1.25 * min(n, rows.wanted) + 2 * P)
        if grams * P * P * bits // 8 <= GRAM_BYTES and work <= max(CHEAP, PASSES * 4 * n * K * P):
            return kind(rows)
    return Diagonal(rows)


class Full:
    """The Hessian, in float64, in units of the square roots of its diagonal."""

    def __init__(self, rows: Rows) -> None:
        K, P = rows.objective.shape
        if rows.n * (K * P) ** 2 <= ALL_ROWS:
            drawn = rows.all()
        else:
            c = rows.spread()
            leverage = rows.leverages(c.unsqueeze(1), rows.diagonal(c.unsqueeze(1)))[:, 0]
            drawn = rows.draw(c, leverage)
        H = rows.p.new_zeros(K * P, K * P, dtype=torch.float64)
        blocks = H.view(K, P, K, P)
        for part in drawn.split(K * P):
            x, p = rows.features(part.numbers).double(), rows.p[part.numbers].double()
            root = (rows.w[part.numbers] * part.factor).double().sqrt().unsqueeze(1)
            px = ((root * p).unsqueeze(2) * x.unsqueeze(1)).flatten(1)
            H -= px.T @ px
            for k in range(K):
                y = x * (root * p[:, k : k + 1].sqrt())
                blocks[k, :, k] += y.T @ y
        rows.objective.summed(H)
        self.scale = _scale(rows.diagonal(rows.curvatures)).flatten()
        H /= self.scale
        H /= self.scale.unsqueeze(1)
        H.diagonal().add_(missing(H.diagonal()))
        # Curvature for moving all classes alike, which decouples from what is centred.
        alike = self.scale.reciprocal().view(K, P)
        alike /= alike.norm(dim=0)
        blocks.diagonal(dim1=1, dim2=3).add_(alike * alike.unsqueeze(1))
        self.H, self.D, self.P = H, rows.objective.samples.d, P

    def inverse(self, l2: float) -> Preconditioner:
        penalized = (torch.arange(len(self.H), device=self.H.device) % self.P) < self.D
        inverse = _inverse(self.H, l2 * penalized / self.scale.square())

        def apply(g: Tensor) -> Tensor:
            d = inverse @ (g.flatten() / self.scale)
            return _centred((d / self.scale).view(g.shape))

        return apply


class Blocks:
    """The diagonal blocks of the Hessian, one a class, each scaled to a diagonal of 1."""

    def __init__(self, rows: Rows) -> None:
        self.D, c = rows.objective.samples.d, rows.curvatures
        if bool((rows.p[:, :1] == rows.p).all()):
            c = c[:, :1]  # at theta = 0, where a fit begins, all blocks are the same
        diagonal = rows.diagonal(c)
        self.scale = _scale(diagonal)
        leverages = rows.leverages(c, diagonal)
        self.grams = [
            rows.gram(c_k, scale, leverage)
            for c_k, scale, leverage in zip(c.T, self.scale, leverages.T, strict=True)
        ]

    def inverse(self, l2: float) -> Preconditioner:
        penalized = torch.arange(self.scale.shape[1], device=self.scale.device) < self.D
        inverses = [
            _inverse(gram, l2 * penalized / scale.square())
            for gram, scale in zip(self.grams, self.scale, strict=True)
        ]

        def apply(g: Tensor) -> Tensor:
            q = (g / self.scale).to(inverses[0].dtype)
            if len(inverses) == 1:
                d = q @ inverses[0]
            else:  # K products of 0.2 ms each at P = 785, where bmm takes 3.5
                d = torch.stack([inverse @ q_k for inverse, q_k in zip(inverses, q, strict=True)])
            return _centred(d.double() / self.scale)

        return apply


class Kronecker:
    """A x G, in the basis of the eigenvectors of A and of G scaled to a diagonal of 1."""

    def __init__(self, rows: Rows) -> None:
        p, w, c = rows.p, rows.w, rows.spread()
        A = rows.objective.summed(torch.diag(w @ p) - (p * w.unsqueeze(1)).T @ p)
        self.a, self.V = torch.linalg.eigh(A / A.trace())
        diagonal = rows.diagonal(c.unsqueeze(1))
        self.scale = _scale(diagonal)[0]
        gram = rows.gram(c, self.scale, rows.leverages(c.unsqueeze(1), diagonal)[:, 0])
        self.e, self.U = torch.linalg.eigh(gram)
        # The penalty of an eigenvector u of the scaled G: u is in units of the scale.
        penalized = torch.arange(len(gram), device=gram.device) < rows.objective.samples.d
        self.penalty = (penalized / self.scale.square()).to(self.U.dtype) @ self.U.square()

    def inverse(self, l2: float) -> Preconditioner:
        spectrum = self.a.clamp_min(0).unsqueeze(1) * self.e.clamp_min(0)
        spectrum = spectrum + (l2 * self.penalty + RIDGE[self.U.dtype] * spectrum.mean())

        def apply(g: Tensor) -> Tensor:
            q = (g / self.scale).to(self.U.dtype)
            d = self.V @ ((self.V.T @ q @ self.U) / spectrum) @ self.U.T
            return _centred(d.double() / self.scale)

        return apply


class Diagonal:
    """The diagonal of the Hessian, from half a pass over all samples."""

    def __init__(self, rows: Rows) -> None:
        self.diagonal, self.D = rows.diagonal(rows.curvatures), rows.objective.samples.d

    def inverse(self, l2: float) -> Preconditioner:
        diagonal = self.diagonal.clone()
        diagonal[:, : self.D] += l2
        diagonal = torch.where(diagonal > 0, diagonal, 1.0)
        return lambda g: _centred(g / diagonal)


def _centred(d: Tensor) -> Tensor:
    return d - d.mean(0)


def _scale(diagonal: Tensor) -> Tensor:
    """Return the square roots of a diagonal, 1 where a column is all zeros."""
    return torch.where(diagonal > 0, diagonal, 1.0).sqrt()


def _inverse(gram: Tensor, l2: Tensor) -> Tensor:
    """Return (gram + diag l2)^-1 of a Gram matrix with a diagonal of about 1.

    A ridge is added, and made larger until the sum is positive definite to rounding; a multiple of
    the identity that exceeds the trace always is.
    """
    ridge = RIDGE[gram.dtype]
    while ridge < 10 * len(gram):
        shifted = gram.clone()
        shifted.diagonal().add_(l2 + ridge)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if info.item() == 0:
            return torch.cholesky_inverse(factor)
        ridge *= 10
    raise AssertionError("a Gram matrix holds NaN or infinity; inputs are checked for these")

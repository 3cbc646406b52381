"""Preconditioners: approximate inverses of the Hessian, from drawn rows and the exact diagonal.

With curvatures c_ik = w_i p_ik (1 - p_ik) the Hessian of the mean negative log-likelihood has one
block per class on its diagonal,

    G_k = 1/S sum_i c_ik [x_i, 1] [x_i, 1]^T        (P, P)

and blocks -1/S sum_i w_i p_ik p_il [x_i, 1] [x_i, 1]^T off the diagonal. There are four
approximations of it (sketches), from the most to the least expensive:

``Full``       the whole Hessian; (K P)^2 numbers.
``Blocks``     the diagonal blocks G_k + l2; K P^2 numbers.
``Kronecker``  A x G + l2, with G weighted by 1 - sum_k p_ik^2 and A (K, K) the mean of
               diag p - p p^T scaled to trace 1; P^2 + K^2 numbers.
``Diagonal``   the diagonal of the blocks, + l2; K P numbers.

A block needs few rows: most c_ik are almost 0, since most samples are far from most classes.
``SampledHessian`` draws rows such that each column is represented, and each column is scaled to its
diagonal entry over all samples, so that neither rare nor badly scaled columns are lost. At the
optimum of MNIST (C = 1, P = 785) the eigenvalues of the preconditioned Hessian lie within

    Kronecker, 6000 rows     0.14 to 11.4       20 steps of CG to 1e-4 of the error in F
    Blocks, 1500 a class     0.48 to 6.7         9
    Blocks, 3000 a class     0.50 to 3.0         6
    Blocks, 6000 a class     0.50 to 1.9         5

and 3000 rows a class take 0.28 s, the time of ten passes by matrix products or thirty native ones.
(2000 are drawn.)

Adding the same number to all logits of a sample changes no probability. In these directions the
Hessian is l2, but a block is not. theta is kept orthogonal to them: the mean over the classes is
subtracted from every result. (Without this, convergence stalls at 1e-3 of F.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective
from softmax_torch.solvers.sampled_hessian import ALL_ROWS, SampledHessian, shortfall

__all__ = ["Preconditioner", "Sketch", "sketch", "sketch_of"]

Preconditioner = Callable[[Tensor], Tensor]
"""A function from g (K, P) to approximately H^-1 g, float64; linear, symmetric, positive."""

GRAM_BYTES = 1 << 30
"""Memory of the Gram matrices, at most."""

WHOLE_HESSIAN = 256
"""K P up to which the whole Hessian is used. On digits (K P = 650) a fit takes 0.21 s with the
whole Hessian and 0.08 s with the blocks."""

CHEAP_SKETCH = 10**11
"""Multiplications and additions up to which a sketch is always built: half a second on two
cores."""

PASSES = 60
"""Cost of a sketch, in passes over the samples, up to which it is built. The products of a Gram
matrix are three times as fast as those of a pass."""

GRAM_RIDGE = {torch.float32: 1e-7, torch.float64: 1e-9}
"""Added to the diagonal of a Gram matrix that is scaled to a diagonal of 1: constant and repeated
columns make it singular where the penalty is small."""


class Sketch(Protocol):
    """An approximation of the Hessian of the mean NLL at one theta, without the penalty."""

    def inverse(self, l2: float) -> Preconditioner:
        """Return approximately (H + l2)^-1, with l2 on the weights and not on the bias."""
        ...


def sketch(objective: Objective, theta: Tensor, seed: int) -> Sketch:
    """Return the most accurate sketch at theta that is worth its cost."""
    return sketch_of(SampledHessian(objective, theta, seed, objective.samples.dtype))


def sketch_of(sampled: SampledHessian, full: int = WHOLE_HESSIAN) -> Sketch:
    """Return the most accurate sketch that is worth its cost.

    Args:
        full: K P up to which it is the whole Hessian. Above ``WHOLE_HESSIAN`` only if a sum over
            all rows is cheap.
    """
    objective = sampled.objective
    K, P = objective.shape
    if K * P <= WHOLE_HESSIAN or (K * P <= full and sampled.n * (K * P) ** 2 <= ALL_ROWS):
        return Full(sampled)
    bits, n = torch.finfo(objective.samples.dtype).bits, objective.samples.n
    for grams, kind in ((K, Blocks), (1, Kronecker)):
        # products of x with itself, and a factorization
        work = grams * P * P * (1.25 * min(n, sampled.rows_to_draw) + 2 * P)
        if grams * P * P * bits // 8 <= GRAM_BYTES and work <= max(
            CHEAP_SKETCH, PASSES * 4 * n * K * P
        ):
            return kind(sampled)
    return Diagonal(sampled)


class Full:
    """The whole Hessian, in float64, in units of the square roots of its diagonal."""

    def __init__(self, sampled: SampledHessian) -> None:
        K, P = sampled.objective.shape
        H = sampled.whole()
        self.scale = _scale(sampled.diagonal(sampled.curvatures)).flatten()
        H /= self.scale
        H /= self.scale.unsqueeze(1)
        H.diagonal().add_(shortfall(H.diagonal()))
        # H is 0 in directions that move all classes alike. Curvature is added there; all centred
        # directions are orthogonal to them.
        alike = self.scale.reciprocal().view(K, P)
        alike /= alike.norm(dim=0)
        H.view(K, P, K, P).diagonal(dim1=1, dim2=3).add_(alike * alike.unsqueeze(1))
        self.H, self.D, self.P = H, sampled.objective.samples.d, P

    def inverse(self, l2: float) -> Preconditioner:
        penalized = (torch.arange(len(self.H), device=self.H.device) % self.P) < self.D
        inverse = _inverse(self.H, l2 * penalized / self.scale.square())

        def apply(g: Tensor) -> Tensor:
            d = inverse @ (g.flatten() / self.scale)
            return _centred((d / self.scale).view(g.shape))

        return apply


class Blocks:
    """The diagonal blocks of the Hessian, one per class, each scaled to a diagonal of 1.

    Columns that are 0 in all samples are left out of the blocks. They are 67 of 784 on MNIST, and
    cost a sixth of the products and a quarter of the factors.
    """

    def __init__(self, sampled: SampledHessian) -> None:
        self.D, c = sampled.objective.samples.d, sampled.curvatures
        if bool((sampled.p[:, :1] == sampled.p).all()):
            c = c[:, :1]  # at theta = 0, where a fit begins, all blocks are the same
        diagonal = sampled.diagonal(c)
        self.scale = _scale(diagonal)
        used = (diagonal > 0).any(0)
        self.columns = None if used.all() else used.nonzero().squeeze(1)
        leverages = sampled.leverages(c, diagonal)
        self.grams = [
            sampled.block(c_k, scale, leverage, self.columns)
            for c_k, scale, leverage in zip(c.T, self.scale, leverages.T, strict=True)
        ]

    def inverse(self, l2: float) -> Preconditioner:
        columns = self.columns
        penalized = torch.arange(self.scale.shape[1], device=self.scale.device) < self.D
        scales = self.scale if columns is None else self.scale[:, columns]
        penalized = penalized if columns is None else penalized[columns]
        inverses = [
            _inverse(gram, l2 * penalized / scale.square())
            for gram, scale in zip(self.grams, scales, strict=True)
        ]

        def apply_to_used(g: Tensor) -> Tensor:
            q = (g / scales).to(inverses[0].dtype)
            if len(inverses) == 1:
                d = q @ inverses[0]
            else:  # K products of 0.2 ms each at P = 785, where bmm takes 3.5
                d = torch.stack([inverse @ q_k for inverse, q_k in zip(inverses, q, strict=True)])
            return d.double() / scales

        def apply(g: Tensor) -> Tensor:
            if columns is None:
                return _centred(apply_to_used(g))
            d = g / l2 if l2 > 0 else g.clone()  # the Hessian is l2 alone where a column is 0
            d[:, columns] = apply_to_used(g[:, columns])
            return _centred(d)

        return apply


class Kronecker:
    """A x G, in the basis of the eigenvectors of A and of G scaled to a diagonal of 1."""

    def __init__(self, sampled: SampledHessian) -> None:
        p, w, c = sampled.p, sampled.w, sampled.row_curvatures()
        A = sampled.objective.summed(torch.diag(w @ p) - (p * w.unsqueeze(1)).T @ p)
        self.a, self.V = torch.linalg.eigh(A / A.trace())
        diagonal = sampled.diagonal(c.unsqueeze(1))
        self.scale = _scale(diagonal)[0]
        gram = sampled.block(c, self.scale, sampled.leverages(c.unsqueeze(1), diagonal)[:, 0])
        self.e, self.U = torch.linalg.eigh(gram)
        # Probabilities may be float64 beside a Gram matrix in float32, the dtype of the samples.
        self.a, self.V = self.a.to(self.U.dtype), self.V.to(self.U.dtype)
        # The penalty of an eigenvector u of the scaled G: u is in units of the scale.
        penalized = torch.arange(len(gram), device=gram.device) < sampled.objective.samples.d
        self.penalty = (penalized / self.scale.square()).to(self.U.dtype) @ self.U.square()

    def inverse(self, l2: float) -> Preconditioner:
        spectrum = self.a.clamp_min(0).unsqueeze(1) * self.e.clamp_min(0)
        spectrum = spectrum + (l2 * self.penalty + GRAM_RIDGE[self.U.dtype] * spectrum.mean())

        def apply(g: Tensor) -> Tensor:
            q = (g / self.scale).to(self.U.dtype)
            d = self.V @ ((self.V.T @ q @ self.U) / spectrum) @ self.U.T
            return _centred(d.double() / self.scale)

        return apply


class Diagonal:
    """The diagonal of the Hessian, from half a pass over all samples."""

    def __init__(self, sampled: SampledHessian) -> None:
        self.diagonal = sampled.diagonal(sampled.curvatures)
        self.D = sampled.objective.samples.d

    def inverse(self, l2: float) -> Preconditioner:
        diagonal = self.diagonal.clone()
        diagonal[:, : self.D] += l2
        diagonal = torch.where(diagonal > 0, diagonal, 1.0)
        return lambda g: _centred(g / diagonal)


def _centred(d: Tensor) -> Tensor:
    return d - d.mean(0)


def _scale(diagonal: Tensor) -> Tensor:
    """Return the square roots of a diagonal, and 1 where a column is all zeros."""
    return torch.where(diagonal > 0, diagonal, 1.0).sqrt()


def _inverse(gram: Tensor, l2: Tensor) -> Tensor:
    """Return (gram + diag l2)^-1 of a Gram matrix with a diagonal of about 1.

    A ridge is added and increased until the sum is positive definite in spite of rounding. A ridge
    above the trace always suffices.
    """
    ridge = GRAM_RIDGE[gram.dtype]
    while ridge < 10 * len(gram):
        shifted = gram.clone()
        shifted.diagonal().add_(l2 + ridge)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if info.item() == 0:
            return torch.cholesky_inverse(factor)
        ridge *= 10
    raise AssertionError("a Gram matrix holds NaN or infinity; inputs are checked for these")

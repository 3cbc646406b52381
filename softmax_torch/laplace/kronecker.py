"""The Kronecker-factored posterior: H ~ B (x) A + tau I, in the eigenbases of A and B.

    B = sum_i w_i (diag p_i - p_i p_i^T) / sum_i w_i = U diag(mu) U^T     (C, C)
    A = sum_i w_i phi_i phi_i^T                      = V diag(lambda) V^T     (P, P)

    H^-1 = (U (x) V) diag(1 / (mu_k lambda_d + tau)) (U (x) V)^T

is exact for a product plus a multiple of the identity (Daxberger et al. 2021, "Laplace Redux -
Effortless Bayesian Deep Learning", appendix C). phi = [x - mean x, 1] makes A block diagonal: the
bias is one more direction with eigenvalue sum_i w_i. Without a bias phi = x. With q = V^T phi(x),

    S(x)    = U diag(s) U^T,    s_k = sum_d R_dk q_d^2,    R_dk = 1 / (mu_k lambda_d + tau)
    S(x)_cc = sum_d M_dc q_d^2,                            M_dc = sum_k R_dk U_ck^2

so that all variances of a sample take O(D^2 + C D) operations, a draw of its logits O(C^2), and
nothing larger than C x C, C x P or P x P is ever made.

The off-diagonal of B is that of -P^T P, and its rows sum to 0. Taking the diagonal from these sums
keeps the digits of p (1 - p), and the vector 1 an exact null vector. Adding (2 trace B / C) 1 1^T
moves its eigenvalue from 0 to 2 trace B, above all others; this last eigenvector is dropped.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from softmax_torch.laplace.posterior import Posterior, Sampler
from softmax_torch.laplace.training_samples import Head, Samples

__all__ = ["KroneckerPosterior"]


@dataclass(eq=False)
class KroneckerPosterior(Posterior):
    """The posterior with these factors.

    Attributes:
        U: eigenvectors of B (C, C - 1), without 1 / sqrt(C).
        mu: their eigenvalues (C - 1,), >= 0.
        V: eigenvectors of the scatter of x (D, D).
        eigenvalues: lambda of A (P,), the bias last.
        mean: mean of x (D,); 0 without a bias.
        prior_precision: tau.
    """

    structure: ClassVar = "kronecker"
    tensors: ClassVar = ("U", "mu", "V", "eigenvalues", "mean")

    U: Tensor
    mu: Tensor
    V: Tensor
    eigenvalues: Tensor
    mean: Tensor
    prior_precision: float
    R: Tensor = field(init=False, repr=False)
    M: Tensor = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compute the variances R (P, C - 1) in the eigenbasis, and M (P, C)."""
        R = 1 / (torch.outer(self.eigenvalues.double(), self.mu.double()) + self.prior_precision)
        self.M = (R @ self.U.double().square().T).to(self.U)
        self.R = R.to(self.U)

    @classmethod
    def fit(cls, head: Head, batches: Iterable[Samples], prior_precision: float) -> Self:
        """Return the posterior for these training samples; see ``laplace.fit``."""
        C, D = head.weight.shape
        products, scatter = (head.weight.new_zeros(size, size) for size in (C, D))
        mean, total = head.weight.new_zeros(D), 0.0
        for x, p, w in batches:
            products.addmm_(p.T, p * w.unsqueeze(1))
            size = float(w.sum())
            if head.bias is not None:
                # Scatter around the mean of the samples so far (Chan et al. 1979, "Updating
                # Formulae and a Pairwise Algorithm for Computing Sample Variances"): no digits are
                # lost where the mean is large.
                mean_b = w @ x / size
                step = mean_b - mean
                scatter.addr_(step, step, alpha=total * size / (total + size))
                mean = mean + step * (size / (total + size))
                x = x - mean_b
            scatter.addmm_(x.T, x * w.unsqueeze(1))
            total += size
        B = -products.fill_diagonal_(0) / total
        B.diagonal().copy_(-B.sum(1))
        mu, U = torch.linalg.eigh(B + (2 * float(B.trace()) or 1.0) / C)
        values, V = torch.linalg.eigh(scatter)
        if head.bias is not None:
            values = torch.cat([values, values.new_tensor([total])])
        return cls(
            U[:, :-1].contiguous(),
            mu[:-1].clamp_min(0),
            V.contiguous(),
            values.clamp_min(0),
            mean,
            prior_precision,
        )

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.U)

    @property
    def in_features(self) -> int:
        """D, the number of features."""
        return len(self.V)

    def covariance(self, x: Tensor) -> Tensor:
        """Return the covariances (n, C, C) of the centred logits of features x (n, D)."""
        s = self._squares(x) @ self.R
        return (self.U * s.unsqueeze(1)) @ self.U.T

    def variances(self, x: Tensor) -> Tensor:
        """Return the variances (n, C) of the centred logits: the diagonals of ``covariance``."""
        return self._squares(x) @ self.M

    def sampler(self, draws: int, generator: torch.Generator) -> Sampler:
        """Return a function that draws deviations of logits, the same numbers at each call."""
        shape = draws, self.num_classes - 1
        noise = torch.randn(shape, generator=generator, dtype=torch.float64).to(self.U)

        def deviations(x: Tensor) -> Tensor:
            s = self._squares(x) @ self.R
            return (noise * s.sqrt().unsqueeze(1)) @ self.U.T

        return deviations

    def numbers_a_sample(self) -> int:
        """Return how many values the intermediate results have for one sample."""
        return max(self.num_classes, self.in_features + 1)

    def _squares(self, x: Tensor) -> Tensor:
        """Return q^2 (n, P) of features x (n, D)."""
        q = (x - self.mean) @ self.V
        if len(self.eigenvalues) > self.in_features:
            q = F.pad(q, (0, 1), value=1.0)
        return q.square()

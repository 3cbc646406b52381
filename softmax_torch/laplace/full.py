"""The full posterior: the inverse of H itself, for few classes and features.

    H = sum_i w_i (diag p_i - p_i p_i^T) (x) phi_i phi_i^T + tau I,    phi = [x - mean x, 1]

in an orthonormal basis Q (C, C - 1) of the vectors over classes that sum to 0: theta = Q eta, and

    Cov(eta) = ((Q^T (x) I) H (Q (x) I))^-1        ((C - 1) P, (C - 1) P)
    S(x)     = Q (phi^T Cov(eta)_kl phi)_kl Q^T

is the covariance of the centred logits of a sample. The prior is tau I in this basis too.
With G_kl = sum_i w_i p_ik p_il phi_i phi_i^T the blocks of the Hessian are -G_kl off the diagonal,
and sum_{l != k} G_kl on it, which keeps the digits of p (1 - p).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn import functional as F

from softmax_torch.laplace.posterior import Posterior, Sampler
from softmax_torch.laplace.training_samples import Head, Samples

__all__ = ["LARGEST", "FullPosterior", "check_size"]

LARGEST = 4096
"""Largest number of coefficients, (C - 1) P: a covariance of 128 MiB."""

NUMBERS = 1 << 23
"""Largest number of products p_k phi_d of the samples that are worked on together: 64 MiB."""


@dataclass(eq=False)
class FullPosterior(Posterior):
    """The posterior with this covariance.

    Attributes:
        coefficients: covariance of eta ((C - 1) P, (C - 1) P), row by row.
        basis: Q (C, C - 1).
        mean: mean of x (D,); 0 without a bias.
        prior_precision: tau.
    """

    structure: ClassVar = "full"
    tensors: ClassVar = ("coefficients", "basis", "mean")

    coefficients: Tensor
    basis: Tensor
    mean: Tensor
    prior_precision: float

    @classmethod
    def fit(cls, head: Head, batches: Iterable[Samples], prior_precision: float) -> Self:
        """Return the posterior for these training samples; see ``laplace.fit``."""
        H, mean = _hessian(head, batches)
        C, P = H.shape[:2]
        Q, size = _helmert(C), (C - 1) * P
        reduced = torch.einsum("kplq,ka,lb->apbq", H, Q, Q).reshape(size, size)
        reduced.diagonal().add_(prior_precision)
        covariance = torch.cholesky_inverse(torch.linalg.cholesky(reduced))
        return cls(covariance, Q, mean, prior_precision)

    @property
    def num_classes(self) -> int:
        """C, the number of classes."""
        return len(self.basis)

    @property
    def in_features(self) -> int:
        """D, the number of features."""
        return len(self.mean)

    @property
    def _columns(self) -> int:
        """P, the number of coefficients of a class."""
        return len(self.coefficients) // (self.num_classes - 1)

    def covariance(self, x: Tensor) -> Tensor:
        """Return the covariances (n, C, C) of the centred logits of features x (n, D)."""
        K, P = self.num_classes - 1, self._columns
        phi = self._phi(x)
        blocks = self.coefficients.view(K, P, K, P).permute(1, 3, 0, 2).reshape(P * P, K * K)
        S = (phi.unsqueeze(2) * phi.unsqueeze(1)).flatten(1) @ blocks
        return self.basis @ S.view(-1, K, K) @ self.basis.T

    def variances(self, x: Tensor) -> Tensor:
        """Return the variances (n, C) of the centred logits: the diagonals of ``covariance``."""
        return self.covariance(x).diagonal(dim1=1, dim2=2)

    def sampler(self, draws: int, generator: torch.Generator) -> Sampler:
        """Return a function that draws deviations of logits, the same weights at each call."""
        K, P = self.num_classes - 1, self._columns
        noise = torch.randn(draws, K * P, generator=generator, dtype=torch.float64)
        factor = torch.linalg.cholesky(self.coefficients.double())
        eta = noise.to(factor) @ factor.T
        theta = (self.basis @ eta.to(self.basis).view(draws, K, P)).flatten(0, 1)

        def deviations(x: Tensor) -> Tensor:
            z: Tensor = self._phi(x) @ theta.T
            return z.view(len(x), draws, -1)

        return deviations

    def numbers_a_sample(self) -> int:
        """Return how many values the intermediate results have for one sample."""
        return max(self._columns**2, self.num_classes**2)

    def _phi(self, x: Tensor) -> Tensor:
        """Return phi (n, P) of features x (n, D)."""
        x = x - self.mean
        return F.pad(x, (0, 1), value=1.0) if self._columns > self.in_features else x


def check_size(C: int, P: int) -> None:
    """Raise ValueError if C classes of P coefficients are too many for a full posterior."""
    if (C - 1) * P > LARGEST:
        raise ValueError(
            f"structure: expected at most {LARGEST} coefficients for a full posterior, got "
            f"{C} classes of {P}: the Hessian would take {8 * (C * P) ** 2 / 2**30:.3g} GiB; "
            'use the structure "kronecker"'
        )


def _hessian(head: Head, batches: Iterable[Samples]) -> tuple[Tensor, Tensor]:
    """Return the Hessian of the NLL (C, P, C, P) and the mean of x (D,), 0 without a bias."""
    C, D = head.weight.shape
    with_bias = head.bias is not None
    P = D + with_bias
    products = head.weight.new_zeros(C * P, C * P)
    origin, mean, total = head.weight.new_zeros(D), head.weight.new_zeros(D), 0.0
    for x, p, w in batches:
        if with_bias and total == 0:
            origin = x.mean(0)  # near the mean, which is known at the end
        phi = torch.cat([x - origin, x.new_ones(len(x), 1)], 1) if with_bias else x
        total += float(w.sum())
        mean += w @ (x - origin)
        for rows in torch.split(torch.arange(len(x)), max(1, NUMBERS // (C * P))):
            px = (p[rows].unsqueeze(2) * phi[rows].unsqueeze(1)).flatten(1)
            products.addmm_(px.T, px * w[rows].unsqueeze(1))
    G = products.view(C, P, C, P)
    if with_bias:
        mean /= total
        centring = torch.eye(P, dtype=G.dtype)
        centring[:-1, -1] = -mean  # from [x - origin, 1] to [x - mean, 1]
        G = torch.einsum("kplq,rp,sq->krls", G, centring, centring)
        mean = mean + origin
    else:
        mean = torch.zeros_like(mean)
    classes = torch.arange(C)
    G[classes, :, classes] = 0
    diagonal = G.sum(2)  # (C, P, P)
    H = -G
    H[classes, :, classes] = diagonal
    return H, mean


def _helmert(C: int) -> Tensor:
    """Return an orthonormal basis (C, C - 1) of the vectors that sum to 0, float64."""
    k = torch.arange(1, C, dtype=torch.float64)
    below = torch.ones(C, C - 1, dtype=torch.float64).triu()
    below[range(1, C), range(C - 1)] = -k
    return below / (k * (k + 1)).sqrt()

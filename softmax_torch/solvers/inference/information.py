"""The information matrix of softmax regression and its inverse.

For gamma_k = theta_k - theta_r relative to a class r, the Hessian of minus the log-likelihood
sum_i w_i log p_{i,y_i} is the (observed and expected) information

    H_{kl} = sum_i w_i p_ik ([k = l] - p_il) [x_i, 1] [x_i, 1]^T           k, l != r

(Agresti 2013, "Categorical Data Analysis", 8.1). It is positive definite unless columns are
collinear or probabilities vanish.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.inference.weighted_grams import WeightedGrams
from softmax_torch.solvers.objective import Objective
from softmax_torch.solvers.samples import Samples

__all__ = [
    "ROWS_AT_A_TIME",
    "dense_rows",
    "factored",
    "from_pairs",
    "information",
    "inverse",
    "pairs",
    "rows_of",
    "solve",
]

ROWS_AT_A_TIME = 1024
"""Rows that are multiplied at a time; with many classes each takes K - 1 times its own memory."""

MOST_CLASSES = 64
"""Classes up to which the sums of all pairs of classes are formed: a quarter of the products of the
rows times all probabilities, but K (K - 1) / 2 weights for each row."""


def information(objective: Objective, theta: Tensor, r: int) -> Tensor:
    """Return the information H (R P, R P) relative to class r at theta, from one pass.

    Rows and columns are class by class, and belong to the samples of ``objective``: minus its
    offset, if it has one.
    """
    K, P = objective.shape
    p = objective.probabilities(theta, torch.float64)
    if K > MOST_CLASSES:
        return _information_by_classes(objective, p, r)
    first, second = pairs(K, p.device)
    sums, w = WeightedGrams(len(first), P, p.device), objective.weights.unsqueeze(1)
    for x, at in rows_of(objective):
        sums.add(x, p[at][:, first] * p[at][:, second] * w[at])
    return from_pairs(objective.summed(sums.result()).mul_(objective.unit), K, r)


def _information_by_classes(objective: Objective, p: Tensor, r: int) -> Tensor:
    """Return H from one product of the rows times all probabilities, for p (n, K)."""
    K, P = objective.shape
    p = p[:, [k for k in range(K) if k != r]]
    diagonal, w = WeightedGrams(K - 1, P, p.device), objective.weights.unsqueeze(1)
    H = p.new_zeros((K - 1) * P, (K - 1) * P)
    for x, at in rows_of(objective):
        px = ((w[at].sqrt() * p[at]).unsqueeze(2) * x.unsqueeze(1)).flatten(1)
        H.addmm_(px.T, px, alpha=-1)
        diagonal.add(x, w[at] * p[at])
    H.view(K - 1, P, K - 1, P).diagonal(dim1=0, dim2=2).add_(diagonal.result().permute(1, 2, 0))
    return objective.summed(H).mul_(objective.unit)


def pairs(K: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the classes k < l of all pairs."""
    first, second = torch.triu_indices(K, K, 1, device=device)
    return first, second


def from_pairs(sums: Tensor, K: int, r: int) -> Tensor:
    """Return H (..., R P, R P) relative to class r from the sums of all pairs (..., M, P, P).

    The sum of a pair is sum_i w_i p_ik p_il x_i x_i^T. It is minus the block k, l of H; a block
    k, k is the sum of all pairs with k, as 1 - p_k is the sum of the other probabilities.
    """
    *batch, _, P, _ = sums.shape
    whole = sums.new_zeros(*batch, K, K, P, P)
    first, second = pairs(K, sums.device)
    whole[..., first, second, :, :] = sums
    whole[..., second, first, :, :] = sums
    diagonal = whole.sum(-3)
    whole.neg_()
    whole[..., range(K), range(K), :, :] = diagonal
    others = [k for k in range(K) if k != r]
    kept = whole[..., others, :, :, :][..., others, :, :].transpose(-3, -2)
    return kept.reshape(*batch, (K - 1) * P, (K - 1) * P)


def rows_of(objective: Objective) -> Iterator[tuple[Tensor, slice]]:
    """Yield ``dense_rows`` of the samples of the objective.

    x is the sample minus ``objective.offset``, if there is one.
    """
    return dense_rows(objective.samples, objective.bias)


def dense_rows(samples: Samples, bias: bool) -> Iterator[tuple[Tensor, slice]]:
    """Yield pieces [x, 1] (B, P) of the samples, float64, each with its slice of the rows."""
    for at, block in samples.blocks():
        dense = block.dense()
        if bias:
            dense = torch.cat([dense, dense.new_ones(len(dense), 1)], 1)
        for start in range(0, len(dense), ROWS_AT_A_TIME):
            x = dense[start : start + ROWS_AT_A_TIME]
            yield x, slice(at.start + start, at.start + start + len(x))


class Factored(NamedTuple):
    """The Cholesky factor (q, q) of H scaled to a diagonal of 1, and the scale (q,)."""

    factor: Tensor
    scale: Tensor

    def inverse(self) -> Tensor:
        """Return H^-1."""
        return torch.cholesky_inverse(self.factor).div_(self.scale).div_(self.scale.unsqueeze(1))


def factored(H: Tensor) -> Factored | None:
    """Return the Cholesky factor of H; None if H is singular up to rounding."""
    scale = H.diagonal().sqrt()
    factor, info = torch.linalg.cholesky_ex((H / scale).div_(scale.unsqueeze(1)))
    return Factored(factor, scale) if info.item() == 0 else None


def inverse(H: Tensor) -> Tensor:
    """Return H^-1; raise ValueError if H is singular up to rounding."""
    return _regular(H).inverse()


def solve(H: Tensor, b: Tensor) -> Tensor:
    """Return H^-1 b for b (q,); raise ValueError if H is singular up to rounding."""
    factor, scale = _regular(H)
    return torch.cholesky_solve((b / scale).unsqueeze(1), factor).squeeze(1) / scale


def _regular(H: Tensor) -> Factored:
    found = factored(H)
    if found is None:
        raise ValueError(
            "X, y: expected samples that determine the coefficients, got an information matrix "
            "that is singular up to rounding; drop columns that hardly vary or repeat others"
        )
    return found

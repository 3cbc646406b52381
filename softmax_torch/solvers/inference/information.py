"""The information matrix of softmax regression, its inverse, and columns that make it singular.

For gamma_k = theta_k - theta_r relative to a class r, the Hessian of minus the log-likelihood
sum_i w_i log p_{i,y_i} is the (observed and expected) information

    H_{kl} = sum_i w_i p_ik ([k = l] - p_il) [x_i, 1] [x_i, 1]^T           k, l != r

(Agresti 2013, "Categorical Data Analysis", 8.1). It is positive definite unless columns are
collinear or probabilities vanish.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from softmax_torch.solvers.conversion import column
from softmax_torch.solvers.inference.weighted_grams import WeightedGrams
from softmax_torch.solvers.objective import Objective
from softmax_torch.solvers.samples import Samples

__all__ = [
    "ROWS_AT_A_TIME",
    "cholesky",
    "dense_rows",
    "from_pairs",
    "information",
    "inverse",
    "pairs",
    "refuse_collinear",
    "rows_of",
    "solve",
]

ROWS_AT_A_TIME = 1024
"""Rows that are multiplied at a time; with many classes each takes K - 1 times its own memory."""

MOST_CLASSES = 64
"""Classes up to which the sums of all pairs of classes are formed: a quarter of the products of the
rows times all probabilities, but K (K - 1) / 2 weights for each row."""

SINGULAR = 1e-12
"""Columns are collinear if their correlation matrix has an eigenvalue below this."""

NAMED = 10
"""Collinear columns that an error names, at most."""


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
    sums = WeightedGrams(len(first), P, p.device)
    for x, at in rows_of(objective):
        c = p[at][:, first] * p[at][:, second]
        sums.add(x, c if objective.weight is None else c * objective.weight[at, None])
    return from_pairs(objective.summed(sums.result()).mul_(objective.unit), K, r)


def _information_by_classes(objective: Objective, p: Tensor, r: int) -> Tensor:
    """Return H from one product of the rows times all probabilities, for p (n, K)."""
    K, P = objective.shape
    p = p[:, [k for k in range(K) if k != r]]
    diagonal = WeightedGrams(K - 1, P, p.device)
    H = p.new_zeros((K - 1) * P, (K - 1) * P)
    for x, at in rows_of(objective):
        px = (p[at].unsqueeze(2) * x.unsqueeze(1)).flatten(1)
        c = p[at] if objective.weight is None else p[at] * objective.weight[at, None]
        weighted = px if objective.weight is None else px * objective.weight[at, None]
        H.addmm_(weighted.T, px, alpha=-1)
        diagonal.add(x, c)
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


def inverse(H: Tensor) -> Tensor:
    """Return H^-1; raise ValueError if H is singular up to rounding."""
    factor, scale = cholesky(H)
    return torch.cholesky_inverse(factor).div_(scale).div_(scale.unsqueeze(1))


def solve(H: Tensor, b: Tensor) -> Tensor:
    """Return H^-1 b for b (q,); raise ValueError if H is singular up to rounding."""
    factor, scale = cholesky(H)
    return torch.cholesky_solve((b / scale).unsqueeze(1), factor).squeeze(1) / scale


def cholesky(H: Tensor) -> tuple[Tensor, Tensor]:
    """Return the Cholesky factor of H scaled to a diagonal of 1, and the scale (q,)."""
    scale = H.diagonal().sqrt()
    factor, info = torch.linalg.cholesky_ex((H / scale).div_(scale.unsqueeze(1)))
    if info.item() != 0:
        raise ValueError(
            "X, y: expected samples that determine the coefficients, got an information matrix "
            "that is singular up to rounding; drop columns that hardly vary or repeat others"
        )
    return factor, scale


def refuse_collinear(objective: Objective) -> None:
    """Raise ValueError if a column is a combination of others, or there are too few samples."""
    D, w, names = objective.samples.d, objective.weight, objective.feature_names
    here = objective.samples.n if w is None else int((w > 0).sum())
    used = objective.summed(torch.tensor(here, device=objective.samples.device)).item()
    if used < objective.shape[1]:
        raise ValueError(
            f"X: expected at least as many samples of weight > 0 as coefficients of a class, got "
            f"{used} samples for {D} columns{' and the intercept' * objective.bias}; drop "
            "columns, or fit with a penalty"
        )
    # With a bias the columns are centred: they are collinear if a combination of them is constant.
    grams, mean = WeightedGrams(1, D, objective.samples.device), objective.zeros().new_zeros(D)
    for x, at in rows_of(objective):
        x = x[:, :D]
        weight = x.new_ones(len(x), 1) if w is None else w[at].unsqueeze(1)
        grams.add(x, weight)
        mean += (x.T @ weight).squeeze(1)
    gram = objective.summed(grams.result())[0]
    mean = objective.summed(mean) / objective.divisor
    size = gram.diagonal().sqrt()
    if objective.bias:
        gram -= objective.divisor * torch.outer(mean, mean)
    scale = gram.diagonal().clamp_min(0).sqrt()
    constant = scale <= math.sqrt(SINGULAR) * size
    if constant.any():
        j = int(constant.nonzero()[0])
        if size[j] == 0 and (objective.offset is None or objective.offset[j] == 0):
            raise ValueError(
                f"X: expected columns that are not all 0, got zeros in {column(j, names)}; drop it"
            )
        raise _collinear([column(j, names), "the intercept"])
    values, vectors = torch.linalg.eigh(gram / scale / scale.unsqueeze(1))
    if values[0] < SINGULAR:
        v = vectors[:, 0]
        involved = (v.abs() > 0.01 * v.abs().max()).nonzero().flatten().tolist()
        named = [column(i, names) for i in involved]
        level = mean if objective.offset is None else mean + objective.offset
        terms = level * v / scale
        if objective.bias and terms.sum().abs() > 1e-6 * terms.abs().max():
            named.append("the intercept")
        raise _collinear(named)


def _collinear(names: list[str]) -> ValueError:
    """Return the error for columns that are linearly dependent."""
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return ValueError(
        "X: expected linearly independent columns, got a column that is a combination of "
        f"others ({', '.join(names)} are involved); drop one of them"
    )

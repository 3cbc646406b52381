"""Effects of features on class probabilities, and their standard errors by the delta method.

For a sample [x, 1] with class probabilities p and weights W (K, D), the effect of feature j on the
probability of class k, and that of a column j of zeros and ones (a dummy), are

    m_kj = dp_k / dx_j = sum_l p_k p_l (W_kj - W_lj)
    m_kj = p_k(x_j = 1) - p_k(x_j = 0)

An average effect is the weighted mean of m over the samples; an effect at means is m at the mean
sample. The effects of a feature add up to 0 over the classes.

Standard errors come from the delta method: the covariance of the effects is G V G^T for the
covariance V of the coefficients theta and the derivatives G = dm / dtheta (Greene 2018,
"Econometric Analysis", 17.3.2; Stata's ``margins``). The samples are taken as fixed. With the mean
coefficients u = W^T p (D,) of a sample, for k != l and a column q of [x, 1],

    dm_kj / dtheta_lq = -p_k p_l ((W_kj + W_lj - 2 u_j) [x, 1]_q + [q = j])
    dm_kj / dtheta_lq = -(p_k p_l at x_j = 1) [x, 1]_q + (p_k p_l at x_j = 0) [x, 1]_q     (dummy)

where x_j is 1 and 0 in [x, 1] too. A constant added to theta_lq for all l changes nothing, so that
the derivative for l = k is minus the sum of the others. Nothing is subtracted from 1: digits hold
where a probability is near 0 or 1.

The first formula is linear in sum_i w_i p_ik p_il f_im [x_i, 1]. Here f are the probabilities, in
which u is linear, or [u, 1], whichever has fewer columns. These sums for all j take one pass, and
K^2 min(K, D + 1) P numbers of memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.inference.information import pairs, rows_of
from softmax_torch.solvers.objective import Objective

__all__ = ["At", "effects_and_errors", "rows_as_given"]

At = Literal["average", "mean"]


class _Averages(NamedTuple):
    """Weighted means over samples; k and l are classes, and entries with k >= l are 0.

    pairs: p_k p_l, (K, K).
    triples: p_k p_l f_m [x, 1], (K, K, M, P).
    changes: of each dummy, p(x_j = 1) - p(x_j = 0), (J, K).
    products: of each dummy, the change of p_k p_l [x, 1], (J, K, K, P).
    """

    pairs: Tensor
    triples: Tensor
    changes: Tensor
    products: Tensor


def effects_and_errors(
    objective: Objective,
    theta: Tensor,
    covariance: Tensor,
    at: At,
    fixed: dict[int, float],
    dummies: list[int],
) -> tuple[Tensor, Tensor]:
    """Return effects (K, D) and standard errors (K, D) at theta (K, P) of X as given.

    Args:
        objective: the samples and their weights.
        theta: coefficients in any coding.
        covariance: of theta, row by row (K P, K P).
        at: average over the samples, or the mean sample.
        fixed: values of features in all samples, by index.
        dummies: features whose effects are differences, by index.
    """
    (K, P), D = theta.shape, objective.samples.d
    W, V = theta[:, :D], covariance.view(K, P, K, P)
    # u = f @ to_mean and 1 = f @ to_one
    if K <= D + 1:
        to_mean, to_one = W, W.new_ones(K)
    else:
        unit = torch.eye(D + 1).to(W)
        to_mean, to_one = unit[:, :D], unit[:, D]
    averages = _averages(objective, theta, at, fixed, dummies)
    both, T = _symmetric(averages.pairs), _symmetric(averages.triples)
    effects = both.sum(1, keepdim=True) * W - both @ W
    errors = torch.stack([_slope_errors(k, W, to_mean, to_one, T, both, V) for k in range(K)])
    for j, change, products in zip(dummies, averages.changes, averages.products, strict=True):
        effects[:, j] = change
        g = _symmetric(products)
        errors[:, j] = torch.stack([_difference_error(k, g[k], V) for k in range(K)])
    return effects, errors


def _averages(
    objective: Objective, theta: Tensor, at: At, fixed: dict[int, float], dummies: list[int]
) -> _Averages:
    """Return the means that effects and derivatives are made of, from one pass."""
    (K, P), D = theta.shape, objective.samples.d
    W, M = theta[:, :D], min(K, D + 1)
    first, second = pairs(K, theta.device)
    sums = _Averages(
        theta.new_zeros(K, K),
        theta.new_zeros(K, K, M, P),
        theta.new_zeros(len(dummies), K),
        theta.new_zeros(len(dummies), K, K, P),
    )
    for x, w in _points(objective, at, fixed):
        z = x @ theta.T
        p = z.softmax(1)
        f = p if K <= D + 1 else torch.cat([p @ W, p.new_ones(len(p), 1)], 1)
        wp = p * w.unsqueeze(1)
        for k in range(K - 1):
            c = wp[:, k : k + 1] * p[:, k + 1 :]  # (B, K - k - 1)
            sums.pairs[k, k + 1 :] += c.sum(0)
            weights = (c.unsqueeze(2) * f.unsqueeze(1)).flatten(1)
            sums.triples[k, k + 1 :] += (weights.T @ x).view(-1, M, P)
        for i, j in enumerate(dummies):
            rest = z - x[:, j : j + 1] * W[:, j]
            off, on = rest.softmax(1), (rest + W[:, j]).softmax(1)
            sums.changes[i] += w @ (on - off)
            on_pairs, off_pairs = (w.unsqueeze(1) * q[:, first] * q[:, second] for q in (on, off))
            change = (on_pairs - off_pairs).T @ x
            change[:, j] = on_pairs.sum(0)
            sums.products[i, first, second] += change
    if at == "average":
        for total in sums:
            objective.summed(total)
    return sums


def _points(
    objective: Objective, at: At, fixed: dict[int, float]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows [x, 1] (B, P) of X as given, with weights (B,) that add up to 1 over all rows.

    For "mean" this is the mean row. Features in ``fixed`` have these values.
    """
    if at == "mean":
        mean = objective.zeros()[:1]
        for x, w in _points(objective, "average", {}):
            mean += w @ x
        rows: Iterator[tuple[Tensor, Tensor]] = iter([(objective.summed(mean), mean.new_ones(1))])
    else:
        rows = rows_as_given(objective)
    for x, w in rows:
        if fixed:
            x = x.clone()  # without a bias it may be a view of X
            x[:, list(fixed)] = x.new_tensor(list(fixed.values()))
        yield x, w


def rows_as_given(objective: Objective) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield rows [x, 1] (B, P) of X as given, with weights (B,) that add up to 1 over all rows."""
    weights = objective.weights / objective.divisor
    for x, at in rows_of(objective):
        if objective.offset is not None:
            x = torch.cat([x[:, :-1] + objective.offset, x[:, -1:]], 1)
        yield x, weights[at]


def _symmetric(A: Tensor) -> Tensor:
    """Return A (K, K, ...) plus its transpose in the first two dimensions."""
    return A + A.transpose(0, 1)


def _slope_errors(
    k: int, W: Tensor, to_mean: Tensor, to_one: Tensor, T: Tensor, both: Tensor, V: Tensor
) -> Tensor:
    """Return the standard errors (D,) of the effects of all features on class k.

    The derivatives by theta_l - theta_k, l != k, are sum_m b_lm T_klm - c_l e_j, where e_j is a
    unit vector, and T and c are 0 for l = k. b depends on the feature j; products of T with the
    covariance V do not.
    """
    (K, D), (M, P) = W.shape, T.shape[2:]
    b = 2 * to_mean - (W[k] + W).unsqueeze(1) * to_one.unsqueeze(1)  # (K, M, D)
    c = both[k]
    TV = torch.stack([T[k, i] @ (V[i] - V[k]).reshape(P, -1) for i in range(K)])
    TV = TV.view(K, M, K, P)
    TV = TV - TV[:, :, k : k + 1]
    TVT = torch.einsum("lmnp,nop->lmno", TV, T[k]).reshape(K * M, K * M)
    ends = V.diagonal(dim1=1, dim2=3)[:, :, :D]  # (K, K, D)
    ends = ends - ends[k] - ends[:, k : k + 1] + ends[k, k]
    variance = (b.flatten(0, 1) * (TVT @ b.flatten(0, 1))).sum(0)
    variance -= 2 * torch.einsum("lmj,lmnj,n->j", b, TV[..., :D], c)
    variance += torch.einsum("l,n,lnj->j", c, c, ends)
    return variance.clamp_min(0).sqrt()


def _difference_error(k: int, g: Tensor, V: Tensor) -> Tensor:
    """Return the standard error of an effect on class k with derivatives -g (K, P), g_k = 0."""
    g = g.clone()
    g[k] = -g.sum(0)
    return (g.flatten() @ (V.flatten(0, 1).flatten(1) @ g.flatten())).clamp_min(0).sqrt()

"""Newton's method for many weightings of the same samples at once, from a good start.

A step of gamma = theta_k - theta_r is H^-1 g with the exact information H of each weighting. The
decrement g^T H^-1 g is the squared distance to the optimum in units of standard errors, up to the
error of the quadratic model; near the optimum it is squared in each step. Weightings that are slow
or have no optimum are given back, for a fit that certifies the one or finds the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.solvers.inference.covariance import penalty_hessian
from softmax_torch.solvers.inference.information import ROWS_AT_A_TIME, from_pairs, pairs, rows_of
from softmax_torch.solvers.inference.model import FittedModel
from softmax_torch.solvers.inference.weighted_grams import WeightedGrams

__all__ = ["batch_size", "refit"]

STEPS = 12
"""Newton steps, at most. From the estimates a resample takes about five. Towards a separation the
decrement falls by a factor of e a step, and so never reaches ``CLOSE`` in so many."""

CLOSE = 1e-10
"""Decrement below which a step is the last one: it ends within 1e-10 standard errors."""

BATCH_BYTES = 64 << 20
"""Bytes of the information of all weightings of a batch, and of their weights of rows, at most."""

MOST = 64
"""Weightings of a batch, at most."""


def batch_size(model: FittedModel) -> int:
    """Return how many weightings fit into a batch."""
    K, P = model.theta.shape
    each = 8 * max((K * P) ** 2, ROWS_AT_A_TIME * K**2 // 2)
    return max(1, min(MOST, BATCH_BYTES // each))


def refit(model: FittedModel, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return theta (J, K, P), symmetric, of weightings (J, n), and which of them converged (J,).

    ``weights`` are in units of the objective's own. The penalty is that of the model.
    """
    objective = model.objective
    (K, P), J = objective.shape, len(weights)
    penalty = model.l2 * penalty_hessian(K, P, objective.bias).to(model.theta)
    gamma = (model.theta[1:] - model.theta[0]).flatten().repeat(J, 1)
    converged = torch.zeros(J, dtype=torch.bool, device=gamma.device)
    for _ in range(STEPS):
        left = (~converged).nonzero().squeeze(1)
        if len(left) == 0:
            break
        at = gamma[left]
        g, H = _derivatives(model, at, weights[left])
        g, H = g + at @ penalty, H + penalty
        factor, failed = torch.linalg.cholesky_ex(H)
        step = torch.cholesky_solve(g.unsqueeze(2), factor).squeeze(2)
        decrement = (g * step).sum(1)
        gamma[left] = torch.where((failed == 0).unsqueeze(1), at - step, at)
        converged[left] = (failed == 0) & (decrement < CLOSE)
    theta = torch.cat([gamma.new_zeros(J, 1, P), gamma.view(J, K - 1, P)], 1)
    return theta - theta.mean(1, keepdim=True), converged


def _derivatives(model: FittedModel, gamma: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return gradients (J, R P) and information (J, R P, R P) of minus the log-likelihood."""
    objective = model.objective
    (K, P), J = objective.shape, len(gamma)
    first, second = pairs(K, gamma.device)
    sums = WeightedGrams(J * len(first), P, gamma.device)
    g = gamma.new_zeros(J * (K - 1), P)
    for x, at in rows_of(objective):
        z = (x @ gamma.view(-1, P).T).view(len(x), J, K - 1)
        p = torch.nn.functional.pad(z, (1, 0)).softmax(2)
        w = weights[:, at].T.unsqueeze(2)
        sums.add(x, (w * p[..., first] * p[..., second]).flatten(1))
        residual = p[..., 1:] - torch.nn.functional.one_hot(objective.y[at], K)[:, None, 1:]
        g += (w * residual).flatten(1).T @ x
    grams = objective.summed(sums.result()).view(J, len(first), P, P)
    H = from_pairs(grams, K, 0) * objective.unit
    return objective.summed(g).view(J, -1) * objective.unit, H

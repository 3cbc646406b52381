"""Covariances of the estimates gamma_k = theta_k - theta_r of a fit.

With the scores s_i = (e_{y_i} - p_i)_{k != r} x [x_i, 1] of samples of weight w_i, S = sum_i w_i
samples, k coefficients, and the information H:

    nonrobust   H^-1
    HC0         H^-1 (sum_i w_i s_i s_i^T) H^-1
    HC1         HC0 times S / (S - k)
    cluster     H^-1 (sum_g u_g u_g^T) H^-1 times G / (G - 1),     u_g = sum_{i in g} w_i s_i

nonrobust (Agresti 2013, "Categorical Data Analysis", 8.1) holds if the model does; statsmodels'
MNLogit reports it too. HC0 (Huber 1967; White 1982, "Maximum likelihood estimation of misspecified
models") holds for the coefficients nearest to the truth if the model does not. cluster (Liang &
Zeger 1986, Biometrika 73) allows any dependence within each of G groups. Its factor is that of
Stata's mlogit and of R's ``sandwich::vcovCL`` for models other than lm; statsmodels multiplies by
(S - 1) / (S - k) in addition, and leaves "HC1" equal to HC0 for MNLogit.

An L2 penalty l2/2 ||W||^2 makes the optimum symmetric: the weights W add up to 0 over the classes.
As a function of gamma it is l2/2 tr(W^T M W) with M = I - 1 1^T / K over the classes k != r. It
adds l2 M to H in the outer factors, and H itself is the middle one of nonrobust:

    (H + l2 M)^-1 H (H + l2 M)^-1

This is the covariance around the coefficients that the penalised fit has in the population, which
are biased towards 0. The fit has tr(H (H + l2 M)^-1) effective coefficients (Hastie, Tibshirani &
Friedman 2009, "The Elements of Statistical Learning", 7.6).

Weights are frequencies. Sampling weights are not: with a group for each sample, cluster is the
sandwich of sum_i w_i^2 s_i s_i^T, which is for these.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from softmax_torch.solvers.inference.groups import Groups
from softmax_torch.solvers.inference.information import information, inverse, rows_of
from softmax_torch.solvers.inference.model import FittedModel
from softmax_torch.solvers.objective import Objective

__all__ = [
    "COVARIANCES",
    "CovarianceName",
    "Estimated",
    "check_covariance",
    "covariance_of",
    "refuse_few",
]

CovarianceName = Literal["nonrobust", "HC0", "HC1", "cluster"]
COVARIANCES: tuple[CovarianceName, ...] = get_args(CovarianceName)


class Estimated(NamedTuple):
    """The covariance (R P, R P) of gamma, row by row, and the effective number of coefficients."""

    covariance: Tensor
    coefficients: float


def check_covariance(covariance: Any, groups: Any, resampled: bool) -> None:
    """Raise ValueError unless the covariance is known and groups are given if they have a use."""
    if covariance not in COVARIANCES:
        raise ValueError(f"covariance: expected {', '.join(COVARIANCES)}; got {covariance!r}")
    if covariance == "cluster" and groups is None:
        raise ValueError(
            'groups: expected a group for each sample for covariance="cluster", got None'
        )
    if groups is not None and covariance != "cluster" and not resampled:
        raise ValueError(
            'groups: expected None without covariance="cluster" and without bootstrap, got groups'
        )


def refuse_few(kind: CovarianceName, objective: Objective, groups: Groups | None) -> None:
    """Raise ValueError unless there are more samples (HC1) or groups than coefficients."""
    K, P = objective.shape
    count = (K - 1) * P
    if kind == "HC1" and not objective.total > count:
        raise ValueError(
            f'covariance="HC1": expected more samples than the {count} coefficients, got '
            f"{objective.total:g}"
        )
    if kind == "cluster" and groups is not None and groups.count <= count:
        raise ValueError(
            f"groups: expected more groups than the {count} coefficients, got {groups.count}, "
            "which make the covariance singular; drop columns, or take the intervals of "
            "bootstrap=1000, which resamples the groups"
        )


def covariance_of(
    model: FittedModel, r: int, kind: CovarianceName, groups: Groups | None = None
) -> Estimated:
    """Return the covariance relative to class r, for the samples of ``model.objective``.

    ``refuse_few`` says which samples and groups are enough.

    Raises:
        ValueError: the information is singular.
    """
    objective = model.objective
    K, P = objective.shape
    others = [k for k in range(K) if k != r]
    count = len(others) * P
    H = information(objective, model.theta, r)
    if model.l2 == 0:
        bread, effective = inverse(H), float(count)
    else:
        bread = inverse(H + model.l2 * penalty_hessian(K, P, objective.bias).to(H))
        effective = float((bread * H).sum())
    if kind == "nonrobust":
        return Estimated(bread if model.l2 == 0 else bread @ H @ bread, effective)
    if kind == "cluster":
        assert groups is not None
        middle = _cluster_scores(model, others, groups)
        middle *= groups.count / (groups.count - 1)
    else:
        middle = _squared_scores(objective, model.theta, others)
        if kind == "HC1":
            middle *= objective.total / (objective.total - count)
    return Estimated(bread @ middle @ bread, effective)


def penalty_hessian(K: int, P: int, bias: bool) -> Tensor:
    """Return M (R P, R P): half the squared norm of the weight is gamma^T M gamma / 2."""
    M = torch.eye(K - 1, dtype=torch.float64) - 1 / K
    penalised = torch.ones(P, dtype=torch.float64)
    if bias:
        penalised[-1] = 0.0
    return torch.kron(M, penalised.diag())


def _squared_scores(objective: Objective, theta: Tensor, classes: list[int]) -> Tensor:
    """Return sum_i w_i s_i s_i^T (R P, R P), from one pass."""
    roots = objective.weights.sqrt().unsqueeze(1)
    total = theta.new_zeros(len(classes) * objective.shape[1], len(classes) * objective.shape[1])
    for scores, _ in _scores(objective, roots * _residuals(objective, theta, classes)):
        total.addmm_(scores.T, scores)
    return objective.summed(total).mul_(objective.unit)


def _cluster_scores(model: FittedModel, classes: list[int], groups: Groups) -> Tensor:
    """Return sum_g u_g u_g^T (R P, R P), from one pass."""
    objective = model.objective
    residuals = objective.weights.unsqueeze(1) * _residuals(objective, model.theta, classes)
    u = residuals.new_zeros(groups.count, len(classes) * objective.shape[1])
    for scores, at in _scores(objective, residuals):
        u.index_add_(0, groups.index[at], scores)
    u = objective.summed(u) * objective.unit
    return u.T @ u


def _scores(objective: Objective, residuals: Tensor) -> Iterator[tuple[Tensor, slice]]:
    """Yield pieces of the residuals (n, R) x [x_i, 1] (B, R P), each with its slice of the rows."""
    for x, at in rows_of(objective):
        yield (residuals[at].unsqueeze(2) * x.unsqueeze(1)).flatten(1), at


def _residuals(objective: Objective, theta: Tensor, classes: list[int]) -> Tensor:
    """Return e_y - p (n, R) over these classes."""
    p = objective.probabilities(theta, torch.float64)
    p[torch.arange(len(p), device=p.device), objective.y] -= 1
    return -p[:, classes]

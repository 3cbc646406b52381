"""Covariances of the estimates gamma_k = theta_k - theta_r of a fit.

Without a penalty the large-sample covariance is the inverse of the information H (Agresti 2013,
"Categorical Data Analysis", 8.1), which statsmodels' MNLogit reports too.

An L2 penalty l2/2 ||W||^2 makes the optimum symmetric: the weights W add up to 0 over the classes.
As a function of gamma it is l2/2 tr(W^T M W) with M = I - 1 1^T / K over the classes k != r, and
adds l2 M to H. The estimates of the penalised fit have the covariance

    (H + l2 M)^-1 H (H + l2 M)^-1

around the coefficients that the penalised fit has in the population, which are biased towards 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.solvers.inference.information import information, inverse
from softmax_torch.solvers.inference.model import FittedModel

__all__ = ["covariance_of"]


def covariance_of(model: FittedModel, r: int) -> Tensor:
    """Return the covariance (R P, R P) of gamma relative to class r, row by row, R = K - 1.

    It belongs to the samples of ``model.objective``.
    """
    K, P = model.objective.shape
    H = information(model.objective, model.theta, [k for k in range(K) if k != r])
    if model.l2 == 0:
        return inverse(H)
    bread = inverse(H + penalty_hessian(K, P, model.objective.bias, model.l2).to(H.device))
    return bread @ H @ bread


def penalty_hessian(K: int, P: int, bias: bool, l2: float) -> Tensor:
    """Return the Hessian (R P, R P) of the penalty as a function of gamma."""
    M = torch.eye(K - 1, dtype=torch.float64) - 1 / K
    penalised = torch.ones(P, dtype=torch.float64)
    if bias:
        penalised[-1] = 0.0
    return l2 * torch.kron(M, penalised.diag())

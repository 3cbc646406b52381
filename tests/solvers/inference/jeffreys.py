"""Firth's penalised log-likelihood from its definition: the independent reference of the tests."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import optimize
from torch import Tensor

__all__ = ["intercepts", "maximum", "penalised"]


def intercepts(X: Tensor) -> Tensor:
    """Return [X, 1]."""
    return torch.cat([X, X.new_ones(len(X), 1)], 1)


def penalised(
    gamma: Tensor, X: Tensor, y: Tensor, weight: Tensor | None = None, penalty: float = 0.5
) -> Tensor:
    """Return l + penalty log det I for gamma (R P,) relative to class 0 and columns X (n, P)."""
    w = torch.ones_like(X[:, 0]) if weight is None else weight
    z = X @ gamma.view(-1, X.shape[1]).T
    log_p = torch.nn.functional.pad(z, (1, 0)).log_softmax(1)
    p = log_p.exp()[:, 1:]
    V = torch.diag_embed(p) - p.unsqueeze(2) * p.unsqueeze(1)
    information = torch.einsum("n,nkl,na,nb->kalb", w, V, X, X).reshape(len(gamma), -1)
    log_likelihood = w @ log_p.gather(1, y.unsqueeze(1)).squeeze(1)
    return log_likelihood + penalty * torch.logdet(information)


def maximum(value: Callable[[Tensor], Tensor], size: int) -> tuple[NDArray[np.float64], float]:
    """Return the maximum of ``value`` by BFGS from 0 with autograd's gradient, and its value."""

    def negative(gamma: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        at = torch.from_numpy(gamma).requires_grad_()
        found = value(at)
        if not found.isfinite():
            return np.inf, np.zeros(size)
        (gradient,) = torch.autograd.grad(found, at)
        return -found.item(), -gradient.numpy()

    found = optimize.minimize(
        negative, np.zeros(size), jac=True, method="BFGS", options={"gtol": 1e-9, "maxiter": 1000}
    )
    return found.x, -found.fun

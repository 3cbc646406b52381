"""Codings of the classes: differences to a reference class, or deviations from the mean class.

Both are linear in theta (K, P), and so covariances follow: for coefficients A theta with a matrix A
(L, K) over the classes, the covariance is (A x I) V (A x I)^T with the Kronecker product x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective

__all__ = ["as_given", "both_sides", "class_coding", "covariance_as_given", "symmetric_covariance"]


def class_coding(K: int, reference: int | None) -> Tensor:
    """Return the map from theta to its differences to a class (K - 1, K).

    Without a reference it is the map to the deviations from the mean class (K, K).
    """
    map = torch.eye(K, dtype=torch.float64)
    if reference is None:
        return map - 1 / K
    map[:, reference] = -1.0
    return map[[k for k in range(K) if k != reference]]


def symmetric_covariance(V: Tensor, K: int, r: int) -> Tensor:
    """Return the covariance (K P, K P) of deviations from the mean class.

    V (R P, R P) is that of the differences to class r, R = K - 1.
    """
    deviations = class_coding(K, None)[:, [k for k in range(K) if k != r]]
    return both_sides(deviations.to(V), V, len(V) // (K - 1))


def both_sides(A: Tensor, V: Tensor, P: int) -> Tensor:
    """Return (A x I) V (A x I)^T (L P, L P) for A (L, R) over the classes and V (R P, R P)."""
    L, R = A.shape
    left = (A @ V.reshape(R, -1)).view(L, P, R, P)
    return torch.einsum("aprq,br->apbq", left, A).reshape(L * P, L * P)


def as_given(objective: Objective) -> Tensor:
    """Return the matrix (P, P) from coefficients of the objective's samples to those of X.

    It is the identity unless the samples are centred.
    """
    map = torch.eye(objective.shape[1], dtype=torch.float64, device=objective.samples.device)
    if objective.offset is not None:
        map[-1, :-1] = -objective.offset
    return map


def covariance_as_given(objective: Objective, V: Tensor) -> Tensor:
    """Return the covariance (R P, R P) of coefficients of X as given, from that of the centred."""
    if objective.offset is None:
        return V
    map, P = as_given(objective), objective.shape[1]
    R = len(V) // P
    left = torch.einsum("ab,rbsd->rasd", map, V.reshape(R, P, R, P))
    return torch.einsum("rasd,cd->rasc", left, map).reshape(R * P, R * P)

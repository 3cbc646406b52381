"""Codings of the classes: differences to a reference class, or deviations from the mean class.

Both are linear in theta (K, P), and so covariances follow: for coefficients A theta with a matrix A
(L, K) over the classes, the covariance is (A x I) V (A x I)^T with the Kronecker product x.
"""

from __future__ import annotations

import torch
from torch import Tensor

from softmax_torch.solvers.objective import Objective

__all__ = ["as_given", "between_classes", "both_sides", "covariance_as_given", "symmetric_rows"]


def symmetric_rows(K: int, r: int) -> Tensor:
    """Return the map (K, K - 1) from differences to class r to deviations from the mean class."""
    others = [k for k in range(K) if k != r]
    return torch.eye(K, dtype=torch.float64)[:, others] - 1 / K


def between_classes(K: int, r: int) -> Tensor:
    """Return the map (K - 1, K) from theta to its differences to class r."""
    others = [k for k in range(K) if k != r]
    map = torch.eye(K, dtype=torch.float64)[others]
    map[:, r] = -1.0
    return map


def both_sides(A: Tensor, V: Tensor, P: int) -> Tensor:
    """Return (A x I) V (A x I)^T (L P, L P) for A (L, R) over the classes and V (R P, R P)."""
    L, R = A.shape
    left = (A @ V.reshape(R, -1)).view(L, P, R, P)
    return torch.einsum("aprq,br->apbq", left, A).reshape(L * P, L * P)


def as_given(objective: Objective) -> Tensor | None:
    """Return the matrix (P, P) from coefficients of the centred samples to those of X as given.

    None if the samples are not centred.
    """
    if objective.offset is None:
        return None
    map = torch.eye(objective.shape[1], dtype=torch.float64, device=objective.samples.device)
    map[-1, :-1] = -objective.offset
    return map


def covariance_as_given(objective: Objective, V: Tensor) -> Tensor:
    """Return the covariance (R P, R P) of coefficients of X as given, from that of the centred."""
    map = as_given(objective)
    if map is None:
        return V
    P = len(map)
    R = len(V) // P
    left = torch.einsum("ab,rbsd->rasd", map, V.reshape(R, P, R, P))
    return torch.einsum("rasd,cd->rasc", left, map).reshape(R * P, R * P)

"""The result of ``inference``: coefficients, their covariance, and what follows from them.

z = estimate / standard error,    p = P(|Z| >= |z|),    estimate -+ quantile * standard error
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softmax_torch.solvers.inference.model import FittedModel, PenaltyName, as_given
from softmax_torch.solvers.inference.names import INTERCEPT

__all__ = ["Inference", "result_of"]


@dataclass(frozen=True)
class Inference:
    """Estimates with their uncertainty, float64.

    The tables are (R, P). Rows are all classes except the reference, in order, or all classes
    without a reference. Columns are the features, with the intercept, if any, as the last.

    Attributes:
        coefficients: the estimates (R, P).
        standard_errors: square roots of the diagonal of the covariance (R, P).
        z_values: coefficients / standard_errors (R, P).
        p_values: p-values of the two-sided test that a coefficient is 0 (R, P).
        confidence_intervals: (R, P, 2), lower and upper end.
        covariance: (R P, R P), of the coefficients row by row.
        log_likelihood: the log-likelihood at the estimates, without the penalty.
        reference: index of the class that the others are compared with, or None.
        confidence: confidence level of the intervals.
        theta: coefficients of all classes (K, P) of X as given, in the symmetric coding: each
            column adds up to 0 over the classes.
        feature_names: names of the features (D,).
        class_names: names of the classes (K,).
        penalty: "none" or "l2".
        model: the fit, with its samples and weights.
    """

    coefficients: Tensor
    standard_errors: Tensor
    z_values: Tensor
    p_values: Tensor
    confidence_intervals: Tensor
    covariance: Tensor = field(repr=False)
    log_likelihood: float
    reference: int | None
    confidence: float
    theta: Tensor = field(repr=False)
    feature_names: tuple[str, ...]
    class_names: tuple[str, ...]
    penalty: PenaltyName
    model: FittedModel = field(repr=False)

    @property
    def column_names(self) -> tuple[str, ...]:
        """Names of the columns (P,): the features, and the intercept if there is one."""
        return self.feature_names + (INTERCEPT,) * self.model.objective.bias

    @property
    def row_names(self) -> tuple[str, ...]:
        """Names of the classes in the rows (R,)."""
        rows = range(len(self.class_names))
        return tuple(self.class_names[k] for k in rows if k != self.reference)

    @property
    def n(self) -> int:
        """Number of rows of X on this process."""
        return self.model.objective.samples.n

    @property
    def observations(self) -> float:
        """Number of samples: the sum of their weights, over all processes."""
        return float(self.model.objective.total)

    def covariance_of_theta(self) -> Tensor:
        """Return the covariance (K P, K P) of ``theta``, row by row; its rank is (K - 1) P."""
        K, P = self.theta.shape
        if self.reference is None:
            return self.covariance
        expand = symmetric_rows(K, self.reference).to(self.theta)
        return _both_sides(expand, self.covariance, P)


def symmetric_rows(K: int, r: int) -> Tensor:
    """Return the map (K, K - 1) from differences to class r to the symmetric coding."""
    others = [k for k in range(K) if k != r]
    return torch.eye(K, dtype=torch.float64)[:, others] - 1 / K


def result_of(
    model: FittedModel,
    covariance: Tensor,
    reference: int | None,
    confidence: float,
    feature_names: tuple[str, ...],
    class_names: tuple[str, ...],
) -> Inference:
    """Return the result for the covariance of the differences to the reference, or to class 0.

    The covariance (R P, R P) belongs to the samples of ``model.objective``.
    """
    K, P = model.theta.shape
    to_given = as_given(model.objective)
    theta = model.theta @ to_given.T
    r = 0 if reference is None else reference
    covariance = torch.kron(torch.eye(K - 1).to(theta), to_given) @ covariance
    covariance = covariance @ torch.kron(torch.eye(K - 1).to(theta), to_given).T
    coefficients = theta[[k for k in range(K) if k != r]] - theta[r]
    if reference is None:
        coefficients = theta
        covariance = _both_sides(symmetric_rows(K, r).to(theta), covariance, P)
    errors = covariance.diagonal().sqrt().view_as(coefficients)
    z = coefficients / errors
    quantile = torch.special.ndtri(torch.tensor((1 + confidence) / 2, dtype=torch.float64))
    spread = float(quantile) * errors
    return Inference(
        coefficients=coefficients,
        standard_errors=errors,
        z_values=z,
        p_values=torch.special.erfc(z.abs() / math.sqrt(2)),
        confidence_intervals=torch.stack([coefficients - spread, coefficients + spread], 2),
        covariance=covariance,
        log_likelihood=model.log_likelihood,
        reference=reference,
        confidence=confidence,
        theta=theta,
        feature_names=feature_names,
        class_names=class_names,
        penalty=model.penalty,
        model=model,
    )


def _both_sides(A: Tensor, covariance: Tensor, P: int) -> Tensor:
    """Return (A x I) covariance (A x I)^T for A (L, R) over the classes: (L P, L P)."""
    R = len(covariance) // P
    left = (A @ covariance.view(R, -1)).view(len(A), P, R, P)
    return torch.einsum("aprq,br->apbq", left, A).reshape(len(A) * P, len(A) * P)

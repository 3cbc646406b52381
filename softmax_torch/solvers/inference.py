"""Standard errors, tests and confidence intervals for the coefficients of an unpenalised fit.

Adding the same vector to the coefficients of all classes changes no probability, so only
differences have standard errors. For gamma_k = theta_k - theta_r, k != r, relative to a reference
class r, the Hessian of minus the log-likelihood sum_i w_i log p_{i,y_i} is

    H_{kl} = sum_i w_i p_ik ([k = l] - p_il) [x_i, 1] [x_i, 1]^T           k, l != r

At the optimum its inverse is the large-sample covariance of the estimates (Agresti 2013,
"Categorical Data Analysis", 8.1), which statsmodels' MNLogit reports too. Without a reference the
coefficients are theta_k minus the mean over the classes. They are linear in gamma, and so their
covariance follows from that of gamma.

    z = estimate / standard error,    p = P(|Z| >= |z|),    estimate -+ quantile * standard error

Sample weights are frequencies: a weight of 2 counts as two samples. A penalty would bias the
estimates and invalidate these formulas, so the fit has none.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softmax_torch.solvers.fit import minimize
from softmax_torch.solvers.newton import NewtonCG
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.problem import objective_of, theta_of

__all__ = ["Inference", "inference"]

ROWS_AT_A_TIME = 1024
"""Rows that are multiplied at a time; each takes K - 1 times its own memory."""

TOL, MAX_ITER = 1e-13, 200
"""Relative duality gap of the fit, and Newton steps at most; about ten are needed."""

SINGULAR = 1e-12
"""Columns are collinear if their correlation matrix has an eigenvalue below this."""

NAMED = 10
"""Collinear columns that an error names, at most."""


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
        log_likelihood: the log-likelihood at the optimum.
        reference: the class that the others are compared with, or None.
        confidence: confidence level of the intervals.
    """

    coefficients: Tensor
    standard_errors: Tensor
    z_values: Tensor
    p_values: Tensor
    confidence_intervals: Tensor
    covariance: Tensor
    log_likelihood: float
    reference: int | None
    confidence: float


def inference(
    X: Any,
    y: Any,
    *,
    reference: int | None = 0,
    confidence: float = 0.95,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    device: torch.device | str | None = None,
) -> Inference:
    """Fit without a penalty, and return the coefficients with their uncertainty.

    Args:
        X: samples (n, D), as for ``fit``.
        y: class indices (n,).
        reference: the class that the others are compared with; None for all classes, relative to
            their mean.
        confidence: probability that an interval covers its coefficient, in (0, 1).
        fit_intercept: whether the logits have a bias.
        sample_weight: frequencies (n,); None for ones.
        device: where to compute; by default where X is.

    Raises:
        ValueError, TypeError: as ``fit``; the classes can be separated; columns are collinear (the
            message names them); ``reference`` is not a class.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
    objective = objective_of(X, y, fit_intercept, sample_weight, None, device, None)
    K, P = objective.shape
    if reference is not None and not 0 <= reference < K:
        raise ValueError(f"reference: expected a class in [0, {K}) or None, got {reference}")
    r = 0 if reference is None else reference
    others = [k for k in range(K) if k != r]
    with objective.threads():
        _refuse_collinear(objective)
        newton = NewtonCG(objective, Penalty(0.0), objective.zeros(), torch.float64)
        solution = minimize(newton, TOL, MAX_ITER)
        theta = theta_of(solution, objective)
        covariance = _inverse(_hessian(objective, theta, others))
    # Two linear maps: from theta of the centred samples to coefficients of X as given, and from
    # differences to class r to the coefficients that are returned.
    as_given = torch.eye(P, dtype=theta.dtype, device=theta.device)
    if objective.offset is not None:
        as_given[-1, :-1] = -objective.offset
    classes = torch.eye(K, dtype=theta.dtype, device=theta.device)[:, others]
    classes = classes - 1 / K if reference is None else classes[others]
    coefficients = classes @ (theta[others] - theta[r]) @ as_given.T
    full = torch.kron(classes, as_given)
    covariance = full @ covariance @ full.T
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
        log_likelihood=-solution.objective * objective.total,
        reference=reference,
        confidence=confidence,
    )


def _hessian(objective: Objective, theta: Tensor, classes: list[int]) -> Tensor:
    """Return H (R P, R P) over these R classes, from one pass."""
    R, P = len(classes), objective.shape[1]
    p = objective.probabilities(theta, torch.float64)[:, classes]
    H = p.new_zeros(R * P, R * P)
    blocks = H.view(R, P, R, P)
    for x, at in _rows(objective):
        w = None if objective.weight is None else objective.weight[at].double()
        px = (p[at].unsqueeze(2) * x.unsqueeze(1)).flatten(1)
        weighted = px if w is None else px * w.unsqueeze(1)
        H -= weighted.T @ px
        for k in range(R):
            blocks[k, :, k] += weighted.view(-1, R, P)[:, k].T @ x
    return objective.summed(H).mul_(objective.unit)


def _rows(objective: Objective) -> Iterator[tuple[Tensor, slice]]:
    """Yield pieces [x, 1] (B, P) of the samples, float64, each with its slice of the rows."""
    eye = torch.eye(objective.samples.d, dtype=torch.float64, device=objective.samples.device)
    for at, block in objective.samples.blocks():
        dense = block.dot(eye)
        if objective.bias:
            dense = torch.cat([dense, dense.new_ones(len(dense), 1)], 1)
        for start in range(0, len(dense), ROWS_AT_A_TIME):
            x = dense[start : start + ROWS_AT_A_TIME]
            yield x, slice(at.start + start, at.start + start + len(x))


def _inverse(H: Tensor) -> Tensor:
    """Return H^-1, computed after scaling H to a diagonal of 1."""
    scale = H.diagonal().sqrt()
    factor, info = torch.linalg.cholesky_ex(H / scale / scale.unsqueeze(1))
    if info.item() != 0:
        raise ValueError(
            "X, y: expected samples that determine the coefficients, got an information matrix "
            "that is singular up to rounding; drop columns that hardly vary or repeat others"
        )
    return torch.cholesky_inverse(factor) / scale / scale.unsqueeze(1)


def _refuse_collinear(objective: Objective) -> None:
    """Raise ValueError if a column is a combination of others, or there are too few samples."""
    D, w = objective.samples.d, objective.weight
    here = objective.samples.n if w is None else int((w > 0).sum())
    used = objective.summed(torch.tensor(here, device=objective.samples.device)).item()
    if used < objective.shape[1]:
        raise ValueError(
            f"X: expected at least as many samples of weight > 0 as coefficients of a class, got "
            f"{used} samples for {D} columns{' and the intercept' * objective.bias}; drop "
            "columns, or fit with a penalty"
        )
    # With a bias the columns are centred: they are collinear if a combination of them is constant.
    gram, mean = objective.zeros().new_zeros(D, D), objective.zeros().new_zeros(D)
    for x, at in _rows(objective):
        x = x[:, :D]
        weighted = x if w is None else x * w[at].double().unsqueeze(1)
        gram += weighted.T @ x
        mean += weighted.sum(0)
    objective.summed(gram)
    mean = objective.summed(mean) / objective.divisor
    size = gram.diagonal().sqrt()
    if objective.bias:
        gram -= objective.divisor * torch.outer(mean, mean)
    scale = gram.diagonal().clamp_min(0).sqrt()
    constant = scale <= math.sqrt(SINGULAR) * size
    if constant.any():
        column = int(constant.nonzero()[0])
        zero = size[column] == 0 and (objective.offset is None or objective.offset[column] == 0)
        if zero:
            raise ValueError(
                f"X: expected columns that are not all 0, got zeros in column {column}; drop it"
            )
        raise _collinear([f"column {column}", "the intercept"])
    values, vectors = torch.linalg.eigh(gram / scale / scale.unsqueeze(1))
    if values[0] < SINGULAR:
        v = vectors[:, 0]
        involved = (v.abs() > 0.01 * v.abs().max()).nonzero().flatten().tolist()
        names = [f"column {i}" for i in involved]
        level = mean if objective.offset is None else mean + objective.offset
        terms = level * v / scale
        if objective.bias and terms.sum().abs() > 1e-6 * terms.abs().max():
            names.append("the intercept")
        raise _collinear(names)


def _collinear(names: list[str]) -> ValueError:
    """Return the error for columns that are linearly dependent."""
    if len(names) > NAMED:
        names = [*names[:NAMED], f"{len(names) - NAMED} more"]
    return ValueError(
        "X: expected linearly independent columns, got a column that is a combination of "
        f"others ({', '.join(names)} are involved); drop one of them"
    )

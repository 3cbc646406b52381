"""Tests that some features have no effect: their coefficients are 0 in all classes.

With b the q coefficients of these features, (K - 1) of each relative to one class, V their
covariance, L the log-likelihood, and theta_0 the optimum without the features:

    Wald                b^T V^-1 b
    likelihood ratio    2 (L(theta) - L(theta_0))
    score               U^T H^-1 U            U = dL/dtheta and information H at theta_0

Each is chi-squared with q degrees of freedom in large samples, if the features have no effect
(Agresti 2013, "Categorical Data Analysis", 1.3.3 and 5.2). The choice of the class does not matter.

    P(chi2_q > x) = Gamma(q/2, x/2) / Gamma(q/2)

>>> f"{chi_squared_tail(1000.0, 3):.6e}"
'1.799421e-216'
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from softmax_torch.solvers.inference.column_subset import without_columns
from softmax_torch.solvers.inference.information import information, solve
from softmax_torch.solvers.inference.model import FittedModel, fit_model
from softmax_torch.solvers.objective import Objective, Penalty

__all__ = [
    "TestResult",
    "chi_squared_tail",
    "likelihood_ratio",
    "null_log_likelihood",
    "score",
    "wald",
]


@dataclass(frozen=True)
class TestResult:
    """A test of a hypothesis.

    Attributes:
        statistic: its value; large if the hypothesis is wrong.
        df: degrees of freedom of its chi-squared distribution.
        p_value: probability of a larger statistic if the hypothesis is right.
    """

    __test__ = False  # not a test of pytest

    statistic: float
    df: int
    p_value: float

    @classmethod
    def of(cls, statistic: float, df: int) -> TestResult:
        """Return the test with the p-value of its statistic."""
        return cls(statistic, df, chi_squared_tail(statistic, df))


def chi_squared_tail(x: float, df: int) -> float:
    """Return P(chi2_df > x), to a relative error of 2e-9 also where it is tiny."""
    half = torch.tensor([df / 2, max(x, 0.0) / 2], dtype=torch.float64)
    return float(torch.special.gammaincc(half[0], half[1]))


def wald(coefficients: Tensor, covariance: Tensor) -> TestResult:
    """Return the Wald test that coefficients (q,) with this covariance (q, q) are 0."""
    return TestResult.of(float(coefficients @ solve(covariance, coefficients)), len(coefficients))


def likelihood_ratio(model: FittedModel, features: list[int]) -> TestResult:
    """Return the likelihood-ratio test that these features have no effect; it fits without them."""
    _, restricted = _optimum_without(model, features)
    statistic = 2 * (model.log_likelihood - restricted)
    return TestResult.of(max(statistic, 0.0), (model.objective.classes - 1) * len(features))


def score(model: FittedModel, features: list[int]) -> TestResult:
    """Return the score test that these features have no effect; it fits without them."""
    objective = model.objective
    theta, _ = _optimum_without(model, features)
    gradient = objective.evaluate(theta, Penalty(0.0), torch.float64).gradient
    U = -gradient[1:].flatten() * objective.total
    H = information(objective, theta, 0)
    return TestResult.of(float(U @ solve(H, U)), (objective.classes - 1) * len(features))


def null_log_likelihood(objective: Objective) -> float:
    """Return the log-likelihood without features: of intercepts, or of equal probabilities."""
    if not objective.bias:
        return -float(objective.total) * math.log(objective.classes)
    totals = _class_totals(objective)
    return float(totals @ (totals / totals.sum()).log())


def _class_totals(objective: Objective) -> Tensor:
    """Return the weight of the samples of each class (K,), float64."""
    counts = torch.bincount(objective.y, objective.weights, minlength=objective.classes)
    return objective.summed(counts) * objective.unit


def _optimum_without(model: FittedModel, features: list[int]) -> tuple[Tensor, float]:
    """Return the optimum without these features and its log-likelihood.

    It is a theta (K, P) whose coefficients of these features are 0. Its fit starts at the
    coefficients of the others.
    """
    objective = model.objective
    theta = objective.zeros()
    if len(features) == objective.samples.d:
        if objective.bias:
            theta[:, -1] = _class_totals(objective).log()
        return theta, null_log_likelihood(objective)
    other, kept = without_columns(objective, features)
    columns = [*kept.tolist(), *[objective.samples.d] * objective.bias]
    found = fit_model(other, model.penalty, model.C, model.theta[:, columns])
    theta[:, columns] = found.theta
    return theta, found.log_likelihood

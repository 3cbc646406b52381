"""Estimates with their uncertainty: the numbers of ``inference``, and what they say by themselves.

The covariance gives standard errors, and with quantiles of the normal distribution

    z = estimate / standard error,    p = P(|Z| >= |z|),    estimate -+ quantile * standard error

With the log-likelihood L, L_0 without features, k coefficients and S samples:

    AIC = 2 k - 2 L        BIC = k log S - 2 L        pseudo R^2 = 1 - L / L_0  (McFadden 1974)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from softmax_torch.solvers.inference.bootstrap import Bootstrap
from softmax_torch.solvers.inference.coding import symmetric_covariance
from softmax_torch.solvers.inference.covariance import CovarianceName
from softmax_torch.solvers.inference.hypothesis_tests import TestResult
from softmax_torch.solvers.inference.model import FittedModel
from softmax_torch.solvers.inference.names import INTERCEPT
from softmax_torch.solvers.inference.normal import interval, two_sided_p
from softmax_torch.solvers.inference.profile_likelihood import IntervalName, Profile

__all__ = ["Estimates"]


@dataclass(frozen=True, eq=False, repr=False)
class Estimates:
    """Estimates with their uncertainty, float64.

    The tables are (R, P). Rows are all classes except the reference, in order, or all classes
    without a reference. Columns are the features, with the intercept, if any, as the last. With a
    reference, ``exp(coefficients)`` are odds ratios relative to it; for two classes a coefficient
    is the log-odds ratio of the second class.

    Attributes:
        coefficients: the estimates (R, P).
        covariance: (R P, R P), of the coefficients row by row.
        covariance_type: "nonrobust", "HC0", "HC1" or "cluster".
        log_likelihood: the log-likelihood at the estimates, without the penalty.
        log_likelihood_null: the log-likelihood without features: of intercepts alone, or of equal
            probabilities if the fit has no intercept.
        reference: index of the class that the others are compared with, or None.
        confidence: confidence level of the intervals.
        theta: coefficients of all classes (K, P) of X as given, in the symmetric coding: each
            column adds up to 0 over the classes.
        feature_names: names of the features (D,).
        columns: names that the columns of a frame for predictions have: those of the frame that was
            fitted, else the feature names that were given; None for neither.
        class_names: names of the classes (K,).
        labels: labels of the classes (K,), as in y, sorted.
        parameters: number of coefficients k = (K - 1) P; of a fit with an L2 penalty the effective
            number, which is smaller.
        intervals: what ``confidence_intervals`` and ``p_values`` come from: "wald" for the
            covariance, "profile" for the profile of the likelihood.
        groups: number of groups of the samples, or None.
        bootstrap: standard errors and intervals from resampled data, if they were asked for.
        model: the fit, with its samples, weights and penalty.
    """

    coefficients: Tensor
    covariance: Tensor
    covariance_type: CovarianceName
    log_likelihood: float
    log_likelihood_null: float
    reference: int | None
    confidence: float
    theta: Tensor
    feature_names: tuple[str, ...]
    columns: Sequence[Any] | None
    class_names: tuple[str, ...]
    labels: tuple[Any, ...]
    parameters: float
    intervals: IntervalName
    groups: int | None
    bootstrap: Bootstrap | None
    model: FittedModel

    @cached_property
    def standard_errors(self) -> Tensor:
        """Square roots of the diagonal of the covariance (R, P)."""
        errors: Tensor = self.covariance.diagonal().sqrt().view_as(self.coefficients)
        return errors

    @cached_property
    def z_values(self) -> Tensor:
        """Coefficients divided by their standard errors (R, P)."""
        z: Tensor = self.coefficients / self.standard_errors
        return z

    @cached_property
    def p_values(self) -> Tensor:
        """p-values of the two-sided tests that a coefficient is 0 (R, P).

        With ``intervals="profile"`` they are those of likelihood-ratio tests, one fit each.
        """
        if self.intervals == "profile":
            return self._profile.p_values()
        return two_sided_p(self.z_values)

    @cached_property
    def confidence_intervals(self) -> Tensor:
        """Lower and upper ends (R, P, 2).

        With ``intervals="profile"`` each end takes several fits.
        """
        if self.intervals == "profile":
            return self._profile.intervals(self.confidence)
        return interval(self.coefficients, self.standard_errors, self.confidence)

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
        """Number of samples S: the sum of their weights, over all processes."""
        return float(self.model.objective.total)

    @property
    def aic(self) -> float:
        """Akaike's information criterion; the least is best."""
        return 2 * self.parameters - 2 * self.log_likelihood

    @property
    def bic(self) -> float:
        """Schwarz's information criterion; the least is best."""
        return self.parameters * math.log(self.observations) - 2 * self.log_likelihood

    @property
    def pseudo_r2(self) -> float:
        """McFadden's pseudo R^2."""
        return 1 - self.log_likelihood / self.log_likelihood_null

    @property
    def likelihood_ratio(self) -> TestResult | None:
        """The likelihood-ratio test of all features; None for a fit with an L2 penalty."""
        if self.model.penalty == "firth":
            return self._profile.test(list(range(len(self.feature_names))))
        if self.model.penalty != "none":
            return None
        D, K = len(self.feature_names), len(self.class_names)
        statistic = 2 * (self.log_likelihood - self.log_likelihood_null)
        return TestResult.of(max(statistic, 0.0), D * (K - 1))

    @property
    def penalty_text(self) -> str:
        """The penalty in words."""
        if self.model.penalty == "firth":
            return "Firth"
        C = self.model.C
        return self.model.penalty if C == math.inf else f"{self.model.penalty}, C={C:g}"

    def covariance_of_theta(self) -> Tensor:
        """Return the covariance (K P, K P) of ``theta``, row by row; its rank is (K - 1) P."""
        if self.reference is None:
            return self.covariance
        return symmetric_covariance(self.covariance, len(self.theta), self.reference)

    @cached_property
    def _profile(self) -> Profile:
        return Profile(self.model, self.reference)

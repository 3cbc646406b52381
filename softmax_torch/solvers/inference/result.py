"""The result of ``inference``: coefficients, their covariance, and what follows from them.

The covariance gives standard errors, and with quantiles of the normal distribution

    z = estimate / standard error,    p = P(|Z| >= |z|),    estimate -+ quantile * standard error

With the log-likelihood L, L_0 without features, k coefficients and S samples:

    AIC = 2 k - 2 L        BIC = k log S - 2 L        pseudo R^2 = 1 - L / L_0  (McFadden 1974)
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from softmax_torch.solvers.inference import hypothesis_tests, summary
from softmax_torch.solvers.inference.bootstrap import Bootstrap
from softmax_torch.solvers.inference.coding import both_sides, class_coding, symmetric_covariance
from softmax_torch.solvers.inference.covariance import CovarianceName
from softmax_torch.solvers.inference.hypothesis_tests import TestResult
from softmax_torch.solvers.inference.marginal_effects import (
    At,
    Dummies,
    MarginalEffects,
    marginal_effects,
)
from softmax_torch.solvers.inference.model import FittedModel
from softmax_torch.solvers.inference.names import INTERCEPT, feature_indices
from softmax_torch.solvers.inference.normal import interval, two_sided_p
from softmax_torch.solvers.inference.probability_intervals import (
    ProbabilityIntervals,
    probabilities,
    probability_intervals,
    samples_like,
)
from softmax_torch.solvers.inference.profile_likelihood import IntervalName, Profile
from softmax_torch.solvers.samples import Samples

__all__ = ["Inference"]


@dataclass(frozen=True, eq=False, repr=False)
class Inference:
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
            return self._profile.test(self._indices(None))
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

    def wald_test(self, features: Sequence[str | int] | str | int | None = None) -> TestResult:
        """Return the Wald test that features have no effect on any class.

        It uses ``covariance``, and so holds where that does.

        Args:
            features: names or indices of features; None for all of them. The intercept is not one.

        Raises:
            ValueError: a feature is unknown.
        """
        indices = self._indices(features)
        K, (R, P) = len(self.class_names), self.coefficients.shape
        blocks = self.covariance.reshape(R, P, R, P)[:, indices][:, :, :, indices]
        b, V = self.coefficients[:, indices], blocks.reshape(R * len(indices), -1)
        if self.reference is None:
            contrast = class_coding(K, 0).to(b)
            b, V = contrast @ b, both_sides(contrast, V, len(indices))
        return hypothesis_tests.wald(b.flatten(), V)

    def likelihood_ratio_test(
        self, features: Sequence[str | int] | str | int | None = None
    ) -> TestResult:
        """Return the likelihood-ratio test that features have no effect on any class.

        It fits without the features. Like ``score_test`` it assumes that the model holds. With
        Firth's penalty both likelihoods are penalised (see ``profile_likelihood``).

        Args:
            features: as in ``wald_test``.

        Raises:
            ValueError: a feature is unknown; the fit has an L2 penalty; the covariance is robust,
                and so doubts the model that the test assumes.
        """
        if self.model.penalty == "firth":
            self._refuse_robust("likelihood_ratio_test")
            return self._profile.test(self._indices(features))
        self._refuse_doubt("likelihood_ratio_test")
        return hypothesis_tests.likelihood_ratio(self.model, self._indices(features))

    def score_test(self, features: Sequence[str | int] | str | int | None = None) -> TestResult:
        """Return the score test (Rao's) that features have no effect on any class.

        Args and errors are those of ``likelihood_ratio_test``, but Firth's penalty is refused too.
        """
        self._refuse_doubt("score_test")
        return hypothesis_tests.score(self.model, self._indices(features))

    def predict_proba(self, X: Any) -> Tensor:
        """Return the class probabilities (n, K) of samples X (n, D), float64, on the fit's device.

        Args:
            X: samples as for ``inference``; a frame has the columns of the fit, in their order.

        Raises:
            ValueError, TypeError: X has other columns, or entries that are not finite numbers.
        """
        return probabilities(self._samples(X), self.theta)

    def predict_intervals(self, X: Any, *, confidence: float | None = None) -> ProbabilityIntervals:
        """Return class probabilities of samples X (n, D) with standard errors and intervals.

        The intervals are for the probabilities of the model, of which the data leave us uncertain,
        and not for the class of a sample. They use ``covariance`` by the delta method on the scale
        of the log-odds, and lie in [0, 1]. This takes O(n K^2 P^2) time.

        Args:
            X: as in ``predict_proba``.
            confidence: level of the intervals; by default that of this result.

        Raises:
            ValueError, TypeError: as in ``predict_proba``; ``confidence`` is not in (0, 1).
        """
        return probability_intervals(
            self._samples(X),
            self.theta,
            self.covariance_of_theta(),
            self.class_names,
            self.confidence if confidence is None else confidence,
        )

    def marginal_effects(
        self,
        at: At = "average",
        *,
        values: Mapping[str | int, float] | None = None,
        dummies: Dummies = "auto",
        confidence: float | None = None,
    ) -> MarginalEffects:
        """Return how much the probability of each class changes with each feature.

        The effect of a feature is the derivative of the probability; that of a column of zeros and
        ones is the difference from 0 to 1. The effects of a feature add up to 0 over the classes.
        Standard errors use ``covariance`` by the delta method. This takes a pass over X, and a
        second one for ``at="mean"`` or to look for dummies.

        Args:
            at: "average" for the mean effect of the samples, or "mean" for the effect at the mean
                sample.
            values: features to set to a value in all samples, by name or index; the others are
                left to ``at``. With a value for each feature this is the effect at that row.
            dummies: "auto" to take each column of zeros and ones as a dummy, "none", or names or
                indices of such columns.
            confidence: level of the intervals; by default that of this result.

        Raises:
            ValueError, TypeError: an argument or a feature is unknown; a column in ``dummies`` has
                other entries than 0 and 1; a value is not finite.
        """
        return marginal_effects(
            self.model.objective,
            self.theta,
            self.covariance_of_theta(),
            self.feature_names,
            self.class_names,
            at,
            values,
            dummies,
            self.confidence if confidence is None else confidence,
        )

    def summary(self, odds_ratios: bool = False) -> str:
        """Return the figures of the fit and a block of coefficients for each class, as text.

        Args:
            odds_ratios: show exp(coefficient), its standard error by the delta method, and the
                interval of the coefficient under exp, in place of the coefficient's own.
        """
        return summary.table_of(self, odds_ratios).as_text()

    def to_dict(self, odds_ratios: bool = False) -> dict[str, list[Any]]:
        """Return columns with an entry for each coefficient, class by class.

        They are class, feature, coefficient, standard_error, z, p_value, lower and upper;
        bootstrap_standard_error, bootstrap_lower and bootstrap_upper if there is a bootstrap; and
        odds_ratio, odds_ratio_lower and odds_ratio_upper on request.
        """
        return summary.columns_of(self, odds_ratios)

    def to_frame(self, odds_ratios: bool = False) -> Any:
        """Return the columns of ``to_dict`` as a pandas frame with the index (class, feature).

        Raises:
            ImportError: pandas is not installed.
        """
        import pandas as pd  # type: ignore[import-untyped] # it ships no types

        frame = pd.DataFrame(self.to_dict(odds_ratios))
        return frame.set_index(["class", "feature"])

    def to_markdown(self, odds_ratios: bool = False) -> str:
        """Return the summary as tables of Markdown."""
        return summary.table_of(self, odds_ratios).as_markdown()

    def _repr_html_(self) -> str:
        """Return the summary as tables of HTML, for notebooks."""
        return summary.table_of(self).as_html()

    def __str__(self) -> str:
        return self.summary()

    def __repr__(self) -> str:
        return (
            f"Inference({len(self.class_names)} classes, {len(self.feature_names)} features, "
            f"{self.observations:g} observations, {self.covariance_type} covariance)"
        )

    def covariance_of_theta(self) -> Tensor:
        """Return the covariance (K P, K P) of ``theta``, row by row; its rank is (K - 1) P."""
        if self.reference is None:
            return self.covariance
        return symmetric_covariance(self.covariance, len(self.theta), self.reference)

    @cached_property
    def _profile(self) -> Profile:
        return Profile(self.model, self.reference)

    def _samples(self, X: Any) -> Samples:
        """Return X as samples with the columns of the fit."""
        return samples_like(X, len(self.feature_names), self.columns, self.theta.device)

    def _indices(self, features: Sequence[str | int] | str | int | None) -> list[int]:
        """Return the ascending indices of features given by name or by index."""
        if features is None:
            return list(range(len(self.feature_names)))
        indices = feature_indices(features, self.feature_names)
        if not indices:
            raise ValueError("features: expected at least one feature, got none")
        return indices

    def _refuse_doubt(self, test: str) -> None:
        """Raise ValueError if the fit is penalised or the covariance is robust."""
        if self.model.penalty != "none":
            raise ValueError(
                f'{test}: expected a fit with penalty="none", which maximises the likelihood, got '
                f"{self.model.penalty!r}"
            )
        self._refuse_robust(test)

    def _refuse_robust(self, test: str) -> None:
        """Raise ValueError if the covariance is robust."""
        if self.covariance_type != "nonrobust":
            raise ValueError(
                f'{test}: expected covariance="nonrobust", as the test assumes the model, got '
                f"{self.covariance_type!r}; wald_test uses this covariance"
            )

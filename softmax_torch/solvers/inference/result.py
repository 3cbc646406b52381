"""The result of ``inference``: estimates, and the tests, predictions and tables that use them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from softmax_torch.solvers.inference import hypothesis_tests, summary
from softmax_torch.solvers.inference.coding import both_sides, class_coding
from softmax_torch.solvers.inference.estimates import Estimates
from softmax_torch.solvers.inference.hypothesis_tests import TestResult
from softmax_torch.solvers.inference.marginal_effects import (
    At,
    Dummies,
    MarginalEffects,
    marginal_effects,
)
from softmax_torch.solvers.inference.names import feature_indices
from softmax_torch.solvers.inference.probability_intervals import (
    ProbabilityIntervals,
    probabilities,
    probability_intervals,
    samples_like,
)
from softmax_torch.solvers.inference.tables import frame_of
from softmax_torch.solvers.samples import Samples

__all__ = ["Inference"]


class Inference(Estimates):
    """The coefficients of a fit with their uncertainty, and what follows from them.

    ``Estimates`` has the numbers: coefficients, standard errors, intervals, p-values, criteria.
    """

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
        return frame_of(self.to_dict(odds_ratios), ["class", "feature"])

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

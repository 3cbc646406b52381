"""Helpers that compare two classifiers."""

from typing import Any

import numpy as np
from sklearn.preprocessing import StandardScaler

from softmax_torch import SoftmaxClassifier

__all__ = ["exact", "near", "same_model", "standardised", "weights"]

NEAR = 1e-6


def exact(**params: Any) -> SoftmaxClassifier:
    """Return a classifier whose solution is accurate enough to compare within ``NEAR``."""
    return SoftmaxClassifier(tol=1e-12, **params)


def standardised(load: Any) -> tuple[np.ndarray, np.ndarray]:
    X, y = load(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def weights(n: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 3, n)


def near(a: Any, b: Any) -> None:
    np.testing.assert_allclose(a, b, rtol=0, atol=NEAR * max(1.0, np.abs(b).max()))


def same_model(a: Any, b: Any) -> None:
    """Assert equal coefficients, and intercepts equal up to a number that all classes share."""
    near(a.coef_, b.coef_)
    centre = len(a.intercept_) > 1
    near(a.intercept_ - centre * a.intercept_.mean(), b.intercept_ - centre * b.intercept_.mean())

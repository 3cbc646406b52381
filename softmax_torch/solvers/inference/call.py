"""Fit softmax regression, and return its coefficients with their uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from softmax_torch.solvers.conversion import column_names
from softmax_torch.solvers.inference.covariance import covariance_of
from softmax_torch.solvers.inference.model import PenaltyName, fit_model, strength
from softmax_torch.solvers.inference.names import class_names_of, feature_names_of
from softmax_torch.solvers.inference.result import Inference, result_of
from softmax_torch.solvers.problem import objective_of

__all__ = ["inference"]


def inference(
    X: Any,
    y: Any,
    *,
    reference: int | None = 0,
    confidence: float = 0.95,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    penalty: PenaltyName = "none",
    C: float | None = None,
    feature_names: Sequence[Any] | None = None,
    class_names: Sequence[Any] | None = None,
    device: torch.device | str | None = None,
    distributed: bool = False,
) -> Inference:
    """Fit, and return the coefficients with their uncertainty.

    Sample weights are frequencies: a weight of 2 counts as two samples.

    Args:
        X: samples (n, D), as for ``fit``.
        y: class indices (n,).
        reference: the class that the others are compared with; None for all classes, relative to
            their mean.
        confidence: probability that an interval covers its coefficient, in (0, 1).
        fit_intercept: whether the logits have a bias.
        sample_weight: frequencies (n,); None for ones.
        penalty: "none", or "l2" for half the sum of the squared weights (never the intercept) times
            1/C. A penalised fit is biased towards 0: its intervals are for the coefficients that
            the penalised fit has in the population.
        C: inverse strength of the penalty "l2", as in scikit-learn.
        feature_names: names of the columns of X; by default those of a frame, or x0, x1, ...
        class_names: names of the classes; by default their indices.
        device: where to compute; by default where X is.
        distributed: whether each process of the default group of ``torch.distributed`` passes its
            own part of the samples. All processes get the same answer.

    Raises:
        ValueError, TypeError: as ``fit``; the classes can be separated; columns are collinear (the
            message names them); ``reference`` is not a class.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence: expected a number in (0, 1), got {confidence}")
    l2 = strength(penalty, C)
    objective = objective_of(X, y, fit_intercept, sample_weight, None, device, None, distributed)
    K = objective.classes
    if reference is not None and not 0 <= reference < K:
        raise ValueError(f"reference: expected a class in [0, {K}) or None, got {reference}")
    features = feature_names_of(X, feature_names, objective.samples.d)
    named = feature_names is not None or column_names(X) is not None
    classes = class_names_of(class_names, K)
    with objective.threads():
        model = fit_model(objective, penalty, l2, features if named else None)
        covariance = covariance_of(model, 0 if reference is None else reference)
        return result_of(model, covariance, reference, confidence, features, classes)

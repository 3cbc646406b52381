"""Fit softmax regression, and return its coefficients with their uncertainty."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from softmax_torch.solvers.conversion import as_whole_number
from softmax_torch.solvers.inference import names
from softmax_torch.solvers.inference.bootstrap import bootstrap as bootstrapped
from softmax_torch.solvers.inference.coding import (
    as_given,
    class_coding,
    covariance_as_given,
    symmetric_covariance,
)
from softmax_torch.solvers.inference.collinearity import refuse_collinear
from softmax_torch.solvers.inference.covariance import (
    CovarianceName,
    check_covariance,
    covariance_of,
    refuse_few,
)
from softmax_torch.solvers.inference.groups import groups_of
from softmax_torch.solvers.inference.hypothesis_tests import null_log_likelihood
from softmax_torch.solvers.inference.memory import refuse_large
from softmax_torch.solvers.inference.model import PenaltyName, checked_strength, fit_model
from softmax_torch.solvers.inference.normal import checked_confidence
from softmax_torch.solvers.inference.profile_likelihood import IntervalName, intervals_of
from softmax_torch.solvers.inference.result import Inference
from softmax_torch.solvers.problem import objective_of

__all__ = ["inference"]


def inference(
    X: Any,
    y: Any,
    *,
    reference: Any = names.FIRST,
    confidence: float = 0.95,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    penalty: PenaltyName = "none",
    C: float | None = None,
    covariance: CovarianceName = "nonrobust",
    groups: Any = None,
    intervals: IntervalName | None = None,
    feature_names: Sequence[Any] | None = None,
    class_names: Sequence[Any] | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    device: torch.device | str | None = None,
    distributed: bool = False,
) -> Inference:
    """Fit, and return the coefficients with their uncertainty.

    Args:
        X: samples (n, D), as for ``fit``: an array, a frame, a sparse matrix, a memory map or
            blocks of rows.
        y: labels (n,): whole numbers, booleans or strings. Their sorted distinct values are the
            classes.
        reference: the class that the others are compared with: its label, its name or, if labels
            are strings, its index; by default the first class. None for all classes, relative to
            their mean.
        confidence: probability that an interval covers its coefficient, in (0, 1).
        fit_intercept: whether the logits have a bias.
        sample_weight: frequencies (n,): a weight of 2 counts as two samples. None for ones.
        penalty: "none", "firth" or "l2". "firth" reduces the bias of small samples, and has finite
            estimates where classes separate (see ``firth``). "l2" is for half the sum of the
            squared weights (never the intercept) times 1/C. It biases the fit towards 0: its
            intervals are for the coefficients that the penalised fit has in the population.
        C: inverse strength of the penalty "l2", as in scikit-learn.
        covariance: "nonrobust" if the model holds, a sandwich if it may not ("HC0"; "HC1" with a
            factor for few samples), or "cluster" for samples that depend on each other within
            groups. ``covariance`` has the formulas, and the factors of other programs.
        groups: the group of each sample (n,), numbers or strings, for "cluster" and for the
            bootstrap.
        intervals: "wald", from the covariance, or "profile", from the profile of the likelihood,
            with p-values of likelihood-ratio tests. Each end takes several fits. By default
            "profile" for Firth's penalty with the nonrobust covariance, else "wald".
        feature_names: names of the columns of X; by default those of a frame, or x0, x1, ...
        class_names: names of the classes, in the order of the sorted labels; by default the labels.
        bootstrap: number of resampled data sets to fit, for standard errors and intervals that need
            no formula (see ``Inference.bootstrap``); 0 for none. Whole groups are resampled if
            there are groups.
        seed: seed of the bootstrap.
        device: where to compute; by default where X is.
        distributed: whether each process of the default group of ``torch.distributed`` passes its
            own part of the samples. All processes get the same answer.

    Returns:
        An ``Inference``.

    Raises:
        MemoryError: the covariance takes more memory than is free.
        ValueError, TypeError: as ``fit``; without a penalty the classes can be separated, columns
            are collinear (the message names them) or rows are fewer than coefficients of a class;
            there are fewer groups than coefficients; an argument is unknown or has no use.
    """
    confidence = checked_confidence(confidence)
    strength = checked_strength(penalty, C)
    seed = as_whole_number("seed", seed)
    if abs(seed) >= 1 << 53:
        raise ValueError(f"seed: expected a whole number of at most 53 bits, got {seed}")
    resamples = as_whole_number("bootstrap", bootstrap)
    if resamples < 0 or resamples == 1:
        raise ValueError(f"bootstrap: expected 0 or at least 2 resamples, got {resamples}")
    check_covariance(covariance, groups, resamples > 0)
    kind = intervals_of(intervals, penalty, covariance)
    target, labels = names.classes_of(y, distributed)
    objective = objective_of(
        X, target, fit_intercept, sample_weight, None, device, None, distributed
    )
    K, (_, P) = objective.classes, objective.shape
    columns = names.frame_columns(X)
    given = columns if feature_names is None else feature_names
    features = names.feature_names_of(given, objective.samples.d)
    classes = names.class_names_of(class_names, labels)
    ref = names.class_index(reference, labels, classes)
    if given is not None and all(isinstance(name, str) for name in given):
        objective.feature_names = features
    if labels != list(range(K)) or class_names is not None:
        objective.class_names = classes
    grouped = None if groups is None else groups_of(groups, objective)
    refuse_few(covariance, objective, grouped)
    clusters = 0 if grouped is None or covariance != "cluster" else grouped.count
    refuse_large(K, P, clusters, objective.samples.device)
    with objective.threads():
        if strength == math.inf:
            refuse_collinear(objective)
        model = fit_model(objective, penalty, strength)
        r = 0 if ref is None else ref
        estimated = covariance_of(model, r, covariance, grouped)
        V = covariance_as_given(objective, estimated.covariance)
        if ref is None:
            V = symmetric_covariance(V, K, r)
        theta = model.theta @ as_given(objective).T
        coding = class_coding(K, ref).to(theta)
        boot = None
        if resamples:
            boot = bootstrapped(model, coding, resamples, seed, confidence, grouped)
        return Inference(
            coefficients=coding @ theta,
            covariance=V,
            covariance_type=covariance,
            log_likelihood=model.log_likelihood,
            log_likelihood_null=null_log_likelihood(objective),
            reference=ref,
            confidence=confidence,
            theta=theta,
            feature_names=features,
            columns=given if columns is None else columns,
            class_names=classes,
            labels=tuple(labels),
            parameters=estimated.coefficients,
            intervals=kind,
            groups=None if grouped is None else grouped.count,
            bootstrap=boot,
            model=model,
        )

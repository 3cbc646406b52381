"""Bootstrap: standard errors and intervals from fits to resampled data.

Samples are drawn with replacement, as many as there are, and the coefficients are fitted again
(Efron & Tibshirani 1993, "An Introduction to the Bootstrap", 6.2 and 13.3). The standard error is
the standard deviation of the refitted coefficients. The ends of the percentile interval are their
quantiles. With groups, whole groups are drawn, as many as there are (Davison & Hinkley 1997,
"Bootstrap Methods and their Application", 3.8).

A resample is a vector of weights: how often each sample was drawn. So all fits share one X, and
start at the estimates.

A resample may have no optimum: a class is missing or separated, or columns are collinear. It is
left out and counted. Intervals hold for data that have an optimum, then; many failures say that the
coefficients are hardly determined.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from softmax_torch.solvers.inference.coding import as_given
from softmax_torch.solvers.inference.collinearity import refuse_collinear
from softmax_torch.solvers.inference.groups import Groups
from softmax_torch.solvers.inference.model import FittedModel, fit_model
from softmax_torch.solvers.inference.refits import batch_size, refit

__all__ = ["Bootstrap", "bootstrap"]

LEAST = 2
"""Fits from which a standard deviation is computed, at least."""


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Standard errors and intervals of the coefficients from resampled data.

    Attributes:
        standard_errors: (R, P).
        confidence_intervals: (R, P, 2), percentile intervals.
        draws: coefficients of each fit (resamples - failed, R, P).
        resamples: number of resamples.
        failed: number of resamples that had no optimum and were left out.
    """

    standard_errors: Tensor
    confidence_intervals: Tensor
    draws: Tensor = field(repr=False)
    resamples: int
    failed: int


def bootstrap(
    model: FittedModel,
    coding: Tensor,
    resamples: int,
    seed: int,
    confidence: float,
    groups: Groups | None = None,
) -> Bootstrap:
    """Return the bootstrap of the coefficients ``coding`` theta, for a matrix ``coding`` (R, K).

    Args:
        model: the fit to the data.
        coding: from theta of X as given to the coefficients.
        resamples: number of resamples.
        seed: seed of the draws. All processes draw the same resamples.
        confidence: level of the intervals.
        groups: draw these groups in place of samples.

    Raises:
        ValueError: fewer than two resamples have an optimum.
    """
    generator = torch.Generator().manual_seed(seed)
    to_given = as_given(model.objective).T
    draws, left, size = [], resamples, batch_size(model)
    while left > 0:
        weights = [_drawn(model, groups, generator) for _ in range(min(size, left))]
        left -= len(weights)
        thetas = _refitted(model, torch.stack(weights))
        draws += [coding @ theta @ to_given for theta in thetas]
    if len(draws) < LEAST:
        raise ValueError(
            f"bootstrap: expected at least {LEAST} resamples with an optimum, got {len(draws)} of "
            f'{resamples}; fit with penalty="l2" or penalty="firth"'
        )
    stacked = torch.stack(draws)
    tail = (1 - confidence) / 2
    ends = torch.tensor([tail, 1 - tail], dtype=torch.float64, device=stacked.device)
    by_class = [each.quantile(ends, 0) for each in stacked.unbind(1)]  # it takes 16M entries
    return Bootstrap(
        standard_errors=stacked.std(0),
        confidence_intervals=torch.stack(by_class, 1).movedim(0, -1),
        draws=stacked,
        resamples=resamples,
        failed=resamples - len(draws),
    )


def _drawn(model: FittedModel, groups: Groups | None, generator: torch.Generator) -> Tensor:
    """Return the weights (n,) of a resample, in units of the objective's weights."""
    objective = model.objective
    device = objective.samples.device
    if groups is not None:
        counts = _counts(torch.ones(groups.count), groups.count, generator).to(device)
        by_group: Tensor = objective.weights * counts[groups.index]
        return by_group
    # With frequencies each of the S samples is drawn with the same probability.
    weights = objective.processes.concatenated(objective.weights)
    samples = max(1, round(objective.total))
    counts = _counts(weights.cpu(), samples, generator).to(device)
    own, _ = objective.processes.rows(objective.samples.n, device)
    drawn: Tensor = counts[own] * (objective.divisor / samples)
    return drawn


def _counts(weights: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Return how often each index is drawn, with these probabilities up to a factor; float64."""
    ends = weights.double().cumsum(0)
    places = torch.rand(draws, generator=generator, dtype=torch.float64) * ends[-1]
    # a place may round up to the last end
    drawn = torch.searchsorted(ends, places, right=True).clamp_max(len(ends) - 1)
    counts: Tensor = torch.bincount(drawn, minlength=len(ends))
    return counts.double()


def _refitted(model: FittedModel, weights: Tensor) -> list[Tensor]:
    """Return theta (K, P) of the resamples (J, n) that have an optimum."""
    objective = model.objective
    if model.penalty == "firth":  # fits are not batched; a class without samples has an optimum
        found = (_refitted_alone(model, weight) for weight in weights)
        return [theta for theta in found if theta is not None]
    y = objective.y.expand(len(weights), -1)
    totals = weights.new_zeros(len(weights), objective.classes).scatter_add_(1, y, weights)
    weights = weights[(objective.summed(totals) > 0).all(1)]
    thetas, converged = refit(model, weights)
    kept = []
    for theta, done, weight in zip(thetas, converged.tolist(), weights, strict=True):
        again = theta if done else _refitted_alone(model, weight)
        if again is not None:
            kept.append(again)
    return kept


def _refitted_alone(model: FittedModel, weight: Tensor) -> Tensor | None:
    """Return theta (K, P) of a resample (n,); None if it has no optimum."""
    try:
        resampled = model.objective.reweighted(weight)
        if model.C == math.inf:
            refuse_collinear(resampled)
        return fit_model(resampled, model.penalty, model.C, model.theta).theta
    except ValueError:  # classes are separated, or columns are collinear
        return None

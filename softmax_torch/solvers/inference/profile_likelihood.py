"""Intervals and tests from the profile of a log-likelihood, with Firth's penalty or without.

For a coefficient c . gamma, the profile l_c(b) is the maximum of the log-likelihood l over all
gamma with c . gamma = b. With the maximum l_max over all gamma, the interval of level 1 - alpha
holds every b that the likelihood-ratio test does not reject,

    2 (l_max - l_c(b))  <=  z^2             z^2 = the 1 - alpha quantile of chi-squared, 1 df

and the test of C gamma = 0 compares 2 (l_max - max_{C gamma = 0} l) with chi-squared with the rank
of C as its degrees of freedom (Heinze & Schemper 2002, Statistics in Medicine 21, 2.2 and 2.3, for
Firth's penalty; Venzon & Moolgavkar 1988, Applied Statistics 37, without one). Where classes nearly
separate, l is far from a parabola: the interval is not symmetric, and Wald's is wrong.

The penalty at a restricted maximum is log det of the information of all coefficients, as in the
paper and in R's logistf. A model without the column would have a smaller information.

An end is the root of r(b) = z for r(b) = (2 (l_max - l_c(b)))^(1/2), which is nearly a straight
line in b. Its slope is -mu / r with Lagrange's multiplier mu = dl_c/db (``constrained_maximum``).
Newton's method from Wald's end takes two to six steps; a step that leaves the bracket halves it.
Each step is a fit, which starts on the line through the last fit with the direction A c of dgamma.

Firth's l falls to -infinity as |gamma| grows, and so both ends are finite.
"""

from __future__ import annotations

import math
import warnings
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.fit import ConvergenceWarning
from softmax_torch.solvers.inference.coding import as_given, class_coding
from softmax_torch.solvers.inference.constrained_maximum import Maximum, maximum
from softmax_torch.solvers.inference.covariance import CovarianceName
from softmax_torch.solvers.inference.firth import Likelihood
from softmax_torch.solvers.inference.hypothesis_tests import TestResult
from softmax_torch.solvers.inference.model import FittedModel, PenaltyName
from softmax_torch.solvers.inference.normal import quantile

__all__ = ["IntervalName", "Profile", "intervals_of", "profile_intervals", "profile_test"]

IntervalName = Literal["wald", "profile"]

CLOSE = 1e-5
"""Relative distance of r from z from which one more step of Newton's method, not evaluated, leaves
1e-10 of it."""

FINE, ROUGH = 1e-6, 1e-3
"""Distance from a profile's maximum at which its fit ends, in z standard errors: r is right to a
share of 1e-12 near the end of an interval, and of 1e-6 before. Rough fits first save a fifth of the
evaluations."""

NEARLY = 0.03
"""Relative distance of r from z from which fits are fine. A rough fit overestimates r, and so there
does not tell that it is beyond the end."""

MAX_STEPS = 60
"""Steps to an end of an interval, at most."""

WIDEN = 3.0
"""Largest ratio of the distance from the estimate to that of the step before."""


def intervals_of(intervals: Any, penalty: PenaltyName, covariance: CovarianceName) -> IntervalName:
    """Return the kind of intervals: profile for Firth's penalty, Wald's otherwise, if it is None.

    Raises:
        ValueError: the kind is unknown, or the profile is asked for where it does not hold.
    """
    if intervals is None:
        return "profile" if penalty == "firth" and covariance == "nonrobust" else "wald"
    if intervals == "wald":
        return "wald"
    if intervals != "profile":
        raise ValueError(f"intervals: expected None, wald or profile; got {intervals!r}")
    if penalty == "l2" or covariance != "nonrobust":
        raise ValueError(
            'intervals="profile": expected penalty="none" or "firth" and covariance="nonrobust", '
            f"as the test assumes the model, got {penalty!r} and {covariance!r}"
        )
    return "profile"


class Profile:
    """The profile likelihood of a fitted model, without a penalty or with Firth's.

    Args:
        model: the fit.
        reference: the class that coefficients are relative to; None for the mean of the classes.
    """

    def __init__(self, model: FittedModel, reference: int | None) -> None:
        self.objective = model.objective
        self.likelihood = Likelihood(model.objective, jeffreys=model.penalty == "firth")
        gamma = self.likelihood.gamma_of(model.theta)
        at = self.likelihood.evaluate(gamma)
        self.best = Maximum(gamma, at.value, at.inverse, gamma[:0], 0)
        # c of the coefficients c . gamma of X as given, (L P, R P); theta of class 0 is 0.
        coding = class_coding(len(model.theta), reference)[:, 1:]
        self.contrasts = torch.kron(coding.contiguous().to(gamma), as_given(model.objective))

    def intervals(self, confidence: float) -> Tensor:
        """Return the intervals (L, P, 2) of the coefficients of X as given."""
        with self.objective.threads():
            ends = profile_intervals(self.likelihood, self.best, self.contrasts, confidence)
        return ends.view(-1, self.objective.shape[1], 2)

    def p_values(self) -> Tensor:
        """Return the p-values (L, P) of the tests that a coefficient of X as given is 0."""
        with self.objective.threads():
            rows = self.contrasts.unsqueeze(1)
            tests = [profile_test(self.likelihood, self.best, c) for c in rows]
        p = self.contrasts.new_tensor([test.p_value for test in tests])
        return p.view(-1, self.objective.shape[1])

    def test(self, features: list[int]) -> TestResult:
        """Return the test that these features have no effect on any class."""
        R, P = self.objective.classes - 1, self.objective.shape[1]
        every = torch.eye(R * P).to(self.best.gamma).view(R, P, -1)
        with self.objective.threads():
            return profile_test(self.likelihood, self.best, every[:, features].flatten(0, 1))


def profile_intervals(
    likelihood: Likelihood, best: Maximum, contrasts: Tensor, confidence: float
) -> Tensor:
    """Return the lower and upper ends (L, 2) of the coefficients ``contrasts`` gamma.

    Args:
        likelihood: the log-likelihood.
        best: its maximum.
        contrasts: (L, q), one coefficient a row.
        confidence: level of the intervals, in (0, 1).

    Warns:
        ConvergenceWarning: an end was not found, and is given as infinite.
    """
    z = quantile(confidence)
    ends = [[_end(likelihood, best, c, sign, z) for sign in (-1, 1)] for c in contrasts]
    return contrasts.new_tensor(ends).view(-1, 2)


def profile_test(likelihood: Likelihood, best: Maximum, C: Tensor) -> TestResult:
    """Return the likelihood-ratio test of C gamma = 0, for C (m, q) of full rank."""
    restricted = maximum(likelihood, torch.zeros_like(best.gamma), C, FINE)
    return TestResult.of(2 * max(best.value - restricted.value, 0.0), len(C))


class _Point(NamedTuple):
    """A gamma on the profile, its c . gamma = b, and the direction dgamma/db there."""

    b: float
    gamma: Tensor
    tangent: Tensor


def _end(likelihood: Likelihood, best: Maximum, c: Tensor, sign: int, z: float) -> float:
    """Return the end of the interval of c . gamma on this side."""
    estimate = float(c @ best.gamma)
    variance = float(c @ best.inverse @ c)
    point = _Point(estimate, best.gamma, best.inverse @ c / variance)
    # Distances from the estimate: the end lies between ``near`` and ``far``.
    near, far, distance, tol = 0.0, math.inf, z * math.sqrt(variance), ROUGH
    for _ in range(MAX_STEPS):
        b = estimate + sign * distance
        start = point.gamma + (b - point.b) * point.tangent
        if likelihood.evaluate(start).value == -math.inf:  # too far to start there
            far, distance = distance, (near + distance) / 2
            continue
        found = maximum(likelihood, start, c.unsqueeze(0), tol * z)
        r = math.sqrt(max(0.0, 2 * (best.value - found.value)))
        slope = -sign * float(found.multipliers) / r if r > 0 else 0.0
        newton = distance + (z - r) / slope if slope > 0 else math.inf
        if tol == FINE and abs(r - z) <= CLOSE * z and newton < math.inf:
            return estimate + sign * newton
        nearly = abs(r - z) <= NEARLY * z
        if r < z:
            near = distance
        elif tol == FINE or not nearly:
            far = distance
        tol = FINE if nearly else ROUGH
        if far == math.inf:
            distance = min(newton, WIDEN * distance)
        else:
            distance = newton if near < newton < far else (near + far) / 2
        tangent = found.inverse @ c
        point = _Point(b, found.gamma, tangent / (c @ tangent))
    warnings.warn(
        f"profile likelihood: expected an end of the interval within {MAX_STEPS} steps, got none "
        f"near {estimate + sign * distance:g}; it is given as infinite",
        ConvergenceWarning,
        stacklevel=2,
    )
    return sign * math.inf

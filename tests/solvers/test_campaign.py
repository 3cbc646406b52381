"""A thousand random problems: every fit that claims to have converged is at the optimum.

A problem passes if ``fit``

 - converged, and F, recomputed in float64, is at most 10 tol F above the minimum;
 - raised ValueError because there is no optimum without a penalty, and there is none;
 - warned that it did not converge, and there is an optimum. Few problems may do so.

Everything else is a failure: a wrong answer that is called converged, a refusal of data that have
an optimum, a separation that is not refused, any other exception or warning. The judge is
``reference``, which shares no code with ``fit``. Most answers are proved right by a lower bound at
their own coefficients. If that does not suffice the reference computes the minimum. An answer is
wrong if other coefficients have a lower F.

To look into a seed, or to check more of them, run in the folder of this file

    python -c "from test_campaign import verdict; print(verdict(17))"
    python -c "from test_campaign import check; check(range(1000, 2000))"
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from typing import Any, NamedTuple

import numpy as np
import pytest
import reference
import torch
from problems import Problem, problem
from reference import Minimum

from softmax_torch.solvers import ConvergenceWarning, Solution, fit

SLACK = 10
"""Allowed distance of F from the minimum, relative to F, in units of tol."""

ITERATIONS = 100
"""Iterations of a fit at most. Nearly collinear columns with a weak L1 penalty take up to 1000."""

UNCONVERGED = 0.15
"""Share of the problems that may end with a ConvergenceWarning after so few iterations; after 1000
it is a tenth of that. Nearly all have a weak penalty, or weights to 1e12, or wide scales."""

EXISTS, SHORT = 1e-10, 0.1
"""Relative gap, and size of the last Newton step, at which the reference has found a minimum."""

LP_SIZE = 10**6
"""Entries of a linear program of the reference at most: it takes 5 s at the limit."""

FAILURES = ("wrong", "exception", "false refusal", "missed separation", "undecided")
"""Outcomes that no problem may have. "undecided": the reference cannot judge the problem."""


class Verdict(NamedTuple):
    """The outcome of a problem.

    Attributes:
        outcome: "right", "refused" (rightly), "unconverged" or one of ``FAILURES``.
        detail: F, the minimum and how they were found.
    """

    seed: int
    outcome: str
    name: str
    detail: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.outcome}: {self.detail}\n    {self.name}"


def verdict(seed: int) -> Verdict:
    """Fit the problem of this seed and judge the result."""
    p = problem(seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            solution = fitted(p)
        except Exception as error:
            if isinstance(error, ValueError) and "no optimum" in str(error):
                return Verdict(seed, *judged_refusal(p, error))
            return Verdict(seed, "exception", p.name, f"{type(error).__name__}: {error}")
    return Verdict(seed, *judged(p, solution, [warning.message for warning in caught]))


def fitted(p: Problem) -> Solution:
    """Return the fit of a problem."""
    dtype = None if p.dtype is None else getattr(torch, p.dtype)
    return fit(
        p.X,
        p.y,
        C=p.C,
        l1_ratio=p.l1_ratio,
        fit_intercept=p.fit_intercept,
        sample_weight=p.sample_weight,
        class_weight=p.class_weight,
        tol=p.tol,
        max_iter=ITERATIONS,
        dtype=dtype,
    )


def judged(p: Problem, solution: Solution, messages: list[Any]) -> tuple[str, str, str]:
    """Return outcome, name and detail of a solution and the warnings of its fit."""
    others = [m for m in messages if not isinstance(m, ConvergenceWarning)]
    if others:
        return "exception", p.name, f"warning {type(others[0]).__name__}: {others[0]}"
    if solution.converged != (not messages):
        return "exception", p.name, f"converged={solution.converged}, warnings {messages}"
    W, b = solution.weight.numpy(), solution.bias.numpy()
    if not (np.isfinite(W).all() and np.isfinite(b).all()):
        return ("wrong" if solution.converged else "exception"), p.name, "coefficients not finite"
    data, penalty = (p.X, p.y, W, b), (p.C, p.l1_ratio)
    F = reference.objective(*data, *penalty, p.weights())
    # The error of F in float64, from its sum and from rounding the logits.
    allowed = 1e-13 * F + reference.rounding(*data, p.weights())
    if not solution.converged:
        found = minimum(p, W, b)
        detail = (
            f"{(F - found.value) / F:.1e} F above the minimum {found.value:.10g}; {messages[0]}"
        )
        missed = math.isinf(p.C) and separated(p, found)
        return ("missed separation" if missed else "unconverged"), p.name, detail
    if not abs(solution.objective - F) <= p.tol * F + allowed:
        return "wrong", p.name, f"F={F:.12g}, but solution.objective={solution.objective:.12g}"
    enough = SLACK * p.tol * F + allowed
    if not math.isinf(p.C):
        for newton in (False, True):
            bound = reference.lower_bound(
                *data, *penalty, p.fit_intercept, p.weights(), newton=newton
            )
            if F - bound <= enough:
                return "right", p.name, f"F={F:.12g}, proven above {bound:.12g}"
    found = minimum(p, W, b)
    beaten = reference.objective(p.X, p.y, found.weight, found.bias, *penalty, p.weights())
    detail = (
        f"F={F:.12g}, minimum {beaten:.12g} (at least {found.bound:.12g}): "
        f"{(F - beaten) / F:.1e} F above it"
    )
    if math.isinf(p.C) and separated(p, found):
        return "wrong", p.name, f"{detail}, but there is no optimum"
    if F - found.bound <= enough:
        return "right", p.name, detail
    return ("wrong" if F - beaten > enough else "undecided"), p.name, detail


def judged_refusal(p: Problem, error: ValueError) -> tuple[str, str, str]:
    """Return outcome, name and detail of an error which says that there is no optimum."""
    if not math.isinf(p.C):
        return "false refusal", p.name, str(error)
    named = re.search(r"column (\d+) separates", str(error))
    if named and reference.column_separates(
        p.X[:, [int(named[1])]], p.y, p.fit_intercept, p.weights()
    ):
        return "refused", p.name, str(error)
    found = reference.minimum(p.X, p.y, p.C, p.l1_ratio, p.fit_intercept, p.weights(), max_iter=100)
    apart = separated(p, found)
    if apart is None:
        return "undecided", p.name, str(error)
    if apart:
        return "refused", p.name, str(error)
    largest = max(abs(found.weight).max(), abs(found.bias).max())
    detail = f"minimum {found.value:.10g} with coefficients up to {largest:.2g}; {error}"
    return "false refusal", p.name, detail


def minimum(p: Problem, W: Any, b: Any) -> Minimum:
    """Return the minimum that the reference finds from W and b, and if need be from zeros."""
    arguments = (p.X, p.y, p.C, p.l1_ratio, p.fit_intercept, p.weights())
    found = reference.minimum(*arguments, start=(W, b), max_iter=100)
    if exists(found) or found.separates:
        return found
    other = reference.minimum(*arguments)
    best = min(found, other, key=lambda m: m.value)
    return best._replace(bound=max(found.bound, other.bound), separates=other.separates)


def exists(found: Minimum) -> bool:
    """Return whether the reference has found a minimum, as opposed to approaching an infimum."""
    return found.value - found.bound <= EXISTS * found.value and found.step < SHORT


def separated(p: Problem, found: Minimum) -> bool | None:
    """Return whether classes can be separated; None if the reference cannot tell."""
    if exists(found):
        return False
    if found.separates:
        return True
    try:
        return reference.separation(p.X, p.y, p.fit_intercept, p.weights(), LP_SIZE)
    except ArithmeticError:  # HiGHS failed
        return None


def check(seeds: range) -> None:
    """Fail if a problem of these seeds failed, or too many did not converge."""
    verdicts = [verdict(seed) for seed in seeds]
    counts = Counter(v.outcome for v in verdicts)
    failed = [v for v in verdicts if v.outcome in FAILURES]
    unconverged = [v for v in verdicts if v.outcome == "unconverged"]
    listed = "\n".join(map(str, failed + unconverged))
    print(f"{dict(counts)}\n{listed}")  # noqa: T201 # shown by pytest -rP
    assert not failed, f"{len(failed)} of {len(seeds)} problems failed: {dict(counts)}\n{listed}"
    assert len(unconverged) <= max(2, UNCONVERGED * len(seeds)), (
        f"{len(unconverged)} of {len(seeds)} problems did not converge\n{listed}"
    )


@pytest.mark.slow
def test_a_fit_is_optimal_refused_or_warns() -> None:
    check(range(15))


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, 1000, 100))
def test_a_thousand_fits_are_optimal_refused_or_warn(first: int) -> None:
    check(range(first, first + 100))

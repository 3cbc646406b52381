"""The maximum of a log-likelihood, over all coefficients or over a plane C gamma = constant.

With the score U and the inverse information A, a step along the plane is N U, where

    N = A - A C^T S^-1 C A        S = C A C^T

For the log-likelihood without a penalty this is Newton's step. Firth's penalty adds a curvature
that I leaves out (``firth``). Scoring with A alone converges linearly then, and where classes
separate by as little as a tenth an iteration. L-BFGS with N in place of its initial matrix (Nocedal
& Wright 2006, "Numerical Optimization", algorithm 7.4) learns the difference from the last steps:

    data                                    iterations with A alone     with L-BFGS
    100 samples, 3 features, 3 classes                            9               7
    40 samples, 2 separated classes                              30              15
    iris, 3 classes, one of them separated                       70              28
    12 samples, 10 features, 3 classes                         >200              21

The length of (U - C^T mu) in the metric N is the distance from the maximum in standard errors, and
does not depend on the units of the columns. mu = S^-1 C A U are Lagrange's multipliers: the
derivatives of the constrained maximum with respect to the constants.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.fit import ConvergenceWarning
from softmax_torch.solvers.inference.firth import Evaluated, Likelihood

__all__ = ["Maximum", "maximum"]

TOL = 1e-9
"""Distance from the maximum at which a fit ends, in standard errors."""

FAR = 1e-5
"""Distance beyond which a fit that ended for another reason issues a warning."""

MAX_ITER, MEMORY = 200, 10
"""Iterations at most, and steps that L-BFGS remembers."""

ENOUGH, SHORTEST = 1e-4, 1e-6
"""Share of the promised gain that a step must achieve, and the shortest length that is tried."""

ROUNDING = 1e-10
"""Error of an evaluation, relative to 1 + |l*|: log det I of iris has one of 1e-12."""


class Maximum(NamedTuple):
    """A maximum.

    Attributes:
        gamma: (q,).
        value: the log-likelihood.
        inverse: I^-1 (q, q) there.
        multipliers: mu, one for each row of C; empty without constraints.
        iterations: number of steps.
    """

    gamma: Tensor
    value: float
    inverse: Tensor
    multipliers: Tensor
    iterations: int


def maximum(
    likelihood: Likelihood, start: Tensor, C: Tensor | None = None, tol: float = TOL
) -> Maximum:
    """Return the maximum over gamma with C gamma = C ``start``.

    Args:
        likelihood: the log-likelihood.
        start: (q,).
        C: constraints (m, q) of full rank; None for none.
        tol: distance from the maximum at which to end, in standard errors.

    Raises:
        ValueError: the information at ``start`` is singular.

    Warns:
        ConvergenceWarning: the fit ended farther from the maximum than ``FAR``.
    """
    gamma, at = start, likelihood.evaluate(start)
    if at.value == -math.inf:
        raise ValueError(
            "X, y: expected samples that determine the coefficients, got an information matrix "
            "that is singular up to rounding where the fit starts"
        )
    memory = _Memory()
    iterations = 0
    while True:
        U = likelihood.score(gamma, at.inverse)
        N, mu = at.inverse, U[:0]
        if C is not None:
            AC = at.inverse @ C.T
            SC = torch.linalg.solve(C @ AC, AC.T)
            N, mu = N - AC @ SC, SC @ U
            U = U - C.T @ mu
        distance = math.sqrt(max(0.0, float(U @ N @ U)))
        if distance <= tol or iterations == MAX_ITER:
            break
        memory.add(gamma, U)
        step = memory.direction(N, U)
        found = _search(likelihood, gamma, at, step, float(U @ step))
        if found is None:
            break
        gamma, at = found
        iterations += 1
    if not distance <= max(tol, FAR):
        warnings.warn(
            f"the likelihood's maximum: expected a distance of at most {FAR:g} standard errors, "
            f"got {distance:.2g} after {iterations} iterations",
            ConvergenceWarning,
            stacklevel=2,
        )
    return Maximum(gamma, at.value, at.inverse, mu, iterations)


def _search(
    likelihood: Likelihood, gamma: Tensor, at: Evaluated, step: Tensor, slope: float
) -> tuple[Tensor, Evaluated] | None:
    """Return the first of gamma + step, + step/2, ... that gains enough; None if none does."""
    error = ROUNDING * (1 + abs(at.value))
    length = 1.0
    while length >= SHORTEST:
        trial = gamma + length * step
        found = likelihood.evaluate(trial)
        if found.value >= at.value + ENOUGH * length * slope - error:
            return trial, found
        length /= 2
    return None


class _Memory:
    """The last steps s and the changes y of minus the score, for L-BFGS."""

    def __init__(self) -> None:
        self.pairs: list[tuple[Tensor, Tensor, float]] = []
        self.last: tuple[Tensor, Tensor] | None = None

    def add(self, gamma: Tensor, U: Tensor) -> None:
        """Add the step from the last gamma to this one, where l* is concave along it."""
        if self.last is not None:
            s, y = gamma - self.last[0], self.last[1] - U
            if (curvature := float(s @ y)) > 0:
                self.pairs = [*self.pairs, (s, y, curvature)][-MEMORY:]
        self.last = gamma, U

    def direction(self, N: Tensor, U: Tensor) -> Tensor:
        """Return the step of L-BFGS whose initial matrix is N."""
        shares = []
        for s, y, curvature in reversed(self.pairs):
            shares.append(float(s @ U) / curvature)
            U = U - shares[-1] * y
        step = N @ U
        for (s, y, curvature), share in zip(self.pairs, reversed(shares), strict=True):
            step = step + (share - float(y @ step) / curvature) * s
        return step

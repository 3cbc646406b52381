"""The fit that inference is about: without a penalty, with an L2 penalty or with Firth's.

Adding the same vector to the coefficients of all classes changes no probability. theta is kept in
the symmetric coding, in which the coefficients of each column add up to 0 over the classes. A fit
with an L2 penalty on the weight chooses it by itself. Firth's penalty is the same in every coding.
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from softmax_torch.solvers.fit import minimize
from softmax_torch.solvers.inference.constrained_maximum import maximum
from softmax_torch.solvers.inference.firth import Likelihood
from softmax_torch.solvers.newton import NewtonCG
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.problem import check_fit_options, theta_of
from softmax_torch.solvers.separation import SeparationError

__all__ = ["PENALTIES", "FittedModel", "PenaltyName", "checked_strength", "fit_model"]

PenaltyName = Literal["none", "l2", "firth"]
PENALTIES: tuple[PenaltyName, ...] = get_args(PenaltyName)

ALTERNATIVES = 'penalty="l2" or penalty="firth"'
"""Penalties that have an optimum where classes are separated."""

TOL, MAX_ITER = 1e-13, 200
"""Relative duality gap of the fit, and Newton steps at most; about ten are needed."""


class FittedModel(NamedTuple):
    """Coefficients, and the data and the penalty that they are the optimum of.

    Attributes:
        objective: the samples, classes and weights.
        theta: (K, P) float64, symmetric coding, for the samples of ``objective``, which are X minus
            ``objective.offset``.
        log_likelihood: the log-likelihood at theta, without the penalty.
        penalty: the kind of the penalty.
        C: the penalty on minus the log-likelihood is ||W||^2 / (2 C); inf for none.
    """

    objective: Objective
    theta: Tensor
    log_likelihood: float
    penalty: PenaltyName
    C: float

    @property
    def l2(self) -> float:
        """1/C."""
        return 1 / self.C


def checked_strength(penalty: Any, C: Any) -> float:
    """Return C for the penalty "l2", inf for others.

    Raises:
        ValueError, TypeError: the penalty is unknown, C is missing or has no use.
    """
    if penalty not in PENALTIES:
        raise ValueError(f"penalty: expected {', '.join(PENALTIES)}; got {penalty!r}")
    if penalty != "l2":
        if C is not None:
            raise ValueError(f'C: expected None, as only penalty="l2" has a strength; got {C}')
        return math.inf
    if C is None:
        raise ValueError('C: expected the inverse strength of penalty="l2", got None')
    return check_fit_options(C, 0.0, TOL, MAX_ITER, "auto").C


def fit_model(
    objective: Objective,
    penalty: PenaltyName,
    C: float = math.inf,
    start: Tensor | None = None,
) -> FittedModel:
    """Fit to the precision of float64, from theta = ``start`` (K, P) or from 0.

    Without a penalty, or with Firth's, columns have to be independent (``collinearity``).

    Raises:
        ValueError: the classes can be separated without a penalty; C cannot be computed with.
    """
    begin = objective.zeros() if start is None else start
    if penalty == "firth":
        return _fit_firth(objective, begin)
    strength = Penalty.of_strength(C, 0.0, objective.total)
    try:
        newton = NewtonCG(objective, strength, begin, torch.float64)
        solution = minimize(newton, TOL, MAX_ITER)
    except SeparationError as error:
        raise SeparationError(error.why, error.remedy, ALTERNATIVES) from None
    theta = theta_of(solution, objective)
    theta = theta - theta.mean(0)
    penalised = strength.of(objective.weight_of(theta))
    log_likelihood = -(solution.objective - penalised) * objective.total
    return FittedModel(objective, theta, log_likelihood, penalty, C)


def _fit_firth(objective: Objective, start: Tensor) -> FittedModel:
    """Fit with Firth's penalty, from theta = ``start`` (K, P)."""
    likelihood = Likelihood(objective, jeffreys=True)
    gamma = maximum(likelihood, likelihood.gamma_of(start)).gamma
    theta = likelihood.theta_of(gamma)
    log_likelihood = likelihood.log_likelihood(gamma)
    return FittedModel(objective, theta - theta.mean(0), log_likelihood, "firth", math.inf)

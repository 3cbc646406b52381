"""From the caller's arguments to a problem and a solver: the steps that all fits share.

``check_fit_options`` checks the numbers, ``objective_of`` the data, ``Penalty.of_strength`` the
penalty; ``theta_of`` takes a starting point from a solution, and ``make_solver`` returns the solver
that begins there.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from softmax_torch.solvers import inputs
from softmax_torch.solvers.centring import offset_of
from softmax_torch.solvers.conversion import as_number, as_whole_number
from softmax_torch.solvers.gradient_descent import GradientDescent
from softmax_torch.solvers.lbfgs import PreconditionedLBFGS
from softmax_torch.solvers.newton import NewtonCG
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.proximal_newton import ProximalNewton
from softmax_torch.solvers.solver import Solver
from softmax_torch.solvers.targets import as_class_indices, as_sample_weight
from softmax_torch.threads import is_small, one_thread_if

__all__ = [
    "SOLVERS",
    "WITH_L1",
    "FitOptions",
    "check_fit_options",
    "make_solver",
    "objective_of",
    "solver_class",
    "theta_of",
]

SOLVERS: dict[str, type[Solver]] = {
    "lbfgs": PreconditionedLBFGS,
    "newton": NewtonCG,
    "gradient_descent": GradientDescent,
    "proximal_newton": ProximalNewton,
}
"""The solvers by name. ``solver`` may also be "auto"."""

WITH_L1 = {"proximal_newton"}
"""The solvers for an objective with an L1 term; the others are for smooth objectives."""


class FitOptions(NamedTuple):
    """Checked options as Python numbers; see ``fit``."""

    C: float
    l1_ratio: float
    tol: float
    max_iter: int


class Coefficients(Protocol):
    """A model's weight (K, D) and bias (K,)."""

    @property
    def weight(self) -> Tensor: ...
    @property
    def bias(self) -> Tensor: ...


def check_fit_options(C: Any, l1_ratio: Any, tol: Any, max_iter: Any, solver: str) -> FitOptions:
    """Return the options as Python numbers.

    Numbers of numpy and torch would keep their precision in arithmetic: in float16 C times a sum of
    weights is infinite beyond 65504.

    Raises:
        TypeError: an option is not a number.
        ValueError: an option is out of its range, or the solver is unknown or for another penalty.
    """
    strength, ratio = as_number("C", C), as_number("l1_ratio", l1_ratio)
    tolerance, iterations = as_number("tol", tol), as_number("max_iter", max_iter)
    # NaN fails every comparison.
    if not strength > 0:
        raise ValueError(f"C: expected a number above 0 (the smaller, the stronger), got {C}")
    if not 0 <= ratio <= 1:
        raise ValueError(f"l1_ratio: expected a number in [0, 1], got {l1_ratio}")
    if not tolerance > 0:
        raise ValueError(f"tol: expected a number above 0, got {tol}")
    if not iterations >= 1:
        raise ValueError(f"max_iter: expected at least 1, got {max_iter}")
    if solver != "auto" and solver not in SOLVERS:
        raise ValueError(f"solver: expected auto, {', '.join(SOLVERS)}; got {solver!r}")
    with_l1 = ratio > 0 and strength < math.inf
    if solver != "auto" and (solver in WITH_L1) != with_l1:
        expected = ", ".join(name for name in SOLVERS if (name in WITH_L1) == with_l1)
        raise ValueError(
            f"solver: expected auto, {expected} for C={strength:g} and l1_ratio={ratio:g}; got "
            f"{solver!r}"
        )
    return FitOptions(strength, ratio, tolerance, as_whole_number("max_iter", max_iter))


def objective_of(
    X: Any,
    y: Any,
    fit_intercept: bool,
    sample_weight: Any,
    class_weight: Any,
    device: torch.device | str | None,
    dtype: torch.dtype | str | None,
    distributed: bool = False,
) -> Objective:
    """Return the objective of these samples; columns far from 0 are centred. See ``fit``."""
    with one_thread_if(is_small_array(X)):
        return _objective_of(
            *(X, y, fit_intercept, sample_weight, class_weight),
            None if device is None else torch.device(device),
            dtype,
            Processes(distributed),
        )


def is_small_array(X: Any) -> bool:
    """Return whether X has a shape, and so few numbers that one thread is to check them."""
    shape = getattr(X, "shape", None)
    return shape is not None and is_small(math.prod(shape), 1, 1)


def _objective_of(
    X: Any,
    y: Any,
    fit_intercept: bool,
    sample_weight: Any,
    class_weight: Any,
    device: torch.device | None,
    dtype: torch.dtype | str | None,
    processes: Processes,
) -> Objective:
    samples = inputs.as_samples(X, device, dtype)
    target, classes = as_class_indices(y, samples.n, samples.device, processes)
    weight = as_sample_weight(sample_weight, class_weight, target, classes, processes)
    offset = offset_of(samples, processes) if fit_intercept else None
    if offset is not None:
        samples = samples.shifted(offset)
    return Objective(samples, target, classes, weight, fit_intercept, processes, offset)


def theta_of(start: Coefficients, objective: Objective) -> Tensor:
    """Return theta (K, P) of a solution; raise ValueError if it has another shape."""
    K, D = objective.classes, objective.samples.d
    if tuple(start.weight.shape) != (K, D) or tuple(start.bias.shape) != (K,):
        raise ValueError(
            f"warm_start: expected a solution with weight ({K}, {D}) and bias ({K},), got "
            f"{tuple(start.weight.shape)} and {tuple(start.bias.shape)}"
        )
    return objective.theta_of(start.weight, start.bias)


def solver_class(name: str, penalty: Penalty) -> type[Solver]:
    """Return the class of the solver of this name; "auto" is the fastest for the penalty."""
    if name == "auto":
        # Without a penalty the bound needs accurate steps, most of all near separation.
        smooth = "lbfgs" if penalty.l2 > 0 else "newton"
        name = "proximal_newton" if penalty.l1 > 0 else smooth
    return SOLVERS[name]


def make_solver(
    name: str, objective: Objective, penalty: Penalty, theta: Tensor, seed: int = 0
) -> Solver:
    """Return the solver of this name, or the fastest for "auto", that begins at theta (K, P)."""
    kind = solver_class(name, penalty)
    with objective.threads():
        return kind(objective, penalty, theta, objective.samples.dtype, seed)

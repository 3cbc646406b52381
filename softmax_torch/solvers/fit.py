"""Fit softmax regression to its optimum, and say how near that is.

    F(W, b) = 1/S sum_i w_i nll_i  +  1/(C S) ((1 - l1_ratio)/2 ||W||^2 + l1_ratio ||W||_1)

with S = sum_i w_i, which is scikit-learn's objective over C S.

>>> import torch
>>> _ = torch.manual_seed(0)
>>> X, y = torch.randn(200, 5), torch.randint(3, (200,))
>>> solution = fit(X, y, C=1.0)
>>> solution.converged and solution.duality_gap <= 1e-6 * solution.objective
True
>>> solution.weight.shape, solution.bias.shape
(torch.Size([3, 5]), torch.Size([3]))
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softmax_torch.modules import SoftmaxRegression
from softmax_torch.solvers import inputs
from softmax_torch.solvers.arrays import as_number, as_whole_number
from softmax_torch.solvers.centring import offset_of
from softmax_torch.solvers.certificate import Certificate, subgradient
from softmax_torch.solvers.descent import GradientDescent
from softmax_torch.solvers.lbfgs import PreconditionedLBFGS
from softmax_torch.solvers.newton import NewtonCG
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.proximal import ProximalNewton
from softmax_torch.solvers.run import Progress, Run, progress
from softmax_torch.solvers.solver import Solver

__all__ = ["ConvergenceWarning", "Solution", "fit"]

SOLVERS: dict[str, type[Solver]] = {
    "lbfgs": PreconditionedLBFGS,
    "newton": NewtonCG,
    "gradient_descent": GradientDescent,
    "proximal_newton": ProximalNewton,
}
"""What ``solver`` may be, besides "auto"."""

WITH_L1 = {"proximal_newton"}
"""Those of them that are for an L1 term."""


class ConvergenceWarning(UserWarning):
    """A fit ended before it was as near to the optimum as was asked for."""


@dataclass(frozen=True)
class Solution:
    """The answer of ``fit`` and what is known of it.

    Attributes:
        weight: (K, D) float64.
        bias: (K,) float64; zeros without an intercept.
        objective: F, in float64 over the data as given.
        gradient_norm: Euclidean norm of the gradient of F (the least subgradient with L1).
        duality_gap: F is at most this far above its minimum, by Fenchel's duality in float64; inf
            where no bound was found, which is never where the fit has converged.
        kkt_residual: largest entry of the (sub)gradient of F.
        iterations: outer iterations.
        passes: how often X was read for both of its products.
        converged: whether ``duality_gap`` is at most ``tol`` times the objective, and with L1 the
            KKT residual too is at most ``tol`` times that of weights that are 0.
        history: one ``Progress`` an iteration.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    objective: float
    gradient_norm: float
    duality_gap: float
    kkt_residual: float
    iterations: int
    passes: float
    converged: bool
    history: list[Progress] = field(repr=False)

    def module(self) -> SoftmaxRegression:
        """The fitted model as a module, in float32 on the device of the fit."""
        K, D = self.weight.shape
        model = SoftmaxRegression(D, K, device=self.weight.device)
        with torch.no_grad():
            model.linear.weight.copy_(self.weight)
            model.linear.bias.copy_(self.bias)
        return model


def fit(
    X: Any,
    y: Any,
    *,
    C: float = 1.0,
    l1_ratio: float = 0.0,
    fit_intercept: bool = True,
    sample_weight: Any = None,
    class_weight: Any = None,
    solver: str = "auto",
    tol: float = 1e-6,
    max_iter: int = 1000,
    warm_start: Solution | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype | str | None = None,
    seed: int = 0,
    callback: Callable[[Progress], Any] | None = None,
    distributed: bool = False,
) -> Solution:
    """The optimum of softmax regression on X and y, with a certificate.

    Args:
        X: (n, D). A torch or numpy array, a memory map, a sparse matrix (torch CSR, scipy), or
            blocks of rows: whatever yields arrays (B, D) each time it is iterated.
        y: class indices (n,) in [0, K), each of which occurs.
        C: inverse strength of the penalty, as in scikit-learn; ``math.inf`` for none. C times the
            sum of the weights must be at least 1e-30.
        l1_ratio: share of the L1 norm in the penalty, in [0, 1].
        fit_intercept: whether the logits have a bias.
        sample_weight: (n,), >= 0; None for ones.
        class_weight: one number a class, a dict of such, "balanced" or None.
        solver: "lbfgs", "newton" or "gradient_descent"; with L1 "proximal_newton". "auto" is the
            fastest of them. Where "lbfgs" or "newton" make hardly any progress, and always without
            a penalty, accurate Newton steps finish the fit.
        tol: relative duality gap that is enough. The gap is computed in float64 from the samples
            as given and does not depend on how the solution was found: see ``certificate`` for a
            penalty, ``newton_bound`` for none. With L1 the KKT residual has to be within tol of
            that of weights that are 0, too.
        max_iter: outer iterations at most.
        warm_start: a solution of the same shape to begin at; None for zeros.
        device: where to compute; by default where X is.
        dtype: dtype of the passes, torch.float32 or torch.float64 or the name of one; by default
            float32, or float64 where X is small. The last digits are found in float64 in any case.
        seed: of the draw of rows that steps are shaped by, where there are many; the answer depends
            on it by less than ``tol``.
        callback: called with a ``Progress`` after each iteration; the fit ends if it returns true.
        distributed: whether each process of the default group of ``torch.distributed`` has passed
            its own part of the samples; all get the same answer.

    Returns:
        A ``Solution``.

    Raises:
        ValueError, TypeError: what cannot be used, with what was expected and what came; without a
            penalty data that have no optimum, as classes can be separated (see ``separation``).

    Warns:
        ConvergenceWarning: ``max_iter`` came first, or nothing more can be gained in float64.
    """
    C, l1_ratio, tol, max_iter = check_options(C, l1_ratio, tol, max_iter, solver)
    objective = objective_of(
        X, y, fit_intercept, sample_weight, class_weight, device, dtype, distributed
    )
    inputs.check_strength(C, objective.total)
    penalty = Penalty.of_strength(C, l1_ratio, objective.total)
    theta = objective.zeros() if warm_start is None else theta_of(warm_start, objective)
    kind = SOLVERS[chosen(solver, penalty)]
    begun = kind(objective, penalty, theta, objective.samples.dtype, seed)
    return minimize(begun, tol, max_iter, callback)


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
    """Return the objective of these samples, with columns far from 0 moved; see ``fit``."""
    processes = Processes(distributed)
    samples = inputs.as_samples(X, None if device is None else torch.device(device), dtype)
    target, classes = inputs.as_class_indices(y, samples.n, samples.device, processes)
    weight = inputs.as_sample_weight(sample_weight, class_weight, target, classes, processes)
    offset = offset_of(samples, processes) if fit_intercept else None
    if offset is not None:
        samples = samples.shifted(offset)
    return Objective(samples, target, classes, weight, fit_intercept, processes, offset)


def check_options(
    C: Any, l1_ratio: Any, tol: Any, max_iter: Any, solver: str
) -> tuple[float, float, float, int]:
    """Return C, l1_ratio, tol and max_iter as Python numbers, checked before the data are read.

    Numbers of numpy and torch keep their precision in arithmetic: C times a sum of weights is
    infinite beyond 65504 in float16.
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
    if solver != "auto" and (solver in WITH_L1) != (ratio > 0 and strength < math.inf):
        expected = "proximal_newton" if ratio > 0 else "one for a smooth objective"
        raise ValueError(f"solver: expected {expected} for l1_ratio={ratio}, got {solver!r}")
    return strength, ratio, tolerance, as_whole_number("max_iter", max_iter)


def minimize(
    solver: Solver,
    tol: float,
    max_iter: int,
    callback: Callable[[Progress], Any] | None = None,
    category: type[Warning] = ConvergenceWarning,
) -> Solution:
    """Step until the certificate is within ``tol``, or warn in this category; see ``fit``.

    Passes in float32 go on in float64 where float32 cannot tell any more.
    """
    run = Run(solver, tol)
    history: list[Progress] = []
    began = time.perf_counter()
    stopped = False
    while not (run.ended or stopped or solver.iterations >= max_iter):
        iterations = solver.iterations
        run.advance()
        if solver.iterations > iterations:
            history.append(progress(solver, time.perf_counter() - began))
            stopped = callback is not None and bool(callback(history[-1]))
    certificate = run.conclude()
    if not run.converged and not stopped:
        warnings.warn(run.complaint(), category, stacklevel=3)
    return _solution(solver, certificate, run.converged, history)


def chosen(solver: str, penalty: Penalty) -> str:
    if solver != "auto":
        return solver
    if penalty.l1 > 0:
        return "proximal_newton"
    # Without a penalty steps need to be accurate for a bound, and near separation most of all.
    return "lbfgs" if penalty.l2 > 0 else "newton"


def theta_of(start: Solution, objective: Objective) -> Tensor:
    """theta of a solution; ValueError if it has another shape."""
    K, D = objective.classes, objective.samples.d
    if tuple(start.weight.shape) != (K, D) or tuple(start.bias.shape) != (K,):
        raise ValueError(
            f"warm_start: expected a solution with weight ({K}, {D}) and bias ({K},), got "
            f"{tuple(start.weight.shape)} and {tuple(start.bias.shape)}"
        )
    return objective.theta_of(start.weight, start.bias)


def _solution(
    solver: Solver, certificate: Certificate, converged: bool, history: list[Progress]
) -> Solution:
    objective, theta = solver.objective, certificate.theta
    g = subgradient(objective, theta, certificate.gradient, solver.penalty.l1)
    weight, bias = objective.coefficients(theta)
    return Solution(
        weight=weight,
        bias=bias,
        objective=certificate.value,
        gradient_norm=float(g.norm()),
        duality_gap=certificate.gap,
        kkt_residual=certificate.residual,
        iterations=solver.iterations,
        passes=objective.passes,
        converged=converged,
        history=history,
    )

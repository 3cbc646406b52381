"""Fit softmax regression to its optimum, with an upper bound on the distance to it.

    F(W, b) = 1/S sum_i w_i nll_i  +  1/(C S) ((1 - l1_ratio)/2 ||W||^2 + l1_ratio ||W||_1)

with S = sum_i w_i. This is scikit-learn's objective divided by C S.

A solution comes with a certificate, a proved lower bound on the minimum F*:

    objective - duality_gap  <=  F*  <=  objective

It is computed in float64 from the samples and the coefficients alone, and so does not depend on how
the coefficients were found. ``converged`` means duality_gap <= tol * objective: no coefficients
lower F by more than the fraction tol. (The bound allows for rounding, and without a penalty for the
residual of a linear solve, up to a distance that ``certificate`` and ``newton_bound`` state. For an
optimum farther away the bound is larger in proportion to the distance.)

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

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from softmax_torch.modules import SoftmaxRegression
from softmax_torch.solvers.certificate import Certificate, subgradient
from softmax_torch.solvers.objective import Penalty
from softmax_torch.solvers.problem import check_fit_options, make_solver, objective_of, theta_of
from softmax_torch.solvers.run import Progress, Run, progress
from softmax_torch.solvers.solver import Solver

__all__ = ["ConvergenceWarning", "Solution", "fit", "minimize"]


class ConvergenceWarning(UserWarning):
    """A fit ended before the requested accuracy was certified."""


@dataclass(frozen=True)
class Solution:
    """The coefficients that ``fit`` found, with their certificate.

    Attributes:
        weight: (K, D) float64.
        bias: (K,) float64; zeros without an intercept.
        objective: F, in float64 over the samples as given.
        gradient_norm: Euclidean norm of the gradient of F (of its subgradient of least norm with
            L1).
        duality_gap: an upper bound on F - F*, by Fenchel duality in float64; inf if no bound was
            found, which is possible only if ``converged`` is False.
        kkt_residual: largest absolute entry of the gradient of F (of its subgradient of least norm
            with L1). It is 0 exactly at an optimum.
        iterations: number of outer iterations.
        passes: number of times that X was read for both of its products.
        converged: whether the optimum is certified to the requested accuracy:
            ``duality_gap <= tol * objective``. With L1 the KKT residual must also be at most
            ``tol`` times the largest entry of the gradient at W = 0 or the L1 strength, whichever
            is larger, unless the gap is rounding (1e-15 of the objective).
        history: one ``Progress`` per iteration.
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
        """Return the fitted model as a module, in float32 on the device of the fit."""
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
    """Return the optimum of softmax regression on X and y, with a certificate.

    Args:
        X: samples (n, D). A torch or numpy array, a memory map, a sparse matrix (torch CSR, scipy),
            or blocks of rows: arrays (B, D) from an object that can be iterated repeatedly.
        y: class indices (n,) in [0, K). Each class must occur.
        C: inverse strength of the penalty, as in scikit-learn; ``math.inf`` for no penalty. C times
            the sum of the weights must be at least 1e-30.
        l1_ratio: share of the L1 norm in the penalty, in [0, 1].
        fit_intercept: whether the logits have a bias.
        sample_weight: weights (n,), >= 0; None for ones.
        class_weight: one number per class, a dict from classes to numbers, "balanced" or None.
        solver: "lbfgs", "newton" or "gradient_descent"; with L1 "proximal_newton". "auto" is the
            fastest of them. Accurate Newton steps finish a fit by "lbfgs" or "newton" whose
            progress has become slow, and every fit without a penalty.
        tol: relative duality gap to reach (see ``Solution.converged``). For the bound see
            ``certificate``, or ``newton_bound`` without a penalty.
        max_iter: outer iterations at most.
        warm_start: a solution of the same shape to start from; None for zeros.
        device: where to compute; by default where X is.
        dtype: dtype of the passes, torch.float32, torch.float64 or their names; by default float32,
            or float64 if X is small. The last digits are found in float64 in any case.
        seed: seed of the draw of rows for preconditioners, if there are many rows. The answer
            depends on it by less than ``tol``.
        callback: called with a ``Progress`` after each iteration; the fit ends if it returns true.
        distributed: whether each process of the default group of ``torch.distributed`` passes its
            own part of the samples. All processes get the same answer.

    Returns:
        A ``Solution``.

    Raises:
        ValueError, TypeError: an argument cannot be used; the message says what was expected and
            what was given. Without a penalty also if the classes can be separated, as there is no
            optimum then (see ``separation``).

    Warns:
        ConvergenceWarning: ``max_iter`` was reached, or rounding in float64 prevents progress,
            before the optimum was certified to ``tol``.
    """
    options = check_fit_options(C, l1_ratio, tol, max_iter, solver)
    objective = objective_of(
        X, y, fit_intercept, sample_weight, class_weight, device, dtype, distributed
    )
    penalty = Penalty.of_strength(options.C, options.l1_ratio, objective.total)
    theta = objective.zeros() if warm_start is None else theta_of(warm_start, objective)
    begun = make_solver(solver, objective, penalty, theta, seed)
    return minimize(begun, options.tol, options.max_iter, callback)


def minimize(
    solver: Solver,
    tol: float,
    max_iter: int,
    callback: Callable[[Progress], Any] | None = None,
    category: type[Warning] = ConvergenceWarning,
) -> Solution:
    """Step until the certificate is within ``tol``, or warn; see ``fit``.

    Passes begin in the solver's dtype and continue in float64 once float32 shows no more progress.
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
    certificate = run.certificate()
    if not run.converged and not stopped:
        warnings.warn(run.not_converged(), category, stacklevel=3)
    return _solution(solver, certificate, run.converged, history)


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

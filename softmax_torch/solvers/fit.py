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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmax_torch.modules import SoftmaxRegression
from softmax_torch.solvers import inputs
from softmax_torch.solvers.certificate import Certificate, certify, gap_bound, subgradient
from softmax_torch.solvers.descent import GradientDescent
from softmax_torch.solvers.lbfgs import PreconditionedLBFGS
from softmax_torch.solvers.newton import NewtonCG
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.processes import Processes
from softmax_torch.solvers.proximal import ProximalNewton
from softmax_torch.solvers.solver import Solver

__all__ = ["ConvergenceWarning", "Progress", "Solution", "fit"]

SOLVERS: dict[str, type[Solver]] = {
    "lbfgs": PreconditionedLBFGS,
    "newton": NewtonCG,
    "gradient_descent": GradientDescent,
    "proximal_newton": ProximalNewton,
}
"""What ``solver`` may be, besides "auto"."""

WITH_L1 = {"proximal_newton"}
"""Those of them that are for an L1 term."""


PATIENCE = 10
"""After so many iterations that gained nothing a fit goes on in float64, or ends. L-BFGS, which
judges by slopes where F cannot tell, went on for hundreds: on MNIST the gap in float32 reaches 2e-9
of F in iteration 35 and stays there."""

NOISE = {torch.float32: 1e-7, torch.float64: 1e-15}
"""Relative descent of F below which it may be rounding."""


class ConvergenceWarning(UserWarning):
    """A fit ended before it was as near to the optimum as was asked for."""


class Progress(NamedTuple):
    """How far a fit is after an iteration; the gap is what the passes' own precision can tell."""

    iteration: int
    objective: float
    gradient_norm: float
    duality_gap: float | None
    passes: float
    seconds: float


@dataclass(frozen=True)
class Solution:
    """The answer of ``fit`` and what is known of it.

    Attributes:
        weight: (K, D) float64.
        bias: (K,) float64; zeros without an intercept.
        objective: F, in float64 over the data as given.
        gradient_norm: Euclidean norm of the gradient of F (the least subgradient with L1).
        duality_gap: F is at most this far above its minimum; None with L1 or without a penalty.
        kkt_residual: largest entry of the (sub)gradient of F.
        iterations: outer iterations.
        passes: how often X was read for both of its products.
        converged: whether the certificate is within ``tol``.
        history: one ``Progress`` an iteration.
    """

    weight: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    objective: float
    gradient_norm: float
    duality_gap: float | None
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
    dtype: torch.dtype | None = None,
    seed: int = 0,
    callback: Callable[[Progress], Any] | None = None,
    distributed: bool = False,
) -> Solution:
    """The optimum of softmax regression on X and y, with a certificate.

    Args:
        X: (n, D). A torch or numpy array, a memory map, a sparse matrix (torch CSR, scipy), or
            blocks of rows: whatever yields arrays (B, D) each time it is iterated.
        y: class indices (n,) in [0, K), each of which occurs.
        C: inverse strength of the penalty, as in scikit-learn; ``math.inf`` for none.
        l1_ratio: share of the L1 norm in the penalty, in [0, 1].
        fit_intercept: whether the logits have a bias.
        sample_weight: (n,), >= 0; None for ones.
        class_weight: one number a class, a dict of such, "balanced" or None.
        solver: "lbfgs", "newton" or "gradient_descent"; with L1 "proximal_newton". "auto" is the
            fastest of them.
        tol: what is enough: a duality gap of tol F with an L2 penalty; with L1 a KKT residual of
            tol times that of weights that are 0; without a penalty an estimated descent of tol F.
        max_iter: outer iterations at most.
        warm_start: a solution of the same shape to begin at; None for zeros.
        device: where to compute; by default where X is.
        dtype: of the passes, torch.float32 or torch.float64; by default float32, or float64 where X
            is small. The last digits are found in float64 in any case.
        seed: of the draw of rows that steps are shaped by, where there are many; the answer depends
            on it by less than ``tol``.
        callback: called with a ``Progress`` after each iteration; the fit ends if it returns true.
        distributed: whether each process of the default group of ``torch.distributed`` has passed
            its own part of the samples; all get the same answer.

    Returns:
        A ``Solution``.

    Raises:
        ValueError, TypeError: what cannot be used, with what was expected and what came; classes
            that can be separated without a penalty, for which there is no optimum.

    Warns:
        ConvergenceWarning: ``max_iter`` came first, or nothing more can be gained in float64.
    """
    check_options(C, l1_ratio, tol, max_iter, solver)
    objective = objective_of(
        X, y, fit_intercept, sample_weight, class_weight, device, dtype, distributed
    )
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
    dtype: torch.dtype | None,
    distributed: bool = False,
) -> Objective:
    """The objective of these samples; see ``fit``."""
    processes = Processes(distributed)
    samples = inputs.as_samples(X, None if device is None else torch.device(device), dtype)
    target, classes = inputs.as_class_indices(y, samples.n, samples.device, processes)
    weight = inputs.as_sample_weight(sample_weight, class_weight, target, classes, processes)
    return Objective(samples, target, classes, weight, fit_intercept, processes)


def check_options(C: float, l1_ratio: float, tol: float, max_iter: int, solver: str) -> None:
    """What can be said before the data are looked at. NaN fails every comparison."""
    try:
        if not C > 0:
            raise ValueError(f"C: expected a number above 0 (the smaller, the stronger), got {C}")
        if not 0 <= l1_ratio <= 1:
            raise ValueError(f"l1_ratio: expected a number in [0, 1], got {l1_ratio}")
        if not tol > 0:
            raise ValueError(f"tol: expected a number above 0, got {tol}")
        if not max_iter >= 1:
            raise ValueError(f"max_iter: expected at least 1, got {max_iter}")
    except TypeError:
        raise TypeError(
            f"C, l1_ratio, tol and max_iter: expected numbers, got {C!r}, {l1_ratio!r}, {tol!r} "
            f"and {max_iter!r}"
        ) from None
    if solver != "auto" and solver not in SOLVERS:
        raise ValueError(f"solver: expected auto, {', '.join(SOLVERS)}; got {solver!r}")
    if solver != "auto" and (solver in WITH_L1) != (l1_ratio > 0 and C < math.inf):
        expected = "proximal_newton" if l1_ratio > 0 else "one for a smooth objective"
        raise ValueError(f"solver: expected {expected} for l1_ratio={l1_ratio}, got {solver!r}")


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


class Run:
    """A fit in progress: steps, and a certificate when the passes' own figures promise one.

    Attributes:
        converged: whether a certificate was within ``tol``.
        ended: whether that is so, or nothing more can be gained in float64.
    """

    def __init__(self, solver: Solver, tol: float) -> None:
        self.solver, self.goal = solver, Goal(solver, tol)
        self.converged = self.ended = False
        self._certificate: Certificate | None = None
        self._gained = (0, math.inf, math.inf)  # iteration, F and measure when last it got better

    def advance(self) -> None:
        """One outer iteration of the solver, or what comes between two of them."""
        solver = self.solver
        stuck = False
        if not self.goal.promised():
            before = solver.theta
            self._certificate = None
            if solver.step():
                _refuse_separable(solver, before)
                if not self._idle():
                    return
            stuck = True
        certificate = self.conclude()
        if self.converged or (stuck and solver.dtype == torch.float64):
            self.ended = True
            return
        if stuck or self.goal.missed():
            solver.dtype = torch.float64
            self._gained = (solver.iterations, math.inf, math.inf)
        solver.restart(certificate.theta)

    def _idle(self) -> bool:
        """Whether the last iterations gained nothing that their precision can tell."""
        solver = self.solver
        now, value, measure = solver.iterations, objective_at(solver), self.goal.measure()
        since, best, least = self._gained
        if value < best * (1 - NOISE[solver.dtype]) or measure < 0.9 * least:
            self._gained = (now, value, measure)
            return False
        return now - since >= PATIENCE

    def conclude(self) -> Certificate:
        """The certificate of where the solver stands."""
        if self._certificate is None:
            solver = self.solver
            if solver.penalty == Penalty(0.0):
                _refuse_receding(solver.objective, solver.theta)
            self._certificate = certify(solver.objective, solver.theta, solver.penalty)
            self.converged = self.goal.met(self._certificate)
        return self._certificate

    def complaint(self) -> str:
        """What to say where it did not converge."""
        reached = self.goal.reached(self.conclude())
        limit = "float64 can tell no more" if self.ended else "max_iter came first"
        return (
            f"the fit ended after {self.solver.iterations} iterations at a {reached}, expected "
            f"tol={self.goal.tol:.1e}: {limit}"
        )

    def state_dict(self) -> dict[str, Any]:
        """What ``load_state_dict`` of a run on the same problem goes on from, bit for bit."""
        return {
            "solver": self.solver.state_dict(),
            "margin": self.goal.margin,
            "gained": self._gained,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.solver.load_state_dict(state["solver"])
        self.goal.margin, self._gained = state["margin"], state["gained"]


class Goal:
    """When a fit has arrived: by the passes' own figures, and by the certificate."""

    def __init__(self, solver: Solver, tol: float) -> None:
        self.solver, self.tol = solver, tol
        self.penalty = solver.penalty
        at_zero = 1.0
        if self.penalty.l1 > 0:
            objective = solver.objective
            at_zero = certify(objective, objective.zeros(), self.penalty._replace(l1=0.0)).residual
        self.residual = tol * at_zero
        self.margin = 0.9  # rounding takes its share

    def measure(self) -> float:
        """How far from the optimum the passes' own figures put the solver."""
        solver, penalty = self.solver, self.penalty
        if penalty.l1 > 0:
            s = subgradient(solver.objective, solver.theta, solver.gradient, penalty.l1)
            return float(s.abs().max())
        if penalty.l2 > 0:
            return promised_gap(solver.objective, solver.gradient, penalty)
        return solver.descent

    def promised(self) -> bool:
        """Whether it is time for a certificate."""
        enough = self.residual if self.penalty.l1 > 0 else self.tol * self.solver.value
        return self.measure() <= self.margin * enough

    def missed(self) -> bool:
        """Ask for more before the next certificate: whether that has been tried already."""
        again = self.margin < 0.9
        self.margin /= 3
        return again

    def met(self, certificate: Certificate) -> bool:
        """Whether the certificate says so."""
        if self.penalty.l1 > 0:
            return certificate.residual <= self.residual
        if certificate.gap is not None:
            return certificate.gap <= self.tol * certificate.value
        return self.solver.descent <= self.tol * certificate.value

    def reached(self, certificate: Certificate) -> str:
        """How near a certificate is, in words."""
        if certificate.gap is not None:
            return f"relative duality gap of {certificate.gap / certificate.value:.1e}"
        if self.penalty.l1 > 0:
            return f"KKT residual of {certificate.residual * self.tol / self.residual:.1e}"
        return f"gradient of {certificate.residual:.1e}"


def promised_gap(objective: Objective, gradient: Tensor, penalty: Penalty) -> float:
    """What the duality gap will be once the bias is at its optimum.

    A change of the bias that takes its gradient g_b away changes that of the weight by about
    g_b times the mean of the samples.
    """
    square = float(objective.weight_of(gradient).square().sum())
    if objective.bias:
        square += float(gradient[:, -1].square().sum()) * float(objective.mean.square().sum())
    return square / (2 * penalty.l2)


def chosen(solver: str, penalty: Penalty) -> str:
    if solver != "auto":
        return solver
    if penalty.l1 > 0:
        return "proximal_newton"
    # Without a penalty its estimate of F - F* decides when to end: that of a step by conjugate
    # gradients can be trusted, that of L-BFGS is as good as its preconditioner.
    return "lbfgs" if penalty.l2 > 0 else "newton"


def theta_of(start: Solution, objective: Objective) -> Tensor:
    """theta of a solution; ValueError if it has another shape."""
    K, D = objective.classes, objective.samples.d
    if tuple(start.weight.shape) != (K, D) or tuple(start.bias.shape) != (K,):
        raise ValueError(
            f"warm_start: expected a solution with weight ({K}, {D}) and bias ({K},), got "
            f"{tuple(start.weight.shape)} and {tuple(start.bias.shape)}"
        )
    theta = objective.zeros()
    objective.weight_of(theta).copy_(start.weight)
    if objective.bias:
        theta[:, -1] = start.bias
    return theta


def objective_at(solver: Solver) -> float:
    """F where a solver stands, by its passes."""
    if solver.penalty.l1 == 0:
        return solver.value
    W = solver.objective.weight_of(solver.theta)
    return solver.value + solver.penalty.l1 * float(W.abs().sum())


def progress(solver: Solver, seconds: float) -> Progress:
    """How far a solver is."""
    objective, penalty = solver.objective, solver.penalty
    g = subgradient(objective, solver.theta, solver.gradient, penalty.l1)
    gap = None
    if penalty.l1 == 0 < penalty.l2:
        gap = gap_bound(objective, solver.gradient, penalty)
    value = objective_at(solver)
    return Progress(solver.iterations, value, float(g.norm()), gap, objective.passes, seconds)


def _solution(
    solver: Solver, certificate: Certificate, converged: bool, history: list[Progress]
) -> Solution:
    objective, theta = solver.objective, certificate.theta
    g = subgradient(objective, theta, certificate.gradient, solver.penalty.l1)
    return Solution(
        weight=objective.weight_of(theta).clone(),
        bias=theta[:, -1].clone() if objective.bias else theta.new_zeros(len(theta)),
        objective=certificate.value,
        gradient_norm=float(g.norm()),
        duality_gap=certificate.gap,
        kkt_residual=certificate.residual,
        iterations=solver.iterations,
        passes=objective.passes,
        converged=converged,
        history=history,
    )


def _refuse_separable(solver: Solver, before: Tensor) -> None:
    """Say so where the classes can be separated.

    Without a penalty F falls for ever along weights that put every sample on its own side. Where
    the sum of all NLL is below that of one sample with probability 1/2, such weights are found.
    """
    objective = solver.objective
    if solver.penalty != Penalty(0.0):
        return
    lightest = (
        1.0 if objective.weight is None else float(objective.weight[objective.weight > 0].min())
    )
    if solver.value * objective.total < math.log(2) * lightest:
        raise _no_optimum("the classes can be separated", before, solver.theta)


def _refuse_receding(objective: Objective, theta: Tensor) -> None:
    """Say so where some samples can be separated from others for ever, and the rest does not mind.

    F has no minimum if along some direction no sample's margin over another class shrinks and one
    grows (Albert & Anderson 1984, Biometrika 71). Near an optimum Newton's steps come to nothing;
    along such a direction each adds about 1 to the margins, and little else.
    """
    newton = NewtonCG(objective, Penalty(0.0), theta, torch.float64)
    for _ in range(3):
        newton.step()
    z, y = objective.logits(newton.theta - theta, torch.float64), objective.y.unsqueeze(1)
    if objective.weight is not None:
        z, y = z[objective.weight > 0], y[objective.weight > 0]
    margins = z.gather(1, y) - z.scatter(1, y, -torch.inf)
    grown, shrunk = margins.masked_fill(margins == torch.inf, 0.0).amax(), -margins.amin()
    largest = objective.processes.largest(torch.stack([grown, shrunk]))
    if largest[0] > 0.5 and largest[1] < 1e-3 * largest[0]:
        raise _no_optimum("some classes can be separated", theta, newton.theta)


def _no_optimum(why: str, before: Tensor, after: Tensor) -> ValueError:
    return ValueError(
        f"C: expected a finite one, as {why} and without a penalty there is no optimum: the NLL "
        "falls for ever while the norm of the weight grows without end (from "
        f"{float(before.norm()):.3g} to {float(after.norm()):.3g} in the last steps)"
    )

"""A fit in progress, which decides on certificates, the dtype of the passes, and the end.

A solver makes steps in the dtype of its passes. When an estimate says that the requested accuracy
is reached, a certificate in float64 decides. If it does not suffice, or if the passes
show no more progress, the fit continues in float64 from the certified point. Accurate Newton steps,
each of which comes with a bound (``newton_bound``), finish a smooth fit whose progress is slow or
has stopped, and every fit without a penalty. Without a penalty there may be no optimum; then the
run raises ValueError.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch

from softmax_torch.solvers import separation
from softmax_torch.solvers.certificate import Certificate, certify, gap_bound, subgradient
from softmax_torch.solvers.line_search import ROUNDING
from softmax_torch.solvers.newton_bound import newton_bound
from softmax_torch.solvers.objective import Evaluated, Penalty
from softmax_torch.solvers.solver import Solver
from softmax_torch.solvers.stopping_criterion import StoppingCriterion

__all__ = ["Progress", "Run", "progress"]

PATIENCE = 10
"""Iterations without progress after which a fit continues in float64, or ends. L-BFGS, which judges
by slopes where rounding hides the descent of F, went on for hundreds: on MNIST the gap in float32
reaches 2e-9 of F in iteration 35 and stays there."""

PROGRESS = {torch.float32: 0.5, torch.float64: 0.9}
"""Estimates of the gap below this share of the least one so far are progress. Among estimates that
are rounding alone, some are a little less than the least: on digits with tol=1e-12, 0.9 kept a fit
in float32 for 40 iterations too many."""

SLOW_CHECK, SLOW = 50, 300
"""Iterations between extrapolations of the progress, and iterations left above which it is slow.
Steps from an inaccurate Hessian make hardly any progress near separation."""

FRUITLESS, LEAST_FALL = 3, 1e-12
"""Consecutive accurate Newton steps without progress after which the run ends. Progress is half the
bound, half the length of a step, or a fall of F by this share."""

OVERLAP = 1e-3
"""Length of an accurate Newton step, in differences of logits, below which its bound counts without
a penalty. If there is an optimum, steps become short fast. If classes are separated in a direction
with little curvature, CG may miss it in one step, but not in the next, which consists of it."""

UNDECIDED = 20
"""Newton steps without a penalty after which ``refuse_separated`` is called. Each of 1,500 small
problems was decided after at most 15."""

SEPARATION = 100
"""Newton steps without a penalty after which a fit ends undecided."""


class Progress(NamedTuple):
    """The state of a fit after an iteration.

    Attributes:
        iteration: number of iterations so far.
        objective: F, as the passes computed it.
        gradient_norm: Euclidean norm of the gradient (of the least subgradient with L1).
        duality_gap: computed in the dtype of the passes; None if only a certificate gives one.
        passes: passes over X so far.
        seconds: time so far.
    """

    iteration: int
    objective: float
    gradient_norm: float
    duality_gap: float | None
    passes: float
    seconds: float


class Run:
    """A fit in progress: steps of a solver, and certificates.

    Attributes:
        solver: the solver that makes the steps.
        criterion: decides whether a certificate proves convergence.
        converged: whether a certificate proved convergence.
        ended: whether the fit has converged or cannot be improved in float64.

    Raises:
        ValueError: There is no penalty, and the classes can be separated.
    """

    def __init__(self, solver: Solver, tol: float) -> None:
        self.unpenalized = solver.penalty == Penalty(0.0)
        if self.unpenalized:
            separation.refuse_separating_columns(solver.objective)
        self.solver, self.criterion = solver, StoppingCriterion(solver, tol)
        self.converged = self.ended = False
        self._certificate: Certificate | None = None
        self._improved = (0, math.inf, math.inf)  # iteration, F and estimate at the last progress
        self._checked = (0, math.inf)  # iteration and estimate when progress was last extrapolated
        self._newton_steps, self._fruitless = 0, 0
        self._overlap: bool | None = None  # whether overlap is proved; None before it was tried
        # Least bound, least length and last length of the accurate Newton steps.
        self._least = self._shortest = self._reach = math.inf

    def advance(self) -> None:
        """Make one outer iteration of the solver, or compute a certificate between two of them."""
        with self.solver.objective.threads():
            self._advance()

    def _advance(self) -> None:
        solver = self.solver
        if self._newton_steps:
            self._newton_step()
            return
        stuck = False
        if not self.criterion.certificate_due():
            self._certificate = None
            if solver.step():
                if self.unpenalized:
                    separation.refuse_complete(solver.objective, solver.value)
                if self._slow():
                    self._newton_steps = 1
                    return
                if not self._idle():
                    return
            stuck = True
        if self.unpenalized:
            self._newton_step()
            return
        certificate = self.certificate()
        if self.converged:
            self.ended = True
            return
        if stuck and solver.dtype == torch.float64:
            self.ended = solver.penalty.l1 > 0
            self._newton_steps = int(not self.ended)
            return
        if stuck or self.criterion.tighten():
            solver.dtype = torch.float64
            self._improved = (solver.iterations, math.inf, math.inf)
        solver.restart(certificate.theta)

    def _idle(self) -> bool:
        """Return whether the last iterations made no progress that the dtype can show."""
        solver = self.solver
        now, F, estimate = solver.iterations, solver.objective_value, self.criterion.estimate()
        since, best, least = self._improved
        if F < best * (1 - ROUNDING[solver.dtype]) or estimate < PROGRESS[solver.dtype] * least:
            self._improved = (now, F, estimate)
            return False
        return now - since >= PATIENCE

    def _slow(self) -> bool:
        """Return whether, at the present rate, convergence is hundreds of iterations away."""
        solver = self.solver
        now, since = solver.iterations, self._checked[0]
        if not solver.newton_takes_over or now - since < SLOW_CHECK:
            return False
        estimate, before = self.criterion.estimate(), self._checked[1]
        self._checked = (now, estimate)
        left = math.log(max(estimate, 1.0))
        gained = math.log(max(before / max(estimate, 1e-300), 1.0))
        return since > 0 and left * SLOW_CHECK > SLOW * gained

    def _newton_step(self) -> None:
        """Make one accurate Newton step in float64, whose bound is the certificate."""
        self._newton_steps += 1
        self._certificate = None
        before = self.solver.value
        certificate = self.certificate()
        gap = certificate.gap
        fell = before - certificate.value > LEAST_FALL * abs(before)
        shorter = self._reach < self._shortest / 2
        self._fruitless = 0 if fell or shorter or gap < self._least / 2 else self._fruitless + 1
        self._least, self._shortest = min(self._least, gap), min(self._shortest, self._reach)
        lost = self.unpenalized and self._newton_steps > SEPARATION
        self.ended = self.converged or lost or self._fruitless >= FRUITLESS
        late = self._newton_steps == UNDECIDED or (self.ended and self._newton_steps < UNDECIDED)
        if late and self.unpenalized and not self.converged:
            self._overlap = separation.refuse_separated(self.solver.objective, UNDECIDED)

    def certificate(self) -> Certificate:
        """Return the certificate of the current point.

        Without a penalty, or once accurate Newton steps finish the fit, it comes from such a step,
        which moves the solver.
        """
        if self._certificate is None:
            solver = self.solver
            with solver.objective.threads():
                if self._newton_steps or self.unpenalized:
                    self._certificate = self._newton_certificate()
                else:
                    self._certificate = certify(solver.objective, solver.theta, solver.penalty)
            self.converged = self.criterion.met(self._certificate)
        return self._certificate

    def _newton_certificate(self) -> Certificate:
        """Make an accurate Newton step, and return its certificate."""
        solver, objective, penalty = self.solver, self.solver.objective, self.solver.penalty
        enough = self.criterion.tol * solver.value
        seed = solver.seed + solver.iterations
        bound = newton_bound(objective, solver.theta, penalty, enough, seed)
        if self.unpenalized:
            separation.refuse_direction(objective, bound.d, bound.z)
            separation.refuse_complete(objective, bound.value)
        solver.dtype = torch.float64
        solver.move_to(bound.theta, Evaluated(bound.value, bound.gradient))
        self._reach, gap = bound.reach, bound.gap
        if self.unpenalized and bound.reach > OVERLAP:
            gap = math.inf
        residual = float(bound.gradient.abs().max())
        certificate = Certificate(bound.theta, bound.value, bound.gradient, gap, residual)
        if penalty.l2 > 0 and not self.criterion.met(certificate):
            dual = certify(objective, bound.theta, penalty)
            certificate = dual if dual.gap < bound.gap else certificate
        return certificate

    def not_converged(self) -> str:
        """Return the message for a fit that did not converge.

        Raises:
            ValueError: There is no penalty, and the classes can be separated.
        """
        certificate = self.certificate()
        if self.unpenalized and self._overlap is None:
            self._overlap = separation.refuse_separated(self.solver.objective, 0)
        if not self.ended:
            limit = "max_iter was reached first"
        elif self.unpenalized and certificate.gap == math.inf and not self._overlap:
            limit = "neither an optimum nor a direction that separates the classes was found"
        elif self.solver.penalty.l1 > 0:
            limit = "no further step lowers F or its subgradient"
        else:
            limit = "rounding in float64 prevents a smaller bound"
        return (
            f"the fit ended after {self.solver.iterations} iterations at a "
            f"{self.criterion.describe(certificate)}, expected tol={self.criterion.tol:.1e}: "
            f"{limit}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which a run on the same problem resumes bit for bit."""
        return {
            "solver": self.solver.state_dict(),
            "margin": self.criterion.margin,
            "gained": self._improved,
            "checked": self._checked,
            "finishing": (self._newton_steps, self._fruitless, self._least, self._shortest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of ``state_dict``."""
        self.solver.load_state_dict(state["solver"])
        self.criterion.margin, self._improved = state["margin"], state["gained"]
        # Checkpoints from before Newton steps finished fits lack these entries.
        self._checked = state.get("checked", (0, math.inf))
        newton = state.get("finishing", (0, 0, math.inf, math.inf))
        self._newton_steps, self._fruitless, self._least, self._shortest = newton


def progress(solver: Solver, seconds: float) -> Progress:
    """Return the progress of a solver."""
    objective, penalty = solver.objective, solver.penalty
    g = subgradient(objective, solver.theta, solver.gradient, penalty.l1)
    gap = None
    if penalty.l1 == 0 < penalty.l2:
        gap = gap_bound(objective, solver.gradient, penalty)
    return Progress(
        solver.iterations, solver.objective_value, float(g.norm()), gap, objective.passes, seconds
    )

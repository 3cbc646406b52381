"""A fit in progress: when it has arrived, in which precision it goes on, and when it ends.

A solver steps in the precision of its passes. When their figures promise that the goal is reached,
a certificate in float64 decides. If it is not enough, or the passes can tell no more, the fit goes
on in float64 from there. Accurate Newton steps, each of which bounds what is left
(``newton_bound``), finish a smooth fit where the solver makes hardly any progress or none, and
always without a penalty. Then there may be no optimum, which is an error.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers import separation
from softmax_torch.solvers.certificate import Certificate, certify, gap_bound, subgradient
from softmax_torch.solvers.newton_bound import newton_bound
from softmax_torch.solvers.objective import Evaluated, Objective, Penalty
from softmax_torch.solvers.solver import Solver

__all__ = ["Goal", "Progress", "Run", "progress", "promised_gap"]

PATIENCE = 10
"""After so many iterations that gained nothing a fit goes on in float64, or ends. L-BFGS, which
judges by slopes where F cannot tell, went on for hundreds: on MNIST the gap in float32 reaches 2e-9
of F in iteration 35 and stays there."""

NOISE = {torch.float32: 1e-7, torch.float64: 1e-15}
"""Relative descent of F below which it may be rounding."""

CRAWL, FAR = 50, 300
"""Iterations after which progress is looked at, and how many more are too many at that rate: steps
shaped by an inaccurate Hessian make hardly any where classes are all but separated."""

FRUITLESS, FALLEN = 3, 1e-12
"""Accurate Newton steps in a row that neither halved the bound nor lowered F by this share, after
which none does."""

OVERLAP = 1e-3
"""Length of an accurate Newton step that shows an optimum without a penalty: they become short fast
where there is one. Where classes are separated in a direction with little curvature, CG may leave
it out of one step, but not of the next, which then consists of it alone."""

UNDECIDED = 20
"""Steps without a penalty after which separation is decided otherwise: the most that any of 1,500
small problems took to an answer was 15."""

SEPARATION = 100
"""Steps without a penalty after which a fit ends without an answer."""


class Progress(NamedTuple):
    """How far a fit is after an iteration; the gap is what the passes' own precision can tell."""

    iteration: int
    objective: float
    gradient_norm: float
    duality_gap: float | None
    passes: float
    seconds: float


class Run:
    """A fit in progress: steps, and a certificate when the passes' own figures promise one.

    Attributes:
        converged: whether a certificate was within ``tol``.
        ended: whether that is so, or nothing more can be gained in float64.
    """

    def __init__(self, solver: Solver, tol: float) -> None:
        if solver.penalty == Penalty(0.0):
            separation.refuse_separating_columns(solver.objective)
        self.solver, self.goal = solver, Goal(solver, tol)
        self.converged = self.ended = False
        self._certificate: Certificate | None = None
        self._gained = (0, math.inf, math.inf)  # iteration, F and measure when last it got better
        self._checked = (0, math.inf)  # iteration and measure when progress was last looked at
        self._finishing, self._fruitless = 0, 0
        self._overlap: bool | None = None  # whether it is proved; None before that was tried
        self._least = self._shortest = self._reach = math.inf  # bounds and lengths of Newton steps

    def advance(self) -> None:
        """Make one outer iteration of the solver, or what comes between two of them."""
        solver = self.solver
        if self._finishing:
            self._finish()
            return
        stuck = False
        if not self.goal.promised():
            self._certificate = None
            if solver.step():
                if solver.penalty == Penalty(0.0):
                    separation.refuse_complete(solver.objective, solver.value)
                if self._crawling():
                    self._finishing = 1
                    return
                if not self._idle():
                    return
            stuck = True
        if solver.penalty == Penalty(0.0):
            self._finish()
            return
        certificate = self.conclude()
        if self.converged:
            self.ended = True
            return
        if stuck and solver.dtype == torch.float64:
            self.ended = solver.penalty.l1 > 0
            self._finishing = int(not self.ended)
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

    def _crawling(self) -> bool:
        """Whether the last iterations gained so little that the goal is hundreds more away."""
        solver = self.solver
        now, since = solver.iterations, self._checked[0]
        if not solver.hands_over or now - since < CRAWL:
            return False
        measure, before = self.goal.measure(), self._checked[1]
        self._checked = (now, measure)
        left = math.log(max(measure, 1.0))
        return since > 0 and left * CRAWL > FAR * math.log(max(before / max(measure, 1e-300), 1.0))

    def _finish(self) -> None:
        """Make one accurate Newton step in float64, whose bound is the certificate."""
        self._finishing += 1
        self._certificate = None
        before = self.solver.value
        certificate = self.conclude()
        gap = certificate.gap
        fell = before - certificate.value > FALLEN * abs(before)
        shorter = self._reach < self._shortest / 2
        self._fruitless = 0 if fell or shorter or gap < self._least / 2 else self._fruitless + 1
        self._least, self._shortest = min(self._least, gap), min(self._shortest, self._reach)
        unpenalized = self.solver.penalty == Penalty(0.0)
        lost = unpenalized and self._finishing > SEPARATION
        self.ended = self.converged or lost or self._fruitless >= FRUITLESS
        late = self._finishing == UNDECIDED or (self.ended and self._finishing < UNDECIDED)
        if late and unpenalized and not self.converged:
            self._overlap = separation.refuse_separated(self.solver.objective, UNDECIDED)

    def conclude(self) -> Certificate:
        """Return the certificate of where the solver stands.

        Without a penalty, or to finish a fit, that is one accurate Newton step further.
        """
        if self._certificate is None:
            solver = self.solver
            if self._finishing or solver.penalty == Penalty(0.0):
                self._certificate = self._bounded()
            else:
                self._certificate = certify(solver.objective, solver.theta, solver.penalty)
            self.converged = self.goal.met(self._certificate)
        return self._certificate

    def _bounded(self) -> Certificate:
        """Take an accurate Newton step, and return the certificate that it gives."""
        solver, objective, penalty = self.solver, self.solver.objective, self.solver.penalty
        enough = self.goal.tol * solver.value
        seed = solver.seed + solver.iterations
        bound = newton_bound(objective, solver.theta, penalty, enough, seed)
        if penalty == Penalty(0.0):
            separation.refuse_direction(objective, bound.d, bound.z)
            separation.refuse_complete(objective, bound.value)
        solver.dtype = torch.float64
        solver.move_to(bound.theta, Evaluated(bound.value, bound.gradient))
        self._reach, gap = bound.reach, bound.gap
        if penalty == Penalty(0.0) and bound.reach > OVERLAP:
            gap = math.inf
        residual = float(bound.gradient.abs().max())
        certificate = Certificate(bound.theta, bound.value, bound.gradient, gap, residual)
        if penalty.l2 > 0 and not self.goal.met(certificate):
            dual = certify(objective, bound.theta, penalty)
            certificate = dual if dual.gap < bound.gap else certificate
        return certificate

    def complaint(self) -> str:
        """Return what to say where the fit did not converge.

        Raises:
            ValueError: There is no optimum without a penalty.
        """
        certificate = self.conclude()
        unpenalized = self.solver.penalty == Penalty(0.0)
        if unpenalized and self._overlap is None:
            self._overlap = separation.refuse_separated(self.solver.objective, 0)
        if not self.ended:
            limit = "max_iter came first"
        elif unpenalized and certificate.gap == math.inf and not self._overlap:
            limit = "neither an optimum nor a direction that separates the classes was found"
        elif self.solver.penalty.l1 > 0:
            limit = "no further step lowers F or its subgradient"
        else:  # accurate Newton steps do not lower the bound any more
            limit = "float64 can tell no more"
        return (
            f"the fit ended after {self.solver.iterations} iterations at a "
            f"{self.goal.reached(certificate)}, expected tol={self.goal.tol:.1e}: {limit}"
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what ``load_state_dict`` of a run on the same problem resumes bit for bit."""
        return {
            "solver": self.solver.state_dict(),
            "margin": self.goal.margin,
            "gained": self._gained,
            "checked": self._checked,
            "finishing": (self._finishing, self._fruitless, self._least, self._shortest),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from the state of ``state_dict``."""
        self.solver.load_state_dict(state["solver"])
        self.goal.margin, self._gained = state["margin"], state["gained"]
        # Checkpoints from before fits were finished by Newton steps have no such entries.
        self._checked = state.get("checked", (0, math.inf))
        finishing = state.get("finishing", (0, 0, math.inf, math.inf))
        self._finishing, self._fruitless, self._least, self._shortest = finishing


class Goal:
    """When a fit has arrived: by the passes' own figures, and by the certificate."""

    def __init__(self, solver: Solver, tol: float) -> None:
        self.solver, self.tol = solver, tol
        self.penalty = solver.penalty
        self.at_zero = math.inf
        if self.penalty.l1 > 0:
            gradient = solver.objective.weight_of(solver.objective.gradient_at_zero())
            self.at_zero = max(float(gradient.abs().max()), self.penalty.l1)
        self.margin = 0.9  # rounding takes its share

    def measure(self) -> float:
        """Return how many times ``tol`` the passes' own figures put the solver off."""
        solver, penalty = self.solver, self.penalty
        enough = self.tol * objective_at(solver)
        if penalty == Penalty(0.0):
            gap = solver.descent
        else:
            gap = promised_gap(solver.objective, solver.theta, solver.gradient, penalty)
        off = gap / enough if gap > 0 else 0.0
        if penalty.l1 == 0:
            return off
        s = subgradient(solver.objective, solver.theta, solver.gradient, penalty.l1)
        return max(off, self._residual(float(s.abs().max())) / self.tol)

    def promised(self) -> bool:
        """Whether it is time for a certificate."""
        return self.measure() <= self.margin

    def missed(self) -> bool:
        """Ask for more before the next certificate, and return whether that was tried already."""
        again = self.margin < 0.9
        self.margin /= 3
        return again

    def met(self, certificate: Certificate) -> bool:
        """Whether the certificate says so."""
        if certificate.gap > self.tol * certificate.value:
            return False
        # A gap that is rounding leaves the KKT residual to the weights that F does not depend on.
        rounding = certificate.gap <= NOISE[torch.float64] * certificate.value
        return rounding or self._residual(certificate.residual) <= self.tol

    def reached(self, certificate: Certificate) -> str:
        """Return how near a certificate is, in words."""
        if certificate.gap == math.inf:
            return f"gradient of {certificate.residual:.1e}"
        gap = f"relative duality gap of {certificate.gap / certificate.value:.1e}"
        if self.penalty.l1 > 0:
            return f"{gap} and a KKT residual of {self._residual(certificate.residual):.1e}"
        return gap

    def _residual(self, largest: float) -> float:
        """Return the KKT residual relative to the gradient at 0, or to l1 if all weights are 0.

        It is 0 without an L1 term.
        """
        return largest / self.at_zero if largest > 0 else 0.0


def promised_gap(objective: Objective, theta: Tensor, gradient: Tensor, penalty: Penalty) -> float:
    """Return what the duality gap will be once the bias is at its optimum.

    Args:
        theta: where the gradient is that of the smooth part of F.
        gradient: of any precision; with an L1 term the result is accurate to leading order.
    """
    W, g = objective.weight_of(theta), objective.weight_of(gradient)
    if penalty.l1 == 0:
        square = float(g.square().sum())
        if objective.bias:
            # A change of the bias that takes its gradient g_b away changes that of the weight by
            # about g_b times the mean of the samples.
            square += float(gradient[:, -1].square().sum()) * float(objective.mean.square().sum())
        return square / (2 * penalty.l2)
    V = g - penalty.l2 * W  # of the negative log-likelihood
    inner, size = float((V * W).sum()), float(W.abs().sum())
    base = inner + penalty.l1 * size + penalty.l2 / 2 * float(W.square().sum())
    excess = (V.abs() - penalty.l1).clamp_min(0)
    if not excess.any():
        return base
    # q = (1 - s) e_y + s p: by the derivative of its entropy in s, at s = 1.
    gap = base - (1 - penalty.l1 / float(V.abs().max())) * inner
    if penalty.l2 > 0:
        gap = min(gap, base + float(excess.square().sum()) / (2 * penalty.l2))
    return gap


def objective_at(solver: Solver) -> float:
    """Return F where a solver stands, by its passes."""
    if solver.penalty.l1 == 0:
        return solver.value
    W = solver.objective.weight_of(solver.theta)
    return solver.value + solver.penalty.l1 * float(W.abs().sum())


def progress(solver: Solver, seconds: float) -> Progress:
    """Return how far a solver is."""
    objective, penalty = solver.objective, solver.penalty
    g = subgradient(objective, solver.theta, solver.gradient, penalty.l1)
    gap = None
    if penalty.l1 == 0 < penalty.l2:
        gap = gap_bound(objective, solver.gradient, penalty)
    value = objective_at(solver)
    return Progress(solver.iterations, value, float(g.norm()), gap, objective.passes, seconds)

"""A fit in progress: when it has arrived, in which precision it goes on, and when there is no end.

A solver steps in the precision of its passes. When their figures promise that the goal is reached,
a certificate in float64 has the say; where it says no, or the passes can tell no more, the fit goes
on in float64 from there. Without a penalty there may be no optimum to arrive at, which is an error.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.certificate import Certificate, certify, gap_bound, subgradient
from softmax_torch.solvers.newton import NewtonCG
from softmax_torch.solvers.objective import Objective, Penalty
from softmax_torch.solvers.solver import Solver

__all__ = ["Goal", "Progress", "Run", "progress", "promised_gap"]

PATIENCE = 10
"""After so many iterations that gained nothing a fit goes on in float64, or ends. L-BFGS, which
judges by slopes where F cannot tell, went on for hundreds: on MNIST the gap in float32 reaches 2e-9
of F in iteration 35 and stays there."""

NOISE = {torch.float32: 1e-7, torch.float64: 1e-15}
"""Relative descent of F below which it may be rounding."""


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

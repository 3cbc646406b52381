"""Decide whether a fit has converged: estimate it from the passes, prove it by a certificate."""

from __future__ import annotations

import math

import torch

from softmax_torch.solvers.certificate import Certificate, estimated_gap, subgradient
from softmax_torch.solvers.line_search import ROUNDING
from softmax_torch.solvers.objective import Penalty
from softmax_torch.solvers.solver import Solver

__all__ = ["MARGIN", "StoppingCriterion"]

MARGIN = 0.9
"""Largest estimate, in units of tol, at which a certificate is computed; below 1 to allow for
rounding."""


class StoppingCriterion:
    """The condition that the relative duality gap is at most ``tol``, with L1 the KKT residual too.

    The KKT residual is relative to the largest entry of the gradient at W = 0, or to l1 if that is
    larger.

    Attributes:
        margin: largest estimate, in units of tol, at which a certificate is due.
    """

    def __init__(self, solver: Solver, tol: float) -> None:
        self.solver, self.tol = solver, tol
        self.penalty = solver.penalty
        self.at_zero = math.inf
        if self.penalty.l1 > 0:
            gradient = solver.objective.weight_of(solver.objective.gradient_at_zero())
            self.at_zero = max(float(gradient.abs().max()), self.penalty.l1)
        self.margin = MARGIN

    def estimate(self) -> float:
        """Estimate the gap, or the KKT residual if that is larger, in units of tol."""
        solver, penalty = self.solver, self.penalty
        enough = self.tol * solver.objective_value
        if penalty == Penalty(0.0):
            gap = solver.descent
        else:
            gap = estimated_gap(solver.objective, solver.theta, solver.gradient, penalty)
        relative = gap / enough if gap > 0 else 0.0
        if penalty.l1 == 0:
            return relative
        s = subgradient(solver.objective, solver.theta, solver.gradient, penalty.l1)
        return max(relative, self._relative(float(s.abs().max())) / self.tol)

    def certificate_due(self) -> bool:
        """Return whether the estimate is low enough for a certificate to be computed."""
        return self.estimate() <= self.margin

    def tighten(self) -> bool:
        """Lower the margin because a certificate failed; return whether one had failed before."""
        again = self.margin < MARGIN
        self.margin /= 3
        return again

    def met(self, certificate: Certificate) -> bool:
        """Return whether the certificate proves convergence."""
        if certificate.gap > self.tol * certificate.value:
            return False
        # Where the gap is rounding, a KKT residual belongs to weights on which F does not depend.
        rounding = certificate.gap <= ROUNDING[torch.float64] * certificate.value
        return rounding or self._relative(certificate.residual) <= self.tol

    def describe(self, certificate: Certificate) -> str:
        """Return in words how near the optimum a certificate proves its point to be."""
        if certificate.gap == math.inf:
            return f"gradient of {certificate.residual:.1e}"
        gap = f"relative duality gap of {certificate.gap / certificate.value:.1e}"
        if self.penalty.l1 > 0:
            return f"{gap} and a KKT residual of {self._relative(certificate.residual):.1e}"
        return gap

    def _relative(self, residual: float) -> float:
        """Return a KKT residual relative to the gradient at 0 or l1; 0 without an L1 term."""
        return residual / self.at_zero if residual > 0 else 0.0

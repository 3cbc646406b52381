"""How far F is above its minimum, from one accurate Newton step: a bound without a penalty too.

At theta with probabilities p_i, gradient g and Hessian H of the smooth F let d solve H d = -g up
to a residual rho = g + H d, and let

    q_i = p_i (1 + eps_i),    eps_ik = z_ik - sum_l p_il z_il,    z_i = d [x_i, 1]

These q_i are probabilities where no difference of two logits z_i reaches 1. Their cross-entropy
bounds the NLL of any theta' from below (Fenchel), by which

    F(theta) - F(theta')  <=  1/S sum_i w_i KL(q_i || p_i) + l2/2 ||d_W||^2 + rho.(theta - theta')

for every theta'. Without the last term this is a duality gap, and half of the Newton decrement
g.H^-1 g to leading order. CG is run until that term is small for every theta' within ``REACH``
steps, in the norm ||d||_h^2 = sum h d^2 with h the diagonal of H: by Cauchy-Schwarz

    rho.(theta - theta')  <=  REACH ||rho||_{1/h} ||d||_h

and since F is convex, for theta' farther away the bound is larger at most in proportion to the
distance. So it holds whatever preconditioner, draw of rows and passes in float32 led to theta. All
of it is computed in float64 from the samples as they were given.

Strictly positive q_i prove, again up to rho, that classes cannot be separated (see ``separation``).
Where the differences reach 1 there is no bound yet, and F may rise. Then the step is halved, at
most down to a length of log(1 + r) / r, r the largest of them, for which F falls if H is accurate
(Bach 2010, "Self-concordant analysis for logistic regression").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.conjugate_gradients import conjugate_gradients
from softmax_torch.solvers.objective import Evaluated, Objective, Penalty
from softmax_torch.solvers.preconditioner import sketch_of
from softmax_torch.solvers.rows import Rows

__all__ = ["NewtonBound", "newton_bound"]

REACH = 10.0
"""Newton steps within which the bound holds for every theta'."""

ACCURACY = 0.1
"""Share of what is promised or asked for, up to which the residual may add to the bound."""

SOLVED = 1e-2
"""What the norm of the residual has to be, relative to that of g."""

NOISE, SINGULAR = 1e-13, 1e-12
"""The norm of g that is rounding, and the least eigenvalue, in units of h, by which it counts."""

FULL = 2048
"""K P up to which CG is preconditioned by the whole Hessian, which is inverted in 0.3 s then."""

INNER, REFINEMENTS = 300, 3
"""CG iterations at most, and how often they begin again from the residual computed anew."""

ROUNDING = 4e-16
"""Relative to F, the least gap that float64 tells."""


class NewtonBound(NamedTuple):
    """The point after an accurate Newton step, and what the step says of it.

    Attributes:
        theta, value, gradient: after the step, which is shortened as long as F rises.
        gap: F is at most this far above its minimum; inf where the step was too long to tell.
        d: the whole step.
        z: its logits (n, K).
        reach: the largest difference of two logits of a sample.
    """

    theta: Tensor
    value: float
    gradient: Tensor
    gap: float
    d: Tensor
    z: Tensor
    reach: float


def newton_bound(
    objective: Objective, theta: Tensor, penalty: Penalty, enough: float, seed: int
) -> NewtonBound:
    """Make an accurate Newton step from theta (K, P) and bound what is left.

    The mean over the classes is taken out of theta first, which changes no probability.

    Args:
        penalty: one without an L1 term.
        enough: the gap that is asked for; CG stops where its residual adds little to that.
        seed: of the rows drawn for the preconditioner.
    """
    theta = theta - theta.mean(0)
    value, g = objective.evaluate(theta, penalty, torch.float64)
    rows = Rows(objective, theta, torch.Generator().manual_seed(seed), torch.float64)
    h = rows.diagonal(rows.curvatures)
    objective.weight_of(h).add_(penalty.l2)
    precondition = sketch_of(rows, FULL).inverse(penalty.l2)

    def product(v: Tensor) -> Tensor:
        return objective.hessian_product(rows.p, v, penalty)

    d, promised, slack = torch.zeros_like(g), 0.0, math.inf
    at_zero, residual = _norm(g, h), g
    if at_zero <= NOISE:  # no direction can be told from rounding
        slack = at_zero**2 / SINGULAR
    for attempt in range(REFINEMENTS + 1):
        if attempt:
            residual = g + product(d)
            left = _norm(residual, h)
            # Unless CG has come far, nothing is known of the directions that are left.
            known = left <= SOLVED * at_zero
            slack = REACH * left * float((d.square() * h).sum().sqrt()) if known else math.inf
        if slack <= ACCURACY * max(enough, promised) or attempt == REFINEMENTS:
            break
        start = d
        iterates = conjugate_gradients(product, precondition, residual, h)
        for j, (step, r, _) in enumerate(iterates, 1):
            d = start + step
            promised, left = -0.5 * float((g * d).sum()), _norm(r, h)
            added = REACH * left * float((d.square() * h).sum().sqrt())
            small = added <= 0.5 * ACCURACY * max(enough, promised)
            if j == INNER or (small and left <= 0.5 * SOLVED * at_zero):
                break
    z = objective.logits(d, torch.float64)
    reach, divergence = _divergence(objective, rows.p, z)
    W = objective.weight_of(d)
    gap = divergence + penalty.l2 / 2 * float(W.square().sum()) + slack
    after, point = theta, Evaluated(value, g)
    # Bach's bound guarantees a length of log(1 + reach) / reach; mostly far longer ones do.
    halvings = range(2 + math.ceil(math.log2(1 + reach))) if math.isfinite(reach) else range(0)
    for length in (0.5**i for i in halvings):
        trial = theta + length * d
        found = objective.evaluate(trial, penalty, torch.float64)
        if found.value <= value + ROUNDING * abs(value):
            after, point = trial, found
            break
    # What F has fallen by is no longer above the minimum.
    gap = max(gap - (value - point.value), ROUNDING * abs(value))
    return NewtonBound(after, *point, gap, d, z, reach)


def _norm(g: Tensor, h: Tensor) -> float:
    """Return ||g||_{1/h}; inf where h is 0 and g is not."""
    return float(torch.where(g == 0, 0.0, g.square() / h).sum().sqrt())


def _divergence(objective: Objective, p: Tensor, z: Tensor) -> tuple[float, float]:
    """Return the reach of z, and 1/S sum_i w_i KL(q_i || p_i), inf if the reach is 1 or more."""
    w = objective.weight
    w = torch.ones_like(z[:, 0]) if w is None else w.double()
    spans = torch.where(w > 0, z.amax(1) - z.amin(1), 0.0)
    reach = float(objective.processes.largest(spans.max()))
    if not reach < 1:
        return reach, math.inf
    eps = z - (p * z).sum(1, keepdim=True)
    each = (p * ((1 + eps) * eps.log1p() - eps)).sum(1)
    return reach, float(objective.summed(w @ each)) / objective.divisor

"""An upper bound on F - F* from one accurate Newton step; it needs no penalty.

At theta with probabilities p_i, gradient g and Hessian H of the smooth F let d solve H d = -g up
to a residual rho = g + H d, and let

    q_i = p_i (1 + eps_i),    eps_ik = z_ik - sum_l p_il z_il,    z_i = d [x_i, 1]

These q_i are probabilities if all differences of two logits of z_i are below 1. Then their
cross-entropy bounds the NLL of any theta' from below (Fenchel), and for every theta'

    F(theta) - F(theta')  <=  1/S sum_i w_i KL(q_i || p_i) + l2/2 ||d_W||^2 + rho.(theta - theta')

The first two terms are a duality gap, and to leading order half the Newton decrement g.H^-1 g. CG
runs until the last term is small for every theta' within ``REACH`` step lengths of theta, in the
norm ||d||_h^2 = sum h d^2 with h the diagonal of H: by Cauchy-Schwarz

    rho.(theta - theta')  <=  REACH ||rho||_{1/h} ||d||_h

For theta' farther away the bound grows at most in proportion to the distance, since F is convex.
The bound holds whatever preconditioner, draw of rows and passes in float32 led to theta: it is
computed in float64 from the samples as they were given.

Strictly positive q_i prove, again up to rho, that classes cannot be separated (see ``separation``).
If a difference of two logits reaches 1 there is no bound yet, and F may rise. Then the step is
halved, at most down to a length of log(1 + r) / r, r the largest difference. At that length F falls
if H is accurate (Bach 2010, "Self-concordant analysis for logistic regression").
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.solvers.conjugate_gradients import conjugate_gradients
from softmax_torch.solvers.objective import Evaluated, Objective, Penalty
from softmax_torch.solvers.preconditioner import sketch_of
from softmax_torch.solvers.sampled_hessian import SampledHessian

__all__ = ["NewtonBound", "newton_bound"]

REACH = 10.0
"""Distance from theta, in lengths of the Newton step, within which the bound holds."""

ACCURACY = 0.1
"""Largest term of the residual, relative to the promised descent or the requested gap, whichever is
larger."""

LARGEST_RESIDUAL = 1e-2
"""Largest norm of the residual, relative to the norm of g."""

NOISE, LEAST_EIGENVALUE = 1e-13, 1e-12
"""The norm of g that may be rounding alone, and the least eigenvalue of H, in units of h, that is
assumed for a bound from such a g."""

WHOLE_PRECONDITIONER = 2048
"""K P up to which CG is preconditioned by the whole Hessian. At the limit it is inverted in
0.3 s."""

CG_ITERATIONS, RESTARTS = 300, 3
"""CG iterations at most, and how often CG restarts from the residual recomputed from d."""

LEAST_GAP = 4e-16
"""The least gap, relative to F, that float64 can show."""


class NewtonBound(NamedTuple):
    """The point after an accurate Newton step, and the bound from the step.

    Attributes:
        theta, value, gradient: the point after the step, which is shortened while F rises.
        gap: an upper bound on F - F* at ``theta``; inf if the step was too long for a bound.
        d: the full step (K, P).
        z: logits of the full step (n, K).
        reach: the largest difference of two logits in a row of z.
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
    """Make an accurate Newton step from theta (K, P), and bound F - F* after it.

    The mean over the classes is subtracted from theta first, which changes no probability.

    Args:
        penalty: a penalty without an L1 term.
        enough: the requested gap; CG stops where its residual adds little to it.
        seed: seed of the draw of rows for the preconditioner.
    """
    theta = theta - theta.mean(0)
    value, g = objective.evaluate(theta, penalty, torch.float64)
    sampled = SampledHessian(objective, theta, seed, torch.float64)
    h = sampled.diagonal(sampled.curvatures)
    objective.weight_of(h).add_(penalty.l2)
    precondition = sketch_of(sampled, WHOLE_PRECONDITIONER).inverse(penalty.l2)

    def product(v: Tensor) -> Tensor:
        return objective.hessian_product(sampled.p, v, penalty)

    d, promised, slack = torch.zeros_like(g), 0.0, math.inf
    at_zero, residual = _norm(g, h), g
    if at_zero <= NOISE:  # g may be rounding alone
        slack = at_zero**2 / LEAST_EIGENVALUE
    for attempt in range(RESTARTS + 1):
        if attempt:
            residual = g + product(d)
            left = _norm(residual, h)
            # If the residual is still large, CG has not seen some directions at all.
            solved = left <= LARGEST_RESIDUAL * at_zero
            slack = REACH * left * float((d.square() * h).sum().sqrt()) if solved else math.inf
        if slack <= ACCURACY * max(enough, promised) or attempt == RESTARTS:
            break
        start = d
        iterates = conjugate_gradients(product, precondition, residual, h)
        for j, (step, r, _) in enumerate(iterates, 1):
            d = start + step
            promised, left = -0.5 * float((g * d).sum()), _norm(r, h)
            added = REACH * left * float((d.square() * h).sum().sqrt())
            small = added <= 0.5 * ACCURACY * max(enough, promised)
            if j == CG_ITERATIONS or (small and left <= 0.5 * LARGEST_RESIDUAL * at_zero):
                break
    z = objective.logits(d, torch.float64)
    reach, divergence = _divergence(objective, sampled.p, z)
    W = objective.weight_of(d)
    gap = divergence + penalty.l2 / 2 * float(W.square().sum()) + slack
    after, point = theta, Evaluated(value, g)
    # Bach's bound guarantees descent at length log(1 + reach) / reach; F usually falls at far
    # greater lengths too.
    halvings = range(2 + math.ceil(math.log2(1 + reach))) if math.isfinite(reach) else range(0)
    for length in (0.5**i for i in halvings):
        trial = theta + length * d
        found = objective.evaluate(trial, penalty, torch.float64)
        if found.value <= value + LEAST_GAP * abs(value):
            after, point = trial, found
            break
    # The bound is for F before the step; the descent of the step is subtracted.
    gap = max(gap - (value - point.value), LEAST_GAP * abs(value))
    return NewtonBound(after, *point, gap, d, z, reach)


def _norm(g: Tensor, h: Tensor) -> float:
    """Return ||g||_{1/h}; inf where h is 0 and g is not."""
    return float(torch.where(g == 0, 0.0, g.square() / h).sum().sqrt())


def _divergence(objective: Objective, p: Tensor, z: Tensor) -> tuple[float, float]:
    """Return the largest difference of two logits in a row of z, and 1/S sum_i w_i KL(q_i || p_i).

    The latter is inf if the former is 1 or more. Samples of weight 0 do not count.
    """
    w = objective.weights
    spans = torch.where(w > 0, z.amax(1) - z.amin(1), 0.0)
    reach = float(objective.processes.largest(spans.max()))
    if not reach < 1:
        return reach, math.inf
    eps = z - (p * z).sum(1, keepdim=True)
    each = (p * ((1 + eps) * eps.log1p() - eps)).sum(1)
    return reach, float(objective.summed(w @ each)) / objective.divisor

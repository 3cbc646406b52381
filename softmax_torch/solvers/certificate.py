"""The certificate: an upper bound on F - F* by Fenchel duality, with an L2 or an L1 penalty.

Any class probabilities q_i with sum_i w_i (e_{y_i} - q_i) = 0 (a condition only where there is a
bias) bound the optimum from below,

    F*  >=  D(q) = 1/S sum_i w_i entropy(q_i)  -  sum_kd h(V_kd)

    V    = 1/S sum_i w_i (e_{y_i} - q_i) x_i^T
    h(v) = (|v| - l1)_+^2 / (2 l2),    or for l2 = 0:  0 where |v| <= l1, inf elsewhere

This is Fenchel's dual with the residuals e_y - q as its variables and h the conjugate of the
penalty (for two classes: Yu, Huang & Lin 2011, Machine Learning 85, "Dual coordinate descent
methods for logistic regression"; with l1: Koh, Kim & Boyd 2007, "An interior-point method for
large-scale l1-regularized logistic regression"). So F - D(q), the duality gap, is an upper bound on
F - F*. If the bias is at its optimum for the weight, the model's own probabilities p meet the
condition up to rounding. So do q = (1 - s) e_y + s p, for which V is s times as large.

For l1 = 0 and q = p, -log p_y - entropy(p) = sum_k (p_k - [k = y]) z_k. So the sums over all
samples cancel except -<W, V>, and with V = l2 W - dF/dW

    F - D(p)  =  l2/2 ||W||^2 + ||V||^2 / (2 l2) - <W, V>  =  ||dF/dW||^2 / (2 l2)

For l1 > 0 the better of two q is taken: p (if l2 > 0), and the q with the largest s for which
|V| <= l1.

In float64 an entry of V has a rounding error of about ``rounding``. With a weak penalty or a large
column this error alone would make h large, or violate |V| <= l1. So rounding r_kd is charged only
for weights in a box: within b = ``ROUNDING_BOX`` times the present weights plus b standard
deviations of a logit. There it raises the bound by r_kd R_kd, R_kd = b (|W_kd| + 1 / spread_d). For
an optimum outside the box the bound is larger in proportion to its distance, since F is convex.

The KKT residual is the largest absolute entry of the subgradient of F of least norm. It is 0
exactly at an optimum, but it has the units of the features.

Everything is computed in float64, from one pass over the samples as they were given. On the way the
bias is moved to its optimum, a problem of K numbers that takes no further pass. Without a penalty
the bound comes from ``newton_bound``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.maths import RowValues, Target
from softmax_torch.ops import backends
from softmax_torch.solvers.objective import Objective, Penalty

__all__ = ["Certificate", "certify", "estimated_gap", "gap_bound", "subgradient"]

ROUNDING_BOX = 10.0
"""Size of the box in which rounding is charged: in weights, in standard deviations of a logit, and
in Newton steps of the bias."""

EPS, SUMS = 2.2e-16, 8.0
"""Rounding of float64, and how many times as large it is in a sum over all samples."""

STALLED = 50
"""Consecutive Newton steps of the bias that did not halve its gradient, after which they end."""


class Certificate(NamedTuple):
    """A point, and an upper bound on how far F is above its minimum there.

    Attributes:
        theta: the point (K, P).
        value: F there.
        gradient: gradient of the smooth part of F there (K, P).
        gap: an upper bound on F - F*; inf where there is none.
        residual: the KKT residual.
    """

    theta: Tensor
    value: float
    gradient: Tensor
    gap: float
    residual: float


def certify(objective: Objective, theta: Tensor, penalty: Penalty) -> Certificate:
    """Return the certificate for theta with the best bias for its weight; the penalty is not 0."""
    z = objective.logits(theta, torch.float64)
    w = objective.weights / objective.divisor
    theta = theta.clone()
    moved, r, left = _improve_bias(objective, z, w)
    if objective.bias:
        theta[:, -1] += moved
    rows = backends.kernels(z).row_values(z, Target(objective.y))
    assert rows.nll is not None
    nll = float(objective.summed(w @ rows.nll))
    gradient = objective.transposed(r)
    W = objective.weight_of(theta)
    value = nll + penalty.of(W)
    rounding = _rounding(objective, z)
    if penalty.l1 > 0:
        bound = _dual(objective, objective.weight_of(gradient), W, z, w, rounding, penalty)
        gap = value - bound
    objective.weight_of(gradient).add_(W, alpha=penalty.l2)
    if penalty.l1 == 0:
        g = objective.weight_of(gradient).abs()
        beyond, cost = (g - rounding).clamp_min(0), _rounding_cost(objective, W, rounding)
        each = torch.minimum(g.square(), beyond.square() + 2 * penalty.l2 * cost)
        gap = float(each.sum()) / (2 * penalty.l2)
    residual = float(subgradient(objective, theta, gradient, penalty.l1).abs().max())
    return Certificate(theta, value, gradient, max(gap, 0.0) + left, residual)


def _rounding(objective: Objective, z: Tensor) -> Tensor:
    """Estimate the float64 rounding error of the entries of V in each column (D,)."""
    largest = float(objective.processes.largest(z.abs().max()))
    return EPS * (SUMS + largest) * objective.spread


def _rounding_cost(objective: Objective, W: Tensor, rounding: Tensor) -> Tensor:
    """Return r_kd R_kd, by which ``rounding`` raises the bound, for each weight (K, D)."""
    return ROUNDING_BOX * (
        W.abs() * rounding + torch.where(objective.spread > 0, rounding / objective.spread, 0)
    )


def _dual(
    objective: Objective,
    V: Tensor,
    W: Tensor,
    z: Tensor,
    w: Tensor,
    rounding: Tensor,
    penalty: Penalty,
) -> float:
    """Return the larger D(q) of q = p and of q = (1 - s) e_y + s p.

    Args:
        V: minus V for q = p (K, D); the sign does not matter.
        W: (K, D).
        z: logits (n, K).
        w: weights over S (n,).
        rounding: error of V in each column (D,).
    """
    log_p = z.log_softmax(1)
    p = log_p.exp()

    def entropy(q: Tensor) -> float:
        return float(objective.summed(w @ -torch.special.xlogy(q, q).sum(1)))

    size, best = V.abs(), -math.inf
    cost = float(_rounding_cost(objective, W, rounding)[size > penalty.l1].sum())
    for off, price in ((torch.zeros_like(rounding), 0.0), (rounding, cost)):
        excess = (size - penalty.l1 - off).clamp_min(0)
        feasible = not excess.any()
        if penalty.l2 > 0 or feasible:
            h = 0.0 if feasible else float(excess.square().sum()) / (2 * penalty.l2)
            best = max(best, entropy(p) - h - price)
        if not feasible:
            s = float(((penalty.l1 + off) / size).min())
            q = (s * p).scatter_add_(1, objective.y.unsqueeze(1), p.new_full((len(p), 1), 1 - s))
            best = max(best, entropy(q) - price)
    return best


def gap_bound(objective: Objective, gradient: Tensor, penalty: Penalty) -> float:
    """Return ||dF/dW||^2 / (2 l2), the duality gap if the bias is at its optimum."""
    return float(objective.weight_of(gradient).square().sum()) / (2 * penalty.l2)


def estimated_gap(objective: Objective, theta: Tensor, gradient: Tensor, penalty: Penalty) -> float:
    """Estimate the duality gap after the bias is moved to its optimum; the penalty is not 0.

    Args:
        theta: where the gradient of the smooth part of F is ``gradient``.
        gradient: from passes in any dtype. With an L1 term the result is accurate to leading order.
    """
    W, g = objective.weight_of(theta), objective.weight_of(gradient)
    if penalty.l1 == 0:
        square = float(g.square().sum())
        if objective.bias:
            # The change of the bias that removes its gradient g_b changes the gradient of the
            # weight by about g_b times the mean of the samples.
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


def subgradient(objective: Objective, theta: Tensor, gradient: Tensor, l1: float) -> Tensor:
    """Return the subgradient of F of least norm, from the gradient of its smooth part."""
    W, g = objective.weight_of(theta), objective.weight_of(gradient)
    result = gradient.clone()
    at_zero = g.sign() * (g.abs() - l1).clamp_min(0)
    objective.weight_of(result).copy_(torch.where(W == 0, at_zero, g + l1 * W.sign()))
    return result


def _improve_bias(objective: Objective, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor, float]:
    """Move the logits z to those of the best bias, in place, by Newton's method.

    The steps are damped by log(1 + r) / r, r the range of a step. This is the damping for a
    function whose third derivative is at most r times its second (Bach 2010, "Self-concordant
    analysis for logistic regression"), and tends to 1.

    Returns:
        The change of the bias (K,); the residuals w (p - e_y) (n, K); and how much lower F may be
        with a better bias, which is rounding: ``ROUNDING_BOX`` times the gain of another step.
    """
    kernels, y = backends.kernels(z), objective.y
    ones, true = torch.ones_like(w), y.unsqueeze(1)
    moved = z.new_zeros(objective.classes)
    least, stalled = math.inf, 0
    while True:
        p = kernels.row_vjp(z, Target(y), RowValues(ones))  # p - e_y
        r = p * w.unsqueeze(1)
        residual = objective.summed(r.sum(0))
        largest = float(residual.abs().max())
        if not objective.bias or largest == 0:
            return moved, r, 0.0
        p.scatter_add_(1, true, ones.unsqueeze(1))
        wp = p * w.unsqueeze(1)
        # Moving all logits alike changes nothing; 1/K makes A regular in that direction.
        A = torch.diag(objective.summed(wp.sum(0))) - objective.summed(wp.T @ p) + 1 / len(moved)
        step, info = torch.linalg.solve_ex(A, -residual)
        stalled = 0 if largest < least / 2 else stalled + 1
        least = min(least, largest)
        if info or not step.isfinite().all():  # the probabilities of a class are all 0 or 1
            return moved, r, math.inf
        if largest <= 1e-15 or stalled > (0 if largest < 1e-12 else STALLED):
            return moved, r, ROUNDING_BOX * float((residual * step).abs().sum())
        span = float(step.max() - step.min())
        step *= math.log1p(span) / span if span > 0 else 1.0
        moved += step
        z += step

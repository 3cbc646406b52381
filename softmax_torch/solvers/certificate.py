"""A bound on how far F is above its minimum: the duality gap, with an L2 and with an L1 penalty.

Any class probabilities q_i with sum_i w_i (e_{y_i} - q_i) = 0 (a condition only where there is a
bias) bound the optimum from below,

    F*  >=  D(q) = 1/S sum_i w_i entropy(q_i)  -  sum_kd h(V_kd)

    V    = 1/S sum_i w_i (e_{y_i} - q_i) x_i^T
    h(v) = (|v| - l1)_+^2 / (2 l2),    or for l2 = 0:  0 where |v| <= l1, inf elsewhere

which is Fenchel's dual with the residuals e_y - q as its variables and h the conjugate of the
penalty (for two classes: Yu, Huang & Lin 2011, Machine Learning 85, "Dual coordinate descent
methods for logistic regression"; with l1: Koh, Kim & Boyd 2007, "An interior-point method for
large-scale l1-regularized logistic regression"). The model's own probabilities p meet the
condition, to rounding, where the bias is at its optimum for the weight, and so do the
q = (1 - s) e_y + s p, for which V is s times as large.

For l1 = 0 and q = p, -log p_y - entropy(p) = sum_k (p_k - [k = y]) z_k, so that the sums over all
samples cancel but for -<W, V>, and V = l2 W - dF/dW, which leaves

    F - D(p)  =  l2/2 ||W||^2 + ||V||^2 / (2 l2) - <W, V>  =  ||dF/dW||^2 / (2 l2)

For l1 > 0 the better of two q is taken: p (if l2 > 0), and the q with the s by which |V| <= l1.

In float64 an entry of V is off by about ``rounding``. Where the penalty is weak or a column large
that alone would make h large, or rule q out. So rounding r_kd counts as it does for weights within
``REACH`` times the present ones, and ``REACH`` standard deviations of a logit, by which the bound
grows by r_kd R_kd, R_kd = REACH (|W_kd| + 1 / spread_d). For an optimum outside of that box the
bound is larger in proportion to its distance, since F is convex.

``residual`` is the largest entry of the subgradient of F of least norm (the KKT residual): 0 at an
optimum and nowhere else, but in the units of the features.

Everything here is computed in float64, from one pass over the samples as they were given, and the
bias is moved to its optimum on the way: a problem of K numbers on logits that are there already.
Without a penalty ``newton_bound`` has a bound.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.maths import RowValues, Target
from softmax_torch.ops import backends
from softmax_torch.solvers.objective import Objective, Penalty

__all__ = ["Certificate", "certify", "gap_bound", "subgradient"]

REACH = 10.0
"""How far rounding is followed, in weights, in spreads of a logit, and in steps of the bias."""

EPS, SUMS = 2.2e-16, 8.0
"""Rounding of float64, and how many times as large it is in a sum over all samples."""

STALLED = 50
"""Steps of the bias that did not halve its gradient, after which it stays where it is."""


class Certificate(NamedTuple):
    """theta, F and the gradient of its smooth part there, and what they prove.

    ``gap`` is at least F - F*, inf where nothing is proved. ``residual`` is the largest entry of
    the subgradient of F of least norm.
    """

    theta: Tensor
    value: float
    gradient: Tensor
    gap: float
    residual: float


def certify(objective: Objective, theta: Tensor, penalty: Penalty) -> Certificate:
    """Return a certificate for theta with the best bias for its weight; the penalty is not 0."""
    z = objective.logits(theta, torch.float64)
    w = torch.ones_like(z[:, 0]) if objective.weight is None else objective.weight.double()
    w = w / objective.divisor
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
        beyond, within = (g - rounding).clamp_min(0), _within(objective, W, rounding)
        each = torch.minimum(g.square(), beyond.square() + 2 * penalty.l2 * within)
        gap = float(each.sum()) / (2 * penalty.l2)
    residual = float(subgradient(objective, theta, gradient, penalty.l1).abs().max())
    return Certificate(theta, value, gradient, max(gap, 0.0) + left, residual)


def _rounding(objective: Objective, z: Tensor) -> Tensor:
    """Return about what the entries of V in each column (D,) may be off in float64."""
    largest = float(objective.processes.largest(z.abs().max()))
    return EPS * (SUMS + largest) * objective.spread


def _within(objective: Objective, W: Tensor, rounding: Tensor) -> Tensor:
    """Return what ``rounding`` adds to the bound for each weight (K, D)."""
    return REACH * (
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
    """Return the best D(q) of q = p and of q = (1 - s) e_y + s p, for logits z and -V of p."""
    log_p = z.log_softmax(1)
    p = log_p.exp()

    def entropy(q: Tensor) -> float:
        return float(objective.summed(w @ -torch.special.xlogy(q, q).sum(1)))

    size, best = V.abs(), -math.inf
    within = float(_within(objective, W, rounding)[size > penalty.l1].sum())
    for off, price in ((torch.zeros_like(rounding), 0.0), (rounding, within)):
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
    """Return ||dF/dW||^2 / (2 l2): the duality gap where the bias is at its optimum."""
    return float(objective.weight_of(gradient).square().sum()) / (2 * penalty.l2)


def subgradient(objective: Objective, theta: Tensor, gradient: Tensor, l1: float) -> Tensor:
    """The subgradient of F of least norm, from the gradient of its smooth part."""
    W, g = objective.weight_of(theta), objective.weight_of(gradient)
    result = gradient.clone()
    at_zero = g.sign() * (g.abs() - l1).clamp_min(0)
    objective.weight_of(result).copy_(torch.where(W == 0, at_zero, g + l1 * W.sign()))
    return result


def _improve_bias(objective: Objective, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor, float]:
    """Move the logits z to those of the best bias, in place.

    Newton's method. The steps are damped by log(1 + r) / r, r the range of a step: that of a
    function whose third derivative is r times its second at most (Bach 2010, "Self-concordant
    analysis for logistic regression"), and 1 in the end.

    Returns:
        What to add to the bias (K,); the residuals w (p - e_y) (n, K); and what F may still gain
        by the bias, which is rounding: ``REACH`` times what another step would gain.
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
        # To move all logits alike changes nothing; 1/K makes that direction regular.
        A = torch.diag(objective.summed(wp.sum(0))) - objective.summed(wp.T @ p) + 1 / len(moved)
        step, info = torch.linalg.solve_ex(A, -residual)
        stalled = 0 if largest < least / 2 else stalled + 1
        least = min(least, largest)
        if info or not step.isfinite().all():  # a class whose probabilities are all 0 or 1
            return moved, r, math.inf
        if largest <= 1e-15 or stalled > (0 if largest < 1e-12 else STALLED):
            return moved, r, REACH * float((residual * step).abs().sum())
        span = float(step.max() - step.min())
        step *= math.log1p(span) / span if span > 0 else 1.0
        moved += step
        z += step

"""How far an answer is at most from the optimum: duality gap for L2, subgradient for L1.

For l2 > 0 and l1 = 0 any class probabilities q_i with sum_i w_i (e_{y_i} - q_i) = 0 (a condition
only where there is a bias) bound the optimum from below,

    F*  >=  D(q) = 1/S sum_i w_i entropy(q_i)  -  1/(2 l2) ||V||^2,
    V = 1/S sum_i w_i (e_{y_i} - q_i) x_i^T

which is Fenchel's dual with the residuals e_y - q as its variables (for two classes: Yu, Huang &
Lin 2011, Machine Learning 85, "Dual coordinate descent methods for logistic regression").
The model's own probabilities meet the condition, to rounding, where the bias is at its optimum for
the weight. For them -log p_y - entropy(p) = sum_k (p_k - [k = y]) z_k, so that the sums over all
samples cancel but for -<W, V>, and V = l2 W - dF/dW, which leaves

    F - D(p)  =  l2/2 ||W||^2 + ||V||^2 / (2 l2) - <W, V>  =  ||dF/dW||^2 / (2 l2)

With an l1 term the certificate is the largest entry of the subgradient of F of least norm: 0 at an
optimum and nowhere else.

Everything here is computed in float64, from one pass over the samples as they were given, and the
bias is moved to its optimum on the way: a problem of K numbers on logits that are at hand.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.ops import backends
from softmax_torch.solvers.objective import Objective, Penalty

__all__ = ["Certificate", "certify", "gap_bound", "subgradient"]


class Certificate(NamedTuple):
    """theta with its best bias, F and the gradient of its smooth part there, and what they prove.

    ``gap`` is at least F - F*; None without an L2 penalty or with an L1 one. ``residual`` is the
    largest entry of the subgradient of F of least norm.
    """

    theta: Tensor
    value: float
    gradient: Tensor
    gap: float | None
    residual: float


def certify(objective: Objective, theta: Tensor, penalty: Penalty) -> Certificate:
    """A certificate for theta with the best bias for its weight."""
    z = objective.logits(theta, torch.float64)
    w = torch.ones_like(z[:, 0]) if objective.weight is None else objective.weight.double()
    w = w / objective.total
    theta = theta.clone()
    moved, r = _improve_bias(objective, z, w)
    if objective.bias:
        theta[:, -1] += moved
    rows = backends.kernels(z).row_values(z, objective.y, None)
    assert rows.nll is not None
    nll = float(objective.summed(w @ rows.nll))
    gradient = objective.transposed(r)
    W = objective.weight_of(theta)
    objective.weight_of(gradient).add_(W, alpha=penalty.l2)
    value = nll + penalty.of(W)
    residual = float(subgradient(objective, theta, gradient, penalty.l1).abs().max())
    gap = gap_bound(objective, gradient, penalty) if penalty.l1 == 0 < penalty.l2 else None
    return Certificate(theta, value, gradient, gap, residual)


def gap_bound(objective: Objective, gradient: Tensor, penalty: Penalty) -> float:
    """||dF/dW||^2 / (2 l2): the duality gap where the bias is at its optimum."""
    return float(objective.weight_of(gradient).square().sum()) / (2 * penalty.l2)


def subgradient(objective: Objective, theta: Tensor, gradient: Tensor, l1: float) -> Tensor:
    """The subgradient of F of least norm, from the gradient of its smooth part."""
    W, g = objective.weight_of(theta), objective.weight_of(gradient)
    result = gradient.clone()
    at_zero = g.sign() * (g.abs() - l1).clamp_min(0)
    objective.weight_of(result).copy_(torch.where(W == 0, at_zero, g + l1 * W.sign()))
    return result


def _improve_bias(objective: Objective, z: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
    """Move the logits z to those of the best bias, in place: what to add to it, and w (p - e_y).

    Newton's method. The steps are damped by log(1 + r) / r, r the range of a step: that of a
    function whose third derivative is r times its second at most (Bach 2010, "Self-concordant
    analysis for logistic regression"), and 1 in the end.
    """
    kernels, y = backends.kernels(z), objective.y
    ones, true = torch.ones_like(w), y.unsqueeze(1)
    moved = z.new_zeros(objective.classes)
    least = torch.inf
    while True:
        p = kernels.row_vjp(z, y, None, ones, None, None)  # p - e_y
        r = p * w.unsqueeze(1)
        residual = objective.summed(r.sum(0))
        largest = float(residual.abs().max())
        if not objective.bias or largest <= 1e-15 or least / 2 <= largest < 1e-12:
            return moved, r
        least = min(least, largest)
        p.scatter_add_(1, true, ones.unsqueeze(1))
        wp = p * w.unsqueeze(1)
        # To move all logits alike changes nothing; 1/K makes that direction regular.
        A = torch.diag(objective.summed(wp.sum(0))) - objective.summed(wp.T @ p) + 1 / len(moved)
        step = torch.linalg.solve(A, -residual)
        span = float(step.max() - step.min())
        step *= math.log1p(span) / span
        moved += step
        z += step

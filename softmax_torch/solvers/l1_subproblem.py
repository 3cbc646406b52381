"""The L1 subproblem of a proximal Newton step: minimize a quadratic function plus an L1 term.

    m(u)  =  g.(u - x) + (u - x).B (u - x) / 2 + sum l1 |u|

Two kinds of steps alternate (as Chen, Curtis & Robinson 2017, "FaRSA"). Accelerated proximal
gradient steps (Beck & Teboulle 2009, "FISTA") decide which weights are 0 and the signs of the
others. With zeros and signs fixed, on a face, m is quadratic: one solve leads to its minimum, or to
the first points where weights change their sign, which are set to 0. So zeros are exact.

Without an l2 penalty, moving the weights of a feature by the same amount for all classes changes
nothing but their L1 norm, which is least where their median is 0. B is 0 along that direction, and
a solve would move far along it. So the median is subtracted first, which saves three quarters of
the rounds where C is large.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softmax_torch.solvers.hessian_model import HessianModel

__all__ = ["minimize_model"]

SUBPROBLEM_TOL = 0.1
"""Largest subgradient of m at which the iteration stops, relative to the first one."""

ROUNDS, GRADIENT_STEPS, SOLVES = 30, 10, 5
"""Rounds at most, and proximal gradient steps and solves in each of them."""


def minimize_model(model: HessianModel, g: Tensor, x: Tensor, l1: Tensor) -> Tensor:
    """Return a u (M,) that approximately minimizes m, with B given by ``model``."""

    def at(u: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return u, the gradient of the quadratic part of m there, and m."""
        q = g + model.product(u - x)
        return u, q, float((g + q) @ (u - x) / 2 + l1 @ u.abs())

    def residual() -> float:
        r = torch.where(u == 0, (q.abs() - l1).clamp_min(0), q + l1 * u.sign())
        return float((r * scale).abs().max())

    scale = model.diagonal.rsqrt()  # so that the units of features do not matter
    u, q, least = at(x)
    tolerance, bound, fruitless = SUBPROBLEM_TOL * residual(), model.largest_eigenvalue(), 0
    for number in range(ROUNDS):
        t = 1 / (bound * model.diagonal)
        if number > 0:
            trial = at(model.median_centred(_proximal_gradient(model, g, x, l1, t, u, q)))
            if trial[2] < least:
                (u, q, least), fruitless = trial, 0
            else:
                bound, fruitless = 4 * bound, fruitless + 1
        for _ in range(SOLVES):
            face = (u != 0) | (l1 == 0)
            d = model.solve(face, -(q + l1 * u.sign()))
            for halvings in range(10):
                moved = u + d / 2**halvings
                crossed = face & (l1 > 0) & (moved.sign() != u.sign())
                trial = at(moved.masked_fill(crossed, 0))
                if trial[2] < least:
                    break
            else:
                break
            (u, q, least), fruitless = trial, 0
            if not halvings and not crossed.any():
                break
        if residual() <= tolerance or fruitless > 1:
            break
    return u


def _proximal_gradient(
    model: HessianModel, g: Tensor, x: Tensor, l1: Tensor, t: Tensor, u: Tensor, q: Tensor
) -> Tensor:
    """Return u after accelerated proximal gradient steps of lengths t; q is the gradient at u."""
    v, momentum = u, 1.0
    for step in range(GRADIENT_STEPS):
        if step:
            q = g + model.product(v - x)
        v = v - t * q
        before, u = u, v.sign() * (v.abs() - t * l1).clamp_min(0)
        weight, momentum = momentum - 1, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        v = u + weight / momentum * (u - before)
    return u

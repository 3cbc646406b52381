"""The minimum of a quadratic function with an L1 term, to which a step of proximal Newton leads.

    m(u)  =  g.(u - x) + (u - x).B (u - x) / 2 + sum l1 |u|

It is found by turns (as Chen, Curtis & Robinson 2017, "FaRSA"): accelerated proximal gradient steps
(Beck & Teboulle 2009, "FISTA") decide which weights are 0 and the signs of the others; among those
m is quadratic, and one solve leads to its minimum, or to where signs change, which are weights that
become 0. So the zeros are exact.

Without l2 to move the weights of a feature by the same amount for all classes changes nothing but
their L1 norm, which is least where their median is 0; B is 0 along it, and a solve would go far
astray. So the median is taken out first: it saves three quarters of the turns where C is large.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from softmax_torch.solvers.curvature import Curvature

__all__ = ["minimized"]

INNER = 0.1
"""Largest subgradient of m at which a step ends, relative to that at its beginning."""

TURNS, GRADIENT_STEPS, SOLVES = 30, 10, 5
"""Turns at most in a step, and in each of them gradient steps and solves."""


def minimized(model: Curvature, g: Tensor, x: Tensor, l1: Tensor) -> Tensor:
    """The u that minimizes g.(u - x) + (u - x).B (u - x) / 2 + sum l1 |u|."""

    def at(u: Tensor) -> tuple[Tensor, Tensor, float]:
        """u, the gradient of the quadratic there, and the value of it all."""
        q = g + model.product(u - x)
        return u, q, float((g + q) @ (u - x) / 2 + l1 @ u.abs())

    def residual() -> float:
        r = torch.where(u == 0, (q.abs() - l1).clamp_min(0), q + l1 * u.sign())
        return float((r * scale).abs().max())

    scale = model.diagonal.rsqrt()  # so that it does not matter what units features are in
    u, q, least = at(x)
    tolerance, bound, fruitless = INNER * residual(), model.bound(), 0
    for turn in range(TURNS):
        t = 1 / (bound * model.diagonal)
        if turn:
            trial = at(model.shifted(_descended(model, g, x, l1, t, u, q)))
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


def _descended(
    model: Curvature, g: Tensor, x: Tensor, l1: Tensor, t: Tensor, u: Tensor, q: Tensor
) -> Tensor:
    """u after some accelerated proximal gradient steps of lengths t; q is the gradient at u."""
    v, momentum = u, 1.0
    for step in range(GRADIENT_STEPS):
        if step:
            q = g + model.product(v - x)
        v = v - t * q
        before, u = u, v.sign() * (v.abs() - t * l1).clamp_min(0)
        weight, momentum = momentum - 1, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        v = u + weight / momentum * (u - before)
    return u

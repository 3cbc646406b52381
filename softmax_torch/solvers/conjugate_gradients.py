"""Preconditioned conjugate gradients (CG; Hestenes & Stiefel 1952), one iteration at a time.

For H d = -g with H symmetric and positive semidefinite and g in its range, the iterates are

    d_j  =  the minimum of  g.d + d.H d / 2  over the first j directions,    r_j = -g - H d_j

A preconditioner M ~ H^-1 determines the order of the directions. The caller decides when to stop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Iterate", "conjugate_gradients"]


class Iterate(NamedTuple):
    """The solution d so far, its residual r = -g - H d, and the model g.d + d.H d / 2 there."""

    d: Tensor
    r: Tensor
    model: float


FLAT = 1e-13
"""Curvature d.H d of a direction, relative to sum h d^2 with h the diagonal of H, that may be
rounding."""


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    g: Tensor,
    diagonal: Tensor | None = None,
) -> Iterator[Iterate]:
    """Yield iterates for H d = -g, starting after d = 0.

    The iteration ends by itself if the residual is 0 or a direction has no curvature. The latter
    happens in the null space of H, into which only rounding leads.

    Args:
        product: v -> H v.
        precondition: v -> about H^-1 v; linear, symmetric, positive.
        g: the gradient, of any shape.
        diagonal: the diagonal of H, in the shape of g, for products that are accurate to float64:
            curvature below ``FLAT`` counts as none. By default only curvature <= 0 does.
    """
    d, r = torch.zeros_like(g), -g
    z = precondition(r)
    direction, rz = z, float((r * z).sum())
    while rz > 0:
        Hd = product(direction)
        curvature = float((direction * Hd).sum())
        least = 0.0 if diagonal is None else FLAT * float((direction.square() * diagonal).sum())
        if not curvature > least:
            return
        d = d + (rz / curvature) * direction
        r = r - (rz / curvature) * Hd
        yield Iterate(d, r, 0.5 * float(((g - r) * d).sum()))
        z = precondition(r)
        previous, rz = rz, float((r * z).sum())
        direction = z + (rz / previous) * direction

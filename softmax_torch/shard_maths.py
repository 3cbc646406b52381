"""The formulas of a shard of the classes in plain torch, with the symbols of ``maths``.

Each rank computes four numbers of its own logits for each row; ``parallel`` turns their sums over
the ranks into the row numbers of ``maths``. z is (N, C), y is (N,) with -1 for classes of other
shards. Fast functions in ``ops.shard_rows`` have the names and arguments of their plain twins here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.maths import Target, is_target, upcast

__all__ = ["ShardValues", "shard_shift", "shard_values", "shard_vjp", "shard_vjp_u"]


class ShardValues(NamedTuple):
    """The four numbers of each row that a shard of the classes contributes, or their gradients.

    For the shard's logits z of a row, its class index y if y is in the shard, and its part u of the
    class vector:

        largest = max_{c != y} z_c             constant to differentiation; -inf without rivals
        rivals  = sum_{c != y} exp(z_c - m)    m = largest, or 0 without rivals
        z_y     = z at y                       0 where y is in another shard
        spread  = sum_c u_c (m - z_c)          0 without u
    """

    largest: Tensor
    rivals: Tensor
    z_y: Tensor
    spread: Tensor


def shard_shift(largest: Tensor) -> Tensor:
    """Return the m of ``ShardValues``: 0 for rows without rivals."""
    return torch.where(largest == -torch.inf, 0.0, largest)


def shard_values(z: Tensor, target: Target) -> ShardValues:
    """Return the ``ShardValues`` of each row for a shard with logits z."""
    y, u = target
    assert y is not None
    z = upcast(z)
    true = is_target(z, y)
    rivals = z.masked_fill(true, -torch.inf)
    none = z.new_full((len(z), 1), -torch.inf)  # amax refuses the rows of an empty shard
    largest = torch.cat([rivals.detach(), none], 1).amax(1)
    shift = shard_shift(largest).unsqueeze(1)
    spread = torch.zeros_like(largest) if u is None else ((shift - z) * u.to(z.dtype)).sum(1)
    z_y = torch.where(true, z, 0.0).sum(1)
    return ShardValues(largest, (rivals - shift).exp().sum(1), z_y, spread)


def shard_vjp(z: Tensor, target: Target, largest: Tensor, g: ShardValues) -> Tensor:
    """Return the gradient dz, of z's shape, for the gradients g of a shard's numbers.

    dz_c = g_rivals exp(z_c - m) [c != y] + g_zy [c = y] - g_spread u_c
    """
    y, u = target
    assert y is not None
    true = is_target(z, y)
    e = (upcast(z) - shard_shift(largest).unsqueeze(1)).masked_fill(true, -torch.inf).exp()
    dz = g.rivals.unsqueeze(1) * e + torch.where(true, g.z_y.unsqueeze(1), 0.0)
    if u is not None:
        dz = dz - g.spread.unsqueeze(1) * u
    return dz.to(z.dtype)


def shard_vjp_u(z: Tensor, u: Tensor, largest: Tensor, g_spread: Tensor) -> Tensor:
    """Return the gradient du, of u's shape: g_spread (m - z), summed over rows that share u."""
    du = g_spread.unsqueeze(1) * (shard_shift(largest).unsqueeze(1) - upcast(z))
    return (du.sum(0) if u.dim() == 1 else du).to(u.dtype)

"""The autograd rule over rows of z = x W^T + b of some of the classes: what their shard adds.

For a row of logits z of the classes of a shard, the class index y if it is one of them, and the
part u of the class vector:

    m      = max_{c != y} z_c                      a constant to differentiation; 0 without rivals
    rivals = sum_{c != y} exp(z_c - m)
    z_y    = z at y                                0 where y is in another shard
    spread = sum_c u_c (m - z_c)

From these, summed over shards, all three row numbers follow (see ``parallel``). Their gradient:

    dz_c = g_rivals exp(z_c - m) [c != y] + g_zy [c = y] - g_spread u_c
    du_c = g_spread (m - z_c)                      summed over the rows that share u

The sums of all shards are known after the forward pass only, so that the backward pass builds the
logits again, block by block as in ``linear_rows``. Whoever differentiates the gradients gets the
formulas on the whole of z.

Shapes: x (N, D), W (C, D), b (C,) or None, y (N,) with -1 for other shards, u (C,) or (N, C) or
None. A shard may be empty: C = 0. For plain eager code.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from softmax_torch.maths import upcast
from softmax_torch.ops import backends
from softmax_torch.ops.linear_rows import Linear, Sums, by_formula, pieces

__all__ = ["ShardNumbers", "shard_numbers"]


class ShardNumbers(NamedTuple):
    """What a shard adds to each row."""

    largest: Tensor  # m, and -inf without rivals
    rivals: Tensor
    z_y: Tensor
    spread: Tensor


def shard_numbers(linear: Linear, y: Tensor, u: Tensor | None) -> ShardNumbers:
    """The numbers of each row, differentiable in x, weight, bias and u, but for ``largest``."""
    return ShardNumbers(*_ShardNumbers.apply(*linear, y, u))


def _shift(largest: Tensor) -> Tensor:
    return torch.where(largest == -torch.inf, 0.0, largest)


def _weighted(values: Tensor, u: Tensor) -> Tensor:
    """sum_c u_c values_c of each row."""
    u = u.to(values.dtype)
    return values @ u if u.dim() == 1 else (values * u).sum(1)


class _ShardNumbers(Function):
    """The numbers, in blocks of rows."""

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, y: Tensor, u: Tensor | None
    ) -> tuple[Tensor, ...]:
        N, C = len(x), len(weight)
        numbers = upcast(x.new_zeros(())).new_zeros(4, N)
        numbers[0] = -torch.inf
        largest, rivals, z_y, spread = numbers
        for at, logits, _ in pieces(Linear(x, weight, bias)) if C > 0 else ():
            z = upcast(logits)
            own = (y[at] >= 0).nonzero().squeeze(1)
            of_own = z[own, y[at][own]]
            z_y[at][own] = of_own
            z[own, y[at][own]] = -torch.inf
            largest[at] = z.amax(1)
            shift = _shift(largest[at]).unsqueeze(1)
            if u is not None:
                z[own, y[at][own]] = of_own
                spread[at] = _weighted(shift - z, u if u.dim() == 1 else u[at])
                z[own, y[at][own]] = -torch.inf
            rivals[at] = z.sub_(shift).exp_().sum(1)
        return largest.clone(), rivals.clone(), z_y.clone(), spread.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.mark_non_differentiable(output[0])
        ctx.save_for_backward(*inputs, output[0])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(
        ctx: Any, of_largest: None, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, y, u, largest = ctx.saved_tensors
        linear, shift = Linear(x, weight, bias), _shift(largest).unsqueeze(1)
        g_rivals, g_zy, g_spread = (
            torch.zeros_like(largest) if g is None else g for g in gradients
        )
        shared = u is not None and u.dim() == 1
        asked = u is not None and ctx.needs_input_grad[4]
        if not backends.final(*gradients):
            true = torch.arange(len(weight), device=y.device) == y.unsqueeze(1)

            def gradient(z: Tensor) -> Tensor:
                e = (upcast(z) - shift).masked_fill(true, -torch.inf).exp()
                dz = g_rivals.unsqueeze(1) * e + torch.where(true, g_zy.unsqueeze(1), 0.0)
                if u is not None:
                    dz = dz - g_spread.unsqueeze(1) * u
                return dz.to(z.dtype)

            if not asked:
                return *by_formula(linear, gradient), None, None
            by_row = g_spread.unsqueeze(1) * (shift - upcast(linear.logits()))
            by_row = by_row.sum(0) if shared else by_row
            return *by_formula(linear, gradient), None, by_row.to(u.dtype)

        sums = Sums(linear, ctx.needs_input_grad[:3])
        du = upcast(torch.zeros_like(u)) if asked else None
        for at, logits, _ in pieces(linear):
            z = upcast(logits).sub_(shift[at])
            if du is not None:
                part = g_spread[at].unsqueeze(1) * z
                if shared:
                    du -= part.sum(0)
                else:
                    du[at] = -part
            own = (y[at] >= 0).nonzero().squeeze(1)
            z[own, y[at][own]] = -torch.inf
            dz = z.exp_().mul_(g_rivals[at].unsqueeze(1))
            dz[own, y[at][own]] = g_zy[at][own]
            if shared:
                dz.addr_(g_spread[at], u.to(dz.dtype), alpha=-1)
            elif u is not None:
                dz -= g_spread[at].unsqueeze(1) * u[at]
            sums.add(at, dz.to(logits.dtype))
        return *sums.gradients(), None, None if du is None else du.to(u.dtype)

"""The autograd rules over rows of logits of a shard of the classes: four numbers per row.

``shard_maths.ShardValues`` defines the numbers; from their sums over shards all three row numbers
follow (see ``parallel.functional``). Their gradient, with m as defined there:

    dz_c = g_rivals exp(z_c - m) [c != y] + g_zy [c = y] - g_spread u_c
    du_c = g_spread (m - z_c)                      summed over the rows that share u

The logits z (N, C) are given, or those of a layer, x W^T + b. The sums over shards are known only
after the forward pass, so the backward pass of a layer builds its logits again, block by block as
in ``linear_rows``. A gradient that is differentiated or batched is computed by the formulas of
``shard_maths`` on the whole of z.

Shapes: x (N, D), W (C, D), b (C,) or None, y (N,) with -1 for other shards, u (C,) or (N, C) or
None. A shard may be empty: C = 0. For plain eager code.

``shard_values`` and ``shard_vjp`` are the kernels, twins of the functions of these names in
``shard_maths``; ``logits_shard_values`` and ``linear_shard_values`` are the rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from softmax_torch import shard_maths
from softmax_torch.maths import LogitTransform, Target, sum_dtype, upcast
from softmax_torch.ops import budgets, modes
from softmax_torch.ops.linear_rows import (
    GradientSums,
    Linear,
    formula_gradients,
    logits_blocks,
)
from softmax_torch.shard_maths import ShardValues, shard_shift

__all__ = ["linear_shard_values", "logits_shard_values", "shard_values", "shard_vjp"]


def logits_shard_values(z: Tensor, target: Target) -> ShardValues:
    """Return the shard's numbers; all but ``largest`` are differentiable in z and u."""
    return ShardValues(*_LogitsShardValues.apply(z, *target))


def linear_shard_values(
    linear: Linear, target: Target, transform: LogitTransform | None = None
) -> ShardValues:
    """Return the shard's numbers; all but ``largest`` are differentiable in x, W, b and u.

    The logits are transformed first if ``transform`` is given; it is a constant.
    """
    return ShardValues(*_LinearShardValues.apply(*linear, *target, transform))


def shard_values(z: Tensor, target: Target) -> ShardValues:
    """Return the shard's numbers for logits z, which may be overwritten; the shard has classes."""
    y, u = target
    assert y is not None
    z = upcast(z)
    inside, index, z_own = _own(z, y)
    without_own = torch.where(inside, -torch.inf, z_own)
    z.scatter_(1, index, without_own)
    largest = z.amax(1)
    shift = shard_shift(largest).unsqueeze(1)
    spread = torch.zeros_like(largest)
    if u is not None:
        z.scatter_(1, index, z_own)
        spread = _weighted(shift - z, u)
        z.scatter_(1, index, without_own)
    z_y = torch.where(inside, z_own, 0.0).squeeze(1)
    return ShardValues(largest, z.sub_(shift).exp_().sum(1), z_y, spread)


def shard_vjp(z: Tensor, target: Target, largest: Tensor, g: ShardValues) -> Tensor:
    """Return the gradient dz of the shard's numbers, of z's dtype; z may be overwritten."""
    y, u = target
    assert y is not None
    if z.shape[1] == 0:  # a shard without classes, whose rows have no place
        return z
    dz = upcast(z).sub_(shard_shift(largest).unsqueeze(1))
    inside, index, own = _own(dz, y)
    dz.scatter_(1, index, torch.where(inside, -torch.inf, own))
    dz.exp_().mul_(g.rivals.unsqueeze(1))
    dz.scatter_(1, index, torch.where(inside, g.z_y.unsqueeze(1), dz.gather(1, index)))
    if u is not None and u.dim() == 1:
        dz.addr_(g.spread, u.to(dz.dtype), alpha=-1)
    elif u is not None:
        dz -= g.spread.unsqueeze(1) * u
    return dz.to(z.dtype)


def _own(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return whether y is in this shard, its place, or 0 elsewhere, and z there: each (N, 1).

    Every row has a place: to select rows, the host would have to wait for a GPU.
    """
    inside, index = (y >= 0).unsqueeze(1), y.clamp(min=0).unsqueeze(1)
    return inside, index, z.gather(1, index)


def _weighted(values: Tensor, u: Tensor) -> Tensor:
    """Return sum_c u_c values_c of each row."""
    u = u.to(values.dtype)
    return values @ u if u.dim() == 1 else (values * u).sum(1)


def _no_values(x: Tensor) -> Tensor:
    """Return the numbers of an empty shard for the rows of x, (4, N)."""
    numbers = x.new_zeros(4, len(x), dtype=sum_dtype(x.dtype))
    numbers[0] = -torch.inf
    return numbers


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Save the inputs and ``largest``, which is constant to differentiation."""
    ctx.mark_non_differentiable(output[0])
    ctx.save_for_backward(*inputs, output[0])
    ctx.set_materialize_grads(False)


def _gradients(largest: Tensor, gradients: tuple[Tensor | None, ...]) -> ShardValues:
    """Return ``largest`` and the gradients of the other numbers, where None stands for 0."""
    zero = torch.zeros_like(largest)
    return ShardValues(largest, *(zero if g is None else g for g in gradients))


def _row_blocks(z: Tensor) -> Iterator[slice]:
    """Yield blocks of rows of z whose copies stay within the device's budget."""
    row = max(z.shape[1], 1) * z.element_size()
    step = max(1, budgets.logits_budget(z) // row)
    for n in range(0, len(z), step):
        yield slice(n, min(n + step, len(z)))


class _LogitsShardValues(Function):
    """The rule for given logits; the kernels work on copies of blocks of rows."""

    @staticmethod
    def forward(z: Tensor, y: Tensor, u: Tensor | None) -> tuple[Tensor, ...]:
        numbers, target = _no_values(z), Target(y, u)
        for at in _row_blocks(z) if z.shape[1] > 0 else ():
            values = shard_values(z[at].clone(), target.rows(at))
            for whole, part in zip(numbers, values, strict=True):
                whole[at] = part
        return tuple(number.clone() for number in numbers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, inputs, output)

    @staticmethod
    def backward(
        ctx: Any, of_largest: None, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        z, y, u, largest = ctx.saved_tensors
        target, g = Target(y, u), _gradients(largest, gradients)
        dz = du = None
        if ctx.needs_input_grad[2]:
            du = shard_maths.shard_vjp_u(z, u, largest, g.spread)
        if not ctx.needs_input_grad[0]:
            return None, None, du
        if not modes.last_backward(*gradients):
            return shard_maths.shard_vjp(z, target, largest, g), None, du
        dz = torch.empty_like(z)
        for at in _row_blocks(z):
            part = ShardValues(*(number[at] for number in g))
            dz[at] = shard_vjp(z[at].clone(), target.rows(at), largest[at], part)
        return dz, None, du


class _LinearShardValues(Function):
    """The rule: the numbers in blocks of rows."""

    @staticmethod
    def forward(
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        u: Tensor | None,
        transform: LogitTransform | None,
    ) -> tuple[Tensor, ...]:
        numbers, target = _no_values(x), Target(y, u)
        for at, z, _ in logits_blocks(Linear(x, weight, bias)) if len(weight) > 0 else ():
            z_b, _ = _with_slope(z, transform)
            values = shard_values(z_b, target.rows(at))
            for whole, part in zip(numbers, values, strict=True):
                whole[at] = part
        return tuple(number.clone() for number in numbers)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        *tensors, ctx.transform = inputs
        _save(ctx, tuple(tensors), output)

    @staticmethod
    def backward(
        ctx: Any, of_largest: None, *gradients: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        x, weight, bias, y, u, largest = ctx.saved_tensors
        linear, target = Linear(x, weight, bias), Target(y, u)
        g = _gradients(largest, gradients)
        needs_du = u is not None and ctx.needs_input_grad[4]
        if not modes.last_backward(*gradients):

            def dz_of(z: Tensor) -> Tensor:
                transformed, slope = _with_slope(z, ctx.transform)
                return (shard_maths.shard_vjp(transformed, target, largest, g) * slope).to(z.dtype)

            formed, du = formula_gradients(linear, dz_of), None
            if needs_du:
                logits, _ = _with_slope(linear.logits(), ctx.transform)
                du = shard_maths.shard_vjp_u(logits, u, largest, g.spread)
            return *formed, None, du, None

        sums = GradientSums(linear, ctx.needs_input_grad[:3])
        du = upcast(torch.zeros_like(u)) if needs_du else None
        for at, z, _ in logits_blocks(linear):
            part = ShardValues(*(number[at] for number in g))
            z_b, slope = _with_slope(z, ctx.transform)
            if du is not None and u.dim() == 1:
                du += shard_maths.shard_vjp_u(z_b, upcast(u), largest[at], part.spread)
            elif du is not None:
                du[at] = shard_maths.shard_vjp_u(z_b, upcast(u[at]), largest[at], part.spread)
            dz = shard_vjp(z_b, target.rows(at), largest[at], part)
            sums.add(at, dz if ctx.transform is None else (dz * slope).to(z.dtype))
        return *sums.gradients(), None, None if du is None else du.to(u.dtype), None


def _with_slope(z: Tensor, transform: LogitTransform | None) -> tuple[Tensor, Tensor | float]:
    """Return the transformed logits and their derivative in z."""
    return (z, 1.0) if transform is None else transform.with_slope(z)

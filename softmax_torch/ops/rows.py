"""The autograd rules over logits z of shape (N, C) or (N, C, M); ``maths`` says what they compute.

``row_values`` is the rule itself: three numbers a row, differentiable any number of times and under
torch.func. ``weighted_total`` is the shortcut for the common case, a scalar loss in plain eager
mode, where the gradient can be formed in the same pass as the value.

A kernel has no derivative of its own. Whoever differentiates the gradient, or batches it, gets the
formulas of ``maths``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeight
from softmax_torch.ops import backends, cpu

__all__ = ["mean_nll", "row_values", "weighted_total"]


def row_values(z: Tensor, y: Tensor | None, u: Tensor | None, lse: bool = False) -> RowValues:
    """The row numbers of z, differentiable in z and u."""
    if backends.traced():
        return maths.row_values(z, y, u, lse)
    values = iter(_RowValues.apply(z, y, u, lse))
    return RowValues(*(next(values) if asked else None for asked in _asked(y, u, lse)))


def weighted_total(
    z: Tensor, y: Tensor | None, u: Tensor | None, a: RowWeight, b: RowWeight, c: RowWeight
) -> Tensor:
    """The scalar sum of a nll + b smooth + c lse^2 over rows, differentiable in z alone.

    For plain eager code: see ``backends.plain``.
    """
    if z.requires_grad and torch.is_grad_enabled():
        total: Tensor = _WeightedTotal.apply(z, y, u, a, b, c)
        return total
    return backends.kernels(z).weighted_total(z, y, u, a, b, c)


def mean_nll(z: Tensor, y: Tensor) -> Tensor:
    """The mean of nll over logits (N, C) on a CPU that require a gradient, in plain eager code.

    Raises:
        IndexError, RuntimeError: a class index that is not in [0, C).
    """
    total: Tensor = _MeanNLL.apply(z, y)
    return total


def row_vjp(
    z: Tensor,
    y: Tensor | None,
    u: Tensor | None,
    g_nll: Tensor | None,
    g_smooth: Tensor | None,
    g_lse: Tensor | None,
) -> Tensor:
    """dz by the kernel where nobody looks into it, else by the formula."""
    backend = backends.kernels(z) if backends.final(g_nll, g_smooth, g_lse) else maths
    return backend.row_vjp(z, y, u, g_nll, g_smooth, g_lse)


def _asked(y: Tensor | None, u: Tensor | None, lse: bool) -> tuple[bool, bool, bool]:
    """Which row numbers there are."""
    return y is not None, u is not None, lse


def _only_asked(values: RowValues) -> tuple[Tensor, ...]:
    return tuple(value for value in values if value is not None)


class _RowValues(Function):
    """The rule. Outputs are the row numbers that were asked for."""

    @staticmethod
    def forward(z: Tensor, y: Tensor | None, u: Tensor | None, lse: bool) -> tuple[Tensor, ...]:
        return _only_asked(backends.kernels(z).row_values(z, y, u, lse))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, y, u, ctx.lse = inputs
        ctx.save_for_backward(z, y, u)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        z, y, u = ctx.saved_tensors
        given = iter(gradients)
        g_nll, g_smooth, g_lse = (next(given) if a else None for a in _asked(y, u, ctx.lse))
        dz = du = None
        if ctx.needs_input_grad[0]:
            dz = row_vjp(z, y, u, g_nll, g_smooth, g_lse)
        if ctx.needs_input_grad[2] and g_smooth is not None:
            du = maths.row_vjp_u(z, u, g_smooth)
        return dz, None, du, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        z: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        lse: bool,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """A batch of sets of rows is one longer set of rows."""
        B = info.batch_size
        z_B = _batch_first(z, in_dims[0], B)
        y_B = None if y is None else _batch_first(y, in_dims[1], B)
        if u is not None and (in_dims[2] is not None or u.dim() > 1):
            u_B = _batch_first(u, in_dims[2], B)
            if u_B.dim() == 2:  # a class vector for each set becomes one for each row
                u_B = u_B.view(B, 1, -1, *(1 for _ in z_B.shape[3:]))
            u = u_B.expand_as(z_B).flatten(0, 1)
        values = row_values(z_B.flatten(0, 1), None if y_B is None else y_B.flatten(0, 1), u, lse)
        shape = (*z_B.shape[:2], *z_B.shape[3:])
        outputs = tuple(value.view(shape) for value in _only_asked(values))
        return outputs, tuple(0 for _ in outputs)


def _batch_first(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def total_vjp(
    z: Tensor,
    y: Tensor | None,
    u: Tensor | None,
    a: RowWeight,
    b: RowWeight,
    c: RowWeight,
    g: Tensor,
) -> Tensor:
    """The gradient dz of g times the weighted total, from nothing but its arguments."""
    lse = None if c is None else row_values(z, None, None, lse=True).lse
    gs = (None if g_rows is None else g * g_rows for g_rows in maths.total_vjp(z, a, b, c, lse))
    return row_vjp(z, y, u, *gs)


def keep(ctx: Any, *arguments: Tensor | float | None) -> None:
    """Save the arguments of a Function for its backward pass, tensors and numbers alike."""
    ctx.numbers = [None if isinstance(x, Tensor) else x for x in arguments]
    ctx.save_for_backward(*[x if isinstance(x, Tensor) else None for x in arguments])


def kept(ctx: Any) -> list[Any]:
    """The arguments that ``keep`` saved."""
    saved = zip(ctx.saved_tensors, ctx.numbers, strict=True)
    return [number if tensor is None else tensor for tensor, number in saved]


class _WeightedTotal(Function):
    """A scalar loss whose gradient is formed in the forward pass.

    The first backward pass gives that gradient away, scaled in place: it may become a ``.grad``,
    which its owner then changes. A later one, of a retained graph, computes it anew.

    forward takes the ctx itself, which torch.func does not allow, because a separate setup_context
    costs 11 us a call (torch binds the arguments with ``inspect``): a quarter of what
    F.cross_entropy takes for 128 x 10 altogether.
    """

    @staticmethod
    def forward(
        ctx: Any,
        z: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        a: RowWeight,
        b: RowWeight,
        c: RowWeight,
    ) -> Tensor:
        keep(ctx, z, y, u, a, b, c)
        ctx.formed = torch.empty_like(z)
        return backends.kernels(z).weighted_total(z, y, u, a, b, c, ctx.formed)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dz, ctx.formed = ctx.formed, None
        if not backends.final(g):
            z, y, u, a, b, c = kept(ctx)
            dz = total_vjp(z, y, u, a, b, c, g)
        else:
            if dz is None:  # as in the forward pass, to the bit
                z, y, u, a, b, c = kept(ctx)
                dz = torch.empty_like(z)
                backends.kernels(z).weighted_total(z, y, u, a, b, c, dz)
            dz = backends.scaled_(dz, g)
        return dz, None, None, None, None, None


class _MeanNLL(Function):
    """``_WeightedTotal`` of the mean NLL of float32 logits on a CPU, with the fewest steps."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor) -> Tensor:
        ctx.save_for_backward(z, y)
        total, ctx.formed = cpu.mean_nll(z, y)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None]:
        dz, ctx.formed = ctx.formed, None
        if not backends.final(g):
            z, y = ctx.saved_tensors
            return total_vjp(z, y, None, 1 / len(y), None, None, g), None
        if dz is None:
            _, dz = cpu.mean_nll(*ctx.saved_tensors)
        return backends.scaled_(dz, g), None

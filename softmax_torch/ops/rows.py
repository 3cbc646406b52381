"""Autograd rules over logits z of shape (N, C) or (N, C, M); ``maths`` has their formulas.

``row_values`` is the general rule: three numbers per row, differentiable any number of times and
under torch.func. ``weighted_total`` is the rule of the common case, a scalar loss in plain eager
mode: it forms the gradient in the same pass as the value. ``mean_nll`` is its shortcut for the mean
NLL on a CPU. ``loss.route`` chooses the rule and its kernels.

A kernel has no derivative of its own. A gradient that is differentiated or batched is computed by
the formulas of ``maths``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeights, Target
from softmax_torch.ops import backends, modes
from softmax_torch.ops.interfaces import CPUKernels, Kernels
from softmax_torch.ops.transformed import formulas_of

__all__ = [
    "mean_nll",
    "needed",
    "packed",
    "row_values",
    "save_arguments",
    "saved_arguments",
    "unpacked",
    "weighted_total",
]


def row_values(z: Tensor, target: Target, lse: bool, kernels: Kernels) -> RowValues:
    """Return the row numbers of z, differentiable in z and u; not for traced code."""
    return unpacked(_RowValues.apply(z, *target, lse, kernels), needed(target, lse))


def weighted_total(z: Tensor, target: Target, weights: RowWeights, kernels: Kernels) -> Tensor:
    """Return the sum of a nll + b smooth + c lse^2 over rows, differentiable in z alone.

    For plain eager code only: see ``modes.plain``.
    """
    if z.requires_grad and torch.is_grad_enabled():
        total: Tensor = _WeightedTotal.apply(z, target, weights, kernels)
        return total
    return kernels.weighted_total(z, target, weights)


def mean_nll(z: Tensor, y: Tensor, kernels: CPUKernels) -> Tensor:
    """Return the mean NLL of logits (N, C) on a CPU that require a gradient, in plain eager code.

    Raises:
        IndexError, RuntimeError: a class index is not in [0, C).
    """
    total: Tensor = _MeanNLL.apply(z, y, kernels)
    return total


def needed(target: Target, lse: bool) -> tuple[bool, bool, bool]:
    """Return which of the three row numbers are computed."""
    return target.y is not None, target.u is not None, lse


def packed(values: RowValues) -> tuple[Tensor, ...]:
    """Return the row numbers that are not None: the outputs of an autograd Function."""
    return tuple(value for value in values if value is not None)


def unpacked(outputs: tuple[Tensor | None, ...], needed: tuple[bool, bool, bool]) -> RowValues:
    """Return row numbers, or their gradients, from a tuple as ``packed`` returns it."""
    found = iter(outputs)
    return RowValues(*[next(found) if n else None for n in needed])


class _RowValues(Function):
    """The general rule; its outputs are the row numbers that are needed."""

    @staticmethod
    def forward(
        z: Tensor, y: Tensor | None, u: Tensor | None, lse: bool, kernels: Kernels
    ) -> tuple[Tensor, ...]:
        return packed(kernels.row_values(z, Target(y, u), lse))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        z, y, u, lse, ctx.kernels = inputs
        ctx.needed = needed(Target(y, u), lse)
        ctx.save_for_backward(z, y, u)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        z, y, u = ctx.saved_tensors
        g = unpacked(gradients, ctx.needed)
        dz = du = None
        if ctx.needs_input_grad[0]:
            fast = modes.last_backward(*g)
            dz = (ctx.kernels if fast else formulas_of(ctx.kernels)).row_vjp(z, Target(y, u), g)
        if ctx.needs_input_grad[2] and g.smooth is not None:
            du = formulas_of(ctx.kernels).row_vjp_u(z, u, g.smooth)
        return dz, None, du, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[int | None, ...],
        z: Tensor,
        y: Tensor | None,
        u: Tensor | None,
        lse: bool,
        kernels: Kernels,
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Compute a batch of sets of rows as one longer set of rows."""
        B = info.batch_size
        z_B = _batch_first(z, in_dims[0], B)
        y_B = None if y is None else _batch_first(y, in_dims[1], B)
        if u is not None and (in_dims[2] is not None or u.dim() > 1):
            u_B = _batch_first(u, in_dims[2], B)
            if u_B.dim() == 2:  # one class vector per set becomes one per row
                u_B = u_B.view(B, 1, -1, *(1 for _ in z_B.shape[3:]))
            u = u_B.expand_as(z_B).flatten(0, 1)
        target = Target(None if y_B is None else y_B.flatten(0, 1), u)
        values = row_values(z_B.flatten(0, 1), target, lse, kernels)
        shape = (*z_B.shape[:2], *z_B.shape[3:])
        outputs = tuple(value.view(shape) for value in packed(values))
        return outputs, tuple(0 for _ in outputs)


def _batch_first(x: Tensor, dim: int | None, size: int) -> Tensor:
    return x.expand(size, *x.shape) if dim is None else x.movedim(dim, 0)


def save_arguments(ctx: Any, target: Target, weights: RowWeights, *tensors: Tensor | None) -> None:
    """Save tensors and the target and weights of a Function for its backward pass."""
    ctx.numbers = [None if isinstance(w, Tensor) else w for w in weights]
    weight_tensors = [w if isinstance(w, Tensor) else None for w in weights]
    ctx.save_for_backward(*target, *weight_tensors, *tensors)


def saved_arguments(ctx: Any) -> tuple[Target, RowWeights, list[Any]]:
    """Return the target, the weights and the tensors that ``save_arguments`` saved."""
    y, u, a, b, c, *tensors = ctx.saved_tensors
    weights = [n if w is None else w for w, n in zip((a, b, c), ctx.numbers, strict=True)]
    return Target(y, u), RowWeights(*weights), tensors


class _WeightedTotal(Function):
    """A scalar loss whose gradient is formed in the forward pass.

    The first backward pass hands out that gradient, scaled in place: it may become a ``.grad``,
    which its owner then changes. Later passes over a retained graph compute it again.

    forward takes the ctx itself, which torch.func does not allow, because a separate setup_context
    costs 11 us a call (torch binds the arguments with ``inspect``): a quarter of the whole time of
    F.cross_entropy for 128 x 10.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, target: Target, weights: RowWeights, kernels: Kernels
    ) -> Tensor:
        save_arguments(ctx, target, weights, z)
        ctx.kernels, ctx.formed = kernels, torch.empty_like(z)
        return kernels.weighted_total(z, target, weights, ctx.formed)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        dz, ctx.formed = ctx.formed, None
        if not modes.last_backward(g):
            target, weights, (z,) = saved_arguments(ctx)
            dz = formulas_of(ctx.kernels).total_vjp(z, target, weights, g)
        else:
            if dz is None:  # the same bits as in the forward pass
                target, weights, (z,) = saved_arguments(ctx)
                dz = torch.empty_like(z)
                ctx.kernels.weighted_total(z, target, weights, dz)
            (dz,) = backends.scaled_(g, dz)
        return dz, None, None, None


class _MeanNLL(Function):
    """``_WeightedTotal`` of the mean NLL of float32 logits on a CPU, in the fewest calls."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, y: Tensor, kernels: CPUKernels) -> Tensor:
        ctx.save_for_backward(z, y)
        ctx.kernels = kernels
        total, ctx.formed = kernels.mean_nll(z, y)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None]:
        dz, ctx.formed = ctx.formed, None
        if not modes.last_backward(g):
            z, y = ctx.saved_tensors
            return maths.total_vjp(z, Target(y), RowWeights(1 / len(y)), g), None, None
        if dz is None:
            _, dz = ctx.kernels.mean_nll(*ctx.saved_tensors)
        (dz,) = backends.scaled_(g, dz)
        return dz, None, None

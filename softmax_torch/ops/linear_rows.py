"""Autograd rules over the rows of z = x W^T + b that hold the logits in blocks.

With the gradient dz of the rows (see ``maths``):

    dx = dz W        dW = dz^T x        db = sum_n dz_n

A scalar loss forms all three in the forward pass, block by block: three matrix products, where
rebuilding the logits in a backward pass would take a fourth. Numbers per row (no reduction) need
that fourth product. Only gradients that are needed are computed: a frozen input or weight saves a
product.

A layer with few classes on a CPU is computed in one pass over x where there are native kernels
(``ops.native.linear``): without matrix products, and without logits in memory.

Shapes: x (N, D), W (C, D), b (C,) or None; targets and weights as in ``maths``, for z (N, C).

Both rules are for plain eager code (``modes.plain``). A gradient that is differentiated or
batched is computed by the formulas of ``maths`` on the whole of z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeights, Target, sum_dtype, upcast
from softmax_torch.ops import backends, budgets, modes, rows
from softmax_torch.ops.interfaces import Kernels, LayerKernels
from softmax_torch.ops.transformed import TransformedKernels, formulas_of

__all__ = [
    "GradientSums",
    "Gradients",
    "Linear",
    "Observer",
    "formula_gradients",
    "gradients_of_total",
    "logits_blocks",
    "mean_nll",
    "one_pass_kernels",
    "row_values",
    "weighted_total",
]


class Linear(NamedTuple):
    """A linear layer and its input x."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self, at: slice | None = None, out: Tensor | None = None) -> Tensor:
        """Return the logits of rows ``at``, or of all; write them into ``out`` if given."""
        x = self.x if at is None else self.x[at]
        if out is None:
            return F.linear(x, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)


Observer = Callable[[slice, Tensor], None]
"""A function that is shown each block of logits: its rows, and the logits themselves."""


def weighted_total(
    linear: Linear,
    target: Target,
    weights: RowWeights,
    kernels: Kernels,
    observe: Observer | None = None,
) -> Tensor:
    """Return ``rows.weighted_total`` of the logits, differentiable in x, weight and bias."""
    needed = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in linear)
    total: Tensor = _WeightedTotal.apply(*linear, target, weights, kernels, needed, observe)
    return total


def mean_nll(linear: Linear, y: Tensor, kernels: LayerKernels) -> Tensor:
    """Return the mean NLL of a float32 layer that needs a gradient, in plain eager code.

    x has adjacent columns; weight, bias and y are contiguous.

    Raises:
        IndexError: a class index is not in [0, C).
    """
    total: Tensor = _MeanNLL.apply(*linear, y, kernels)
    return total


def row_values(
    linear: Linear,
    target: Target,
    lse: bool,
    kernels: Kernels,
    observe: Observer | None = None,
) -> RowValues:
    """Return ``rows.row_values`` of the logits, differentiable in x, weight and bias."""
    outputs = _RowValues.apply(*linear, target, lse, kernels, observe)
    return rows.unpacked(outputs, rows.needed(target, lse))


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]
"""The gradients of x, weight and bias; None where not needed."""


class GradientSums:
    """The gradients of x, weight and bias that are needed, summed over blocks of dz."""

    def __init__(self, linear: Linear, needed: tuple[bool, ...]) -> None:
        x, _, bias = linear
        self.linear = linear
        self.dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else None
        # The product of a single block is the gradient itself. Several are summed in float32 for
        # half-precision weights: a bfloat16 sum would lose blocks.
        self.needs_dweight = needed[1]
        self.dweight: Tensor | None = None
        self.needs_dbias = needed[2] and bias is not None
        self.dbias: Tensor | None = None

    def add(self, at: slice, dz: Tensor) -> None:
        """Add the contribution of the rows ``at``."""
        x, weight, _ = self.linear
        if self.dx is not None:
            torch.mm(dz, weight, out=self.dx[at])
        if self.needs_dweight:
            if self.dweight is None and len(dz) == len(x):
                self.dweight = torch.mm(dz.t(), x)
            else:
                self.dweight = _sum_with_product(self.dweight, dz.t(), x[at])
        if self.needs_dbias:
            dbias = dz.sum(0, dtype=sum_dtype(dz.dtype))
            self.dbias = dbias if self.dbias is None else self.dbias.add_(dbias)

    def gradients(self) -> Gradients:
        """Return the sums in the dtypes of the parameters."""
        _, weight, bias = self.linear
        dtype = weight.dtype
        if self.needs_dweight and self.dweight is None:  # there were no rows
            self.dweight = torch.zeros_like(weight)
        if self.needs_dbias and self.dbias is None and bias is not None:
            self.dbias = torch.zeros_like(bias)
        dweight, dbias = (None if s is None else s.to(dtype) for s in (self.dweight, self.dbias))
        return self.dx, dweight, dbias


def _sum_with_product(total: Tensor | None, a: Tensor, b: Tensor) -> Tensor:
    """Return total + a b, added in place, or a b for None; in float32 for half-precision a and b.

    A GPU adds a half-precision product to the float32 total where it makes it: neither is the
    product rounded, nor written and read once more. On a CPU a float16 product is float32 too:
    rounded blocks made the error of dW 1.4 times that of a single product, at (N, D, C) =
    (2048, 16, 32000) in four blocks.
    """
    if a.dtype == sum_dtype(a.dtype):
        return torch.mm(a, b) if total is None else total.addmm_(a, b)
    with torch.autocast(a.device.type, enabled=False):  # it may be on in a backward pass
        if _has_mixed_products(a):
            if total is None:
                return torch.mm(a, b, out_dtype=torch.float32)
            return torch.addmm(total, a, b, out_dtype=torch.float32, out=total)
        if a.dtype == torch.float16:
            a, b = upcast(a), upcast(b)
        product = upcast(torch.mm(a, b))
    return product if total is None else total.add_(product)


def _has_mixed_products(a: Tensor) -> bool:
    """Return whether the device multiplies half-precision matrices to float32: ``out_dtype``."""
    return a.is_cuda


class LogitsBlock(NamedTuple):
    """A block: its rows, their logits, and memory for dz, possibly the logits' own."""

    at: slice
    z: Tensor
    dz: Tensor


def logits_blocks(linear: Linear) -> Iterator[LogitsBlock]:
    """Yield blocks of rows whose logits and input stay within the device's budgets."""
    x, weight, _ = linear
    N, C, D = x.shape[0], weight.shape[0], x.shape[1]
    of_logits = budgets.logits_budget(x) // (max(C, 1) * x.element_size())
    of_input = budgets.input_budget(x) // (max(D, 1) * x.element_size())
    step = max(1, min(N, of_logits, of_input))
    z = x.new_empty(step, C)
    dz = None if C > D else torch.empty_like(z)  # up to D classes it is no larger than the input
    for n in range(0, N, step):
        at = slice(n, min(n + step, N))
        size = at.stop - n
        logits = linear.logits(at, out=z[:size])
        yield LogitsBlock(at, logits, logits if dz is None else dz[:size])


def formula_gradients(linear: Linear, dz_of: Callable[[Tensor], Tensor]) -> Gradients:
    """Return differentiable gradients, from a function that computes dz from the logits."""
    dz = dz_of(linear.logits())
    dbias = None if linear.bias is None else dz.sum(0)
    return dz @ linear.weight, dz.t() @ linear.x, dbias


def gradients_of_total(
    linear: Linear,
    g: Tensor,
    formed: Gradients | None,
    form: Callable[[], Gradients],
    dz_of: Callable[[Tensor], Tensor],
) -> Gradients:
    """Return the gradients of g times a scalar loss, whose own were formed in the forward pass.

    Args:
        linear: the layer.
        g: the gradient of the loss, 0-dimensional.
        formed: the gradients of the loss, which are scaled in place; None after the first pass.
        form: forms them once more.
        dz_of: computes dz from the logits by formulas, for derivatives of the gradients.
    """
    if not modes.last_backward(g):
        return formula_gradients(linear, dz_of)
    dx, dweight, dbias = backends.scaled_(g, *(form() if formed is None else formed))
    return dx, dweight, dbias


class _WeightedTotal(Function):
    """A scalar loss; its gradients are formed in the forward pass and kept as in ``rows``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Target,
        weights: RowWeights,
        kernels: Kernels,
        needed: tuple[bool, ...],
        observe: Observer | None,
    ) -> Tensor:
        linear, ctx.kernels = Linear(x, weight, bias), kernels
        rows.save_arguments(ctx, target, weights, *linear)
        total, ctx.formed = _total_and_gradients(linear, target, weights, kernels, needed, observe)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        formed, ctx.formed = ctx.formed, None
        target, weights, layer = rows.saved_arguments(ctx)
        linear, needed = Linear(*layer), ctx.needs_input_grad[:3]
        total_vjp = formulas_of(ctx.kernels).total_vjp
        gradients = gradients_of_total(
            linear,
            g,
            formed,
            lambda: _total_and_gradients(linear, target, weights, ctx.kernels, needed)[1],
            lambda z: total_vjp(z, target, weights, g),
        )
        return *gradients, *[None] * 5


def one_pass_kernels(
    linear: Linear, kernels: Kernels, with_logits: bool = False
) -> LayerKernels | None:
    """Return the kernels that compute the layer in one pass; None if none do.

    They hold no logits, or with ``with_logits`` all of them, where these are no larger than x.
    """
    if kernels is maths or isinstance(kernels, TransformedKernels):
        return None
    C, D = linear.weight.shape
    return None if with_logits and C > D else backends.layer_kernels(linear.x, linear.weight)


def _total_and_gradients(
    linear: Linear,
    target: Target,
    weights: RowWeights,
    kernels: Kernels,
    needed: tuple[bool, ...],
    observe: Observer | None = None,
) -> tuple[Tensor, Gradients]:
    """Return the weighted total and the gradients that are needed."""
    one_pass = one_pass_kernels(linear, kernels, observe is not None)
    if one_pass is not None:
        x, weight, _ = linear
        z = None if observe is None else x.new_empty(len(x), len(weight))
        result = one_pass.total_and_gradients(*linear, target, weights, needed, z)
        if observe is not None and z is not None:
            observe(slice(None), z)
        return result
    sums = GradientSums(linear, needed)
    total = upcast(linear.x.new_zeros(()))
    for at, z, dz in logits_blocks(linear):
        if observe is not None:
            observe(at, z)
        out = dz if any(needed) else None
        total += kernels.weighted_total(z, target.rows(at), weights.rows(at), out)
        if out is not None:
            sums.add(at, out)
    return total, sums.gradients()


class _MeanNLL(Function):
    """``_WeightedTotal`` of the mean NLL of a float32 layer in one pass, in the fewest calls."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor,
        kernels: LayerKernels,
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias, y)
        ctx.kernels, needed = kernels, ctx.needs_input_grad
        total, ctx.formed = _mean_nll_and_gradients(x, weight, bias, y, kernels, needed)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        formed, ctx.formed = ctx.formed, None
        if not modes.last_backward(g):
            x, weight, bias, y = ctx.saved_tensors
            target, weights = Target(y), RowWeights(1 / len(y))
            linear = Linear(x, weight, bias)
            formed = formula_gradients(linear, lambda z: maths.total_vjp(z, target, weights, g))
            return *formed, None, None
        if formed is None:
            x, weight, bias, y = ctx.saved_tensors
            needed = ctx.needs_input_grad
            _, formed = _mean_nll_and_gradients(x, weight, bias, y, ctx.kernels, needed)
        return *backends.scaled_(g, *formed), None, None


def _mean_nll_and_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    y: Tensor,
    kernels: LayerKernels,
    needed: tuple[bool, ...],
) -> tuple[Tensor, Gradients]:
    """Return the mean NLL of a layer and the gradients that are needed."""
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else None
    dweight = dbias = None
    if needed[1] or needed[2]:  # the kernel computes both together
        dweight = torch.empty_like(weight)
        dbias = None if bias is None else torch.empty_like(bias)
    total = kernels.mean_nll(x, weight, bias, y, dweight, dbias, dx)
    return total, (dx, dweight if needed[1] else None, dbias if needed[2] else None)


class _RowValues(Function):
    """The row numbers, in blocks; the backward pass builds the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        target: Target,
        lse: bool,
        kernels: Kernels,
        observe: Observer | None,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight, bias, *target)
        ctx.needed, ctx.kernels = rows.needed(target, lse), kernels
        ctx.set_materialize_grads(False)
        parts = []
        for at, z, _ in logits_blocks(Linear(x, weight, bias)):
            if observe is not None:
                observe(at, z)
            parts.append(rows.packed(kernels.row_values(z, target.rows(at), lse)))
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias, *saved = ctx.saved_tensors
        linear, target = Linear(x, weight, bias), Target(*saved)
        g = rows.unpacked(gradients, ctx.needed)
        if not modes.last_backward(*g):
            row_vjp = formulas_of(ctx.kernels).row_vjp
            formed = formula_gradients(linear, lambda z: row_vjp(z, target, g))
            return *formed, *[None] * 4
        sums = GradientSums(linear, ctx.needs_input_grad[:3])
        for at, z, dz in logits_blocks(linear):
            sums.add(at, ctx.kernels.row_vjp(z, target.rows(at), g.rows(at), dz))
        return *sums.gradients(), *[None] * 4

"""The autograd rules over rows of z = x W^T + b that never hold all logits, if those are many.

With the gradient dz of the rows (see ``maths``):

    dx = dz W        dW = dz^T x        db = sum_n dz_n

A scalar loss forms all three in the forward pass, block by block: three matrix products, where
rebuilding the logits in a backward pass would take a fourth. Numbers per row (no reduction) need
that fourth one. Only what needs a gradient is computed: a frozen input or weight saves its product.

Shapes: x (N, D), W (C, D), b (C,) or None; y, u and the weights as in ``maths``, for z (N, C).

Both rules are for plain eager code (``backends.plain``). Whoever differentiates their gradients
gets the formulas on the whole of z.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from softmax_torch import maths
from softmax_torch.maths import RowValues, RowWeight, upcast
from softmax_torch.ops import backends, rows

__all__ = ["Linear", "Sums", "by_formula", "pieces", "row_values", "weighted_total"]


class Linear(NamedTuple):
    """The linear layer and its input."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None

    def logits(self, at: slice | None = None, out: Tensor | None = None) -> Tensor:
        """The logits of rows ``at``, into ``out`` if it is given."""
        x = self.x if at is None else self.x[at]
        if out is None:
            return F.linear(x, self.weight, self.bias)
        if self.bias is None:
            return torch.mm(x, self.weight.t(), out=out)
        return torch.addmm(self.bias, x, self.weight.t(), out=out)


def weighted_total(
    linear: Linear, y: Tensor | None, u: Tensor | None, a: RowWeight, b: RowWeight, c: RowWeight
) -> Tensor:
    """``rows.weighted_total`` of the logits of ``linear``, differentiable in x, weight and bias."""
    needed = tuple(torch.is_grad_enabled() and t is not None and t.requires_grad for t in linear)
    total: Tensor = _WeightedTotal.apply(*linear, y, u, a, b, c, needed)
    return total


def row_values(linear: Linear, y: Tensor | None, u: Tensor | None, lse: bool = False) -> RowValues:
    """``rows.row_values`` of the logits of ``linear``, differentiable in x, weight and bias."""
    values = iter(_RowValues.apply(*linear, y, u, lse))
    return RowValues(
        *(next(values) if asked else None for asked in (y is not None, u is not None, lse))
    )


Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class Sums:
    """The gradients of x, weight and bias, as far as needed, gathered over blocks of dz."""

    def __init__(self, linear: Linear, needed: tuple[bool, ...]) -> None:
        x, _, bias = linear
        self.linear = linear
        self.dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needed[0] else None
        # One block's product is what is asked for. The sum of several is in float32 for
        # half-precision weights: blocks would be lost in a bfloat16 sum.
        self.needs_dweight = needed[1]
        self.dweight: Tensor | None = None
        self.dbias = upcast(torch.zeros_like(bias)) if needed[2] and bias is not None else None

    def add(self, at: slice, dz: Tensor) -> None:
        """Add what the rows ``at`` contribute."""
        x, weight, _ = self.linear
        if self.dx is not None:
            torch.mm(dz, weight, out=self.dx[at])
        if self.needs_dweight:
            if self.dweight is None:
                self.dweight = torch.mm(dz.t(), x[at])
                if len(dz) < len(x):
                    self.dweight = upcast(self.dweight)
            elif self.dweight.dtype == dz.dtype:
                self.dweight.addmm_(dz.t(), x[at])
            else:
                self.dweight.add_(torch.mm(dz.t(), x[at]))
        if self.dbias is not None:
            self.dbias.add_(dz.sum(0, dtype=self.dbias.dtype))

    def gradients(self) -> Gradients:
        """What was gathered, in the dtypes of the parameters."""
        dtype = self.linear.weight.dtype
        if self.needs_dweight and self.dweight is None:  # there were no rows
            self.dweight = torch.zeros_like(self.linear.weight)
        dweight, dbias = (None if s is None else s.to(dtype) for s in (self.dweight, self.dbias))
        return self.dx, dweight, dbias


class Piece(NamedTuple):
    """Some rows: where they are, their logits, and memory for dz, possibly that of the logits."""

    at: slice
    z: Tensor
    dz: Tensor


def pieces(linear: Linear) -> Iterator[Piece]:
    """Cut the rows so that the logits and the input of a piece stay within the device's budgets."""
    x, weight, _ = linear
    N, C, D = x.shape[0], weight.shape[0], x.shape[1]
    of_logits = backends.logits_budget(x) // (max(C, 1) * x.element_size())
    of_input = backends.input_budget(x) // (D * x.element_size())
    step = max(1, min(N, of_logits, of_input))
    z = x.new_empty(step, C)
    dz = None if C > D else torch.empty_like(z)  # up to D classes it is no larger than the input
    for n in range(0, N, step):
        at = slice(n, min(n + step, N))
        size = at.stop - n
        logits = linear.logits(at, out=z[:size])
        yield Piece(at, logits, logits if dz is None else dz[:size])


def _of(weight: RowWeight, at: slice) -> RowWeight:
    return weight[at] if isinstance(weight, Tensor) and weight.dim() > 0 else weight


def _vector_of(u: Tensor | None, at: slice) -> Tensor | None:
    return u if u is None or u.dim() == 1 else u[at]


def by_formula(linear: Linear, dz_of: Callable[[Tensor], Tensor]) -> Gradients:
    """The gradients as differentiable functions of everything they depend on."""
    dz = dz_of(linear.logits())
    dbias = None if linear.bias is None else dz.sum(0)
    return dz @ linear.weight, dz.t() @ linear.x, dbias


class _WeightedTotal(Function):
    """A scalar loss, its gradients formed in the forward pass and kept as in ``rows``."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor | None,
        u: Tensor | None,
        a: RowWeight,
        b: RowWeight,
        c: RowWeight,
        needed: tuple[bool, ...],
    ) -> Tensor:
        rows.keep(ctx, x, weight, bias, y, u, a, b, c)
        total, ctx.formed = _form(Linear(x, weight, bias), y, u, a, b, c, needed)
        return total

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        formed, ctx.formed = ctx.formed, None
        x, weight, bias, y, u, a, b, c = rows.kept(ctx)
        linear = Linear(x, weight, bias)
        if backends.final(g):
            if formed is None:
                _, formed = _form(linear, y, u, a, b, c, ctx.needs_input_grad[:3])
            gradients = tuple(None if d is None else backends.scaled_(d, g) for d in formed)
        else:
            gradients = by_formula(linear, lambda z: rows.total_vjp(z, y, u, a, b, c, g))
        return *gradients, None, None, None, None, None, None


def _form(
    linear: Linear,
    y: Tensor | None,
    u: Tensor | None,
    a: RowWeight,
    b: RowWeight,
    c: RowWeight,
    needed: tuple[bool, ...],
) -> tuple[Tensor, Gradients]:
    """The weighted total and the gradients that are needed."""
    sums = Sums(linear, needed)
    total = upcast(linear.x.new_zeros(()))
    for at, z, dz in pieces(linear):
        y_b, u_b = None if y is None else y[at], _vector_of(u, at)
        a_b, b_b, c_b = (_of(w, at) for w in (a, b, c))
        out = dz if any(needed) else None
        total += backends.kernels(z).weighted_total(z, y_b, u_b, a_b, b_b, c_b, out)
        if out is not None:
            sums.add(at, out)
    return total, sums.gradients()


class _RowValues(Function):
    """The row numbers, in blocks; the backward pass builds the logits again."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        y: Tensor | None,
        u: Tensor | None,
        lse: bool,
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(x, weight, bias, y, u)
        ctx.asked = (y is not None, u is not None, lse)
        ctx.set_materialize_grads(False)
        parts = []
        for at, z, _ in pieces(Linear(x, weight, bias)):
            y_b = None if y is None else y[at]
            values = backends.kernels(z).row_values(z, y_b, _vector_of(u, at), lse)
            parts.append([value for value in values if value is not None])
        return tuple(torch.cat(column) for column in zip(*parts, strict=True))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, bias, y, u = ctx.saved_tensors
        linear = Linear(x, weight, bias)
        given = iter(gradients)
        gs = [next(given) if asked else None for asked in ctx.asked]
        if not backends.final(*gs):
            formed = by_formula(linear, lambda z: maths.row_vjp(z, y, u, *gs))
            return *formed, None, None, None
        sums = Sums(linear, ctx.needs_input_grad[:3])
        for at, z, dz in pieces(linear):
            y_b = None if y is None else y[at]
            a, b, c = (None if g is None else g[at] for g in gs)
            sums.add(at, backends.kernels(z).row_vjp(z, y_b, _vector_of(u, at), a, b, c, dz))
        return *sums.gradients(), None, None, None

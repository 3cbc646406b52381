"""CPU kernels: the formulas of ``maths`` in blocks of logits that stay in cache.

Each kernel makes one pass over the logits. ``ops.cpu_exponentials`` computes the numbers of one
block.

The public functions take the arguments of their twins in ``maths``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from softmax_torch import maths
from softmax_torch.maths import (
    RowStatistics,
    RowValues,
    RowWeights,
    Target,
    sum_dtype,
)
from softmax_torch.ops.cpu_exponentials import (
    LOG2E,
    NEAR,
    Exponentials,
    fill,
    narrow,
    sum_narrow,
    to_gradient,
    values,
    within,
)

__all__ = [
    "gather_bytes",
    "mean_nll",
    "row_statistics",
    "row_values",
    "row_vjp",
    "weighted_total",
]

BLOCK_ELEMENTS = 1 << 20
"""Elements of a block: 4 MiB of float32, the second-level caches of two cores. At 8192 x 1000 a
quarter of this takes 1.25 times as long: each block costs some twenty calls."""

ROW_LIMITS = (8192, 65536)
"""Least and most rows of a block (unless BLOCK_ELEMENTS allows fewer). Between the two, as many as
keep the scratch for their numbers below a 20th of the gradient. torch uses all threads from 32768
rows on: 60000 x 10 in one block takes 0.7 ms, in blocks of 8192 rows 1.2 ms."""

FEW = 32768
"""Logits (128 KiB of float32) up to which only the number of calls matters for the time."""

Index = tuple[slice, ...]


def _row_limit(numel: int) -> int:
    """Return the most rows of a block for numel logits, with three numbers of scratch per row."""
    low, high = ROW_LIMITS
    return min(max(low, numel // (3 * 21)), high)


def _block_indices(z: Tensor) -> Iterator[tuple[Index, Index]]:
    """Yield for each block of z its indices into z, and into a tensor of one number per row."""
    most = min(max(1, BLOCK_ELEMENTS // z.shape[1]), _row_limit(z.numel()))
    if z.dim() == 2:
        step = most
        for n in range(0, z.shape[0], step):
            rows = slice(n, n + step)
            yield (rows,), (rows,)
        return
    N, _, M = z.shape
    step_m = max(1, min(M, max(16, most)))
    step_n = max(1, most // step_m)
    for n in range(0, N, step_n):
        for m in range(0, M, step_m):
            rows, positions = slice(n, n + step_n), slice(m, m + step_m)
            yield (rows, slice(None), positions), (rows, positions)


class _FilledBlock(NamedTuple):
    """A block of the logits: its rows, its part of z and u, and its exponentials."""

    rows: Index
    z: Tensor
    u: Tensor | None
    block: Exponentials
    dz: Tensor | None  # where to copy the gradient of this block, if that is not block.e itself


def _filled_blocks(
    z: Tensor, target: Target, dz: Tensor | None, lse: bool = False
) -> Iterator[_FilledBlock]:
    """Yield the filled blocks of z, in the memory of dz if its layout allows, else in scratch."""
    y, u = target
    dtype = sum_dtype(z.dtype)
    if u is not None and u.dim() == 1:
        u = u.to(dtype)
    scratch = None
    for at, rows in _block_indices(z):
        z_b = z[at].to(dtype)
        u_b = u if u is None or u.dim() == 1 else u[at].to(dtype)
        dz_b = None if dz is None else dz[at]
        if dz_b is not None and dz is not z and dz_b.dtype == dtype and dz_b.is_contiguous():
            e, dz_b = dz_b, None
        else:
            if scratch is None:  # the first block is the largest
                scratch = z.new_empty(z_b.numel(), dtype=dtype)
            e = scratch[: z_b.numel()].view(z_b.shape)
        block = fill(z_b, None if y is None else y[rows], e, lse)
        yield _FilledBlock(rows, z_b, u_b, block, dz_b)


def _of_rows(weights: RowWeights | RowValues, rows: Index) -> RowWeights:
    """Return the weights of these rows in shapes that broadcast against a block's row numbers."""
    return RowWeights(
        *[w[rows].unsqueeze(1) if isinstance(w, Tensor) and w.dim() > 0 else w for w in weights]
    )


def row_values(z: Tensor, target: Target, lse: bool = False) -> RowValues:
    """Return the row numbers of logits z, in float32 where z is float16 or bfloat16."""
    shape, dtype = z.shape[:1] + z.shape[2:], sum_dtype(z.dtype)
    needed = (target.y is not None, target.u is not None, lse)
    result = RowValues(*[z.new_empty(shape, dtype=dtype) if n else None for n in needed])
    for rows, z_b, u_b, block, _ in _filled_blocks(z, target, None, lse):
        for whole, part in zip(result, values(block, z_b, u_b, lse), strict=True):
            if whole is not None and part is not None:
                whole[rows] = part.squeeze(1)
    return result


def row_statistics(z: Tensor, y: Tensor | None = None) -> RowStatistics:
    """Return the statistics of logits z, in float32 where z is float16 or bfloat16."""
    shape, dtype = z.shape[:1] + z.shape[2:], sum_dtype(z.dtype)
    lse, entropy = z.new_empty(shape, dtype=dtype), z.new_empty(shape, dtype=dtype)
    argmax = z.new_empty(shape, dtype=torch.int64)
    result = RowStatistics(lse, entropy, argmax, None if y is None else torch.empty_like(argmax))
    for index, rows in _block_indices(z):
        block = maths.row_statistics(z[index], None if y is None else y[rows])
        for whole, part in zip(result, block, strict=True):
            if whole is not None and part is not None:
                whole[rows] = part
    return result


def row_vjp(z: Tensor, target: Target, g: RowValues, dz: Tensor | None = None) -> Tensor:
    """Return the gradient dz, of z's shape and dtype; write it into ``dz`` if given."""
    dz = torch.empty_like(z) if dz is None else dz
    for rows, _, u_b, block, dz_b in _filled_blocks(z, target, dz):
        e = to_gradient(block, u_b, _of_rows(g, rows))
        if dz_b is not None:
            dz_b.copy_(e)
    return dz


def weighted_total(
    z: Tensor, target: Target, weights: RowWeights, dz: Tensor | None = None
) -> Tensor:
    """Return the scalar sum over rows of a nll + b smooth + c lse^2; write its gradient to dz.

    dz may be z itself. The sums of blocks are added in double precision.
    """
    y, u = target
    a, _, c = weights
    if y is not None and a is not None and u is None and c is None and dz is not None:
        nll_total = _near_nll_total(z, y, a, dz)
        if nll_total is not None:
            return nll_total
    total = 0.0
    for rows, z_b, u_b, block, dz_b in _filled_blocks(z, target, dz, c is not None):
        a_b, b_b, c_b = _of_rows(weights, rows)
        nll, smooth, lse = values(block, z_b, u_b, c is not None)
        g_lse = None
        if nll is not None and a_b is not None:
            total += _weighted_sum(a_b, nll)
        if smooth is not None and b_b is not None:
            total += _weighted_sum(b_b, smooth)
        if lse is not None and c_b is not None:
            total += _weighted_sum(c_b, lse * lse)
            g_lse = lse * (2 * c_b)
        if dz is not None:
            e = to_gradient(block, u_b, RowWeights(a_b, b_b, g_lse))
            if dz_b is not None:
                dz_b.copy_(e)
    return torch.scalar_tensor(total, dtype=sum_dtype(z.dtype), device=z.device)


def _near_nll_total(z: Tensor, y: Tensor, a: Tensor | float, dz: Tensor) -> Tensor | None:
    """Return ``weighted_total`` of nll alone for narrow rows within +-NEAR, else None.

    It takes the same steps as the blocks above, in the fewest calls.
    """
    N, C = z.shape[:2]
    if not narrow(z) or z.dtype != dz.dtype or dz is z or z.dtype != sum_dtype(z.dtype):
        return None
    if not within(z, -NEAR, NEAR):
        return None
    step = _row_limit(N * C)
    total = 0.0
    for n in range(0, N, step):
        rows = slice(n, n + step)
        a_b = a[rows].unsqueeze(1) if isinstance(a, Tensor) and a.dim() > 0 else a
        total += _near_nll_block(z[rows], y[rows].unsqueeze(1), a_b, dz[rows])
    return torch.scalar_tensor(total, dtype=z.dtype, device=z.device)


def _near_nll_block(z: Tensor, true: Tensor, a: Tensor | float, e: Tensor) -> float:
    """Return the total of one block, write its dz to e; scratch is three numbers per row."""
    torch.mul(z, LOG2E, out=e).exp2_()
    e_y = e.gather(1, true)
    e.scatter_(1, true, torch.zeros_like(e_y))
    others = sum_narrow(e)
    nll = torch.div(others, e_y).log1p_()
    factor = e_y.add_(others).reciprocal_().mul_(a)
    e.scatter_(1, true, others.neg_())
    e.mul_(factor)
    return _weighted_sum(a, nll)


def mean_nll(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean of nll over float32 or float64 logits (N, C), and its gradient.

    Raises:
        IndexError, RuntimeError: a class index is not in [0, C).
    """
    N = len(y)
    if z.numel() > FEW:
        if not within(y, 0, z.shape[1] - 1):
            raise IndexError("class index out of range")
        dz = torch.empty_like(z)
        return weighted_total(z, Target(y), RowWeights(1 / N), dz), dz
    # For few logits the time goes into calls, 3 to 10 us each in a training step. Hence few calls
    # that do much, and the sum q = 1 - p_y of the other classes, which keeps its digits where p_y
    # rounds to 1.
    log_p = torch.log_softmax(z, 1)
    total = F.nll_loss(log_p, y)
    dz = log_p.mul_(LOG2E).exp2_()
    true = y.unsqueeze(1)
    dz.scatter_(1, true, 0.0)
    q = dz.sum(1, keepdim=True)
    if total.item() * N < 1:  # every p_y is above 1/e, and most may be near 1
        total = torch.log1p(-q).mean().neg_()
    dz.scatter_(1, true, q.neg_())
    return total, dz.mul_(1 / N)


def _weighted_sum(weight: Tensor | float, value: Tensor) -> float:
    """Return the sum of weight times value; a weight of 0 leaves out a row even if inf or NaN."""
    if not isinstance(weight, Tensor):
        return weight * value.sum().item()
    total = (weight * value).sum().item()
    if math.isnan(total):
        total = torch.where(weight == 0, 0.0, weight * value).sum().item()
    return total


def gather_bytes(x: Tensor, rows: Tensor, scale: float) -> Tensor:
    """Return scale * x[rows] in float32, for uint8 x (N, ...) and row numbers (n,)."""
    return x.index_select(0, rows).to(torch.float32).mul_(scale)

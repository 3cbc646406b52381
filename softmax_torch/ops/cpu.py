"""CPU kernels: the formulas of ``maths`` in blocks of logits that stay in cache.

Each kernel makes one pass over the logits. A block is filled with numbers e_c proportional to the
probabilities of their row. The number of the true class, e_y, is removed from the block; the rest
follows from e_y and the sum of the others (``maths`` says why the true class is not in that sum):

    s = others + e_y        nll = log(1 + others / e_y)        p_c = e_c / s        q = others / s

How to fill a block was measured (2 cores, AVX-512, torch 2.15, float32):

 - wide rows by ``torch.softmax``: 80 us for 262 rows of 1000 in cache. exp takes 20 us on one make
   of processor and 110 us on another, and needs the range of the logits first.
 - narrow rows by exp2(z log2 e): softmax costs 75 ns per row whatever its length, 5300 us for 60000
   rows of 10. exp takes 250 us, multiplication and exp2 120 us. Besides, torch.exp starts the
   threads of another library from 1000 elements on, which stalls for milliseconds where the other
   core is busy, and is up to 200 times slower where float32 underflows; exp2 does neither.

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
    class_sum,
    class_view,
    sum_dtype,
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

NARROW_CLASSES = 64
"""Rows of at most this many classes are narrow."""

FEW = 32768
"""Logits (128 KiB of float32) up to which only the number of calls matters for the time."""

NEAR = 8.0
"""Narrow logits are passed to exp2 unshifted where all lie within +-NEAR: rounding z log2 e makes
e wrong by |z| / 2 units in the last place. Elsewhere a row's largest logit is subtracted first."""

SUMMED_CLASSES = 1000
"""Classes that a product with a class vector adds up at once. At 128,000 classes the error of one
product is 2.8e-6 of the sum, and 2e-7 in parts of 1000."""

LOG2E = 1 / math.log(2)

RARE = 1e-30
"""An e_y below this has lost digits, or all of them, to underflow."""

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


class _Exponentials(NamedTuple):
    """The exponentials of a block. A number per row keeps a dimension of size 1 for the classes."""

    e: Tensor  # proportional to p, 0 at the true class
    true: Tensor | None  # the index of the true class
    e_y: Tensor | None  # the exponential of the true class
    others: Tensor  # the sum of e
    s: Tensor  # the sum of e and e_y
    log_e: Tensor | None  # the exponent of e; None after a softmax
    shift: Tensor | float | None  # lse is log s + shift; None where lse is not needed


def _fill(z: Tensor, y: Tensor | None, e: Tensor, need_lse: bool) -> _Exponentials:
    """Fill e with the exponentials of the logits z of one block."""
    if _narrow(z):
        shift = None if _within(z, -NEAR, NEAR) else z.amax(1, keepdim=True)
        log_e = z if shift is None else z - shift
        torch.mul(log_e, LOG2E, out=e).exp2_()
        return _remove_true(e, y, log_e, 0.0 if shift is None else shift)
    torch.softmax(z, 1, out=e)
    # The largest p of a row is exp(max z) / sum exp(z).
    log_sum = z.amax(1, keepdim=True) - e.amax(1, keepdim=True).log_() if need_lse else None
    return _remove_true(e, y, None, log_sum)


def _within(x: Tensor, low: float, high: float) -> bool:
    """Return whether all of x lies between low and high; False if x has a NaN."""
    least, most = x.aminmax()
    return least.item() >= low and most.item() <= high


def _narrow(z: Tensor) -> bool:
    """Return whether the rows of z are short enough for exp2, see the top of this file."""
    return z.dim() == 2 and z.shape[1] <= NARROW_CLASSES


def _remove_true(
    e: Tensor, y: Tensor | None, log_e: Tensor | None, shift: Tensor | float | None
) -> _Exponentials:
    """Remove the true class from a block and sum the others."""
    true = e_y = None
    if y is not None:
        true = y.unsqueeze(1)
        e_y = e.gather(1, true)
        e.scatter_(1, true, e.new_zeros(1).expand_as(true))
    others = _sum_narrow(e) if _narrow(e) else e.sum(1, keepdim=True)
    s = others if e_y is None else others + e_y
    return _Exponentials(e, true, e_y, others, s, log_e, shift)


def _sum_narrow(e: Tensor) -> Tensor:
    """Return the sum of each row; a matrix-vector product takes half the time of torch.sum here."""
    return torch.mv(e, e.new_ones(e.shape[1])).unsqueeze(1)


def _values(block: _Exponentials, z: Tensor, u: Tensor | None, lse: bool) -> RowValues:
    """Return the row numbers of a filled block."""
    nll = smooth = log_sum = None
    if block.e_y is not None and block.true is not None:
        nll = torch.div(block.others, block.e_y).log1p_()
        if not block.e_y.amin().item() >= RARE:  # recompute these rows by the formulas
            rare = (block.e_y < RARE).squeeze(1)
            y = block.true.squeeze(1)[rare]
            exact = maths.row_values(z.movedim(1, -1)[rare], Target(y)).nll
            assert exact is not None
            nll.squeeze(1)[rare] = exact
    if u is not None or lse:
        log_s = block.s.log()
        if u is not None:
            log_e = z.log_softmax(1) if block.log_e is None else block.log_e
            smooth = _total(u) * log_s - _weighted_by_class(log_e, u)
        if lse:
            assert block.shift is not None
            log_sum = log_s + block.shift
    return RowValues(nll, smooth, log_sum)


def _total(u: Tensor) -> Tensor:
    """Return U of each row in a shape that broadcasts against the row numbers of a block."""
    return class_sum(u) if u.dim() == 1 else class_sum(u).unsqueeze(1)


def _weighted_by_class(x: Tensor, u: Tensor) -> Tensor:
    """Return sum_c u_c x_c of each row."""
    if u.dim() == 1 and x.dim() == 2:
        parts = zip(*(torch.split(t, SUMMED_CLASSES, -1) for t in (x, u)), strict=True)
        return sum((torch.mv(*part) for part in parts), start=x.new_zeros(())).unsqueeze(1)
    return (x * class_view(u, x)).sum(1, keepdim=True)


def _to_gradient(
    block: _Exponentials, u: Tensor | None, gradients: RowWeights | RowValues
) -> Tensor:
    """Turn a filled block into dz, in place, given the gradients of its row numbers."""
    g_nll, g_smooth, g_lse = gradients
    e, e_y, others = block.e, block.e_y, block.others
    r = block.s.reciprocal()
    if u is None and g_lse is None and g_nll is not None:
        factor = r.mul_(g_nll)
        at_true = torch.mul(factor, others).neg_()
    else:
        shared = torch.zeros_like(r) if g_lse is None else g_lse * torch.ones_like(r)
        if u is not None and g_smooth is not None:
            shared = shared + _total(u) * g_smooth
        g = 0.0 if g_nll is None else g_nll
        factor = r * (shared + g)
        at_true = r if e_y is None else r * (shared * e_y - others * g)
    e.mul_(factor)
    if block.true is not None:
        e.scatter_(1, block.true, at_true)
    if u is not None and g_smooth is not None:
        if isinstance(g_smooth, Tensor):
            e.addcmul_(g_smooth, class_view(u, e), value=-1)
        else:
            e.sub_(class_view(u, e), alpha=g_smooth)
    return e


class _FilledBlock(NamedTuple):
    """A block of the logits: its rows, its part of z and u, and its exponentials."""

    rows: Index
    z: Tensor
    u: Tensor | None
    block: _Exponentials
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
        block = _fill(z_b, None if y is None else y[rows], e, lse)
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
        for whole, part in zip(result, _values(block, z_b, u_b, lse), strict=True):
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
        e = _to_gradient(block, u_b, _of_rows(g, rows))
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
        nll, smooth, lse = _values(block, z_b, u_b, c is not None)
        g_lse = None
        if nll is not None and a_b is not None:
            total += _weighted_sum(a_b, nll)
        if smooth is not None and b_b is not None:
            total += _weighted_sum(b_b, smooth)
        if lse is not None and c_b is not None:
            total += _weighted_sum(c_b, lse * lse)
            g_lse = lse * (2 * c_b)
        if dz is not None:
            e = _to_gradient(block, u_b, RowWeights(a_b, b_b, g_lse))
            if dz_b is not None:
                dz_b.copy_(e)
    return torch.scalar_tensor(total, dtype=sum_dtype(z.dtype), device=z.device)


def _near_nll_total(z: Tensor, y: Tensor, a: Tensor | float, dz: Tensor) -> Tensor | None:
    """Return ``weighted_total`` of nll alone for narrow rows within +-NEAR, else None.

    It takes the same steps as the blocks above, in the fewest calls.
    """
    N, C = z.shape[:2]
    if not _narrow(z) or z.dtype != dz.dtype or dz is z or z.dtype != sum_dtype(z.dtype):
        return None
    if not _within(z, -NEAR, NEAR):
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
    others = _sum_narrow(e)
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
        if not _within(y, 0, z.shape[1] - 1):
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

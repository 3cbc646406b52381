"""Launching the kernels of ``triton_kernels``: the arguments are those of ``maths``.

How the work is cut was chosen by arithmetic on bytes and registers and by reading what the compiler
makes of it for sm_80 and sm_90; it was not yet measured on a device.

 - up to NARROW classes: a thread has a row to itself. Then no thread idles and nothing is
   exchanged; the loads of neighbours lie C apart, but all of a line is used while it is in L1.
 - up to ONE_TILE classes: a row stays in registers between its read and its write.
 - beyond: 32 warps on one row, so that as few rows as possible are under way: 132 of 128256
   bfloat16 are 34 MB, and the second read finds them in 50 MB of L2.
 - positions side by side, (N, C, M): a thread has a position, and goes over the classes.

The sum over rows is taken over one number a program, by torch.sum: its order is fixed. Nothing here
waits for the device: numbers that live on it are read by the kernels.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.maths import RowValues, RowWeight
from softmax_torch.ops import triton_kernels

__all__ = ["row_values", "row_vjp", "scale_", "weighted_total"]

NARROW = 32
"""The most classes for which one thread takes a row: a register each."""

ONE_TILE = 16384
"""The most classes that stay in registers: 16 for each of 1024 threads, who have 64. With 32768
the compiler spills 56 to 352 bytes a thread, also where 512 threads have 128 each."""

TILE = 8192
"""Classes of a tile beyond: 16 bytes of bfloat16 for each of 1024 threads."""

BESIDE = (16, 128)
"""Classes and rows of a tile where positions lie side by side; it spills with 32 classes, and with
more than half as many where that is not all of them."""


class _Cut(NamedTuple):
    """How rows are cut into tiles."""

    one: bool  # a tile holds all classes
    unit: bool  # the compiler is told that classes are adjacent
    tile: int
    rows: int
    warps: int


def _cut(z: Tensor) -> _Cut:
    C = z.shape[1]
    class_stride = z.stride(1)
    wide = 1 << (C - 1).bit_length()
    half = 2 if z.dtype == torch.float64 else 1  # a number takes two registers
    if class_stride != 1 and (z.dim() == 3 or C > NARROW) and wide > 1:
        one = wide <= BESIDE[0] // half
        tile = wide if one else BESIDE[0] // 2 // half  # m and s take registers too
        return _Cut(one, False, tile, BESIDE[1], 4)
    if wide <= NARROW // half:
        # Not told that classes are adjacent, the compiler gives neighbouring threads other rows.
        return _Cut(True, False, wide, 128, 4)
    one = wide <= ONE_TILE // half
    tile = wide if one else TILE // half**2  # what is summed takes two registers each as well
    rows = max(1, 2048 // tile)
    warps = 32 if not one else min(32, max(4, tile * rows * half // 512))
    return _Cut(one, class_stride == 1, tile, rows, warps)


def _sizes(z: Tensor) -> tuple[int, int, int]:
    """N, C and M, 1 where there are no positions."""
    return z.shape[0], z.shape[1], z.shape[2] if z.dim() == 3 else 1


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """The strides of logits, or of a class vector that rows share."""
    if x is None:
        return 0, 0, 0
    if x.dim() == 1:
        return 0, x.stride(0), 0
    return x.stride(0), x.stride(1), x.stride(2) if x.dim() == 3 else 0


def _accumulation_dtype(z: Tensor) -> torch.dtype:
    return torch.float64 if z.dtype == torch.float64 else torch.float32


def _acc(z: Tensor) -> object:
    """The same for the compiler."""
    return triton_kernels.DOUBLE if z.dtype == torch.float64 else triton_kernels.SINGLE


def _on(z: Tensor) -> AbstractContextManager[object]:
    """Launches go to the current device, which need not be that of z."""
    return torch.cuda.device(z.device) if z.is_cuda else nullcontext()


def _of_rows(weight: RowWeight, z: Tensor) -> tuple[Tensor | None, int]:
    """A weight as a kernel reads it: its numbers, and how far apart those of two rows are."""
    if weight is None:
        return None, 0
    if not isinstance(weight, Tensor):
        # As an argument a number would be rounded to float32. full() does not wait for the device.
        weight = torch.full((), weight, dtype=_accumulation_dtype(z), device=z.device)
    if weight.dim() == 0:
        return weight, 0
    weight = weight.reshape(-1)
    return weight, weight.stride(0)


def row_values(z: Tensor, y: Tensor | None, u: Tensor | None, lse: bool = False) -> RowValues:
    """The row numbers of logits z, in float32 where z is float16 or bfloat16."""
    shape, dtype = z.shape[:1] + z.shape[2:], _accumulation_dtype(z)
    asked = (y is not None, u is not None, lse)
    result = RowValues(
        *(torch.empty(shape, dtype=dtype, device=z.device) if a else None for a in asked)
    )
    N, C, M = _sizes(z)
    cut = _cut(z)
    if N * M > 0 and any(asked):
        with _on(z):
            triton_kernels.row_numbers[(-(-N * M // cut.rows),)](
                z, None if y is None else y.contiguous(), u, *result, N * M, C, M,
                *_strides(z), *_strides(u), _acc(z), cut.unit, cut.one, cut.tile, cut.rows,
                num_warps=cut.warps,
            )  # fmt: skip
    return result


def row_vjp(
    z: Tensor,
    y: Tensor | None,
    u: Tensor | None,
    g_nll: Tensor | None,
    g_smooth: Tensor | None,
    g_lse: Tensor | None,
    dz: Tensor | None = None,
) -> Tensor:
    """The gradient dz of the rows, of z's shape and dtype, into ``dz`` if it is given."""
    dz = torch.empty_like(z) if dz is None else dz
    if y is None or g_nll is None:
        y = g_nll = None
    if u is None or g_smooth is None:
        u = g_smooth = None
    _gradients(z, y, u, (g_nll, g_smooth, g_lse), dz, total=False)
    return dz


def weighted_total(
    z: Tensor,
    y: Tensor | None,
    u: Tensor | None,
    a: RowWeight,
    b: RowWeight,
    c: RowWeight,
    dz: Tensor | None = None,
) -> Tensor:
    """The scalar sum over rows of a nll + b smooth + c lse^2; its gradient is written to dz.

    dz may be z itself.
    """
    if y is None or a is None:
        y = a = None
    if u is None or b is None:
        u = b = None
    totals = _gradients(z, y, u, (a, b, c), dz, total=True)
    assert totals is not None
    return totals.sum()


def _gradients(
    z: Tensor,
    y: Tensor | None,
    u: Tensor | None,
    weights: tuple[RowWeight, ...],
    dz: Tensor | None,
    total: bool,
) -> Tensor | None:
    """dz, and the total of each program if asked for."""
    N, C, M = _sizes(z)
    cut = _cut(z)
    programs = -(-N * M // cut.rows)
    totals = None
    if total:
        totals = torch.empty(programs, dtype=_accumulation_dtype(z), device=z.device)
    tensors, strides = zip(*(_of_rows(weight, z) for weight in weights), strict=True)
    if programs > 0:
        with _on(z):
            triton_kernels.row_gradients[(programs,)](
                z, None if y is None else y.contiguous(), u, *tensors, dz, totals,
                N * M, C, M, *_strides(z), *_strides(u), *_strides(dz), *strides,
                _acc(z), cut.unit, dz is not None and dz.stride(1) == 1, cut.one, cut.tile,
                cut.rows, num_warps=cut.warps,
            )  # fmt: skip
    return totals


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """x times the 0-dimensional factor, in place; nothing is read or written for a factor of 1."""
    dense = x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous())
    if not dense:
        return x.mul_(factor)
    if x.numel() > 0:
        programs = min(-(-x.numel() // 4096), 2048)
        with _on(x):
            triton_kernels.scale[(programs,)](x, factor, x.numel(), _acc(x), 4096, num_warps=8)
    return x

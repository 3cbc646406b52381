"""GPU kernels: launch the Triton kernels of ``triton_kernels`` with the arguments of ``maths``.

Tile sizes were chosen by counting bytes and registers and by reading the compiler's output for
sm_80 and sm_90; they were not yet measured on a device.

 - up to NARROW classes: each thread has a row to itself. No thread idles and nothing is exchanged;
   the loads of neighbouring threads lie C apart, but a whole line is used while it is in L1.
 - up to ONE_TILE classes: a row stays in registers between its read and its write.
 - more classes: 16 warps work on one row, two rows on a multiprocessor; or 32 warps where the rows
   are long, so that as few as possible are in flight: 132 rows of 128256 bfloat16 are 34 MB, and
   the second read finds them in 50 MB of L2.
 - adjacent positions, (N, C, M): each thread has a position and loops over the classes.

Each program writes one partial sum over its rows and torch.sum adds them: the order is fixed.
Nothing here waits for the device: numbers that live on it are read by the kernels.
"""

from __future__ import annotations

import functools
import math
from typing import NamedTuple

import torch
from torch import Tensor

from softmax_torch.maths import (
    RowStatistics,
    RowValues,
    RowWeight,
    RowWeights,
    Target,
    sum_dtype,
)
from softmax_torch.ops import triton_index_loss, triton_kernels
from softmax_torch.ops.index_loss import IndexLoss
from softmax_torch.ops.triton_launch import launch

__all__ = [
    "check",
    "index_loss",
    "row_statistics",
    "row_values",
    "row_vjp",
    "scale_",
    "weighted_total",
]

NARROW = 32
"""The most classes for which one thread takes a whole row: one register per class."""

ONE_TILE = 16384
"""The most classes that stay in registers: 16 for each of 1024 threads of 64 registers. With 32768
the compiler spills 56 to 352 bytes per thread, also where 512 threads have 128 registers each."""

TILE = 8192
"""Classes of a tile for more classes: 16 bytes of bfloat16 for each of 1024 threads."""

TWO_ROWS = 128 << 10
"""The most bytes of a row for two programs on a multiprocessor, of 16 warps each, where one waits
for its sums while the other one reads. 2 x 132 such rows are 34 MB of the 50 MB of L2 of an H100,
2 x 108 are 28 MB of the 40 MB of an A100, and the second read finds them there."""

POSITIONS = (16, 128)
"""Classes and rows of a tile for adjacent positions. With 32 classes the compiler spills, and with
16 if the tile does not hold all classes."""


def check() -> None:
    """Compile and launch a kernel on the current device; raise whatever error Triton does."""
    scale_(torch.ones(1, device="cuda"), torch.ones((), device="cuda"))


class _Tiling(NamedTuple):
    """The tiles of a launch."""

    one: bool  # a tile holds all classes
    unit: bool  # the compiler is told that classes are adjacent
    tile: int  # classes of a tile
    rows: int  # rows of a program
    warps: int


def _tiling(z: Tensor) -> _Tiling:
    """Return the tiles for logits z by their number of classes and layout."""
    return _tiling_of(z.dtype, z.dim(), z.shape[1], z.stride(1))


@functools.lru_cache(256)
def _tiling_of(dtype: torch.dtype, dims: int, C: int, class_stride: int) -> _Tiling:
    wide = 1 << (C - 1).bit_length()
    registers = 2 if dtype == torch.float64 else 1  # of a number
    if class_stride != 1 and (dims == 3 or C > NARROW) and wide > 1:
        one = wide <= POSITIONS[0] // registers
        tile = wide if one else POSITIONS[0] // 2 // registers  # m and s take registers too
        return _Tiling(one, False, tile, POSITIONS[1], 4)
    if wide <= NARROW // registers:
        # Not told that classes are adjacent, the compiler gives neighbouring threads other rows.
        return _Tiling(True, False, wide, 128, 4)
    one = wide <= ONE_TILE // registers
    if not one:
        warps = 16 if C * dtype.itemsize <= TWO_ROWS else 32
        tile = TILE * warps // 32 // registers**2  # each sum takes two registers as well
        return _Tiling(False, class_stride == 1, tile, 1, warps)
    tile = wide
    rows = max(1, 2048 // tile)
    warps = min(32, max(4, tile * rows * registers // 512))
    return _Tiling(True, class_stride == 1, tile, rows, warps)


def _statistics_tile(z: Tensor, tiling: _Tiling) -> int:
    """Return the classes of a tile of ``row_statistics``.

    The kernel keeps six numbers for each place of a tile: with more places the compiler spills.
    """
    places = 2 if z.dtype == torch.float64 else 8  # of a thread
    return min(tiling.tile, max(1, places * 32 * tiling.warps // tiling.rows))


def _vector(z: Tensor, dz: Tensor, tiling: _Tiling) -> int:
    """Return how many adjacent numbers a thread may load at once: at most 16 bytes.

    It divides C and the strides of rows, so that each row begins at a multiple. Triton itself knows
    only multiples of 16: rows of 1000 bfloat16, which begin at 16 bytes, would be read by 2.
    """
    if not tiling.unit or z.dim() == 3 or dz.stride(1) != 1:
        return 1
    return math.gcd(z.shape[1], z.stride(0), dz.stride(0), 16 // z.element_size())


def _sizes(z: Tensor) -> tuple[int, int, int]:
    """Return N, C and M; M is 1 without positions."""
    return z.shape[0], z.shape[1], z.shape[2] if z.dim() == 3 else 1


def _strides(x: Tensor | None) -> tuple[int, int, int]:
    """Return the strides (n, c, m) of logits, or of a class vector that rows share."""
    if x is None:
        return 0, 0, 0
    if x.dim() == 1:
        return 0, x.stride(0), 0
    return x.stride(0), x.stride(1), x.stride(2) if x.dim() == 3 else 0


def _acc(z: Tensor) -> object:
    """Return the dtype of sums as the compiler names it."""
    return triton_kernels.DOUBLE if z.dtype == torch.float64 else triton_kernels.SINGLE


def _weight_and_stride(weight: RowWeight, z: Tensor) -> tuple[Tensor | None, int]:
    """Return the numbers of a weight on the device, and their stride between rows."""
    if weight is None:
        return None, 0
    if not isinstance(weight, Tensor):
        # A float argument would be rounded to float32. full() does not wait for the device.
        weight = torch.full((), weight, dtype=sum_dtype(z.dtype), device=z.device)
    if weight.dim() == 0:
        return weight, 0
    weight = weight.reshape(-1)
    return weight, weight.stride(0)


def row_values(z: Tensor, target: Target, lse: bool = False) -> RowValues:
    """Return the row numbers of logits z, in float32 where z is float16 or bfloat16."""
    y, u = target
    shape, dtype = z.shape[:1] + z.shape[2:], sum_dtype(z.dtype)
    needed = (y is not None, u is not None, lse)
    result = RowValues(
        *(torch.empty(shape, dtype=dtype, device=z.device) if n else None for n in needed)
    )
    N, C, M = _sizes(z)
    tiling = _tiling(z)
    if N * M > 0 and any(needed):
        launch(
            triton_kernels.row_numbers, -(-N * M // tiling.rows),
            (z, None if y is None else y.contiguous(), u, *result),
            (N * M, C, M, *_strides(z), *_strides(u), _acc(z), tiling.unit,
             _vector(z, z, tiling), tiling.one, tiling.tile, tiling.rows),
            tiling.warps,
        )  # fmt: skip
    return result


def row_statistics(z: Tensor, y: Tensor | None = None) -> RowStatistics:
    """Return the statistics of logits z, in float32 where z is float16 or bfloat16."""
    z = z.detach()
    shape, dtype = z.shape[:1] + z.shape[2:], sum_dtype(z.dtype)
    lse, entropy = (torch.empty(shape, dtype=dtype, device=z.device) for _ in range(2))
    argmax = torch.empty(shape, dtype=torch.int64, device=z.device)
    rank = None if y is None else torch.empty_like(argmax)
    N, C, M = _sizes(z)
    tiling = _tiling(z)
    if N * M > 0:
        launch(
            triton_kernels.row_statistics, -(-N * M // tiling.rows),
            (z, None if y is None else y.contiguous(), lse, entropy, argmax, rank),
            (N * M, C, M, *_strides(z), _acc(z), tiling.unit, _vector(z, z, tiling),
             _statistics_tile(z, tiling), tiling.rows),
            tiling.warps,
        )  # fmt: skip
    return RowStatistics(lse, entropy, argmax, rank)


def row_vjp(z: Tensor, target: Target, g: RowValues, dz: Tensor | None = None) -> Tensor:
    """Return the gradient dz, of z's shape and dtype; write it into ``dz`` if given."""
    dz = torch.empty_like(z) if dz is None else dz
    _gradients(z, target, g, dz, total=False)
    return dz


def weighted_total(
    z: Tensor, target: Target, weights: RowWeights, dz: Tensor | None = None
) -> Tensor:
    """Return the scalar sum over rows of a nll + b smooth + c lse^2; write its gradient to dz.

    dz may be z itself.
    """
    totals = _gradients(z, target, weights, dz, total=True)
    assert totals is not None
    return totals.sum()


def _gradients(
    z: Tensor, target: Target, weights: RowWeights | RowValues, dz: Tensor | None, total: bool
) -> Tensor | None:
    """Write the gradient to dz if given; return the total of each program if ``total``."""
    (y, u), (a, b, c) = target, weights
    if y is None or a is None:
        y = a = None
    if u is None or b is None:
        u = b = None
    N, C, M = _sizes(z)
    tiling = _tiling(z)
    programs = -(-N * M // tiling.rows)
    totals = None
    if total:
        totals = torch.empty(programs, dtype=sum_dtype(z.dtype), device=z.device)
    tensors, strides = zip(*(_weight_and_stride(weight, z) for weight in (a, b, c)), strict=True)
    if programs > 0:
        launch(
            triton_kernels.row_gradients, programs,
            (z, None if y is None else y.contiguous(), u, *tensors, dz, totals),
            (N * M, C, M, *_strides(z), *_strides(u), *_strides(dz), *strides,
             _acc(z), tiling.unit, dz is not None and dz.stride(1) == 1,
             _vector(z, z if dz is None else dz, tiling), tiling.one, tiling.tile,
             tiling.rows),
            tiling.warps,
        )  # fmt: skip
    return totals


ONE_PROGRAM = (1024, 12)
"""The most rows and classes of an index loss by one program, which is a single launch. Each of 1024
threads has 64 registers at most: with every option 10 classes take 55, 13 take 63, and 16 spill."""


def _index_tiling(z: Tensor, N: int, C: int) -> _Tiling:
    """Return the tiles of ``index_loss``: one program for few rows of few classes."""
    tiling = _tiling(z)
    most_rows, most_classes = ONE_PROGRAM
    if tiling.rows < N <= most_rows and C <= min(NARROW, most_classes):
        rows = 1 << (N - 1).bit_length()
        return tiling._replace(rows=rows, warps=rows // 32)
    return tiling


_PARTS: int = triton_index_loss.PARTS.value

COUNTED_ROWS = 1024
"""Rows that a program of ``count_rows`` reads at a time."""


def index_loss(z: Tensor, y: Tensor, loss: IndexLoss, dz: Tensor | None = None) -> Tensor:
    """Return the loss of logits z (N, C), N > 0, and write its gradient to dz, which may be z.

    z, in float32 or bfloat16, has adjacent classes, and y (N,) and the class weights are
    contiguous. A class index out of range makes the loss and the gradient of its row NaN.
    """
    result = z.new_empty((), dtype=loss.dtype)
    N, C = z.shape
    tiling = _index_tiling(z, N, C)
    programs = -(-N // tiling.rows)
    if programs == 1:  # it counts its rows itself, and its loss is the result
        _index_rows(z, y, loss, dz, tiling, 1, None, 1, result)
        return result
    counting = min(_PARTS, -(-N // COUNTED_ROWS))
    totals = torch.empty(programs, dtype=torch.float32, device=z.device)
    parts = torch.empty(2, _PARTS, dtype=torch.float32, device=z.device)
    launch(
        triton_index_loss.count_rows, counting, (y, loss.weight, parts),
        (N, C, loss.ignore_index, _PARTS, COUNTED_ROWS),
    )  # fmt: skip
    _index_rows(z, y, loss, dz, tiling, programs, parts, counting, totals)
    launch(
        triton_index_loss.add_totals, 1, (totals, parts, result),
        (programs, counting, loss.mean, _PARTS, COUNTED_ROWS),
    )  # fmt: skip
    return result


def _index_rows(
    z: Tensor, y: Tensor, loss: IndexLoss, dz: Tensor | None, tiling: _Tiling, programs: int,
    parts: Tensor | None, counting: int, out: Tensor,
) -> None:  # fmt: skip
    """Write the gradient of the rows to dz, if given, and the loss of each program to out."""
    (N, C), z_n = z.shape, z.stride(0)
    weight, ignore, eps, zeta, mean, _ = loss
    kernel = triton_index_loss.narrow_index_loss
    cut: tuple[int, ...] = (_PARTS, tiling.rows)
    if C > NARROW:
        kernel = triton_index_loss.index_loss
        vector = _vector(z, z if dz is None else dz, tiling)
        cut = (vector, _PARTS, tiling.one, tiling.tile, tiling.rows)
    launch(
        kernel, programs, (z, y, weight, parts, dz, out),
        (N, C, z_n, z_n if dz is None else dz.stride(0), counting, ignore, eps, zeta, mean,
         eps != 0, zeta != 0, *cut),
        tiling.warps,
    )  # fmt: skip


SMALL = 1 << 16
"""The most numbers that torch multiplies: it launches in a fifth of Triton's host time."""


def scale_(x: Tensor, factor: Tensor) -> Tensor:
    """Multiply x by the 0-dimensional factor, in place.

    A factor of 1 reads and writes nothing of many numbers without gaps between them.
    """
    if x.numel() <= SMALL and x.dtype == factor.dtype:  # else torch would round the factor first
        return x.mul_(factor)
    dense = x.is_contiguous() or (x.dim() == 2 and x.t().is_contiguous())
    if not dense:
        return x.mul_(factor)
    if x.numel() > 0:
        programs = min(-(-x.numel() // 4096), 2048)
        launch(triton_kernels.scale, programs, (x, factor), (x.numel(), _acc(x), 4096), 8)
    return x

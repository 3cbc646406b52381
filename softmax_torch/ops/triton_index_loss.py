# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Triton kernels of a whole loss of class indices: no step of it is left to other kernels.

With w_y the class weight of a row (1 without weights), eps the label smoothing and zeta the weight
of the z-loss, over the rows that are not ignored:

    loss = sum_n [ (1 - eps) w_y nll + eps / C smooth ] / sum_n w_y  +  zeta sum_n lse^2 / n

``smooth`` has u = w, and u = 1 without weights; for a sum both divisors are 1. Three launches in
all, where the formulas take some twenty, each as long as the arithmetic of a small batch:

    count_rows    the divisors, in parts, one of each program
    index_loss    the loss of each program's rows, and their gradient
    add_totals    the loss

A single program, which has all rows, counts them itself, and is the only launch. All sums have a
fixed order. Logits (N, C) have adjacent classes; their offsets are 64 bits wide.
"""

import triton
import triton.language as tl

from softmax_torch.ops.triton_kernels import (
    SINGLE,
    _first_walk,
    _lse,
    _nll,
    _row_places,
    _second_walk,
    _target,
    _term,
    _whole,
)

__all__ = ["PARTS", "add_totals", "count_rows", "index_loss"]

PARTS: tl.constexpr = tl.constexpr(256)
"""Most programs of ``count_rows``: every program of ``index_loss`` adds up their parts."""


@triton.jit
def _counted(y, w, row, here, C, ignore):
    """Return which rows count, and the class weight of each: 0 where it has none."""
    index = tl.load(y + row, here, 0)
    counted = here & (index != ignore)
    weight = tl.where(counted, 1.0, 0.0)
    if w is not None:
        weight = tl.load(w + index, counted & (index >= 0) & (index < C), 0.0)
    return counted, weight


@triton.jit(do_not_specialize=["N", "ignore"])
def count_rows(y, w, parts, N, C, ignore, PARTS: tl.constexpr, ROWS: tl.constexpr):
    """Write the number of rows that count, and the sum of their class weights, to parts (2, PARTS).

    Each program has every so many blocks of rows.
    """
    step = tl.num_programs(0).to(tl.int64) * ROWS
    number = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS], tl.float32)
    for start in range(tl.program_id(0).to(tl.int64) * ROWS, N, step):
        row = start + tl.arange(0, ROWS)
        counted, weight = _counted(y, w, row, row < N, C, ignore)
        number += tl.where(counted, 1.0, 0.0)
        sums += weight
    tl.store(parts + tl.program_id(0), tl.sum(number, 0))
    tl.store(parts + PARTS + tl.program_id(0), tl.sum(sums, 0))


@triton.jit
def _divisors(parts, programs, PARTS: tl.constexpr):
    """Return the number of rows that count, and the sum of their class weights."""
    at = tl.arange(0, PARTS)
    number = tl.sum(tl.load(parts + at, at < programs, 0.0), 0)
    return number, tl.sum(tl.load(parts + PARTS + at, at < programs, 0.0), 0)


@triton.jit
def _mean_or_nan(total, number, MEAN: tl.constexpr):
    """Return the loss: NaN for a mean over no rows, as in torch."""
    if MEAN:
        total = tl.where(number == 0.0, float("nan"), total)
    return total


@triton.jit(do_not_specialize=["N", "z_c", "ignore"])
def index_loss(
    z, y, w, parts, dz, out, N, C, z_n, z_c, d_n, programs, ignore, eps, zeta, MEAN: tl.constexpr,
    SMOOTH: tl.constexpr, SQUARED: tl.constexpr, VECTOR: tl.constexpr, PARTS: tl.constexpr,
    UNIT: tl.constexpr, ONE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the gradient dz, which may be z, where it is not None, and the loss of each program.

    Args:
        parts: of the divisors, from ``programs`` programs; None if this program has all rows, whose
            loss is the result then.
        z_c: 1. The compiler does not know it where UNIT is False, and gives each thread a row.
        SMOOTH, SQUARED: whether eps and zeta differ from 0.
        VECTOR: a common divisor of C and the strides of rows. The compiler, which is told it, loads
            as many logits at once.
    """
    C, z_n, d_n = C // VECTOR * VECTOR, z_n // VECTOR * VECTOR, d_n // VECTOR * VECTOR
    row, here = _row_places(N, ROWS)
    base = z + row * z_n
    counted, weight = _counted(y, w, row, here, C, ignore)
    if parts is None:
        number = tl.sum(tl.where(counted, 1.0, 0.0), 0)
        weights = tl.sum(weight, 0)
    else:
        number, weights = _divisors(parts, programs, PARTS)
    scale = 1.0
    if MEAN:
        scale = 1.0 / tl.where(number == 0.0, 1.0, weights)
    index, z_y = _target(y, base, row, here, C, z_c, SINGLE, ROWS)
    u_base = None if w is None or not SMOOTH else w + row * 0
    m, s, U, kept = _first_walk(
        base, u_base, index, C, here, z_c, 1, SINGLE, UNIT, ONE, TILE, ROWS
    )  # fmt: skip
    h, S, rivals = _whole(m, s, z_y)
    out_of_range = counted & (index < 0)
    g_nll = tl.where(out_of_range, float("nan"), (1.0 - eps) * weight * scale)
    total = _term(g_nll, _nll(m, s, z_y))
    g_smooth = tl.zeros([ROWS], SINGLE)
    if SMOOTH:
        g_smooth = tl.where(counted, eps / C * scale, 0.0)
        if w is None:
            U += C
    g_lse = tl.zeros([ROWS], SINGLE)
    if SQUARED:
        lse = _lse(h, S)
        g_lse = tl.where(counted, zeta, 0.0)
        if MEAN:
            g_lse = g_lse / tl.maximum(number, 1.0)
        total += _term(g_lse, lse * lse)
        g_lse = 2.0 * g_lse * lse
    if (dz is not None) or SMOOTH:
        d_base = None if dz is None else dz + row * d_n
        shared = g_smooth * U + g_lse
        r = 1.0 / S
        sums = _second_walk(
            base, d_base, u_base, kept, index, h, (g_nll + shared) * r,
            shared * (tl.exp(z_y - h) * r) - g_nll * (rivals * r), g_smooth, counted, C, here, z_c,
            z_c, 1, SINGLE, UNIT, UNIT, SMOOTH, ONE, TILE, ROWS,
        )  # fmt: skip
        if SMOOTH:
            total += _term(g_smooth, U * tl.log(S) - sums)
    loss = tl.sum(tl.where(counted, total, 0.0), 0)
    if parts is None:
        loss = _mean_or_nan(loss, number, MEAN)
    tl.store(out + tl.program_id(0), loss.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["totals_size"])
def add_totals(
    totals, parts, loss, totals_size, programs, MEAN: tl.constexpr, PARTS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Write the sum of the losses of all programs; one program does."""
    sums = tl.zeros([TILE], tl.float32)
    for start in range(0, totals_size, TILE):
        at = start + tl.arange(0, TILE)
        sums += tl.load(totals + at, at < totals_size, 0.0)
    total = tl.sum(sums, 0)
    if MEAN:
        number, _ = _divisors(parts, programs, PARTS)
        total = _mean_or_nan(total, number, MEAN)
    tl.store(loss, total.to(loss.dtype.element_ty))

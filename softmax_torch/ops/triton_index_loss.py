# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator, assignment"
"""Triton kernels of a whole loss of class indices: no step of it is left to other kernels.

With w_y the class weight of a row (1 without weights), eps the label smoothing and zeta the weight
of the z-loss, over the rows that are not ignored:

    loss = sum_n [ (1 - eps) w_y nll + eps / C smooth ] / sum_n w_y  +  zeta sum_n lse^2 / n

``smooth`` has u = w, and u = 1 without weights; for a sum both divisors are 1. Three launches in
all, where the formulas take some twenty, each as long as the arithmetic of a small batch:

    count_rows    the divisors, in parts, one of each program
    index_loss    the loss of each program's rows, and their gradient; few classes have their own
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

__all__ = ["PARTS", "add_totals", "count_rows", "index_loss", "narrow_index_loss"]

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


@triton.jit
def _scale(counted, weight, parts, programs, MEAN: tl.constexpr, PARTS: tl.constexpr):
    """Return the number of rows that count, and what the sum over rows is multiplied by."""
    if parts is None:
        number = tl.sum(tl.where(counted, 1.0, 0.0), 0)
        weights = tl.sum(weight, 0)
    else:
        number, weights = _divisors(parts, programs, PARTS)
    scale = 1.0
    if MEAN:
        scale = 1.0 / tl.where(number == 0.0, 1.0, weights)
    return number, scale


@triton.jit
def _weighted(
    m, s, z_y, U, counted, weight, index, number, scale, C, eps, zeta, MEAN: tl.constexpr,
    SMOOTH: tl.constexpr, SQUARED: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Return what each row adds to the loss, but for its smooth part, and what its gradient needs.

    With p = exp(z - h) / S the gradient is ``p_weight`` p at the rivals and ``at_y`` at the true
    class, less ``g_smooth`` u.
    """
    h, S, rivals = _whole(m, s, z_y)
    out_of_range = counted & (index < 0)
    g_nll = tl.where(out_of_range, float("nan"), (1.0 - eps) * weight * scale)
    total = _term(g_nll, _nll(m, s, z_y))
    g_smooth = tl.zeros([ROWS], SINGLE)
    if SMOOTH:
        g_smooth = tl.where(counted, eps / C * scale, 0.0)
    g_lse = tl.zeros([ROWS], SINGLE)
    if SQUARED:
        lse = _lse(h, S)
        g_lse = tl.where(counted, zeta, 0.0)
        if MEAN:
            g_lse = g_lse / tl.maximum(number, 1.0)
        total += _term(g_lse, lse * lse)
        g_lse = 2.0 * g_lse * lse
    shared = g_smooth * U + g_lse
    r = 1.0 / S
    at_y = shared * (tl.exp(z_y - h) * r) - g_nll * (rivals * r)
    return total, h, S, g_smooth, g_nll + shared, at_y


@triton.jit
def _store(total, counted, number, parts, out, MEAN: tl.constexpr):
    """Write the loss of this program: the result, if it has all rows."""
    loss = tl.sum(tl.where(counted, total, 0.0), 0)
    if parts is None:
        loss = _mean_or_nan(loss, number, MEAN)
    tl.store(out + tl.program_id(0), loss.to(out.dtype.element_ty))


@triton.jit(do_not_specialize=["N", "ignore"])
def narrow_index_loss(
    z, y, w, parts, dz, out, N, C: tl.constexpr, z_n, d_n, programs, ignore, eps, zeta,
    MEAN: tl.constexpr, SMOOTH: tl.constexpr, SQUARED: tl.constexpr, PARTS: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Do what ``index_loss`` does for few classes: each thread has a row, class by class.

    The number of classes is known to the compiler: nothing is masked or padded, and logits stay in
    registers whatever version of Triton lays them out. exp is taken once.
    """
    row, here = _row_places(N, ROWS)
    base = z + row * z_n
    counted, weight = _counted(y, w, row, here, C, ignore)
    number, scale = _scale(counted, weight, parts, programs, MEAN, PARTS)
    index = tl.load(y + row, here, 0)
    index = tl.where((index >= 0) & (index < C), index, -1).to(tl.int32)
    x = ()
    m = tl.full([ROWS], -3.4e38, SINGLE)
    z_y = tl.full([ROWS], float("nan"), SINGLE)
    for c in tl.static_range(C):
        x_c = tl.load(base + c, here, 0.0).to(SINGLE)
        z_y = tl.where(index == c, x_c, z_y)
        m = tl.maximum(m, tl.where(index == c, -float("inf"), x_c))
        x = x + (x_c,)  # noqa: RUF005 Triton compiles no unpacking
    e = ()
    s = tl.zeros([ROWS], SINGLE)
    U = tl.zeros([ROWS], SINGLE)
    for c in tl.static_range(C):
        e_c = tl.where(index == c, 0.0, tl.exp(x[c] - m))
        s += e_c
        e = e + (e_c,)  # noqa: RUF005 as above
        if SMOOTH:
            U += 1.0 if w is None else tl.load(w + c)
    total, h, S, g_smooth, p_weight, at_y = _weighted(
        m, s, z_y, U, counted, weight, index, number, scale, C, eps, zeta, MEAN, SMOOTH, SQUARED,
        ROWS,
    )  # fmt: skip
    factor = p_weight * (tl.where(s == 0.0, 0.0, tl.exp(m - h)) / S)
    sums = tl.zeros([ROWS], SINGLE)
    for c in tl.static_range(C):
        g = tl.where(index == c, at_y, factor * e[c])
        if SMOOTH:
            u_c = 1.0 if w is None else tl.load(w + c)
            sums += u_c * (x[c] - h)
            g -= g_smooth * u_c
        if dz is not None:
            g = tl.where(counted, g, 0.0)
            tl.store(dz + row * d_n + c, g.to(dz.dtype.element_ty), here)
    if SMOOTH:
        total += _term(g_smooth, U * tl.log(S) - sums)
    _store(total, counted, number, parts, out, MEAN)


@triton.jit(do_not_specialize=["N", "ignore"])
def index_loss(
    z, y, w, parts, dz, out, N, C, z_n, d_n, programs, ignore, eps, zeta, MEAN: tl.constexpr,
    SMOOTH: tl.constexpr, SQUARED: tl.constexpr, VECTOR: tl.constexpr, PARTS: tl.constexpr,
    ONE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write the gradient dz, which may be z, where it is not None, and the loss of each program.

    Args:
        parts: of the divisors, from ``programs`` programs; None if this program has all rows, whose
            loss is the result then.
        SMOOTH, SQUARED: whether eps and zeta differ from 0.
        VECTOR, ONE, TILE, ROWS: see ``triton_kernels``.
    """
    C, z_n, d_n = C // VECTOR * VECTOR, z_n // VECTOR * VECTOR, d_n // VECTOR * VECTOR
    row, here = _row_places(N, ROWS)
    base = z + row * z_n
    counted, weight = _counted(y, w, row, here, C, ignore)
    number, scale = _scale(counted, weight, parts, programs, MEAN, PARTS)
    index, z_y = _target(y, base, row, here, C, 1, SINGLE, ROWS)
    u_base = None if w is None or not SMOOTH else w + row * 0
    m, s, U, kept = _first_walk(
        base, u_base, index, C, here, 1, 1, SINGLE, True, ONE, TILE, ROWS
    )  # fmt: skip
    if SMOOTH and w is None:
        U += C
    total, h, S, g_smooth, p_weight, at_y = _weighted(
        m, s, z_y, U, counted, weight, index, number, scale, C, eps, zeta, MEAN, SMOOTH, SQUARED,
        ROWS,
    )  # fmt: skip
    if (dz is not None) or SMOOTH:
        d_base = None if dz is None else dz + row * d_n
        sums = _second_walk(
            base, d_base, u_base, kept, index, h, p_weight / S, at_y, g_smooth, counted, C, here,
            1, 1, 1, SINGLE, True, True, SMOOTH, ONE, TILE, ROWS,
        )  # fmt: skip
        if SMOOTH:
            total += _term(g_smooth, U * tl.log(S) - sums)
    _store(total, counted, number, parts, out, MEAN)


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

# mypy: disable-error-code="no-untyped-def, no-untyped-call, untyped-decorator"
"""Triton kernels: the formulas of ``maths`` on one tile of classes by rows at a time.

With the true class y removed from its row, as in ``maths``, and its rivals r:

    m = max_r z_r     s = sum_r exp(z_r - m)     L = log s + (m - z_y)     nll = log(1 + exp L)
    h = max(m, z_y)   S = s exp(m - h) + exp(z_y - h)                      lse = h + log S
    U = sum_c u_c     smooth = U log S - sum_c u_c (z_c - h)
    dz_c = (g_nll + U g_smooth + g_lse) p_c - g_smooth u_c,     p_c = exp(z_c - h) / S
    dz_y = (U g_smooth + g_lse) p_y - g_nll q - g_smooth u_y,   q = s exp(m - h) / S

m - z_y is exact where the two are near, so large logits lose no digits.

A program has ROWS rows. If a tile holds all classes, it reads them once. Otherwise each place of
the tile keeps its own m and s, with one exp per element,

    d = z - m     s = s exp(-d) + 1 if d > 0 else s + exp(d)     m = max(m, z)

which are reduced once at the end. A second walk over the tiles writes dz and sums u_c (z_c - h). It
goes backwards, because the tiles read last are still in the cache.

Row r is sample r // M at position r % M. Offsets are 64 bits wide. A class index out of range reads
nothing: its z_y is NaN, and so are the numbers and the gradient of its row. No two programs write
to the same place, and every sum has a fixed order.

VECTOR divides C and the strides of rows. The compiler, which is told it, loads as many at once.
"""

import triton
import triton.language as tl

__all__ = ["DOUBLE", "SINGLE", "row_gradients", "row_numbers", "row_statistics", "scale"]

SINGLE, DOUBLE = tl.float32, tl.float64
"""The values of ACC: the dtype of sums."""


@triton.jit
def _log1p(x):
    """Return log(1 + x) for 0 <= x <= 1 as 2 artanh(x / (2 + x)): 1 + x would lose digits of x.

    The series in (x / (2 + x))^2 <= 1/9 ends where the remainder is below half a unit in the last
    place: after 8 terms in float32, after 17 in float64.
    """
    t = x / (x + 2.0)
    square = t * t
    TERMS: tl.constexpr = 17 if x.dtype == tl.float64 else 8
    total = square * 0.0
    for k in tl.static_range(TERMS):
        total = total * square + 1.0 / (2 * (TERMS - 1 - k) + 1)
    return 2.0 * t * total


@triton.jit
def _row_places(R, ROWS: tl.constexpr):
    """Return the rows of this program, and the mask of those that exist."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    return row, row < R


@triton.jit
def _classes(start, C, here, TILE: tl.constexpr):
    """Return the classes of a tile from ``start`` on as a column, and the mask of the tile."""
    c = start + tl.arange(0, TILE)[:, None]
    return c, (c < C) & here[None, :]


@triton.jit
def _tile(base, c, stride, UNIT: tl.constexpr):
    """Return the addresses of classes c in the rows that begin at ``base``."""
    return base[None, :] + (c if UNIT else c.to(tl.int64) * stride)


@triton.jit
def _first_walk(base, u_base, y, C, here, stride, u_stride, ACC, UNIT, ONE, TILE, ROWS):
    """Return m, s and U of each row, and the logits of the last tile."""
    LOWEST: tl.constexpr = -1.7e308 if ACC == tl.float64 else -3.4e38
    if ONE:
        c, mask = _classes(0, C, here, TILE)
        z = tl.load(_tile(base, c, stride, UNIT), mask, -float("inf")).to(ACC)
        rival = tl.where(c == y[None, :], -float("inf"), z)
        m = tl.maximum(tl.max(rival, 0), LOWEST)
        s = tl.sum(tl.exp(rival - m[None, :]), 0)
        U = m * 0.0
        if u_base is not None:
            U = tl.sum(tl.load(_tile(u_base, c, u_stride, False), mask, 0.0).to(ACC), 0)
    else:
        # LOWEST stands for minus infinity, whose difference to itself is NaN.
        m_all = tl.full([TILE, ROWS], LOWEST, ACC)
        s_all = tl.zeros([TILE, ROWS], ACC)
        U_all = tl.zeros([TILE, ROWS], ACC)
        # The next two tiles are on their way while one is summed: one alone is 16 KiB of each
        # multiprocessor, about what covers the latency of memory. With u registers would spill.
        STAGES: tl.constexpr = 3 if u_base is None else 1
        for start in tl.range(0, C, TILE, num_stages=STAGES):
            c, mask = _classes(start, C, here, TILE)
            z = tl.load(
                _tile(base, c, stride, UNIT), mask, -float("inf"), eviction_policy="evict_last"
            ).to(ACC)
            rival = tl.where(c == y[None, :], -float("inf"), z)
            d = rival - m_all
            e = tl.exp(-tl.abs(d))
            s_all = tl.where(d > 0, s_all * e + 1.0, s_all + e)
            m_all = tl.maximum(m_all, rival)
            if u_base is not None:
                U_all += tl.load(_tile(u_base, c, u_stride, False), mask, 0.0).to(ACC)
        m = tl.max(m_all, 0)
        s = tl.sum(s_all * tl.exp(m_all - m[None, :]), 0)
        U = tl.sum(U_all, 0)
        z = m_all
    return m, s, U, z


@triton.jit
def _target(y, base, row, here, C, stride, ACC, ROWS: tl.constexpr):
    """Return the class index of each row, -1 if missing or out of range, and its logit.

    An index has 32 bits: comparing each class with one of 64 costs three instructions more.
    """
    if y is None:
        index = tl.full([ROWS], -1, tl.int32)
        z_y = tl.full([ROWS], -float("inf"), ACC)
    else:
        wide = tl.load(y + row, here, 0).to(tl.int64)
        inside = (wide >= 0) & (wide < C)
        z_y = tl.load(base + wide * stride, here & inside, 0.0).to(ACC)
        z_y = tl.where(inside, z_y, float("nan"))
        index = tl.where(inside, wide, -1).to(tl.int32)
    return index, z_y


@triton.jit
def _nll(m, s, z_y):
    """Return log(1 + exp L); NaN where no logit is finite or one is inf."""
    alone = s == 0.0
    L = tl.log(tl.where(alone, 1.0, s)) + (m - z_y)
    nll = tl.where(L > 0, L, 0.0) + _log1p(tl.exp(-tl.abs(L)))
    nll = tl.where(L == L, nll, L)  # keep NaN, which the comparisons above may lose
    nll = tl.where(alone & (z_y == z_y), 0.0, nll)
    return tl.where((z_y == float("inf")) | (alone & (z_y == -float("inf"))), float("nan"), nll)


@triton.jit
def _whole(m, s, z_y):
    """Return h, S, and the rivals' part of S."""
    alone = s == 0.0
    h = tl.where(alone, z_y, tl.where(z_y > m, z_y, m))
    # NaN stays NaN, and a row without a finite logit becomes NaN: -inf minus itself.
    rivals = tl.where(alone, 0.0, s * tl.exp(m - h))
    return h, rivals + tl.exp(z_y - h), rivals


@triton.jit
def _lse(h, S):
    """Return h + log S; an infinite h stays infinite, though S is NaN."""
    return tl.where(tl.abs(h) == float("inf"), h, h + tl.log(S))


@triton.jit(do_not_specialize=["R", "z_c"])
def row_numbers(
    z, y, u, nll, smooth, lse, R, C, M, z_n, z_c, z_m, u_n, u_c, u_m,
    ACC: tl.constexpr, UNIT: tl.constexpr, VECTOR: tl.constexpr, ONE: tl.constexpr,
    TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write nll, smooth and lse of each row where the pointer is not None."""
    C, z_n = C // VECTOR * VECTOR, z_n // VECTOR * VECTOR
    row, here = _row_places(R, ROWS)
    n, k = row // M, row % M
    base = z + n * z_n + k * z_m
    u_base = None if u is None else u + n * u_n + k * u_m
    index, z_y = _target(y, base, row, here, C, z_c, ACC, ROWS)
    m, s, U, kept = _first_walk(
        base, u_base, index, C, here, z_c, u_c, ACC, UNIT, ONE, TILE, ROWS
    )  # fmt: skip
    if nll is not None:
        tl.store(nll + row, _nll(m, s, z_y), here)
    h, S, _ = _whole(m, s, z_y)
    if lse is not None:
        tl.store(lse + row, _lse(h, S), here)
    if smooth is not None:
        # Nothing is written: the factors of a gradient have no effect.
        sums = _second_walk(
            base, None, u_base, kept, index, h, h, h, h, None, C, here, z_c, 0, u_c, ACC, UNIT,
            False, True, ONE, TILE, ROWS,
        )  # fmt: skip
        tl.store(smooth + row, U * tl.log(S) - sums, here)


@triton.jit(do_not_specialize=["R", "z_c"])
def row_statistics(
    z, y, lse, entropy, argmax, rank, R, C, M, z_n, z_c, z_m,
    ACC: tl.constexpr, UNIT: tl.constexpr, VECTOR: tl.constexpr, TILE: tl.constexpr,
    ROWS: tl.constexpr,
):  # fmt: skip
    """Write the statistics of each row (``maths.RowStatistics``); rank where y is not None.

    The first walk over the tiles finds the largest logit and its class, the second one the sums.
    """
    C, z_n = C // VECTOR * VECTOR, z_n // VECTOR * VECTOR
    row, here = _row_places(R, ROWS)
    base = z + row // M * z_n + row % M * z_m
    index, z_y = _target(y, base, row, here, C, z_c, ACC, ROWS)
    NOWHERE: tl.constexpr = 2147483647
    best = tl.full([TILE, ROWS], -float("inf"), ACC)
    place = tl.zeros([TILE, ROWS], tl.int32)
    nan_place = tl.full([TILE, ROWS], NOWHERE, tl.int32)
    for start in range(0, C, TILE):
        c, mask = _classes(start, C, here, TILE)
        x = tl.load(_tile(base, c, z_c, UNIT), mask, -float("inf")).to(ACC)
        better = x > best
        place = tl.where(better, c.to(tl.int32), place)
        best = tl.where(better, x, best)
        nan_place = tl.where((x != x) & (c < nan_place), c.to(tl.int32), nan_place)
    m = tl.max(best, 0)
    first = tl.min(tl.where(best == m[None, :], place, NOWHERE), 0)
    nan_first = tl.min(nan_place, 0)
    rest = tl.zeros([TILE, ROWS], ACC)
    weighted = tl.zeros([TILE, ROWS], ACC)
    before = tl.zeros([TILE, ROWS], tl.int32)
    for start in range(0, C, TILE):
        c, mask = _classes(start, C, here, TILE)
        x = tl.load(_tile(base, c, z_c, UNIT), mask, -float("inf")).to(ACC)
        d = x - m[None, :]
        e = tl.exp(d)
        rest += tl.where(mask & (c != first[None, :]), e, 0.0)
        weighted += tl.where(mask & (e != 0.0), e * d, 0.0)
        if rank is not None:
            ahead = (x > z_y[None, :]) | ((x == z_y[None, :]) & (c < index[None, :]))
            before += tl.where(mask & ahead, 1, 0)
    others = tl.sum(rest, 0)
    log_s = tl.where(others <= 1, _log1p(tl.minimum(others, 1.0)), tl.log(1.0 + others))
    broken = nan_first < NOWHERE
    value = tl.where(tl.abs(m) == float("inf"), m, m + log_s)
    tl.store(lse + row, tl.where(broken, float("nan"), value), here)
    value = log_s - tl.sum(weighted, 0) / (1.0 + others)
    infinite = broken | (tl.abs(m) == float("inf"))
    tl.store(entropy + row, tl.where(infinite, float("nan"), value), here)
    tl.store(argmax + row, tl.where(broken, nan_first, first).to(tl.int64), here)
    if rank is not None:
        outside = broken | (index < 0)
        tl.store(rank + row, tl.where(outside, C, tl.sum(before, 0)).to(tl.int64), here)


@triton.jit
def _second_walk(
    base, d_base, u_base, kept, index, h, factor, at_y, g_smooth, counted, C, here, z_c, d_c, u_c,
    ACC, UNIT, D_UNIT, SMOOTH, ONE, TILE, ROWS,
):  # fmt: skip
    """Write dz if d_base is not None; return sum_c u_c (z_c - h) of each row if SMOOTH, else 0.

    dz_c is ``factor`` exp(z_c - h) - ``g_smooth`` u_c, at the true class ``at_y`` - g_smooth u_y,
    and 0 in rows that ``counted`` excludes, whatever their logits. u_c is 1 if u_base is None.
    """
    sums = tl.zeros([TILE, ROWS], ACC)
    for i in range(1 if ONE else tl.cdiv(C, TILE)):
        start = 0 if ONE else (tl.cdiv(C, TILE) - 1 - i) * TILE
        c, mask = _classes(start, C, here, TILE)
        x = kept
        if not ONE:
            x = tl.load(_tile(base, c, z_c, UNIT), mask, 0.0, eviction_policy="evict_first").to(ACC)
        x = x - h[None, :]
        g = tl.where(c == index[None, :], at_y[None, :], factor[None, :] * tl.exp(x))
        if SMOOTH:
            if u_base is None:
                sums += tl.where(mask, x, 0.0)
                g -= g_smooth[None, :]
            else:
                u_tile = tl.load(_tile(u_base, c, u_c, False), mask, 0.0).to(ACC)
                sums += tl.where(mask, u_tile * x, 0.0)
                g -= g_smooth[None, :] * u_tile
        if d_base is not None:
            if counted is not None:
                g = tl.where(counted[None, :], g, 0.0)
            tl.store(_tile(d_base, c, d_c, D_UNIT), g.to(d_base.dtype.element_ty), mask)
    return tl.sum(sums, 0)


@triton.jit
def _weight(w, w_r, row, here, ACC, ROWS: tl.constexpr):
    """Return the weight of each row; None stands for 0."""
    if w is None:  # noqa: SIM108 the other branch must not be compiled
        weight = tl.zeros([ROWS], ACC)
    else:
        weight = tl.load(w + row * w_r, here, 0.0).to(ACC)
    return weight


@triton.jit
def _term(weight, value):
    """Return weight times value; a weight of 0 leaves a row out even if it is inf or NaN."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit(do_not_specialize=["R", "z_c", "d_c"])
def row_gradients(
    z, y, u, a, b, w, dz, totals, R, C, M, z_n, z_c, z_m, u_n, u_c, u_m, d_n, d_c, d_m,
    a_r, b_r, w_r, ACC: tl.constexpr, UNIT: tl.constexpr, D_UNIT: tl.constexpr,
    VECTOR: tl.constexpr, ONE: tl.constexpr, TILE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Write dz, which may be z, and the total of each program, where the pointer is not None.

    With totals, a, b and w are the weights of nll, smooth and lse^2; without, the gradients in nll,
    smooth and lse.
    """
    C, z_n, d_n = C // VECTOR * VECTOR, z_n // VECTOR * VECTOR, d_n // VECTOR * VECTOR
    row, here = _row_places(R, ROWS)
    n, k = row // M, row % M
    base = z + n * z_n + k * z_m
    u_base = None if u is None else u + n * u_n + k * u_m
    index, z_y = _target(y, base, row, here, C, z_c, ACC, ROWS)
    m, s, U, kept = _first_walk(
        base, u_base, index, C, here, z_c, u_c, ACC, UNIT, ONE, TILE, ROWS
    )  # fmt: skip
    h, S, rivals = _whole(m, s, z_y)
    g_nll = _weight(a, a_r, row, here, ACC, ROWS)
    g_smooth = _weight(b, b_r, row, here, ACC, ROWS)
    g_lse = _weight(w, w_r, row, here, ACC, ROWS)
    total = tl.zeros([ROWS], ACC)
    if totals is not None:
        if a is not None:
            total += _term(g_nll, _nll(m, s, z_y))
        if w is not None:
            lse = _lse(h, S)
            total += _term(g_lse, lse * lse)
            g_lse = 2.0 * g_lse * lse
    if (dz is not None) or (u is not None):
        d_base = None if dz is None else dz + n * d_n + k * d_m
        shared = g_smooth * U + g_lse
        r = 1.0 / S
        sums = _second_walk(
            base, d_base, u_base, kept, index, h, (g_nll + shared) * r,
            shared * (tl.exp(z_y - h) * r) - g_nll * (rivals * r), g_smooth, None, C, here, z_c,
            d_c, u_c, ACC, UNIT, D_UNIT, u is not None, ONE, TILE, ROWS,
        )  # fmt: skip
        if (totals is not None) and (u is not None):
            total += _term(g_smooth, U * tl.log(S) - sums)
    if totals is not None:
        tl.store(totals + tl.program_id(0), tl.sum(tl.where(here, total, 0.0), 0))


@triton.jit(do_not_specialize=["size"])
def scale(x, factor, size, ACC: tl.constexpr, TILE: tl.constexpr):
    """Multiply x by the number at ``factor``, in place; a factor of 1 reads and writes nothing."""
    f = tl.load(factor).to(ACC)
    if f != 1.0:
        step = tl.num_programs(0).to(tl.int64) * TILE
        for start in range(tl.program_id(0).to(tl.int64) * TILE, size, step):
            at = start + tl.arange(0, TILE)
            value = tl.load(x + at, at < size).to(ACC) * f
            tl.store(x + at, value.to(x.dtype.element_ty), at < size)

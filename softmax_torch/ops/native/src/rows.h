// The numbers of each row of logits, their weighted sum, and its gradient; maths.py has the
// formulas.
//
// For a row z with largest logit m, class index y and class vector u, U = sum u:
//
//     e_c    = exp(z_c - m)        others = sum of e_c over c != y        s = others + e_y
//     rest   = others if z_y = m, else others + (e_y - 1)
//     nll    = (m - z_y) + log1p(rest)
//     lse    = m + log1p(rest)
//     smooth = U log1p(rest) + sum_c u_c (m - z_c)
//     dz_c   = (a + shared) / s e_c - b u_c                  c != y
//     dz_y   = (shared e_y - a others) / s - b u_y           shared = b U + gradient of lse
//
// The true class is not in the sum of the others, so that 1 - p_y keeps its digits where p_y rounds
// to 1. A row whose largest logit is not finite gives NaN throughout, but for lse: z - m is NaN
// then.
//
// Rows of few classes, and rows whose classes are not adjacent, lie in the lanes of a vector: a
// tile. Other rows are swept along their classes, three times while they are in the cache.
#pragma once

#include "parallel.h"
#include "vectors.h"

namespace SOFTMAX_TORCH_ISA {

constexpr int64_t NARROW = 64;  // classes up to which rows are transposed into tiles

// The parts of a call that its rows share.
template <class Real>
struct Shared {
    const Rows& call;
    const Real* u = nullptr;  // the class vector of all rows, or null
    double u_sum = 0;
    Memory memory;

    explicit Shared(const Rows& call)
        : call(call), memory(has_class_vector() ? call.classes * sizeof(Real) : 0) {
        if (!has_class_vector() || !memory.data) return;
        Real* copy = (Real*)memory.data;
        read(call.u.data, call.u.dtype, 0, call.u.column, call.classes, copy);
        for (int64_t c = 0; c < call.classes; c++) u_sum += copy[c];
        u = copy;
    }
    // A call with the class vector of another one.
    Shared(const Rows& call, const Shared& other)
        : call(call), u(other.u), u_sum(other.u_sum), memory(0) {}
    bool has_class_vector() const { return call.u.data && call.u.row == 0 && call.u.position == 0; }
    bool has_row_vectors() const { return call.u.data && !has_class_vector(); }
    bool wants_lse() const { return call.lse || call.c.present; }
    bool transposes() const { return call.positions == 1 && call.classes <= NARROW; }
    bool tiles() const { return call.positions > 1 || call.classes <= NARROW; }
};

template <class Real>
INLINE Real weight_of(const Weight& w, int64_t row) {
    return w.values ? ((const Real*)w.values)[row] : (Real)w.value;
}

// A tile of rows: lane i is a row, entry c of the tile is class c of all of them.
template <class Real>
struct Tile {
    Real* e;  // (classes, count): the logits, then the exponentials, then the gradient
    int64_t first, n, m, rows;  // the number of its first row, sample n at position m, and its rows
    Int<Real> y;
    Vector<Real> a, b, c;  // weights, 0 in lanes without a row
    Vector<Real> u_sum;
    Real lse_instead[Lanes<Real>::count];  // of rows whose largest logit is not finite
    bool all_finite;
    Vector<Real> largest, z_y, e_y, others, spread;
    Vector<Real> nll, smooth, lse;
};

// The class vectors of a tile.
template <class Real>
struct TileVectors {
    const Real* u;  // (classes,), or (classes, count) where in_lanes
    bool in_lanes;
    INLINE_MEMBER Vector<Real> of(int64_t c) const {
        return in_lanes ? load(u + c * Lanes<Real>::count) : broadcast(u[c]);
    }
};

// Replace the logits of a tile by their exponentials, and sum them. A processor works on several
// tiles at once if the three steps are done for a batch of tiles one after the other: each step
// ends in sums that the next one waits for.
template <class Real, bool HAS_Y, bool HAS_U>
INLINE void exponentials(Tile<Real>& t, int64_t C, TileVectors<Real> vectors, bool wants_lse,
                         bool wants_gradient) {
    typedef Vector<Real> V;
    constexpr int64_t count = Lanes<Real>::count;
    Real* e = t.e;
    V m = load(e), m2 = m;
    for (int64_t c = 1; c + 1 < C; c += 2) {
        m = maximum<Real>(load(e + c * count), m);
        m2 = maximum<Real>(load(e + (c + 1) * count), m2);
    }
    m = maximum<Real>(m2, m);
    if (C > 1) m = maximum<Real>(load(e + (C - 1) * count), m);

    t.all_finite = true;
    if (wants_lse && sum<Real>(m - m) != 0) {
        t.all_finite = false;
        for (int64_t i = 0; i < count; i++) {
            t.lse_instead[i] = m[i];
            for (int64_t c = 0; c < C; c++)
                if (e[c * count + i] != e[c * count + i]) t.lse_instead[i] = e[c * count + i];
        }
    }

    V others = {}, e_y = {}, z_y = {}, spread = {};
    Int<Real> left = t.y;  // classes up to the true one: 0 where c = y
    for (int64_t c = 0; c < C; c++, left -= 1) {
        V z = load(e + c * count);
        V x = exp_nonpositive(z - m);
        if (HAS_U) spread += vectors.of(c) * (m - z);
        if (HAS_Y) {
            Int<Real> true_class = left == 0;
            z_y = true_class ? z : z_y;
            e_y = true_class ? x : e_y;
            others += true_class ? V{} : x;
        } else {
            others += x;
        }
        if (wants_gradient) store(e + c * count, x);
    }
    t.largest = m, t.others = others, t.e_y = e_y, t.z_y = z_y, t.spread = spread;
}

// Compute the numbers of a tile's rows from their sums.
template <class Real>
INLINE void row_numbers(Tile<Real>& t, bool has_y) {
    typedef Vector<Real> V;
    V distance = t.largest - t.z_y, rest = t.others - Real(1);
    if (has_y) rest = distance == Real(0) ? t.others : t.others + (t.e_y - Real(1));
    V log_s = log1p_nonnegative(rest);
    t.nll = distance + log_s;
    t.smooth = t.u_sum * log_s + t.spread;
    t.lse = t.largest + log_s;
    if (!t.all_finite)
        for (int64_t i = 0; i < Lanes<Real>::count; i++)
            if (t.largest[i] - t.largest[i] != 0) t.lse[i] = t.lse_instead[i];
}

// Replace the exponentials of a tile by its gradient.
template <class Real, bool HAS_Y, bool HAS_U>
INLINE void gradient(Tile<Real>& t, int64_t C, TileVectors<Real> vectors, bool lse_gradient,
                     bool c_is_gradient) {
    typedef Vector<Real> V;
    constexpr int64_t count = Lanes<Real>::count;
    V shared = {};
    if (HAS_U) shared = t.b * t.u_sum;
    if (lse_gradient) shared += c_is_gradient ? t.c : Real(2) * t.c * t.lse;
    V inverse = Real(1) / (t.others + t.e_y);
    V factor = (HAS_Y ? t.a + shared : shared) * inverse;
    V at_y = (shared * t.e_y - t.a * t.others) * inverse;
    Int<Real> left = t.y;
    for (int64_t c = 0; c < C; c++, left -= 1) {
        V dz = factor * load(t.e + c * count);
        if (HAS_Y) dz = left == 0 ? at_y : dz;
        if (HAS_U) dz -= t.b * vectors.of(c);
        store(t.e + c * count, dz);
    }
}

// Copy ``rows`` rows of C adjacent numbers into a tile; lanes without a row repeat the last row.
template <class Real>
INLINE void to_tile(const Real* z, int64_t stride, int64_t rows, int64_t C, Real* tile) {
    constexpr int64_t count = Lanes<Real>::count;
    if (C < count) {
        for (int64_t i = 0; i < count; i++) {
            const Real* row = z + (i < rows ? i : rows - 1) * stride;
            for (int64_t c = 0; c < C; c++) tile[c * count + i] = row[c];
        }
        return;
    }
    for (int64_t start = 0; start < C; start += count) {
        const int64_t c = start + count <= C ? start : C - count;  // the last ones overlap
        Vector<Real> block[count];
        for (int64_t i = 0; i < count; i++)
            block[i] = load(z + (i < rows ? i : rows - 1) * stride + c);
        transpose<Real>(block);
        for (int64_t i = 0; i < count; i++) store(tile + (c + i) * count, block[i]);
    }
}

template <class Real>
INLINE void from_tile(const Real* tile, int64_t stride, int64_t rows, int64_t C, Real* dz) {
    constexpr int64_t count = Lanes<Real>::count;
    if (C < count) {
        for (int64_t i = 0; i < rows; i++)
            for (int64_t c = 0; c < C; c++) dz[i * stride + c] = tile[c * count + i];
        return;
    }
    for (int64_t start = 0; start < C; start += count) {
        const int64_t c = start + count <= C ? start : C - count;
        Vector<Real> block[count];
        for (int64_t i = 0; i < count; i++) block[i] = load(tile + (c + i) * count);
        transpose<Real>(block);
        for (int64_t i = 0; i < rows; i++) store(dz + i * stride + c, block[i]);
    }
}

// Read a tile of ``rows`` rows (n, m), (n + 1, m), ... or, where rows have positions, (n, m),
// (n, m + 1), ... from an array. ``line`` has room for a tile.
template <class Real>
static void read_tile(const Array& from, bool transposed, int64_t n, int64_t m, int64_t rows,
                      int64_t C, Real* line, Real* tile) {
    constexpr int64_t count = Lanes<Real>::count;
    const int64_t start = n * from.row + m * from.position;
    const bool ready = from.dtype == dtype_of<Real>();
    if (transposed) {
        if (ready && from.column == 1) {
            to_tile((const Real*)from.data + start, from.row, rows, C, tile);
            return;
        }
        for (int64_t i = 0; i < rows; i++)
            read(from.data, from.dtype, start + i * from.row, from.column, C, line + i * C);
        to_tile(line, C, rows, C, tile);
        return;
    }
    for (int64_t c = 0; c < C; c++) {
        const int64_t at = start + c * from.column;
        Real* to = tile + c * count;
        if (ready && from.position == 1 && rows == count) {
            store(to, load((const Real*)from.data + at));
            continue;
        }
        read(from.data, from.dtype, at, from.position, rows, to);
        for (int64_t i = rows; i < count; i++) to[i] = to[rows - 1];
    }
}

template <class Real>
static void write_tile(const Real* tile, bool transposed, int64_t n, int64_t m, int64_t rows,
                       int64_t C, Real* line, const Array& to) {
    constexpr int64_t count = Lanes<Real>::count;
    const int64_t start = n * to.row + m * to.position;
    const bool ready = to.dtype == dtype_of<Real>();
    if (transposed) {
        if (ready && to.column == 1) {
            from_tile(tile, to.row, rows, C, (Real*)to.data + start);
            return;
        }
        from_tile(tile, C, rows, C, line);
        for (int64_t i = 0; i < rows; i++)
            write(line + i * C, C, to.data, to.dtype, start + i * to.row, to.column);
        return;
    }
    for (int64_t c = 0; c < C; c++) {
        const int64_t at = start + c * to.column;
        if (ready && to.position == 1 && rows == count)
            store((Real*)to.data + at, load(tile + c * count));
        else
            write(tile + c * count, rows, to.data, to.dtype, at, to.position);
    }
}

// What a chunk of rows adds up to.
struct Partial {
    double total = 0;
    int64_t wrong_row = -1;
};

constexpr int64_t BATCH = 4;  // tiles of few classes that are computed together

// Computes the tiles of a call, batch by batch.
template <class Real>
struct Tiles {
    typedef Vector<Real> V;
    static constexpr int64_t count = Lanes<Real>::count;
    const Shared<Real>& shared;
    const Rows& call;
    const int64_t C, M, batch, tiles_a_sample;
    const bool transposed;
    Real *line, *u_tiles;
    Tile<Real> tiles[BATCH];
    V totals;

    static int64_t batch_of(const Shared<Real>& shared) {
        return shared.transposes() && !shared.has_row_vectors() ? BATCH : 1;
    }
    static int64_t scratch_size(const Shared<Real>& shared) {
        return shared.call.classes * count * (batch_of(shared) + 2);
    }
    Tiles(const Shared<Real>& shared, Real* memory)
        : shared(shared),
          call(shared.call),
          C(call.classes),
          M(call.positions),
          batch(batch_of(shared)),
          tiles_a_sample((M + count - 1) / count),
          transposed(shared.transposes()),
          line(memory + batch * C * count),
          u_tiles(line + C * count),
          totals{} {
        for (int64_t k = 0; k < batch; k++) {
            tiles[k].e = memory + k * C * count;
            tiles[k].y = Int<Real>{};
            tiles[k].u_sum = broadcast((Real)shared.u_sum);
        }
    }

    TileVectors<Real> vectors() const {
        if (shared.has_row_vectors()) return {u_tiles, true};
        return {shared.u, false};
    }

    // Compute tiles [begin, end).
    void compute(int64_t begin, int64_t end, Partial& partial) {
        if (call.y && call.u.data)
            compute_with<true, true>(begin, end, partial);
        else if (call.y)
            compute_with<true, false>(begin, end, partial);
        else if (call.u.data)
            compute_with<false, true>(begin, end, partial);
        else
            compute_with<false, false>(begin, end, partial);
    }

    template <bool HAS_Y, bool HAS_U>
    void compute_with(int64_t begin, int64_t end, Partial& partial) {
        const bool wants_gradient = call.dz.data;
        for (int64_t unit = begin; unit < end; unit += batch) {
            const int64_t size = end - unit < batch ? end - unit : batch;
            for (int64_t k = 0; k < size; k++) {
                if (!read(unit + k, tiles[k], partial)) return;
                exponentials<Real, HAS_Y, HAS_U>(tiles[k], C, vectors(), shared.wants_lse(),
                                                 wants_gradient);
            }
            for (int64_t k = 0; k < size; k++) {
                row_numbers(tiles[k], HAS_Y);
                add_numbers(tiles[k]);
            }
            if (wants_gradient)
                for (int64_t k = 0; k < size; k++) {
                    Tile<Real>& t = tiles[k];
                    gradient<Real, HAS_Y, HAS_U>(t, C, vectors(), call.c.present,
                                                 call.c_is_gradient);
                    write_tile(t.e, transposed, t.n, t.m, t.rows, C, line, call.dz);
                }
            if (sizeof(Real) == 8 || (unit - begin) / batch % (8 / batch) == 8 / batch - 1) {
                partial.total += sum_in_double(totals);  // of 8 tiles
                totals = V{};
            }
        }
        partial.total += sum_in_double(totals);
    }

    // Read the logits, target and weights of a tile. Return whether its class indices are in range.
    bool read(int64_t unit, Tile<Real>& t, Partial& partial) {
        if (transposed) {
            t.n = t.first = unit * count, t.m = 0;
            t.rows = call.samples - t.n < count ? call.samples - t.n : count;
        } else {
            t.n = unit / tiles_a_sample, t.m = unit % tiles_a_sample * count;
            t.first = t.n * M + t.m;
            t.rows = M - t.m < count ? M - t.m : count;
        }
        if (call.y) {
            int64_t padded[count];  // lanes without a row repeat the last one
            const int64_t* y = call.y + t.first;
            if (t.rows < count) {
                for (int64_t i = 0; i < count; i++) padded[i] = y[i < t.rows ? i : t.rows - 1];
                y = padded;
            }
            if (!load_classes(y, C, &t.y)) {
                for (int64_t i = t.rows - 1; i >= 0; i--)
                    if ((uint64_t)y[i] >= (uint64_t)C) partial.wrong_row = t.first + i;
                return false;
            }
        }
        t.a = weights(call.a, t), t.b = weights(call.b, t), t.c = weights(call.c, t);
        read_tile(call.z, transposed, t.n, t.m, t.rows, C, line, t.e);
        if (shared.has_row_vectors()) {
            read_tile(call.u, transposed, t.n, t.m, t.rows, C, line, u_tiles);
            t.u_sum = V{};
            for (int64_t c = 0; c < C; c++) t.u_sum += load(u_tiles + c * count);
        }
        return true;
    }

    INLINE_MEMBER V weights(const Weight& w, const Tile<Real>& t) const {
        if (t.rows == count && !w.values) return broadcast((Real)w.value);
        Real lanes[count];
        for (int64_t i = 0; i < count; i++)
            lanes[i] = i < t.rows && w.present ? weight_of<Real>(w, t.first + i) : 0;
        return load(lanes);
    }

    // Add the weighted numbers of a tile to the totals, and write those that are wanted.
    INLINE_MEMBER void add_numbers(const Tile<Real>& t) {
        // A weight of 0 leaves out a row even where its numbers are infinite or NaN.
        if (call.a.present) totals += t.a == Real(0) ? V{} : t.a * t.nll;
        if (call.b.present) totals += t.b == Real(0) ? V{} : t.b * t.smooth;
        if (call.c.present) {
            V value = call.c_is_gradient ? t.lse : t.lse * t.lse;
            totals += t.c == Real(0) ? V{} : t.c * value;
        }
        if (call.nll) write_numbers(call.nll, t.nll, t);
        if (call.smooth) write_numbers(call.smooth, t.smooth, t);
        if (call.lse) write_numbers(call.lse, t.lse, t);
    }

    INLINE_MEMBER void write_numbers(void* to, V values, const Tile<Real>& t) {
        if (t.rows == count)
            store((Real*)to + t.first, values);
        else
            store_part((Real*)to + t.first, values, t.rows);
    }
};

// The largest of n numbers, -inf for none; NaN is passed over.
template <class Real>
INLINE Real largest(const Real* z, int64_t n) {
    constexpr int64_t count = Lanes<Real>::count;
    Vector<Real> m[4];
    for (int k = 0; k < 4; k++) m[k] = broadcast((Real)-INFINITY);
    int64_t c = 0;
    for (; c + 4 * count <= n; c += 4 * count)
        for (int k = 0; k < 4; k++) m[k] = maximum<Real>(load(z + c + k * count), m[k]);
    for (; c + count <= n; c += count) m[0] = maximum<Real>(load(z + c), m[0]);
    if (c < n) m[1] = maximum<Real>(load_part(z + c, n - c, (Real)-INFINITY), m[1]);
    return largest_lane<Real>(maximum<Real>(maximum<Real>(m[0], m[1]), maximum<Real>(m[2], m[3])));
}

// The exponentials of a row, written to ``e`` if it is not null, and their sums without class y.
// Sums of 128 vectors are added up in double.
template <class Real, bool STORES, bool HAS_U>
struct Sweep {
    static constexpr int64_t count = Lanes<Real>::count;
    typedef Vector<Real> V;
    const Real *z, *u;
    Real m;
    Real* e;
    const char* next;   // the next row, which is fetched while this one is computed
    int64_t next_size;  // bytes of one of its logits
    double others = 0, spread = 0;

    INLINE_MEMBER void vector(int64_t c, V& sum_of_e, V& sum_of_u) {
        __builtin_prefetch(next + c * next_size);
        V logits = load(z + c);
        V x = exp_nonpositive(logits - m);
        if (HAS_U) sum_of_u += load(u + c) * (m - logits);
        if (STORES) store(e + c, x);
        sum_of_e += x;
    }
    // Classes [c, end), a multiple of ``count`` many.
    void range(int64_t c, int64_t end) {
        while (c < end) {
            const int64_t stop = end - c < 128 * count ? end : c + 128 * count;
            V e0 = {}, e1 = {}, u0 = {}, u1 = {};
            for (; c + 2 * count <= stop; c += 2 * count) {
                vector(c, e0, u0);
                vector(c + count, e1, u1);
            }
            for (; c < stop; c += count) vector(c, e0, u0);
            others += sum_in_double(e0 + e1);
            if (HAS_U) spread += sum_in_double(u0 + u1);
        }
    }
    // n <= count classes from c on, of which y (perhaps) is left out of ``others``.
    void part(int64_t c, int64_t n, int64_t y) {
        V logits = load_part(z + c, n, (Real)-INFINITY);
        V x = exp_nonpositive(logits - m);
        if (STORES) store_part(e + c, x, n);
        typedef typename Lanes<Real>::Scalar Scalar;
        const Int<Real> lane = lane_numbers<Real>();
        others += sum_in_double(lane == (Scalar)(y - c) ? V{} : x);
        if (HAS_U) {
            V terms = load_part(u + c, n, Real(0)) * (m - logits);
            spread += sum_in_double(lane < (Scalar)n ? terms : V{});  // NaN beyond, from -inf
        }
    }
    void row(int64_t C, int64_t y) {
        const int64_t full = C / count * count;
        const int64_t at = y >= 0 && y < full ? y / count * count : full;
        range(0, at);
        if (at < full) {
            part(at, count, y);
            range(at + count, full);
        }
        if (full < C) part(full, C - full, y);
    }
};

template <class Real>
static void sweep(const Real* z, const Real* u, Real m, Real* e, int64_t C, int64_t y,
                  const char* next, int64_t next_size, double& others, double& spread) {
#define SWEEP(STORES, HAS_U)                                                \
    do {                                                                    \
        Sweep<Real, STORES, HAS_U> s = {z, u, m, e, next, next_size, 0, 0}; \
        s.row(C, y);                                                        \
        others = s.others, spread = s.spread;                               \
    } while (0)
    if (e && u)
        SWEEP(true, true);
    else if (e)
        SWEEP(true, false);
    else if (u)
        SWEEP(false, true);
    else
        SWEEP(false, false);
#undef SWEEP
}

// dz = factor e - b u, in place; u may be null.
template <class Real>
static void scale_row(Real* e, int64_t C, Real factor, const Real* u, Real b) {
    constexpr int64_t count = Lanes<Real>::count;
    int64_t c = 0;
    if (u) {
        for (; c + count <= C; c += count) store(e + c, factor * load(e + c) - b * load(u + c));
        for (; c < C; c++) e[c] = factor * e[c] - b * u[c];
    } else {
        for (; c + count <= C; c += count) store(e + c, factor * load(e + c));
        for (; c < C; c++) e[c] *= factor;
    }
}

// Convert a row of bfloat16 to float, and return its largest number; NaN is passed over.
INLINE float largest_of_bfloat16(const uint16_t* z, int64_t n, float* line) {
    constexpr int64_t count = Lanes<float>::count;
    Vector<float> m = broadcast(-INFINITY), m2 = m;
    int64_t c = 0;
    for (; c + 2 * count <= n; c += 2 * count) {
        Vector<float> v = of_bfloat16(load_halves(z + c));
        Vector<float> v2 = of_bfloat16(load_halves(z + c + count));
        store(line + c, v);
        store(line + c + count, v2);
        m = maximum<float>(v, m);
        m2 = maximum<float>(v2, m2);
    }
    from_halves<true>(z + c, n - c, line + c);
    const float best = largest_lane<float>(maximum<float>(m, m2)), rest = largest(line + c, n - c);
    return rest > best ? rest : best;
}

// Write factor e in bfloat16, for a finite factor.
INLINE void scale_to_bfloat16(const float* e, int64_t n, float factor, uint16_t* dz) {
    constexpr int64_t count = Lanes<float>::count;
    int64_t c = 0;
    for (; c + count <= n; c += count) {
        Bits bits = number_to_bfloat16(factor * load(e + c));
        *(LooseHalves*)(dz + c) = __builtin_convertvector(bits, Halves);
    }
    if (c == n) return;
    Bits bits = number_to_bfloat16(factor * load_part(e + c, n - c, 0.0f));
    uint16_t halves[count];
    *(LooseHalves*)halves = __builtin_convertvector(bits, Halves);
    for (int64_t i = 0; i < n - c; i++) dz[c + i] = halves[i];
}

// Compute rows [begin, end) of a call whose classes are adjacent.
template <class Real>
static void compute_rows(const Shared<Real>& shared, int64_t begin, int64_t end, Real* memory,
                         Partial& partial) {
    const Rows& call = shared.call;
    const int64_t C = call.classes;
    Real *line = memory, *u_line = memory + C;
    const bool wants_lse = shared.wants_lse(), wants_gradient = call.dz.data;
    const bool z_ready = call.z.dtype == dtype_of<Real>() && call.z.column == 1;
    const bool dz_ready = call.dz.dtype == dtype_of<Real>() && call.dz.column == 1;
    const int64_t z_size = size_of(call.z.dtype);
    for (int64_t n = begin; n < end; n++) {
        const int64_t y = call.y ? call.y[n] : -1;
        if (call.y && (uint64_t)y >= (uint64_t)C) {
            partial.wrong_row = n;
            return;
        }
        const Real* z = (const Real*)call.z.data + n * call.z.row;
        const bool z_brain = call.z.dtype == BFLOAT16 && call.z.column == 1;
        Real m = 0;
        if (z_brain) {
            m = largest_of_bfloat16((const uint16_t*)call.z.data + n * call.z.row, C, (float*)line);
            z = line;
        } else {
            if (!z_ready) {
                read(call.z.data, call.z.dtype, n * call.z.row, call.z.column, C, line);
                z = line;
            }
            m = largest(z, C);
        }
        const Real* u = shared.u;
        double u_sum = shared.u_sum;
        if (shared.has_row_vectors()) {
            u = u_line;
            read(call.u.data, call.u.dtype, n * call.u.row, call.u.column, C, u_line);
            u_sum = 0;
            for (int64_t c = 0; c < C; c++) u_sum += u_line[c];
        }
        double instead = m;
        if (wants_lse && m - m != 0)
            for (int64_t c = 0; c < C; c++)
                if (z[c] != z[c]) instead = z[c];
        const double z_y = y >= 0 ? (double)z[y] : 0;  // read first: e may overwrite z
        const double u_y = u && y >= 0 ? (double)u[y] : 0;
        Real* e = nullptr;
        if (wants_gradient) e = dz_ready ? (Real*)call.dz.data + n * call.dz.row : line;
        double others, spread;
        const char* next =
            (const char*)call.z.data + (n + 1 < end ? n + 1 : n) * call.z.row * z_size;
        sweep(z, u, m, e, C, y, next, call.z.column == 1 ? z_size : 0, others, spread);

        const double distance = (double)m - z_y;
        const double e_y = y >= 0 ? exp(z_y - (double)m) : 0;
        double rest = others - 1;
        if (y >= 0) rest = distance == 0 ? others : others + (e_y - 1);
        const double log_s = log1p(rest);
        const double nll = distance + log_s, smooth = u_sum * log_s + spread;
        const double lse = m - m != 0 ? instead : m + log_s;
        const double a = call.a.present ? weight_of<Real>(call.a, n) : 0;
        const double b = call.b.present ? weight_of<Real>(call.b, n) : 0;
        const double c = call.c.present ? weight_of<Real>(call.c, n) : 0;
        // A weight of 0 leaves out a row even where its numbers are infinite or NaN.
        if (a != 0) partial.total += a * nll;
        if (b != 0) partial.total += b * smooth;
        if (c != 0) partial.total += c * (call.c_is_gradient ? lse : lse * lse);
        if (call.nll) ((Real*)call.nll)[n] = (Real)nll;
        if (call.smooth) ((Real*)call.smooth)[n] = (Real)smooth;
        if (call.lse) ((Real*)call.lse)[n] = (Real)lse;
        if (!wants_gradient) continue;

        double common = u ? b * u_sum : 0;
        if (call.c.present) common += call.c_is_gradient ? c : 2 * c * lse;
        const double s = others + e_y;
        const Real factor = (Real)((y >= 0 ? a + common : common) / s);
        Real at_y = (Real)((common * e_y - a * others) / s - b * u_y);
        const Array& dz = call.dz;
        if (dz.dtype == BFLOAT16 && dz.column == 1 && !call.b.present && factor - factor == 0) {
            scale_to_bfloat16((const float*)e, C, (float)factor, (uint16_t*)dz.data + n * dz.row);
            if (y >= 0) write(&at_y, 1, dz.data, dz.dtype, n * dz.row + y, 1);
            continue;
        }
        scale_row(e, C, factor, call.b.present ? u : nullptr, (Real)b);
        if (y >= 0) e[y] = at_y;
        if (!dz_ready) write(e, C, dz.data, dz.dtype, n * dz.row, dz.column);
    }
}

// The numbers of scratch that a chunk needs.
template <class Real>
static int64_t scratch_size(const Shared<Real>& shared) {
    return shared.tiles() ? Tiles<Real>::scratch_size(shared) : 2 * shared.call.classes;
}

// Units of work: tiles or rows.
template <class Real>
static int64_t units_of(const Shared<Real>& shared) {
    constexpr int64_t count = Lanes<Real>::count;
    const Rows& call = shared.call;
    if (!shared.tiles()) return call.samples;
    if (shared.transposes()) return (call.samples + count - 1) / count;
    return call.samples * ((call.positions + count - 1) / count);
}

template <class Real>
static void compute(const Shared<Real>& shared, int64_t begin, int64_t end, Real* memory,
                    Partial& partial) {
    if (shared.tiles())
        Tiles<Real>(shared, memory).compute(begin, end, partial);
    else
        compute_rows(shared, begin, end, memory, partial);
}

template <class Real>
struct RowsJob {
    const Shared<Real>& shared;
    int64_t units, chunks;
    Partial partials[MOST_CHUNKS];
    bool out_of_memory;

    static void run(void* self, int64_t chunk) {
        RowsJob& job = *(RowsJob*)self;
        Memory memory(scratch_size(job.shared) * sizeof(Real));
        if (!memory.data) {
            job.out_of_memory = true;
            return;
        }
        compute(job.shared, chunk_start(job.units, job.chunks, chunk),
                chunk_start(job.units, job.chunks, chunk + 1), (Real*)memory.data,
                job.partials[chunk]);
    }
};

constexpr int64_t CHUNK_ELEMENTS = 1 << 15;  // logits of a chunk: some 20 us

template <class Real>
static int64_t rows_call(Rows& call) {
    call.total = 0, call.wrong_row = -1;
    Shared<Real> shared(call);
    if (call.u.data && shared.has_class_vector() && !shared.u) return OUT_OF_MEMORY;
    RowsJob<Real> job = {shared, units_of(shared), 1, {}, false};
    const int64_t elements = call.samples * call.classes * call.positions;
    if (elements == 0) return DONE;
    job.chunks = elements / CHUNK_ELEMENTS;
    if (job.chunks > MOST_CHUNKS) job.chunks = MOST_CHUNKS;
    // Long rows make chunks of several, so that the next one can be fetched ahead.
    const int64_t most = job.units >= 128 ? job.units / 8 : job.units;
    if (job.chunks > most) job.chunks = most;
    if (job.chunks < 1) job.chunks = 1;
    softmax_torch_parallel(job.chunks, call.threads, RowsJob<Real>::run, &job);
    if (job.out_of_memory) return OUT_OF_MEMORY;
    for (int64_t i = 0; i < job.chunks; i++) {
        call.total += job.partials[i].total;
        if (job.partials[i].wrong_row >= 0 && call.wrong_row < 0)
            call.wrong_row = job.partials[i].wrong_row;
    }
    return call.wrong_row >= 0 ? WRONG_CLASS : DONE;
}

}  // namespace SOFTMAX_TORCH_ISA

// Matrix products with few columns, on a block of rows that lies in the cache:
//
//     z = x W^T        G += r^T x        dx = r W
//
// x is (rows, d), W and G are (columns, d), z and r (rows, columns); d is a multiple of the lanes
// of a vector. Each product holds a small block of its result in registers: BLOCK of the columns,
// and as many rows or vectors as keep both multipliers of the processor busy.
#pragma once

#include "parallel.h"
#include "vectors.h"

namespace SOFTMAX_TORCH_ISA {

// 32 vector registers, where AVX2 and SSE have 16.
#if defined(__AVX512F__) || !defined(__x86_64__)
constexpr bool MANY_REGISTERS = true;
#else
constexpr bool MANY_REGISTERS = false;
#endif
// Columns of a block, at most. A wider one reads x fewer times: 5% of a pass at 60000 x 784 x 10.
constexpr int BLOCK = MANY_REGISTERS ? 10 : 5;

// Rows of a block of z with this many columns: rows x columns sums, plus the operands, in
// registers.
constexpr int block_rows(int columns) {
    if (MANY_REGISTERS) return columns <= 2 ? 8 : columns <= 6 ? 4 : 2;
    return columns <= 1 ? 8 : columns <= 3 ? 4 : 2;
}
// Vectors of a block of G with this many columns.
constexpr int block_vectors(int columns) { return MANY_REGISTERS && columns <= 6 ? 4 : 2; }

// Fetch the memory of VECTORS vectors.
template <class Real, int VECTORS>
INLINE void prefetch(const Real* p) {
    constexpr int lines = (VECTORS * BYTES + 63) / 64;
    for (int i = 0; i < lines; i++) __builtin_prefetch(p + i * (64 / (int)sizeof(Real)));
}

// Keep the compiler from loading a vector again for each use: that would take more loads than the
// processor has time for.
#if defined(__AVX512F__)
#define KEEP_IN_REGISTER(v) asm("" : "+v"(v))
#elif defined(__x86_64__)
#define KEEP_IN_REGISTER(v) asm("" : "+x"(v))
#elif defined(__aarch64__)
#define KEEP_IN_REGISTER(v) asm("" : "+w"(v))
#else
#define KEEP_IN_REGISTER(v) (void)(v)
#endif

// z = x W^T of a block.
template <class Real, int ROWS, int COLUMNS>
INLINE void dot_block(const Real* x, int64_t x_stride, const Real* w, int64_t w_stride, int64_t d,
                      Real* z, int64_t z_stride) {
    typedef Vector<Real> V;
    constexpr int64_t count = Lanes<Real>::count;
    constexpr int64_t line = 64 / (int64_t)sizeof(Real);
    V sums[ROWS][COLUMNS] = {};
    for (int64_t k = 0; k < d; k += count) {
        if (count >= line || k % line == 0)
            for (int i = 0; i < ROWS; i++) __builtin_prefetch(x + (i + 2 * ROWS) * x_stride + k);
        V w_k[COLUMNS];
        for (int j = 0; j < COLUMNS; j++) {
            w_k[j] = load(w + j * w_stride + k);
            KEEP_IN_REGISTER(w_k[j]);
        }
        for (int i = 0; i < ROWS; i++) {
            V x_k = load(x + i * x_stride + k);
            for (int j = 0; j < COLUMNS; j++) sums[i][j] += x_k * w_k[j];
        }
    }
    double totals[ROWS][COLUMNS];
    sums_in_double<Real, ROWS * COLUMNS>(&sums[0][0], &totals[0][0]);
    for (int i = 0; i < ROWS; i++)
        for (int j = 0; j < COLUMNS; j++) z[i * z_stride + j] = (Real)totals[i][j];
}

template <class Real, int COLUMNS>
static void dot_columns(const Real* x, int64_t x_stride, int64_t rows, const Real* w,
                        int64_t w_stride, int64_t d, Real* z, int64_t z_stride) {
    constexpr int ROWS = block_rows(COLUMNS);
    int64_t i = 0;
    for (; i + ROWS <= rows; i += ROWS)
        dot_block<Real, ROWS, COLUMNS>(x + i * x_stride, x_stride, w, w_stride, d, z + i * z_stride,
                                       z_stride);
    for (; i < rows; i++)
        dot_block<Real, 1, COLUMNS>(x + i * x_stride, x_stride, w, w_stride, d, z + i * z_stride,
                                    z_stride);
}

// Call f(size) with a size of at most BLOCK as a type.
template <int SIZE = BLOCK, class Function>
INLINE void with_size(int64_t size, const Function& f) {
    if (size == SIZE)
        f(std::integral_constant<int, SIZE>());
    else if constexpr (SIZE > 1)
        with_size<SIZE - 1>(size, f);
}

// Call f(start, size) for each of the fewest blocks that make up ``columns``.
template <class Function>
INLINE void for_column_blocks(int64_t columns, const Function& f) {
    const int64_t blocks = (columns + BLOCK - 1) / BLOCK;
    for (int64_t b = 0; b < blocks; b++) {
        const int64_t start = chunk_start(columns, blocks, b);
        with_size(chunk_start(columns, blocks, b + 1) - start, [&](auto size) { f(start, size); });
    }
}

// z = x W^T
template <class Real>
static void dot(const Real* x, int64_t x_stride, int64_t rows, const Real* w, int64_t w_stride,
                int64_t d, int64_t columns, Real* z, int64_t z_stride) {
    for_column_blocks(columns, [&](int64_t j, auto size) {
        dot_columns<Real, size()>(x, x_stride, rows, w + j * w_stride, w_stride, d, z + j,
                                  z_stride);
    });
}

// VECTORS vectors of COLUMNS columns of G += r^T x, from x and G at the same feature. Every second
// row of the tile that follows x is fetched meanwhile; ``dot_block`` fetches the others. Memory
// would have nothing to do during this product: 15% of a pass at 60000 x 784 x 10.
template <class Real, int COLUMNS, int VECTORS>
INLINE void outer_block(const Real* x, int64_t x_stride, int64_t rows, const Real* r,
                        int64_t r_stride, Real* g, int64_t g_stride) {
    typedef Vector<Real> V;
    constexpr int64_t count = Lanes<Real>::count;
    V sums[COLUMNS][VECTORS];
    for (int j = 0; j < COLUMNS; j++)
        for (int v = 0; v < VECTORS; v++) sums[j][v] = load(g + j * g_stride + v * count);
    for (int64_t i = 0; i < rows; i++) {
        V x_i[VECTORS];
        if (i % 2) prefetch<Real, VECTORS>(x + (i + rows) * x_stride);
        for (int v = 0; v < VECTORS; v++) x_i[v] = load(x + i * x_stride + v * count);
        for (int j = 0; j < COLUMNS; j++) {
            V r_ij = broadcast(r[i * r_stride + j]);
            for (int v = 0; v < VECTORS; v++) sums[j][v] += r_ij * x_i[v];
        }
    }
    for (int j = 0; j < COLUMNS; j++)
        for (int v = 0; v < VECTORS; v++) store(g + j * g_stride + v * count, sums[j][v]);
}

template <class Real, int COLUMNS>
static void outer_columns(const Real* x, int64_t x_stride, int64_t rows, const Real* r,
                          int64_t r_stride, int64_t d, Real* g, int64_t g_stride) {
    constexpr int VECTORS = block_vectors(COLUMNS);
    constexpr int64_t count = Lanes<Real>::count, wide = VECTORS * count;
    int64_t k = 0;
    for (; k + wide <= d; k += wide)
        outer_block<Real, COLUMNS, VECTORS>(x + k, x_stride, rows, r, r_stride, g + k, g_stride);
    for (; k < d; k += count)
        outer_block<Real, COLUMNS, 1>(x + k, x_stride, rows, r, r_stride, g + k, g_stride);
}

// G += r^T x
template <class Real>
static void add_outer(const Real* x, int64_t x_stride, int64_t rows, const Real* r,
                      int64_t r_stride, int64_t columns, int64_t d, Real* g, int64_t g_stride) {
    for_column_blocks(columns, [&](int64_t j, auto size) {
        outer_columns<Real, size()>(x, x_stride, rows, r + j, r_stride, d, g + j * g_stride,
                                    g_stride);
    });
}

// VECTORS vectors of ROWS rows of dx = r W.
template <class Real, int ROWS, int VECTORS>
INLINE void back_block(const Real* r, int64_t r_stride, const Real* w, int64_t w_stride,
                       int64_t columns, Real* dx, int64_t dx_stride) {
    typedef Vector<Real> V;
    constexpr int64_t count = Lanes<Real>::count;
    V sums[ROWS][VECTORS] = {};
    for (int64_t j = 0; j < columns; j++) {
        V w_j[VECTORS];
        for (int v = 0; v < VECTORS; v++) w_j[v] = load(w + j * w_stride + v * count);
        for (int i = 0; i < ROWS; i++) {
            V r_ij = broadcast(r[i * r_stride + j]);
            for (int v = 0; v < VECTORS; v++) sums[i][v] += r_ij * w_j[v];
        }
    }
    for (int i = 0; i < ROWS; i++)
        for (int v = 0; v < VECTORS; v++) store(dx + i * dx_stride + v * count, sums[i][v]);
}

template <class Real, int ROWS>
INLINE void back_rows(const Real* r, int64_t r_stride, const Real* w, int64_t w_stride,
                      int64_t columns, int64_t d, Real* dx, int64_t dx_stride) {
    constexpr int64_t count = Lanes<Real>::count;
    int64_t k = 0;
    for (; k + 2 * count <= d; k += 2 * count)
        back_block<Real, ROWS, 2>(r, r_stride, w + k, w_stride, columns, dx + k, dx_stride);
    for (; k < d; k += count)
        back_block<Real, ROWS, 1>(r, r_stride, w + k, w_stride, columns, dx + k, dx_stride);
}

// dx = r W
template <class Real>
static void back(const Real* r, int64_t r_stride, int64_t rows, const Real* w, int64_t w_stride,
                 int64_t columns, int64_t d, Real* dx, int64_t dx_stride) {
    int64_t i = 0;
    for (; i + 4 <= rows; i += 4)
        back_rows<Real, 4>(r + i * r_stride, r_stride, w, w_stride, columns, d, dx + i * dx_stride,
                           dx_stride);
    for (; i < rows; i++)
        back_rows<Real, 1>(r + i * r_stride, r_stride, w, w_stride, columns, d, dx + i * dx_stride,
                           dx_stride);
}

// The same two products for rows in CSR. A column of W^T, and a row of G, are VECTORS adjacent
// vectors: the lanes are columns.

// The entries of a row.
template <class Value>
struct SparseRow {
    const Value* values;
    const int32_t* col;
    int64_t entries;
    bool squared;

    SparseRow(const Samples& samples, int64_t row)
        : values((const Value*)samples.x + samples.crow[row]),
          col(samples.col + samples.crow[row]),
          entries(samples.crow[row + 1] - samples.crow[row]),
          squared(samples.squared) {}
    template <class Real>
    INLINE_MEMBER Real value(int64_t k) const {
        const Real x = (Real)values[k];
        return squared ? x * x : x;
    }
};

template <class Real, class Value, int VECTORS>
INLINE void dot_vectors(const SparseRow<Value>& row, const Real* wt, int64_t stride, Real* z) {
    typedef Vector<Real> V;
    constexpr int64_t count = Lanes<Real>::count;
    constexpr int WAYS = VECTORS == 1 ? 4 : 2;  // sums that do not wait for each other
    V sums[WAYS][VECTORS] = {};
    int64_t k = 0;
    for (; k + WAYS <= row.entries; k += WAYS)
        for (int way = 0; way < WAYS; way++) {
            const Real x = row.template value<Real>(k + way);
            const Real* w = wt + row.col[k + way] * stride;
            for (int v = 0; v < VECTORS; v++) sums[way][v] += x * load(w + v * count);
        }
    for (; k < row.entries; k++) {
        const Real x = row.template value<Real>(k);
        const Real* w = wt + row.col[k] * stride;
        for (int v = 0; v < VECTORS; v++) sums[0][v] += x * load(w + v * count);
    }
    for (int v = 0; v < VECTORS; v++) {
        for (int way = 1; way < WAYS; way++) sums[0][v] += sums[way][v];
        store(z + v * count, sums[0][v]);
    }
}

template <class Real, class Value, int VECTORS>
INLINE void add_outer_vectors(const SparseRow<Value>& row, const Real* r, int64_t stride,
                              Real* gt) {
    typedef Vector<Real> V;
    constexpr int64_t count = Lanes<Real>::count;
    V r_v[VECTORS];
    for (int v = 0; v < VECTORS; v++) r_v[v] = load(r + v * count);
    for (int64_t k = 0; k < row.entries; k++) {
        const Real x = row.template value<Real>(k);
        Real* g = gt + row.col[k] * stride;
        for (int v = 0; v < VECTORS; v++) store(g + v * count, load(g + v * count) + x * r_v[v]);
    }
}

// z = x W^T of a sparse row, from W^T (d, stride).
template <class Real, class Value>
static void sparse_dot(const SparseRow<Value>& row, const Real* wt, int64_t stride, Real* z) {
    constexpr int64_t two = 2 * Lanes<Real>::count;
    int64_t v = 0;
    for (; v + two <= stride; v += two) dot_vectors<Real, Value, 2>(row, wt + v, stride, z + v);
    if (v < stride) dot_vectors<Real, Value, 1>(row, wt + v, stride, z + v);
}

// G^T += x^T r of a sparse row, into G^T (d, stride).
template <class Real, class Value>
static void add_sparse_outer(const SparseRow<Value>& row, const Real* r, int64_t stride, Real* gt) {
    constexpr int64_t two = 2 * Lanes<Real>::count;
    int64_t v = 0;
    for (; v + two <= stride; v += two)
        add_outer_vectors<Real, Value, 2>(row, r + v, stride, gt + v);
    if (v < stride) add_outer_vectors<Real, Value, 1>(row, r + v, stride, gt + v);
}

}  // namespace SOFTMAX_TORCH_ISA

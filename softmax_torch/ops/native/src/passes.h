// Passes over samples: every row of X is read once, for both of its products.
//
// A tile of rows stays in the second-level cache from the logits to the gradient. A chunk of tiles
// adds up its gradient in Real, and some FLUSH_ROWS rows of it in double. How rows are split into
// chunks depends on sizes alone: the results have the same bits for any number of threads.
#pragma once

#include "products.h"
#include "rows.h"

namespace SOFTMAX_TORCH_ISA {

constexpr int64_t TILE_BYTES = 128 << 10;
constexpr int64_t FLUSH_ROWS = 256;
constexpr int64_t FLUSH_WORK = 8;              // entries for each number of the gradient, at least
constexpr int64_t CHUNK_WORK = 1 << 20;        // multiplications of a chunk, at least: some 100 us
constexpr int64_t CHUNK_ROWS = 256;            // rows of a chunk, at least
constexpr int64_t PASS_CHUNKS = 64;            // chunks of a pass, at most
constexpr int64_t GRADIENT_NUMBERS = 1 << 24;  // numbers of the gradients of all chunks, at most

INLINE int64_t rounded_up(int64_t n, int64_t step) { return (n + step - 1) / step * step; }

// The sizes of a pass, and the memory of its parts.
template <class Real>
struct Plan {
    static constexpr int64_t count = Lanes<Real>::count;
    const Pass& pass;
    const bool sparse, converts, wants_gradient;
    const int64_t n, d, columns;
    const int64_t width;   // numbers of a row of x, padded with zeros to whole vectors
    const int64_t stride;  // numbers of a row of z
    const int64_t tile_rows;
    const int64_t gradient;  // numbers of a gradient, with the bias at its end
    int64_t chunks;

    explicit Plan(const Pass& pass)
        : pass(pass),
          sparse(pass.samples.crow),
          converts(pass.samples.dtype != dtype_of<Real>() || pass.samples.offset ||
                   pass.samples.squared || pass.samples.d % count),
          wants_gradient(pass.dweight),
          n(pass.samples.n),
          d(pass.samples.d),
          columns(pass.columns),
          width(rounded_up(pass.samples.d, count)),
          stride(sparse ? rounded_up(pass.columns, count) : pass.columns),
          tile_rows(sparse ? 64 : tile_rows_of(width)),
          gradient(sparse ? (d + 1) * stride : columns * width + columns) {
        const int64_t entries = sparse ? pass.samples.crow[n] - pass.samples.crow[0] : n * width;
        chunks = entries * columns / CHUNK_WORK;
        if (chunks > PASS_CHUNKS) chunks = PASS_CHUNKS;
        if (chunks > n / CHUNK_ROWS) chunks = n / CHUNK_ROWS;
        if (chunks > GRADIENT_NUMBERS / gradient) chunks = GRADIENT_NUMBERS / gradient;
        if (chunks < 1) chunks = 1;
    }
    static int64_t tile_rows_of(int64_t width) {
        if (width == 0) return 256;
        const int64_t rows = TILE_BYTES / (width * (int64_t)sizeof(Real)) / 16 * 16;
        return rows < 16 ? 16 : rows > 256 ? 256 : rows;
    }
    int64_t sets() const { return pass.middle == LOSS ? columns / pass.rows.classes : 0; }
};

template <class Real>
struct PassJob {
    typedef Vector<Real> V;
    static constexpr int64_t count = Lanes<Real>::count;
    const Plan<Real>& plan;
    const Shared<Real>& shared;
    const Real* w;  // (columns, width), or transposed (d, stride) for sparse rows
    int64_t w_stride;
    double *gradients, *totals;  // of each chunk
    int64_t wrong_rows[PASS_CHUNKS];
    bool out_of_memory;

    static void run(void* self, int64_t chunk) { ((PassJob*)self)->compute_chunk(chunk); }

    void compute_chunk(int64_t chunk) {
        const Plan<Real>& p = plan;
        const int64_t x_size = p.sparse ? 0 : p.tile_rows * p.width;
        const int64_t z_size = p.tile_rows * p.stride + count;
        const int64_t g_size = p.wants_gradient ? rounded_up(p.gradient, count) : 0;
        const int64_t scratch = p.pass.middle == LOSS ? scratch_size(shared) : 0;
        Memory memory((x_size + z_size + g_size + scratch) * (int64_t)sizeof(Real));
        wrong_rows[chunk] = -1;
        if (!memory.data) {
            out_of_memory = true;
            return;
        }
        Real* x = (Real*)memory.data;
        Real *g = x + x_size, *z = g + g_size, *rest = z + z_size;
        double* gradient = gradients + chunk * p.gradient;
        memset(z, 0, z_size * sizeof(Real));
        if (p.wants_gradient) {
            memset(g, 0, p.gradient * sizeof(Real));
            memset(gradient, 0, p.gradient * sizeof(double));
        }
        const int64_t end = chunk_start(p.n, p.chunks, chunk + 1);
        const int64_t* crow = p.pass.samples.crow;
        int64_t unflushed =
            chunk_start(p.n, p.chunks, chunk);  // the first row that is not in double
        for (int64_t first = chunk_start(p.n, p.chunks, chunk); first < end; first += p.tile_rows) {
            const int64_t rows = end - first < p.tile_rows ? end - first : p.tile_rows;
            if (!compute_tile_of_rows(first, rows, x, z, g, rest, chunk)) return;
            if (!p.wants_gradient) continue;
            const int64_t next = first + rows;
            const bool pays = !crow || crow[next] - crow[unflushed] >= FLUSH_WORK * p.gradient;
            if (next == end || (pays && next - unflushed >= FLUSH_ROWS)) {
                for (int64_t i = 0; i < p.gradient; i++) gradient[i] += g[i];
                memset(g, 0, p.gradient * sizeof(Real));
                unflushed = next;
            }
        }
    }

    bool compute_tile_of_rows(int64_t first, int64_t rows, Real* x_tile, Real* z, Real* g,
                              Real* scratch, int64_t chunk) {
        const Plan<Real>& p = plan;
        const Pass& pass = p.pass;
        const Real* x = nullptr;
        int64_t x_stride = p.width;
        const bool reads_dense = !p.sparse && (pass.middle != RESIDUALS || p.wants_gradient);
        if (reads_dense && p.converts) {
            for (int64_t i = 0; i < rows; i++) convert_row(first + i, x_tile + i * p.width);
            x = x_tile;
        } else if (reads_dense) {
            x_stride = pass.samples.stride;
            x = (const Real*)pass.samples.x + first * x_stride;
        }
        if (pass.middle == RESIDUALS) {
            const Real* r = (const Real*)pass.p + first * p.columns;
            for (int64_t i = 0; i < rows; i++)
                memcpy(z + i * p.stride, r + i * p.columns, p.columns * sizeof(Real));
        } else {
            if (p.sparse)
                for (int64_t i = 0; i < rows; i++) sparse_logits(first + i, z + i * p.stride);
            else
                dot(x, x_stride, rows, w, w_stride, p.width, p.columns, z, p.stride);
            if (pass.bias)
                for (int64_t j = 0; j < p.columns; j++) {
                    const Real bias = ((const Real*)pass.bias)[j * pass.bias_stride];
                    for (int64_t i = 0; i < rows; i++) z[i * p.stride + j] += bias;
                }
            if (pass.z)
                for (int64_t i = 0; i < rows; i++)
                    memcpy((Real*)pass.z + (first + i) * p.columns, z + i * p.stride,
                           p.columns * sizeof(Real));
        }
        if (pass.middle == LOSS && !add_loss(first, rows, z, scratch, chunk)) return false;
        if (pass.middle == HESSIAN) multiply_by_hessian(first, rows, z);
        if (p.wants_gradient) add_gradient(first, rows, x, x_stride, z, g);
        if (pass.dx) {
            Real* dx = (Real*)pass.dx + first * pass.dx_stride;
            if (p.width == p.d) {
                back(z, p.stride, rows, w, w_stride, p.columns, p.width, dx, pass.dx_stride);
            } else {
                back(z, p.stride, rows, w, w_stride, p.columns, p.width, x_tile, p.width);
                for (int64_t i = 0; i < rows; i++)
                    memcpy(dx + i * pass.dx_stride, x_tile + i * p.width, p.d * sizeof(Real));
            }
        }
        return true;
    }

    void convert_row(int64_t row, Real* to) {
        const Samples& s = plan.pass.samples;
        read(s.x, s.dtype, row * s.stride, 1, s.d, to);
        if (s.offset && sizeof(Real) == 8)
            for (int64_t k = 0; k < s.d; k++) to[k] -= (Real)s.offset[k];
        else if (s.offset)  // in double, before anything is rounded
            for (int64_t k = 0; k < s.d; k++) {
                double x;
                read(s.x, s.dtype, row * s.stride + k, 1, 1, &x);
                to[k] = (Real)(x - s.offset[k]);
            }
        if (s.squared)
            for (int64_t k = 0; k < s.d; k++) to[k] *= to[k];
        for (int64_t k = s.d; k < plan.width; k++) to[k] = 0;
    }

    void sparse_logits(int64_t row, Real* z) {
        const Samples& s = plan.pass.samples;
        if (s.dtype == FLOAT64)
            sparse_dot(SparseRow<double>(s, row), w, plan.stride, z);
        else
            sparse_dot(SparseRow<float>(s, row), w, plan.stride, z);
    }

    // Turn the logits of each set of classes into the gradient of its weighted sum.
    bool add_loss(int64_t first, int64_t rows, Real* z, Real* scratch, int64_t chunk) {
        Rows call = plan.pass.rows;
        call.samples = rows;
        call.y = call.y ? call.y + first : nullptr;
        for (Weight* w : {&call.a, &call.b, &call.c})
            if (w->values) w->values = (const Real*)w->values + first;
        if (shared.has_row_vectors()) {
            call.u.data = (char*)call.u.data + first * call.u.row * size_of(call.u.dtype);
        }
        for (int64_t set = 0; set < plan.sets(); set++) {
            call.z = {z + set * call.classes, dtype_of<Real>(), plan.stride, 1, 0};
            if (plan.wants_gradient || plan.pass.dx) call.dz = call.z;
            const Shared<Real> of_tile(call, shared);
            Partial partial;
            compute(of_tile, 0, units_of(of_tile), scratch, partial);
            if (partial.wrong_row >= 0) {
                wrong_rows[chunk] = first + partial.wrong_row;
                return false;
            }
            totals[chunk * plan.sets() + set] += partial.total;
        }
        return true;
    }

    void multiply_by_hessian(int64_t first, int64_t rows, Real* z) {
        const int64_t K = plan.columns;
        for (int64_t i = 0; i < rows; i++) {
            const Real* p = (const Real*)plan.pass.p + (first + i) * K;
            Real* r = z + i * plan.stride;
            Real total = 0;
            for (int64_t k = 0; k < K; k++) {
                r[k] *= p[k];
                total += r[k];
            }
            const Real weight = weight_of<Real>(plan.pass.rows.a, first + i);
            for (int64_t k = 0; k < K; k++) r[k] = weight * (r[k] - p[k] * total);
        }
    }

    void add_gradient(int64_t first, int64_t rows, const Real* x, int64_t x_stride, const Real* r,
                      Real* g) {
        const Plan<Real>& p = plan;
        if (!p.sparse) {
            add_outer(x, x_stride, rows, r, p.stride, p.columns, p.width, g, p.width);
            Real* g_bias = g + p.columns * p.width;
            for (int64_t j = 0; j < p.columns; j++) {
                Real total = 0;
                for (int64_t i = 0; i < rows; i++) total += r[i * p.stride + j];
                g_bias[j] += total;
            }
            return;
        }
        const Samples& s = p.pass.samples;
        Real* g_bias = g + p.d * p.stride;
        for (int64_t i = 0; i < rows; i++) {
            const Real* r_i = r + i * p.stride;
            if (s.dtype == FLOAT64)
                add_sparse_outer(SparseRow<double>(s, first + i), r_i, p.stride, g);
            else
                add_sparse_outer(SparseRow<float>(s, first + i), r_i, p.stride, g);
            for (int64_t v = 0; v < p.stride; v += count)
                store(g_bias + v, load(g_bias + v) + load(r_i + v));
        }
    }
};

// Copy W into the layout of a plan: rows padded with zeros, or transposed for sparse rows.
template <class Real>
static void pack(const Plan<Real>& plan, Real* to) {
    const Pass& pass = plan.pass;
    const Real* w = (const Real*)pass.weight;
    if (plan.sparse) {
        for (int64_t k = 0; k < plan.d; k++)
            for (int64_t j = 0; j < plan.stride; j++)
                to[k * plan.stride + j] = j < plan.columns ? w[j * pass.weight_stride + k] : 0;
        return;
    }
    for (int64_t j = 0; j < plan.columns; j++) {
        memcpy(to + j * plan.width, w + j * pass.weight_stride, plan.d * sizeof(Real));
        for (int64_t k = plan.d; k < plan.width; k++) to[j * plan.width + k] = 0;
    }
}

// Write the gradient (double) of a plan to dweight and dbias.
template <class Out, class Real>
static void write_gradient(const Plan<Real>& plan, const double* g) {
    const Pass& pass = plan.pass;
    const double* g_bias = g + (plan.sparse ? plan.d * plan.stride : plan.columns * plan.width);
    for (int64_t j = 0; j < plan.columns; j++) {
        Out* to = (Out*)pass.dweight + j * pass.dweight_stride;
        if (plan.sparse)
            for (int64_t k = 0; k < plan.d; k++) to[k] = (Out)g[k * plan.stride + j];
        else
            for (int64_t k = 0; k < plan.d; k++) to[k] = (Out)g[j * plan.width + k];
        if (pass.dbias) ((Out*)pass.dbias)[j * pass.dbias_stride] = (Out)g_bias[j];
    }
}

template <class Real>
static int64_t pass_call(Pass& pass) {
    pass.wrong_row = -1;
    const Plan<Real> plan(pass);
    const Shared<Real> shared(pass.rows);
    if (shared.has_class_vector() && !shared.u) return OUT_OF_MEMORY;
    const bool packs = pass.weight && (plan.sparse || plan.width != plan.d);
    const int64_t w_size = plan.sparse ? plan.d * plan.stride : plan.columns * plan.width;
    Memory packed(packs ? w_size * (int64_t)sizeof(Real) : 0);
    Memory sums((plan.chunks * ((plan.wants_gradient ? plan.gradient : 0) + plan.sets()) + 1) *
                (int64_t)sizeof(double));
    if ((packs && !packed.data) || !sums.data) return OUT_OF_MEMORY;
    if (packs) pack(plan, (Real*)packed.data);

    double* totals = (double*)sums.data;
    double* gradients = totals + plan.chunks * plan.sets();
    memset(totals, 0, plan.chunks * plan.sets() * sizeof(double));
    PassJob<Real> job = {plan,
                         shared,
                         packs ? (const Real*)packed.data : (const Real*)pass.weight,
                         packs ? plan.width : pass.weight_stride,
                         gradients,
                         totals,
                         {},
                         false};
    softmax_torch_parallel(plan.chunks, pass.threads, PassJob<Real>::run, &job);
    if (job.out_of_memory) return OUT_OF_MEMORY;
    for (int64_t chunk = plan.chunks - 1; chunk >= 0; chunk--)
        if (job.wrong_rows[chunk] >= 0) pass.wrong_row = job.wrong_rows[chunk];
    if (pass.wrong_row >= 0) return WRONG_CLASS;
    for (int64_t set = 0; set < plan.sets(); set++) {
        pass.totals[set] = 0;
        for (int64_t chunk = 0; chunk < plan.chunks; chunk++)
            pass.totals[set] += totals[chunk * plan.sets() + set];
    }
    if (plan.wants_gradient) {
        for (int64_t chunk = 1; chunk < plan.chunks; chunk++)
            for (int64_t i = 0; i < plan.gradient; i++)
                gradients[i] += gradients[chunk * plan.gradient + i];
        if (pass.gradient_dtype == FLOAT64)
            write_gradient<double>(plan, gradients);
        else
            write_gradient<float>(plan, gradients);
    }
    return DONE;
}

}  // namespace SOFTMAX_TORCH_ISA

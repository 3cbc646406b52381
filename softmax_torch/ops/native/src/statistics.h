// The statistics of each row of logits, which have no derivative; maths.py has the formulas.
//
// For a row z with largest logit m at class t, the first one that has it:
//
//     e_c     = exp(z_c - m)            rest = sum of e_c over c != t
//     lse     = m + log1p(rest)
//     entropy = log1p(rest) - sum_c e_c (z_c - m) / (1 + rest)
//     rank    = the classes with a larger logit than class y, or an equal one and a lower number
//
// No term of the entropy is negative, and t is not in the sum: a row that is nearly certain keeps
// its digits.
#pragma once

#include "parallel.h"
#include "vectors.h"

namespace SOFTMAX_TORCH_ISA {

// The place of the first NaN among n numbers, -1 without.
template <class Real>
static int64_t first_nan(const Real* z, int64_t n) {
    for (int64_t c = 0; c < n; c++)
        if (z[c] != z[c]) return c;
    return -1;
}

// The largest number of a row and its place, the first of equals; NaN is passed over but noticed.
template <class Real>
struct Peak {
    Real largest = -INFINITY;
    int64_t at = 0;
    bool nan = false;

    Peak(const Real* z, int64_t n) {
        constexpr int64_t count = Lanes<Real>::count;
        typedef typename Lanes<Real>::Scalar Scalar;
        Vector<Real> best = broadcast((Real)-INFINITY);
        Int<Real> place = {}, current = lane_numbers<Real>(), unordered = {};
        for (int64_t c = 0; c < n; c += count, current += (Scalar)count) {
            const int64_t size = n - c < count ? n - c : count;
            const Vector<Real> x = load_part(z + c, size, (Real)-INFINITY);
            const Int<Real> better = x > best;
            unordered |= x != x;
            place = better ? current : place;
            best = better ? x : best;
        }
        for (int64_t i = 0; i < count; i++) {
            nan |= unordered[i] != 0;
            if (best[i] > largest || (best[i] == largest && place[i] < at))
                largest = best[i], at = place[i];
        }
    }
};

// The sums over a row without its peak, and the rank of class y. Sums of 128 vectors are added up
// in double.
template <class Real>
struct Sums {
    double rest = 0, weighted = 0;
    int64_t rank = 0;

    Sums(const Real* z, int64_t n, const Peak<Real>& peak, int64_t y) {
        constexpr int64_t count = Lanes<Real>::count;
        typedef typename Lanes<Real>::Scalar Scalar;
        typedef Vector<Real> V;
        const Real z_y = y >= 0 ? z[y] : (Real)INFINITY;
        Int<Real> current = lane_numbers<Real>(), before = {};
        for (int64_t start = 0; start < n; start += 128 * count) {
            const int64_t stop = n - start < 128 * count ? n : start + 128 * count;
            V e_sum = {}, weighted_sum = {};
            for (int64_t c = start; c < stop; c += count, current += (Scalar)count) {
                const int64_t size = stop - c < count ? stop - c : count;
                const V x = load_part(z + c, size, (Real)-INFINITY);
                const V d = x - peak.largest, e = exp_nonpositive(d);
                e_sum += current == (Scalar)peak.at ? V{} : e;
                weighted_sum += e == Real(0) ? V{} : e * d;  // 0 times infinity is NaN
                before += (x > z_y) | ((x == z_y) & (current < (Scalar)y));  // -1 where true
            }
            rest += sum_in_double(e_sum);
            weighted += sum_in_double(weighted_sum);
        }
        for (int64_t i = 0; i < count; i++) rank -= before[i];
    }
};

template <class Real>
struct StatisticsJob {
    const Statistics& call;
    int64_t chunks;
    bool out_of_memory;

    static void run(void* self, int64_t chunk) {
        StatisticsJob& job = *(StatisticsJob*)self;
        const Statistics& call = job.call;
        Memory memory(call.classes * sizeof(Real));
        if (!memory.data) {
            job.out_of_memory = true;
            return;
        }
        const int64_t rows = call.samples * call.positions;
        const int64_t end = chunk_start(rows, job.chunks, chunk + 1);
        for (int64_t i = chunk_start(rows, job.chunks, chunk); i < end; i++)
            job.row(i, (Real*)memory.data);
    }

    void row(int64_t i, Real* line) {
        const Array& from = call.z;
        const int64_t C = call.classes;
        const int64_t start = i / call.positions * from.row + i % call.positions * from.position;
        const Real* z = (const Real*)from.data + start;
        if (from.dtype != dtype_of<Real>() || from.column != 1) {
            read(from.data, from.dtype, start, from.column, C, line);
            z = line;
        }
        const bool has_y = call.y && (uint64_t)call.y[i] < (uint64_t)C;
        const Peak<Real> peak(z, C);
        if (peak.nan) {
            call.lse[i] = call.entropy[i] = NAN;
            call.argmax[i] = first_nan(z, C);
            if (call.rank) call.rank[i] = C;
            return;
        }
        const Sums<Real> sums(z, C, peak, has_y ? call.y[i] : -1);
        const double log_s = log1p(sums.rest);
        const bool finite = peak.largest - peak.largest == 0;
        call.lse[i] = finite ? peak.largest + log_s : peak.largest;
        call.entropy[i] = finite ? log_s - sums.weighted / (1 + sums.rest) : NAN;
        call.argmax[i] = peak.at;
        if (call.rank) call.rank[i] = has_y ? sums.rank : C;
    }
};

template <class Real>
static int64_t statistics_of(const Statistics& call) {
    const int64_t rows = call.samples * call.positions;
    if (rows == 0 || call.classes == 0) return DONE;
    StatisticsJob<Real> job = {call, rows * call.classes >> 15, false};
    if (job.chunks > MOST_CHUNKS) job.chunks = MOST_CHUNKS;
    if (job.chunks > rows) job.chunks = rows;
    if (job.chunks < 1) job.chunks = 1;
    softmax_torch_parallel(job.chunks, call.threads, StatisticsJob<Real>::run, &job);
    return job.out_of_memory ? OUT_OF_MEMORY : DONE;
}

}  // namespace SOFTMAX_TORCH_ISA

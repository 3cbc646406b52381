// Vectors of the width of an instruction set, by the vector extensions of GCC and Clang: loads,
// stores, exp, log1p, transposition, and conversion of half precision.
//
// Nothing here may be shared between instruction sets: a function that the linker merges could run
// AVX-512 code on a processor without it. So everything is static in the namespace of its set, and
// nothing of the standard library with a body is used.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <utility>  // std::integer_sequence and std::integral_constant, types without code

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "interface.h"

#ifndef SOFTMAX_TORCH_VECTOR_BYTES
#if defined(__AVX512F__)
#define SOFTMAX_TORCH_VECTOR_BYTES 64
#elif defined(__AVX2__)
#define SOFTMAX_TORCH_VECTOR_BYTES 32
#else
#define SOFTMAX_TORCH_VECTOR_BYTES 16
#endif
#endif

#define INLINE_MEMBER inline __attribute__((always_inline))
#define INLINE static INLINE_MEMBER

namespace SOFTMAX_TORCH_ISA {

constexpr int BYTES = SOFTMAX_TORCH_VECTOR_BYTES;

// The vector types of a Real; ``count`` is the number of lanes.
template <class Real>
struct Lanes;

template <>
struct Lanes<float> {
    typedef float Vector __attribute__((vector_size(BYTES)));
    typedef float Loose __attribute__((vector_size(BYTES), aligned(4), may_alias));
    typedef int32_t Int __attribute__((vector_size(BYTES)));
    typedef int32_t Scalar;
    static constexpr int count = BYTES / 4;
};

template <>
struct Lanes<double> {
    typedef double Vector __attribute__((vector_size(BYTES)));
    typedef double Loose __attribute__((vector_size(BYTES), aligned(8), may_alias));
    typedef int64_t Int __attribute__((vector_size(BYTES)));
    typedef int64_t Scalar;
    static constexpr int count = BYTES / 8;
};

template <class Real>
using Vector = typename Lanes<Real>::Vector;
template <class Real>
using Int = typename Lanes<Real>::Int;

template <class Real>
INLINE Vector<Real> load(const Real* p) {
    return *reinterpret_cast<const typename Lanes<Real>::Loose*>(p);
}

template <class Real>
INLINE void store(Real* p, Vector<Real> v) {
    *reinterpret_cast<typename Lanes<Real>::Loose*>(p) = v;
}

template <class Real>
INLINE Vector<Real> broadcast(Real x) {
    return x - Vector<Real>{};  // GCC turns this into a broadcast; x + {} would lose the sign of -0
}

template <int... I>
INLINE Int<float> lane_numbers(float, std::integer_sequence<int, I...>) {
    return Int<float>{I...};
}
template <int... I>
INLINE Int<double> lane_numbers(double, std::integer_sequence<int, I...>) {
    return Int<double>{I...};
}

// 0, 1, 2, ...
template <class Real>
INLINE Int<Real> lane_numbers() {
    return lane_numbers(Real(), std::make_integer_sequence<int, Lanes<Real>::count>());
}

// n <= count numbers; the other lanes are ``rest``. With masks: a vector that is loaded from where
// single numbers were just stored waits for all stores before it, some 300 cycles for a row in
// memory.
template <class Real>
INLINE Vector<Real> load_part(const Real* p, int64_t n, Real rest) {
    constexpr int count = Lanes<Real>::count;
    if (n == count) return load(p);
#if defined(__AVX512F__)
    const unsigned mask = (1u << n) - 1;
    if constexpr (sizeof(Real) == 4)
        return (Vector<Real>)_mm512_mask_loadu_ps((__m512)broadcast(rest), (__mmask16)mask, p);
    else
        return (Vector<Real>)_mm512_mask_loadu_pd((__m512d)broadcast(rest), (__mmask8)mask, p);
#elif defined(__AVX2__)
    const Int<Real> there = lane_numbers<Real>() < (typename Lanes<Real>::Scalar)n;
    Vector<Real> v;
    if constexpr (sizeof(Real) == 4)
        v = (Vector<Real>)_mm256_maskload_ps(p, (__m256i)there);
    else
        v = (Vector<Real>)_mm256_maskload_pd(p, (__m256i)there);
    return there ? v : broadcast(rest);
#else
    Vector<Real> v = broadcast(rest);
    for (int i = 0; i < n; i++) v[i] = p[i];
    return v;
#endif
}

// The first n <= count lanes.
template <class Real>
INLINE void store_part(Real* p, Vector<Real> v, int64_t n) {
    Real lanes[Lanes<Real>::count];
    store(lanes, v);
    for (int64_t i = 0; i < n; i++) p[i] = lanes[i];
}

template <class Real>
INLINE Vector<Real> maximum(Vector<Real> a, Vector<Real> b) {
    return a > b ? a : b;  // b where a is NaN
}

template <class V, int... I>
INLINE V shuffled(V a, V b, std::integer_sequence<int, I...>) {
#if defined(__clang__)
    return __builtin_shufflevector(a, b, I...);
#else
    typedef decltype(a < b) Mask;
    return __builtin_shuffle(a, b, Mask{I...});
#endif
}

// Lane l of the first result is a[l] or b[l - h], of the second a[l + h] or b[l], where the bit h
// of l is 0 or 1.
template <int count, int h, int... I>
constexpr auto low_lanes(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, ((I & h) ? count + I - h : I)...>();
}
template <int count, int h, int... I>
constexpr auto high_lanes(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, ((I & h) ? count + I : I + h)...>();
}

template <class Real, int h>
INLINE void exchange(Vector<Real>* rows) {
    constexpr int count = Lanes<Real>::count;
    using All = std::make_integer_sequence<int, count>;
    if constexpr (h > 0) {
        for (int i = 0; i < count; i++) {
            if (i & h) continue;
            Vector<Real> a = rows[i], b = rows[i + h];
            rows[i] = shuffled(a, b, low_lanes<count, h>(All()));
            rows[i + h] = shuffled(a, b, high_lanes<count, h>(All()));
        }
        exchange<Real, h / 2>(rows);
    }
}

// Transpose ``count`` vectors in place.
template <class Real>
INLINE void transpose(Vector<Real>* rows) {
    exchange<Real, Lanes<Real>::count / 2>(rows);
}

// Lanes 0, 2, 4, ... of a and then of b; or 1, 3, 5, ...
template <int count, int first, int... I>
constexpr auto every_second(std::integer_sequence<int, I...>) {
    return std::integer_sequence<int, (2 * I + first)...>();
}

// ``count`` class indices as lanes. Return whether all of them are in [0, classes).
INLINE bool load_classes(const int64_t* y, int64_t classes, Int<float>* lanes) {
    constexpr int count = Lanes<float>::count;
    using All = std::make_integer_sequence<int, count>;
    Int<float> a, b;
    memcpy(&a, y, sizeof a);
    memcpy(&b, y + count / 2, sizeof b);
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
    constexpr int low = 0;
#else
    constexpr int low = 1;
#endif
    *lanes = shuffled(a, b, every_second<count, low>(All()));
    Int<float> high = shuffled(a, b, every_second<count, 1 - low>(All()));
    Int<float> wrong = (high != 0) | (*lanes < 0) | (*lanes >= (int32_t)classes);
    int64_t parts[BYTES / 8], any = 0;
    memcpy(parts, &wrong, sizeof parts);
    for (int i = 0; i < BYTES / 8; i++) any |= parts[i];
    return any == 0;
}

INLINE bool load_classes(const int64_t* y, int64_t classes, Int<double>* lanes) {
    bool right = true;
    for (int i = 0; i < Lanes<double>::count; i++) {
        (*lanes)[i] = y[i];
        right &= (uint64_t)y[i] < (uint64_t)classes;
    }
    return right;
}

template <class Real, int h>
INLINE Vector<Real> folded(Vector<Real> v) {
    constexpr int count = Lanes<Real>::count;
    using All = std::make_integer_sequence<int, count>;
    if constexpr (h == 0)
        return v;
    else
        return folded<Real, h / 2>(v + shuffled(v, v, high_lanes<count, h>(All())));
}

// The largest lane, of lanes that are not NaN.
template <class Real, int h = Lanes<Real>::count / 2>
INLINE Real largest_lane(Vector<Real> v) {
    using All = std::make_integer_sequence<int, Lanes<Real>::count>;
    if constexpr (h == 0)
        return v[0];
    else
        return largest_lane<Real, h / 2>(
            maximum<Real>(v, shuffled(v, v, high_lanes<Lanes<Real>::count, h>(All()))));
}

// The sum of the lanes.
template <class Real>
INLINE Real sum(Vector<Real> v) {
    return folded<Real, Lanes<Real>::count / 2>(v)[0];
}

// The sum of the two halves of v, in double.
INLINE Vector<double> halves_in_double(Vector<float> v) {
#if defined(__AVX512F__)
    // GCC 12 converts a vector of 64 bytes in four parts.
    const __m512 all = (__m512)v;
    return (Vector<double>)_mm512_cvtps_pd(_mm512_castps512_ps256(all)) +
           (Vector<double>)_mm512_cvtps_pd(_mm512_extractf32x8_ps(all, 1));
#else
    typedef float Half __attribute__((vector_size(BYTES / 2)));
    Half halves[2];
    memcpy(halves, &v, sizeof v);
    return __builtin_convertvector(halves[0], Vector<double>) +
           __builtin_convertvector(halves[1], Vector<double>);
#endif
}

INLINE Vector<double> halves_in_double(Vector<double> v) { return v; }

// The sum of the lanes, in double: as many steps as in float, and one rounding.
template <class V>
INLINE double sum_in_double(V v) {
    return sum<double>(halves_in_double(v));
}

// Fold 2 h vectors to one, whose lane l is the sum of the lanes of vector l.
template <int h>
INLINE void fold_vectors(Vector<double>* v) {
    constexpr int count = Lanes<double>::count;
    using All = std::make_integer_sequence<int, count>;
    if constexpr (h > 0) {
        for (int i = 0; i < h; i++)
            v[i] = shuffled(v[i], v[i + h], low_lanes<count, h>(All())) +
                   shuffled(v[i], v[i + h], high_lanes<count, h>(All()));
        fold_vectors<h / 2>(v);
    }
}

// The sums of the lanes of N vectors, each in double. Adding up several vectors together takes two
// shuffles for each of them, where a single one takes three.
template <class Real, int N>
INLINE void sums_in_double(const Vector<Real>* v, double* sums) {
    constexpr int count = Lanes<double>::count;
    for (int first = 0; first < N; first += count) {
        Vector<double> parts[count];
        for (int i = 0; i < count; i++)
            parts[i] = first + i < N ? halves_in_double(v[first + i]) : Vector<double>{};
        fold_vectors<count / 2>(parts);
        if (first + count <= N)
            store(sums + first, parts[0]);
        else
            store_part(sums + first, parts[0], N - first);
    }
}

// exp(x) for x <= 0: 2^n 2^r with n an integer and |r| <= 0.5. NaN gives NaN. Below the smallest
// normal number the result is 0.
//
// float: 2^r by a minimax polynomial with an error of 2e-9; the result is off by 1 unit in the last
// place at most. ``magic`` rounds to an integer and leaves the exponent bits of 2^n in the low
// bits.
INLINE Vector<float> exp_nonpositive(Vector<float> x) {
    const float magic = 12582912.0f + 127.0f;  // 1.5 * 2^23 + the bias of exponents
    x = maximum<float>(broadcast(-88.0f), x);  // 2^-127 below, whose exponent bits are those of 0
    Vector<float> shifted = x * 1.44269504f + magic;
    Vector<float> r = x * 1.44269504f - (shifted - magic);
    r = x * 1.92596303e-8f + r;  // the rest of log2(e)
    Vector<float> p = broadcast(1.5353361890e-4f);
    p = p * r + 1.3398874422e-3f;
    p = p * r + 9.6184373578e-3f;
    p = p * r + 5.5503324711e-2f;
    p = p * r + 2.4022647914e-1f;
    p = p * r + 6.9314720286e-1f;
    p = p * r + 1.0f;
    return p * (Vector<float>)((Int<float>)shifted << 23);
}

// double: the Taylor polynomial of degree 13, whose error on |r| <= 0.347 is 4e-18.
INLINE Vector<double> exp_nonpositive(Vector<double> x) {
    const double magic = 6755399441055744.0;  // 1.5 * 2^52
    Vector<double> shifted = x * 1.4426950408889634 + magic;
    Vector<double> n = shifted - magic;
    Vector<double> r = x - n * 0.693147180369123816490;
    r = r - n * 1.90821492927058770002e-10;
    Vector<double> p = broadcast(1.0 / 6227020800);
    p = p * r + 1.0 / 479001600;
    p = p * r + 1.0 / 39916800;
    p = p * r + 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * (r * r) + r + 1.0;
    Vector<double> power = (Vector<double>)(((Int<double>)shifted << 52) + 0x3ff0000000000000);
    return x < -708.3964185322641 ? Vector<double>{} : p * power;
}

// log(1 + x) for x >= 0 to full precision: log u with u = 1 + x rounded, plus (x - (u - 1)) / u for
// what the rounding lost. log u = e log 2 + log m with m in [0.7, 1.4) by Cephes' polynomial.
INLINE Vector<float> log1p_nonnegative(Vector<float> x) {
    Vector<float> u = x + 1.0f;
    Vector<float> lost = (x - (u - 1.0f)) / u;
    Int<float> bits = (Int<float>)u;
    Int<float> exponent = (bits - 0x3f3504f3) >> 23;
    Vector<float> f = (Vector<float>)(bits - (exponent << 23)) - 1.0f;
    Vector<float> e = __builtin_convertvector(exponent, Vector<float>);
    Vector<float> p = broadcast(7.0376836292e-2f);
    p = p * f - 1.1514610310e-1f;
    p = p * f + 1.1676998740e-1f;
    p = p * f - 1.2420140846e-1f;
    p = p * f + 1.4249322787e-1f;
    p = p * f - 1.6668057665e-1f;
    p = p * f + 2.0000714765e-1f;
    p = p * f - 2.4999993993e-1f;
    p = p * f + 3.3333331174e-1f;
    Vector<float> square = f * f;
    Vector<float> log_m = p * f * square - 0.5f * square + e * -2.12194440e-4f + f;
    return log_m + e * 0.693359375f + lost;
}

INLINE Vector<double> log1p_nonnegative(Vector<double> x) {
    for (int i = 0; i < Lanes<double>::count; i++) x[i] = log1p(x[i]);
    return x;
}

typedef uint16_t Halves __attribute__((vector_size(BYTES / 2)));
typedef uint16_t LooseHalves __attribute__((vector_size(BYTES / 2), aligned(2), may_alias));
typedef uint32_t Bits __attribute__((vector_size(BYTES)));

INLINE Bits load_halves(const uint16_t* p) {
#if defined(__AVX512F__)  // GCC 12 makes four instructions of this one
    return (Bits)_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i*)p));
#else
    return __builtin_convertvector(*(const LooseHalves*)p, Bits);
#endif
}

INLINE Vector<float> of_bfloat16(Bits h) { return (Vector<float>)(h << 16); }

INLINE Bits number_to_bfloat16(Vector<float> v) {  // rounded to even; not for NaN
    Bits bits = (Bits)v;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}

INLINE Bits to_bfloat16(Vector<float> v) {
    return v == v ? number_to_bfloat16(v) : ((Bits)v >> 16 | 0x40);
}

INLINE Vector<float> of_float16(Bits h) {
    Bits exponent = h & 0x7c00;
    Bits bits = ((h & 0x7fff) << 13) + (112u << 23);
    Vector<float> subnormal = (Vector<float>)(bits + (1u << 23)) - 6.103515625e-5f;  // 2^-14
    bits = exponent == 0x7c00 ? bits + (112u << 23) : bits;  // infinity and NaN
    bits = exponent == 0 ? (Bits)subnormal : bits;
    return (Vector<float>)(bits | (h & 0x8000) << 16);
}

INLINE Bits to_float16(Vector<float> v) {  // rounded to even
    Bits sign = (Bits)v & 0x80000000u, bits = (Bits)v ^ sign;
    Bits subnormal = (Bits)((Vector<float>)bits + 0.5f) - 0x3f000000u;
    Bits normal = (bits - (112u << 23) + 0xfff + ((bits >> 13) & 1)) >> 13;
    Bits result = bits < 0x38800000u ? subnormal : normal;       // below 2^-14
    result = bits >= 0x477ff000u ? (Bits{} + 0x7c00u) : result;  // 65520 and more: infinity
    result = bits > 0x7f800000u ? (Bits{} + 0x7e00u) : result;   // NaN
    return result | sign >> 16;
}

// A vector of bfloat16 (BRAIN) or float16 as float, or back.
template <bool BRAIN>
INLINE Vector<float> widened(const uint16_t* p) {
    return BRAIN ? of_bfloat16(load_halves(p)) : of_float16(load_halves(p));
}

template <bool BRAIN>
INLINE Halves narrowed(Vector<float> v) {
    return __builtin_convertvector(BRAIN ? to_bfloat16(v) : to_float16(v), Halves);
}

// Convert n adjacent numbers of half precision to float, or back. The last vector overlaps the one
// before it.
template <bool BRAIN>
static void from_halves(const uint16_t* from, int64_t n, float* to) {
    constexpr int count = Lanes<float>::count;
    if (n < count) {
        uint16_t part[count] = {};
        for (int64_t i = 0; i < n; i++) part[i] = from[i];
        store_part(to, widened<BRAIN>(part), n);
        return;
    }
    int64_t i = 0;
    for (; i + count <= n; i += count) store(to + i, widened<BRAIN>(from + i));
    if (i < n) store(to + n - count, widened<BRAIN>(from + n - count));
}

template <bool BRAIN>
static void to_halves(const float* from, int64_t n, uint16_t* to) {
    constexpr int count = Lanes<float>::count;
    if (n < count) {
        const Halves halves = narrowed<BRAIN>(load_part(from, n, 0.0f));
        for (int64_t i = 0; i < n; i++) to[i] = halves[i];
        return;
    }
    int64_t i = 0;
    for (; i + count <= n; i += count) *(LooseHalves*)(to + i) = narrowed<BRAIN>(load(from + i));
    if (i < n) *(LooseHalves*)(to + n - count) = narrowed<BRAIN>(load(from + n - count));
}

constexpr int64_t PART = 256;  // numbers that are converted together where they are not adjacent

template <class Real, class From>
INLINE void copy_converted(const From* from, int64_t step, int64_t n, Real* to) {
    if (step == 1)
        for (int64_t i = 0; i < n; i++) to[i] = (Real)from[i];
    else
        for (int64_t i = 0; i < n; i++) to[i] = (Real)from[i * step];
}

// Convert n numbers of any dtype, ``step`` elements apart, to Real.
template <class Real>
static void read(const void* data, int64_t dtype, int64_t start, int64_t step, int64_t n,
                 Real* to) {
    if (dtype == FLOAT32) {
        copy_converted((const float*)data + start, step, n, to);
    } else if (dtype == FLOAT64) {
        copy_converted((const double*)data + start, step, n, to);
    } else if (dtype == UINT8) {
        copy_converted((const uint8_t*)data + start, step, n, to);
    } else {
        const uint16_t* from = (const uint16_t*)data + start;
        const auto convert = dtype == BFLOAT16 ? from_halves<true> : from_halves<false>;
        if (sizeof(Real) == 4 && step == 1) {
            convert(from, n, (float*)to);
            return;
        }
        for (int64_t i = 0; i < n; i += PART) {
            const int64_t size = n - i < PART ? n - i : PART;
            uint16_t halves[PART];
            float floats[PART];
            for (int64_t k = 0; k < size; k++) halves[k] = from[(i + k) * step];
            convert(halves, size, floats);
            for (int64_t k = 0; k < size; k++) to[i + k] = (Real)floats[k];
        }
    }
}

// Convert n numbers from Real to any floating-point dtype, ``step`` elements apart.
template <class Real>
static void write(const Real* from, int64_t n, void* data, int64_t dtype, int64_t start,
                  int64_t step) {
    if (dtype == FLOAT32) {
        float* to = (float*)data + start;
        for (int64_t i = 0; i < n; i++) to[i * step] = (float)from[i];
    } else if (dtype == FLOAT64) {
        double* to = (double*)data + start;
        for (int64_t i = 0; i < n; i++) to[i * step] = (double)from[i];
    } else {
        uint16_t* to = (uint16_t*)data + start;
        const auto convert = dtype == BFLOAT16 ? to_halves<true> : to_halves<false>;
        if (sizeof(Real) == 4 && step == 1) {
            convert((const float*)from, n, to);
            return;
        }
        for (int64_t i = 0; i < n; i += PART) {
            const int64_t size = n - i < PART ? n - i : PART;
            uint16_t halves[PART];
            float floats[PART];
            for (int64_t k = 0; k < size; k++) floats[k] = (float)from[i + k];
            convert(floats, size, halves);
            for (int64_t k = 0; k < size; k++) to[(i + k) * step] = halves[k];
        }
    }
}

INLINE int64_t size_of(int64_t dtype) {
    static const int64_t sizes[] = {4, 8, 2, 2, 1};
    return sizes[dtype];
}

template <class Real>
constexpr int64_t dtype_of() {
    return sizeof(Real) == 4 ? FLOAT32 : FLOAT64;
}

}  // namespace SOFTMAX_TORCH_ISA

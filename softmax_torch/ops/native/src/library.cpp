// The C interface: which instruction set runs, on which threads, and the functions that calls.py
// calls. Compiled for the baseline; CMakeLists.txt says which sets exist.
#include <string.h>
#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "kernels.h"
#include "parallel.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace baseline {
extern const Kernels kernels;
}
#ifdef SOFTMAX_TORCH_HAS_AVX2
namespace avx2 {
extern const Kernels kernels;
}
#endif
#ifdef SOFTMAX_TORCH_HAS_AVX512
namespace avx512 {
extern const Kernels kernels;
}
#endif

namespace {

struct InstructionSet {
    const char* name;
    const Kernels* kernels;
    bool (*supported)();
};

// The best first.
const InstructionSet SETS[] = {
#ifdef SOFTMAX_TORCH_HAS_AVX512
    {"avx512", &avx512::kernels,
     [] {
         return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
#ifdef SOFTMAX_TORCH_HAS_AVX2
    {"avx2", &avx2::kernels,
     [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"baseline", &baseline::kernels, [] { return true; }},
};

const Kernels* chosen = &baseline::kernels;

// GOMP_parallel of the OpenMP library that torch uses, or null.
typedef void (*GompParallel)(void (*)(void*), void*, unsigned threads, unsigned flags);
GompParallel gomp_parallel = nullptr;

struct Work {
    void (*run)(void*, int64_t);
    void* context;
    int64_t chunks, next;
};

// Take chunks until none is left. A thread that comes late, or never, leaves its share to others.
void take_chunks(void* data) {
    Work& work = *(Work*)data;
    for (;;) {
        const int64_t chunk = __atomic_fetch_add(&work.next, 1, __ATOMIC_RELAXED);
        if (chunk >= work.chunks) return;
        work.run(work.context, chunk);
    }
}

}  // namespace

void softmax_torch_parallel(int64_t chunks, int64_t threads, void (*run)(void*, int64_t),
                            void* context) {
    Work work = {run, context, chunks, 0};
    if (threads > chunks) threads = chunks;
    if (threads > 1 && gomp_parallel)
        gomp_parallel(take_chunks, &work, (unsigned)threads, 0);
    else
        take_chunks(&work);
}

EXPORT int softmax_torch_interface() { return SOFTMAX_TORCH_INTERFACE; }

// The sizes of the structures, which calls.py mirrors.
EXPORT void softmax_torch_sizes(int64_t* sizes) {
    const size_t all[] = {sizeof(Weight),  sizeof(Array), sizeof(Rows),
                          sizeof(Samples), sizeof(Pass),  sizeof(Statistics)};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) sizes[i] = (int64_t)all[i];
}

// A digest of the sources, by which library.py knows a library of other sources.
EXPORT const char* softmax_torch_sources() { return SOFTMAX_TORCH_SOURCES; }

// The instruction sets that this processor has, the best first, with commas between.
EXPORT const char* softmax_torch_isas() {
    static char names[64];
    names[0] = 0;
    for (const InstructionSet& set : SETS) {
        if (!set.supported()) continue;
        if (names[0]) strcat(names, ",");
        strcat(names, set.name);
    }
    return names;
}

// Use an instruction set; return 0, or 1 where it is not there.
EXPORT int softmax_torch_select(const char* name) {
    for (const InstructionSet& set : SETS)
        if (strcmp(set.name, name) == 0 && set.supported()) {
            chosen = set.kernels;
            return 0;
        }
    return 1;
}

EXPORT void softmax_torch_set_parallel(void* function) { gomp_parallel = (GompParallel)function; }

EXPORT int64_t softmax_torch_rows(Rows* call) { return chosen->rows(call); }

EXPORT int64_t softmax_torch_statistics(const Statistics* call) { return chosen->statistics(call); }

EXPORT int64_t softmax_torch_pass(Pass* call) { return chosen->pass(call); }

EXPORT int64_t softmax_torch_csr(const Samples* samples, int64_t* crow, int32_t* col, void* values,
                                 int64_t threads) {
    return chosen->csr(samples, crow, col, values, threads);
}

EXPORT int64_t softmax_torch_gather(const uint8_t* x, const int64_t* rows, int64_t n, int64_t d,
                                    float scale, float* out, int64_t threads) {
    const Gather call = {x, rows, n, d, scale, out, threads};
    return chosen->gather(&call);
}

// The mean NLL of float logits (N, C) and its gradient (N, C): ``softmax_torch_rows`` in the fewest
// arguments, since a call of a small batch costs more than its arithmetic.
EXPORT int64_t softmax_torch_mean_nll(const float* z, int64_t stride, const int64_t* y, float* dz,
                                      int64_t samples, int64_t classes, int64_t threads,
                                      float* mean) {
    Rows call = {};
    call.z = {(void*)z, FLOAT32, stride, 1, 0};
    call.samples = samples, call.classes = classes, call.positions = 1;
    call.y = y;
    call.a = {nullptr, 1.0 / (double)samples, 1};
    call.dz = {dz, FLOAT32, classes, 1, 0};
    call.threads = threads;
    const int64_t status = chosen->rows(&call);
    *mean = (float)call.total;
    return status;
}

// The mean NLL of a float layer z = x W^T + b, in the fewest arguments too. All but x have adjacent
// rows. The results dw, db, dx and z may be null.
EXPORT int64_t softmax_torch_linear_mean_nll(const float* x, int64_t stride, const float* w,
                                             const float* bias, const int64_t* y, int64_t samples,
                                             int64_t features, int64_t classes, int64_t threads,
                                             float* dw, float* db, float* dx, float* z,
                                             float* mean) {
    double total = 0;
    Pass call = {};
    call.samples = {x, FLOAT32, stride, nullptr, nullptr, nullptr, samples, features, 0};
    call.middle = LOSS, call.columns = classes, call.dtype = FLOAT32;
    call.weight = w, call.weight_stride = features;
    call.bias = bias, call.bias_stride = 1;
    call.rows.classes = classes, call.rows.positions = 1;
    call.rows.y = y;
    call.rows.a = {nullptr, 1.0 / (double)samples, 1};
    call.totals = &total;
    call.z = z;
    call.dweight = dw, call.dweight_stride = features;
    call.dbias = db, call.dbias_stride = 1;
    call.gradient_dtype = FLOAT32;
    call.dx = dx, call.dx_stride = features;
    call.threads = threads;
    const int64_t status = chosen->pass(&call);
    *mean = (float)total;
    return status;
}

// Ask the system to back fresh memory by huge pages; writing to it then costs a fault per 2 MiB and
// not one per 4 KiB. Pages that exist already stay as they are.
EXPORT void softmax_torch_advise_huge_pages(void* data, int64_t bytes) {
#if defined(MADV_HUGEPAGE)
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    const uintptr_t start = ((uintptr_t)data + page - 1) / page * page;
    const uintptr_t end = ((uintptr_t)data + (uintptr_t)bytes) / page * page;
    if (end > start) madvise((void*)start, end - start, MADV_HUGEPAGE);
#else
    (void)data, (void)bytes;
#endif
}

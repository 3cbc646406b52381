// From dense rows to CSR: count the entries other than 0 of each row, then copy them.
#pragma once

#include "interface.h"
#include "parallel.h"

namespace SOFTMAX_TORCH_ISA {

struct CsrJob {
    const char* x;
    int64_t stride, n, d, chunks;
    int64_t* crow;  // (n + 1,): counts of rows at 1.., then offsets
    int32_t* col;   // null while counting
    void* values;
};

template <class Value>
static void csr_chunk(void* self, int64_t chunk) {
    CsrJob& job = *(CsrJob*)self;
    const int64_t end = chunk_start(job.n, job.chunks, chunk + 1);
    for (int64_t i = chunk_start(job.n, job.chunks, chunk); i < end; i++) {
        const Value* x = (const Value*)job.x + i * job.stride;
        if (!job.col) {
            int64_t entries = 0;
            for (int64_t k = 0; k < job.d; k++) entries += x[k] != 0;
            job.crow[i + 1] = entries;
            continue;
        }
        int64_t at = job.crow[i];
        const int64_t stop = job.crow[i + 1];
        // Every entry is written, and the next one over it where it was 0: no branch to mispredict.
        for (int64_t k = 0; at < stop; k++) {
            job.col[at] = (int32_t)k;
            ((Value*)job.values)[at] = x[k];
            at += x[k] != 0;
        }
    }
}

static int64_t csr(const Samples* s, int64_t* crow, int32_t* col, void* values, int64_t threads) {
    CsrJob job = {(const char*)s->x, s->stride, s->n, s->d, 1, crow, col, values};
    job.chunks = s->n * s->d >> 18;
    if (job.chunks > MOST_CHUNKS) job.chunks = MOST_CHUNKS;
    if (job.chunks < 1) job.chunks = 1;
    softmax_torch_parallel(job.chunks, threads,
                           s->dtype == FLOAT64 ? csr_chunk<double> : csr_chunk<float>, &job);
    return DONE;
}

}  // namespace SOFTMAX_TORCH_ISA

// Gather rows of bytes as floats: out[i] = scale x[rows[i]], in one pass.
#pragma once

#include "interface.h"
#include "parallel.h"

namespace SOFTMAX_TORCH_ISA {

static void scale_row(const uint8_t* __restrict from, int64_t d, float scale,
                      float* __restrict to) {
    for (int64_t k = 0; k < d; k++) to[k] = scale * (float)from[k];
}

constexpr int64_t AHEAD = 4;  // rows in random order have to be fetched before they are needed

struct GatherJob {
    const Gather& call;
    int64_t chunks;

    static void run(void* self, int64_t chunk) {
        const GatherJob& job = *(const GatherJob*)self;
        const Gather& call = job.call;
        const int64_t end = chunk_start(call.n, job.chunks, chunk + 1);
        for (int64_t i = chunk_start(call.n, job.chunks, chunk); i < end; i++) {
            if (i + AHEAD < call.n)
                for (int64_t k = 0; k < call.d; k += 64)
                    __builtin_prefetch(call.x + call.rows[i + AHEAD] * call.d + k);
            scale_row(call.x + call.rows[i] * call.d, call.d, call.scale, call.out + i * call.d);
        }
    }
};

static int64_t gather(const Gather* call) {
    GatherJob job = {*call, call->n * call->d >> 15};
    if (job.chunks > MOST_CHUNKS) job.chunks = MOST_CHUNKS;
    if (job.chunks < 1) job.chunks = 1;
    softmax_torch_parallel(job.chunks, call->threads, GatherJob::run, &job);
    return DONE;
}

}  // namespace SOFTMAX_TORCH_ISA

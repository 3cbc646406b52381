// Chunks of work on the threads of torch's own pool; see library.cpp.
#pragma once

#include <stdint.h>
#include <stdlib.h>

// Call run(context, chunk) for each chunk in [0, chunks), on at most ``threads`` threads. Which
// thread takes which chunk is left open: a result must depend on the chunks alone.
void softmax_torch_parallel(int64_t chunks, int64_t threads, void (*run)(void*, int64_t),
                            void* context);

constexpr int64_t MOST_CHUNKS = 512;

// The first unit of a chunk, where units are split evenly.
static inline int64_t chunk_start(int64_t units, int64_t chunks, int64_t chunk) {
    return units / chunks * chunk + (chunk < units % chunks ? chunk : units % chunks);
}

// Inline code that the instruction sets share has to be static: see vectors.h.
namespace {

// Memory of one chunk or call, aligned to cache lines; null for no bytes, or if there is none left.
struct Memory {
    void* data = nullptr;
    explicit Memory(int64_t bytes) {
        if (bytes > 0 && posix_memalign(&data, 64, (size_t)bytes) != 0) data = nullptr;
    }
    ~Memory() { free(data); }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
};

}  // namespace

// The plain C interface of the library, compiled for any processor.
//
// It chooses among the instruction sets that kernels.cpp was compiled for. SOFTMAX_TORCH_HAS_<SET>
// tells which these are, SOFTMAX_TORCH_SOURCES is the digest of the sources.

#include <string.h>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using Supported = bool (*)();

struct InstructionSet {
  const char* name;
  Supported supported;
};

// Best first. The functions of libgcc behind __builtin_cpu_supports ask the operating system too
// whether it saves the registers.
const InstructionSet kSets[] = {
#ifdef SOFTMAX_TORCH_HAS_AVX512
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
     }},
#endif
#ifdef SOFTMAX_TORCH_HAS_AVX2
    // Every processor with AVX2 has F16C, which older compilers cannot ask for.
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }},
#endif
    {"baseline", [] { return true; }},
};

const InstructionSet* selected = nullptr;
void* gomp_parallel = nullptr;

}  // namespace

// The number that library.py expects. Raise both where a signature or a structure changes.
EXPORT int softmax_torch_interface(void) { return 1; }

EXPORT const char* softmax_torch_sources(void) { return SOFTMAX_TORCH_SOURCES; }

// The instruction sets that this library and this processor have, best first.
EXPORT const char* softmax_torch_isas(void) {
  static char names[64];
  if (names[0] == 0) {
    for (const auto& set : kSets) {
      if (!set.supported()) continue;
      if (names[0] != 0) strcat(names, ",");
      strcat(names, set.name);
    }
  }
  return names;
}

// Take the kernels of an instruction set. Return 0 if there are some that this processor runs.
EXPORT int softmax_torch_select(const char* isa) {
  for (const auto& set : kSets) {
    if (strcmp(isa, set.name) == 0 && set.supported()) {
      selected = &set;
      return 0;
    }
  }
  return 1;
}

// The function of the OpenMP pool that torch has loaded, or null: the calling thread does it all.
EXPORT void softmax_torch_set_parallel(void* function) { gomp_parallel = function; }

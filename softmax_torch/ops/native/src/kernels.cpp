// This file is compiled once for each instruction set, with SOFTMAX_TORCH_ISA as its name.
#include "kernels.h"

#include "csr.h"
#include "gather.h"
#include "passes.h"
#include "statistics.h"

namespace SOFTMAX_TORCH_ISA {

static int64_t rows(Rows* call) {
    return call->z.dtype == FLOAT64 ? rows_call<double>(*call) : rows_call<float>(*call);
}

static int64_t statistics(const Statistics* call) {
    return call->z.dtype == FLOAT64 ? statistics_of<double>(*call) : statistics_of<float>(*call);
}

static int64_t pass(Pass* call) {
    return call->dtype == FLOAT64 ? pass_call<double>(*call) : pass_call<float>(*call);
}

extern const Kernels kernels;
const Kernels kernels = {rows, statistics, pass, gather, csr};

}  // namespace SOFTMAX_TORCH_ISA

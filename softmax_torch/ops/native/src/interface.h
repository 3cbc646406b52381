// The plain C interface of the kernels. calls.py mirrors these structures field by field: a change
// of one is a change of the other, and of SOFTMAX_TORCH_INTERFACE.
//
// Strides count elements, not bytes. Real stands for double where the logits are double, and for
// float elsewhere: the type of all arithmetic and of the numbers of a row.
#pragma once

#include <stdint.h>

#define SOFTMAX_TORCH_INTERFACE 2

enum Dtype : int64_t { FLOAT32 = 0, FLOAT64 = 1, BFLOAT16 = 2, FLOAT16 = 3, UINT8 = 4 };

enum Status : int64_t { DONE = 0, WRONG_CLASS = 1, OUT_OF_MEMORY = 2 };

// The weight of a row number: one per row (values), or the same for all (value), or none.
struct Weight {
    const void* values;  // Real (N, M), contiguous, or null
    double value;
    int64_t present;
};

// A tensor of logits (N, C, M), of class vectors or of gradients. A stride may be 0.
struct Array {
    void* data;
    int64_t dtype, row, column, position;
};

// The three numbers of each row of logits, their weighted sum, and its gradient:
//
//     total = sum of a nll + b smooth + c lse^2            c lse where c_is_gradient
struct Rows {
    Array z;
    int64_t samples, classes, positions;  // N, C, M
    const int64_t* y;                     // (N, M), contiguous; null without class indices
    Array u;                              // class vectors; data is null without
    Weight a, b, c;
    int64_t c_is_gradient;
    void *nll, *smooth, *lse;  // results: Real (N, M), contiguous, or null
    Array dz;                  // result; data is null where no gradient is needed
    double total;              // result
    int64_t wrong_row;         // result: a row whose class index is out of range
    int64_t threads;
};

// The statistics of each row of logits, without a gradient.
struct Statistics {
    Array z;
    int64_t samples, classes, positions;  // N, C, M
    const int64_t* y;                     // (N, M), contiguous; null without class indices
    double *lse, *entropy;                // results (N, M), contiguous
    int64_t *argmax, *rank;               // results; rank is null without y
    int64_t threads;
};

// Samples X (n, d): dense rows, or rows in CSR whose entry j of row i is at crow[i] <= j <
// crow[i+1].
struct Samples {
    const void* x;  // dense: n rows, columns adjacent; CSR: the values
    int64_t dtype, stride;
    const double* offset;  // (d,), subtracted from dense rows; or null
    const int64_t* crow;   // null for dense rows
    const int32_t* col;
    int64_t n, d;
    int64_t squared;  // whether the entries are squared
};

// Rows of a matrix (.., d) of bytes, as floats.
struct Gather {
    const uint8_t* x;
    const int64_t* rows;  // (n,)
    int64_t n, d;
    float scale;
    float* out;  // (n, d)
    int64_t threads;
};

enum Middle : int64_t { LOGITS = 0, LOSS = 1, HESSIAN = 2, RESIDUALS = 3 };

// A reading of the samples: z = X W^T + b, then residuals r from z, then r^T [X, 1] and r W.
//
//     LOGITS      z alone
//     LOSS        r is the gradient of the weighted sum of ``rows``, for each set of its classes
//     HESSIAN     r = w (p * z - p sum(p * z))
//     RESIDUALS   r is given
struct Pass {
    Samples samples;
    int64_t middle;
    int64_t columns;  // M: rows of W. LOSS takes sets of rows.classes columns each
    const void* weight;
    int64_t weight_stride;  // Real (M, d), columns adjacent
    const void* bias;       // Real, or null
    int64_t bias_stride;
    int64_t dtype;   // Real: FLOAT32 or FLOAT64
    const void* p;   // HESSIAN: probabilities (n, M); RESIDUALS: r (n, M); contiguous
    Rows rows;       // LOSS: target and weights; HESSIAN: the weight a
    double* totals;  // LOSS: a total for each set
    void* z;         // result: logits (n, M), contiguous, or null
    void* dweight;   // result (M, d), or null
    int64_t dweight_stride;
    void* dbias;  // result, or null
    int64_t dbias_stride;
    int64_t gradient_dtype;  // of dweight and dbias
    void* dx;                // result: Real (n, d), or null
    int64_t dx_stride;
    int64_t wrong_row;  // result
    int64_t threads;
};

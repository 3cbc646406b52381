// The kernels of an instruction set, as a table of functions. library.cpp chooses one.
#pragma once

#include "interface.h"

struct Kernels {
    int64_t (*rows)(Rows*);
    int64_t (*statistics)(const Statistics*);
    int64_t (*pass)(Pass*);
    int64_t (*gather)(const Gather*);
    int64_t (*csr)(const Samples*, int64_t* crow, int32_t* col, void* values, int64_t threads);
};

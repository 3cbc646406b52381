/* A CUDA runtime and driver without a device: calls succeed, and kernels do nothing.

Preloaded (LD_PRELOAD), it takes the place of libcudart and libcuda, so that torch and Triton run
their whole host code for a GPU on a machine that has none. Memory of the device is memory of the
host, which a kernel leaves as it is: zeros. Only copies between host and device move bytes.

It counts launches and waits (``no_op_counts``), and notes the device that a kernel was launched on.
gpu_host.py builds it; what is measured with it is the time of the host alone.
*/
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "driver_types.h"

#define EXPORT __attribute__((visibility("default")))

/* What happened so far. A product of cuBLAS counts as one launch. */
EXPORT struct {
    long launches, waits, copies_to_host, copies_to_device, pageable_copies, graph_launches;
    long last_device;
} no_op_counts;

enum { DEVICES = 2, HANDLE = 64 };
static int current;
static int capturing;
static char handle[1 << 16]; /* what opaque handles point to */

static void launched(void) {
    no_op_counts.launches++;
    no_op_counts.last_device = current;
}

static int allocate(void** p, size_t size) {
    *p = mmap(NULL, size + 4096, PROT_READ | PROT_WRITE,
              MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return *p == MAP_FAILED ? 2 : 0;
}

/* Devices */
EXPORT int cudaGetDeviceCount(int* n) { return *n = DEVICES, 0; }
EXPORT int cudaGetDevice(int* d) { return *d = current, 0; }
EXPORT int cudaSetDevice(int d) { return current = d, 0; }
EXPORT int cudaDriverGetVersion(int* v) { return *v = 13000, 0; }
EXPORT int cudaRuntimeGetVersion(int* v) { return *v = 13000, 0; }
EXPORT int cudaDeviceCanAccessPeer(int* yes, int a, int b) { return *yes = 0, 0; }
EXPORT int cudaDeviceGetStreamPriorityRange(int* low, int* high) { return *low = *high = 0, 0; }
EXPORT int cudaMemGetInfo(size_t* free, size_t* total) { return *free = *total = 1UL << 37, 0; }

/* An H200, as far as torch and Triton ask. */
static int properties(struct cudaDeviceProp* p) {
    memset(p, 0, sizeof *p);
    strcpy(p->name, "no device: kernels do nothing");
    p->totalGlobalMem = 1UL << 37;
    p->sharedMemPerBlock = 49152;
    p->sharedMemPerBlockOptin = 232448;
    p->sharedMemPerMultiprocessor = 233472;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxBlocksPerMultiProcessor = 32;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024, p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 2147483647, p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    p->major = 9, p->multiProcessorCount = 132, p->l2CacheSize = 52428800;
    p->textureAlignment = 512, p->memoryBusWidth = 6144, p->unifiedAddressing = 1;
    return 0;
}
EXPORT int cudaGetDeviceProperties(struct cudaDeviceProp* p, int d) { return properties(p); }
EXPORT int cudaGetDeviceProperties_v2(struct cudaDeviceProp* p, int d) { return properties(p); }

static int attribute(int* value, int which) {
    switch (which) {
        case 1: case 2: case 3: *value = 1024; break;  /* threads of a block */
        case 5: *value = 2147483647; break;            /* blocks of a grid */
        case 10: *value = 32; break;                   /* threads of a warp */
        case 12: case 82: *value = 65536; break;       /* registers */
        case 13: case 36: *value = 1980000; break;     /* kHz */
        case 16: *value = 132; break;                  /* multiprocessors */
        case 37: *value = 6144; break;                 /* bits of the memory bus */
        case 39: *value = 2048; break;                 /* threads of a multiprocessor */
        case 75: *value = 9; break;                    /* compute capability */
        case 81: *value = 233472; break;               /* shared memory of a multiprocessor */
        case 8: case 97: *value = 232448; break;       /* and of a block */
        default: *value = 0;
    }
    return 0;
}
EXPORT int cudaDeviceGetAttribute(int* value, int which, int d) { return attribute(value, which); }

/* Memory */
EXPORT int cudaMalloc(void** p, size_t size) { return allocate(p, size); }
/* Pinned memory: a copy from other memory of the host is one that the host waits for. */
enum { MOST = 4096 };
static struct { char *start, *end; } pinned[MOST];
static int pieces;
static int is_pinned(const void* p) {
    for (int i = 0; i < pieces; i++)
        if ((char*)p >= pinned[i].start && (char*)p < pinned[i].end) return 1;
    return 0;
}
EXPORT int cudaHostAlloc(void** p, size_t size, unsigned flags) {
    if (pieces == MOST || allocate(p, size)) return 2;
    pinned[pieces].start = *p, pinned[pieces].end = (char*)*p + size;
    return pieces++, 0;
}
EXPORT int cudaMallocHost(void** p, size_t size) { return cudaHostAlloc(p, size, 0); }
static int copy(void* to, const void* from, size_t size, int kind) {
    no_op_counts.copies_to_device += kind == cudaMemcpyHostToDevice;
    no_op_counts.pageable_copies += kind == cudaMemcpyHostToDevice && !is_pinned(from);
    no_op_counts.copies_to_host += kind == cudaMemcpyDeviceToHost;
    if (kind == cudaMemcpyDeviceToDevice)
        launched();
    else
        memcpy(to, from, size);
    return 0;
}
EXPORT int cudaMemcpyAsync(void* to, const void* from, size_t size, int kind, void* stream) {
    return copy(to, from, size, kind);
}
EXPORT int cudaMemcpy(void* to, const void* from, size_t size, int kind) {
    no_op_counts.waits++;
    return copy(to, from, size, kind);
}
EXPORT int cudaMemsetAsync(void* p, int value, size_t size, void* stream) { return launched(), 0; }
EXPORT int cudaPointerGetAttributes(struct cudaPointerAttributes* a, const void* p) {
    memset(a, 0, sizeof *a);
    a->type = is_pinned(p) ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered;
    return 0;
}

/* Waits */
EXPORT int cudaStreamSynchronize(void* stream) { return no_op_counts.waits++, 0; }
EXPORT int cudaDeviceSynchronize(void) { return no_op_counts.waits++, 0; }
EXPORT int cudaEventSynchronize(void* event) { return no_op_counts.waits++, 0; }

/* Streams, events and graphs */
EXPORT int cudaStreamCreateWithPriority(void** s, unsigned f, int p) { return *s = handle, 0; }
EXPORT int cudaStreamCreateWithFlags(void** s, unsigned f) { return *s = handle, 0; }
EXPORT int cudaStreamCreate(void** s) { return *s = handle, 0; }
EXPORT int cudaEventCreateWithFlags(void** e, unsigned f) { return *e = handle, 0; }
EXPORT int cudaEventCreate(void** e) { return *e = handle, 0; }
EXPORT int cudaEventElapsedTime(float* ms, void* a, void* b) { return *ms = 1, 0; }
EXPORT int cudaStreamIsCapturing(void* s, int* status) { return *status = capturing, 0; }
EXPORT int cudaStreamGetCaptureInfo(void* s, int* status, unsigned long long* id, void** graph,
                                    void*** dependencies, void*** edges, size_t* n) {
    *status = capturing;
    if (id) *id = capturing;
    if (graph) *graph = handle;
    if (dependencies) *dependencies = NULL;
    if (n) *n = 0;
    return 0;
}
EXPORT int cudaStreamBeginCapture(void* s, int mode) { return capturing = 1, 0; }
EXPORT int cudaStreamEndCapture(void* s, void** graph) {
    capturing = 0;
    return *graph = handle, 0;
}
EXPORT int cudaGraphInstantiate(void** e, void* g, unsigned long long f) { return *e = handle, 0; }
EXPORT int cudaGraphInstantiateWithFlags(void** e, void* g, unsigned long long f) {
    return *e = handle, 0;
}
EXPORT int cudaGraphGetNodes(void* g, void** nodes, size_t* n) { return *n = 1, 0; }
EXPORT int cudaGraphLaunch(void* e, void* s) { return no_op_counts.graph_launches++, 0; }

/* Kernels */
EXPORT void** __cudaRegisterFatBinary(void* p) { return (void**)handle; }
EXPORT void __cudaRegisterFatBinaryEnd(void** p) {}
EXPORT void __cudaUnregisterFatBinary(void** p) {}
EXPORT void __cudaRegisterFunction(void) {}
EXPORT void __cudaRegisterVar(void) {}
EXPORT unsigned __cudaPushCallConfiguration(void) { return 0; }
EXPORT int __cudaPopCallConfiguration(void) { return 0; }
EXPORT int __cudaGetKernel(void** kernel, const void* f) { return *kernel = handle, 0; }
EXPORT int __cudaLaunchKernel(void) { return launched(), 0; }
EXPORT int cudaLaunchKernel(void) { return launched(), 0; }
EXPORT int cudaLaunchKernelExC(void) { return launched(), 0; }
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* n) { return *n = 2, 0; }
EXPORT int cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* n) { return *n = 2, 0; }
EXPORT int cudaFuncGetAttributes(struct cudaFuncAttributes* a, const void* f) {
    memset(a, 0, sizeof *a);
    a->maxThreadsPerBlock = 1024, a->numRegs = 32, a->binaryVersion = a->ptxVersion = 90;
    return 0;
}
EXPORT const char* cudaGetErrorString(int e) { return "an error of no device"; }
EXPORT const char* cudaGetErrorName(int e) { return "an error of no device"; }

/* The driver, which Triton calls */
EXPORT int cuInit(unsigned f) { return 0; }
EXPORT int cuDriverGetVersion(int* v) { return *v = 13000, 0; }
EXPORT int cuDeviceGetCount(int* n) { return *n = DEVICES, 0; }
EXPORT int cuDeviceGet(int* d, int i) { return *d = i, 0; }
EXPORT int cuDeviceGetAttribute(int* value, int which, int d) { return attribute(value, which); }
EXPORT int cuCtxGetCurrent(void** c) { return *c = handle, 0; }
EXPORT int cuCtxGetDevice(int* d) { return *d = current, 0; }
EXPORT int cuCtxGetLimit(size_t* v, int which) { return *v = 0, 0; }
EXPORT int cuDevicePrimaryCtxRetain(void** c, int d) { return *c = handle, 0; }
EXPORT int cuDevicePrimaryCtxGetState(int d, unsigned* f, int* on) { return *f = 0, *on = 1, 0; }
EXPORT int cuModuleLoad(void** m, const char* path) { return *m = handle, 0; }
EXPORT int cuModuleLoadData(void** m, const void* image) { return *m = handle, 0; }
EXPORT int cuModuleGetFunction(void** f, void* m, const char* name) { return *f = handle, 0; }
EXPORT int cuFuncGetAttribute(int* v, int which, void* f) { return *v = which ? 32 : 1024, 0; }
EXPORT int cuPointerGetAttribute(void* v, int which, unsigned long long p) {
    return *(unsigned long long*)v = p, 0;
}
EXPORT int cuStreamIsCapturing(void* s, int* status) { return *status = capturing, 0; }
EXPORT int cuLaunchKernelEx(void) { return launched(), 0; }
EXPORT int cuLaunchKernel(void) { return launched(), 0; }
EXPORT int cuGetErrorString(int e, const char** s) { return *s = "an error of no device", 0; }

/* Products of cuBLAS */
EXPORT int cublasCreate_v2(void** h) { return *h = handle, 0; }
EXPORT int cublasGetMathMode(void* h, int* mode) { return *mode = 0, 0; }
EXPORT int cublasGetPointerMode_v2(void* h, int* mode) { return *mode = 0, 0; }
EXPORT int cublasSgemmEx(void) { return launched(), 0; }
EXPORT int cublasSgemm_v2(void) { return launched(), 0; }
EXPORT int cublasDgemm_v2(void) { return launched(), 0; }
EXPORT int cublasSgemv_v2(void) { return launched(), 0; }
EXPORT int cublasSdot_v2(void) { return launched(), 0; }
EXPORT int cublasDotEx(void) { return launched(), 0; }
EXPORT int cublasGemmEx(void) { return launched(), 0; }
EXPORT int cublasGemmStridedBatchedEx(void) { return launched(), 0; }
EXPORT int cublasLtMatmul(void) { return launched(), 0; }
EXPORT size_t cublasLtGetVersion(void) { return 130000; }
EXPORT int cublasLtMatmulDescCreate(void** d, int c, int t) { return *d = handle, 0; }
EXPORT int cublasLtMatrixLayoutCreate(void** d) { return *d = handle, 0; }
EXPORT int cublasLtMatmulPreferenceCreate(void** d) { return *d = handle, 0; }
EXPORT int cublasLtMatmulAlgoGetHeuristic(void* h, void* o, void* a, void* b, void* c, void* d,
                                          void* p, int asked, void* result, int* found) {
    memset(result, 0, 96); /* an algorithm, no workspace, success */
    return *found = 1, 0;
}

/* The rest only succeeds. */
#define SUCCEEDS(name) \
    EXPORT int name(void) { return 0; }
SUCCEEDS(cudaDeviceEnablePeerAccess) SUCCEEDS(cudaDeviceGetDefaultMemPool)
SUCCEEDS(cudaDeviceGetPCIBusId) SUCCEEDS(cudaEventDestroy) SUCCEEDS(cudaEventQuery)
SUCCEEDS(cudaEventRecord) SUCCEEDS(cudaEventRecordWithFlags) SUCCEEDS(cudaFree)
SUCCEEDS(cudaFreeAsync) SUCCEEDS(cudaFreeHost) SUCCEEDS(cudaFuncSetAttribute)
SUCCEEDS(cudaGetLastError) SUCCEEDS(cudaGraphDestroy) SUCCEEDS(cudaGraphExecDestroy)
SUCCEEDS(cudaHostRegister) SUCCEEDS(cudaHostUnregister) SUCCEEDS(cudaMemPoolTrimTo)
SUCCEEDS(cudaPeekAtLastError) SUCCEEDS(cudaProfilerStart) SUCCEEDS(cudaProfilerStop)
SUCCEEDS(cudaStreamDestroy) SUCCEEDS(cudaStreamQuery) SUCCEEDS(cudaStreamWaitEvent)
SUCCEEDS(cudaThreadExchangeStreamCaptureMode) SUCCEEDS(cudaMemset) SUCCEEDS(cuCtxSetCurrent)
SUCCEEDS(cuCtxSetLimit) SUCCEEDS(cuCtxPushCurrent_v2) SUCCEEDS(cuCtxPopCurrent_v2)
SUCCEEDS(cuFuncSetAttribute) SUCCEEDS(cuFuncSetCacheConfig) SUCCEEDS(cuModuleUnload)
SUCCEEDS(cuOccupancyMaxActiveClusters) SUCCEEDS(cuTensorMapEncodeTiled)
SUCCEEDS(cublasDestroy_v2) SUCCEEDS(cublasSetMathMode) SUCCEEDS(cublasSetPointerMode_v2)
SUCCEEDS(cublasSetStream_v2) SUCCEEDS(cublasSetWorkspace_v2) SUCCEEDS(cublasSetSmCountTarget)
SUCCEEDS(cublasLtMatmulDescDestroy) SUCCEEDS(cublasLtMatmulDescSetAttribute)
SUCCEEDS(cublasLtMatrixLayoutDestroy) SUCCEEDS(cublasLtMatrixLayoutSetAttribute)
SUCCEEDS(cublasLtMatmulPreferenceDestroy) SUCCEEDS(cublasLtMatmulPreferenceSetAttribute)

/* torch looks up functions of the driver by name. */
#include <dlfcn.h>
SUCCEEDS(no_op_other)
static int entry(const char* name, void** f, int* status) {
    *f = dlsym(RTLD_DEFAULT, name);
    if (*f == NULL) *f = (void*)no_op_other;
    if (status) *status = 0;
    return 0;
}
EXPORT int cudaGetDriverEntryPoint(const char* name, void** f, unsigned long long flags, int* s) {
    return entry(name, f, s);
}
EXPORT int cudaGetDriverEntryPointByVersion(const char* name, void** f, unsigned version,
                                            unsigned long long flags, int* s) {
    return entry(name, f, s);
}

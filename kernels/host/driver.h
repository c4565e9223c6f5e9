// A driver, an NVRTC, a cuBLAS and a cuSOLVER that run the kernels of this program on the host, for tests of everything between `quant` and a card. A
// "CUBIN" is the name of its unit. Put behind the program, whose `quant_launch` finds kernels by name.
//
// HOST_CARD_FAILS=function:code lets one function fail, and function:code:n after n calls that did not. HOST_CARD_MEMORY is all the
// bytes that it has.

#include <atomic>
#include <cmath>
#include <cstdlib>
#include <mutex>
#include <string>

namespace card {

static std::mutex lock;
static size_t used;

static size_t memory() {
    const char *bytes = getenv("HOST_CARD_MEMORY");
    return bytes ? strtoull(bytes, nullptr, 10) : size_t(8) << 30;
}

static int fails(const char *name) {
    static std::atomic<long> calls;
    const char *asked = getenv("HOST_CARD_FAILS"), *colon = asked ? strchr(asked, ':') : nullptr;
    if (!colon || strlen(name) != size_t(colon - asked) || strncmp(asked, name, colon - asked)) return 0;
    const char *after = strchr(colon + 1, ':');
    return after && calls++ < atol(after + 1) ? 0 : atoi(colon + 1);
}

struct Program {
    std::string name;
};
struct Module {
    std::string unit;
};
struct Function {
    std::string name;
};

} // namespace card

#define CALL(name, ...)                                                                                                      \
    extern "C" __attribute__((visibility("default"))) int name(__VA_ARGS__) {                                               \
        if (int code = card::fails(#name)) return code;
#define END                                                                                                                  \
    return 0;                                                                                                               \
    }

CALL(cuInit, unsigned) END
CALL(cuDriverGetVersion, int *version) *version = 13000; END
CALL(cuGetErrorString, int code, const char **text) *text = code == 2 ? "out of memory" : "a failure that was asked for"; END
CALL(cuDeviceGetCount, int *count) *count = 1; END
CALL(cuDeviceGet, int *device, int index) *device = index + 7; END
CALL(cuDeviceGetName, char *name, int size, int) snprintf(name, size, "the host"); END
CALL(cuDeviceTotalMem_v2, size_t *bytes, int) *bytes = card::memory(); END
CALL(cuDeviceGetAttribute, int *value, int which, int device)
    if (device != 7) return 101;
    *value = which == 75 ? 9 : which == 76 ? 0 : 1;
END
CALL(cuDevicePrimaryCtxRetain, void **context, int) *context = &card::used; END
CALL(cuDevicePrimaryCtxRelease_v2, int) END
CALL(cuCtxSetCurrent, void *context) if (context != &card::used) return 201; END
CALL(cuCtxSynchronize, void) END
CALL(cuMemGetInfo_v2, size_t *free, size_t *total) *total = card::memory(); *free = card::memory() - card::used; END
CALL(cuMemAlloc_v2, unsigned long long *at, size_t bytes)
    std::lock_guard<std::mutex> guard(card::lock);
    if (bytes > card::memory() - card::used) return 2;
    char *memory = static_cast<char *>(malloc(bytes + 16));
    if (!memory) return 2;
    memcpy(memory, &bytes, sizeof bytes);
    card::used += bytes;
    memset(memory + 16, 0xff, bytes); // what nobody wrote is no number
    *at = reinterpret_cast<unsigned long long>(memory + 16);
END
CALL(cuMemFree_v2, unsigned long long at)
    char *memory = reinterpret_cast<char *>(at) - 16;
    size_t bytes;
    memcpy(&bytes, memory, sizeof bytes);
    std::lock_guard<std::mutex> guard(card::lock);
    card::used -= bytes;
    free(memory);
END
CALL(cuMemcpyHtoD_v2, unsigned long long to, const void *from, size_t n) memcpy(reinterpret_cast<void *>(to), from, n); END
CALL(cuMemcpyDtoH_v2, void *to, unsigned long long from, size_t n) memcpy(to, reinterpret_cast<void *>(from), n); END
CALL(cuMemcpyDtoD_v2, unsigned long long to, unsigned long long from, size_t n)
    memcpy(reinterpret_cast<void *>(to), reinterpret_cast<void *>(from), n);
END
CALL(cuMemAllocHost_v2, void **at, size_t bytes) *at = malloc(bytes); if (!*at) return 2; END
CALL(cuMemFreeHost, void *at) free(at); END
CALL(cuMemcpyHtoDAsync_v2, unsigned long long to, const void *from, size_t n, void *stream)
    if (stream) return 1;
    memcpy(reinterpret_cast<void *>(to), from, n);
END
CALL(cuMemcpyDtoHAsync_v2, void *to, unsigned long long from, size_t n, void *stream)
    if (stream) return 1;
    memcpy(to, reinterpret_cast<void *>(from), n);
END
CALL(cuEventCreate, void **event, unsigned) *event = new char; END
CALL(cuEventRecord, void *event, void *stream) if (!event || stream) return 1; END
CALL(cuEventSynchronize, void *event) if (!event) return 1; END
CALL(cuEventDestroy_v2, void *event) delete static_cast<char *>(event); END
CALL(cuModuleLoadData, void **module, const void *image)
    if (memcmp(image, "\x7f" "ELF", 4)) return 200;
    *module = new card::Module{static_cast<const char *>(image) + 4};
END
CALL(cuModuleUnload, void *module) delete static_cast<card::Module *>(module); END
CALL(cuModuleGetFunction, void **function, void *module, const char *name)
    *function = new card::Function{static_cast<card::Module *>(module)->unit + "/" + name};
END
CALL(cuLaunchKernel, void *function, unsigned bx, unsigned by, unsigned bz, unsigned tx, unsigned ty, unsigned tz, unsigned shared,
     void *stream, void **args, void **extra)
    if (bz != 1 || tz != 1 || shared || stream || extra || tx * ty > 1024) return 1;
    const unsigned shape[] = {bx, by, tx, ty};
    std::lock_guard<std::mutex> guard(card::lock);
    if (quant_launch(static_cast<card::Function *>(function)->name.c_str(), shape, args, 0)) return 719;
END

// cuBLAS: plain loops, of what was rounded as it rounds.
namespace card {

static float rounded(float x, int compute) {
    unsigned drop = compute == 77 ? 13 : compute == 75 ? 16 : 0, bits;
    if (!drop) return x;
    memcpy(&bits, &x, 4);
    bits = (bits + (1u << (drop - 1)) - 1 + (bits >> drop & 1)) & ~((1u << drop) - 1);
    memcpy(&x, &bits, 4);
    return x;
}

} // namespace card

extern "C" __attribute__((visibility("default"))) const char *cublasGetStatusString(int code) {
    return code == 7 ? "an unsupported value or parameter was passed to the function" : "a failure that was asked for";
}
CALL(cublasCreate_v2, void **handle) *handle = &card::lock; END
CALL(cublasDestroy_v2, void *handle) if (handle != &card::lock) return 1; END
CALL(cublasGemmEx, void *handle, int left, int right, int m, int n, int k, const float *alpha, const float *a, int a_type, int lda,
     const float *b, int b_type, int ldb, const float *beta, float *c, int c_type, int ldc, int compute, int)
    if (handle != &card::lock) return 1;
    if (a_type || b_type || c_type || (compute != 68 && compute != 75 && compute != 77)) return 15;
    if (lda < (left ? k : m) || ldb < (right ? n : k) || ldc < m || m < 1 || n < 1 || k < 1) return 7;
    for (long j = 0; j < n; j++)
        for (long i = 0; i < m; i++) {
            float sum = 0;
            for (long l = 0; l < k; l++)
                sum += card::rounded(left ? a[i * lda + l] : a[l * lda + i], compute) *
                       card::rounded(right ? b[l * ldb + j] : b[j * ldb + l], compute);
            c[j * ldc + i] = *alpha * sum + (*beta ? *beta * c[j * ldc + i] : 0);
        }
END

CALL(cusolverDnCreate, void **handle) *handle = &card::used; END
CALL(cusolverDnDestroy, void *handle) if (handle != &card::used) return 1; END
CALL(cusolverDnDpotrf_bufferSize, void *handle, int part, int n, double *, int stride, int *size)
    if (handle != &card::used || part != 1 || stride < n) return 3;
    *size = n;
END
// A = U^T U, U above the diagonal of columns one after another.
CALL(cusolverDnDpotrf, void *handle, int part, int n, double *a, int stride, double *work, int size, int *went)
    if (handle != &card::used || part != 1 || stride < n || size < n || !work) return 3;
    *went = 0;
    for (long j = 0; j < n && !*went; j++)
        for (long i = 0; i <= j; i++) {
            double sum = a[j * stride + i];
            for (long k = 0; k < i; k++) sum -= a[i * stride + k] * a[j * stride + k];
            if (i < j) a[j * stride + i] = sum / a[i * stride + i];
            else if (sum > 0) a[j * stride + j] = sqrt(sum);
            else *went = int(j + 1);
            work[i] = 0;
        }
END

CALL(nvrtcVersion, int *major, int *minor) *major = 13; *minor = 0; END
CALL(nvrtcGetNumSupportedArchs, int *count) *count = 2; END
CALL(nvrtcGetSupportedArchs, int *archs) archs[0] = 80; archs[1] = 90; END
CALL(nvrtcCreateProgram, void **program, const char *, const char *name, int, const char *const *, const char *const *)
    std::string unit = name;
    *program = new card::Program{unit.substr(0, unit.size() - 3)}; // .cu
END
CALL(nvrtcDestroyProgram, void **program) delete static_cast<card::Program *>(*program); END
CALL(nvrtcCompileProgram, void *, int, const char *const *) END
CALL(nvrtcGetProgramLogSize, void *, size_t *size) *size = 7; END
CALL(nvrtcGetProgramLog, void *, char *log) memcpy(log, "no log", 7); END
CALL(nvrtcGetCUBINSize, void *program, size_t *size) *size = static_cast<card::Program *>(program)->name.size() + 5; END
CALL(nvrtcGetCUBIN, void *program, char *cubin)
    strcpy(cubin, "\x7f" "ELF");
    strcpy(cubin + 4, static_cast<card::Program *>(program)->name.c_str());
END

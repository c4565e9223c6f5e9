// What every kernel uses. No CUDA header is included anywhere: NVRTC knows the language, `host/cuda.h` teaches it to C++.
// Products and sums are separate roundings (compiled with --fmad=false); where one rounding is meant, `fmaf` says so.

// A kernel uses a few of the numbers that all are given.
#pragma nv_diag_suppress 177

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifndef FN
#define FN __device__ __forceinline__
#define KERNEL extern "C" __global__ void
// Of blocks of so many threads, so many at once on a multiprocessor: registers are divided accordingly.
#define KERNEL_OF(threads, blocks) extern "C" __global__ void __launch_bounds__(threads, blocks)
#define CONSTANT __constant__ const
#endif

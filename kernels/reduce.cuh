// One number from all threads of a block, the same for each of them. blockDim.x is a power of two, at most 256.

struct Add {
    template <class T> static FN T of(T a, T b) { return a + b; }
};
struct Largest {
    template <class T> static FN T of(T a, T b) { return a > b ? a : b; }
};

template <class Op, class T> FN T over_block(T x) {
    __shared__ T shared[256];
    shared[threadIdx.x] = x;
    __syncthreads();
    for (u32 n = blockDim.x / 2; n > 0; n /= 2) {
        if (threadIdx.x < n) shared[threadIdx.x] = Op::of(shared[threadIdx.x], shared[threadIdx.x + n]);
        __syncthreads();
    }
    x = shared[0];
    __syncthreads();
    return x;
}

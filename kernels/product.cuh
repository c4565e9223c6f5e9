// Products whose every element is `((x0*w0 + x1*w1) + x2*w2) ...`, fused, first to last, in chunks of DEPTH terms that are added
// up: the bits of `src/device/cpu/kernel.rs`. A block of 16 x 16 threads makes a TILE x TILE square, a thread 4 x 4 of it.

const int TILE = 64, STEP = 16, SIDE = 16, EACH = TILE / SIDE;

// Elements of the left and the right factor: (i, k) and (k, j), zero outside.
template <class T> struct Factor {
    const T *at;
    i64 outer, along; // from one i (or j) to the next, from one k to the next
    int count;
    const float *weights; // of each k, or null
    FN float get(int i, int k, int depth) const {
        if (i >= count || k >= depth) return 0.0f;
        float x = load(at + i * outer + k * along);
        return weights ? x * weights[k] : x;
    }
};

template <class T> FN void fill(const Factor<T> &f, int from, int k0, int depth, float (*shared)[TILE + 1], bool along_first) {
    int thread = threadIdx.y * SIDE + threadIdx.x;
    for (int n = thread; n < TILE * STEP; n += SIDE * SIDE) {
        // Neighbouring threads read neighbouring addresses, whichever way the factor lies.
        int i = along_first ? n / STEP : n % TILE, k = along_first ? n % STEP : n / TILE;
        shared[k][i] = f.get(from + i, k0 + k, depth);
    }
}

// The square of blockIdx, in `sums`.
template <class A, class B>
FN void multiply(const Factor<A> &a, const Factor<B> &b, int depth, float (*sums)[EACH]) {
    __shared__ float left[STEP][TILE + 1], right[STEP][TILE + 1];
    float chunk[EACH][EACH];
    for (int r = 0; r < EACH; r++)
        for (int c = 0; c < EACH; c++) sums[r][c] = chunk[r][c] = 0.0f;
    for (int k0 = 0; k0 < depth; k0 += STEP) {
        fill(a, blockIdx.y * TILE, k0, depth, left, a.along == 1);
        fill(b, blockIdx.x * TILE, k0, depth, right, b.along == 1);
        __syncthreads();
        // Beyond the last term nothing may be added: -0 + 0 is another number.
        for (int k = 0; k < STEP && k0 + k < depth; k++)
            for (int r = 0; r < EACH; r++)
                for (int c = 0; c < EACH; c++)
                    chunk[r][c] = fmaf(left[k][threadIdx.y + r * SIDE], right[k][threadIdx.x + c * SIDE], chunk[r][c]);
        __syncthreads();
        if ((k0 + STEP) % PRODUCT_DEPTH != 0 && k0 + STEP < depth) continue;
        for (int r = 0; r < EACH; r++)
            for (int c = 0; c < EACH; c++) {
                sums[r][c] = k0 < PRODUCT_DEPTH ? chunk[r][c] : sums[r][c] + chunk[r][c];
                chunk[r][c] = 0.0f;
            }
    }
}

FN int row_of(int r) { return blockIdx.y * TILE + threadIdx.y + r * SIDE; }
FN int column_of(int c) { return blockIdx.x * TILE + threadIdx.x + c * SIDE; }

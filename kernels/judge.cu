// What errors of weights do to the output: `e H e^T`, of whole rows or of the groups of a row.

FN i64 element() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }

// All of a symmetric matrix, `[n][n]`, of its upper triangle.
KERNEL dense(const float *upper, int n, float *out) {
    i64 at = element(), wide = n, i = at / wide, j = at % wide, low = i < j ? i : j, high = i < j ? j : i;
    if (i < wide) out[at] = upper[low * (2 * wide - low + 1) / 2 + high - low];
}

// The sum of all products, in as many shares as there are blocks.
KERNEL products(const float *a, const float *b, i64 n, double *out) {
    double sum = 0.0;
    for (i64 i = element(); i < n; i += i64(gridDim.x) * blockDim.x) sum += double(a[i]) * double(b[i]);
    sum = over_block<Add>(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// The same of every group of `group` elements: a block has one.
KERNEL group_products(const float *a, const float *b, int group, double *out) {
    i64 first = i64(blockIdx.x) * group;
    double sum = 0.0;
    for (int i = threadIdx.x; i < group; i += blockDim.x) sum += double(a[first + i]) * double(b[first + i]);
    sum = over_block<Add>(sum);
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

// Of every group the scale and the codes that lose less; a block has one.
KERNEL keep(const double *loss, const Scale *scales, const u8 *codes, int group, double *least, Scale *best, u8 *chosen) {
    i64 at = blockIdx.x;
    bool better = loss[at] < least[at];
    __syncthreads();
    if (!better) return;
    for (int i = threadIdx.x; i < group; i += blockDim.x) chosen[at * group + i] = codes[at * group + i];
    if (threadIdx.x == 0) {
        least[at] = loss[at];
        best[at] = scales[at];
    }
}

// The feedback of a site (`src/calibrate/method/gptq.rs`) around a library's factor. `upper` is a Gram matrix, the upper triangle row
// after row; columns are counted in the order in which they are solved, and in a factor from the last to the first.

FN i64 in_triangle(i64 n, i64 i, i64 j) { return i <= j ? i * (2 * n - i + 1) / 2 + j - i : j * (2 * n - j + 1) / 2 + i - j; }
FN i64 element() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }

// The matrix in its order, what is on its diagonal times `damped`; of dead columns 1. Above the diagonal zeros.
KERNEL damp(const float *upper, const u32 *order, int n, double damped, double *out) {
    i64 at = element(), i = at / n, j = at % n;
    if (i >= n) return;
    u32 row = order[n - 1 - i], column = order[n - 1 - j];
    double x = j <= i ? double(upper[in_triangle(n, row, column)]) : 0.0;
    out[at] = i != j ? x : x > 0.0 ? x * damped : 1.0;
}

KERNEL shares(const double *factor, int n, int stride, float *out) {
    i64 at = element(), j = at / stride, k = at % stride, last = n - 1;
    if (j >= n) return;
    out[at] = k > j && k < n ? float(factor[(last - j) * n + last - k] / factor[(last - k) * n + last - k]) : 0.0f;
}

KERNEL variances(const double *factor, const u32 *order, int n, float *out) {
    i64 j = element(), at = n - 1 - j;
    if (j < n) out[order[j]] = float(factor[at * n + at] * factor[at * n + at]);
}

// Shares of weights whose columns were multiplied with `scale`, those of the order.
KERNEL scale_shares(const float *shares, const float *scale, int n, int stride, float *out) {
    i64 at = element(), j = at / stride, k = at % stride;
    if (j < n) out[at] = k < n ? shares[at] * (scale[k] / scale[j]) : shares[at];
}

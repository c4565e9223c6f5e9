// Adds x^T x over at most GRAM_ROWS rows of x, `[rows][columns]`, to the upper triangle, row after row, in f64. `weights` multiply
// rows first, or are null. Squares below the diagonal are not computed.

template <class X> FN void add_gram(const X *x, const float *weights, int rows, int columns, double *upper) {
    if (blockIdx.x < blockIdx.y) return;
    Factor<X> f = {x, 1, columns, columns, weights};
    float sums[EACH][EACH];
    multiply(f, f, rows, sums);
    for (int r = 0; r < EACH; r++)
        for (int c = 0; c < EACH; c++) {
            i64 i = row_of(r), j = column_of(c), n = columns;
            if (i <= j && j < n) upper[i * (2 * n - i + 1) / 2 + j - i] += double(sums[r][c]);
        }
}

KERNEL gram_f32(const float *x, const float *weights, int rows, int columns, double *upper) {
    add_gram(x, weights, rows, columns, upper);
}
KERNEL gram_bf16(const u16 *x, const float *weights, int rows, int columns, double *upper) {
    add_gram(x, weights, rows, columns, upper);
}

// Of sums in f64.
KERNEL means(const double *sums, i64 n, double count, float *out) {
    i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at < n) out[at] = float(sums[at] / count);
}

// Inner products of columns `from`.. `from + count` with all from `from` on, `[count][columns - from]`: what is on the diagonal or to
// its right is added.
KERNEL add_strip(const float *strip, int from, int count, int columns, double *upper) {
    i64 n = columns, wide = n - from, at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    i64 i = from + at / wide, j = from + at % wide;
    if (at < count * wide && i <= j) upper[i * (2 * n - i + 1) / 2 + j - i] += double(strip[at]);
}

// Some columns of x times the squares of the rows' weights: `[rows][count]` from rows of `columns`.
KERNEL weigh_strip(const float *x, const float *weights, int rows, int count, int columns, float *out) {
    i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x, row = at / count;
    if (row < rows) out[at] = x[row * columns + at % count] * (weights[row] * weights[row]);
}

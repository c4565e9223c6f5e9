// Per column of x, `[rows][columns]`: sums of squares and of values in f64, and the largest magnitude. A block sums its share of the
// rows; `fold_moments` adds the shares in order, so that a result does not depend on what runs first.

template <class X>
FN void moments_of(const X *x, const float *weights, i64 rows, int columns, double *squares, double *sums, float *most) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    i64 each = (rows + gridDim.y - 1) / gridDim.y, from = each * blockIdx.y, until = from + each < rows ? from + each : rows;
    double square = 0.0, sum = 0.0;
    float largest = 0.0f;
    for (i64 row = from; row < until; row++) {
        float value = load(x + row * columns + column);
        double wide = weights ? double(value) * double(weights[row]) : double(value);
        square += wide * wide;
        sum += wide;
        if (fabsf(value) > largest) largest = fabsf(value);
    }
    i64 at = i64(blockIdx.y) * columns + column;
    squares[at] = square;
    sums[at] = sum;
    most[at] = largest;
}

KERNEL moments_f32(const float *x, const float *weights, i64 rows, int columns, double *squares, double *sums, float *most) {
    moments_of(x, weights, rows, columns, squares, sums, most);
}
KERNEL moments_bf16(const u16 *x, const float *weights, i64 rows, int columns, double *squares, double *sums, float *most) {
    moments_of(x, weights, rows, columns, squares, sums, most);
}

// Adds `shares` rows to the totals.
KERNEL fold_moments(int shares, int columns, const double *squares, const double *sums, const float *most, double *all_squares,
                    double *all_sums, float *all_most) {
    int column = blockIdx.x * blockDim.x + threadIdx.x;
    if (column >= columns) return;
    for (int n = 0; n < shares; n++) {
        i64 at = i64(n) * columns + column;
        all_squares[column] += squares[at];
        all_sums[column] += sums[at];
        if (most[at] > all_most[column]) all_most[column] = most[at];
    }
}

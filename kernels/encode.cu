// Blocks from weights, byte for byte what the format's own encoder on the CPU writes. GRID is the block's struct. A thread encodes a
// block: its sums run in the order of the reference.

// Mean squares of rows, summed in order; what some encoders mix into the importance.
KERNEL row_squares(const float *w, i64 rows, int cols, float *means) {
    i64 row = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (row < rows) means[row] = energy(w + row * cols, cols) / float(cols);
}

// `importance` has `cols` values or is null; `means` are those of the rows, null without importance.
KERNEL encode(const float *w, i64 blocks, int cols, const float *importance, const float *means, u8 *out) {
    i64 n = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (n >= blocks) return;
    int per_row = cols / GRID::WEIGHTS;
    i64 row = n / per_row;
    const float *own = importance ? importance + (n - row * per_row) * GRID::WEIGHTS : 0;
    GRID::encode(w + n * GRID::WEIGHTS, own, importance ? means[row] : 0.0f, out + n * GRID::BYTES);
}

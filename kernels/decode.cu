// Stored weights to numbers, `[rows][cols]`: the format's own decoder, bit for bit. GRID is the format's struct.
// A thread reads RUN neighbours of a row, which share a scale: groups are of 16 columns and more.

const int RUN = 4;

template <class OUT> FN void decode_to(const Parts &parts, const Shape &shape, i64 first, i64 rows, OUT *out) {
    int col = (blockIdx.x * blockDim.x + threadIdx.x) * RUN;
    if (col >= shape.cols) return;
    for (i64 row = blockIdx.y; row < rows; row += gridDim.y) {
        Scale scale = GRID::scale_of(parts, shape, first + row, col);
        for (int i = 0; i < RUN && col + i < shape.cols; i++) {
            if (GRID::SCATTERED) scale = GRID::scale_of(parts, shape, first + row, col + i);
            float x = (GRID::level_of(parts, shape, first + row, col + i) - scale.zero) * scale.step;
            store(GRID::OFFSET ? x + scale.offset : x, out + row * shape.cols + col + i);
        }
    }
}

KERNEL decode_f32(Parts parts, Shape shape, i64 first, i64 rows, float *out) { decode_to(parts, shape, first, rows, out); }
KERNEL decode_bf16(Parts parts, Shape shape, i64 first, i64 rows, u16 *out) { decode_to(parts, shape, first, rows, out); }

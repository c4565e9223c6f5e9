// out[t][n] = sum over k of x[t][k] w[n][k]: a layer's product in the CPU's own arithmetic, the exact mode. Rows of `out` are `stride`
// apart.

template <class W> FN void linear_of(const float *x, const W *w, int tokens, int rows, int depth, int stride, float *out) {
    Factor<float> a = {x, depth, 1, tokens, 0};
    Factor<W> b = {w, depth, 1, rows, 0};
    float sums[EACH][EACH];
    multiply(a, b, depth, sums);
    for (int r = 0; r < EACH; r++)
        for (int c = 0; c < EACH; c++)
            if (row_of(r) < tokens && column_of(c) < rows) out[i64(row_of(r)) * stride + column_of(c)] = sums[r][c];
}

KERNEL linear_f32(const float *x, const float *w, int tokens, int rows, int depth, int stride, float *out) {
    linear_of(x, w, tokens, rows, depth, stride, out);
}
KERNEL linear_bf16(const float *x, const u16 *w, int tokens, int rows, int depth, int stride, float *out) {
    linear_of(x, w, tokens, rows, depth, stride, out);
}

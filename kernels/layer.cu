// What happens between a layer's products. A block takes a row, or a thread an element.

// out = x / sqrt(mean(x^2) + eps) * gain
KERNEL rms_norm(const float *x, const float *gain, int n, float eps, float *out) {
    const float *row = x + i64(blockIdx.x) * n;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < n; i += blockDim.x) sum += row[i] * row[i];
    float scale = 1.0f / sqrtf(over_block<Add>(sum) / float(n) + eps);
    for (int i = threadIdx.x; i < n; i += blockDim.x) out[i64(blockIdx.x) * n + i] = row[i] * scale * gain[i];
}

FN i64 element() { return i64(blockIdx.x) * blockDim.x + threadIdx.x; }

KERNEL fill(float *x, float value, i64 n) {
    if (element() < n) x[element()] = value;
}

KERNEL add(float *x, const float *y, i64 n) {
    if (element() < n) x[element()] += y[element()];
}

KERNEL scale(float *x, float factor, i64 n) {
    if (element() < n) x[element()] *= factor;
}

// The same to every row.
KERNEL add_bias(float *x, const float *bias, int columns, i64 n) {
    if (element() < n) x[element()] += bias[element() % columns];
}

// found = 1 where some element is infinite or no number; else it stays as it is.
KERNEL find_not_finite(const float *x, u32 *found, i64 n) {
    if (element() < n && (__float_as_uint(x[element()]) & 0x7f800000u) == 0x7f800000u) *found = 1;
}

KERNEL widen_f16(float *out, const u16 *x, i64 n) {
    if (element() < n) out[element()] = half_to_float(x[element()]);
}
KERNEL widen_bf16(float *out, const u16 *x, i64 n) {
    if (element() < n) out[element()] = bf16_to_float(x[element()]);
}

// gate = activation(gate) * up
KERNEL silu(float *gate, const float *up, i64 n) {
    i64 i = element();
    if (i < n) gate[i] = gate[i] / (1.0f + exponential(-gate[i])) * up[i];
}

KERNEL gelu(float *gate, const float *up, i64 n) {
    i64 i = element();
    if (i >= n) return;
    float x = gate[i];
    gate[i] = x / (1.0f + exponential(-(GELU_TWICE_SQRT_2_OVER_PI * x * (1.0f + GELU_CUBE * x * x)))) * up[i];
}

KERNEL clamped_silu(float *gate, const float *up, i64 n) {
    i64 i = element();
    if (i >= n) return;
    float x = fminf(gate[i], CLAMPED_SILU_LIMIT), u = fminf(fmaxf(up[i], -CLAMPED_SILU_LIMIT), CLAMPED_SILU_LIMIT);
    gate[i] = x / (1.0f + exponential(CLAMPED_SILU_SLOPE * -x)) * (u + 1.0f);
}

// x = cap * tanh(x / cap)
KERNEL softcap(float *x, float cap, i64 n) {
    if (element() < n) x[element()] = capped(x[element()], cap);
}

// Turns every head of x, `[tokens][heads * head_dim]`, by `turns`, `[tokens][pairs]` of cosine and sine: neighbours
// (2i, 2i + 1), or halves (i, i + pairs).
KERNEL rope(float *x, const float *turns, i64 tokens, int heads, int head_dim, int pairs, int halves) {
    i64 n = element(), all = tokens * heads * pairs;
    if (n >= all) return;
    int pair = int(n % pairs);
    i64 head = n / pairs;
    const float *turn = turns + (head / heads * pairs + pair) * 2;
    float *at = x + head * head_dim;
    int a = halves ? pair : 2 * pair, b = halves ? pair + pairs : 2 * pair + 1;
    float p = at[a], q = at[b];
    at[a] = p * turn[0] - q * turn[1];
    at[b] = p * turn[1] + q * turn[0];
}

// Rows of x, in any order: out[i] = x[rows[i]].
KERNEL pick(float *out, const float *x, const u32 *rows, int columns, i64 n) {
    i64 i = element();
    if (i < n) out[i] = x[i64(rows[i / columns]) * columns + i % columns];
}

// out[rows[i]] += weights[i] * y[i]; no row comes twice.
KERNEL scatter(const float *y, float *out, const u32 *rows, const float *weights, int columns, i64 n) {
    i64 i = element();
    if (i < n) out[i64(rows[i / columns]) * columns + i % columns] += y[i] * weights[i / columns];
}

// The product of every row of x with w, added up from the first column to the last.
KERNEL dots(float *out, const float *x, const float *w, int columns, i64 rows) {
    i64 row = element();
    if (row >= rows) return;
    float sum = -0.0f;
    for (int i = 0; i < columns; i++) sum += w[i] * x[row * columns + i];
    out[row] = sum;
}

// Causal attention of queries `[tokens][heads][HEAD_DIM]` over keys and values `[positions][kv_heads][HEAD_DIM]`; the first query
// stands at position `first`. Grouped heads, an optional window (positions that a query sees, itself included; 0: all) and softcap
// (0: none); `sinks`, if any, are scores without a value, one a head. Softmax is taken while keys go by, TILE at a time: no matrix of
// scores exists.
//
// A block has TILE queries of one head. A thread scores EACH of them against EACH keys of a tile, and mixes for the same queries EACH
// columns in every TILE of the values: four numbers from either side serve sixteen products.

const int TILE = 64, DEPTH = 32, SIDE = 16, EACH = TILE / SIDE, PARTS = (HEAD_DIM + TILE - 1) / TILE;

// Four neighbours, which are read as one.
struct alignas(16) Four {
    float at[EACH];
};
// Rows of TILE numbers, far enough from each other that writes go to many banks.
const int WIDTH = SIDE + 1;

FN Four four(const float *x) { return *(const Four *)x; }

// Columns `from`.. of TILE rows of which the first `count` are there, turned: `to[column][row]`.
FN void load_turned(const float *x, i64 stride, int count, int from, Four (*to)[WIDTH]) {
    for (int n = threadIdx.y * SIDE + threadIdx.x; n < TILE * DEPTH / EACH; n += SIDE * SIDE) {
        int row = n % TILE, column = n / TILE * EACH;
        Four value = {};
        if (row < count && from + column < HEAD_DIM) value = four(x + row * stride + from + column);
        for (int i = 0; i < EACH; i++) to[column + i][row / EACH].at[row % EACH] = value.at[i];
    }
}

// The same as they are, TILE columns.
FN void load(const float *x, i64 stride, int count, int from, Four (*to)[WIDTH]) {
    for (int n = threadIdx.y * SIDE + threadIdx.x; n < TILE * SIDE; n += SIDE * SIDE) {
        int row = n / SIDE, column = n % SIDE;
        Four value = {};
        if (row < count && from + column * EACH < HEAD_DIM) value = four(x + row * stride + from + column * EACH);
        to[row][column] = value;
    }
}

// From the SIDE threads that share queries.
FN float over_side(float x, bool largest) {
    for (int n = SIDE / 2; n > 0; n /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, n);
        x = largest ? fmaxf(x, other) : x + other;
    }
    return x;
}

KERNEL_OF(256, HEAD_DIM > 128 ? 1 : 2) attention(const float *q, const float *k, const float *v, int tokens, int first, int heads, int kv_heads, float scale,
                                                 float cap, int window, const float *sinks, float *out) {
    // Queries and keys lie in halves of what values take later.
    __shared__ Four tile[TILE][WIDTH], weights[TILE][WIDTH];
    int head = blockIdx.y, kv = head / (heads / kv_heads), across = threadIdx.x, down = threadIdx.y;
    // Those that see most begin first.
    int token = int(gridDim.x - 1 - blockIdx.x) * TILE;
    i64 wide = i64(heads) * HEAD_DIM, narrow = i64(kv_heads) * HEAD_DIM;
    const float *queries = q + token * wide + head * HEAD_DIM;
    float most[EACH], sum[EACH], mixed[EACH][PARTS][EACH];
#pragma unroll
    for (int r = 0; r < EACH; r++) {
        most[r] = -infinity();
        sum[r] = 0.0f;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            for (int c = 0; c < EACH; c++) mixed[r][p][c] = 0.0f;
    }
    int last = first + min(token + TILE, tokens) - 1;
    int start = window > 0 ? max(first + token + 1 - window, 0) / TILE * TILE : 0;
    for (int from = start; from <= last; from += TILE) {
        float score[EACH][EACH] = {};
        const float *keys = k + from * narrow + kv * HEAD_DIM, *values = v + from * narrow + kv * HEAD_DIM;
        int count = last + 1 - from;
        for (int d = 0; d < HEAD_DIM; d += DEPTH) {
            __syncthreads();
            load_turned(queries, wide, tokens - token, d, tile);
            load_turned(keys, narrow, count, d, tile + DEPTH);
            __syncthreads();
#pragma unroll 8
            for (int i = 0; i < DEPTH; i++) {
                Four a = tile[i][down], b = tile[DEPTH + i][across];
#pragma unroll
                for (int r = 0; r < EACH; r++)
#pragma unroll
                    for (int c = 0; c < EACH; c++) score[r][c] = fmaf(a.at[r], b.at[c], score[r][c]);
            }
        }
#pragma unroll
        for (int r = 0; r < EACH; r++) {
            int position = first + token + down * EACH + r;
            float top = -infinity(), total = 0.0f;
#pragma unroll
            for (int c = 0; c < EACH; c++) {
                int at = from + across * EACH + c;
                float x = score[r][c] * scale;
                if (cap > 0.0f) x = capped(x, cap);
                if (at > position || (window > 0 && at + window <= position)) x = -infinity();
                score[r][c] = x;
                top = fmaxf(top, x);
            }
            top = fmaxf(over_side(top, true), most[r]);
            // A tile of which nothing is seen leaves all as it is.
            float rescale = top == most[r] ? 1.0f : exponential(most[r] - top);
#pragma unroll
            for (int c = 0; c < EACH; c++) {
                score[r][c] = score[r][c] == -infinity() ? 0.0f : exponential(score[r][c] - top);
                total += score[r][c];
            }
            most[r] = top;
            sum[r] = sum[r] * rescale + over_side(total, false);
#pragma unroll
            for (int p = 0; p < PARTS; p++)
#pragma unroll
                for (int c = 0; c < EACH; c++) mixed[r][p][c] *= rescale;
        }
#pragma unroll
        for (int c = 0; c < EACH; c++) {
            Four column = {{score[0][c], score[1][c], score[2][c], score[3][c]}};
            weights[across * EACH + c][down] = column;
        }
#pragma unroll
        for (int p = 0; p < PARTS; p++) {
            __syncthreads();
            load(values, narrow, count, p * TILE, tile);
            __syncthreads();
#pragma unroll 8
            for (int key = 0; key < TILE; key++) {
                Four a = weights[key][down], b = tile[key][across];
#pragma unroll
                for (int r = 0; r < EACH; r++)
#pragma unroll
                    for (int c = 0; c < EACH; c++) mixed[r][p][c] = fmaf(a.at[r], b.at[c], mixed[r][p][c]);
            }
        }
    }
#pragma unroll
    for (int r = 0; r < EACH; r++) {
        int t = token + down * EACH + r;
        float all = sinks ? sum[r] + exponential(sinks[head] - most[r]) : sum[r];
#pragma unroll
        for (int p = 0; p < PARTS; p++)
#pragma unroll
            for (int c = 0; c < EACH; c++) {
                int column = p * TILE + across * EACH + c;
                if (t < tokens && column < HEAD_DIM) out[t * wide + head * HEAD_DIM + column] = mixed[r][p][c] * (1.0f / all);
            }
    }
}

// Causal attention of queries `[tokens][heads][HEAD_DIM]` over keys and values `[positions][kv_heads][HEAD_DIM]`; the first query
// stands at position `first`. Grouped heads, an optional window (positions that a query sees, itself included; 0: all) and softcap
// (0: none); `sinks`, if any, are scores without a value, one a head. Softmax is taken while keys go by, 32 at a time: no matrix of scores exists.
//
// A block has QUERIES queries of one head, a warp QUERIES / WARPS of them. A lane scores a key of the tile, then sums every 32nd
// element of the values.

const int QUERIES = 8, WARPS = 4, KEYS = 32, MINE = QUERIES / WARPS, PARTS = (HEAD_DIM + 31) / 32;

KERNEL attention(const float *q, const float *k, const float *v, int tokens, int first, int heads, int kv_heads, float scale,
                 float cap, int window, const float *sinks, float *out) {
    __shared__ float queries[QUERIES][HEAD_DIM], tile[KEYS][HEAD_DIM + 1];
    int head = blockIdx.y, kv = head / (heads / kv_heads), lane = threadIdx.x, warp = threadIdx.y;
    int token = blockIdx.x * QUERIES, thread = warp * 32 + lane;
    for (int n = thread; n < QUERIES * HEAD_DIM; n += 32 * WARPS) {
        int t = token + n / HEAD_DIM;
        queries[n / HEAD_DIM][n % HEAD_DIM] = t < tokens ? q[(i64(t) * heads + head) * HEAD_DIM + n % HEAD_DIM] : 0.0f;
    }
    float most[MINE], sum[MINE], mixed[MINE][PARTS];
    for (int m = 0; m < MINE; m++) {
        most[m] = -infinity();
        sum[m] = 0.0f;
        for (int p = 0; p < PARTS; p++) mixed[m][p] = 0.0f;
    }
    int last = first + min(token + QUERIES, tokens) - 1;
    int start = window > 0 ? max(first + token + 1 - window, 0) / KEYS * KEYS : 0;
    for (int from = start; from <= last; from += KEYS) {
        float weight[MINE];
        for (int which = 0; which < 2; which++) {
            const float *source = which == 0 ? k : v;
            __syncthreads();
            for (int n = thread; n < KEYS * HEAD_DIM; n += 32 * WARPS) {
                int position = from + n / HEAD_DIM;
                i64 at = (i64(position) * kv_heads + kv) * HEAD_DIM + n % HEAD_DIM;
                tile[n / HEAD_DIM][n % HEAD_DIM] = position <= last ? source[at] : 0.0f;
            }
            __syncthreads();
            for (int m = 0; m < MINE; m++) {
                int own = warp * MINE + m, position = first + token + own;
                if (which == 0) {
                    float score = 0.0f;
                    for (int d = 0; d < HEAD_DIM; d++) score = fmaf(queries[own][d], tile[lane][d], score);
                    score = score * scale;
                    if (cap > 0.0f) score = capped(score, cap);
                    int at = from + lane;
                    if (at > position || (window > 0 && at + window <= position)) score = -infinity();
                    float top = score;
                    for (int n = 16; n > 0; n /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, n));
                    top = fmaxf(top, most[m]);
                    // A tile of which nothing is seen leaves all as it is.
                    float rescale = top == most[m] ? 1.0f : exponential(most[m] - top);
                    weight[m] = score == -infinity() ? 0.0f : exponential(score - top);
                    float total = weight[m];
                    for (int n = 16; n > 0; n /= 2) total += __shfl_xor_sync(0xffffffffu, total, n);
                    most[m] = top;
                    sum[m] = sum[m] * rescale + total;
                    for (int p = 0; p < PARTS; p++) mixed[m][p] *= rescale;
                } else {
                    for (int key = 0; key < KEYS; key++) {
                        float w = __shfl_sync(0xffffffffu, weight[m], key);
                        for (int p = 0; p < PARTS; p++)
                            if (p * 32 + lane < HEAD_DIM) mixed[m][p] = fmaf(w, tile[key][p * 32 + lane], mixed[m][p]);
                    }
                }
            }
        }
    }
    for (int m = 0; m < MINE; m++) {
        int t = token + warp * MINE + m;
        if (t >= tokens) continue;
        if (sinks) sum[m] += exponential(sinks[head] - most[m]);
        for (int p = 0; p < PARTS; p++)
            if (p * 32 + lane < HEAD_DIM)
                out[(i64(t) * heads + head) * HEAD_DIM + p * 32 + lane] = mixed[m][p] * (1.0f / sum[m]);
    }
}

// The column solver: codes chosen one column after the other, each seeing the errors of those before it, with the arithmetic of
// `src/device/cpu/columns.rs`. SOLVE_BLOCK columns at a time: `carry` brings in the errors of all blocks before, `solve` the rest.
// LEVELS says how a level is rounded.

struct Rounded {
    float code, level;
};

// Whole numbers; `first` and `last` belong to the column's span.
struct Integers {
    static FN Rounded nearest(float level, float first, float last) {
        float code = rintf(level - first);
        code = code > 0.0f ? code : 0.0f;
        code = code < last ? code : last;
        Rounded out = {code, code + first};
        return out;
    }
    static FN float level(int code, float first) { return float(code) + first; }
};

template <class F> struct Table {
    static FN Rounded nearest(float level, float, float) {
        float best = infinity();
        Rounded out = {0.0f, F::level(0)};
        for (int code = 0; code < F::COUNT; code++) {
            float distance = fabsf(level - F::level(code));
            if (distance < best) {
                best = distance;
                out.code = float(code);
                out.level = F::level(code);
            }
        }
        return out;
    }
    static FN float level(int code, float) { return F::level(code); }
};

struct E4m3 {
    static FN Rounded nearest(float x, float, float) {
        Rounded out;
        out.code = float(nearest_e4m3(x, out.level));
        return out;
    }
    static FN float level(int code, float) { return e4m3(u32(code)); }
};

// First level, last code and the code of zero of a span's levels.
struct Ends {
    float first, last, zero;
};

// Every weight by itself. `scales` has one for each `span` columns, `ends` those of a row.
KERNEL nearest(const float *w, i64 n, int cols, const Scale *scales, const Ends *ends, int span, u8 *codes) {
    i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n) return;
    Scale scale = scales[at / span];
    Ends end = ends[at % cols / span];
    Rounded best = LEVELS::nearest((w[at] - scale.offset) / scale.step + scale.zero, end.first, end.last);
    codes[at] = u8(scale.step == 0.0f ? end.zero : best.code);
}

// What codes get wrong; of weights whose columns were multiplied with `columns`, if there are any, in terms of the plain ones.
KERNEL errors(const float *w, i64 n, int cols, const Scale *scales, const Ends *ends, int span, const u8 *codes, const float *columns,
              float *out) {
    i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= n) return;
    Scale scale = scales[at / span];
    float level = LEVELS::level(codes[at], ends[at % cols / span].first);
    float error = w[at] - ((level - scale.zero) * scale.step + scale.offset);
    out[at] = columns ? error / columns[at % cols] : error;
}

// carried[row][k] = sum over j < from of errors[row][j] shares[j][from + k]
KERNEL carry(const float *errors, const float *shares, int rows, int stride, int from, float *carried) {
    Factor<float> a = {errors, stride, 1, rows, 0};
    Factor<float> b = {shares + from, 1, stride, min(SOLVE_BLOCK, stride - from), 0};
    float sums[EACH][EACH];
    multiply(a, b, from, sums);
    for (int r = 0; r < EACH; r++)
        for (int c = 0; c < EACH; c++)
            if (row_of(r) < rows && column_of(c) < SOLVE_BLOCK)
                carried[i64(row_of(r)) * SOLVE_BLOCK + column_of(c)] = sums[r][c];
}

// A warp solves a row: a lane holds the targets of every 32nd column and rounds its own at every step; the error of the column whose
// turn it is goes to all.
KERNEL solve(const float *w, int rows, int cols, const int *order, const float *shares, int stride, const Scale *scales,
             const Ends *ends, int span, const float *carried, int from, int until, float *errors, u8 *codes) {
    const int OWN = SOLVE_BLOCK / 32;
    int row = blockIdx.x * blockDim.y + threadIdx.y, lane = threadIdx.x;
    if (row >= rows) return;
    float target[OWN], weight[OWN];
    int column[OWN];
    Scale scale[OWN];
    Ends end[OWN];
    for (int n = 0; n < OWN; n++) {
        int k = from + n * 32 + lane;
        column[n] = order[k < until ? k : until - 1];
        weight[n] = w[i64(row) * cols + column[n]];
        target[n] = weight[n] + (from > 0 ? carried[i64(row) * SOLVE_BLOCK + n * 32 + lane] : 0.0f);
        scale[n] = scales[i64(row) * (cols / span) + column[n] / span];
        end[n] = ends[column[n] / span];
    }
#pragma unroll
    for (int n = 0; n < OWN; n++)
        for (int turn = 0; turn < 32 && from + n * 32 + turn < until; turn++) {
            Rounded best = LEVELS::nearest((target[n] - scale[n].offset) / scale[n].step + scale[n].zero, end[n].first, end[n].last);
            bool blank = scale[n].step == 0.0f;
            float value = blank ? scale[n].offset : (best.level - scale[n].zero) * scale[n].step + scale[n].offset;
            float error = weight[n] - value;
            int k = from + n * 32 + turn;
            if (lane == turn) {
                codes[i64(row) * cols + column[n]] = u8(blank ? end[n].zero : best.code);
                errors[i64(row) * stride + k] = error;
            }
            error = __shfl_sync(0xffffffffu, error, turn);
            const float *share = shares + i64(k) * stride + from;
#pragma unroll
            for (int m = n; m < OWN; m++) {
                int at = m * 32 + lane;
                if (from + at > k && from + at < until) target[m] = fmaf(error, share[at], target[m]);
            }
        }
}

// The searches for scales of ggml's encoders: `src/codec/ggml/encode/search.rs` for one block, operation by operation.
// The numbers SEARCH_* come from there.

FN float lower(float a, float b) { return a < b ? a : b; }
FN float higher(float a, float b) { return a > b ? a : b; }
FN float clamped(float x, float low, float high) { return higher(low, lower(high, x)); }

// Towards zero; what does not fit is the lowest integer.
FN int truncated(float x) { return x >= -2147483648.0f && x < 2147483648.0f ? int(x) : int(0x80000000u); }

// Nearest integer by adding 1.5 * 2^23; wraps beyond 2^22. NaN is 0 by name: its mantissa is another one on a card.
FN float nearest_int(float x) {
    float sum = x + 12582912.0f;
    if (sum != sum) return 0.0f;
    return __uint_as_float((__float_as_uint(sum) & 0x7fffff) | 0x4b000000) - 12582912.0f;
}

// Nearest integer, ties away from zero.
FN int round_away(float x) {
    return truncated(x + __uint_as_float(0x3effffff | (__float_as_uint(x) & 0x80000000u)));
}

FN float inverse(float x) { return x == 0.0f ? 0.0f : 1.0f / x; }
FN float byte_of(float x) { return float(truncated(x) & 0xff); }

FN float sum_of(const float *x, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum = sum + x[i];
    return sum;
}

FN float energy(const float *x, int n) {
    float sum = 0.0f;
    for (int i = 0; i < n; i++) sum = sum + x[i] * x[i];
    return sum;
}

// The first value of largest magnitude, and the magnitude.
struct Extreme {
    float value, magnitude;
};
FN Extreme extreme(const float *x, int n) {
    Extreme e = {0.0f, 0.0f};
    for (int i = 0; i < n; i++) {
        float a = fabsf(x[i]);
        if (e.magnitude < a) e.value = x[i];
        e.magnitude = higher(a, e.magnitude);
    }
    return e;
}

// x ~ scale * code + low
struct ScaleMin {
    float scale, low, inverse, origin, top;
    FN float code(float x) const { return clamped(nearest_int(inverse * (x - origin)), 0.0f, top); }
};

template <int N, bool ABSOLUTE>
FN float misfit(const float *x, const float *w, const u8 *codes, float scale, float low) {
    float error = 0.0f;
    for (int i = 0; i < N; i++) {
        float e = scale * float(codes[i]) + low - x[i];
        error = error + w[i] * (ABSOLUTE ? fabsf(e) : e * e);
    }
    return error;
}

struct Trials {
    float first, step;
    int last;
};

template <int N, bool ABSOLUTE> FN ScaleMin scale_min(const float *x, const float *w, float top, Trials trials) {
    float min = x[0], max = x[0], sum_w = w[0], sum_x = w[0] * x[0];
    for (int i = 1; i < N; i++) {
        min = lower(x[i], min);
        max = higher(x[i], max);
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    float low = lower(0.0f, min);
    bool some = low < max;
    u8 codes[N];
    float inverse = top / (max - low);
    ScaleMin best = {1.0f / inverse, low, inverse, low, top};
    for (int i = 0; i < N; i++) codes[i] = u8(best.code(x[i]));
    float least = misfit<N, ABSOLUTE>(x, w, codes, best.scale, low);
    for (int trial = 0; trial <= trials.last; trial++) {
        float origin = best.low;
        float inverse = (trials.first + trials.step * float(trial) + top) / (max - origin);
        float sum_l = 0.0f, sum_l2 = 0.0f, sum_xl = 0.0f;
        for (int i = 0; i < N; i++) {
            float l = clamped(nearest_int(inverse * (x[i] - origin)), 0.0f, top);
            codes[i] = u8(l);
            float wl = w[i] * l;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * l;
            sum_xl = sum_xl + wl * x[i];
        }
        float det = sum_w * sum_l2 - sum_l * sum_l;
        float scale = (sum_w * sum_xl - sum_x * sum_l) / det;
        float low = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        if (0.0f < low) {
            scale = sum_xl / sum_l2;
            low = 0.0f;
        }
        float error = misfit<N, ABSOLUTE>(x, w, codes, scale, low);
        if (0.0f < det && error < least) {
            least = error;
            best.scale = scale;
            best.low = low;
            best.inverse = inverse;
            best.origin = origin;
        }
    }
    if (!some) best.scale = best.inverse = 0.0f, best.low = low;
    return best;
}

// x ~ scale * (code - half)
struct Signed {
    float scale, inverse, half;
    bool some;
    FN float code(float x) const { return some ? clamped(nearest_int(inverse * x), -half, half - 1.0f) + half : 0.0f; }
};

struct Products {
    float lx, l2;
};

template <int N> FN Products products(const float *x, const float *w, float inverse, float half) {
    Products sum = {0.0f, 0.0f};
    for (int i = 0; i < N; i++) {
        float l = clamped(nearest_int(inverse * x[i]), -half, half - 1.0f);
        sum.lx = sum.lx + w[i] * x[i] * l;
        sum.l2 = sum.l2 + w[i] * l * l;
    }
    return sum;
}

template <int N> FN Signed signed_fit(const float *x, const float *w, float half) {
    Extreme e = extreme(x, N);
    bool some = !(e.magnitude < SEARCH_TINY);
    float inverse = -half / e.value;
    Products sum = products<N>(x, w, inverse, half);
    float scale = sum.l2 == 0.0f ? 0.0f : sum.lx / sum.l2;
    float best = scale * sum.lx;
    for (int trial = -SEARCH_SIGNED_TRIALS; trial <= SEARCH_SIGNED_TRIALS; trial++) {
        if (trial == 0) continue;
        float inverse_now = -(half + SEARCH_TRIAL * float(trial)) / e.value;
        Products sum = products<N>(x, w, inverse_now, half);
        if (0.0f < sum.l2 && best * sum.l2 < sum.lx * sum.lx) {
            scale = sum.lx / sum.l2;
            best = scale * sum.lx;
            inverse = inverse_now;
        }
    }
    Signed out = {some ? scale : 0.0f, inverse, half, some};
    return out;
}

// One code at a time, from codes that the largest value alone sets; codes in 0..2 * half.
template <int N> FN float signed_descent(const float *x, float half, u8 *codes) {
    Extreme e = extreme(x, N);
    bool some = !(e.magnitude < SEARCH_TINY);
    float inverse = -half / e.value, sum_lx = 0.0f, sum_l2 = 0.0f;
    float chosen[N];
    for (int i = 0; i < N; i++) {
        float w = x[i] * x[i], l = clamped(nearest_int(inverse * x[i]), -half, half - 1.0f);
        chosen[i] = l;
        sum_lx = sum_lx + w * x[i] * l;
        sum_l2 = sum_l2 + w * l * l;
    }
    for (int round = 0; round < SEARCH_DESCENTS; round++) {
        bool changed = false;
        for (int i = 0; i < N; i++) {
            float w = x[i] * x[i], old = chosen[i];
            float lx = sum_lx - w * x[i] * old, l2 = sum_l2 - w * old * old;
            float now = clamped(nearest_int(x[i] * l2 / lx), -half, half - 1.0f);
            if (!(some && 0.0f < lx && now != old)) continue;
            lx = lx + w * x[i] * now;
            l2 = l2 + w * now * now;
            if (!(0.0f < l2 && sum_lx * sum_lx * l2 < lx * lx * sum_l2)) continue;
            changed = true;
            chosen[i] = now;
            sum_lx = lx;
            sum_l2 = l2;
        }
        if (!changed) break;
    }
    for (int i = 0; i < N; i++) codes[i] = some ? u8(chosen[i] + half) : 0;
    return some && 0.0f < sum_l2 ? sum_lx / sum_l2 : 0.0f;
}

// Codes 0..=top for values that should not be negative.
template <int N> FN float positive(const float *x, const float *w, float top, int *codes) {
    float max = 0.0f;
    for (int i = 0; i < N; i++) max = higher(max, x[i]);
    bool some = !(max < SEARCH_TINY);
    float inverse = top / max, least = 0.0f;
    for (int i = 0; i < N; i++) {
        float e = x[i] - 1.0f / inverse * byte_of(nearest_int(inverse * x[i]));
        least = least + w[i] * e * e;
    }
    for (int trial = -SEARCH_POSITIVE_TRIALS; trial <= SEARCH_POSITIVE_TRIALS; trial++) {
        if (trial == 0) continue;
        float inverse_now = (SEARCH_TRIAL * float(trial) + top) / max, scale = 1.0f / inverse_now, error = 0.0f;
        for (int i = 0; i < N; i++) {
            float e = x[i] - scale * lower(top, nearest_int(inverse_now * x[i]));
            error = error + w[i] * e * e;
        }
        if (error < least) least = error, inverse = inverse_now;
    }
    float sum_lx = 0.0f, sum_l2 = 0.0f;
    for (int i = 0; i < N; i++) {
        float l = lower(top, nearest_int(inverse * x[i]));
        codes[i] = truncated(l) & 0xff;
        sum_lx = sum_lx + w[i] * x[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }
    for (int round = 0; round < SEARCH_DESCENTS; round++) {
        bool changed = false;
        for (int i = 0; i < N; i++) {
            float old = float(codes[i]);
            float lx = sum_lx - w[i] * x[i] * old, l2 = sum_l2 - w[i] * old * old;
            float now = lower(top, nearest_int(x[i] * l2 / lx));
            if (!(some && 0.0f < lx && 0.0f < l2 && now != old)) continue;
            lx = lx + w[i] * x[i] * now;
            l2 = l2 + w[i] * now * now;
            if (!(sum_lx * sum_lx * l2 < lx * lx * sum_l2)) continue;
            changed = true;
            codes[i] = truncated(now) & 0xff;
            sum_lx = lx;
            sum_l2 = l2;
        }
        if (!changed) break;
    }
    if (!some)
        for (int i = 0; i < N; i++) codes[i] = 0;
    return some && 0.0f < sum_l2 ? sum_lx / sum_l2 : 0.0f;
}

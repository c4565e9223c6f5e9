// K-quants: super-blocks of 256 weights in sub-blocks of 16 or 32, whose scales (and minima) are themselves quantized.

// The two low bits of 256 codes, and a third or fifth in bit planes beside them.
FN int low_two(const u8 *qs, int i) { return plane<2, 32>(qs, i); }
FN int bit_of(const u8 *mask, int i) { return plane<1, 32>(mask, i); }

// Eight six-bit scales and minima in twelve bytes.
FN int six_bit_scale(const u8 *p, int j) { return j < 4 ? p[j] & 63 : (p[j + 4] & 15) | p[j - 4] >> 6 << 4; }
FN int six_bit_min(const u8 *p, int j) { return j < 4 ? p[j + 4] & 63 : p[j + 4] >> 4 | p[j] >> 6 << 4; }

// Scales (or minima) of the groups as multiples of a unit.
template <int GROUPS> FN float by_largest(const float *values, float top, int *codes) {
    float max = 0.0f;
    for (int j = 0; j < GROUPS; j++) max = higher(values[j], max);
    float per = 0.0f < max ? top / max : 0.0f;
    for (int j = 0; j < GROUPS; j++) codes[j] = truncated(nearest_int(per * values[j])) & 0xff;
    return max / top;
}

// A super-block's groups fitted, with the stored scales and minima.
template <int N, int GROUPS> struct Fitted {
    ScaleMin groups[GROUPS];
    int scales[GROUPS], mins[GROUPS];
    float d, dmin;

    template <bool ABSOLUTE>
    FN void fit(const float *x, const float *importance, float spread, float top, float scale_top, Trials trials) {
        float s[GROUPS], m[GROUPS], weights[GROUPS], w[N];
        Trials weighted = {SEARCH_WEIGHTED_FIRST, SEARCH_WEIGHTED_STEP, SEARCH_WEIGHTED_LAST};
        for (int j = 0; j < GROUPS; j++, x += N) {
            if (importance) {
                for (int i = 0; i < N; i++) w[i] = importance[j * N + i] * sqrtf(spread + x[i] * x[i]);
                weights[j] = sum_of(w, N);
                groups[j] = scale_min<N, false>(x, w, top, weighted);
            } else {
                float rms = ABSOLUTE ? 0.0f : sqrtf(energy(x, N) / float(N));
                for (int i = 0; i < N; i++) w[i] = rms + fabsf(x[i]);
                groups[j] = scale_min<N, ABSOLUTE>(x, w, top, trials);
            }
            s[j] = groups[j].scale;
            m[j] = -groups[j].low;
        }
        d = importance ? positive<GROUPS>(s, weights, scale_top, scales) : by_largest<GROUPS>(s, scale_top, scales);
        dmin = importance ? positive<GROUPS>(m, weights, scale_top, mins) : by_largest<GROUPS>(m, scale_top, mins);
    }

    // Codes of a group under its stored scale and minimum, or the search's where the stored scale is zero.
    FN void round(int j, const float *x, float scale, float min, u8 *codes) const {
        for (int i = 0; i < N; i++)
            codes[i] = u8(scale == 0.0f ? groups[j].code(x[i]) : clamped(nearest_int((x[i] + min) / scale), 0.0f, groups[j].top));
    }
};

struct BlockQ2K : FactsOfBlockQ2K {
    static const bool OFFSET = true;
    static FN Scale scale(const u8 *b, int j) {
        int s = b[AT_scales + j];
        Scale scale = {half_at(b + AT_d) * float(s & 15), 0.0f, -(half_at(b + AT_dmin) * float(s >> 4))};
        return scale;
    }
    static FN int code(const u8 *b, int i) { return low_two(b + AT_qs, i); }
    static FN void put(const u8 *codes, u8 *b) { put_planes<2, 32>(codes, 0, b + AT_qs, 64); }

    static FN void encode(const float *x, const float *importance, float, u8 *out) {
        Trials trials = {SEARCH_Q2_FIRST, SEARCH_Q2_STEP, SEARCH_Q2_LAST};
        Fitted<SPAN, WEIGHTS / SPAN> f;
        f.fit<true>(x, importance, energy(x, WEIGHTS) / float(WEIGHTS), float(COUNT - 1), 15.0f, trials);
        for (int j = 0; j < WEIGHTS / SPAN; j++) {
            // Where a code does not fit into its nibble, the other one's bits are those of both.
            out[AT_scales + j] = u8(f.scales[j] | f.mins[j] << 4);
        }
        put_half(f.d, out + AT_d);
        put_half(f.dmin, out + AT_dmin);
        u8 codes[WEIGHTS];
        for (int j = 0; j < WEIGHTS / SPAN; j++) {
            Scale s = scale(out, j);
            f.round(j, x + j * SPAN, s.step, -s.offset, codes + j * SPAN);
        }
        put(codes, out);
    }
};

// d s (q - half), 16 weights a scale
template <class F> struct SignedGroups : F {
    // Codes of a group under its stored scale.
    static FN u8 rounded(float x, float scale) {
        const float half = float(F::COUNT / 2);
        return u8(clamped(nearest_int(x / scale), -half, half - 1.0f) + half);
    }
};

struct BlockQ3K : SignedGroups<FactsOfBlockQ3K> {
    static const bool OFFSET = false;
    static FN int stored_scale(const u8 *b, int j) {
        const u8 *s = b + AT_scales;
        return (s[j % 8] >> j / 8 * 4 & 15) | (s[8 + j % 4] >> j / 4 * 2 & 3) << 4;
    }
    static FN Scale scale(const u8 *b, int j) { return step_only(half_at(b + AT_d) * float(stored_scale(b, j) - 32)); }
    static FN int code(const u8 *b, int i) { return low_two(b + AT_qs, i) | bit_of(b + AT_hmask, i) << 2; }
    static FN void put(const u8 *codes, u8 *b) {
        put_planes<2, 32>(codes, 0, b + AT_qs, 64);
        put_planes<1, 32>(codes, 2, b + AT_hmask, 32);
    }

    static FN void encode(const float *x, const float *importance, float, u8 *out) {
        float scales[16], unit;
        u8 codes[WEIGHTS];
        int stored[16];
        if (importance) {
            float spread = 2.0f * energy(x, WEIGHTS) / float(WEIGHTS), weights[16], w[16];
            for (int j = 0; j < 16; j++) {
                for (int i = 0; i < 16; i++)
                    w[i] = importance[16 * j + i] * sqrtf(spread + x[16 * j + i] * x[16 * j + i]);
                weights[j] = sum_of(w, 16);
                Signed fit = signed_fit<16>(x + 16 * j, w, float(COUNT / 2));
                scales[j] = fit.scale;
                for (int i = 0; i < 16; i++) codes[16 * j + i] = u8(fit.code(x[16 * j + i]));
            }
            Signed fit = signed_fit<16>(scales, weights, 32.0f);
            for (int j = 0; j < 16; j++) stored[j] = truncated(fit.code(scales[j]));
            unit = fit.scale;
        } else {
            for (int j = 0; j < 16; j++) scales[j] = signed_descent<16>(x + 16 * j, float(COUNT / 2), codes + 16 * j);
            float max = extreme(scales, 16).value, per = -32.0f / max;
            for (int j = 0; j < 16; j++) {
                // A byte before it is clamped, as in the reference.
                int byte = ((truncated(nearest_int(per * scales[j])) & 0xff) ^ 0x80) - 0x80;
                stored[j] = max == 0.0f ? 0 : truncated(clamped(float(byte), -32.0f, 31.0f) + 32.0f);
            }
            unit = max == 0.0f ? 0.0f : 1.0f / per;
        }
        u8 *s = out + AT_scales;
        for (int j = 0; j < 8; j++) s[j] = u8((stored[j] & 15) | (stored[j + 8] & 15) << 4);
        for (int j = 0; j < 4; j++) {
            u32 high = 0;
            for (int k = 0; k < 4; k++) high |= (stored[j + 4 * k] >> 4 & 3) << 2 * k;
            s[8 + j] = u8(high);
        }
        put_half(unit, out + AT_d);
        for (int i = 0; i < WEIGHTS; i++) {
            float step = half_at(out + AT_d) * (float(stored[i / 16]) - 32.0f);
            if (step != 0.0f) codes[i] = rounded(x[i], step);
        }
        put(codes, out);
    }
};

// Q4_K and Q5_K: eight groups of 32, six-bit scales and minima.
template <class F> struct SixBit : F {
    static const bool OFFSET = true;
    static FN Scale scale(const u8 *b, int j) {
        const u8 *p = b + F::AT_scales;
        Scale scale = {half_at(b + F::AT_d) * float(six_bit_scale(p, j)), 0.0f,
                       -(half_at(b + F::AT_dmin) * float(six_bit_min(p, j)))};
        return scale;
    }
};

template <class B> struct SixBitEncoder : B {
    static FN void encode_by(const float *x, const float *importance, Trials trials, u8 *out) {
        Fitted<32, 8> f;
        float spread = 2.0f * energy(x, 256) / 256.0f;
        f.template fit<false>(x, importance, spread, float(B::COUNT - 1), 63.0f, trials);
        if (B::COUNT == 32 || !importance)
            for (int j = 0; j < 8; j++) f.scales[j] = min(f.scales[j], 63), f.mins[j] = min(f.mins[j], 63);
        put_half(f.d, out + B::AT_d);
        put_half(f.dmin, out + B::AT_dmin);
        u8 *p = out + B::AT_scales;
        for (int j = 0; j < 4; j++) {
            p[j] = u8(f.scales[j] | f.scales[j + 4] >> 4 << 6);
            p[j + 4] = u8(f.mins[j] | f.mins[j + 4] >> 4 << 6);
            p[j + 8] = u8((f.scales[j + 4] & 15) | (f.mins[j + 4] & 15) << 4);
        }
        u8 codes[256];
        for (int j = 0; j < 8; j++) {
            Scale s = B::scale(out, j);
            f.round(j, x + 32 * j, s.step, -s.offset, codes + 32 * j);
        }
        B::put(codes, out);
    }
};

struct Q4KBits : SixBit<FactsOfBlockQ4K> {
    static FN int code(const u8 *b, int i) { return plane<4, 32>(b + AT_qs, i); }
    static FN void put(const u8 *codes, u8 *b) { put_planes<4, 32>(codes, 0, b + AT_qs, 128); }
};

struct BlockQ4K : SixBitEncoder<Q4KBits> {
    static FN void encode(const float *x, const float *importance, float, u8 *out) {
        Trials trials = {SEARCH_Q4_FIRST, SEARCH_Q4_STEP, SEARCH_Q4_LAST};
        encode_by(x, importance, trials, out);
    }
};

struct Q5KBits : SixBit<FactsOfBlockQ5K> {
    static FN int code(const u8 *b, int i) { return plane<4, 32>(b + AT_qs, i) | bit_of(b + AT_qh, i) << 4; }
    static FN void put(const u8 *codes, u8 *b) {
        put_planes<4, 32>(codes, 0, b + AT_qs, 128);
        put_planes<1, 32>(codes, 4, b + AT_qh, 32);
    }
};

struct BlockQ5K : SixBitEncoder<Q5KBits> {
    static FN void encode(const float *x, const float *importance, float, u8 *out) {
        Trials trials = {SEARCH_Q5_FIRST, SEARCH_Q5_STEP, SEARCH_Q5_LAST};
        encode_by(x, importance, trials, out);
    }
};

struct BlockQ6K : SignedGroups<FactsOfBlockQ6K> {
    static const bool OFFSET = false;
    static FN Scale scale(const u8 *b, int j) {
        return step_only(half_at(b + AT_d) * float(int(b[AT_scales + j] ^ 0x80) - 0x80));
    }
    static FN int code(const u8 *b, int i) { return plane<4, 64>(b + AT_ql, i) | plane<2, 32>(b + AT_qh, i) << 4; }
    static FN void put(const u8 *codes, u8 *b) {
        put_planes<4, 64>(codes, 0, b + AT_ql, 128);
        put_planes<2, 32>(codes, 4, b + AT_qh, 64);
    }

    static FN void encode(const float *x, const float *importance, float, u8 *out) {
        Signed groups[16];
        float scales[16], w[16];
        for (int j = 0; j < 16; j++) {
            for (int i = 0; i < 16; i++) w[i] = importance ? importance[16 * j + i] : x[16 * j + i] * x[16 * j + i];
            groups[j] = signed_fit<16>(x + 16 * j, w, float(COUNT / 2));
            scales[j] = groups[j].scale;
        }
        Extreme e = extreme(scales, 16);
        // Such a block is all zero bytes.
        bool none = e.magnitude < SEARCH_TINY;
        float per = -128.0f / e.value;
        put_half(none ? 0.0f : 1.0f / per, out + AT_d);
        u8 codes[WEIGHTS];
        for (int j = 0; j < 16; j++) {
            float stored = none ? 0.0f : lower(127.0f, nearest_int(per * scales[j]));
            out[AT_scales + j] = u8(truncated(stored));
            float step = half_at(out + AT_d) * stored;
            for (int i = 16 * j; i < 16 * j + 16; i++)
                codes[i] = step != 0.0f ? rounded(x[i], step) : none ? 0 : u8(groups[j].code(x[i]));
        }
        put(codes, out);
    }
};

// Blocks of 32 weights with one scale, perhaps a minimum.

// d (q - half), the zero in the levels
template <class F> struct ByScale : F {
    static const bool OFFSET = false;
    static FN Scale scale(const u8 *b, int) { return step_only(half_at(b + F::AT_d)); }
};

// d q + m
template <class F> struct ByScaleAndMinimum : F {
    static const bool OFFSET = true;
    static FN Scale scale(const u8 *b, int) {
        Scale scale = {half_at(b + F::AT_d), 0.0f, half_at(b + F::AT_m)};
        return scale;
    }
};

template <class P> struct Nibbles : P {
    static FN int code(const u8 *b, int i) { return plane<4, 16>(b + P::AT_qs, i); }
    static FN void put(const u8 *codes, u8 *b) { put_planes<4, 16>(codes, 0, b + P::AT_qs, 16); }
};

// With a fifth bit.
template <class P> struct Fives : P {
    static FN int code(const u8 *b, int i) { return plane<4, 16>(b + P::AT_qs, i) | plane<1, 1>(b + P::AT_qh, i) << 4; }
    static FN void put(const u8 *codes, u8 *b) {
        put_planes<4, 16>(codes, 0, b + P::AT_qs, 16);
        put_planes<1, 1>(codes, 4, b + P::AT_qh, 4);
    }
};

// Importance as the searches take it: mixed with the weight's magnitude around the row's mean square.
FN void weigh_by_row(const float *x, const float *importance, float row, float *w) {
    for (int i = 0; i < 32; i++) w[i] = importance[i] * sqrtf(row + x[i] * x[i]);
}

// The value of largest magnitude becomes the lowest code.
template <class B> struct SignedEncoder : B {
    static FN void encode(const float *x, const float *importance, float row, u8 *out) {
        const float half = float(B::COUNT / 2);
        u8 codes[32];
        float d;
        if (importance) {
            float w[32];
            weigh_by_row(x, importance, row, w);
            Signed fit = signed_fit<32>(x, w, half);
            for (int i = 0; i < 32; i++) codes[i] = u8(fit.code(x[i]));
            d = fit.scale;
        } else {
            d = extreme(x, 32).value / -half;
            float per = inverse(d);
            for (int i = 0; i < 32; i++) codes[i] = u8(min(truncated(x[i] * per + (half + 0.5f)), B::COUNT - 1));
        }
        put_half(d, out + B::AT_d);
        B::put(codes, out);
    }
};

// The minimum becomes code 0.
template <class B> struct MinimumEncoder : B {
    static FN void encode(const float *x, const float *importance, float row, u8 *out) {
        const int top = B::COUNT - 1;
        u8 codes[32];
        float d, low;
        if (importance) {
            float w[32];
            weigh_by_row(x, importance, row, w);
            Trials trials = {SEARCH_WEIGHTED_FIRST, SEARCH_WEIGHTED_STEP, SEARCH_WEIGHTED_LAST};
            ScaleMin fit = scale_min<32, false>(x, w, float(top), trials);
            for (int i = 0; i < 32; i++) codes[i] = u8(fit.code(x[i]));
            d = fit.scale;
            low = fit.low;
        } else {
            float most = -LARGEST_FLOAT;
            low = LARGEST_FLOAT;
            for (int i = 0; i < 32; i++) low = lower(x[i], low), most = higher(x[i], most);
            d = (most - low) / float(top);
            float per = inverse(d);
            for (int i = 0; i < 32; i++) codes[i] = u8(min(truncated((x[i] - low) * per + 0.5f), top));
        }
        put_half(d, out + B::AT_d);
        put_half(low, out + B::AT_m);
        B::put(codes, out);
    }
};

struct BlockQ4_0 : SignedEncoder<Nibbles<ByScale<FactsOfBlockQ4_0>>> {};
struct BlockQ5_0 : SignedEncoder<Fives<ByScale<FactsOfBlockQ5_0>>> {};
struct BlockQ4_1 : MinimumEncoder<Nibbles<ByScaleAndMinimum<FactsOfBlockQ4_1>>> {};
struct BlockQ5_1 : MinimumEncoder<Fives<ByScaleAndMinimum<FactsOfBlockQ5_1>>> {};

struct BlockQ8_0 : ByScale<FactsOfBlockQ8_0> {
    static FN int code(const u8 *b, int i) { return b[AT_qs + i] ^ 0x80; }
    static FN void put(const u8 *codes, u8 *b) {
        for (int i = 0; i < 32; i++) b[AT_qs + i] = codes[i] ^ 0x80;
    }
    // The largest magnitude becomes 127.
    static FN void encode(const float *x, const float *, float, u8 *out) {
        float d = extreme(x, 32).magnitude / 127.0f, per = inverse(d);
        put_half(d, out + AT_d);
        for (int i = 0; i < 32; i++) out[AT_qs + i] = u8(round_away(x[i] * per));
    }
};

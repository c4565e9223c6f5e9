// Four-bit codes into a fixed, uneven table of levels.

template <class F> struct Uneven : F {
    static const bool OFFSET = false;

    // The code nearest to a level, the upper one at a midpoint.
    static FN int index(float x) {
        int index = 0;
        for (int step = 8; step > 0; step /= 2) {
            float middle = (F::level(index + step - 1) + F::level(index + step)) / 2.0f;
            if (!(x < middle)) index += step;
        }
        return index;
    }

    static FN Products trial(const float *x, const float *w, float per) {
        Products sum = {0.0f, 0.0f};
        for (int i = 0; i < 32; i++) {
            float q = F::level(index(per * x[i])), wq = w[i] * q;
            sum.lx = sum.lx + wq * x[i];
            sum.l2 = sum.l2 + wq * q;
        }
        return sum;
    }

    // The scale of 32 weights with the least weighted squared error.
    static FN float search(const float *x, const float *importance, float spread) {
        float w[32];
        for (int i = 0; i < 32; i++) w[i] = importance ? importance[i] * sqrtf(spread + x[i] * x[i]) : x[i] * x[i];
        Extreme e = extreme(x, 32);
        Products sum = trial(x, w, 1.0f / (-e.value / F::level(0)));
        float scale = 0.0f < sum.l2 ? sum.lx / sum.l2 : 0.0f, best = scale * sum.lx;
        for (int n = -SEARCH_TABLE_TRIALS; n <= SEARCH_TABLE_TRIALS; n++) {
            Products sum = trial(x, w, (float(n) + F::level(0)) / e.value);
            if (0.0f < sum.l2 && best * sum.l2 < sum.lx * sum.lx) {
                scale = sum.lx / sum.l2;
                best = scale * sum.lx;
            }
        }
        return e.magnitude < SEARCH_TINY ? 0.0f : scale;
    }
};

struct BlockIq4Nl : Uneven<FactsOfBlockIq4Nl> {
    static FN Scale scale(const u8 *b, int) { return step_only(half_at(b + AT_d)); }
    static FN int code(const u8 *b, int i) { return plane<4, 16>(b + AT_qs, i); }
    static FN void put(const u8 *codes, u8 *b) { put_planes<4, 16>(codes, 0, b + AT_qs, 16); }

    static FN void encode(const float *x, const float *importance, float, u8 *out) {
        float scale = search(x, importance, energy(x, 32) * (2.0f / 32.0f)), per = inverse(scale);
        u8 codes[32];
        for (int i = 0; i < 32; i++) codes[i] = u8(index(per * x[i]));
        put_half(scale, out + AT_d);
        put(codes, out);
    }
};

struct BlockIq4Xs : Uneven<FactsOfBlockIq4Xs> {
    static FN Scale scale(const u8 *b, int j) {
        int low = b[AT_scales_l + j / 2] >> j % 2 * 4 & 15, high = two(b + AT_scales_h) >> 2 * j & 3;
        return step_only(half_at(b + AT_d) * float((low | high << 4) - 32));
    }
    static FN int code(const u8 *b, int i) { return plane<4, 16>(b + AT_qs, i); }
    static FN void put(const u8 *codes, u8 *b) { put_planes<4, 16>(codes, 0, b + AT_qs, 128); }

    static FN void encode(const float *x, const float *importance, float, u8 *out) {
        float spread = energy(x, 256) * (2.0f / 256.0f), scales[8];
        for (int j = 0; j < 8; j++) scales[j] = search(x + 32 * j, importance ? importance + 32 * j : 0, spread);
        // The codes are chosen under this unit, not under the half that is stored.
        float d = -extreme(scales, 8).value / 32.0f, per_unit = inverse(d);
        u8 codes[256];
        u32 low = 0, high = 0;
        for (int j = 0; j < 8; j++) {
            float l = clamped(nearest_int(per_unit * scales[j]), -32.0f, 31.0f), per = inverse(d * l);
            for (int i = 32 * j; i < 32 * j + 32; i++) codes[i] = u8(index(per * x[i]));
            u32 stored = u32(truncated(l + 32.0f));
            low |= (stored & 15) << 4 * j;
            high |= stored >> 4 << 2 * j;
        }
        put_half(d, out + AT_d);
        for (int i = 0; i < 2; i++) out[AT_scales_h + i] = u8(high >> 8 * i);
        for (int i = 0; i < 4; i++) out[AT_scales_l + i] = u8(low >> 8 * i);
        put(codes, out);
    }
};

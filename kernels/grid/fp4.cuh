// Four-bit floats (E2M1, doubled to be whole) under eight-bit scales (halved to match): ggml's blocks, and the formats whose scales
// are a part of their own.

// Half of a power of two; the two smallest are subnormal.
FN float half_e8m0(u32 e) { return __uint_as_float(e < 2 ? 0x00200000u << e : (e - 1) << 23); }

// Half of an E4M3 scale whose sign is not read; its NaN is zero.
FN float half_ue4m3(u32 byte) {
    u32 exponent = byte >> 3 & 15, mantissa = byte & 7;
    float power = __uint_as_float((exponent == 0 ? 121 : exponent + 120) << 23);
    return byte == 0x7f ? 0.0f : float((exponent == 0 ? 0 : 8) + mantissa) / 16.0f * power;
}

// The code nearest to x under a scale, the smaller magnitude at a tie. Never a negative zero.
template <class F> FN u8 nearest_e2m1(float x, float scale) {
    float size = fabsf(x), least = size;
    int best = 0;
    for (int i = 1; i < 8; i++) {
        float error = fabsf(F::level(i) * scale - size);
        if (error < least) best = i;
        least = lower(error, least);
    }
    return u8(best | (x < 0.0f && best > 0 ? 8 : 0));
}

// The rounded logarithm's floor: just below a power of two it is already that power's.
FN int floor_log2(float x) {
    bool denormal = x < 1.17549435e-38f;
    u32 bits = __float_as_uint(denormal ? x * 4294967296.0f : x);
    int shift = 127 + (denormal ? 32 : 0);
    float end = float(int(bits >> 23) - shift + 1);
    if (end < 0.0f) end = 1.0f - end;
    int units = 0;
    for (int i = 0; i < SEARCH_LOG2_COUNT; i++)
        if (SEARCH_LOG2_ABOVE[i] < end) units += SEARCH_LOG2_MORE[i];
    return int((bits + u32(units)) >> 23) - shift;
}

struct BlockMxfp4 : FactsOfBlockMxfp4 {
    static const bool OFFSET = false;
    static FN Scale scale(const u8 *b, int) { return step_only(half_e8m0(b[AT_e])); }
    static FN int code(const u8 *b, int i) { return plane<4, 16>(b + AT_qs, i); }
    static FN void put(const u8 *codes, u8 *b) { put_planes<4, 16>(codes, 0, b + AT_qs, 16); }

    static FN void encode(const float *x, const float *, float, u8 *out) {
        float magnitude = extreme(x, 32).magnitude;
        u8 e = 0.0f < magnitude ? u8(floor_log2(magnitude) + 127 - 2) : 0, codes[32];
        out[AT_e] = e;
        for (int i = 0; i < 32; i++) codes[i] = nearest_e2m1<FactsOfBlockMxfp4>(x[i], half_e8m0(e));
        put(codes, out);
    }
};

struct BlockNvfp4 : FactsOfBlockNvfp4 {
    static const bool OFFSET = false;
    static FN Scale scale(const u8 *b, int j) { return step_only(half_ue4m3(b[AT_d + j])); }
    static FN int code(const u8 *b, int i) { return plane<4, 8>(b + AT_qs, i); }
    static FN void put(const u8 *codes, u8 *b) { put_planes<4, 8>(codes, 0, b + AT_qs, 32); }

    static FN void encode(const float *x, const float *, float, u8 *out) {
        u8 codes[64];
        for (int j = 0; j < 4; j++) {
            float half, largest = extreme(x + 16 * j, 16).magnitude;
            out[AT_d + j] = stored_scale(largest / 6.0f, half);
            for (int i = 16 * j; i < 16 * j + 16; i++) codes[i] = nearest_e2m1<FactsOfBlockNvfp4>(x[i], half);
        }
        put(codes, out);
    }

    // The byte for a scale that is not negative (nearest, ties up, from 256 on the largest), and half its value.
    static FN u8 stored_scale(float x, float &half) {
        const int bias = 120 << 3;
        float rounded = float(int((__float_as_uint(x) + (1 << 19)) >> 20) - bias);
        float normal = rounded < 120.0f ? rounded : 126.0f;
        float code = x < 1.0f / 64.0f ? lower(7.0f, float(truncated(x * 512.0f + 0.5f))) : normal;
        int byte = truncated(code);
        half = code < 8.0f ? code * (1.0f / 1024.0f) : __uint_as_float(u32(byte + bias) << 20) * 0.5f;
        return u8(byte);
    }
};

// Codes two to a byte, the even column low; a byte of scale for SPAN columns.
template <class F, bool POWER> struct Fp4 : F {
    static const bool OFFSET = false, SCATTERED = false;
    static FN Scale scale_of(const Parts &p, const Shape &shape, i64 row, int col) {
        u32 byte = p.part[1][row * (shape.cols / F::SPAN) + col / F::SPAN];
        return step_only(0.5f * (POWER ? e8m0(byte) : e4m3(byte)));
    }
    static FN float level_of(const Parts &p, const Shape &shape, i64 row, int col) {
        return F::level(p.part[0][(row * shape.cols + col) / 2] >> col % 2 * 4 & 15);
    }
};

struct SmallFloat : Fp4<FactsOfSmallFloat, false> {};
struct PowerOfTwo : Fp4<FactsOfPowerOfTwo, true> {};

// Numbers in their stored forms.

FN float infinity() { return __uint_as_float(0x7f800000u); }

FN float half_to_float(u16 bits) {
    u32 magnitude = bits & 0x7fff, sign = u32(bits & 0x8000) << 16;
    u32 special = magnitude >= 0x7c00 ? 0x7f800000u : 0;
    // Exponent and mantissa in place, the bias corrected by a product, which also normalizes subnormals.
    float moved = __uint_as_float(magnitude << 13) * __uint_as_float((127 + 127 - 15) << 23);
    return __uint_as_float(__float_as_uint(moved) | special | sign);
}

// Nearest, ties to even.
FN u16 float_to_half(float x) {
    u32 bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    if (size > 0x7f800000) return u16(sign | 0x7e00);
    if (size >= 0x477ff000) return u16(sign | 0x7c00); // from 65520 on
    // A number near 1/2 has the spacing of subnormal halves.
    if (size < 0x38800000) return u16(sign | (__float_as_uint(__uint_as_float(size) + 0.5f) - 0x3f000000));
    return u16(sign | (size - (112u << 23) + 0xfff + (size >> 13 & 1)) >> 13);
}

FN float bf16_to_float(u16 bits) { return __uint_as_float(u32(bits) << 16); }

FN u16 float_to_bf16(float x) {
    u32 bits = __float_as_uint(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return u16(bits >> 16 | 0x40);
    return u16((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

FN float load(const float *x) { return *x; }
FN float load(const u16 *x) { return bf16_to_float(*x); }
FN void store(float x, float *out) { *out = x; }
FN void store(float x, u16 *out) { *out = float_to_bf16(x); }

// Stored bytes lie at any address.
FN u16 two(const u8 *b) { return u16(b[0] | b[1] << 8); }
FN float half_at(const u8 *b) { return half_to_float(two(b)); }
FN void put_half(float x, u8 *b) {
    u16 bits = float_to_half(x);
    b[0] = u8(bits);
    b[1] = u8(bits >> 8);
}

// An 8-bit float of 4 exponent bits.
FN float e4m3(u32 bits) {
    u32 magnitude = bits & 0x7f, sign = (bits & 0x80) << 24;
    float size = magnitude == 0x7f ? __uint_as_float(0x7fc00000u)
        : magnitude < 8            ? float(magnitude) / 512.0f
                                   : __uint_as_float((magnitude << 20) + ((127 - 7) << 23));
    return __uint_as_float(__float_as_uint(size) | sign);
}

// The bits nearest to x, ties to even, and what they stand for.
FN u32 nearest_e4m3(float x, float &value) {
    float size = fabsf(x);
    size = size < FP8_MAX ? size : FP8_MAX;
    // The spacing of E4M3 there; adding 1.5 * 2^23 of them and taking them off leaves whole ones.
    float power = __uint_as_float(__float_as_uint(size) & 0x7f800000);
    power = power < 1.0f / 64.0f ? 1.0f / 64.0f : power;
    float whole = power * (12582912.0f / 8.0f);
    size = (size + whole) - whole;
    u32 bits = size < 1.0f / 64.0f ? u32(size * 512.0f) : (__float_as_uint(size) >> 20) - ((127 - 7) << 3);
    u32 sign = __float_as_uint(x) & 0x80000000u;
    value = __uint_as_float(__float_as_uint(size) | sign);
    return (bits & 0xff) | sign >> 24;
}

// A power of two.
FN float e8m0(u32 bits) {
    return __uint_as_float(bits == 0xff ? 0x7fc00000u : bits == 0 ? 0x00400000u : bits << 23);
}

// (level - zero) * step, + offset
struct Scale {
    float step, zero, offset;
};

// A stored matrix: its parts in the order of the codec's layout.
struct Parts {
    const u8 *part[4];
};

// Columns and rows under one scale; the type of stored scales: 0 f32, 1 f16, 2 bf16, 3 e8m0.
struct Shape {
    i64 rows;
    int cols, group, tall, scales;
};

FN float scale_at(const u8 *part, i64 n, int type) {
    if (type == 0) {
        const u8 *b = part + 4 * n;
        return __uint_as_float(u32(two(b)) | u32(two(b + 2)) << 16);
    }
    if (type == 3) return e8m0(part[n]);
    u16 bits = two(part + 2 * n);
    return type == 1 ? half_to_float(bits) : bf16_to_float(bits);
}

FN u32 word_at(const u8 *part, i64 n) { return ((const u32 *)part)[n]; }

// e to the x as the CPU computes it. The constants are `EXP_*` of the facts.
FN float exponential(float x) {
    float n = fmaf(x, EXP_LOG2_E, EXP_ROUND) - EXP_ROUND;
    float r = fmaf(n, EXP_LN_2[0], x);
    r = fmaf(n, EXP_LN_2[1], r);
    float p = EXP_POLYNOMIAL[0];
    for (int i = 1; i < EXP_TERMS; i++) p = fmaf(p, r, EXP_POLYNOMIAL[i]);
    float y = fmaf(r * r, p, r) + 1.0f;
    int whole = x >= EXP_LOWEST && x <= EXP_HIGHEST ? int(n) : 0, half = whole >> 1;
    y = y * __uint_as_float(u32(half + 127) << 23) * __uint_as_float(u32(whole - half + 127) << 23);
    return x < EXP_LOWEST ? 0.0f : x > EXP_HIGHEST ? infinity() : x != x ? x : y;
}

// cap * tanh(x / cap)
FN float capped(float x, float cap) { return cap * (1.0f - 2.0f / (1.0f + exponential(2.0f * (x / cap)))); }

// A row of equal blocks, each with scales of its own. A block's struct B, named as in Rust, has the facts of its family (WEIGHTS,
// BYTES, SPAN, level(), AT_field) and
//     Scale scale(block, span)   int code(block, i)   bool OFFSET: whether an offset is added
template <class B> struct Blocks : B {
    static const bool SCATTERED = false;
    static FN const u8 *at(const Parts &parts, const Shape &shape, i64 row, int col) {
        return parts.part[0] + (row * (shape.cols / B::WEIGHTS) + col / B::WEIGHTS) * B::BYTES;
    }
    static FN Scale scale_of(const Parts &parts, const Shape &shape, i64 row, int col) {
        return B::scale(at(parts, shape, row, col), col % B::WEIGHTS / B::SPAN);
    }
    static FN float level_of(const Parts &parts, const Shape &shape, i64 row, int col) {
        return B::level(B::code(at(parts, shape, row, col), col % B::WEIGHTS));
    }
};

// Code i of BITS bits: each GROUP bytes hold planes of that many consecutive codes, the first in the lowest bits.
template <int BITS, int GROUP> FN int plane(const u8 *bytes, int i) {
    const int per = GROUP * 8 / BITS;
    return bytes[i / per * GROUP + i % GROUP] >> i % per / GROUP * BITS & ((1 << BITS) - 1);
}

// The same, written: `bytes` bytes from the bits of `codes` from `shift` on.
template <int BITS, int GROUP> FN void put_planes(const u8 *codes, int shift, u8 *out, int bytes) {
    const int per = GROUP * 8 / BITS;
    for (int b = 0; b < bytes; b++) {
        u32 byte = 0;
        for (int k = 0; k < 8 / BITS; k++)
            byte |= (codes[b / GROUP * per + k * GROUP + b % GROUP] >> shift & ((1 << BITS) - 1)) << k * BITS;
        out[b] = u8(byte);
    }
}

FN Scale step_only(float step) {
    Scale scale = {step, 0.0f, 0.0f};
    return scale;
}

// Integers of Hugging Face folders: (q - zero) * scale, or q * scale + offset.

// Value n of a stream of BITS-bit values whose word i lies at words[first + i * step].
template <int BITS> FN int from_stream(const u8 *words, i64 n, i64 first, i64 step) {
    i64 word = n / 32 * BITS + n % 32 * BITS / 32;
    int shift = int(n % 32 * BITS % 32);
    u64 bits = word_at(words, first + word * step);
    if (shift + BITS > 32) bits |= u64(word_at(words, first + (word + 1) * step)) << 32;
    return int(bits >> shift) & ((1 << BITS) - 1);
}

FN i64 words_of(i64 values, int bits) { return values / 32 * bits + (values % 32 * bits + 31) / 32; }
FN int groups_of(const Shape &shape) { return shape.cols / shape.group; }

FN Scale with_zero(float step, int zero) {
    Scale scale = {step, float(zero), 0.0f};
    return scale;
}

// compressed-tensors, pack-quantized: rows are streams, zeros run down the rows.
template <int BITS, int SYMMETRIC> struct Pack {
    static const bool OFFSET = false, SCATTERED = false;
    static FN Scale scale_of(const Parts &p, const Shape &s, i64 row, int col) {
        int groups = groups_of(s), g = col / s.group;
        int zero = SYMMETRIC ? 1 << (BITS - 1) : from_stream<BITS>(p.part[2], row, g, groups);
        return with_zero(scale_at(p.part[1], row * groups + g, s.scales), zero);
    }
    static FN float level_of(const Parts &p, const Shape &s, i64 row, int col) {
        return float(from_stream<BITS>(p.part[0], col, row * words_of(s.cols, BITS), 1));
    }
};

// compressed-tensors, int-quantized: signed bytes.
template <int SYMMETRIC> struct Int {
    static const bool OFFSET = false, SCATTERED = false;
    static FN Scale scale_of(const Parts &p, const Shape &s, i64 row, int col) {
        i64 at = row * groups_of(s) + col / s.group;
        return with_zero(scale_at(p.part[1], at, s.scales), SYMMETRIC ? 0x80 : p.part[2][at] ^ 0x80);
    }
    static FN float level_of(const Parts &p, const Shape &s, i64 row, int col) {
        return float(p.part[0][row * s.cols + col] ^ 0x80);
    }
};

// GPTQ: streams run down the columns, zeros along the rows; part 3 says each column's group. LESS is taken off stored zeros.
template <int BITS, int LESS> struct Version {
    static const bool OFFSET = false, SCATTERED = true;
    static FN Scale scale_of(const Parts &p, const Shape &s, i64 row, int col) {
        int groups = groups_of(s), g = int(min(word_at(p.part[3], col), u32(groups - 1)));
        int zero = (from_stream<BITS>(p.part[1], row, g * words_of(s.rows, BITS), 1) + LESS) & 0xff;
        return with_zero(scale_at(p.part[2], g * s.rows + row, s.scales), zero);
    }
    static FN float level_of(const Parts &p, const Shape &s, i64 row, int col) {
        return float(from_stream<BITS>(p.part[0], col, row, s.rows));
    }
};

// AWQ: words of eight rows, in an order of their own.
struct Gemm {
    static const bool OFFSET = false, SCATTERED = false;
    static FN int lane(u32 word, i64 row) { return word >> AWQ_SHIFT[row % 8] & 15; }
    static FN Scale scale_of(const Parts &p, const Shape &s, i64 row, int col) {
        int g = col / s.group;
        int zero = lane(word_at(p.part[1], g * (s.rows / 8) + row / 8), row);
        return with_zero(scale_at(p.part[2], g * s.rows + row, s.scales), zero);
    }
    static FN float level_of(const Parts &p, const Shape &s, i64 row, int col) {
        return float(lane(word_at(p.part[0], col * (s.rows / 8) + row / 8), row));
    }
};

// MLX: rows are streams, an offset for each group.
template <int BITS> struct Affine {
    static const bool OFFSET = true, SCATTERED = false;
    static FN Scale scale_of(const Parts &p, const Shape &s, i64 row, int col) {
        i64 at = row * groups_of(s) + col / s.group;
        Scale scale = {scale_at(p.part[1], at, s.scales), 0.0f, scale_at(p.part[2], at, s.scales)};
        return scale;
    }
    static FN float level_of(const Parts &p, const Shape &s, i64 row, int col) {
        return float(from_stream<BITS>(p.part[0], col, row * words_of(s.cols, BITS), 1));
    }
};

// Scales of groups, to the bit those that formats choose on the CPU.

// Of integers (`src/codec/affine/fit.rs`). FIT_LANES threads share a group, and each adds up every
// FIT_LANES-th weight of it, as the lanes of a vector do there. A group of which nothing is stored takes part in every shuffle all the same.

struct Scheme {
    int top, zero, scales; // the last code; where its zero is, see FIT_*; type of stored scales
    float smallest, largest;
};

FN float stored(float x, int type) {
    return type == 0 ? x : type == 1 ? half_to_float(float_to_half(x)) : bf16_to_float(float_to_bf16(x));
}

FN float storable(const Scheme &s, float x) {
    float size = fminf(fmaxf(fabsf(x), s.smallest), s.largest);
    return stored(__uint_as_float(__float_as_uint(size) | (__float_as_uint(x) & 0x80000000u)), s.scales);
}

FN float over_lanes(float x, bool largest) {
    for (int n = FIT_LANES / 2; n > 0; n /= 2) {
        float other = __shfl_xor_sync(0xffffffffu, x, n);
        x = largest ? fmaxf(x, other) : fminf(x, other);
    }
    return x;
}

// From the first lane to the last.
FN float in_order(float x) {
    int first = threadIdx.x % 32 / FIT_LANES * FIT_LANES;
    float sum = __shfl_sync(0xffffffffu, x, first);
    for (int n = 1; n < FIT_LANES; n++) sum += __shfl_sync(0xffffffffu, x, first + n);
    return sum;
}

struct Group {
    Scheme s;
    const float *w, *importance;
    int n, lane;
    bool weighted;
    float best;
    Scale scale;

    FN float weight(int i) const { return weighted ? importance[i] : 1.0f; }

    // 1.5 * 2^23 leaves no bits for a fraction.
    FN float code(float w, float inverse, const Scale &by) const {
        float code = fminf(fmaxf((w - by.offset) * inverse + by.zero, 0.0f), float(s.top));
        return (code + 12582912.0f) - 12582912.0f;
    }

    FN float error(const Scale &by) const {
        float inverse = 1.0f / by.step, sum = 0.0f, rest = 0.0f;
        int whole = n - n % FIT_LANES;
        for (int i = lane; i < whole; i += FIT_LANES) {
            float off = w[i] - ((code(w[i], inverse, by) - by.zero) * by.step + by.offset);
            sum += weighted ? importance[i] * (off * off) : off * off;
        }
        for (int i = whole; i < n; i++) {
            float off = w[i] - ((code(w[i], inverse, by) - by.zero) * by.step + by.offset);
            rest += weighted ? importance[i] * (off * off) : off * off;
        }
        return in_order(sum) + rest;
    }

    FN void judge(float step, float zero, float offset, bool may = true) {
        Scale by = {storable(s, step), zero, offset == 0.0f ? 0.0f : storable(s, offset)};
        float found = error(by);
        if (may && found < best) {
            best = found;
            scale = by;
        }
    }

    FN void symmetric(float low, float high) {
        float zero = float((s.top + 1) / 2), below = zero, above = zero - 1.0f;
        judge(fmaxf(-low / below, high / above), zero, 0.0f);
        judge(-fmaxf(high / below, -low / above), zero, 0.0f);
    }

    FN void asymmetric(float low, float high) {
        float top = float(s.top), step = (high - low) / top;
        float zero = fminf(fmaxf(rintf(-low / step), 0.0f), top);
        judge(step, zero, 0.0f);
        if (s.top > 7) return;
        judge(step, fmaxf(zero - 1.0f, 0.0f), 0.0f);
        judge(step, fminf(zero + 1.0f, top), 0.0f);
    }

    // Groups with an offset of their own are whole multiples of FIT_LANES.
    FN void line(const Scale &by) {
        float inverse = 1.0f / by.step, center = float(s.top) / 2.0f;
        float i = 0.0f, q = 0.0f, qq = 0.0f, x = 0.0f, qx = 0.0f;
        for (int at = lane; at < n; at += FIT_LANES) {
            float each = weight(at), level = code(w[at], inverse, by) - center, product = each * level;
            i += each;
            q += product;
            qq += product * level;
            x += each * w[at];
            qx += product * w[at];
        }
        i = in_order(i), q = in_order(q), qq = in_order(qq), x = in_order(x), qx = in_order(qx);
        float determinant = i * qq - q * q, step = (i * qx - q * x) / determinant;
        float offset = (x - step * q) / i - step * center;
        judge(step, 0.0f, offset, determinant > 0.0f && finite(step) && step != 0.0f && finite(offset));
    }

    FN void free(float low, float high, float share) {
        float top = float(s.top), middle = low / 2.0f + high / 2.0f;
        low = middle + (low - middle) * share;
        high = middle + (high - middle) * share;
        Scale range = {high / top - low / top, 0.0f, low};
        if (share == 1.0f) judge(range.step, range.zero, range.offset);
        line(range);
    }

    // The least-squares step of the best one's codes.
    FN void refine() {
        if (s.zero == FIT_FREE) return line(scale);
        float inverse = 1.0f / scale.step, along = 0.0f, square = 0.0f;
        for (int i = 0; i < n; i++) {
            float q = code(w[i], inverse, scale) - scale.zero;
            along += weight(i) * q * w[i];
            square += weight(i) * q * q;
        }
        judge(along / square, scale.zero, 0.0f, square > 0.0f && finite(along / square));
    }

    static FN bool finite(float x) { return (__float_as_uint(x) & 0x7f800000u) != 0x7f800000u; }
};

// The smallest and the largest weight.
FN void range_of(const float *w, int n, int lane, float &low, float &high) {
    low = LARGEST_FLOAT;
    high = -LARGEST_FLOAT;
    for (int i = lane; i < n; i += FIT_LANES) {
        low = fminf(low, w[i]);
        high = fmaxf(high, w[i]);
    }
    low = over_lanes(low, false);
    high = over_lanes(high, true);
}

FN Scale blank(const Scheme &s) {
    Scale out = {1.0f, s.zero == FIT_FREE ? 0.0f : float((s.top + 1) / 2), 0.0f};
    return out;
}

KERNEL fit(const float *w, i64 groups, int per_row, int n, const float *importance, int top, int zero, int scales, float smallest,
           float largest, Scale *out) {
    i64 at = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / FIT_LANES, own = at < groups ? at : groups - 1;
    Group g = {{top, zero, scales, smallest, largest}, w + own * n, 0, n, int(threadIdx.x % FIT_LANES), false, infinity(), {}};
    g.scale = blank(g.s);
    if (importance) {
        g.importance = importance + own % per_row * n;
        float most = 0.0f;
        for (int i = g.lane; i < n; i += FIT_LANES) most = fmaxf(most, g.importance[i]);
        g.weighted = over_lanes(most, true) > 0.0f;
    }
    float low, high;
    range_of(g.w, n, g.lane, low, high);
    if (zero != FIT_FREE || low >= high) {
        low = fminf(low, 0.0f);
        high = fmaxf(high, 0.0f);
    }
    bool empty = low >= high;
    for (int step = 0; step <= FIT_SHRUNK; step++) {
        float share = 1.0f - FIT_SHRINK * float(step);
        if (zero == FIT_MIDDLE) g.symmetric(low * share, high * share);
        else if (zero == FIT_CODE) g.asymmetric(low * share, high * share);
        else g.free(low, high, share);
    }
    g.refine();
    if (at < groups && g.lane == 0) out[at] = empty ? blank(g.s) : g.scale;
}

// From the range alone, of which the share `cut` is kept.
KERNEL fit_largest(const float *w, i64 groups, int n, float cut, int top, int zero, int scales, float smallest, float largest,
                   Scale *out) {
    i64 at = (i64(blockIdx.x) * blockDim.x + threadIdx.x) / FIT_LANES, own = at < groups ? at : groups - 1;
    Scheme s = {top, zero, scales, smallest, largest};
    float low, high, last = float(top);
    range_of(w + own * n, n, int(threadIdx.x % FIT_LANES), low, high);
    float most = cut * fmaxf(fabsf(low), fabsf(high));
    low = fminf(fmaxf(low, -most), most);
    high = fminf(fmaxf(high, -most), most);
    Scale found = blank(s);
    if (zero != FIT_FREE) {
        low = fminf(low, 0.0f);
        high = fmaxf(high, 0.0f);
    }
    if (zero == FIT_FREE ? low != 0.0f || high != 0.0f : low != high) {
        if (zero == FIT_MIDDLE) found.step = storable(s, fmaxf(high, -low) / (last / 2.0f));
        if (zero == FIT_CODE) {
            found.step = storable(s, (high - low) / last);
            found.zero = fminf(fmaxf(rintf(-low / found.step), 0.0f), last);
        }
        if (zero == FIT_FREE) {
            // As MLX does it: the end farther from zero is kept, and zero is a value.
            bool below = fabsf(low) > fabsf(high);
            float step = fmaxf((high - low) / last, FIT_LEAST), edge = below ? low : high;
            step = below ? step : -step;
            float codes = rintf(edge / step);
            found.step = storable(s, codes == 0.0f ? step : edge / codes);
            found.offset = codes == 0.0f || edge == 0.0f ? 0.0f : storable(s, edge);
        }
    }
    if (at < groups && threadIdx.x % FIT_LANES == 0) out[at] = found;
}

// Of four-bit floats (`src/codec/fp4.rs`), a byte that stands for an E4M3 or a power of two.
struct Byte {
    bool power;

    FN float half(u32 byte) const { return 0.5f * (power ? e8m0(byte) : e4m3(byte)); }

    // As the format's own description has it; of zeros any that is not zero.
    FN int plain(float largest) const {
        float unused;
        if (power) {
            int exponent = int((__float_as_uint(largest) + (1u << 21)) >> 23);
            return largest == 0.0f ? 127 : min(max(exponent - 2, 0), 254);
        }
        return largest == 0.0f ? int(nearest_e4m3(1.0f, unused)) : max(int(nearest_e4m3(largest / 6.0f, unused)), 1);
    }

    FN int first(int plain) const { return power ? max(plain - FIT_POWERS, 0) : max(plain - FIT_BELOW, 1); }
    FN int end(int plain) const { return power ? plain + FIT_POWERS : min(plain + FIT_ABOVE, FP8_LARGEST + 1); }
};

FN float fp4_error(const float *w, const float *importance, int n, float half) {
    float inverse = 1.0f / half, sums[FIT_LANES] = {}, sum = 0.0f;
    for (int i = 0; i < n; i += FIT_LANES)
#pragma unroll
        for (int lane = 0; lane < FIT_LANES; lane++) {
            float size = fminf(fabsf(w[i + lane]) * inverse, 12.0f), step = size < 4.0f ? 1.0f : 2.0f;
            step = size < 8.0f ? step : 4.0f;
            float error = fabsf(w[i + lane]) - ((size + 12582912.0f * step) - 12582912.0f * step) * half;
            sums[lane] += (importance ? importance[i + lane] : 1.0f) * error * error;
        }
#pragma unroll
    for (int lane = 0; lane < FIT_LANES; lane++) sum += sums[lane];
    return sum;
}

// A thread has a span of `n` weights. Not `searched`: the plain one.
KERNEL fit_fp4(const float *w, i64 spans, int per_row, int n, const float *importance, int power, int searched, Scale *out, u8 *bytes) {
    i64 at = i64(blockIdx.x) * blockDim.x + threadIdx.x;
    if (at >= spans) return;
    const float *x = w + at * n, *own = importance ? importance + at % per_row * n : 0;
    float largest = 0.0f, most = 0.0f;
    for (int i = 0; i < n; i++) {
        largest = fmaxf(largest, fabsf(x[i]));
        if (own) most = fmaxf(most, own[i]);
    }
    if (!(most > 0.0f)) own = 0;
    Byte scale = {power != 0};
    int plain = scale.plain(largest), best = plain;
    float least = fp4_error(x, own, n, scale.half(u32(plain)));
    for (int byte = scale.first(plain); searched && byte < scale.end(plain); byte++) {
        float error = byte == plain ? infinity() : fp4_error(x, own, n, scale.half(u32(byte)));
        if (error < least) {
            least = error;
            best = byte;
        }
    }
    Scale found = {scale.half(u32(best)), 0.0f, 0.0f};
    out[at] = found;
    bytes[at] = u8(best);
}

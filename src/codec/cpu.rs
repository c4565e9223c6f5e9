//! One decoding loop, compiled once for each kind of CPU: the twins share their source, so only the few operations of
//! [`Cpu`] can differ. Rust never contracts `a * b + c` into a fused operation, so every kind gives the same bits.

/// What loops do not compile well to by themselves.
pub trait Cpu {
    /// Half to single precision, exact. NaNs stay NaNs.
    fn halves<const N: usize>(bits: [u16; N]) -> [f32; N];

    /// `table[code]` for each code. Codes are below 16.
    fn pick<const N: usize>(table: &[i8; 16], codes: &[i8; N]) -> [i8; N];

    /// Widens. Loops could, but next to the loops that unpack the codes they end up as single elements or shuffles.
    fn floats<const N: usize>(codes: &[i8; N]) -> [f32; N];

    /// -1 for each set bit, else 0; the lowest bit first. `N` is eight times `B`.
    fn masks<const B: usize, const N: usize>(bits: &[u8; B]) -> [i8; N];

    /// Negates the codes where a bit is set.
    fn negate(codes: &[i8; 32], bits: &[u8; 4]) -> [i8; 32];

    #[inline(always)]
    fn half(bytes: [u8; 2]) -> f32 {
        Self::halves([u16::from_le_bytes(bytes)])[0]
    }
}

/// A loop from stored bytes to weights. Mark `run` and all it calls `#[inline(always)]`: what is not inlined is
/// compiled for the oldest CPU.
pub trait Decoder {
    fn run<C: Cpu>(bytes: &[u8], out: &mut [f32]);
}

/// Runs on every CPU.
pub fn plain<D: Decoder>(bytes: &[u8], out: &mut [f32]) {
    D::run::<Plain>(bytes, out);
}

/// The fastest that this machine can run.
pub fn fastest<D: Decoder>(bytes: &[u8], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
        // SAFETY: the CPU has both features.
        return unsafe { avx2::<D>(bytes, out) };
    }
    plain::<D>(bytes, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,f16c")]
fn avx2<D: Decoder>(bytes: &[u8], out: &mut [f32]) {
    D::run::<x86::Avx2>(bytes, out);
}

struct Plain;

impl Cpu for Plain {
    #[inline(always)]
    fn halves<const N: usize>(bits: [u16; N]) -> [f32; N] {
        let mut out = [0.0; N];
        for (o, b) in out.iter_mut().zip(&bits) {
            *o = half(*b);
        }
        out
    }

    #[inline(always)]
    fn pick<const N: usize>(table: &[i8; 16], codes: &[i8; N]) -> [i8; N] {
        let mut out = [0; N];
        for (o, c) in out.iter_mut().zip(codes) {
            *o = table[(c & 15) as usize];
        }
        out
    }

    #[inline(always)]
    fn floats<const N: usize>(codes: &[i8; N]) -> [f32; N] {
        let mut out = [0.0; N];
        for (o, c) in out.iter_mut().zip(codes) {
            *o = f32::from(*c);
        }
        out
    }

    #[inline(always)]
    fn masks<const B: usize, const N: usize>(bits: &[u8; B]) -> [i8; N] {
        let mut out = [0; N];
        for (b, o) in bits.iter().zip(out.as_chunks_mut::<8>().0) {
            for (i, o) in o.iter_mut().enumerate() {
                *o = -((b >> i & 1) as i8);
            }
        }
        out
    }

    #[inline(always)]
    fn negate(codes: &[i8; 32], bits: &[u8; 4]) -> [i8; 32] {
        let mut out = *codes;
        for (o, mask) in out.iter_mut().zip(&Self::masks::<4, 32>(bits)) {
            *o = (*o ^ mask).wrapping_sub(*mask);
        }
        out
    }
}

/// Moves exponent and mantissa into place and corrects the exponent's bias by a multiplication, which also normalizes
/// subnormals; no branch, so it vectorizes.
#[inline(always)]
fn half(bits: u16) -> f32 {
    const BIAS: f32 = f32::from_bits((127 + 127 - 15) << 23);
    let magnitude = u32::from(bits & 0x7fff);
    let sign = u32::from(bits & 0x8000) << 16;
    let special = if magnitude >= 0x7c00 { 0x7f80_0000 } else { 0 };
    f32::from_bits((f32::from_bits(magnitude << 13) * BIAS).to_bits() | special | sign)
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::Cpu;
    use std::arch::x86_64::*;

    /// Only [`super::avx2`] may name it: its operations assume that the CPU has AVX2 and F16C.
    pub struct Avx2;

    impl Cpu for Avx2 {
        #[inline(always)]
        fn halves<const N: usize>(bits: [u16; N]) -> [f32; N] {
            let mut out = [0.0; N];
            let (eights, rest) = bits.as_chunks::<8>();
            let (outs, out_rest) = out.as_chunks_mut::<8>();
            for (b, o) in eights.iter().zip(outs) {
                // SAFETY: F16C is there; both arrays have the vector's size and unaligned access is used.
                unsafe { _mm256_storeu_ps(o.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(b.as_ptr().cast()))) };
            }
            for (b, o) in rest.iter().zip(out_rest) {
                // SAFETY: F16C is there.
                *o = unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(*b)))) };
            }
            out
        }

        #[inline(always)]
        fn pick<const N: usize>(table: &[i8; 16], codes: &[i8; N]) -> [i8; N] {
            const { assert!(N.is_multiple_of(16)) };
            let mut out = [0; N];
            let (codes, _) = codes.as_chunks::<16>();
            let (outs, _) = out.as_chunks_mut::<16>();
            for (c, o) in codes.iter().zip(outs) {
                // SAFETY: SSSE3 comes with AVX2; all three arrays have the vector's size and unaligned access is used.
                unsafe {
                    let table = _mm_loadu_si128(table.as_ptr().cast());
                    let picked = _mm_shuffle_epi8(table, _mm_loadu_si128(c.as_ptr().cast()));
                    _mm_storeu_si128(o.as_mut_ptr().cast(), picked);
                }
            }
            out
        }

        #[inline(always)]
        fn floats<const N: usize>(codes: &[i8; N]) -> [f32; N] {
            const { assert!(N.is_multiple_of(8)) };
            let mut out = [0.0; N];
            let (codes, _) = codes.as_chunks::<8>();
            let (outs, _) = out.as_chunks_mut::<8>();
            for (c, o) in codes.iter().zip(outs) {
                // SAFETY: AVX2 is there; the arrays have the vectors' sizes and unaligned access is used.
                unsafe {
                    let wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(c.as_ptr().cast()));
                    _mm256_storeu_ps(o.as_mut_ptr(), _mm256_cvtepi32_ps(wide));
                }
            }
            out
        }

        #[inline(always)]
        fn masks<const B: usize, const N: usize>(bits: &[u8; B]) -> [i8; N] {
            const { assert!(N == 8 * B && B.is_multiple_of(4)) };
            let mut out = [0; N];
            for (b, o) in bits.as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<32>().0) {
                // SAFETY: AVX2 is there; the output has the vector's size and unaligned access is used.
                unsafe { _mm256_storeu_si256(o.as_mut_ptr().cast(), masks(*b)) };
            }
            out
        }

        #[inline(always)]
        fn negate(codes: &[i8; 32], bits: &[u8; 4]) -> [i8; 32] {
            let mut out = [0; 32];
            // SAFETY: AVX2 is there; both arrays have the vector's size and unaligned access is used.
            unsafe {
                let masks = masks(*bits);
                let flipped = _mm256_xor_si256(_mm256_loadu_si256(codes.as_ptr().cast()), masks);
                _mm256_storeu_si256(out.as_mut_ptr().cast(), _mm256_sub_epi8(flipped, masks));
            }
            out
        }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn masks(bits: [u8; 4]) -> __m256i {
        // Eight copies of each byte keep a bit each. The shuffle stays within 128-bit lanes; all four bytes are in
        // both.
        let ones = 0x0101_0101_0101_0101;
        let copies = _mm256_setr_epi64x(0, ones, 2 * ones, 3 * ones);
        let bytes = _mm256_shuffle_epi8(_mm256_set1_epi32(i32::from_le_bytes(bits)), copies);
        let bit = _mm256_set1_epi64x(0x8040_2010_0804_0201_u64 as i64);
        _mm256_cmpeq_epi8(_mm256_and_si256(bytes, bit), bit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_exact() {
        for bits in 0..=u16::MAX {
            let (ours, theirs) = (half(bits), half::f16::from_bits(bits).to_f32_const());
            assert!(ours.to_bits() == theirs.to_bits() || ours.is_nan() && theirs.is_nan(), "{bits:#06x}");
        }
    }
}

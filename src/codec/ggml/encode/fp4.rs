//! Four-bit floats (E2M1) under an eight-bit float scale: MXFP4 and NVFP4.

use super::lanes::{Ints, Lanes, extreme};
use super::pack::{Out, bytes, nibbles};
use super::{Blocks, Importance, Kernel};

/// Magnitudes of the codes, doubled; the fourth bit is the sign.
const MAGNITUDES: [f32; 8] = [0., 1., 2., 3., 4., 6., 8., 12.];

/// The code nearest to `x` under a scale, the smaller magnitude at a tie. Never a negative zero.
#[inline(always)]
fn code<L: Lanes>(x: L, scale: L) -> L::Int {
    let (zero, size) = (L::splat(0.0), x.abs());
    let (mut best, mut least) = (zero, size);
    for (i, &magnitude) in MAGNITUDES.iter().enumerate().skip(1) {
        let error = (L::splat(magnitude) * scale - size).abs();
        best = L::select(error.lt(least), L::splat(i as f32), best);
        least = error.min(least);
    }
    best.truncate() | L::keep(x.lt(zero) & zero.lt(best), L::Int::splat(8))
}

#[inline(always)]
fn four<L: Lanes>(x: &[L; 4], scale: L) -> L::Int {
    bytes([code(x[0], scale), code(x[1], scale), code(x[2], scale), code(x[3], scale)])
}

/// Codes at this offset: code `j` with code `j + x.len() / 2` in one byte.
#[inline(always)]
fn store<L: Lanes>(x: &[L], scale: L, at: usize, out: &mut Out<'_>) {
    let (low, high) = x.split_at(x.len() / 2);
    for (k, (l, h)) in low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0).enumerate() {
        out.word(at + 4 * k, nibbles(four(l, scale), four(h, scale)));
    }
}

/// MXFP4: 32 weights, the scale a power of two.
pub struct PowerOfTwo;

impl Kernel for PowerOfTwo {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 17;
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let magnitude = extreme(blocks.x).1;
        let e = floor_log2(magnitude) + L::Int::splat(127 - 2);
        let e = L::keep(L::splat(0.0).lt(magnitude), e & L::Int::splat(0xff));
        // Half of 2^(e - 127), for the magnitudes are doubled; the two smallest are denormal.
        let normal = L::from_bits((e - L::Int::splat(1)) << 23);
        let denormal = L::from_bits(L::Int::splat(0x0020_0000) + (e << 21));
        let scale = L::select(L::from_int(e).lt(L::splat(2.0)), denormal, normal);
        out.byte(0, e);
        store(blocks.x, scale, 1, out);
    }
}

/// Bounds of the logarithm's size, and by how many units more it rounds up beyond each.
pub const LOG2: [(f32, i32); 7] = [(2., 1), (4., 1), (8., 3), (16., 6), (32., 11), (64., 22), (128., 44)];

/// `floorf(log2f(x))` with the logarithm rounded to a float before its floor, as the reference takes it: so just below a
/// power of two it is already that power's, from some number of units in the last place on.
#[inline(always)]
fn floor_log2<L: Lanes>(x: L) -> L::Int {
    let denormal = x.lt(L::splat(f32::MIN_POSITIVE));
    let bits = L::select(denormal, x * L::splat(4_294_967_296.0), x).bits();
    let shift = L::Int::splat(127) + L::keep(denormal, L::Int::splat(32));
    // Near -n, floats lie as far apart as just below n + 1: that interval's end, made positive.
    let end = L::from_int((bits >> 23) - shift + L::Int::splat(1));
    let end = L::select(end.lt(L::splat(0.0)), L::splat(1.0) - end, end);
    // Half the spacing of floats from `above` on, over that of log2 in units of 2^-24: `above / 2 * ln 2`.
    let mut units = L::Int::splat(0);
    for (above, more) in LOG2 {
        units = units + L::keep(L::splat(above).lt(end), L::Int::splat(more));
    }
    ((bits + units) >> 23) - shift
}

/// NVFP4 as ggml has it: four groups of 16, each under an unsigned E4M3 scale.
pub struct SmallFloat;

impl Kernel for SmallFloat {
    const WEIGHTS: usize = 64;
    const BYTES: usize = 36;
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let mut scales = [L::Int::splat(0); 4];
        for (j, x) in blocks.x.as_chunks::<16>().0.iter().enumerate() {
            let (stored, scale) = e4m3(extreme(x).1 / L::splat(6.0));
            scales[j] = stored;
            store(x, scale, 4 + 8 * j, out);
        }
        out.word(0, bytes(scales));
    }
}

/// The byte for a scale that is not negative (nearest, ties up, from 256 on the largest), and half its value.
#[inline(always)]
fn e4m3<L: Lanes>(x: L) -> (L::Int, L) {
    // The eight-bit exponent's bias is 120 more; both keep the three bits below it.
    let bias = L::Int::splat(120 << 3);
    let rounded = L::from_int(((x.bits() + L::Int::splat(1 << 19)) >> 20) - bias);
    let normal = L::select(rounded.lt(L::splat(120.0)), rounded, L::splat(126.0));
    let denormal = L::splat(7.0).min(L::from_int((x * L::splat(512.0) + L::splat(0.5)).truncate()));
    let code = L::select(x.lt(L::splat(1.0 / 64.0)), denormal, normal);

    let byte = code.truncate();
    let normal = L::from_bits((byte + bias) << 20) * L::splat(0.5);
    let denormal = code * L::splat(1.0 / 1024.0);
    (byte, L::select(code.lt(L::splat(8.0)), denormal, normal))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floor_of_the_rounded_logarithm() {
        for exponent in -149..=127 {
            let power = 2f64.powi(exponent) as f32;
            for ulps in -200..=200 {
                let x = f32::from_bits(power.to_bits().saturating_add_signed(ulps));
                if x == 0.0 || !x.is_finite() {
                    continue;
                }
                let want = (f64::from(x).log2() as f32).floor() as i32;
                assert_eq!(floor_log2(x).to_array()[0], want, "{x:e}");
            }
        }
    }

    #[test]
    fn code_is_the_first_nearest() {
        let values = MAGNITUDES.map(|m| -m);
        let values = [MAGNITUDES, values].concat();
        for scale in [0.5f32, 1.375] {
            for i in -4000..=4000 {
                let x = i as f32 / 256.0;
                let mut best = 0;
                for (i, value) in values.iter().enumerate() {
                    if (value * scale - x).abs() < (values[best] * scale - x).abs() {
                        best = i;
                    }
                }
                assert_eq!(code(x, scale).to_array()[0], best as i32, "{x} under {scale}");
            }
        }
    }

    #[test]
    fn e4m3_keeps_what_it_holds() {
        for byte in 0..=126u8 {
            let (exponent, mantissa) = (i32::from(byte >> 3), f32::from(byte & 7));
            let value = if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7) };
            let (stored, half) = e4m3(value);
            // From 256 on, ggml stores nothing but its largest.
            let want = if exponent == 15 { 126 } else { i32::from(byte) };
            assert_eq!(stored.to_array()[0], want);
            assert_eq!(half, if exponent == 15 { 224.0 } else { value / 2.0 });
        }
    }
}

//! K-quants whose groups have a scale alone: Q3_K and Q6_K.

use super::k::two_bit;
use super::lanes::{Ints, Lanes, clamp, energy, extreme, nearest, sum};
use super::pack::{Out, four_by_four, nibbles, pairs, plane, words};
use super::search::{Signed, TINY, signed, signed_descent};
use super::{Blocks, Kernel};

const GROUPS: usize = 16;

/// Codes of a group under its stored scale, or `chosen` where that is zero.
#[inline(always)]
fn round<L: Lanes>(x: &[L; 16], scale: L, half: f32, chosen: impl Fn(usize) -> L, out: &mut [L::Int]) {
    let zero = scale.eq(L::splat(0.0));
    let any_zero = L::any(zero);
    let mut codes = [L::splat(0.0); 16];
    for i in 0..16 {
        codes[i] = clamp(nearest(x[i] / scale), -half, half - 1.0) + L::splat(half);
        if any_zero {
            codes[i] = L::select(zero, chosen(i), codes[i]);
        }
    }
    words(&codes, out);
}

/// Sixteen groups of 16, six-bit signed scales: Q3_K.
pub struct Three;

impl Three {
    const HALF: f32 = 4.0;

    /// Codes of the search; scales as `0..64`, their unit.
    #[inline(always)]
    fn fit<L: Lanes>(x: &[[L; 16]], codes: &mut [[L; 16]; GROUPS]) -> ([L::Int; GROUPS], L) {
        let mut scales = [L::splat(0.0); GROUPS];
        for (j, x) in x.iter().enumerate() {
            (scales[j], codes[j]) = signed_descent(x, Self::HALF);
        }
        let (max, _) = extreme(&scales);
        let zero = L::splat(0.0);
        let none = max.eq(zero);
        let inverse = L::splat(-32.0) / max;
        let mut stored = [L::Int::splat(0); GROUPS];
        for (stored, scale) in stored.iter_mut().zip(scales) {
            // A byte before it is clamped, as in the reference.
            let byte = (nearest(inverse * scale).truncate() & L::Int::splat(0xff)) ^ L::Int::splat(0x80);
            let code = clamp(L::from_int(byte - L::Int::splat(0x80)), -32.0, 31.0) + L::splat(32.0);
            *stored = L::select(none, zero, code).truncate();
        }
        (stored, L::select(none, zero, L::splat(1.0) / inverse))
    }

    #[inline(always)]
    fn fit_weighted<L: Lanes>(
        blocks: &Blocks<'_, L>,
        importance: &[L],
        codes: &mut [[L; 16]; GROUPS],
    ) -> ([L::Int; GROUPS], L) {
        let zero = L::splat(0.0);
        let spread = L::splat(2.0) * energy(blocks.x) / L::splat(256.0);
        let (mut scales, mut weights) = ([zero; GROUPS], [zero; GROUPS]);
        let groups = blocks.x.as_chunks::<16>().0.iter().zip(importance.as_chunks::<16>().0);
        for (j, (x, importance)) in groups.enumerate() {
            let mut w = [zero; 16];
            for i in 0..16 {
                w[i] = importance[i] * (spread + x[i] * x[i]).sqrt();
            }
            weights[j] = sum(&w);
            let fit = signed(x, &w, Self::HALF);
            scales[j] = fit.scale;
            for i in 0..16 {
                codes[j][i] = fit.code(x[i]);
            }
        }
        let fit = signed(&scales, &weights, 32.0);
        let mut stored = [L::Int::splat(0); GROUPS];
        for (stored, scale) in stored.iter_mut().zip(scales) {
            *stored = fit.code(scale).truncate();
        }
        (stored, fit.scale)
    }
}

impl Kernel for Three {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let (x, _) = blocks.x.as_chunks::<16>();
        let mut chosen = [[L::splat(0.0); 16]; GROUPS];
        let (scales, unit) = match blocks.importance {
            None => Self::fit(x, &mut chosen),
            Some(importance) => Self::fit_weighted(blocks, importance, &mut chosen),
        };
        // Low nibbles of scales 0..8 and 8..16 share bytes, then the upper two bits, four to a byte.
        let s = four_by_four(scales);
        out.word(96, nibbles(s[0], s[2]));
        out.word(100, nibbles(s[1], s[3]));
        out.word(104, pairs([s[0] >> 4, s[1] >> 4, s[2] >> 4, s[3] >> 4]));
        let d = unit.to_half();
        out.half(108, d);

        let d = L::from_half(d);
        let mut codes = [L::Int::splat(0); 64];
        for (j, x) in x.iter().enumerate() {
            let scale = d * (L::from_int(scales[j]) - L::splat(32.0));
            round(x, scale, Self::HALF, |i| chosen[j][i], &mut codes[4 * j..4 * j + 4]);
        }
        for k in 0..8 {
            let mut high = L::Int::splat(0);
            for j in 0..8 {
                high = high | plane(codes[8 * j + k], 2) << j as u32;
            }
            out.word(4 * k, high);
        }
        two_bit(&codes, 32, out);
    }
}

/// Sixteen groups of 16, eight-bit signed scales: Q6_K.
pub struct Six;

impl Kernel for Six {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 210;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let zero = L::splat(0.0);
        let (x, _) = blocks.x.as_chunks::<16>();
        let mut groups = [Signed::zero(); GROUPS];
        let mut scales = [zero; GROUPS];
        for (j, x) in x.iter().enumerate() {
            let mut w = [zero; 16];
            match blocks.importance {
                Some(importance) => w.copy_from_slice(&importance[16 * j..16 * j + 16]),
                None => {
                    for i in 0..16 {
                        w[i] = x[i] * x[i];
                    }
                }
            }
            groups[j] = signed(x, &w, 32.0);
            scales[j] = groups[j].scale;
        }
        let (max, magnitude) = extreme(&scales);
        // Such a block is all zero bytes.
        let none = magnitude.lt(L::splat(TINY));
        let inverse = L::splat(-128.0) / max;
        let d = L::select(none, zero, L::splat(1.0) / inverse).to_half();
        out.half(208, d);

        let d = L::from_half(d);
        let mut stored = [L::Int::splat(0); GROUPS];
        let mut codes = [L::Int::splat(0); 64];
        for (j, x) in x.iter().enumerate() {
            let scale = L::select(none, zero, L::splat(127.0).min(nearest(inverse * scales[j])));
            stored[j] = scale.truncate();
            let chosen = |i: usize| L::select(none, zero, groups[j].code(x[i]));
            round(x, d * scale, 32.0, chosen, &mut codes[4 * j..4 * j + 4]);
        }
        for (i, word) in four_by_four(stored).into_iter().enumerate() {
            out.word(192 + 4 * i, word);
        }
        for half in 0..2 {
            for k in 0..8 {
                let i = 32 * half + k;
                let c = [codes[i], codes[i + 8], codes[i + 16], codes[i + 24]];
                out.word(64 * half + 4 * k, nibbles(c[0], c[2]));
                out.word(64 * half + 32 + 4 * k, nibbles(c[1], c[3]));
                out.word(128 + 32 * half + 4 * k, pairs([c[0] >> 4, c[1] >> 4, c[2] >> 4, c[3] >> 4]));
            }
        }
    }
}

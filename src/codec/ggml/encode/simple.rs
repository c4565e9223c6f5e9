//! One scale, and perhaps a minimum, for each small block: Q1_0, Q2_0, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0.

use super::lanes::{Ints, Lanes, clamp, extreme, inverse, round_away};
use super::pack::{Out, bytes, nibbles, plane, squeeze};
use super::search::{WEIGHTED, scale_min, signed};
use super::{Blocks, Importance, Kernel};

/// The 32 weights of a block.
#[inline(always)]
fn block<L: Lanes>(x: &[L]) -> &[L; 32] {
    x.first_chunk().expect("`Kernel::WEIGHTS` is 32")
}

/// Importance of a weight as the searches take it: mixed with its magnitude around the row's mean square.
#[inline(always)]
fn weigh<L: Lanes>(x: &[L; 32], importance: &[L], row: L) -> [L; 32] {
    let mut w = *x;
    for (w, importance) in w.iter_mut().zip(importance) {
        *w = *importance * (row + *w * *w).sqrt();
    }
    w
}

/// Codes of `bits` bits at this offset: the fifth bits as one word, then code `j` with code `j + 16` in one byte.
#[inline(always)]
fn store<L: Lanes>(codes: &[L::Int; 32], bits: usize, mut at: usize, out: &mut Out<'_>) {
    let mut words = [L::Int::splat(0); 8];
    for (word, four) in words.iter_mut().zip(codes.as_chunks::<4>().0) {
        *word = bytes(*four);
    }
    if bits == 5 {
        let mut high = L::Int::splat(0);
        for (k, &word) in words.iter().enumerate() {
            high = high | squeeze(plane(word, 4)) << (4 * k as u32);
        }
        out.word(at, high);
        at += 4;
    }
    for k in 0..4 {
        out.word(at + 4 * k, nibbles(words[k], words[k + 4]));
    }
}

/// Towards zero, at most `top`; what does not fit an integer becomes 0.
#[inline(always)]
fn cut<L: Lanes>(x: L, top: i32) -> L::Int {
    x.truncate().min(L::Int::splat(top)) & L::Int::splat(0xff)
}

/// Q4_0 and Q5_0: the value of largest magnitude becomes the lowest code.
pub struct Signed<const BITS: usize>;

impl<const BITS: usize> Kernel for Signed<BITS> {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 2 + 4 * BITS;
    const NEEDS_ROW: bool = true;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let half = (1 << (BITS - 1)) as f32;
        let x = block(blocks.x);
        let mut codes = [L::Int::splat(0); 32];
        let d = if let Some(importance) = blocks.importance {
            let fit = signed(x, &weigh(x, importance, blocks.row), half);
            for (code, &x) in codes.iter_mut().zip(x) {
                *code = fit.code(x).truncate();
            }
            fit.scale
        } else {
            let d = extreme(x).0 / L::splat(-half);
            let (inverse, middle) = (inverse(d), L::splat(half + 0.5));
            for (code, &x) in codes.iter_mut().zip(x) {
                *code = cut(x * inverse + middle, (1 << BITS) - 1);
            }
            d
        };
        out.half(0, d.to_half());
        store::<L>(&codes, BITS, 2, out);
    }
}

/// Q4_1 and Q5_1: the minimum becomes code 0.
pub struct ScaleMin<const BITS: usize>;

impl<const BITS: usize> Kernel for ScaleMin<BITS> {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 4 + 4 * BITS;
    const NEEDS_ROW: bool = true;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let top = (1 << BITS) - 1;
        let x = block(blocks.x);
        let mut codes = [L::Int::splat(0); 32];
        let (d, low) = if let Some(importance) = blocks.importance {
            let fit = scale_min::<L, 32, false>(x, &weigh(x, importance, blocks.row), top as f32, WEIGHTED);
            for (code, &x) in codes.iter_mut().zip(x) {
                *code = fit.code(x).truncate();
            }
            (fit.scale, fit.low)
        } else {
            let (mut min, mut max) = (L::splat(f32::MAX), L::splat(-f32::MAX));
            for x in x {
                min = x.min(min);
                max = x.max(max);
            }
            let d = (max - min) / L::splat(top as f32);
            let inverse = inverse(d);
            for (code, &x) in codes.iter_mut().zip(x) {
                *code = cut((x - min) * inverse + L::splat(0.5), top);
            }
            (d, min)
        };
        out.word(0, d.to_half() | low.to_half() << 16);
        store::<L>(&codes, BITS, 4, out);
    }
}

/// Q8_0: the largest magnitude becomes 127.
pub struct EightBit;

impl Kernel for EightBit {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 34;
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let d = extreme(blocks.x).1 / L::splat(127.0);
        out.half(0, d.to_half());
        let inverse = inverse(d);
        for (k, x) in blocks.x.as_chunks::<4>().0.iter().enumerate() {
            let code = [x[0] * inverse, x[1] * inverse, x[2] * inverse, x[3] * inverse];
            let code = bytes([round_away(code[0]), round_away(code[1]), round_away(code[2]), round_away(code[3])]);
            out.word(2 + 4 * k, code);
        }
    }
}

/// Q1_0: signs, times the mean magnitude.
pub struct Sign;

impl Kernel for Sign {
    const WEIGHTS: usize = 128;
    const BYTES: usize = 18;
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let zero = L::splat(0.0);
        let mut sum = zero;
        for x in blocks.x {
            sum = sum + x.abs();
        }
        out.half(0, (sum / L::splat(128.0)).to_half());
        for (k, x) in blocks.x.as_chunks::<32>().0.iter().enumerate() {
            let mut word = L::Int::splat(0);
            for (j, x) in x.iter().enumerate() {
                word = word | L::keep(!x.lt(zero), L::Int::splat(1 << j));
            }
            out.word(2 + 4 * k, word);
        }
    }
}

/// Q2_0: -1, 0, 1 and 2 times the largest magnitude.
pub struct TwoBit;

impl Kernel for TwoBit {
    const WEIGHTS: usize = 64;
    const BYTES: usize = 18;
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let d = extreme(blocks.x).1;
        out.half(0, d.to_half());
        let inverse = inverse(d);
        for (k, x) in blocks.x.as_chunks::<16>().0.iter().enumerate() {
            let mut word = L::Int::splat(0);
            for (j, &x) in x.iter().enumerate() {
                let code = clamp(L::from_int(round_away(x * inverse)) + L::splat(1.0), 0.0, 3.0);
                word = word | code.truncate() << (2 * j as u32);
            }
            out.word(2 + 4 * k, word);
        }
    }
}

//! Three values, minus the largest magnitude, zero and it: TQ1_0 and TQ2_0.

use super::k::two_bit;
use super::lanes::{Ints, Lanes, extreme, inverse, round_away};
use super::pack::{Out, bytes};
use super::{Blocks, Importance, Kernel};

/// 0, 1 or 2.
#[inline(always)]
fn trit<L: Lanes>(x: L, inverse: L) -> L::Int {
    // Masked because a magnitude whose inverse overflows gives `i32::MIN + 1`, which the reference too cuts to 1.
    (round_away(x * inverse) + L::Int::splat(1)) & L::Int::splat(3)
}

/// TQ1_0: five to a byte, as the fraction that a base-3 number is of 3^5.
pub struct Base3;

impl Base3 {
    /// One byte from `x[0]`, `x[step]` ...; missing digits are 0.
    #[inline(always)]
    fn byte<L: Lanes>(x: &[L], step: usize, digits: usize, inverse: L) -> L::Int {
        let mut q = L::Int::splat(0);
        for n in 0..5 {
            q = q + q + q;
            if n < digits {
                q = q + trit(x[n * step], inverse);
            }
        }
        // ceil(256 * q / 243); all exact, and the quotient of such numbers never rounds up to an integer.
        let q = L::from_int((q << 8) + L::Int::splat(242));
        (q / L::splat(243.0)).truncate()
    }

    #[inline(always)]
    fn word<L: Lanes>(x: &[L], step: usize, digits: usize, inverse: L) -> L::Int {
        let mut word = [L::Int::splat(0); 4];
        for (i, byte) in word.iter_mut().enumerate() {
            *byte = Self::byte(&x[i..], step, digits, inverse);
        }
        bytes(word)
    }
}

impl Kernel for Base3 {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 54;
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let d = extreme(blocks.x).1;
        let inverse = inverse(d);
        for k in 0..8 {
            out.word(4 * k, Self::word(&blocks.x[4 * k..], 32, 5, inverse));
        }
        for k in 0..4 {
            out.word(32 + 4 * k, Self::word(&blocks.x[160 + 4 * k..], 16, 5, inverse));
        }
        out.word(48, Self::word(&blocks.x[240..], 4, 4, inverse));
        out.half(52, d.to_half());
    }
}

/// TQ2_0: four to a byte.
pub struct Base4;

impl Kernel for Base4 {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 66;
    const IMPORTANCE: Importance = Importance::Ignored;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let d = extreme(blocks.x).1;
        let inverse = inverse(d);
        let mut codes = [L::Int::splat(0); 64];
        for (word, x) in codes.iter_mut().zip(blocks.x.as_chunks::<4>().0) {
            *word = bytes([trit(x[0], inverse), trit(x[1], inverse), trit(x[2], inverse), trit(x[3], inverse)]);
        }
        two_bit(&codes, 0, out);
        out.half(64, d.to_half());
    }
}

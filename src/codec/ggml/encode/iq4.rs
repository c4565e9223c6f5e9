//! Four-bit codes into a table of sixteen values that lie closer near zero: IQ4_NL and IQ4_XS.

use super::lanes::{Ints, Lanes, clamp, energy, extreme, inverse, nearest};
use super::pack::{Out, bytes, nibbles};
use super::search::TINY;
use super::{Blocks, Kernel};

const VALUES: [f32; 16] = [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

/// For one step of the binary search: what to compare with, by the index reached so far.
const fn midpoints(step: usize) -> [f32; 16] {
    let mut table = [0.0; 16];
    let mut i = 0;
    while i + step < 16 {
        table[i] = (VALUES[i + step - 1] + VALUES[i + step]) / 2.0;
        i += 2 * step;
    }
    table
}

static MIDPOINTS: [[f32; 16]; 3] = [midpoints(4), midpoints(2), midpoints(1)];
static TABLE: [f32; 16] = VALUES;

/// Index of the nearest value, the upper one at a midpoint and the last for NaN.
///
/// The reference compares the rounded distances to both neighbours; comparing with their midpoint is the same. Rounding is
/// monotone, so the distances can only compare wrongly by becoming equal, close to the midpoint. There both are exact:
/// every midpoint is a multiple of 1/2, and `x` near it is no finer than its distance (about half a gap, 5.5 to 12) can hold.
#[inline(always)]
fn index<L: Lanes>(x: L) -> L::Int {
    let first = L::splat((VALUES[7] + VALUES[8]) / 2.0);
    let mut index = L::keep(!x.lt(first), L::Int::splat(8));
    for (table, step) in MIDPOINTS.iter().zip([4, 2, 1]) {
        index = index + L::keep(!x.lt(L::lookup(table, index)), L::Int::splat(step));
    }
    index
}

/// Trial scales to each side of the plain one.
pub const TRIALS: i32 = 7;

/// The scale of 32 weights with the least weighted squared error over a grid of trials; 0 for a group of zeros.
#[inline(always)]
fn search<L: Lanes>(x: &[L; 32], w: &[L; 32]) -> L {
    let zero = L::splat(0.0);
    let (max, magnitude) = extreme(x);
    let (sum_qx, sum_q2) = products(x, w, L::splat(1.0) / (-max / L::splat(VALUES[0])));
    let mut scale = L::select(zero.lt(sum_q2), sum_qx / sum_q2, zero);
    let mut best = scale * sum_qx;
    for trial in -TRIALS..=TRIALS {
        let (sum_qx, sum_q2) = products(x, w, L::splat(trial as f32 + VALUES[0]) / max);
        let better = zero.lt(sum_q2) & (best * sum_q2).lt(sum_qx * sum_qx);
        if L::any(better) {
            scale = L::select(better, sum_qx / sum_q2, scale);
            best = L::select(better, scale * sum_qx, best);
        }
    }
    L::select(magnitude.lt(L::splat(TINY)), zero, scale)
}

/// Sums of `w q x` and `w q q` over the values of one trial.
#[inline(always)]
fn products<L: Lanes>(x: &[L; 32], w: &[L; 32], inverse: L) -> (L, L) {
    let (mut sum_qx, mut sum_q2) = (L::splat(0.0), L::splat(0.0));
    for i in 0..32 {
        let q = L::lookup(&TABLE, index(inverse * x[i]));
        let wq = w[i] * q;
        sum_qx = sum_qx + wq * x[i];
        sum_q2 = sum_q2 + wq * q;
    }
    (sum_qx, sum_q2)
}

/// Weights of the errors: the squares, or the importance mixed with the magnitude around `spread`.
#[inline(always)]
fn weigh<L: Lanes>(x: &[L; 32], importance: Option<&[L; 32]>, spread: L) -> [L; 32] {
    let mut w = *x;
    for i in 0..32 {
        w[i] = match importance {
            Some(importance) => importance[i] * (spread + x[i] * x[i]).sqrt(),
            None => x[i] * x[i],
        };
    }
    w
}

/// Codes of 32 weights at this offset: code `j` with code `j + 16` in one byte.
#[inline(always)]
fn store<L: Lanes>(x: &[L; 32], inverse: L, at: usize, out: &mut Out<'_>) {
    let mut words = [L::Int::splat(0); 8];
    for (word, x) in words.iter_mut().zip(x.as_chunks::<4>().0) {
        *word = bytes([index(inverse * x[0]), index(inverse * x[1]), index(inverse * x[2]), index(inverse * x[3])]);
    }
    for k in 0..4 {
        out.word(at + 4 * k, nibbles(words[k], words[k + 4]));
    }
}

/// The scale of one block, searched.
#[inline(always)]
fn scale<L: Lanes>(blocks: &Blocks<'_, L>, j: usize, spread: L) -> L {
    let x = &blocks.x.as_chunks::<32>().0[j];
    let importance = blocks.importance.map(|w| &w.as_chunks::<32>().0[j]);
    search(x, &weigh(x, importance, spread))
}

/// IQ4_NL: blocks of 32.
pub struct Block32;

impl Kernel for Block32 {
    const WEIGHTS: usize = 32;
    const BYTES: usize = 18;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let spread = energy(blocks.x) * L::splat(2.0 / 32.0);
        let scale = scale(blocks, 0, spread);
        out.half(0, scale.to_half());
        store(&blocks.x.as_chunks::<32>().0[0], inverse(scale), 2, out);
    }
}

/// IQ4_XS: eight groups of 32 with six-bit signed scales.
pub struct Block256;

impl Kernel for Block256 {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 136;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let spread = energy(blocks.x) * L::splat(2.0 / 256.0);
        let mut scales = [L::splat(0.0); 8];
        for (j, s) in scales.iter_mut().enumerate() {
            *s = scale(blocks, j, spread);
        }
        // The codes are chosen under this unit, not under the half that is stored.
        let d = -extreme(&scales).0 / L::splat(32.0);
        let per_unit = inverse(d);
        let (mut low, mut high) = (L::Int::splat(0), L::Int::splat(0));
        for (j, (x, scale)) in blocks.x.as_chunks::<32>().0.iter().zip(scales).enumerate() {
            let l = clamp(nearest(per_unit * scale), -32.0, 31.0);
            store(x, inverse(d * l), 8 + 16 * j, out);
            let l = (l + L::splat(32.0)).truncate();
            low = low | (l & L::Int::splat(0xf)) << (4 * j as u32);
            high = high | l >> 4 << (2 * j as u32);
        }
        out.word(0, d.to_half() | high << 16);
        out.word(4, low);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By distances to both neighbours, rounded, as the reference has it.
    fn by_distance(x: f32) -> usize {
        if x <= VALUES[0] {
            return 0;
        }
        if x >= VALUES[15] {
            return 15;
        }
        let upper = (1..15).find(|&i| x < VALUES[i]).unwrap_or(15);
        if x - VALUES[upper - 1] < VALUES[upper] - x { upper - 1 } else { upper }
    }

    fn check(x: f32) {
        assert_eq!(index(x).to_array()[0] as usize, by_distance(x), "{x}");
    }

    #[test]
    fn index_is_that_of_the_nearest_value() {
        for pair in VALUES.windows(2) {
            for x in [pair[0], (pair[0] + pair[1]) / 2.0] {
                for ulps in -20_000..=20_000 {
                    check(f32::from_bits(x.to_bits().wrapping_add_signed(ulps)));
                }
            }
        }
        // Every float is a multiple of some step here, from the denormals to infinity and NaN.
        for bits in (0..=u32::MAX).step_by(40_009) {
            check(f32::from_bits(bits));
        }
        for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            check(x);
        }
    }
}

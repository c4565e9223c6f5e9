//! Encoders, byte for byte those of ggml's `quantize_*` (compiled for baseline x86-64, where nothing is fused).
//!
//! The reference's arithmetic is serial within a block, so blocks run side by side instead: one per SIMD lane. A [`Kernel`] is
//! written once over [`Lanes`]; branches become selects, and every lane sums in the reference's order.

mod codebook;
mod fp4;
mod iq;
mod iq1;
mod iq4;
mod k;
mod k_signed;
mod lanes;
mod lattice;
mod pack;
mod search;
mod simple;
mod ternary;

#[cfg(test)]
mod tests;

use crate::codec::block::{Encode, Importance};
use crate::codec::facts::Number;
use lanes::{Ints, Lanes, MAX_LANES};
use pack::Out;

pub const Q1_0: Encode = encoder::<simple::Sign>();
pub const Q2_0: Encode = encoder::<simple::TwoBit>();
pub const Q4_0: Encode = encoder::<simple::Signed<4>>();
pub const Q4_1: Encode = encoder::<simple::ScaleMin<4>>();
pub const Q5_0: Encode = encoder::<simple::Signed<5>>();
pub const Q5_1: Encode = encoder::<simple::ScaleMin<5>>();
pub const Q8_0: Encode = encoder::<simple::EightBit>();
pub const Q2_K: Encode = encoder::<k::Two>();
pub const Q3_K: Encode = encoder::<k_signed::Three>();
pub const Q4_K: Encode = encoder::<k::FourOrFive<4>>();
pub const Q5_K: Encode = encoder::<k::FourOrFive<5>>();
pub const Q6_K: Encode = encoder::<k_signed::Six>();
pub const IQ1_S: Encode = encoder::<iq1::Iq1S>();
pub const IQ1_M: Encode = encoder::<iq1::Iq1M>();
pub const IQ2_XXS: Encode = encoder::<iq::Iq2Xxs>();
pub const IQ2_XS: Encode = encoder::<iq::Iq2Xs>();
pub const IQ2_S: Encode = encoder::<iq::Iq2S>();
pub const IQ3_XXS: Encode = encoder::<iq::Iq3Xxs>();
pub const IQ3_S: Encode = encoder::<iq::Iq3S>();
pub const IQ4_NL: Encode = encoder::<iq4::Block32>();
pub const IQ4_XS: Encode = encoder::<iq4::Block256>();
pub const TQ1_0: Encode = encoder::<ternary::Base3>();
pub const TQ2_0: Encode = encoder::<ternary::Base4>();
pub const MXFP4: Encode = encoder::<fp4::PowerOfTwo>();
pub const NVFP4: Encode = encoder::<fp4::SmallFloat>();

/// What the encoders' searches are made of, by the names that `kernels/grid/search.cuh` has for it.
pub fn numbers() -> Vec<(&'static str, Number)> {
    use Number::{Float, Floats, Int, Ints};
    let [two, four, five] = [k::Two::TRIALS, k::FourOrFive::<4>::TRIALS, k::FourOrFive::<5>::TRIALS];
    vec![
        ("SEARCH_TINY", Float(search::TINY)),
        ("SEARCH_TRIAL", Float(search::TRIAL)),
        ("SEARCH_SIGNED_TRIALS", Int(search::SIGNED_TRIALS)),
        ("SEARCH_POSITIVE_TRIALS", Int(search::POSITIVE_TRIALS)),
        ("SEARCH_TABLE_TRIALS", Int(iq4::TRIALS)),
        ("SEARCH_DESCENTS", Int(search::DESCENTS as i32)),
        ("SEARCH_WEIGHTED_FIRST", Float(search::WEIGHTED.first)),
        ("SEARCH_WEIGHTED_STEP", Float(search::WEIGHTED.step)),
        ("SEARCH_WEIGHTED_LAST", Int(search::WEIGHTED.last as i32)),
        ("SEARCH_Q2_FIRST", Float(two.first)),
        ("SEARCH_Q2_STEP", Float(two.step)),
        ("SEARCH_Q2_LAST", Int(two.last as i32)),
        ("SEARCH_Q4_FIRST", Float(four.first)),
        ("SEARCH_Q4_STEP", Float(four.step)),
        ("SEARCH_Q4_LAST", Int(four.last as i32)),
        ("SEARCH_Q5_FIRST", Float(five.first)),
        ("SEARCH_Q5_STEP", Float(five.step)),
        ("SEARCH_Q5_LAST", Int(five.last as i32)),
        ("SEARCH_LOG2_COUNT", Int(fp4::LOG2.len() as i32)),
        ("SEARCH_LOG2_ABOVE", Floats(fp4::LOG2.iter().map(|l| l.0).collect())),
        ("SEARCH_LOG2_MORE", Ints(fp4::LOG2.iter().map(|l| l.1).collect())),
    ]
}

/// The encoder of one format.
trait Kernel {
    /// Weights per block, at most [`MAX_WEIGHTS`].
    const WEIGHTS: usize;
    /// Bytes per block.
    const BYTES: usize;
    const IMPORTANCE: Importance = Importance::Used;
    /// Importance is mixed with the mean square of the whole row.
    const NEEDS_ROW: bool = false;

    /// Encodes one block in each lane. Implementations are `#[inline(always)]`, as is all they call: only so do they become
    /// vector code inside the entry points that enable it. Closures over lanes and functions passed as values may stay
    /// outside, where every operation is a call; the kernels use neither.
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>);
}

/// Weights of the largest block.
const MAX_WEIGHTS: usize = 256;

/// As many blocks as there are lanes, transposed.
struct Blocks<'a, L> {
    /// `Kernel::WEIGHTS` of them.
    x: &'a [L],
    /// As many, where an importance vector was given and the kernel uses it.
    importance: Option<&'a [L]>,
    /// Mean square of the row, for importance with `Kernel::NEEDS_ROW`.
    row: L,
}

const fn encoder<K: Kernel>() -> Encode {
    Encode { importance: K::IMPORTANCE, run: run::<K>, plain: drive::<K, f32> }
}

fn run<K: Kernel>(w: &[f32], cols: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    {
        if lanes::avx512::available() {
            // SAFETY: just asked.
            return unsafe { lanes::avx512::run::<K>(w, cols, importance, out) };
        }
        if lanes::avx2::available() {
            // SAFETY: just asked.
            return unsafe { lanes::avx2::run::<K>(w, cols, importance, out) };
        }
    }
    drive::<K, f32>(w, cols, importance, out)
}

/// Encodes whole rows, `L::N` blocks at a time. At the ragged end the last block fills the lanes left over.
#[inline(always)]
fn drive<K: Kernel, L: Lanes>(w: &[f32], cols: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    const { assert!(K::WEIGHTS <= MAX_WEIGHTS && K::WEIGHTS % 4 == 0) };
    if out.is_empty() {
        return;
    }
    let importance = importance.filter(|_| K::IMPORTANCE != Importance::Ignored);
    let squares = match importance {
        Some(_) if K::NEEDS_ROW => mean_squares::<L>(w, cols),
        _ => Vec::new(),
    };
    let per_row = cols / K::WEIGHTS;
    let mut x = [L::splat(0.0); MAX_WEIGHTS];
    let mut columns = [L::splat(0.0); MAX_WEIGHTS];
    for (group, bytes) in out.chunks_mut(L::N * K::BYTES).enumerate() {
        let (mut at, mut column) = ([0; MAX_LANES], [0; MAX_LANES]);
        let mut row = [0.0; MAX_LANES];
        for lane in 0..L::N {
            let block = group * L::N + lane.min(bytes.len() / K::BYTES - 1);
            at[lane] = block * K::WEIGHTS;
            column[lane] = block % per_row * K::WEIGHTS;
            row[lane] = squares.get(block / per_row).copied().unwrap_or_default();
        }
        L::gather(w, &at, &mut x[..K::WEIGHTS]);
        if let Some(importance) = importance {
            L::gather(importance, &column, &mut columns[..K::WEIGHTS]);
        }
        let blocks = Blocks {
            x: &x[..K::WEIGHTS],
            importance: importance.map(|_| &columns[..K::WEIGHTS]),
            row: L::from_array(&row),
        };
        K::encode(&blocks, &mut Out::new(bytes, K::BYTES));
    }
}

/// Mean square of each row, summed in order.
#[inline(always)]
fn mean_squares<L: Lanes>(w: &[f32], cols: usize) -> Vec<f32> {
    const STEP: usize = 32;
    let rows = w.len() / cols;
    let mut means = Vec::with_capacity(rows + L::N);
    let mut x = [L::splat(0.0); STEP];
    for first in (0..rows).step_by(L::N) {
        let mut sum = L::splat(0.0);
        for column in (0..cols).step_by(STEP) {
            let mut at = [0; MAX_LANES];
            for (lane, at) in at[..L::N].iter_mut().enumerate() {
                *at = (first + lane).min(rows - 1) * cols + column;
            }
            L::gather(w, &at, &mut x);
            for &x in &x {
                sum = sum + x * x;
            }
        }
        let mean = (sum / L::splat(cols as f32)).bits().to_array();
        means.extend(mean[..L::N].iter().map(|&bits| f32::from_bits(bits as u32)));
    }
    means
}

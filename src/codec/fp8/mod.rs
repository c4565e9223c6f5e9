//! Eight-bit floats of Hugging Face checkpoints: dense, and under scales. Sources: OCP OFP8, OCP Microscaling Formats 1.0;
//! DeepSeek-V3 `inference/kernel.py`.

mod scaled;

use std::marker::PhantomData;
use std::ops::Range;

use safetensors::Dtype;

use super::block::{Block, DecodeFn};
use super::cpu::{self, Cpu, Decoder};
use super::facts::{DeviceGrid, Facts};
use super::grid::Levels;
use super::{Codec, Part};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};
use scaled::{CHANNEL, MLX_MXFP8, MODELOPT, MXFP8, SQUARE, TENSOR};

pub static CODECS: &[&dyn Codec] = &[
    &F8_E4M3,
    &F8_E5M2,
    &BLOCK_FP8,
    &CHANNEL[0],
    &CHANNEL[1],
    &CHANNEL[2],
    &SQUARE[0],
    &SQUARE[1],
    &SQUARE[2],
    &TENSOR,
    &MODELOPT,
    &MXFP8,
    &MLX_MXFP8,
];

/// The largest E4M3, and its bits.
pub const MAX: f32 = 448.0;
pub const LARGEST: u8 = 0x7e;

/// What the bits of an E4M3 stand for.
pub fn value(bits: u8) -> f32 {
    let (magnitude, sign) = (u32::from(bits & 0x7f), u32::from(bits >> 7) << 31);
    let size = match magnitude {
        0x7f => f32::NAN,
        // Eighths of the smallest normal number, 2^-6.
        0..8 => magnitude as f32 / 512.0,
        _ => f32::from_bits((magnitude << 20) + ((127 - 7) << 23)),
    };
    f32::from_bits(size.to_bits() | sign)
}

/// The nearest E4M3, even at a tie, the largest from there on: its bits and what they stand for.
#[inline(always)]
pub fn nearest(x: f32) -> (u8, f32) {
    let size = x.abs().min(MAX);
    // The spacing of E4M3 there; adding 1.5 * 2^23 of them and taking them off leaves whole ones.
    let power = f32::from_bits(size.to_bits() & 0x7f80_0000);
    let power = if power < 1.0 / 64.0 { 1.0 / 64.0 } else { power };
    let whole = power * (12_582_912.0 / 8.0);
    let size = (size + whole) - whole;
    let normal = (size.to_bits() >> 20).wrapping_sub((127 - 7) << 3);
    let bits = if size < 1.0 / 64.0 { (size * 512.0) as u32 } else { normal };
    (bits as u8 | ((x.to_bits() >> 24) & 0x80) as u8, size.copysign(x))
}

/// What the bits of an E8M0 stand for.
pub fn power(bits: u8) -> f32 {
    match bits {
        0xff => f32::NAN,
        0 => SMALLEST_POWER,
        _ => f32::from_bits(u32::from(bits) << 23),
    }
}

/// The smallest E8M0 that is not below `x`, or the largest.
pub fn power_above(x: f32) -> u8 {
    let exponent = x.to_bits().saturating_add(0x7f_ffff) >> 23;
    if x <= SMALLEST_POWER { 0 } else { exponent.min(254) as u8 }
}

/// 2^-127
const SMALLEST_POWER: f32 = f32::from_bits(1 << 22);

pub static F8_E4M3: Block = dense(
    "f8_e4m3",
    "8-bit float of 4 exponent and 3 mantissa bits, no infinities (e4m3fn, OCP OFP8)",
    cpu::fastest::<Eights<E4m3>>,
    cpu::plain::<Eights<E4m3>>,
);

pub static F8_E5M2: Block = dense(
    "f8_e5m2",
    "8-bit float of 5 exponent and 2 mantissa bits (OCP OFP8)",
    cpu::fastest::<Eights<E5m2>>,
    cpu::plain::<Eights<E5m2>>,
);

/// Rows and columns under one scale in DeepSeek's checkpoints.
pub const BLOCK: usize = 128;

pub static BLOCK_FP8: BlockFp8 = BlockFp8 {
    name: "deepseek-fp8",
    about: "e4m3 times a scale for each 128 x 128 weights (DeepSeek-V3)",
    square: [BLOCK, BLOCK],
};

fn on_device([tall, group]: [usize; 2], scales: Option<Dtype>) -> Facts {
    let grid = DeviceGrid {
        file: "fp8",
        name: "Float8",
        arguments: Vec::new(),
        numbers: Vec::new(),
        levels: Levels::E4m3,
        block: false,
    };
    Facts { tall, group: Some(group).filter(|g| *g > 0), scales, ..grid.facts() }
}

/// E4M3 weights and a multiplier (its stored name says `inv`) for each rectangle of weights; the last ones may be cut
/// off by the edges. The parts are `weight`, a byte a weight, and `weight_scale_inv`, little-endian `f32`s in rows: a
/// container that finds another type widens it. For a model whose `weight_block_size` differs, add a row with its own
/// name.
pub struct BlockFp8 {
    pub name: &'static str,
    pub about: &'static str,
    /// Rows and columns under one scale.
    pub square: [usize; 2],
}

impl Codec for BlockFp8 {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn layout(&self, dims: Dims) -> Result<Vec<Part>> {
        let [rows, cols] = self.square;
        let scales = vec![dims.rows.div_ceil(rows), dims.cols.div_ceil(cols)];
        let weights = Part::new("weight", Dtype::F8_E4M3, vec![dims.rows, dims.cols])?;
        let scales = Part::new("weight_scale_inv", Dtype::F32, scales)?;
        match weights.bytes.checked_add(scales.bytes) {
            Some(_) => Ok(vec![weights, scales]),
            None => Err(Error::input(format!("{} x {} weights overflow", dims.rows, dims.cols))),
        }
    }

    fn facts(&self) -> Option<Facts> {
        Some(on_device(self.square, Some(Dtype::F32)))
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let cols = packed.dims.cols;
        let across = cols.div_ceil(self.square[1]);
        let (scales, _) = packed.parts[1].as_chunks::<4>();
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            // Row by row: the second pass finds the first one's output in the cache.
            (F8_E4M3.decode)(&packed.parts[0][row * cols..][..cols], out);
            let scales = &scales[row / self.square[0] * across..][..across];
            for (scale, out) in scales.iter().zip(out.chunks_mut(self.square[1])) {
                let scale = f32::from_le_bytes(*scale);
                out.iter_mut().for_each(|w| *w *= scale);
            }
        }
    }
}

const fn dense(name: &'static str, about: &'static str, decode: DecodeFn, decode_plain: DecodeFn) -> Block {
    Block {
        name,
        about,
        ggml: None,
        weights: 1,
        bytes: 1,
        decode,
        decode_plain,
        encode: None,
        grid: None,
        tensor_scale: None,
    }
}

/// A kind of 8-bit float, eight at a time.
trait Eight {
    fn values<C: Cpu>(x: &[u8; 8]) -> [f32; 8];
}

struct Eights<F>(PhantomData<F>);

impl<F: Eight> Decoder for Eights<F> {
    #[inline(always)]
    fn run<C: Cpu>(bytes: &[u8], out: &mut [f32]) {
        let ((bytes, rest), (outs, out_rest)) = (bytes.as_chunks::<8>(), out.as_chunks_mut::<8>());
        for (b, o) in bytes.iter().zip(outs) {
            *o = F::values::<C>(b);
        }
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        out_rest.copy_from_slice(&F::values::<C>(&last)[..out_rest.len()]);
    }
}

struct E4m3;

impl Eight for E4m3 {
    /// A half's exponent has one bit more and a bias higher by 8.
    #[inline(always)]
    fn values<C: Cpu>(x: &[u8; 8]) -> [f32; 8] {
        let mut halves = [0; 8];
        for (h, x) in halves.iter_mut().zip(x) {
            let magnitude = u16::from(x & 0x7f);
            let nan = if magnitude == 0x7f { 0x7c00 } else { 0 };
            *h = u16::from(x & 0x80) << 8 | magnitude << 7 | nan;
        }
        let mut out = C::halves(halves);
        for o in &mut out {
            *o *= 256.0;
        }
        out
    }
}

struct E5m2;

impl Eight for E5m2 {
    /// The upper byte of a half.
    #[inline(always)]
    fn values<C: Cpu>(x: &[u8; 8]) -> [f32; 8] {
        let mut halves = [0; 8];
        for (h, x) in halves.iter_mut().zip(x) {
            *h = u16::from(*x) << 8;
        }
        C::halves(halves)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_its_own_nearest() {
        for bits in 0..=u8::MAX {
            let mut decoded = [0.0];
            (F8_E4M3.decode)(&[bits], &mut decoded);
            let number = value(bits);
            assert!(number == decoded[0] || number.is_nan() && decoded[0].is_nan(), "{bits:#x}");
            if number.is_finite() {
                assert_eq!(nearest(number), (bits, number));
            }
        }
    }

    #[test]
    fn between_two_the_nearer_and_at_a_tie_the_even() {
        for bits in 0..LARGEST {
            let (low, high) = (value(bits), value(bits + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(nearest(middle).0, bits + bits % 2, "{middle}");
            assert_eq!(nearest(-middle * 0.9999).1, -low);
            assert_eq!(nearest(middle * 1.0001).1, high);
        }
        for beyond in [449.0, 1e30, f32::INFINITY] {
            assert_eq!((nearest(beyond).0, nearest(-beyond).1), (LARGEST, -MAX));
        }
    }

    #[test]
    fn powers_of_two_are_found_from_below() {
        for bits in 0..255 {
            let size = power(bits);
            assert_eq!((power_above(size), power_above(size.next_down())), (bits, bits), "{size:e}");
            assert_eq!(power_above(size.next_up()), (bits + 1).min(254), "{size:e}");
        }
        assert!(power(0xff).is_nan());
        assert_eq!((power_above(0.0), power_above(-f32::NAN), power_above(f32::INFINITY)), (0, 254, 254));
    }
}

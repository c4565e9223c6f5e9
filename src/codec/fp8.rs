//! Eight-bit floats of Hugging Face checkpoints: dense, and with a scale for each square of weights. Read only.

use std::marker::PhantomData;
use std::ops::Range;

use safetensors::Dtype;

use super::block::{Block, DecodeFn};
use super::cpu::{self, Cpu, Decoder};
use super::{Codec, Part};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

pub static CODECS: &[&dyn Codec] = &[&F8_E4M3, &F8_E5M2, &BLOCK_FP8];

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
    name: "fp8_block",
    about: "e4m3 times a scale for each 128 x 128 weights (DeepSeek-V3)",
    square: [BLOCK, BLOCK],
};

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
    Block { name, about, ggml: None, weights: 1, bytes: 1, decode, decode_plain, encode: None, grid: None }
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

//! ggml's block formats, as GGUF stores them. Source: ggml `ggml-common.h` (layouts), `ggml-quants.c` (arithmetic;
//! decoders give the bits of its `dequantize_row_*`). Multi-byte fields are little-endian; blocks lie at any address.

pub mod fp4;
pub mod grid;
pub mod iq;
pub mod iq4;
pub mod k;
mod scalar;
pub mod simple;
pub mod ternary;

use std::marker::PhantomData;

use bytemuck::AnyBitPattern;

pub mod encode;

use super::Codec;
use super::block::{Block, Encode};
use super::cpu::{self, Cpu, Decoder};

pub static CODECS: &[&dyn Codec] = &[
    &simple::Q4_0,
    &simple::Q4_1,
    &simple::Q5_0,
    &simple::Q5_1,
    &simple::Q8_0,
    &k::Q2_K,
    &k::Q3_K,
    &k::Q4_K,
    &k::Q5_K,
    &k::Q6_K,
    &ternary::Q1_0,
    &ternary::Q2_0,
    &ternary::TQ1_0,
    &ternary::TQ2_0,
    &iq::IQ1_S,
    &iq::IQ1_M,
    &iq::IQ2_XXS,
    &iq::IQ2_XS,
    &iq::IQ2_S,
    &iq::IQ3_XXS,
    &iq::IQ3_S,
    &iq4::IQ4_NL,
    &iq4::IQ4_XS,
    &fp4::MXFP4,
    &fp4::NVFP4,
];

/// A stored block of `N` weights.
trait Values<const N: usize>: AnyBitPattern {
    fn values<C: Cpu>(&self, out: &mut [f32; N]);
}

/// A row of the table.
const fn block<B: Values<N>, const N: usize>(
    name: &'static str,
    ggml: u32,
    about: &'static str,
    encode: Option<Encode>,
) -> Block {
    Block {
        name,
        about,
        ggml: Some(ggml),
        weights: N,
        bytes: size_of::<B>(),
        decode: cpu::fastest::<Blocks<B, N>>,
        decode_plain: cpu::plain::<Blocks<B, N>>,
        encode,
        grid: None,
        tensor_scale: None,
    }
}

/// A row of the table whose values form a grid.
const fn scalar<B: Values<N> + scalar::Scalar<N>, const N: usize>(
    name: &'static str,
    ggml: u32,
    about: &'static str,
) -> Block {
    Block { grid: Some(B::GRID), ..block::<B, N>(name, ggml, about, Some(B::ENCODE)) }
}

struct Blocks<B, const N: usize>(PhantomData<B>);

impl<B: Values<N>, const N: usize> Decoder for Blocks<B, N> {
    #[inline(always)]
    fn run<C: Cpu>(bytes: &[u8], out: &mut [f32]) {
        const { assert!(align_of::<B>() == 1) };
        let whole = bytes.len() / size_of::<B>() * size_of::<B>();
        let blocks: &[B] = bytemuck::cast_slice(&bytes[..whole]);
        let (outs, _) = out.as_chunks_mut::<N>();
        for (block, out) in blocks.iter().zip(outs) {
            block.values::<C>(out);
        }
    }
}

/// Unpacks codes of `BITS` bits: each `GROUP` bytes hold planes of that many consecutive codes, the first in the lowest
/// bits.
#[inline(always)]
fn planes<const BITS: usize, const GROUP: usize, const B: usize, const N: usize>(bytes: &[u8; B]) -> [i8; N] {
    const { assert!(N * BITS == B * 8 && B.is_multiple_of(GROUP)) };
    let mut codes = [0; N];
    for (bytes, planes) in bytes.as_chunks::<GROUP>().0.iter().zip(codes.chunks_exact_mut(GROUP * 8 / BITS)) {
        for (i, codes) in planes.as_chunks_mut::<GROUP>().0.iter_mut().enumerate() {
            for (c, b) in codes.iter_mut().zip(bytes) {
                *c = (b >> (i * BITS) & ((1 << BITS) - 1)) as i8;
            }
        }
    }
    codes
}

/// The last step of most decoders. A loop over slices vectorizes where arrays' own iterators and `map` do not.
#[inline(always)]
fn fill<const N: usize>(out: &mut [f32; N], codes: &[f32; N], value: impl Fn(f32) -> f32) {
    for (o, q) in out.iter_mut().zip(codes) {
        *o = value(*q);
    }
}

//! Blocks as grids: which values their stored scales allow, and codes put in their place.

use std::marker::PhantomData;

use bytemuck::Pod;

use super::fp4::{BlockMxfp4, BlockNvfp4, HALF_UE4M3, half_e8m0};
use super::iq4::{BlockIq4Nl, BlockIq4Xs};
use super::k::{BlockQ2K, BlockQ3K, BlockQ4K, BlockQ5K, BlockQ6K, q3_scales, scales_and_mins};
use super::simple::{BlockQ4_0, BlockQ4_1, BlockQ5_0, BlockQ5_1, BlockQ8_0};
use super::{encode, iq4};
use crate::codec::block::{Encode, EncodeFn as FitFn};
use crate::codec::facts::{DeviceGrid, Facts, places, type_name};
use crate::codec::fp4;
use crate::codec::grid::{Grid, Levels, Scale};
use crate::tensor::Dims;

/// A block of `N` weights with scales of its own.
pub trait Scalar<const N: usize>: Pod + Send + Sync + 'static {
    /// Its file in `kernels/grid`, and where its fields lie.
    const DEVICE: (&'static str, &'static [(&'static str, usize)]);
    /// Weights under one scale.
    const SPAN: usize;
    const LEVELS: Levels;
    const ENCODE: Encode;
    /// One for each `SPAN` weights.
    fn scales(&self, out: &mut [Scale]);
    fn set(&mut self, codes: &[u8; N]);
    /// Stores the steps of scales and, in formats with a minimum, the value of level 0. False if they do not fit exactly.
    const ADOPT: Option<fn(&mut Self, &[Scale]) -> bool> = None;
    /// Chooses parameters, where ggml's encoder is not the best that can be done.
    const FIT: Option<FitFn> = None;

    /// The same, for the table.
    const GRID: &'static dyn Grid = &BlockGrid::<Self, N>(PhantomData);
}

/// Parameters are whole blocks, whose codes mean nothing until [`Grid::pack`].
struct BlockGrid<B, const N: usize>(PhantomData<B>);

impl<B: Scalar<N>, const N: usize> Grid for BlockGrid<B, N> {
    fn group(&self, _: usize) -> usize {
        N
    }

    fn span(&self, _: usize) -> usize {
        B::SPAN
    }

    fn levels(&self) -> Levels {
        B::LEVELS
    }

    fn param_bytes(&self) -> usize {
        size_of::<B>()
    }

    fn facts(&self) -> Option<Facts> {
        let (file, places) = B::DEVICE;
        let mut numbers = vec![("WEIGHTS", N), ("BYTES", size_of::<B>()), ("SPAN", B::SPAN)];
        numbers.extend(places);
        let grid =
            DeviceGrid { file, name: type_name::<B>(), arguments: Vec::new(), numbers, levels: B::LEVELS, block: true };
        Some(grid.facts())
    }

    fn fit(&self, w: &[f32], cols: usize, importance: Option<&[f32]>, params: &mut [u8]) {
        B::FIT.unwrap_or(B::ENCODE.run)(w, cols, importance, params);
    }

    fn fit_largest(&self, w: &[f32], cols: usize, params: &mut [u8]) {
        (B::ENCODE.run)(w, cols, None, params);
    }

    fn scales(&self, params: &[u8], out: &mut [Scale]) {
        bytemuck::pod_read_unaligned::<B>(params).scales(out);
    }

    fn adopt(&self, scales: &[Scale], params: &mut [u8]) -> bool {
        let Some(adopt) = B::ADOPT else { return false };
        let mut block = B::zeroed();
        let exact = adopt(&mut block, scales);
        params.copy_from_slice(bytemuck::bytes_of(&block));
        exact
    }

    fn pack(&self, _: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = params.to_vec();
        for (block, codes) in out.chunks_exact_mut(size_of::<B>()).zip(codes.as_chunks::<N>().0) {
            let mut values = bytemuck::pod_read_unaligned::<B>(block);
            values.set(codes);
            block.copy_from_slice(bytemuck::bytes_of(&values));
        }
        vec![out]
    }
}

/// Packs the bits of `codes` from `shift` on, `BITS` each, as `planes` of the parent module reads them.
fn put<const BITS: usize, const GROUP: usize, const N: usize>(codes: &[u8; N], shift: usize, bytes: &mut [u8]) {
    const { assert!(8 % BITS == 0 && N.is_multiple_of(GROUP * 8 / BITS)) };
    bytes.fill(0);
    for (bytes, codes) in bytes.chunks_exact_mut(GROUP).zip(codes.chunks_exact(GROUP * 8 / BITS)) {
        for (i, codes) in codes.chunks_exact(GROUP).enumerate() {
            for (b, c) in bytes.iter_mut().zip(codes) {
                *b |= (c >> shift & ((1 << BITS) - 1)) << (i * BITS);
            }
        }
    }
}

fn half(bytes: [u8; 2]) -> f32 {
    half::f16::from_le_bytes(bytes).to_f32()
}

/// Whether `x` is a half.
fn put_half(x: f32, bytes: &mut [u8; 2]) -> bool {
    let stored = half::f16::from_f32(x);
    *bytes = stored.to_le_bytes();
    stored.to_f32() == x
}

/// The value of level 0.
fn minimum(scale: Scale) -> f32 {
    scale.value(0.0)
}

const fn integers(first: i32, count: usize) -> Levels {
    Levels::Integers { first, count }
}

/// `d (q - zero)`, with the zero in the levels.
fn one(step: f32) -> Scale {
    Scale { step, ..Scale::default() }
}

impl Scalar<32> for BlockQ4_0 {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("simple", places!(BlockQ4_0: d qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = integers(-8, 16);
    const ENCODE: Encode = encode::Q4_0;
    const ADOPT: Option<fn(&mut Self, &[Scale]) -> bool> = Some(|block, scales| put_half(scales[0].step, &mut block.d));
    fn scales(&self, out: &mut [Scale]) {
        out[0] = one(half(self.d));
    }
    fn set(&mut self, codes: &[u8; 32]) {
        put::<4, 16, 32>(codes, 0, &mut self.qs);
    }
}

impl Scalar<32> for BlockQ4_1 {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("simple", places!(BlockQ4_1: d m qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = integers(0, 16);
    const ENCODE: Encode = encode::Q4_1;
    const ADOPT: Option<fn(&mut Self, &[Scale]) -> bool> =
        Some(|block, scales| put_half(scales[0].step, &mut block.d) & put_half(minimum(scales[0]), &mut block.m));
    fn scales(&self, out: &mut [Scale]) {
        out[0] = Scale { step: half(self.d), zero: 0.0, offset: half(self.m) };
    }
    fn set(&mut self, codes: &[u8; 32]) {
        put::<4, 16, 32>(codes, 0, &mut self.qs);
    }
}

impl Scalar<32> for BlockQ5_0 {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("simple", places!(BlockQ5_0: d qh qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = integers(-16, 32);
    const ENCODE: Encode = encode::Q5_0;
    const ADOPT: Option<fn(&mut Self, &[Scale]) -> bool> = Some(|block, scales| put_half(scales[0].step, &mut block.d));
    fn scales(&self, out: &mut [Scale]) {
        out[0] = one(half(self.d));
    }
    fn set(&mut self, codes: &[u8; 32]) {
        put::<4, 16, 32>(codes, 0, &mut self.qs);
        self.qh = fifth_bits(codes);
    }
}

impl Scalar<32> for BlockQ5_1 {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("simple", places!(BlockQ5_1: d m qh qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = integers(0, 32);
    const ENCODE: Encode = encode::Q5_1;
    const ADOPT: Option<fn(&mut Self, &[Scale]) -> bool> =
        Some(|block, scales| put_half(scales[0].step, &mut block.d) & put_half(minimum(scales[0]), &mut block.m));
    fn scales(&self, out: &mut [Scale]) {
        out[0] = Scale { step: half(self.d), zero: 0.0, offset: half(self.m) };
    }
    fn set(&mut self, codes: &[u8; 32]) {
        put::<4, 16, 32>(codes, 0, &mut self.qs);
        self.qh = fifth_bits(codes);
    }
}

fn fifth_bits(codes: &[u8; 32]) -> [u8; 4] {
    let bits = codes.iter().enumerate().fold(0u32, |bits, (i, c)| bits | u32::from(c >> 4) << i);
    bits.to_le_bytes()
}

impl Scalar<32> for BlockQ8_0 {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("simple", places!(BlockQ8_0: d qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = integers(-128, 256);
    const ENCODE: Encode = encode::Q8_0;
    const ADOPT: Option<fn(&mut Self, &[Scale]) -> bool> = Some(|block, scales| put_half(scales[0].step, &mut block.d));
    fn scales(&self, out: &mut [Scale]) {
        out[0] = one(half(self.d));
    }
    fn set(&mut self, codes: &[u8; 32]) {
        for (q, c) in self.qs.iter_mut().zip(codes) {
            *q = (i16::from(*c) - 128) as i8;
        }
    }
}

impl Scalar<256> for BlockQ2K {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("k", places!(BlockQ2K: scales qs d dmin));
    const SPAN: usize = 16;
    const LEVELS: Levels = integers(0, 4);
    const ENCODE: Encode = encode::Q2_K;
    fn scales(&self, out: &mut [Scale]) {
        let (d, dmin) = (half(self.d), half(self.dmin));
        for (out, s) in out.iter_mut().zip(self.scales) {
            *out = Scale { step: d * f32::from(s & 15), zero: 0.0, offset: -(dmin * f32::from(s >> 4)) };
        }
    }
    fn set(&mut self, codes: &[u8; 256]) {
        put::<2, 32, 256>(codes, 0, &mut self.qs);
    }
}

impl Scalar<256> for BlockQ3K {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("k", places!(BlockQ3K: hmask qs scales d));
    const SPAN: usize = 16;
    const LEVELS: Levels = integers(-4, 8);
    const ENCODE: Encode = encode::Q3_K;
    fn scales(&self, out: &mut [Scale]) {
        let d = half(self.d);
        for (out, s) in out.iter_mut().zip(q3_scales(&self.scales)) {
            *out = one(d * f32::from(s));
        }
    }
    fn set(&mut self, codes: &[u8; 256]) {
        put::<2, 32, 256>(codes, 0, &mut self.qs);
        put::<1, 32, 256>(codes, 2, &mut self.hmask);
    }
}

/// Of Q4_K and Q5_K.
fn eight(d: [u8; 2], dmin: [u8; 2], packed: &[u8; 12], out: &mut [Scale]) {
    let (d, dmin) = (half(d), half(dmin));
    let (scales, mins) = scales_and_mins(packed);
    for (out, (s, m)) in out.iter_mut().zip(scales.into_iter().zip(mins)) {
        *out = Scale { step: d * f32::from(s), zero: 0.0, offset: -(dmin * f32::from(m)) };
    }
}

impl Scalar<256> for BlockQ4K {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("k", places!(BlockQ4K: d dmin scales qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = integers(0, 16);
    const ENCODE: Encode = encode::Q4_K;
    fn scales(&self, out: &mut [Scale]) {
        eight(self.d, self.dmin, &self.scales, out);
    }
    fn set(&mut self, codes: &[u8; 256]) {
        put::<4, 32, 256>(codes, 0, &mut self.qs);
    }
}

impl Scalar<256> for BlockQ5K {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("k", places!(BlockQ5K: d dmin scales qh qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = integers(0, 32);
    const ENCODE: Encode = encode::Q5_K;
    fn scales(&self, out: &mut [Scale]) {
        eight(self.d, self.dmin, &self.scales, out);
    }
    fn set(&mut self, codes: &[u8; 256]) {
        put::<4, 32, 256>(codes, 0, &mut self.qs);
        put::<1, 32, 256>(codes, 4, &mut self.qh);
    }
}

impl Scalar<256> for BlockQ6K {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("k", places!(BlockQ6K: ql qh scales d));
    const SPAN: usize = 16;
    const LEVELS: Levels = integers(-32, 64);
    const ENCODE: Encode = encode::Q6_K;
    fn scales(&self, out: &mut [Scale]) {
        let d = half(self.d);
        for (out, s) in out.iter_mut().zip(self.scales) {
            *out = one(d * f32::from(s));
        }
    }
    fn set(&mut self, codes: &[u8; 256]) {
        put::<4, 64, 256>(codes, 0, &mut self.ql);
        put::<2, 32, 256>(codes, 4, &mut self.qh);
    }
}

const IQ4: Levels = Levels::Table(&{
    let mut out = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = iq4::LEVELS[i] as f32;
        i += 1;
    }
    out
});

impl Scalar<32> for BlockIq4Nl {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("iq4", places!(BlockIq4Nl: d qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = IQ4;
    const ENCODE: Encode = encode::IQ4_NL;
    fn scales(&self, out: &mut [Scale]) {
        out[0] = one(half(self.d));
    }
    fn set(&mut self, codes: &[u8; 32]) {
        put::<4, 16, 32>(codes, 0, &mut self.qs);
    }
}

impl Scalar<256> for BlockIq4Xs {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) =
        ("iq4", places!(BlockIq4Xs: d scales_h scales_l qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = IQ4;
    const ENCODE: Encode = encode::IQ4_XS;
    fn scales(&self, out: &mut [Scale]) {
        let d = half(self.d);
        for (out, s) in out.iter_mut().zip(self.six_bit_scales()) {
            *out = one(d * f32::from(s));
        }
    }
    fn set(&mut self, codes: &[u8; 256]) {
        for (qs, codes) in self.qs.iter_mut().zip(codes.as_chunks::<32>().0) {
            put::<4, 16, 32>(codes, 0, qs);
        }
    }
}

impl Scalar<32> for BlockMxfp4 {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("fp4", places!(BlockMxfp4: e qs));
    const SPAN: usize = 32;
    const LEVELS: Levels = fp4::LEVELS;
    const ENCODE: Encode = encode::MXFP4;
    const FIT: Option<FitFn> = Some(|w, cols, importance, params| {
        fp4::fit::<fp4::PowerOfTwo>(w, cols, importance, params.iter_mut().step_by(size_of::<BlockMxfp4>()));
    });
    const ADOPT: Option<fn(&mut Self, &[Scale]) -> bool> =
        Some(|block, scales| <fp4::PowerOfTwo as fp4::ByteScale>::store(scales[0].step, &mut block.e));
    fn scales(&self, out: &mut [Scale]) {
        out[0] = one(half_e8m0(self.e));
    }
    fn set(&mut self, codes: &[u8; 32]) {
        put::<4, 16, 32>(codes, 0, &mut self.qs);
    }
}

impl Scalar<64> for BlockNvfp4 {
    const DEVICE: (&'static str, &'static [(&'static str, usize)]) = ("fp4", places!(BlockNvfp4: d qs));
    const SPAN: usize = 16;
    const LEVELS: Levels = fp4::LEVELS;
    const ENCODE: Encode = encode::NVFP4;
    const FIT: Option<FitFn> = Some(|w, cols, importance, params| {
        let stored = params.chunks_exact_mut(size_of::<BlockNvfp4>()).flat_map(|block| &mut block[..4]);
        fp4::fit::<fp4::SmallFloat>(w, cols, importance, stored);
    });
    const ADOPT: Option<fn(&mut Self, &[Scale]) -> bool> = Some(|block, scales| {
        scales.iter().zip(&mut block.d).all(|(scale, d)| <fp4::SmallFloat as fp4::ByteScale>::store(scale.step, d))
    });
    fn scales(&self, out: &mut [Scale]) {
        for (out, d) in out.iter_mut().zip(self.d) {
            *out = one(HALF_UE4M3[usize::from(d)]);
        }
    }
    fn set(&mut self, codes: &[u8; 64]) {
        put::<4, 8, 64>(codes, 0, &mut self.qs);
    }
}

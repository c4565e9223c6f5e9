//! Codebook formats: eight (or four) weights are one point of a [`grid`](super::grid), perhaps with stored signs.

use bytemuck::{Pod, Zeroable};

use super::{Values, block, encode, fill, grid};
use crate::codec::block::Block;
use crate::codec::cpu::Cpu;

pub static IQ1_S: Block =
    block::<BlockIq1S, 256>("iq1_s", 19, "ternary points of 8, 32 weights a 3-bit scale (ggml)", Some(encode::IQ1_S));
pub static IQ1_M: Block =
    block::<BlockIq1M, 256>("iq1_m", 29, "ternary points of 8, 16 weights a 3-bit scale (ggml)", Some(encode::IQ1_M));
pub static IQ2_XXS: Block =
    block::<BlockIq2Xxs, 256>("iq2_xxs", 16, "256 points of 8, 32 weights a 4-bit scale (ggml)", Some(encode::IQ2_XXS));
pub static IQ2_XS: Block =
    block::<BlockIq2Xs, 256>("iq2_xs", 17, "512 points of 8, 16 weights a 4-bit scale (ggml)", Some(encode::IQ2_XS));
pub static IQ2_S: Block =
    block::<BlockIq2S, 256>("iq2_s", 22, "1024 points of 8, 16 weights a 4-bit scale (ggml)", Some(encode::IQ2_S));
pub static IQ3_XXS: Block =
    block::<BlockIq3Xxs, 256>("iq3_xxs", 18, "256 points of 4, 32 weights a 4-bit scale (ggml)", Some(encode::IQ3_XXS));
pub static IQ3_S: Block =
    block::<BlockIq3S, 256>("iq3_s", 21, "512 points of 4, 32 weights a 4-bit scale (ggml)", Some(encode::IQ3_S));

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq1S {
    /// f16
    pub d: [u8; 2],
    /// Lower eight bits of the index of each point.
    pub qs: [[u8; 4]; 8],
    /// For each 32 weights, little-endian: four times 3 index bits, 3 bits of scale, the sign of the shift.
    pub qh: [[u8; 2]; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq1M {
    /// Lower eight bits of the index of each point.
    pub qs: [[u8; 4]; 8],
    /// For each 16 weights a byte, a nibble a point: 3 index bits and the sign of the shift.
    pub qh: [[u8; 2]; 8],
    /// Four little-endian words: each 3-bit scales of four times 16 weights and, in its upper four bits, a quarter of
    /// the block's f16 scale (lowest first).
    pub scales: [[u8; 2]; 4],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq2Xxs {
    /// f16
    pub d: [u8; 2],
    /// For each 32 weights: four indices, then a little-endian word of four times 7 sign bits and a 4-bit scale.
    pub qs: [[[u8; 4]; 2]; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq2Xs {
    /// f16
    pub d: [u8; 2],
    /// For each point, little-endian: 9 bits of index, 7 of signs.
    pub qs: [[[u8; 2]; 4]; 8],
    /// A nibble for each 16 weights, low first.
    pub scales: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq2S {
    /// f16
    pub d: [u8; 2],
    /// Lower eight bits of the index of each point.
    pub qs: [[u8; 4]; 8],
    pub signs: [[u8; 4]; 8],
    /// Upper two bits of the indices, four a byte, lowest first.
    pub qh: [u8; 8],
    /// A nibble for each 16 weights, low first.
    pub scales: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq3Xxs {
    /// f16
    pub d: [u8; 2],
    /// Index of each point.
    pub qs: [[u8; 8]; 8],
    /// For each 32 weights, little-endian: four times 7 sign bits and a 4-bit scale.
    pub signs: [[u8; 4]; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq3S {
    /// f16
    pub d: [u8; 2],
    /// Lower eight bits of the index of each point.
    pub qs: [[u8; 8]; 8],
    /// The ninth bits, eight points a byte.
    pub qh: [u8; 8],
    pub signs: [[u8; 4]; 8],
    /// A nibble for each 32 weights, low first.
    pub scales: [u8; 4],
}

const _: () = assert!(size_of::<BlockIq1S>() == 50);
const _: () = assert!(size_of::<BlockIq1M>() == 56);
const _: () = assert!(size_of::<BlockIq2Xxs>() == 66);
const _: () = assert!(size_of::<BlockIq2Xs>() == 74);
const _: () = assert!(size_of::<BlockIq2S>() == 82);
const _: () = assert!(size_of::<BlockIq3Xxs>() == 98);
const _: () = assert!(size_of::<BlockIq3S>() == 110);

impl Values<256> for BlockIq1S {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        for ((qs, qh), out) in self.qs.iter().zip(&self.qh).zip(out.as_chunks_mut().0) {
            let high = u16::from_le_bytes(*qh);
            let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
            let mut points = [0u64; 4];
            for (l, (point, q)) in points.iter_mut().zip(qs).enumerate() {
                let high = usize::from(high >> (3 * l) & 7);
                *point = bytemuck::cast(grid::IQ1[usize::from(*q) | high << 8]);
            }
            shifted::<C>(&bytemuck::cast(points), [high >> 15 != 0; 4], [scale; 2], out);
        }
    }
}

impl Values<256> for BlockIq1M {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let words = self.scales.map(u16::from_le_bytes);
        let d = words.iter().rev().fold(0, |d, word| d << 4 | word >> 12);
        let d = C::half(d.to_le_bytes());
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let scales = words[i / 2] >> (i % 2 * 6);
            let scales = [d * f32::from(2 * (scales & 7) + 1), d * f32::from(2 * (scales >> 3 & 7) + 1)];
            let (mut points, mut minus) = ([0u64; 4], [false; 4]);
            for l in 0..4 {
                let high = self.qh[i][l / 2] >> (l % 2 * 4);
                points[l] = bytemuck::cast(grid::IQ1[usize::from(self.qs[i][l]) | usize::from(high & 7) << 8]);
                minus[l] = high & 8 != 0;
            }
            shifted::<C>(&bytemuck::cast(points), minus, scales, out);
        }
    }
}

impl Values<256> for BlockIq2Xxs {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        for ([qs, word], out) in self.qs.iter().zip(out.as_chunks_mut().0) {
            let word = u32::from_le_bytes(*word);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
            let mut points = [0u64; 4];
            for (point, q) in points.iter_mut().zip(qs) {
                *point = bytemuck::cast(grid::IQ2_XXS[usize::from(*q)]);
            }
            signed::<C>(&bytemuck::cast(points), even_signs(word), [scale; 2], out);
        }
    }
}

impl Values<256> for BlockIq2Xs {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        for ((qs, scales), out) in self.qs.iter().zip(&self.scales).zip(out.as_chunks_mut().0) {
            let (mut points, mut signs) = ([0u64; 4], [0; 4]);
            for ((point, signs), q) in points.iter_mut().zip(&mut signs).zip(qs) {
                let q = u16::from_le_bytes(*q);
                *point = bytemuck::cast(grid::IQ2_XS[usize::from(q & 511)]);
                *signs = EVEN[usize::from(q >> 9)];
            }
            signed::<C>(&bytemuck::cast(points), signs, quarters(d, *scales), out);
        }
    }
}

impl Values<256> for BlockIq2S {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let mut points = [0u64; 4];
            for (l, (point, q)) in points.iter_mut().zip(&self.qs[i]).enumerate() {
                let high = usize::from(self.qh[i] >> (2 * l) & 3);
                *point = bytemuck::cast(grid::IQ2_S[usize::from(*q) | high << 8]);
            }
            signed::<C>(&bytemuck::cast(points), self.signs[i], quarters(d, self.scales[i]), out);
        }
    }
}

impl Values<256> for BlockIq3Xxs {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        for ((qs, word), out) in self.qs.iter().zip(&self.signs).zip(out.as_chunks_mut().0) {
            let word = u32::from_le_bytes(*word);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            let mut points = [0u32; 8];
            for (point, q) in points.iter_mut().zip(qs) {
                *point = bytemuck::cast(grid::IQ3_XXS[usize::from(*q)]);
            }
            signed::<C>(&bytemuck::cast(points), even_signs(word), [scale; 2], out);
        }
    }
}

impl Values<256> for BlockIq3S {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        for (i, out) in out.as_chunks_mut().0.iter_mut().enumerate() {
            let scale = d * f32::from(1 + 2 * (self.scales[i / 2] >> (i % 2 * 4) & 15));
            let mut points = [0u32; 8];
            for (l, (point, q)) in points.iter_mut().zip(&self.qs[i]).enumerate() {
                let high = usize::from(self.qh[i] >> l & 1);
                *point = bytemuck::cast(grid::IQ3_S[usize::from(*q) | high << 8]);
            }
            signed::<C>(&bytemuck::cast(points), self.signs[i], [scale; 2], out);
        }
    }
}

/// Points of IQ1, each shifted by an eighth, under a scale for each half.
#[inline(always)]
fn shifted<C: Cpu>(points: &[i8; 32], minus: [bool; 4], scales: [f32; 2], out: &mut [f32; 32]) {
    for (l, (out, q)) in out.as_chunks_mut::<8>().0.iter_mut().zip(points.as_chunks::<8>().0).enumerate() {
        let (scale, shift) = (scales[l / 2], if minus[l] { -0.125 } else { 0.125 });
        fill(out, &C::floats(q), |x| scale * (x + shift));
    }
}

/// Points of IQ2 or IQ3, negated where a bit of `signs` is set, under a scale for each half.
#[inline(always)]
fn signed<C: Cpu>(points: &[i8; 32], signs: [u8; 4], scales: [f32; 2], out: &mut [f32; 32]) {
    let q = C::negate(points, &signs);
    let (q, _) = q.as_chunks::<16>();
    let (outs, _) = out.as_chunks_mut::<16>();
    for ((out, q), scale) in outs.iter_mut().zip(q).zip(scales) {
        fill(out, &C::floats(q), |x| scale * x);
    }
}

/// The scales of two halves: odd eighths of `d`.
#[inline(always)]
fn quarters(d: f32, nibbles: u8) -> [f32; 2] {
    [d * (0.5 + f32::from(nibbles & 15)) * 0.25, d * (0.5 + f32::from(nibbles >> 4)) * 0.25]
}

/// The signs of four points, each stored in seven bits.
#[inline(always)]
fn even_signs(word: u32) -> [u8; 4] {
    let mut signs = [0; 4];
    for (l, s) in signs.iter_mut().enumerate() {
        *s = EVEN[(word >> (7 * l) & 127) as usize];
    }
    signs
}

/// Eight signs of which seven are stored: their number of minuses is even.
static EVEN: [u8; 128] = {
    let mut table = [0; 128];
    let mut i = 0;
    while i < 128 {
        table[i] = i as u8 | (i.count_ones() as u8 & 1) << 7;
        i += 1;
    }
    table
};

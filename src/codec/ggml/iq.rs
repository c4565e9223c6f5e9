//! Codebook formats: eight (or four) weights are one point of a [`grid`](super::grid), perhaps with stored signs.

use bytemuck::{Pod, Zeroable};

use super::{Values, block, grid, signed};
use crate::codec::block::Block;
use crate::codec::cpu::Cpu;

pub static IQ1_S: Block = block::<BlockIq1S, 256>("iq1_s", 19, "ternary points of 8, 32 weights a 3-bit scale (ggml)");
pub static IQ1_M: Block = block::<BlockIq1M, 256>("iq1_m", 29, "ternary points of 8, 16 weights a 3-bit scale (ggml)");
pub static IQ2_XXS: Block =
    block::<BlockIq2Xxs, 256>("iq2_xxs", 16, "256 points of 8, 32 weights a 4-bit scale (ggml)");
pub static IQ2_XS: Block = block::<BlockIq2Xs, 256>("iq2_xs", 17, "512 points of 8, 16 weights a 4-bit scale (ggml)");
pub static IQ2_S: Block = block::<BlockIq2S, 256>("iq2_s", 22, "1024 points of 8, 16 weights a 4-bit scale (ggml)");
pub static IQ3_XXS: Block =
    block::<BlockIq3Xxs, 256>("iq3_xxs", 18, "256 points of 4, 32 weights a 4-bit scale (ggml)");
pub static IQ3_S: Block = block::<BlockIq3S, 256>("iq3_s", 21, "512 points of 4, 32 weights a 4-bit scale (ggml)");

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
    pub qs: [[u8; 2]; 16],
    /// For each 16 weights a byte, a nibble a point: 3 index bits and the sign of the shift.
    pub qh: [u8; 16],
    /// Four little-endian words: each 3-bit scales of four times 16 weights and, in its upper four bits, a quarter of the block's
    /// f16 scale (lowest first).
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
    pub qs: [[[u8; 2]; 2]; 16],
    /// A nibble for each 16 weights, low first.
    pub scales: [u8; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq2S {
    /// f16
    pub d: [u8; 2],
    /// Lower eight bits of the index of each point.
    pub qs: [[u8; 2]; 16],
    pub signs: [[u8; 2]; 16],
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
    pub qs: [[[u8; 2]; 4]; 8],
    /// For each 32 weights, little-endian: four times 7 sign bits and a 4-bit scale.
    pub signs: [[u8; 4]; 8],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq3S {
    /// f16
    pub d: [u8; 2],
    /// Lower eight bits of the index of each point.
    pub qs: [[[u8; 2]; 4]; 8],
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
        let mut outs = eights(out);
        for (qs, qh) in self.qs.iter().zip(&self.qh) {
            let high = u16::from_le_bytes(*qh);
            let scale = d * f32::from(2 * (high >> 12 & 7) + 1);
            for (l, (q, out)) in qs.iter().zip(&mut outs).enumerate() {
                let index = u16::from(*q) | (high >> (3 * l) & 7) << 8;
                *out = shifted(index, high >> 15 != 0, scale);
            }
        }
    }
}

impl Values<256> for BlockIq1M {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let words = self.scales.map(u16::from_le_bytes);
        let d = words.iter().rev().fold(0, |d, word| d << 4 | word >> 12);
        let d = C::half(d.to_le_bytes());
        let mut outs = eights(out);
        for (i, (qs, qh)) in self.qs.iter().zip(self.qh).enumerate() {
            let scale = d * f32::from(2 * (words[i / 4] >> (i % 4 * 3) & 7) + 1);
            for ((q, nibble), out) in qs.iter().zip([qh & 15, qh >> 4]).zip(&mut outs) {
                let index = u16::from(*q) | u16::from(nibble & 7) << 8;
                *out = shifted(index, nibble & 8 != 0, scale);
            }
        }
    }
}

impl Values<256> for BlockIq2Xxs {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let mut outs = eights(out);
        for [indices, word] in &self.qs {
            let word = u32::from_le_bytes(*word);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.25;
            for (l, (q, out)) in indices.iter().zip(&mut outs).enumerate() {
                *out = point(&grid::IQ2_XXS[*q as usize], scale, even_signs(word >> (7 * l)));
            }
        }
    }
}

impl Values<256> for BlockIq2Xs {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let mut outs = eights(out);
        for (i, qs) in self.qs.iter().enumerate() {
            let scale = d * (0.5 + f32::from(nibble(&self.scales, i))) * 0.25;
            for (q, out) in qs.iter().zip(&mut outs) {
                let q = u16::from_le_bytes(*q);
                *out = point(&grid::IQ2_XS[(q & 511) as usize], scale, even_signs(u32::from(q >> 9)));
            }
        }
    }
}

impl Values<256> for BlockIq2S {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let mut outs = eights(out);
        for (i, (qs, signs)) in self.qs.iter().zip(&self.signs).enumerate() {
            let scale = d * (0.5 + f32::from(nibble(&self.scales, i))) * 0.25;
            let high = nibble(&self.qh, i);
            for (((q, high), signs), out) in qs.iter().zip([high & 3, high >> 2]).zip(signs).zip(&mut outs) {
                *out = point(&grid::IQ2_S[usize::from(*q) | usize::from(high) << 8], scale, *signs);
            }
        }
    }
}

impl Values<256> for BlockIq3Xxs {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let mut outs = eights(out);
        for (qs, word) in self.qs.iter().zip(&self.signs) {
            let word = u32::from_le_bytes(*word);
            let scale = d * (0.5 + (word >> 28) as f32) * 0.5;
            for (l, (q, out)) in qs.iter().zip(&mut outs).enumerate() {
                let pair = pair(&grid::IQ3_XXS[q[0] as usize], &grid::IQ3_XXS[q[1] as usize]);
                *out = point(&pair, scale, even_signs(word >> (7 * l)));
            }
        }
    }
}

impl Values<256> for BlockIq3S {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let mut outs = eights(out);
        for (i, (qs, signs)) in self.qs.iter().zip(&self.signs).enumerate() {
            let scale = d * f32::from(1 + 2 * nibble(&self.scales, i));
            let high = usize::from(self.qh[i]);
            for (l, ((q, signs), out)) in qs.iter().zip(signs).zip(&mut outs).enumerate() {
                let first = usize::from(q[0]) | (high >> (2 * l) & 1) << 8;
                let second = usize::from(q[1]) | (high >> (2 * l + 1) & 1) << 8;
                *out = point(&pair(&grid::IQ3_S[first], &grid::IQ3_S[second]), scale, *signs);
            }
        }
    }
}

#[inline(always)]
fn eights(out: &mut [f32; 256]) -> std::slice::IterMut<'_, [f32; 8]> {
    out.as_chunks_mut::<8>().0.iter_mut()
}

#[inline(always)]
fn nibble(bytes: &[u8], i: usize) -> u8 {
    bytes[i / 2] >> (i % 2 * 4) & 15
}

#[inline(always)]
fn pair(first: &[i8; 4], second: &[i8; 4]) -> [i8; 8] {
    let mut both = [0; 8];
    both[..4].copy_from_slice(first);
    both[4..].copy_from_slice(second);
    both
}

/// A point under its scale; set bits of `signs` are minus.
#[inline(always)]
fn point(grid: &[i8; 8], scale: f32, signs: u8) -> [f32; 8] {
    signed(grid.map(|x| scale * f32::from(x)), signs)
}

/// A point of IQ1, all of it shifted by an eighth.
#[inline(always)]
fn shifted(index: u16, minus: bool, scale: f32) -> [f32; 8] {
    let shift = if minus { -0.125 } else { 0.125 };
    grid::IQ1[index as usize].map(|x| scale * (f32::from(x) + shift))
}

/// Eight signs of which seven are stored (the lower bits of `stored`): their number of minuses is even.
#[inline(always)]
fn even_signs(stored: u32) -> u8 {
    static EVEN: [u8; 128] = {
        let mut table = [0; 128];
        let mut i = 0;
        while i < 128 {
            table[i] = i as u8 | (i.count_ones() as u8 & 1) << 7;
            i += 1;
        }
        table
    };
    EVEN[(stored & 127) as usize]
}

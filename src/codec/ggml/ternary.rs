//! Blocks of one or two bits a weight, and ternary ones, with one scale.

use bytemuck::{Pod, Zeroable};

use super::{Values, block, encode, fill, planes};
use crate::codec::block::Block;
use crate::codec::cpu::Cpu;

pub static Q1_0: Block =
    block::<BlockQ1_0, 128>("q1_0", 41, "1 bit, w = d or -d, 128 a block (ggml)", Some(encode::Q1_0));
pub static Q2_0: Block =
    block::<BlockQ2_0, 64>("q2_0", 42, "2 bits, w = d (q - 1), 64 a block (ggml)", Some(encode::Q2_0));
pub static TQ1_0: Block =
    block::<BlockTq1_0, 256>("tq1_0", 34, "ternary, 5 weights a byte, w = d (q - 1) (ggml)", Some(encode::TQ1_0));
pub static TQ2_0: Block =
    block::<BlockTq2_0, 256>("tq2_0", 35, "ternary, 4 weights a byte, w = d (q - 1) (ggml)", Some(encode::TQ2_0));

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ1_0 {
    /// f16
    pub d: [u8; 2],
    /// Lowest bit first; a set bit is `d`, a clear one `-d`.
    pub qs: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ2_0 {
    /// f16
    pub d: [u8; 2],
    /// Lowest bits first.
    pub qs: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockTq1_0 {
    /// Five digits a byte, see [`digits`]. Weight `32 n + l` of the first 160: digit `n` of byte `l`; weight `160 + 16
    /// n + l`: digit `n` of byte `32 + l`.
    pub qs: [u8; 48],
    /// Weight `240 + 4 n + l`: digit `n < 4` of byte `l`.
    pub qh: [u8; 4],
    /// f16
    pub d: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockTq2_0 {
    /// Weight `128 n + 32 j + l`: bits `2 j` of byte `32 n + l`.
    pub qs: [u8; 64],
    /// f16
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ1_0>() == 18);
const _: () = assert!(size_of::<BlockQ2_0>() == 18);
const _: () = assert!(size_of::<BlockTq1_0>() == 54);
const _: () = assert!(size_of::<BlockTq2_0>() == 66);

impl Values<128> for BlockQ1_0 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 128]) {
        let d = C::half(self.d);
        let mut q = C::masks::<16, 128>(&self.qs);
        for q in &mut q {
            *q = -1 - 2 * *q; // -1 becomes 1, 0 becomes -1
        }
        fill(out, &C::floats(&q), |q| q * d);
    }
}

impl Values<64> for BlockQ2_0 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 64]) {
        let d = C::half(self.d);
        let (words, _) = self.qs.as_chunks::<4>();
        let (outs, _) = out.as_chunks_mut::<16>();
        for (out, word) in outs.iter_mut().zip(words) {
            let word = u32::from_le_bytes(*word);
            for (j, o) in out.iter_mut().enumerate() {
                *o = ((word >> (2 * j) & 3) as i32 - 1) as f32 * d;
            }
        }
    }
}

impl Values<256> for BlockTq1_0 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let mut q = [0; 256];
        let (first, rest) = q.split_at_mut(160);
        let (second, third) = rest.split_at_mut(80);
        let (first_bytes, second_bytes) = self.qs.split_at(32);
        digits(first_bytes, first);
        digits(second_bytes, second);
        digits(&self.qh, third);
        fill(out, &C::floats(&q), |q| (q - 1.0) * d);
    }
}

impl Values<256> for BlockTq2_0 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let q = planes::<2, 32, _, 256>(&self.qs);
        fill(out, &C::floats(&q), |q| (q - 1.0) * d);
    }
}

/// Base-3 digits: the highest of all bytes, the next of all bytes ... A byte is the number as a fraction of 3^5, times
/// 256, rounded up: multiplying by 3 carries the next digit out of it.
#[inline(always)]
fn digits(bytes: &[u8], out: &mut [i8]) {
    for (i, out) in out.chunks_exact_mut(bytes.len()).enumerate() {
        for (o, b) in out.iter_mut().zip(bytes) {
            let fraction = b.wrapping_mul([1, 3, 9, 27, 81][i]);
            // The carry of `3 * fraction`, without leaving the byte.
            *o = i8::from(fraction > 85) + i8::from(fraction > 170);
        }
    }
}

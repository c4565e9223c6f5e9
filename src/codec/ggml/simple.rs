//! Blocks of 32 weights with one scale, perhaps a minimum. Element `j < 16` is a low nibble, `j + 16` the high nibble
//! of the same byte.

use bytemuck::{Pod, Zeroable};

use super::{Values, fill, planes, scalar};
use crate::codec::block::Block;
use crate::codec::cpu::Cpu;

pub static Q4_0: Block = scalar::<BlockQ4_0, 32>("q4_0", 2, "4 bits, w = d (q - 8), 32 a block (ggml)");
pub static Q4_1: Block = scalar::<BlockQ4_1, 32>("q4_1", 3, "4 bits, w = d q + m, 32 a block (ggml)");
pub static Q5_0: Block = scalar::<BlockQ5_0, 32>("q5_0", 6, "5 bits, w = d (q - 16), 32 a block (ggml)");
pub static Q5_1: Block = scalar::<BlockQ5_1, 32>("q5_1", 7, "5 bits, w = d q + m, 32 a block (ggml)");
pub static Q8_0: Block = scalar::<BlockQ8_0, 32>("q8_0", 8, "8 bits, w = d q, 32 a block (ggml)");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4_0 {
    /// f16
    pub d: [u8; 2],
    pub qs: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4_1 {
    /// f16
    pub d: [u8; 2],
    /// f16
    pub m: [u8; 2],
    pub qs: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5_0 {
    /// f16
    pub d: [u8; 2],
    /// Bit `j`: the fifth bit of element `j`.
    pub qh: [u8; 4],
    pub qs: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5_1 {
    /// f16
    pub d: [u8; 2],
    /// f16
    pub m: [u8; 2],
    /// Bit `j`: the fifth bit of element `j`.
    pub qh: [u8; 4],
    pub qs: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ8_0 {
    /// f16
    pub d: [u8; 2],
    pub qs: [i8; 32],
}

const _: () = assert!(size_of::<BlockQ4_0>() == 18);
const _: () = assert!(size_of::<BlockQ4_1>() == 20);
const _: () = assert!(size_of::<BlockQ5_0>() == 22);
const _: () = assert!(size_of::<BlockQ5_1>() == 24);
const _: () = assert!(size_of::<BlockQ8_0>() == 34);

impl Values<32> for BlockQ4_0 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 32]) {
        let d = C::half(self.d);
        let q = planes::<4, 16, _, 32>(&self.qs);
        fill(out, &C::floats(&q), |q| (q - 8.0) * d);
    }
}

impl Values<32> for BlockQ4_1 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 32]) {
        let (d, m) = (C::half(self.d), C::half(self.m));
        let q = planes::<4, 16, _, 32>(&self.qs);
        fill(out, &C::floats(&q), |q| q * d + m);
    }
}

impl Values<32> for BlockQ5_0 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 32]) {
        let d = C::half(self.d);
        fill(out, &C::floats(&fives::<C>(&self.qs, &self.qh)), |q| (q - 16.0) * d);
    }
}

impl Values<32> for BlockQ5_1 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 32]) {
        let (d, m) = (C::half(self.d), C::half(self.m));
        fill(out, &C::floats(&fives::<C>(&self.qs, &self.qh)), |q| q * d + m);
    }
}

impl Values<32> for BlockQ8_0 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 32]) {
        let d = C::half(self.d);
        fill(out, &C::floats(&self.qs), |q| q * d);
    }
}

#[inline(always)]
fn fives<C: Cpu>(qs: &[u8; 16], qh: &[u8; 4]) -> [i8; 32] {
    let mut q = planes::<4, 16, _, 32>(qs);
    for (q, mask) in q.iter_mut().zip(&C::masks::<4, 32>(qh)) {
        *q |= mask & 16;
    }
    q
}

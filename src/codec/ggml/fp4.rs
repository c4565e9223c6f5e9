//! Four-bit floats under small floating-point scales, as ggml lays them out. Sources: OCP Microscaling Formats 1.0
//! (MXFP4), NVIDIA NVFP4.

use bytemuck::{Pod, Zeroable};

use super::{Values, fill, planes, scalar};
use crate::codec::block::Block;
use crate::codec::cpu::Cpu;
use crate::codec::fp4;

pub static MXFP4: Block = scalar::<BlockMxfp4, 32>("mxfp4", 39, "E2M1 floats, 32 a power-of-two scale (OCP MX, ggml)");
pub static NVFP4: Block =
    scalar::<BlockNvfp4, 64>("nvfp4", 40, "E2M1 floats, 16 an E4M3 scale, under a tensor scale (NVIDIA, ggml)")
        .under(&fp4::GGML_NVFP4_SCALE);

/// E2M1 values, doubled to be whole; the scales below are halved to match. Bit 3 is the sign; minus zero reads as zero.
pub const E2M1_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockMxfp4 {
    /// E8M0: 2^(e - 127). The standard's NaN, 255, reads as 2^128 here, as it does in ggml.
    pub e: u8,
    /// Element `j < 16` is the low nibble of byte `j`, `j + 16` the high one.
    pub qs: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockNvfp4 {
    /// Unsigned E4M3, one for each 16 weights.
    pub d: [u8; 4],
    /// Eight bytes a scale: element `j < 8` is the low nibble of byte `j`, `j + 8` the high one.
    pub qs: [u8; 32],
}

const _: () = assert!(size_of::<BlockMxfp4>() == 17);
const _: () = assert!(size_of::<BlockNvfp4>() == 36);

impl Values<32> for BlockMxfp4 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 32]) {
        let d = half_e8m0(self.e);
        let q = C::pick(&E2M1_DOUBLED, &planes::<4, 16, _, 32>(&self.qs));
        fill(out, &C::floats(&q), |q| q * d);
    }
}

impl Values<64> for BlockNvfp4 {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 64]) {
        let q = C::pick(&E2M1_DOUBLED, &planes::<4, 8, _, 64>(&self.qs));
        let (q, _) = q.as_chunks::<16>();
        let (outs, _) = out.as_chunks_mut::<16>();
        for ((out, q), d) in outs.iter_mut().zip(q).zip(self.d) {
            let d = HALF_UE4M3[d as usize];
            fill(out, &C::floats(q), |q| q * d);
        }
    }
}

/// Half of an E8M0 scale: the two smallest are subnormal.
#[inline(always)]
pub fn half_e8m0(e: u8) -> f32 {
    let e = u32::from(e);
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (e - 1) << 23 })
}

/// Half of an E4M3 scale whose sign is not read. 0x7f, NaN in E4M3, is zero in ggml.
pub static HALF_UE4M3: [f32; 256] = {
    let mut table = [0.0; 256];
    let mut x = 0;
    while x < 256 {
        let (exponent, mantissa) = (x as u32 >> 3 & 15, x as u32 & 7);
        // The mantissa counts sixteenths of 2^(exponent - 7), subnormals those of 2^-6.
        let power = f32::from_bits((if exponent == 0 { 1 } else { exponent } + 127 - 7) << 23);
        let whole = if exponent == 0 { 0 } else { 8 };
        table[x] = if x == 0x7f { 0.0 } else { (whole + mantissa) as f32 / 16.0 * power };
        x += 1;
    }
    table
};

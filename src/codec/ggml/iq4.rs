//! Four-bit codes into a fixed, uneven table of levels.

use bytemuck::{Pod, Zeroable};

use super::{Values, fill, planes, scalar};
use crate::codec::block::Block;
use crate::codec::cpu::Cpu;

pub static IQ4_NL: Block = scalar::<BlockIq4Nl, 32>("iq4_nl", 20, "4 bits, w = d level[q], 32 a block (ggml)");
pub static IQ4_XS: Block =
    scalar::<BlockIq4Xs, 256>("iq4_xs", 23, "4 bits, w = d s level[q], 32 weights a 6-bit s (ggml)");

pub const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq4Nl {
    /// f16
    pub d: [u8; 2],
    /// Element `j < 16` is the low nibble of byte `j`, `j + 16` the high one.
    pub qs: [u8; 16],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockIq4Xs {
    /// f16
    pub d: [u8; 2],
    /// Little-endian; bits `2 j`: the upper two of scale `j`, which is stored plus 32.
    pub scales_h: [u8; 2],
    /// The lower four, even scales in low nibbles.
    pub scales_l: [u8; 4],
    /// Each 32 weights as in [`BlockIq4Nl`].
    pub qs: [[u8; 16]; 8],
}

const _: () = assert!(size_of::<BlockIq4Nl>() == 18);
const _: () = assert!(size_of::<BlockIq4Xs>() == 136);

impl Values<32> for BlockIq4Nl {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 32]) {
        levels::<C>(C::half(self.d), &self.qs, out);
    }
}

impl Values<256> for BlockIq4Xs {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let (outs, _) = out.as_chunks_mut::<32>();
        for ((out, qs), scale) in outs.iter_mut().zip(&self.qs).zip(self.six_bit_scales()) {
            levels::<C>(d * f32::from(scale), qs, out);
        }
    }
}

impl BlockIq4Xs {
    #[inline(always)]
    pub fn six_bit_scales(&self) -> [i8; 8] {
        let high = u16::from_le_bytes(self.scales_h);
        let mut scales = [0; 8];
        for (j, scale) in scales.iter_mut().enumerate() {
            *scale = (self.scales_l[j / 2] >> (j % 2 * 4) & 15 | ((high >> (2 * j) & 3) << 4) as u8) as i8 - 32;
        }
        scales
    }
}

#[inline(always)]
fn levels<C: Cpu>(d: f32, qs: &[u8; 16], out: &mut [f32; 32]) {
    let levels = C::pick(&LEVELS, &planes::<4, 16, _, 32>(qs));
    fill(out, &C::floats(&levels), |level| d * level);
}

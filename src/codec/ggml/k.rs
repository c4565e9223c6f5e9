//! K-quants: super-blocks of 256 weights in sub-blocks of 16 or 32, whose scales (and minima) are themselves quantized.

use bytemuck::{Pod, Zeroable};

use super::{Values, fill, planes, scalar};
use crate::codec::block::Block;
use crate::codec::cpu::Cpu;

pub static Q2_K: Block =
    scalar::<BlockQ2K, 256>("q2_k", 10, "2 bits, w = d s q - dmin m, 16 weights a 4-bit s and m (ggml)");
pub static Q3_K: Block = scalar::<BlockQ3K, 256>("q3_k", 11, "3 bits, w = d s (q - 4), 16 weights a 6-bit s (ggml)");
pub static Q4_K: Block =
    scalar::<BlockQ4K, 256>("q4_k", 12, "4 bits, w = d s q - dmin m, 32 weights a 6-bit s and m (ggml)");
pub static Q5_K: Block =
    scalar::<BlockQ5K, 256>("q5_k", 13, "5 bits, w = d s q - dmin m, 32 weights a 6-bit s and m (ggml)");
pub static Q6_K: Block = scalar::<BlockQ6K, 256>("q6_k", 14, "6 bits, w = d s (q - 32), 16 weights an 8-bit s (ggml)");

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ2K {
    /// Low nibble: the scale of 16 weights; high nibble: their minimum.
    pub scales: [u8; 16],
    /// Weight `128 n + 32 j + l`: bits `2 j` of byte `32 n + l`.
    pub qs: [u8; 64],
    /// f16
    pub d: [u8; 2],
    /// f16
    pub dmin: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ3K {
    /// Weight `32 j + l`: bit `j` of byte `l` is its third bit.
    pub hmask: [u8; 32],
    /// Low two bits, as in [`BlockQ2K`].
    pub qs: [u8; 64],
    /// See [`q3_scales`].
    pub scales: [u8; 12],
    /// f16
    pub d: [u8; 2],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ4K {
    /// f16
    pub d: [u8; 2],
    /// f16
    pub dmin: [u8; 2],
    /// See [`scales_and_mins`].
    pub scales: [u8; 12],
    /// Weight `64 n + l`, `l < 32`: low nibble of byte `32 n + l`; weight `64 n + 32 + l`: its high nibble.
    pub qs: [u8; 128],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ5K {
    /// f16
    pub d: [u8; 2],
    /// f16
    pub dmin: [u8; 2],
    /// See [`scales_and_mins`].
    pub scales: [u8; 12],
    /// Weight `32 j + l`: bit `j` of byte `l` is its fifth bit.
    pub qh: [u8; 32],
    /// Low four bits, as in [`BlockQ4K`].
    pub qs: [u8; 128],
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
pub struct BlockQ6K {
    /// Low four bits. Weight `128 n + l`, `l < 64`: low nibble of byte `64 n + l`; weight `128 n + 64 + l`: its high
    /// nibble.
    pub ql: [u8; 128],
    /// High two bits, as the bits of [`BlockQ2K`].
    pub qh: [u8; 64],
    /// One for each 16 weights.
    pub scales: [i8; 16],
    /// f16
    pub d: [u8; 2],
}

const _: () = assert!(size_of::<BlockQ2K>() == 84);
const _: () = assert!(size_of::<BlockQ3K>() == 110);
const _: () = assert!(size_of::<BlockQ4K>() == 144);
const _: () = assert!(size_of::<BlockQ5K>() == 176);
const _: () = assert!(size_of::<BlockQ6K>() == 210);

impl Values<256> for BlockQ2K {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (C::half(self.d), C::half(self.dmin));
        let q = planes::<2, 32, _, 256>(&self.qs);
        for (i, (out, q)) in groups::<16>(out, &q) {
            let (scale, min) = (d * f32::from(self.scales[i] & 15), dmin * f32::from(self.scales[i] >> 4));
            fill(out, &C::floats(q), |q| scale * q - min);
        }
    }
}

impl Values<256> for BlockQ3K {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let scales = q3_scales(&self.scales);
        let q = join(planes::<2, 32, _, 256>(&self.qs), planes::<1, 32, _, 256>(&self.hmask), 2);
        for (i, (out, q)) in groups::<16>(out, &q) {
            let scale = d * f32::from(scales[i]);
            fill(out, &C::floats(q), |q| scale * (q - 4.0));
        }
    }
}

impl Values<256> for BlockQ4K {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (C::half(self.d), C::half(self.dmin));
        let (scales, mins) = scales_and_mins(&self.scales);
        let q = planes::<4, 32, _, 256>(&self.qs);
        for (i, (out, q)) in groups::<32>(out, &q) {
            let (scale, min) = (d * f32::from(scales[i]), dmin * f32::from(mins[i]));
            fill(out, &C::floats(q), |q| scale * q - min);
        }
    }
}

impl Values<256> for BlockQ5K {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let (d, dmin) = (C::half(self.d), C::half(self.dmin));
        let (scales, mins) = scales_and_mins(&self.scales);
        let q = join(planes::<4, 32, _, 256>(&self.qs), planes::<1, 32, _, 256>(&self.qh), 4);
        for (i, (out, q)) in groups::<32>(out, &q) {
            let (scale, min) = (d * f32::from(scales[i]), dmin * f32::from(mins[i]));
            fill(out, &C::floats(q), |q| scale * q - min);
        }
    }
}

impl Values<256> for BlockQ6K {
    #[inline(always)]
    fn values<C: Cpu>(&self, out: &mut [f32; 256]) {
        let d = C::half(self.d);
        let q = join(planes::<4, 64, _, 256>(&self.ql), planes::<2, 32, _, 256>(&self.qh), 4);
        for (i, (out, q)) in groups::<16>(out, &q) {
            let scale = d * f32::from(self.scales[i]);
            fill(out, &C::floats(q), |q| scale * (q - 32.0));
        }
    }
}

/// Sub-blocks of weights and codes, numbered.
#[inline(always)]
fn groups<'a, const G: usize>(
    out: &'a mut [f32; 256],
    q: &'a [i8; 256],
) -> impl Iterator<Item = (usize, (&'a mut [f32; G], &'a [i8; G]))> {
    out.as_chunks_mut().0.iter_mut().zip(q.as_chunks().0).enumerate()
}

/// Codes whose upper bits lie apart.
#[inline(always)]
fn join(mut low: [i8; 256], high: [i8; 256], shift: u32) -> [i8; 256] {
    for (l, h) in low.iter_mut().zip(&high) {
        *l |= h << shift;
    }
    low
}

/// Eight 6-bit scales and minima of Q4_K and Q5_K. Bytes 0..4 hold scales 0..4 and bytes 4..8 minima 0..4, six bits
/// each; their upper two bits are those of scales and minima 4..8, whose lower four share bytes 8..12.
#[inline(always)]
pub fn scales_and_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let (s, m, rest) = (packed[j], packed[j + 4], packed[j + 8]);
        scales[j] = s & 63;
        mins[j] = m & 63;
        scales[j + 4] = rest & 15 | s >> 6 << 4;
        mins[j + 4] = rest >> 4 | m >> 6 << 4;
    }
    (scales, mins)
}

/// Sixteen signed 6-bit scales of Q3_K, stored plus 32: lower four bits in the nibbles of bytes 0..8 (low ones first),
/// upper two in bytes 8..12.
#[inline(always)]
pub fn q3_scales(packed: &[u8; 12]) -> [i8; 16] {
    let mut scales = [0; 16];
    for (j, s) in scales.iter_mut().enumerate() {
        let low = packed[j % 8] >> (j / 8 * 4) & 15;
        let high = packed[8 + j % 4] >> (j / 4 * 2) & 3;
        *s = (low | high << 4) as i8 - 32;
    }
    scales
}

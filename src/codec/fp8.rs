//! Eight-bit floats of Hugging Face checkpoints: dense, and under scales. Sources: OCP OFP8; compressed-tensors
//! `compressors/naive_quantized/`; ModelOpt `qtensor/fp8_tensor.py`; DeepSeek-V3 `inference/kernel.py`.
//!
//! | part | type | shape |
//! |---|---|---|
//! | `weight` | F8_E4M3 | `[rows, cols]` |
//! | `weight_scale` | BF16 or as the model | a row each `[rows, 1]`; a square each `[rows / 128, cols / 128]`, rounded up |

use std::marker::PhantomData;
use std::ops::Range;

use safetensors::Dtype;

use super::affine::{Family, Scheme};
use super::block::{Block, DecodeFn};
use super::cpu::{self, Cpu, Decoder};
use super::facts::{DeviceGrid, Facts};
use super::grid::{Codes, Grid, Levels, Scale};
use super::{Codec, Part, TensorScale};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

pub static CODECS: &[&dyn Codec] = &[
    &F8_E4M3,
    &F8_E5M2,
    &BLOCK_FP8,
    &CHANNEL[0],
    &CHANNEL[1],
    &CHANNEL[2],
    &SQUARE[0],
    &SQUARE[1],
    &SQUARE[2],
    &TENSOR,
    &MODELOPT,
];

/// The largest E4M3, and its bits.
pub const MAX: f32 = 448.0;
pub const LARGEST: u8 = 0x7e;

/// What the bits of an E4M3 stand for.
pub fn value(bits: u8) -> f32 {
    let (magnitude, sign) = (u32::from(bits & 0x7f), u32::from(bits >> 7) << 31);
    let size = match magnitude {
        0x7f => f32::NAN,
        // Eighths of the smallest normal number, 2^-6.
        0..8 => magnitude as f32 / 512.0,
        _ => f32::from_bits((magnitude << 20) + ((127 - 7) << 23)),
    };
    f32::from_bits(size.to_bits() | sign)
}

/// The nearest E4M3, even at a tie, the largest from there on: its bits and what they stand for.
#[inline(always)]
pub fn nearest(x: f32) -> (u8, f32) {
    let size = x.abs().min(MAX);
    // The spacing of E4M3 there; adding 1.5 * 2^23 of them and taking them off leaves whole ones.
    let power = f32::from_bits(size.to_bits() & 0x7f80_0000);
    let power = if power < 1.0 / 64.0 { 1.0 / 64.0 } else { power };
    let whole = power * (12_582_912.0 / 8.0);
    let size = (size + whole) - whole;
    let normal = (size.to_bits() >> 20).wrapping_sub((127 - 7) << 3);
    let bits = if size < 1.0 / 64.0 { (size * 512.0) as u32 } else { normal };
    (bits as u8 | ((x.to_bits() >> 24) & 0x80) as u8, size.copysign(x))
}

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
    name: "deepseek-fp8",
    about: "e4m3 times a scale for each 128 x 128 weights (DeepSeek-V3)",
    square: [BLOCK, BLOCK],
};

fn on_device([tall, group]: [usize; 2], scales: Option<Dtype>) -> Facts {
    let grid = DeviceGrid {
        file: "fp8",
        name: "Float8",
        arguments: Vec::new(),
        numbers: Vec::new(),
        levels: Levels::E4m3,
        block: false,
    };
    Facts { tall, group: Some(group).filter(|g| *g > 0), scales, ..grid.facts() }
}

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

    fn facts(&self) -> Option<Facts> {
        Some(on_device(self.square, Some(Dtype::F32)))
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

const fn scheme(family: Family, group: Option<usize>, scales: Dtype) -> Scheme {
    Scheme { family, bits: 8, group, symmetric: true, scales }
}

const fn channel(name: &'static str, scales: Dtype) -> Float8 {
    let about = "e4m3 times a scale for each row (compressed-tensors float-quantized)";
    Float8 { name, pattern: "fp8-channel", about, scheme: scheme(Family::Float8, None, scales), tensor_scale: None }
}

const fn square(name: &'static str, scales: Dtype) -> Float8 {
    let about = "e4m3 times a scale for each 128 x 128 weights (compressed-tensors float-quantized)";
    Float8 {
        name,
        pattern: "fp8-block",
        about,
        scheme: scheme(Family::Float8, Some(BLOCK), scales),
        tensor_scale: None,
    }
}

static CHANNEL: [Float8; 3] = [
    channel("fp8-channel", Dtype::BF16),
    channel("fp8-channel-f16", Dtype::F16),
    channel("fp8-channel-f32", Dtype::F32),
];

static SQUARE: [Float8; 3] =
    [square("fp8-block", Dtype::BF16), square("fp8-block-f16", Dtype::F16), square("fp8-block-f32", Dtype::F32)];

static TENSOR: Float8 = Float8 {
    name: "fp8-tensor",
    pattern: "fp8-tensor",
    about: "e4m3 times a scale for the matrix (compressed-tensors float-quantized)",
    scheme: scheme(Family::Float8Tensor, None, Dtype::F32),
    tensor_scale: Some(&TensorScale { shape: &[1], ..TENSOR_SCALE }),
};

static MODELOPT: Float8 = Float8 {
    name: "modelopt-fp8",
    pattern: "modelopt-fp8",
    about: "e4m3 times a scale for the matrix (NVIDIA ModelOpt FP8)",
    scheme: scheme(Family::ModelOptFloat8, None, Dtype::F32),
    tensor_scale: Some(&TENSOR_SCALE),
};

const TENSOR_SCALE: TensorScale = TensorScale {
    weight: "weight_scale",
    input: "input_scale",
    shape: &[],
    divides: false,
    reach: MAX,
    input_reach: MAX,
    room: 1.0,
    power_of_two: false,
};

/// E4M3 under scales: of rows, of squares, or of the matrix, and then the container knows it.
struct Float8 {
    name: &'static str,
    pattern: &'static str,
    about: &'static str,
    scheme: Scheme,
    tensor_scale: Option<&'static TensorScale>,
}

impl Float8 {
    /// Rows and columns of scales.
    fn scales(&self, dims: Dims) -> Dims {
        Dims::new(dims.rows.div_ceil(self.rows()), self.scheme.groups(dims.cols))
    }
}

impl Codec for Float8 {
    fn name(&self) -> &str {
        self.name
    }

    fn pattern(&self) -> &str {
        self.pattern
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn layout(&self, dims: Dims) -> Result<Vec<Part>> {
        let multiple = self.multiples().cols;
        if !dims.cols.is_multiple_of(multiple) {
            let message = format!("{} needs rows in multiples of {multiple}, this weight has {}", self.name, dims.cols);
            return Err(Error::request(message));
        }
        let mut parts = vec![Part::new("weight", Dtype::F8_E4M3, vec![dims.rows, dims.cols])?];
        if self.param_bytes() > 0 {
            let scales = self.scales(dims);
            parts.push(self.scheme.scales_part("weight_scale", vec![scales.rows, scales.cols])?);
        }
        match parts.iter().try_fold(0usize, |sum, part| sum.checked_add(part.bytes)) {
            Some(_) => Ok(parts),
            None => Err(Error::input(format!("{} x {} weights overflow", dims.rows, dims.cols))),
        }
    }

    fn multiples(&self) -> Dims {
        Dims::new(1, self.scheme.group.unwrap_or(1))
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let (cols, across) = (packed.dims.cols, self.scales(packed.dims).cols);
        for (row, out) in rows.zip(out.chunks_exact_mut(cols.max(1))) {
            (F8_E4M3.decode)(&packed.parts[0][row * cols..][..cols], out);
            if let Some(scales) = packed.parts.get(1) {
                for (n, out) in out.chunks_exact_mut(self.scheme.columns(cols)).enumerate() {
                    let scale = self.scheme.read_scale(scales, row / self.rows() * across + n);
                    out.iter_mut().for_each(|w| *w *= scale);
                }
            }
        }
    }

    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }

    fn scheme(&self) -> Option<&Scheme> {
        Some(&self.scheme)
    }

    fn tensor_scale(&self) -> Option<&'static TensorScale> {
        self.tensor_scale
    }

    fn unpack(&self, packed: &Packed<'_>) -> Option<Codes> {
        let mut params = Vec::new();
        if let Some(scales) = packed.parts.get(1) {
            let row = self.scales(packed.dims).cols * self.param_bytes();
            (0..packed.dims.rows).for_each(|r| params.extend_from_slice(&scales[r / self.rows() * row..][..row]));
        }
        Some(Codes { params, codes: packed.parts[0].to_vec() })
    }
}

impl Grid for Float8 {
    fn group(&self, cols: usize) -> usize {
        self.scheme.columns(cols)
    }

    fn span(&self, cols: usize) -> usize {
        self.scheme.columns(cols)
    }

    fn rows(&self) -> usize {
        self.scheme.group.unwrap_or(1)
    }

    fn levels(&self) -> Levels {
        Levels::E4m3
    }

    fn param_bytes(&self) -> usize {
        if self.tensor_scale.is_some() { 0 } else { self.scheme.scale_bytes() }
    }

    fn facts(&self) -> Option<Facts> {
        let scales = Some(self.scheme.scales).filter(|_| self.tensor_scale.is_none());
        Some(on_device([Grid::rows(self), self.scheme.group.unwrap_or(0)], scales))
    }

    /// Eight bits are enough to let the largest weight decide.
    fn fit(&self, w: &[f32], cols: usize, _: Option<&[f32]>, params: &mut [u8]) {
        let (group, size) = (self.scheme.columns(cols).max(1), self.param_bytes());
        if size == 0 {
            return;
        }
        let across = cols / group;
        let tall = self.rows();
        for (w, params) in w.chunks(tall * cols).zip(params.chunks_mut(tall * across * size)) {
            for n in 0..across {
                let rows = w.chunks_exact(cols).flat_map(|row| &row[n * group..(n + 1) * group]);
                let largest = rows.fold(0f32, |max, w| max.max(w.abs()));
                let scale = if largest == 0.0 { 1.0 } else { self.scheme.storable(largest / MAX) };
                for params in params.chunks_exact_mut(across * size) {
                    self.scheme.write_scale(scale, &mut params[n * size..(n + 1) * size]);
                }
            }
        }
    }

    fn scales(&self, params: &[u8], out: &mut [Scale]) {
        let step = if self.param_bytes() == 0 { 1.0 } else { self.scheme.read_scale(params, 0) };
        out[0] = Scale { step, ..Scale::default() };
    }

    fn adopt(&self, scales: &[Scale], params: &mut [u8]) -> bool {
        let step = scales[0].step;
        if self.param_bytes() == 0 {
            return step == 1.0;
        }
        self.scheme.write_scale(step, params);
        self.scheme.read_scale(params, 0) == step
    }

    fn pack(&self, dims: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>> {
        let mut parts = vec![codes.to_vec()];
        let row = self.scales(dims).cols * self.param_bytes();
        if row > 0 {
            parts.push(params.chunks(row * self.rows()).flat_map(|rows| &rows[..row]).copied().collect());
        }
        parts
    }
}

const fn dense(name: &'static str, about: &'static str, decode: DecodeFn, decode_plain: DecodeFn) -> Block {
    Block {
        name,
        about,
        ggml: None,
        weights: 1,
        bytes: 1,
        decode,
        decode_plain,
        encode: None,
        grid: None,
        tensor_scale: None,
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_its_own_nearest() {
        for bits in 0..=u8::MAX {
            let mut decoded = [0.0];
            (F8_E4M3.decode)(&[bits], &mut decoded);
            let number = value(bits);
            assert!(number == decoded[0] || number.is_nan() && decoded[0].is_nan(), "{bits:#x}");
            if number.is_finite() {
                assert_eq!(nearest(number), (bits, number));
            }
        }
    }

    #[test]
    fn between_two_the_nearer_and_at_a_tie_the_even() {
        for bits in 0..LARGEST {
            let (low, high) = (value(bits), value(bits + 1));
            let middle = (low + high) / 2.0;
            assert_eq!(nearest(middle).0, bits + bits % 2, "{middle}");
            assert_eq!(nearest(-middle * 0.9999).1, -low);
            assert_eq!(nearest(middle * 1.0001).1, high);
        }
        for beyond in [449.0, 1e30, f32::INFINITY] {
            assert_eq!((nearest(beyond).0, nearest(-beyond).1), (LARGEST, -MAX));
        }
    }
}

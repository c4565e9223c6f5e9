//! Four-bit floats (E2M1) under small floating-point scales: what ggml's blocks and the formats of Hugging Face folders share,
//! and the latter. Sources: NVIDIA NVFP4, OCP Microscaling Formats 1.0; compressed-tensors `compressors/nvfp4/`, `mxfp4/`;
//! ModelOpt `qtensor/nvfp4_tensor.py`.
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `weight_packed`, of ModelOpt `weight` | U8 | `[rows, cols / 2]` | the even column in the low four bits |
//! | `weight_scale` | F8_E4M3, of MXFP4 U8 | `[rows, cols / 16]`, of MXFP4 `[rows, cols / 32]` | |
//!
//! MLX's have the same bytes, and no scale of the matrix (mlx `python/src/ops.cpp`, quantize):
//!
//! | part | type | shape |
//! |---|---|---|
//! | `weight` | U32 | `[rows, cols / 8]` |
//! | `scales` | U8 | as above |
//!
//! gpt-oss's too, for all experts of a layer at once (transformers `integrations/mxfp4.py`):
//!
//! | part | type | shape |
//! |---|---|---|
//! | `_blocks` | U8 | `[rows, cols / 32, 16]` |
//! | `_scales` | U8 | as above |

use std::marker::PhantomData;
use std::ops::Range;

use safetensors::Dtype;

use super::facts::{DeviceFit, DeviceGrid, Facts, Number, type_name};
use super::ggml::fp4::E2M1_DOUBLED;
use super::grid::{Codes, Grid, Levels, Scale};
use super::scheme::{Family, Scheme};
use super::{Codec, Part, TensorScale, fp8};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

pub static CODECS: &[&dyn Codec] = &[&NVFP4, &MODELOPT_NVFP4, &MXFP4, &GPT_OSS_MXFP4, &MLX_NVFP4, &MLX_MXFP4];

static NVFP4: Fp4<SmallFloat> = Fp4 {
    name: "pack-nvfp4",
    about: "E2M1 floats, 16 an E4M3 scale, under a scale of the matrix (compressed-tensors nvfp4-pack-quantized)",
    scheme: scheme(Family::Nvfp4, 16, Dtype::F8_E4M3),
    codes: ("weight_packed", Dtype::U8),
    scale_name: "weight_scale",
    tensor_scale: Some(&TensorScale {
        weight: "weight_global_scale",
        input: "input_global_scale",
        divides: true,
        shape: &[1],
        ..NVFP4_SCALE
    }),
    scales: PhantomData,
};

static MODELOPT_NVFP4: Fp4<SmallFloat> = Fp4 {
    name: "modelopt-nvfp4",
    about: "E2M1 floats, 16 an E4M3 scale, under a scale of the matrix (NVIDIA ModelOpt)",
    scheme: scheme(Family::ModelOptNvfp4, 16, Dtype::F8_E4M3),
    codes: ("weight", Dtype::U8),
    scale_name: "weight_scale",
    tensor_scale: Some(&TensorScale { weight: "weight_scale_2", input: "input_scale", shape: &[], ..NVFP4_SCALE }),
    scales: PhantomData,
};

static MXFP4: Fp4<PowerOfTwo> = Fp4 {
    name: "pack-mxfp4",
    about: "E2M1 floats, 32 a power-of-two scale (OCP MX, compressed-tensors mxfp4-pack-quantized)",
    scheme: scheme(Family::Mxfp4, 32, Dtype::U8),
    codes: ("weight_packed", Dtype::U8),
    scale_name: "weight_scale",
    tensor_scale: None,
    scales: PhantomData,
};

/// What config.json calls it.
pub const GPT_OSS_METHOD: &str = "mxfp4";

static GPT_OSS_MXFP4: Fp4<PowerOfTwo> = Fp4 {
    name: "gpt-oss-mxfp4",
    about: "E2M1 floats, 32 a power-of-two scale, for the experts of gpt-oss (transformers, quant_method mxfp4)",
    scheme: scheme(Family::GptOss, 32, Dtype::U8),
    codes: ("_blocks", Dtype::U8),
    scale_name: "_scales",
    tensor_scale: None,
    scales: PhantomData,
};

static MLX_NVFP4: Fp4<SmallFloat> = Fp4 {
    name: "mlx-nvfp4",
    about: "E2M1 floats, 16 an E4M3 scale, without a scale of the matrix (MLX, mode nvfp4)",
    scheme: scheme(Family::MlxFloat, 16, Dtype::U8),
    codes: ("weight", Dtype::U32),
    scale_name: "scales",
    tensor_scale: None,
    scales: PhantomData,
};

static MLX_MXFP4: Fp4<PowerOfTwo> = Fp4 {
    name: "mlx-mxfp4",
    about: "E2M1 floats, 32 a power-of-two scale (MLX, mode mxfp4)",
    scheme: scheme(Family::MlxFloat, 32, Dtype::U8),
    codes: ("weight", Dtype::U32),
    scale_name: "scales",
    tensor_scale: None,
    scales: PhantomData,
};

/// As GGUF has it.
pub static GGML_NVFP4_SCALE: TensorScale = NVFP4_SCALE;

/// The largest weight is 6 times the largest scale. A power of two divides exactly, its reciprocal is exact, and up to half of
/// the scales' range stays free above what the largest weight asks for, where the search may want it.
const NVFP4_SCALE: TensorScale = TensorScale {
    weight: "scale",
    input: "input_scale",
    divides: false,
    shape: &[1],
    reach: 6.0 * fp8::MAX,
    input_reach: 6.0 * fp8::MAX,
    room: 1.5,
    power_of_two: true,
};

const fn scheme(family: Family, group: usize, scales: Dtype) -> Scheme {
    Scheme { family, bits: 4, group: Some(group), symmetric: true, scales }
}

/// Doubled to be whole; the scales are halved to match.
pub const LEVELS: Levels = Levels::Table(&{
    let mut out = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        out[i] = E2M1_DOUBLED[i] as f32;
        i += 1;
    }
    out
});

/// A kind of scale that fits into a byte.
pub trait ByteScale: Send + Sync + 'static {
    /// Weights under one.
    const SPAN: usize;
    /// Bytes are powers of two, and no E4M3.
    const POWER: bool;

    /// Half of what a byte stands for.
    fn half(byte: u8) -> f32;

    /// The byte for weights up to `largest`, as the format's own description has it. Of zeros: any that is not zero.
    fn plain(largest: f32) -> u8;

    /// Bytes worth trying where `plain` is the plain one.
    fn candidates(plain: u8) -> Range<u8>;

    /// Stores the byte of this half. False if there is none.
    fn store(half: f32, byte: &mut u8) -> bool {
        let found = (0..=u8::MAX).find(|b| Self::half(*b) == half);
        found.map(|b| *byte = b).is_some()
    }
}

/// Eight steps double an E4M3: from most of the codes cut off to none above 3.
const BELOW: u8 = 6;
const ABOVE: u8 = 9;
/// A step doubles a power of two.
const POWERS: u8 = 2;

/// The numbers of the search, by the names that `kernels/` has for them.
pub fn numbers() -> Vec<(&'static str, Number)> {
    let steps = [("FIT_BELOW", BELOW), ("FIT_ABOVE", ABOVE), ("FIT_POWERS", POWERS), ("FP8_LARGEST", fp8::LARGEST)];
    steps.map(|(name, n)| (name, Number::Int(i32::from(n)))).to_vec()
}

/// E4M3.
pub struct SmallFloat;

impl ByteScale for SmallFloat {
    const SPAN: usize = 16;
    const POWER: bool = false;

    fn half(byte: u8) -> f32 {
        0.5 * fp8::value(byte)
    }

    fn plain(largest: f32) -> u8 {
        if largest == 0.0 { fp8::nearest(1.0).0 } else { fp8::nearest(largest / 6.0).0.max(1) }
    }

    fn candidates(plain: u8) -> Range<u8> {
        plain.saturating_sub(BELOW).max(1)..(plain + ABOVE).min(fp8::LARGEST + 1)
    }
}

/// E8M0.
pub struct PowerOfTwo;

impl ByteScale for PowerOfTwo {
    const SPAN: usize = 32;
    const POWER: bool = true;

    fn half(byte: u8) -> f32 {
        0.5 * fp8::power(byte)
    }

    /// From 1.75 of a power of two on, the next.
    fn plain(largest: f32) -> u8 {
        let exponent = (largest.to_bits() + (1 << 21)) >> 23;
        if largest == 0.0 { 127 } else { exponent.saturating_sub(2).min(254) as u8 }
    }

    fn candidates(plain: u8) -> Range<u8> {
        plain.saturating_sub(POWERS)..plain + POWERS
    }
}

/// Chooses the scale of every span by its weighted squared error.
pub fn fit<'a, S: ByteScale>(
    w: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    stored: impl Iterator<Item = &'a mut u8>,
) {
    let per_row = (cols / S::SPAN).max(1);
    let uniform = vec![1.0; S::SPAN];
    for (n, (w, stored)) in w.chunks_exact(S::SPAN).zip(stored).enumerate() {
        let importance = importance.map(|i| &i[n % per_row * S::SPAN..][..S::SPAN]);
        let importance = importance.filter(|i| i.iter().any(|x| *x > 0.0)).unwrap_or(&uniform);
        let plain = S::plain(largest(w));
        let mut best = (error(w, importance, S::half(plain)), plain);
        for byte in S::candidates(plain).filter(|b| *b != plain) {
            let error = error(w, importance, S::half(byte));
            if error < best.0 {
                best = (error, byte);
            }
        }
        *stored = best.1;
    }
}

fn largest(w: &[f32]) -> f32 {
    w.iter().fold(0.0, |max, w| w.abs().max(max))
}

#[inline(always)]
fn error(w: &[f32], importance: &[f32], half: f32) -> f32 {
    // Adding 1.5 * 2^23 times a number leaves multiples of that number: rounds to nearest even.
    const WHOLE: f32 = 12_582_912.0;
    let inverse = half.recip();
    let mut sums = [0.0; 8];
    for (w, importance) in w.as_chunks::<8>().0.iter().zip(importance.as_chunks::<8>().0) {
        for lane in 0..8 {
            let size = (w[lane].abs() * inverse).min(12.0);
            let step = if size < 4.0 { 1.0 } else { 2.0 };
            let step = if size < 8.0 { step } else { 4.0 };
            let error = w[lane].abs() - ((size + WHOLE * step) - WHOLE * step) * half;
            sums[lane] += importance[lane] * error * error;
        }
    }
    sums.iter().sum()
}

/// Codes and scales, each in a part of their own.
struct Fp4<S> {
    name: &'static str,
    about: &'static str,
    scheme: Scheme,
    /// What the part of the codes is called, and its type.
    codes: (&'static str, Dtype),
    scale_name: &'static str,
    tensor_scale: Option<&'static TensorScale>,
    scales: PhantomData<S>,
}

impl<S: ByteScale> Codec for Fp4<S> {
    fn name(&self) -> &str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn layout(&self, dims: Dims) -> Result<Vec<Part>> {
        if !dims.cols.is_multiple_of(S::SPAN) {
            let message =
                format!("{} needs rows in multiples of {}, this weight has {}", self.name, S::SPAN, dims.cols);
            return Err(Error::request(message));
        }
        if dims.rows.checked_mul(dims.cols).is_none() {
            return Err(Error::input(format!("{} x {} weights overflow", dims.rows, dims.cols)));
        }
        let (codes, dtype) = self.codes;
        let shape = match self.scheme.family {
            Family::GptOss => vec![dims.rows, dims.cols / S::SPAN, S::SPAN / 2],
            _ => vec![dims.rows, dims.cols * 4 / dtype.bitsize()],
        };
        Ok(vec![
            Part::new(codes, dtype, shape)?,
            Part::new(self.scale_name, self.scheme.scales, vec![dims.rows, dims.cols / S::SPAN])?,
        ])
    }

    fn multiples(&self) -> Dims {
        Dims::new(1, S::SPAN)
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let cols = packed.dims.cols;
        let halves = packed.parts[1][rows.start * cols / S::SPAN..rows.end * cols / S::SPAN].iter();
        let bytes = packed.parts[0][rows.start * cols / 2..rows.end * cols / 2].chunks_exact(S::SPAN / 2);
        for ((out, bytes), scale) in out.chunks_exact_mut(S::SPAN).zip(bytes).zip(halves) {
            let half = S::half(*scale);
            for (out, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *out = [byte & 15, byte >> 4].map(|code| f32::from(E2M1_DOUBLED[usize::from(code)]) * half);
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
        let codes = packed.parts[0].iter().flat_map(|byte| [byte & 15, byte >> 4]).collect();
        Some(Codes { params: packed.parts[1].to_vec(), codes })
    }
}

impl<S: ByteScale> Grid for Fp4<S> {
    fn group(&self, _: usize) -> usize {
        S::SPAN
    }

    fn span(&self, _: usize) -> usize {
        S::SPAN
    }

    fn levels(&self) -> Levels {
        LEVELS
    }

    fn param_bytes(&self) -> usize {
        1
    }

    fn facts(&self) -> Option<Facts> {
        let grid = DeviceGrid {
            file: "fp4",
            name: type_name::<S>(),
            arguments: Vec::new(),
            numbers: vec![("SPAN", S::SPAN)],
            levels: LEVELS,
            block: false,
        };
        Some(Facts { group: Some(S::SPAN), fit: Some(DeviceFit::Fp4 { power: S::POWER }), ..grid.facts() })
    }

    fn fit(&self, w: &[f32], cols: usize, importance: Option<&[f32]>, params: &mut [u8]) {
        fit::<S>(w, cols, importance, params.iter_mut());
    }

    fn fit_largest(&self, w: &[f32], _: usize, params: &mut [u8]) {
        params.iter_mut().zip(w.chunks_exact(S::SPAN)).for_each(|(stored, w)| *stored = S::plain(largest(w)));
    }

    fn scales(&self, params: &[u8], out: &mut [Scale]) {
        out[0] = Scale { step: S::half(params[0]), ..Scale::default() };
    }

    fn adopt(&self, scales: &[Scale], params: &mut [u8]) -> bool {
        S::store(scales[0].step, &mut params[0])
    }

    fn pack(&self, _: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>> {
        let bytes = codes.as_chunks::<2>().0.iter().map(|[even, odd]| even | odd << 4).collect();
        vec![bytes, params.to_vec()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_what_the_largest_weight_hides() {
        // Of 4 and 6 sixths of the largest weight, only a scale under which it is 4 has both.
        let mut w = [0.0; 16];
        (w[0], w[1]) = (4.0, 3.0);
        let mut byte = 0;
        fit::<SmallFloat>(&w, 16, None, std::iter::once(&mut byte));
        assert_eq!(fp8::value(byte), 1.0);
        assert_eq!(error(&w, &[1.0; 16], 0.5), 0.0);
        assert!(error(&w, &[1.0; 16], SmallFloat::half(SmallFloat::plain(4.0))) > 0.0);
    }

    #[test]
    fn importance_decides_what_is_cut_off() {
        let mut w = [0.11; 16];
        w[0] = 1.0;
        let mut importance = [1.0; 16];
        let mut byte = 0;
        fit::<SmallFloat>(&w, 16, Some(&importance), std::iter::once(&mut byte));
        importance[0] = 0.0;
        let mut other = 0;
        fit::<SmallFloat>(&w, 16, Some(&importance), std::iter::once(&mut other));
        assert!(fp8::value(other) < fp8::value(byte));
    }

    #[test]
    fn scales_are_numbers_whatever_the_weights() {
        for size in [0.0, 1e-44, 1e-30, 1e-9, 1.0, 448.0 * 6.0, 3e38] {
            let mut w = [0.0; 32];
            w[5] = -size;
            let (mut small, mut power) = ([0; 2], 0);
            fit::<SmallFloat>(&w, 32, Some(&[0.0; 32]), small.iter_mut());
            fit::<PowerOfTwo>(&w, 32, None, std::iter::once(&mut power));
            for half in [SmallFloat::half(small[0]), SmallFloat::half(small[1]), PowerOfTwo::half(power)] {
                assert!(half.is_finite() && half > 0.0, "{size:e}: {half}");
            }
        }
    }

    #[test]
    fn powers_of_two_are_those_of_compressed_tensors() {
        for (largest, power) in [(6.0, 1.0), (6.99, 1.0), (7.0, 2.0), (4.0, 1.0), (3.5, 1.0), (3.49, 0.5)] {
            assert_eq!(2.0 * PowerOfTwo::half(PowerOfTwo::plain(largest)), power, "{largest}");
        }
    }
}

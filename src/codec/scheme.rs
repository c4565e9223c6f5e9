//! Formats as configuration files of Hugging Face folders describe them: who reads the parts, bits, groups, types of scales.

use half::{bf16, f16};
use safetensors::Dtype;

use super::grid::Scale;
use super::{Part, fp8};
use crate::error::{Error, Result};
use crate::tensor::Dims;

/// Who reads the parts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    Gptq,
    GptqV2,
    Awq,
    /// compressed-tensors `pack-quantized`
    Packed,
    /// compressed-tensors `int-quantized`
    Int,
    /// MLX's `affine`
    Mlx,
    /// MLX's `nvfp4`, `mxfp4` and `mxfp8`
    MlxFloat,
    /// compressed-tensors `float-quantized`: E4M3 under a scale a row or a square
    Float8,
    /// The same under one scale for the matrix
    Float8Tensor,
    /// ModelOpt's FP8, the same
    ModelOptFloat8,
    /// compressed-tensors `mxfp8-quantized`
    Mxfp8,
    /// compressed-tensors `nvfp4-pack-quantized`
    Nvfp4,
    ModelOptNvfp4,
    /// compressed-tensors `mxfp4-pack-quantized`
    Mxfp4,
    /// MXFP4 as gpt-oss has it
    GptOss,
    /// bitsandbytes `nf4`
    Nf4,
    /// bitsandbytes `fp4`
    BnbFp4,
}

impl Family {
    /// Codes are whole numbers, not bits of floats.
    pub fn is_integer(self) -> bool {
        use Family::{Awq, Gptq, GptqV2, Int, Mlx, Packed};
        matches!(self, Gptq | GptqV2 | Awq | Packed | Int | Mlx)
    }
}

/// What stands for zero in a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Zero {
    /// The code in the middle.
    Middle,
    /// A code of the group's own.
    Code,
    /// Nothing need to: a number is added to all values, stored like a scale.
    Free,
}

/// A format as configuration files describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme {
    pub family: Family,
    pub bits: usize,
    /// Columns under one scale; `None`: the whole row.
    pub group: Option<usize>,
    /// The zero is in the middle of the codes.
    pub symmetric: bool,
    /// F16, BF16 or F32; of floats F8_E4M3 or U8 as well. Of bitsandbytes what runtimes decode to.
    pub scales: Dtype,
}

impl Scheme {
    pub fn columns(&self, cols: usize) -> usize {
        self.group.unwrap_or(cols)
    }

    pub(super) fn zero(&self) -> Zero {
        match (self.family, self.symmetric) {
            (Family::Mlx, _) => Zero::Free,
            (_, true) => Zero::Middle,
            (_, false) => Zero::Code,
        }
    }

    /// Bytes of a group's zero where it is stored by itself.
    pub(super) fn zero_bytes(&self) -> usize {
        if self.zero() == Zero::Free { self.scale_bytes() } else { 1 }
    }

    /// A scale under which zero is a value.
    pub(super) fn at_zero(&self, step: f32) -> Scale {
        let zero = if self.zero() == Zero::Free { 0.0 } else { f32::from(self.middle()) };
        Scale { step, zero, offset: 0.0 }
    }

    /// Scales of one row.
    pub fn groups(&self, cols: usize) -> usize {
        cols.checked_div(self.columns(cols)).unwrap_or(0)
    }

    /// The zero of symmetric formats.
    pub fn middle(&self) -> u8 {
        1 << (self.bits - 1)
    }

    pub(super) fn top(&self) -> usize {
        (1 << self.bits) - 1
    }

    pub fn scale_bytes(&self) -> usize {
        self.scales.bitsize() / 8
    }

    /// A byte is a power of two.
    pub fn read_scale(&self, bytes: &[u8], n: usize) -> f32 {
        let width = self.scale_bytes();
        let bytes = &bytes[n * width..][..width];
        match (self.scales, bytes) {
            (_, &[power]) => fp8::power(power),
            (Dtype::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
            (_, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
            (_, bytes) => f32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]),
        }
    }

    pub fn write_scale(&self, scale: f32, bytes: &mut [u8]) {
        match self.scales {
            Dtype::U8 => bytes[0] = fp8::power_above(scale),
            Dtype::F32 => bytes.copy_from_slice(&scale.to_le_bytes()),
            Dtype::F16 => bytes.copy_from_slice(&f16::from_f32(scale).to_le_bytes()),
            _ => bytes.copy_from_slice(&bf16::from_f32(scale).to_le_bytes()),
        }
    }

    /// `scale` as it will be read back.
    pub(super) fn stored(&self, scale: f32) -> f32 {
        match self.scales {
            Dtype::U8 => fp8::power(fp8::power_above(scale)),
            Dtype::F32 => scale,
            Dtype::F16 => f16::from_f32(scale).to_f32(),
            _ => bf16::from_f32(scale).to_f32(),
        }
    }

    /// The nearest scale that the format can hold, of powers of two the next; never zero nor infinite.
    pub fn storable(&self, scale: f32) -> f32 {
        let (smallest, largest) = self.range();
        self.stored(scale.abs().clamp(smallest, largest).copysign(scale))
    }

    /// The smallest and the largest scale that can be stored.
    pub(super) fn range(&self) -> (f32, f32) {
        match self.scales {
            Dtype::F16 => (f16::MIN_POSITIVE_SUBNORMAL.to_f32(), f16::MAX.to_f32()),
            Dtype::BF16 => (bf16::MIN_POSITIVE.to_f32(), bf16::MAX.to_f32()),
            _ => (f32::MIN_POSITIVE, f32::MAX),
        }
    }

    pub fn scales_part(&self, name: &'static str, shape: Vec<usize>) -> Result<Part> {
        Part::new(name, self.scales, shape)
    }

    /// Whether rows divide into groups and, where words span rows, rows into words.
    pub fn check(&self, dims: Dims, multiples: Dims) -> Result<()> {
        let refuse = |what: &str, multiple: usize, have: usize| {
            let message = format!("{} bits in groups of {}", self.bits, self.columns(dims.cols));
            Err(Error::request(format!("{message} need {what} in multiples of {multiple}, this weight has {have}")))
        };
        if dims.cols == 0 || !dims.cols.is_multiple_of(multiples.cols) {
            return refuse("columns", multiples.cols, dims.cols);
        }
        if !dims.rows.is_multiple_of(multiples.rows) {
            return refuse("rows", multiples.rows, dims.rows);
        }
        Ok(())
    }
}

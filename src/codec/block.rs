//! Formats whose rows are runs of equal blocks: all of ggml's types and the plain floats.

use std::ops::Range;

use safetensors::Dtype;

use super::grid::Grid;
use super::{Codec, Part, TensorScale, float};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

/// What an encoder does with an importance vector (mean square of the inputs, one value per column).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Importance {
    Ignored,
    Used,
    /// Cannot encode without one.
    Required,
}

/// Encodes whole rows: `w.len()` is a multiple of `cols`, `importance` has `cols` values, `out` has the exact size.
/// Non-finite weights are refused before this is called.
pub type EncodeFn = fn(w: &[f32], cols: usize, importance: Option<&[f32]>, out: &mut [u8]);

/// Decodes whole blocks: any bytes, `out.len() / weights` of them.
pub type DecodeFn = fn(&[u8], &mut [f32]);

#[derive(Clone, Copy)]
pub struct Encode {
    pub importance: Importance,
    /// The fastest that this machine can run.
    pub run: EncodeFn,
    /// The plain twin, bit-equal to `run`.
    pub plain: EncodeFn,
}

/// A row of the table of block formats.
pub struct Block {
    pub name: &'static str,
    pub about: &'static str,
    /// ggml type id, for formats that GGUF can hold.
    pub ggml: Option<u32>,
    /// Weights per block, along a row.
    pub weights: usize,
    /// Bytes per block.
    pub bytes: usize,
    /// The fastest that this machine can run.
    pub decode: DecodeFn,
    /// The plain twin, bit-equal to `decode` (a NaN is a NaN).
    pub decode_plain: DecodeFn,
    pub encode: Option<Encode>,
    /// The values that its weights may take.
    pub grid: Option<&'static dyn Grid>,
    pub tensor_scale: Option<&'static TensorScale>,
}

impl Block {
    /// The same row, with its encoder.
    pub const fn written(mut self, encode: Encode) -> Block {
        self.encode = Some(encode);
        self
    }

    /// The same row, under a scale of the whole matrix.
    pub const fn under(mut self, scale: &'static TensorScale) -> Block {
        self.tensor_scale = Some(scale);
        self
    }

    pub fn row_bytes(&self, cols: usize) -> usize {
        cols / self.weights * self.bytes
    }
}

impl Codec for Block {
    fn name(&self) -> &'static str {
        self.name
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn layout(&self, dims: Dims) -> Result<Vec<Part>> {
        if !dims.cols.is_multiple_of(self.weights) {
            return Err(Error::request(format!(
                "{} needs rows in multiples of {}, this weight has {}",
                self.name, self.weights, dims.cols
            )));
        }
        let bytes = (dims.cols / self.weights).checked_mul(self.bytes).and_then(|row| row.checked_mul(dims.rows));
        let bytes = bytes.ok_or_else(|| Error::input(format!("{} x {} weights overflow", dims.rows, dims.cols)))?;
        let dtype = float::dtype(self);
        let width = if dtype.is_some() { dims.cols } else { self.row_bytes(dims.cols) };
        let (dtype, shape) = (dtype.unwrap_or(Dtype::U8), vec![dims.rows, width]);
        Ok(vec![Part { name: "weight", dtype, shape, bytes }])
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let row = self.row_bytes(packed.dims.cols);
        (self.decode)(&packed.parts[0][rows.start * row..rows.end * row], out);
    }

    fn block(&self) -> Option<&Block> {
        Some(self)
    }

    fn grid(&self) -> Option<&dyn Grid> {
        self.grid
    }

    fn tensor_scale(&self) -> Option<&'static TensorScale> {
        self.tensor_scale
    }
}

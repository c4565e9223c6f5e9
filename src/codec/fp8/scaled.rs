//! E4M3 under scales of rows, of squares, of runs of columns or of the matrix. Sources: compressed-tensors
//! `compressors/naive_quantized/`, `mxfp8/`; ModelOpt `qtensor/fp8_tensor.py`.
//!
//! | part | type | shape |
//! |---|---|---|
//! | `weight` | F8_E4M3 | `[rows, cols]` |
//! | `weight_scale` | BF16 or as the model | a row each `[rows, 1]`; a square each `[rows / 128, cols / 128]`, rounded up |
//! | | of MXFP8 U8 | `[rows, cols / 32]` |
//!
//! MLX's have the same bytes (mlx `python/src/ops.cpp`, quantize):
//!
//! | part | type | shape |
//! |---|---|---|
//! | `weight` | U32 | `[rows, cols / 4]` |
//! | `scales` | U8 | `[rows, cols / 32]` |

use std::ops::Range;

use safetensors::Dtype;

use super::{BLOCK, F8_E4M3, MAX, on_device};
use crate::codec::facts::Facts;
use crate::codec::grid::{Codes, Grid, Levels, Scale};
use crate::codec::scheme::{Family, Scheme};
use crate::codec::{Codec, Part, TensorScale};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

const fn scheme(family: Family, group: Option<usize>, scales: Dtype) -> Scheme {
    Scheme { family, bits: 8, group, symmetric: true, scales }
}

/// What compressed-tensors calls the parts.
const PLAIN: Float8 = Float8 {
    name: "",
    pattern: "",
    about: "",
    scheme: scheme(Family::Float8, None, Dtype::BF16),
    codes: Dtype::F8_E4M3,
    scale_name: "weight_scale",
    tensor_scale: None,
};

const fn channel(name: &'static str, scales: Dtype) -> Float8 {
    Float8 {
        name,
        pattern: "fp8-channel",
        about: "e4m3 times a scale for each row (compressed-tensors float-quantized)",
        scheme: scheme(Family::Float8, None, scales),
        ..PLAIN
    }
}

const fn square(name: &'static str, scales: Dtype) -> Float8 {
    Float8 {
        name,
        pattern: "fp8-block",
        about: "e4m3 times a scale for each 128 x 128 weights (compressed-tensors float-quantized)",
        scheme: scheme(Family::Float8, Some(BLOCK), scales),
        ..PLAIN
    }
}

pub static CHANNEL: [Float8; 3] = [
    channel("fp8-channel", Dtype::BF16),
    channel("fp8-channel-f16", Dtype::F16),
    channel("fp8-channel-f32", Dtype::F32),
];

pub static SQUARE: [Float8; 3] =
    [square("fp8-block", Dtype::BF16), square("fp8-block-f16", Dtype::F16), square("fp8-block-f32", Dtype::F32)];

pub static TENSOR: Float8 = Float8 {
    name: "fp8-tensor",
    pattern: "fp8-tensor",
    about: "e4m3 times a scale for the matrix (compressed-tensors float-quantized)",
    scheme: scheme(Family::Float8Tensor, None, Dtype::F32),
    tensor_scale: Some(&TensorScale { shape: &[1], ..TENSOR_SCALE }),
    ..PLAIN
};

pub static MODELOPT: Float8 = Float8 {
    name: "modelopt-fp8",
    pattern: "modelopt-fp8",
    about: "e4m3 times a scale for the matrix (NVIDIA ModelOpt FP8)",
    scheme: scheme(Family::ModelOptFloat8, None, Dtype::F32),
    tensor_scale: Some(&TENSOR_SCALE),
    ..PLAIN
};

pub static MXFP8: Float8 = Float8 {
    name: "mxfp8",
    pattern: "mxfp8",
    about: "e4m3, 32 a power-of-two scale (OCP MX, compressed-tensors mxfp8-quantized)",
    scheme: scheme(Family::Mxfp8, Some(32), Dtype::U8),
    ..PLAIN
};

pub static MLX_MXFP8: Float8 = Float8 {
    name: "mlx-mxfp8",
    pattern: "mlx-mxfp8",
    about: "e4m3, 32 a power-of-two scale (MLX, mode mxfp8)",
    scheme: scheme(Family::MlxFloat, Some(32), Dtype::U8),
    codes: Dtype::U32,
    scale_name: "scales",
    ..PLAIN
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

/// E4M3 under scales; of that of the matrix the container knows.
pub struct Float8 {
    name: &'static str,
    pattern: &'static str,
    about: &'static str,
    scheme: Scheme,
    /// The type of the part of the codes.
    codes: Dtype,
    scale_name: &'static str,
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
        let mut parts = vec![Part::new("weight", self.codes, vec![dims.rows, dims.cols / (self.codes.bitsize() / 8)])?];
        if self.param_bytes() > 0 {
            let scales = self.scales(dims);
            parts.push(self.scheme.scales_part(self.scale_name, vec![scales.rows, scales.cols])?);
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
        self.scheme.group.filter(|_| self.scheme.family == Family::Float8).unwrap_or(1)
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

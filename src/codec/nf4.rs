//! Four-bit codes into a table, 64 weights a scale: NF4, the quantiles of a normal distribution, and the float of bitsandbytes. Source:
//! bitsandbytes `functional.py` (QuantState, get_4bit_type), `backends/default/ops.py`.
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `weight` | U8 | `[rows * cols / 2, 1]` | the even column in the high four bits |
//! | `weight.absmax` | F32 | `[rows * cols / 64]` | |
//! | `weight.quant_map` | F32 | `[16]` | the table |
//! | `weight.quant_state.bitsandbytes__nf4` | U8 | `[bytes]` | JSON: the shape, and what runtimes decode to |

use std::ops::Range;

use safetensors::Dtype;

use super::facts::{DeviceGrid, Facts};
use super::grid::{Codes, Grid, Levels, Scale};
use super::scheme::{Family, Scheme};
use super::{Codec, Part, float};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

pub static CODECS: &[&dyn Codec] = &[&NF4[0], &NF4[1], &NF4[2], &FP4[0], &FP4[1], &FP4[2]];

/// Weights under one scale.
pub const SPAN: usize = 64;

/// What the parts besides the codes are called.
pub const ABSMAX: &str = "weight.absmax";
pub const TABLE: &str = "weight.quant_map";

static NF4: [Coded; 3] = [normal("nf4", Dtype::BF16), normal("nf4-f16", Dtype::F16), normal("nf4-f32", Dtype::F32)];

static FP4: [Coded; 3] = [
    small_float("bnb-fp4", Dtype::BF16),
    small_float("bnb-fp4-f16", Dtype::F16),
    small_float("bnb-fp4-f32", Dtype::F32),
];

const fn normal(name: &'static str, floats: Dtype) -> Coded {
    Coded {
        name,
        pattern: "nf4",
        about: "4-bit normal floats, 64 a scale (bitsandbytes, quant_type nf4)",
        scheme: scheme(Family::Nf4, floats),
        kind: "nf4",
        state_name: "weight.quant_state.bitsandbytes__nf4",
        device: "Nf4",
        table: &NORMAL,
    }
}

const fn small_float(name: &'static str, floats: Dtype) -> Coded {
    Coded {
        name,
        pattern: "bnb-fp4",
        about: "4-bit floats, 64 a scale (bitsandbytes, quant_type fp4)",
        scheme: scheme(Family::BnbFp4, floats),
        kind: "fp4",
        state_name: "weight.quant_state.bitsandbytes__fp4",
        device: "BnbFp4",
        table: &SMALL_FLOAT,
    }
}

const fn scheme(family: Family, scales: Dtype) -> Scheme {
    Scheme { family, bits: 4, group: Some(SPAN), symmetric: true, scales }
}

#[rustfmt::skip]
const NORMAL: [f32; 16] = [
    -1.0, -0.696_192_8, -0.525_073_05, -0.394_917_5, -0.284_441_38, -0.184_773_43, -0.091_050_036, 0.0,
    0.079_580_3, 0.160_930_2, 0.246_112_3, 0.337_915_24, 0.440_709_83, 0.562_617, 0.722_956_84, 1.0,
];

/// Two bits of exponent and one of mantissa, in twelfths: a zero, then a sixteenth, then what is normal.
const SMALL_FLOAT: [f32; 16] = {
    let twelfths = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    let mut out = [0.0; 16];
    let mut i = 1;
    while i < 8 {
        (out[i], out[i + 8]) = (twelfths[i] / 12.0, -twelfths[i] / 12.0);
        i += 1;
    }
    out
};

/// Codes into one table, for all that runtimes decode them to.
pub struct Coded {
    name: &'static str,
    pattern: &'static str,
    about: &'static str,
    /// Its `scales` are what runtimes decode to.
    scheme: Scheme,
    /// `quant_type`
    pub kind: &'static str,
    /// What the part of the JSON is called.
    pub state_name: &'static str,
    device: &'static str,
    table: &'static [f32; 16],
}

/// All of them.
pub fn kinds() -> impl Iterator<Item = &'static Coded> {
    NF4.iter().chain(&FP4)
}

impl Coded {
    pub fn scheme(&self) -> &Scheme {
        &self.scheme
    }

    /// What says all that the other parts do not, to the byte as bitsandbytes writes it.
    pub fn state(&self, Dims { rows, cols }: Dims) -> Vec<u8> {
        let (kind, dtype) = (self.kind, float::torch_name(self.scheme.scales));
        let text = format!(
            r#"{{"quant_type": "{kind}", "blocksize": {SPAN}, "dtype": "{dtype}", "shape": [{rows}, {cols}]}}"#
        );
        text.into_bytes()
    }

    pub fn table(&self) -> impl Iterator<Item = f32> {
        self.table.iter().copied()
    }

    fn error(&self, w: &[f32; SPAN], importance: &[f32; SPAN], scale: f32) -> f32 {
        let inverse = scale.recip();
        let mut sums = [0.0; 8];
        for (w, importance) in w.as_chunks::<8>().0.iter().zip(importance.as_chunks::<8>().0) {
            let mut least = [f32::INFINITY; 8];
            for level in self.table {
                for lane in 0..8 {
                    let error = (w[lane] * inverse - level).abs();
                    least[lane] = if error < least[lane] { error } else { least[lane] };
                }
            }
            for lane in 0..8 {
                sums[lane] += importance[lane] * least[lane] * least[lane];
            }
        }
        sums.iter().sum::<f32>() * scale * scale
    }
}

impl Codec for Coded {
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
        if !dims.cols.is_multiple_of(SPAN) {
            let message = format!("{} needs rows in multiples of {SPAN}, this weight has {}", self.name, dims.cols);
            return Err(Error::request(message));
        }
        let overflow = || Error::input(format!("{} x {} weights overflow", dims.rows, dims.cols));
        let weights = dims.rows.checked_mul(dims.cols).ok_or_else(overflow)?;
        Ok(vec![
            Part::new("weight", Dtype::U8, vec![weights / 2, 1])?,
            Part::new(ABSMAX, Dtype::F32, vec![weights / SPAN])?,
            Part::new(TABLE, Dtype::F32, vec![self.table.len()])?,
            Part::new(self.state_name, Dtype::U8, vec![self.state(dims).len()])?,
        ])
    }

    fn multiples(&self) -> Dims {
        Dims::new(1, SPAN)
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let cols = packed.dims.cols;
        let scales = packed.parts[1][rows.start * cols / SPAN * 4..rows.end * cols / SPAN * 4].as_chunks::<4>().0;
        let bytes = packed.parts[0][rows.start * cols / 2..rows.end * cols / 2].as_chunks::<{ SPAN / 2 }>().0;
        for ((out, bytes), scale) in out.as_chunks_mut::<SPAN>().0.iter_mut().zip(bytes).zip(scales) {
            let scale = f32::from_le_bytes(*scale);
            for (out, byte) in out.as_chunks_mut::<2>().0.iter_mut().zip(bytes) {
                *out = [byte >> 4, byte & 15].map(|code| self.table[usize::from(code)] * scale);
            }
        }
    }

    fn grid(&self) -> Option<&dyn Grid> {
        Some(self)
    }

    fn scheme(&self) -> Option<&Scheme> {
        Some(&self.scheme)
    }

    fn unpack(&self, packed: &Packed<'_>) -> Option<Codes> {
        let codes = packed.parts[0].iter().flat_map(|byte| [byte >> 4, byte & 15]).collect();
        Some(Codes { params: packed.parts[1].to_vec(), codes })
    }
}

impl Grid for Coded {
    fn group(&self, _: usize) -> usize {
        SPAN
    }

    fn span(&self, _: usize) -> usize {
        SPAN
    }

    fn levels(&self) -> Levels {
        Levels::Table(self.table)
    }

    fn param_bytes(&self) -> usize {
        4
    }

    fn facts(&self) -> Option<Facts> {
        let grid = DeviceGrid {
            file: "coded",
            name: self.device,
            arguments: Vec::new(),
            numbers: Vec::new(),
            levels: self.levels(),
            block: false,
        };
        Some(Facts { group: Some(SPAN), ..grid.facts() })
    }

    /// Chooses the scale of every span by its weighted squared error.
    fn fit(&self, w: &[f32], cols: usize, importance: Option<&[f32]>, params: &mut [u8]) {
        let per_row = (cols / SPAN).max(1);
        for (n, (w, stored)) in w.as_chunks::<SPAN>().0.iter().zip(params.as_chunks_mut::<4>().0).enumerate() {
            let importance = importance.and_then(|i| i[n % per_row * SPAN..].first_chunk::<SPAN>());
            let importance = importance.filter(|i| i.iter().any(|x| *x > 0.0)).unwrap_or(&[1.0; SPAN]);
            let plain = plain(w);
            let mut best = (self.error(w, importance, plain), plain);
            for scale in SHARES.map(|share| plain * share) {
                let error = self.error(w, importance, scale);
                if error < best.0 {
                    best = (error, scale);
                }
            }
            *stored = best.1.to_le_bytes();
        }
    }

    fn fit_largest(&self, w: &[f32], _: usize, params: &mut [u8]) {
        let spans = w.as_chunks::<SPAN>().0.iter();
        spans.zip(params.as_chunks_mut::<4>().0).for_each(|(w, stored)| *stored = plain(w).to_le_bytes());
    }

    fn scales(&self, params: &[u8], out: &mut [Scale]) {
        out[0] = Scale { step: f32::from_le_bytes([params[0], params[1], params[2], params[3]]), ..Scale::default() };
    }

    fn adopt(&self, scales: &[Scale], params: &mut [u8]) -> bool {
        params.copy_from_slice(&scales[0].step.to_le_bytes());
        true
    }

    fn pack(&self, dims: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>> {
        let bytes = codes.as_chunks::<2>().0.iter().map(|[even, odd]| even << 4 | odd).collect();
        let table = self.table().flat_map(f32::to_le_bytes).collect();
        vec![bytes, params.to_vec(), table, self.state(dims)]
    }
}

/// Shares of the largest weight that may make a better scale than itself.
const SHARES: [f32; 8] = [0.97, 0.94, 0.91, 0.88, 0.85, 0.81, 0.77, 0.73];

/// What bitsandbytes takes. Of zeros: anything that is not zero.
fn plain(w: &[f32; SPAN]) -> f32 {
    let largest = w.iter().fold(0f32, |max, w| w.abs().max(max));
    if largest == 0.0 { 1.0 } else { largest }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_search_finds_what_the_largest_weight_hides() {
        let mut w = [0.0; SPAN];
        (w[0], w[1], w[2]) = (1.0, NORMAL[14] * 0.91, NORMAL[13] * 0.91);
        let fitted = |importance: Option<&[f32]>| {
            let mut stored = [0; 4];
            NF4[0].fit(&w, SPAN, importance, &mut stored);
            f32::from_le_bytes(stored)
        };
        assert_eq!(fitted(None), 0.97);
        let mut importance = [1.0; SPAN];
        importance[0] = 0.0;
        assert_eq!(fitted(Some(&importance)), 0.91);
        assert_eq!(fitted(Some(&[0.0; SPAN])), 0.97);
    }

    #[test]
    fn scales_are_numbers_whatever_the_weights() {
        for size in [0.0, 1e-44, 1e-30, 1.0, 3e38] {
            let mut w = [0.0; SPAN];
            w[5] = -size;
            let mut stored = [0; 4];
            NF4[0].fit(&w, SPAN, Some(&[0.0; SPAN]), &mut stored);
            let scale = f32::from_le_bytes(stored);
            assert!(scale.is_finite() && scale > 0.0, "{size:e}: {scale}");
        }
    }

    #[test]
    fn the_state_is_that_of_bitsandbytes() {
        let text = r#"{"quant_type": "nf4", "blocksize": 64, "dtype": "float16", "shape": [7, 128]}"#;
        assert_eq!(NF4[1].state(Dims::new(7, 128)), text.as_bytes());
        assert_eq!(SMALL_FLOAT[9], -0.0625 / 12.0);
    }
}

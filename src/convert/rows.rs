//! Rows of weights on their way: decoded, moved, folded, scaled, checked and encoded.

use std::borrow::Cow;
use std::ops::Range;

use super::Planned;
use super::fold::Folded;
use super::job::Target;
use super::plan;
use crate::arch::RowOrder;
use crate::codec::Codec;
use crate::container::{Checkpoint, Weight};
use crate::device::Worker;
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

/// Rows of the output before they are quantized.
pub(super) fn decoded<'a>(
    target: &Target<'_>,
    weight: &Weight<'_>,
    factor: Factor,
    rows: Range<usize>,
    out: &'a mut Vec<f32>,
) -> Result<&'a [f32]> {
    out.resize(rows.len() * weight.packed.dims.cols, 0.0);
    matrix_rows(weight, target.planned, target.folded, factor, rows, out)?;
    Ok(out)
}

/// What a weight's decoded values are multiplied with, and divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Factor {
    pub by: f32,
    pub over: f32,
}

impl Factor {
    pub const ONE: Factor = Factor { by: 1.0, over: 1.0 };

    /// To the values of the source. The scale of a GGUF weight is a tensor too, goes over as such, and multiplies what is written.
    pub fn source(source: &dyn Checkpoint, planned: &Planned, weight: &Weight<'_>) -> Factor {
        let apart = || plan::own_scale(source, &source.tensors()[planned.source]).is_some();
        Factor { by: if weight.scale == 1.0 || apart() { 1.0 } else { weight.scale }, over: 1.0 }
    }
}

/// Rows of a matrix as the output's grid sees them.
pub(super) fn matrix_rows(
    weight: &Weight<'_>,
    planned: &Planned,
    folded: Option<&Folded>,
    factor: Factor,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let (cols, transform) = (weight.packed.dims.cols, planned.transform);
    if transform.rows == RowOrder::Same {
        weight.codec.decode(&weight.packed, rows.clone(), out);
    } else {
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(cols)) {
            let from = transform.source_row(row);
            weight.codec.decode(&weight.packed, from..from + 1, out);
        }
    }
    check_finite(out, cols, rows.start)?;
    if factor.by != 1.0 {
        out.iter_mut().for_each(|w| *w *= factor.by);
    }
    if transform.add != 0.0 {
        out.iter_mut().for_each(|w| *w += transform.add);
    }
    if let Some(folded) = folded {
        folded.matrix(out, cols, rows.start);
    }
    if factor.over != 1.0 {
        out.iter_mut().for_each(|w| *w /= factor.over);
    }
    Ok(())
}

/// Rows of the output: of a matrix from their places in the source, of a vector its elements.
pub(super) fn moved(
    target: &Target<'_>,
    weight: &Weight<'_>,
    factor: Factor,
    rows: Range<usize>,
    source: &[f32],
    out: &mut Vec<f32>,
) -> Result<()> {
    out.resize(source.len(), 0.0);
    let transform = target.planned.transform;
    if target.t.shape.len() > 1 {
        return matrix_rows(weight, target.planned, target.folded, factor, rows, out);
    }
    // Biases follow the rows of their weights.
    out.iter_mut().enumerate().for_each(|(i, out)| *out = source[transform.source_row(i)] + transform.add);
    if let Some(folded) = target.folded {
        folded.vector(out);
    }
    Ok(())
}

pub(super) fn encode(
    worker: Worker<'_>,
    planned: &Planned,
    w: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    let codec = planned.spec.codec;
    let encode = codec.block().and_then(|b| b.encode);
    let encode = encode.ok_or_else(|| Error::unsupported(format!("{} cannot be written", codec.name())))?;
    worker.encode(codec, encode, w, cols, importance, out)
}

/// Rows of a block format as they will be read.
pub(super) fn decoded_rows(codec: &dyn Codec, encoded: &[u8], cols: usize) -> Vec<f32> {
    let row = codec.bytes(Dims::new(1, cols)).unwrap_or(0).max(1);
    let dims = Dims::new(encoded.len() / row, cols);
    let mut out = vec![0.0; dims.len()];
    codec.decode(&Packed::one(dims, Cow::Borrowed(encoded)), 0..dims.rows, &mut out);
    out
}

/// Whether some weight is larger than what every format holds.
pub(super) fn has_large(w: &[f32]) -> bool {
    w.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most)) > HELD.to_bits()
}

/// What every format holds.
const HELD: f32 = 65504.0;

/// Names the first weight that is too large for the format it went into: `stored` has the values that will be read.
pub(super) fn check_held(
    codec: &dyn Codec,
    w: &[f32],
    cols: usize,
    first_row: usize,
    stored: impl FnOnce() -> Vec<f32>,
) -> Result<()> {
    if !has_large(w) {
        return Ok(());
    }
    // A scale that is too large spoils its neighbours; the largest of them is to blame.
    let lost = |(w, x): &(&f32, f32)| !x.is_finite() || (w.abs() > HELD && (*w - x).abs() > w.abs() / 2.0);
    let Some(at) = w.iter().zip(stored()).position(|pair| lost(&(pair.0, pair.1))) else { return Ok(()) };
    let row = at / cols.max(1);
    let of_row = &w[row * cols..((row + 1) * cols).min(w.len())];
    let largest = (0..of_row.len()).max_by(|a, b| of_row[*a].abs().total_cmp(&of_row[*b].abs())).unwrap_or(0);
    let (row, weight) = (first_row + row, of_row[largest]);
    let message = format!("the weight at row {row}, column {largest} is {weight:e}, too large for {}", codec.name());
    Err(Error::request(message)
        .help("repair that tensor, or use a target that keeps the model's own type, such as bf16 or w4a16"))
}

/// Names the first weight that is not a number: a damaged download or an overflowed training run.
pub(super) fn check_finite(w: &[f32], cols: usize, first_row: usize) -> Result<()> {
    // The exponent of the largest magnitude tells for all of them, without a branch a weight.
    if w.iter().fold(0, |max, x| (x.to_bits() & 0x7fff_ffff).max(max)) < f32::INFINITY.to_bits() {
        return Ok(());
    }
    let at = w.iter().position(|x| !x.is_finite()).unwrap_or(0);
    let (row, col) = (first_row + at / cols.max(1), at % cols.max(1));
    Err(Error::input(format!("the weight at row {row}, column {col} is {}", w[at]))
        .help("the checkpoint is damaged or was trained to overflow: download it again or repair that tensor"))
}

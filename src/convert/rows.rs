//! Rows of weights on their way: decoded, moved, folded, scaled, checked and encoded.

use std::ops::Range;

use half::f16;

use super::Planned;
use super::fold::Folded;
use super::job::Target;
use super::plan;
use crate::arch::RowOrder;
use crate::codec::float;
use crate::container::{Checkpoint, Weight};
use crate::device::Worker;
use crate::error::{Error, Result};

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

/// Names the first weight that is too large for half precision: it would become infinite.
pub(super) fn check_halves(planned: &Planned, w: &[f32], cols: usize, first_row: usize) -> Result<()> {
    let half = float::dtype(planned.spec.codec) == Some(safetensors::Dtype::F16);
    match w.iter().position(|x| half && f16::from_f32(*x).is_infinite()) {
        None => Ok(()),
        Some(at) => {
            let (row, col) = (first_row + at / cols.max(1), at % cols.max(1));
            Err(Error::request(format!(
                "the weight at row {row}, column {col} is {:e}, too large for half precision",
                w[at]
            ))
            .help("use a target that keeps the model's own type, such as w4a16"))
        }
    }
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

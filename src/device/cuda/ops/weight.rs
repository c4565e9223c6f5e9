//! Stored weights on their way to a product.

use std::borrow::Cow;
use std::ops::Range;

use rayon::prelude::*;
use safetensors::Dtype;

use super::{Matrix, add_bias, linear, scale, widen};
use crate::codec::float;
use crate::container::Weight;
use crate::device::cuda::runner::{Buffer, Runner, View};
use crate::error::Result;
use crate::tensor::{Dims, Packed};

/// A weight whose rows come to a device as they are needed: packed, and decoded there.
pub struct Streamed<'r, 'w> {
    runner: &'r dyn Runner,
    weight: &'w Weight<'w>,
    /// Of a format whose rows cannot be cut out, all of them.
    whole: Option<Matrix<'r>>,
}

/// The most that decoded rows take. Of less memory a smaller part is enough.
const PART: usize = 64 << 20;

/// Rows that the CPU decodes at a time.
const TOGETHER: usize = 32;

/// Bytes that decoded rows may take where `room` are free.
pub fn part(room: usize) -> usize {
    PART.min(room / 16)
}

/// Rows that products are placed at multiples of, where there are as many: libraries are faster where addresses are even.
const EVEN: usize = 64;

/// Rows of `cols` columns that are decoded at a time.
pub fn rows_at_once(part: usize, cols: usize) -> usize {
    match part / 4 / cols.max(1) {
        rows if rows > EVEN => rows - rows % EVEN,
        rows => rows.max(1),
    }
}

impl<'r, 'w> Streamed<'r, 'w> {
    pub fn new(runner: &'r dyn Runner, weight: &'w Weight<'w>) -> Result<Streamed<'r, 'w>> {
        let cut = weight.codec.block().is_some() || weight.codec.facts().is_none();
        let whole = (!cut).then(|| Matrix::upload(runner, weight.codec, &weight.packed)).transpose()?;
        Ok(Streamed { runner, weight, whole })
    }

    /// Bytes that it takes on a device while `rows` of it are decoded, these aside.
    pub fn bytes(weight: &Weight<'_>, rows: usize) -> usize {
        match weight.codec.block() {
            Some(block) => rows * (weight.packed.dims.cols / block.weights * block.bytes),
            None if weight.codec.facts().is_none() => 0,
            None => weight.packed.parts.iter().map(|p| p.len()).sum(),
        }
    }

    /// Rows as numbers, `[rows][cols]`.
    pub fn rows(&self, rows: Range<usize>) -> Result<Buffer<'r>> {
        let out = match &self.whole {
            Some(matrix) => matrix.decode::<f32>(rows)?,
            None => self.cut(rows)?,
        };
        if self.weight.scale != 1.0 {
            scale(&out, self.weight.scale)?;
        }
        Ok(out)
    }

    fn cut(&self, rows: Range<usize>) -> Result<Buffer<'r>> {
        let Weight { codec, packed, .. } = self.weight;
        let dims = Dims::new(rows.len(), packed.dims.cols);
        if let Some(block) = codec.block() {
            let row = dims.cols / block.weights * block.bytes;
            let stored = &packed.parts[0][rows.start * row..rows.end * row];
            if codec.facts().is_some() {
                let part = Packed::one(dims, Cow::Borrowed(stored));
                return Matrix::upload(self.runner, *codec, &part)?.decode::<f32>(0..dims.rows);
            }
            match float::dtype(*codec) {
                Some(Dtype::F32) => return Buffer::of(self.runner, stored),
                Some(dtype @ (Dtype::F16 | Dtype::BF16)) => {
                    let (x, out) = (Buffer::of(self.runner, stored)?, Buffer::singles(self.runner, dims.len())?);
                    widen(dtype, &x, &out)?;
                    return Ok(out);
                }
                _ => {}
            }
        }
        // A format without kernels.
        let mut wide = vec![0.0; dims.len()];
        let parts =
            wide.par_chunks_mut((TOGETHER * dims.cols).max(1)).zip(rows.clone().into_par_iter().step_by(TOGETHER));
        parts.for_each(|(out, from)| codec.decode(packed, from..rows.end.min(from + TOGETHER), out));
        Buffer::of(self.runner, &wide)
    }
}

/// [`cpu::linear`](crate::device::cpu::linear), in the device's precision: `x W^T + bias`, `[tokens][rows]`, for these rows of `weight`, of which decoded ones take
/// `part` bytes at a time.
pub fn product<'r>(
    weight: &Weight<'_>,
    rows: Range<usize>,
    bias: Option<&[f32]>,
    x: &View<'r>,
    part: usize,
) -> Result<Buffer<'r>> {
    let (n, cols, runner) = (rows.len(), weight.packed.dims.cols, x.runner());
    let tokens = x.singles() / cols.max(1);
    let out = Buffer::singles(runner, tokens * n)?;
    let (streamed, step) = (Streamed::new(runner, weight)?, rows_at_once(part, cols));
    for from in (0..n).step_by(step) {
        let until = n.min(from + step);
        let w = streamed.rows(rows.start + from..rows.start + until)?;
        linear(x, &w, [tokens, until - from, cols], &out.part(from * 4..out.bytes()), n)?;
    }
    if let Some(bias) = bias {
        add_bias(&out, &*Buffer::of(runner, bias)?)?;
    }
    Ok(out)
}

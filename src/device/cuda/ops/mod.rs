//! The CPU's operations, on a device: the same arguments, the same answers. What each promises against the CPU is in `selftest`.

pub mod codes;
mod layer;
mod scores;
mod sums;
pub mod weight;

use std::ops::Range;

use safetensors::Dtype;

use super::runner::{Arg, Buffer, Factor, Product, Runner, Shape, Stored, View};
use super::source::Unit;
use crate::codec::{Codec, Facts};
use crate::device::Precision;
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};
pub use layer::{
    Heads, add, add_bias, attention, dots, fill, gate, is_finite, pick, rms_norm, rope, scale, scatter, softcap, widen,
};
pub use scores::Scores;
pub use sums::{Gram, Moments, Totals};

/// How numbers lie on a device: f32 or bf16.
pub trait Element: bytemuck::Pod {
    /// As the names of kernels end.
    const NAME: &'static str;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
}

impl Element for half::bf16 {
    const NAME: &'static str = "bf16";
}

fn int(n: usize) -> Result<i32> {
    i32::try_from(n).map_err(|_| Error::limits(format!("{n} is more than one launch counts")))
}

fn unsupported(codec: &dyn Codec) -> Error {
    Error::unsupported(format!("{} has no kernels", codec.name()))
}

/// The type of stored scales, as `common.cuh` counts them.
fn scales_of(facts: &Facts) -> i32 {
    match facts.scales {
        None | Some(Dtype::F32) => 0,
        Some(Dtype::F16) => 1,
        Some(Dtype::U8) => 3,
        Some(_) => 2,
    }
}

fn stored(facts: &Facts, dims: Dims) -> Result<Stored> {
    let scales = scales_of(facts);
    let group = int(facts.group.unwrap_or(dims.cols))?;
    Ok(Stored { rows: dims.rows as i64, cols: int(dims.cols)?, group, tall: int(facts.tall)?, scales })
}

/// Threads of a row of blocks, and columns that each decodes.
const ACROSS: u32 = 128;
const RUN: u64 = 4;

/// A stored matrix in a device's memory.
pub struct Matrix<'r> {
    runner: &'r dyn Runner,
    unit: Unit,
    parts: Vec<Buffer<'r>>,
    stored: Stored,
}

impl<'r> Matrix<'r> {
    /// Errors: a format without kernels.
    pub fn upload(runner: &'r dyn Runner, codec: &dyn Codec, packed: &Packed<'_>) -> Result<Matrix<'r>> {
        let facts = codec.facts().ok_or_else(|| unsupported(codec))?;
        let unit = Unit::of_grid("decode", &facts.grid)?;
        let parts = packed.parts.iter().take(4).map(|p| Buffer::of(runner, p)).collect::<Result<_>>()?;
        Ok(Matrix { runner, unit, parts, stored: stored(&facts, packed.dims)? })
    }

    /// Rows as numbers, `[rows][cols]`.
    pub fn decode<T: Element>(&self, rows: Range<usize>) -> Result<Buffer<'r>> {
        let cols = self.stored.cols as usize;
        let out = Buffer::new(self.runner, rows.len() * cols * size_of::<T>())?;
        self.decode_into::<T>(rows, &out)?;
        Ok(out)
    }

    /// The same into memory that is there.
    pub fn decode_into<T: Element>(&self, rows: Range<usize>, out: &Buffer<'r>) -> Result<()> {
        let (cols, count) = (self.stored.cols as usize, rows.len());
        assert!(rows.end as i64 <= self.stored.rows && out.bytes() >= count * cols * size_of::<T>());
        if count * cols == 0 {
            return Ok(());
        }
        let mut addresses = [0; 4];
        addresses.iter_mut().zip(&self.parts).for_each(|(a, p)| *a = p.address());
        let across = (cols as u64).div_ceil(u64::from(ACROSS) * RUN);
        let shape = Shape::new([across, (count as u64).min(4096)], [ACROSS, 1])?;
        let args = [
            Arg::Parts(addresses),
            Arg::Stored(self.stored),
            Arg::Long(rows.start as i64),
            Arg::Long(count as i64),
            out.arg(),
        ];
        // SAFETY: the parts have the sizes that the codec's layout gives for these dimensions; `out` has room by the assert.
        unsafe { self.runner.launch(&self.unit, &format!("decode_{}", T::NAME), shape, &args) }
    }
}

/// [`Codec::decode`].
pub fn decode<T: Element>(
    runner: &dyn Runner,
    codec: &dyn Codec,
    packed: &Packed<'_>,
    rows: Range<usize>,
) -> Result<Vec<T>> {
    let count = rows.len() * packed.dims.cols;
    Matrix::upload(runner, codec, packed)?.decode::<T>(rows)?.read(count)
}

/// A block format's encoder: whole rows of `cols` finite weights to bytes.
///
/// Errors: a format without one.
pub fn encode(
    runner: &dyn Runner,
    codec: &dyn Codec,
    w: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
) -> Result<Vec<u8>> {
    let block = codec.block().filter(|b| b.encode.is_some()).ok_or_else(|| unsupported(codec))?;
    let facts = codec.facts().filter(|f| f.grid.block).ok_or_else(|| unsupported(codec))?;
    let unit = Unit::of_grid("encode", &facts.grid)?;
    let (rows, blocks) = (w.len().checked_div(cols).unwrap_or(0), w.len() / block.weights);
    assert!(rows * cols == w.len() && cols.is_multiple_of(block.weights) && importance.is_none_or(|i| i.len() == cols));
    if blocks == 0 {
        return Ok(Vec::new());
    }
    let w = Buffer::of(runner, w)?;
    let importance = importance.map(|i| Buffer::of(runner, i)).transpose()?;
    let means = Buffer::new(runner, rows * 4)?;
    let out = Buffer::new(runner, blocks * block.bytes)?;
    let cols = Arg::Int(int(cols)?);
    if importance.is_some() {
        let args = [w.arg(), Arg::Long(rows as i64), cols, means.arg()];
        // SAFETY: `w` has `rows` rows, `means` a number for each.
        unsafe { runner.launch(&unit, "row_squares", Shape::new([(rows as u64).div_ceil(32), 1], [32, 1])?, &args)? };
    }
    let given = importance.as_ref().map_or(Arg::Address(0), |i| i.arg());
    let args = [w.arg(), Arg::Long(blocks as i64), cols, given, means.arg(), out.arg()];
    let shape = Shape::new([(blocks as u64).div_ceil(64), 1], [64, 1])?;
    // SAFETY: `w` has `blocks` blocks of weights, in rows of `cols`; `out` has room for as many.
    unsafe { runner.launch(&unit, "encode", shape, &args)? };
    out.read(blocks * block.bytes)
}

/// Side of the squares that a block of threads multiplies, and threads along it.
const TILE: usize = 64;
const SIDE: u32 = 16;

fn tiles(rows: usize, cols: usize) -> Result<Shape> {
    Shape::new([cols.div_ceil(TILE) as u64, rows.div_ceil(TILE) as u64], [SIDE, SIDE])
}

/// `out[t][n] = sum over k of x[t][k] w[n][k]`, in the precision that the device multiplies in. Sizes are tokens, rows and depth; from
/// one row of `out` to the next it is `stride` values.
pub fn linear(x: &View<'_>, w: &View<'_>, sizes: [usize; 3], out: &View<'_>, stride: usize) -> Result<()> {
    let [tokens, rows, depth] = sizes;
    if x.runner().precision() == Precision::Exact || tokens * rows * depth == 0 {
        return linear_exact::<f32>(x, w, sizes, out, stride);
    }
    fits::<f32>(x, w, sizes, out, stride);
    // Libraries that count in 32 bits may do so with elements too.
    let step = (i32::MAX as usize / stride.max(depth)).max(1);
    for from in (0..tokens).step_by(step) {
        let at = |of: &View<'_>, row: usize| of.address() + (from * row * size_of::<f32>()) as u64;
        // What are rows here are columns to BLAS: out^T = w x^T.
        let product = Product {
            m: rows,
            n: step.min(tokens - from),
            k: depth,
            a: Factor { at: w.address(), stride: depth, transposed: true },
            b: Factor { at: at(x, depth), stride: depth, transposed: false },
            c: at(out, stride),
            stride,
            precision: x.runner().precision(),
        };
        // SAFETY: the buffers have the sizes.
        unsafe { x.runner().multiply(&product)? };
    }
    Ok(())
}

fn fits<T>(x: &View<'_>, w: &View<'_>, [tokens, rows, depth]: [usize; 3], out: &View<'_>, stride: usize) {
    assert!(x.singles() >= tokens * depth && w.bytes() >= rows * depth * size_of::<T>());
    assert!(stride >= rows && out.singles() >= (tokens - 1) * stride + rows);
}

/// The same by a kernel, in the order of the CPU's sums.
pub fn linear_exact<T: Element>(
    x: &View<'_>,
    w: &View<'_>,
    sizes: [usize; 3],
    out: &View<'_>,
    stride: usize,
) -> Result<()> {
    let [tokens, rows, depth] = sizes;
    if tokens * rows == 0 {
        return Ok(());
    }
    fits::<T>(x, w, sizes, out, stride);
    let [t, n, k, stride] = [int(tokens)?, int(rows)?, int(depth)?, int(stride)?].map(Arg::Int);
    let (kernel, args) = (format!("linear_{}", T::NAME), [x.arg(), w.arg(), t, n, k, stride, out.arg()]);
    // SAFETY: the buffers have the sizes.
    unsafe { x.runner().launch(&Unit::of("product")?, &kernel, tiles(tokens, rows)?, &args) }
}

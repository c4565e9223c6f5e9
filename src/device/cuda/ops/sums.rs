//! Statistics of activations, kept on a device from one batch to the next.

use super::{Element, fill, int, tiles};
use crate::device::Precision;
use crate::device::cpu::GRAM_ROWS;
use crate::device::cuda::runner::{Arg, Buffer, Factor, Product, Runner, Shape, View};
use crate::device::cuda::source::Unit;
use crate::error::{Error, Result};

/// Columns whose inner products a library computes at a time.
const STRIP: usize = 512;

/// Means that are read at a time.
const PIECE: usize = 16 << 20;

/// [`cpu::Gram`](crate::device::cpu::Gram).
pub struct Gram<'r> {
    upper: Buffer<'r>,
    columns: usize,
}

impl<'r> Gram<'r> {
    pub fn new(runner: &'r dyn Runner, columns: usize) -> Result<Gram<'r>> {
        let bytes = columns.checked_mul(columns + 1).and_then(|n| n.checked_mul(4));
        let bytes = bytes.ok_or_else(|| Error::limits(format!("a Gram matrix of {columns} columns is too large")))?;
        let upper = Buffer::new(runner, bytes)?;
        fill(&upper, 0.0)?;
        Ok(Gram { upper, columns })
    }

    /// Bytes that adding takes, and reading means, beside the matrix, for a time.
    pub fn scratch(runner: &dyn Runner, columns: usize) -> usize {
        let strip = STRIP.min(columns);
        let adding = if runner.precision() == Precision::Exact { 0 } else { (columns + GRAM_ROWS) * strip * 4 };
        adding.max(PIECE.min(columns * (columns + 1) / 2) * 4)
    }

    /// Adds rows `[rows][columns]`, with a weight each or without, in the precision that the device multiplies in.
    pub fn add(&self, x: &View<'_>, rows: usize, weights: Option<&View<'_>>) -> Result<()> {
        let (runner, columns) = (x.runner(), self.columns);
        if runner.precision() == Precision::Exact || rows * columns == 0 {
            return self.add_exact::<f32>(x, rows, weights);
        }
        assert!(x.singles() >= rows * columns && weights.is_none_or(|w| w.singles() >= rows));
        let strip = STRIP.min(columns);
        let sums = Buffer::singles(runner, strip * columns)?;
        let weighted = weights.map(|_| Buffer::singles(runner, GRAM_ROWS.min(rows) * strip)).transpose()?;
        for row in (0..rows).step_by(GRAM_ROWS) {
            let k = GRAM_ROWS.min(rows - row);
            for from in (0..columns).step_by(strip) {
                // This strip's columns with themselves and all to their right. Rows of `x` are columns to BLAS.
                let (n, m) = (strip.min(columns - from), columns - from);
                let here = x.address() + ((row * columns + from) * 4) as u64;
                let a = Factor { at: here, stride: columns, transposed: false };
                let mut b = Factor { transposed: true, ..a };
                let [from, count, all] = [int(from)?, int(n)?, int(columns)?].map(Arg::Int);
                if let (Some(weights), Some(to)) = (weights, &weighted) {
                    b = Factor { at: to.address(), stride: n, transposed: true };
                    let weights = weights.rows(row..row + k, 1).arg();
                    let args = [Arg::Address(here), weights, Arg::Int(int(k)?), count, all, to.arg()];
                    let shape = Shape::each((k * n) as u64)?;
                    // SAFETY: `x` and `weights` have `k` rows from `row` on, `to` as many of `n` columns.
                    unsafe { runner.launch(&Unit::of("gram")?, "weigh_strip", shape, &args)? };
                }
                let product = Product { m, n, k, a, b, c: sums.address(), stride: m, precision: runner.precision() };
                // SAFETY: `x` has the rows and columns; `sums` has room for a strip of all columns.
                unsafe { runner.multiply(&product)? };
                let args = [sums.arg(), from, count, all, self.upper.arg()];
                let shape = Shape::each((n * m) as u64)?;
                // SAFETY: `sums` has `n` rows of `m`; `upper` is the triangle of `columns`.
                unsafe { runner.launch(&Unit::of("gram")?, "add_strip", shape, &args)? };
            }
        }
        Ok(())
    }

    /// The same by a kernel, in the order of the CPU's sums.
    pub fn add_exact<T: Element>(&self, x: &View<'_>, rows: usize, weights: Option<&View<'_>>) -> Result<()> {
        let row = self.columns * size_of::<T>();
        assert!(x.bytes() >= rows * row && weights.is_none_or(|w| w.singles() >= rows));
        let kernel = format!("gram_{}", T::NAME);
        for from in (0..rows).step_by(GRAM_ROWS) {
            let until = rows.min(from + GRAM_ROWS);
            let x = x.part(from * row..until * row);
            let weights = weights.map_or(Arg::Address(0), |w| w.rows(from..until, 1).arg());
            let args = [x.arg(), weights, Arg::Int(int(until - from)?), Arg::Int(int(self.columns)?), self.upper.arg()];
            let shape = tiles(self.columns, self.columns)?;
            // SAFETY: `x` and `weights` have the rows, by the asserts; `upper` is the triangle of `columns`.
            unsafe { x.runner().launch(&Unit::of("gram")?, &kernel, shape, &args)? };
        }
        Ok(())
    }

    /// The upper triangle, row after row.
    pub fn upper(&self) -> Result<Vec<f64>> {
        self.upper.read(self.columns * (self.columns + 1) / 2)
    }

    /// The same over `count`.
    pub fn means(&self, count: f64) -> Result<Vec<f32>> {
        let runner = self.upper.runner();
        let mut all = vec![0.0f32; self.columns * (self.columns + 1) / 2];
        let out = Buffer::singles(runner, PIECE.min(all.len()))?;
        for (i, part) in all.chunks_mut(PIECE).enumerate().filter(|_| count > 0.0) {
            let sums = self.upper.part(i * PIECE * 8..(i * PIECE + part.len()) * 8);
            let args = [sums.arg(), Arg::Long(part.len() as i64), Arg::Double(count), out.arg()];
            // SAFETY: there are as many sums, and places for their means.
            unsafe { runner.launch(&Unit::of("gram")?, "means", Shape::each(part.len() as u64)?, &args)? };
            out.read_into(part)?;
        }
        Ok(all)
    }
}

/// Sums of squares and of values, and the largest magnitude, of each column of `[rows][columns]`. Weights multiply the sums.
pub struct Moments<'r> {
    squares: Buffer<'r>,
    sums: Buffer<'r>,
    most: Buffer<'r>,
    columns: usize,
}

/// [`Moments`] on the host.
pub struct Totals {
    pub squares: Vec<f64>,
    pub sums: Vec<f64>,
    pub most: Vec<f32>,
}

/// Rows that one share of the sums has at least, and shares at the most.
const SHARE: usize = 64;
const SHARES: usize = 64;

impl<'r> Moments<'r> {
    pub fn new(runner: &'r dyn Runner, columns: usize) -> Result<Moments<'r>> {
        let wide = columns * 8;
        let [squares, sums, most] = [wide, wide, wide / 2].map(|bytes| Buffer::zeros(runner, bytes));
        let [squares, sums, most] = [squares?, sums?, most?];
        Ok(Moments { squares, sums, most, columns })
    }

    pub fn add<T: Element>(&self, x: &View<'_>, rows: usize, weights: Option<&View<'_>>) -> Result<()> {
        let (runner, columns) = (x.runner(), self.columns);
        assert!(x.bytes() >= rows * columns * size_of::<T>() && weights.is_none_or(|w| w.singles() >= rows));
        let shares = rows.div_ceil(SHARE).clamp(1, SHARES);
        let wide = shares * columns * 8;
        let parts = [Buffer::new(runner, wide)?, Buffer::new(runner, wide)?, Buffer::new(runner, wide / 2)?];
        let [squares, sums, most] = parts.each_ref().map(|part| part.arg());
        let unit = Unit::of("moments")?;
        let across = Arg::Int(int(columns)?);
        let blocks = (columns as u64).div_ceil(256).max(1);
        let given = weights.map_or(Arg::Address(0), |w| w.arg());
        let args = [x.arg(), given, Arg::Long(rows as i64), across, squares, sums, most];
        let shape = Shape::new([blocks, shares as u64], [256, 1])?;
        // SAFETY: `x` has `rows` rows, `weights` as many values, the others `shares` rows.
        unsafe { runner.launch(&unit, &format!("moments_{}", T::NAME), shape, &args)? };
        let [all_squares, all_sums, all_most] = [self.squares.arg(), self.sums.arg(), self.most.arg()];
        let args = [Arg::Int(int(shares)?), across, squares, sums, most, all_squares, all_sums, all_most];
        // SAFETY: they have `shares` rows, the totals one.
        unsafe { runner.launch(&unit, "fold_moments", Shape::new([blocks, 1], [256, 1])?, &args) }
    }

    pub fn totals(&self) -> Result<Totals> {
        let n = self.columns;
        Ok(Totals { squares: self.squares.read(n)?, sums: self.sums.read(n)?, most: self.most.read(n)? })
    }
}

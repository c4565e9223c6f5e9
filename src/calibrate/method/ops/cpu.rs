//! On the CPU: few rows at a time, many of them at once.

use ndarray::Array2;
use rayon::prelude::*;

use super::Ops;
use crate::calibrate::method::{Fit, awq, clipped, errors, gptq, nearest, solve};
use crate::calibrate::stats::Gram;
use crate::codec::grid::{Codes, Grid};
use crate::device::cpu::{self, Feedback};
use crate::error::Result;

/// Rows that one thread takes.
const ROWS: usize = 64;

pub struct OnCpu;

pub struct Rows {
    w: Vec<f32>,
    cols: usize,
}

impl Rows {
    /// By all threads.
    fn by_rows(&self, grid: &dyn Grid, run: impl Fn(&[f32]) -> Codes + Send + Sync) -> Codes {
        let step = cpu::SOLVE_ROWS.next_multiple_of(grid.rows()) * self.cols;
        Codes::joined(self.w.par_chunks(step.max(1)).map(run).collect())
    }
}

impl Ops for OnCpu {
    type Rows = Rows;
    type Found = Codes;
    type Gram<'g> = &'g Gram<'g>;
    /// See [`Gram::dense`].
    type Judge = Array2<f32>;
    type Feedback = Feedback;

    fn each<T: Sync, R: Send>(&self, items: &[T], run: impl Fn(&T) -> Result<R> + Sync + Send) -> Result<Vec<R>> {
        items.par_iter().map(run).collect()
    }

    fn rows_at_once(&self, _: usize) -> Result<usize> {
        Ok(ROWS)
    }

    fn put(&self, w: Vec<f32>, cols: usize) -> Result<Rows> {
        Ok(Rows { w, cols })
    }

    fn gram<'g>(&self, gram: &'g Gram<'g>) -> Result<&'g Gram<'g>> {
        Ok(gram)
    }

    fn judge(&self, gram: &&Gram<'_>) -> Result<Array2<f32>> {
        Ok(gram.dense())
    }

    fn feedback(&self, gram: &&Gram<'_>, damping: f64) -> Result<Result<Feedback>> {
        Ok(gptq::damped(gram, damping))
    }

    fn scaled(&self, feedback: &Feedback, scale: &[f32]) -> Result<Feedback> {
        Ok(feedback.scaled(scale))
    }

    fn nearest(&self, grid: &dyn Grid, w: &Rows, importance: Option<&[f32]>) -> Result<Codes> {
        Ok(w.by_rows(grid, |part| nearest(grid, part, w.cols, importance)))
    }

    fn clipped(
        &self,
        grid: &dyn Grid,
        w: &Rows,
        importance: Option<&[f32]>,
        gram: &&Gram<'_>,
        scale: Option<&[f32]>,
    ) -> Result<Codes> {
        Ok(clipped(grid, &w.w, w.cols, importance, gram, scale))
    }

    fn solve(
        &self,
        grid: &dyn Grid,
        w: &Rows,
        importance: Option<&[f32]>,
        how: Fit,
        feedback: &Feedback,
    ) -> Result<Codes> {
        Ok(w.by_rows(grid, |part| solve(grid, part, w.cols, importance, how, feedback)))
    }

    fn loss(
        &self,
        grid: &dyn Grid,
        w: &Rows,
        found: &Codes,
        scale: Option<&[f32]>,
        judge: &Array2<f32>,
    ) -> Result<f64> {
        let mut errors = errors(grid, &w.w, w.cols, found);
        if let Some(scale) = scale {
            awq::columns_back(&mut errors, scale);
        }
        Ok(cpu::quadratic(&errors, judge.view()))
    }

    fn codes(&self, _: &dyn Grid, found: Codes) -> Result<Codes> {
        Ok(found)
    }
}

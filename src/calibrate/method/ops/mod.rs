//! What choosing codes is made of, wherever it is computed: methods are written once, in these terms.

mod card;
mod cpu;

pub use card::OnCard;
pub use cpu::OnCpu;

use super::Fit;
use crate::calibrate::stats::Gram;
use crate::codec::grid::{Codes, Grid};
use crate::error::Result;

/// A device's operations on whole rows of one matrix.
///
/// Errors of all: those of the device.
pub trait Ops: Sync {
    /// Weights, `[rows][cols]`.
    type Rows: Send + Sync;
    /// Scales chosen for rows, and codes under them.
    type Found: Send;
    type Gram<'g>: Send + Sync;
    /// A Gram matrix by which errors of weights are turned into those of the output.
    type Judge: Send + Sync;
    /// How the error of one column is made good by those still to come, for all matrices of a site.
    type Feedback: Send + Sync;

    /// Runs all of them: side by side where there are threads, one after the other where memory is for one.
    fn each<T: Sync, R: Send>(&self, items: &[T], run: impl Fn(&T) -> Result<R> + Sync + Send) -> Result<Vec<R>>;

    /// Rows of `cols` columns that are best handled together.
    fn rows_at_once(&self, cols: usize) -> Result<usize>;

    fn put(&self, w: Vec<f32>, cols: usize) -> Result<Self::Rows>;

    fn gram<'g>(&self, gram: &'g Gram<'g>) -> Result<Self::Gram<'g>>;

    fn judge(&self, gram: &Self::Gram<'_>) -> Result<Self::Judge>;

    /// See [`gptq::damped`](super::gptq::damped). The inner error: no factor under this damping.
    fn feedback(&self, gram: &Self::Gram<'_>, damping: f64) -> Result<Result<Self::Feedback>>;

    /// That of weights whose columns are multiplied with `scale`.
    fn scaled(&self, feedback: &Self::Feedback, scale: &[f32]) -> Result<Self::Feedback>;

    /// See [`nearest`](super::nearest).
    fn nearest(&self, grid: &dyn Grid, w: &Self::Rows, importance: Option<&[f32]>) -> Result<Self::Found>;

    /// See [`clipped`](super::clipped).
    fn clipped(
        &self,
        grid: &dyn Grid,
        w: &Self::Rows,
        importance: Option<&[f32]>,
        gram: &Self::Gram<'_>,
        scale: Option<&[f32]>,
    ) -> Result<Self::Found>;

    /// See [`solve`](super::solve).
    fn solve(
        &self,
        grid: &dyn Grid,
        w: &Self::Rows,
        importance: Option<&[f32]>,
        how: Fit,
        feedback: &Self::Feedback,
    ) -> Result<Self::Found>;

    /// The output's error; of weights whose columns were multiplied with `scale`, for the plain inputs.
    fn loss(
        &self,
        grid: &dyn Grid,
        w: &Self::Rows,
        found: &Self::Found,
        scale: Option<&[f32]>,
        judge: &Self::Judge,
    ) -> Result<f64>;

    fn codes(&self, grid: &dyn Grid, found: Self::Found) -> Result<Codes>;
}

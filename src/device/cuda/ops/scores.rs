//! The statistics of what comes out of the last layer.

use std::ops::Range;

use super::int;
use crate::device::cpu::{self, Running};
use crate::device::cuda::runner::{Arg, Buffer, Runner, Shape, View};
use crate::device::cuda::source::Unit;
use crate::error::Result;

/// [`cpu::Scores`] of a model beside a reference, gathered on a device a part of the vocabulary at a time.
pub struct Scores<'r> {
    reference: Buffer<'r>,
    model: Buffer<'r>,
    gaps: Buffer<'r>,
    targets: Buffer<'r>,
    positions: usize,
}

/// Bytes of a position in what is gathered.
const GATHERED: usize = size_of::<Running>();

impl<'r> Scores<'r> {
    /// `targets` are the tokens that came next.
    pub fn new(runner: &'r dyn Runner, targets: &[u32]) -> Result<Scores<'r>> {
        let none = vec![Running::NONE; targets.len()];
        Ok(Scores {
            reference: Buffer::of(runner, &none)?,
            model: Buffer::of(runner, &none)?,
            gaps: Buffer::zeros(runner, targets.len() * 8)?,
            targets: Buffer::of(runner, targets)?,
            positions: targets.len(),
        })
    }

    /// Takes in logits of tokens `first..first + n` at some of the positions, `[positions][n]` of the reference and of the model.
    pub fn add(&self, positions: Range<usize>, first: usize, n: usize, p: &View<'_>, q: &View<'_>) -> Result<()> {
        let count = positions.len();
        if count * n == 0 {
            return Ok(());
        }
        assert!(positions.end <= self.positions && p.singles() >= count * n && q.singles() >= count * n);
        let place = |of: &Buffer<'_>, each: usize| of.part(positions.start * each..positions.end * each).arg();
        let args = [
            p.arg(),
            q.arg(),
            Arg::Int(int(n)?),
            Arg::Int(int(first)?),
            place(&self.targets, 4),
            place(&self.reference, GATHERED),
            place(&self.model, GATHERED),
            place(&self.gaps, 8),
        ];
        let shape = Shape::new([count as u64, 1], [256, 1])?;
        // SAFETY: a block has a position: `n` logits of each model, and a place in what is gathered.
        unsafe { p.runner().launch(&Unit::of("scores")?, "scores", shape, &args) }
    }

    pub fn finish(&self) -> Result<cpu::Scores> {
        let n = self.positions;
        let (reference, model): (Vec<Running>, Vec<Running>) = (self.reference.read(n)?, self.model.read(n)?);
        let gaps: Vec<f64> = self.gaps.read(n)?;
        Ok(cpu::Scores::gathered(reference.into_iter().zip(model).zip(gaps).map(|((p, q), gap)| (p, q, gap))))
    }
}

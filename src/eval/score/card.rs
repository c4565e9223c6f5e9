//! The same on a card: hidden states go there, statistics of their logits come back.

use std::ops::Range;

use super::Side;
use crate::device::cpu::Scores;
use crate::device::cuda::ops::{self, weight};
use crate::device::cuda::{Buffer, Runner};
use crate::error::Result;

/// One side's hidden states, and a part of its output matrix.
struct Logits<'r, 's> {
    weight: weight::Streamed<'r, 's>,
    hidden: Buffer<'r>,
    cols: usize,
    softcap: Option<f32>,
}

impl<'r, 's> Logits<'r, 's> {
    fn new(runner: &'r dyn Runner, side: &Side<'s>) -> Result<Logits<'r, 's>> {
        let (weight, hidden) = (weight::Streamed::new(runner, &side.head.weight)?, Buffer::of(runner, side.hidden)?);
        Ok(Logits { weight, hidden, cols: side.head.weight.packed.dims.cols, softcap: side.head.softcap })
    }

    /// Of some positions over decoded rows of the matrix, `[positions][rows]`.
    fn over(&self, w: &Buffer<'r>, rows: usize, positions: Range<usize>) -> Result<Buffer<'r>> {
        let out = Buffer::singles(w.runner(), positions.len() * rows)?;
        let sizes = [positions.len(), rows, self.cols];
        ops::linear(&self.hidden.rows(positions, self.cols), w, sizes, &out, rows)?;
        if let Some(cap) = self.softcap {
            ops::softcap(&out, cap)?;
        }
        Ok(out)
    }
}

/// Every model beside the reference; without models, the reference beside itself.
pub fn gather(runner: &dyn Runner, reference: &Side<'_>, models: &[Side<'_>], targets: &[u32]) -> Result<Scores> {
    let vocab = reference.head.weight.packed.dims.rows;
    let part = weight::part(runner.room()?);
    let mut out: Option<Scores> = None;
    let sides: Vec<Option<&Side<'_>>> = if models.is_empty() { vec![None] } else { models.iter().map(Some).collect() };
    for model in sides {
        let p = Logits::new(runner, reference)?;
        let q = model.map(|side| Logits::new(runner, side)).transpose()?;
        let widest = p.cols.max(q.as_ref().map_or(0, |q| q.cols));
        let step = weight::rows_at_once(part, widest).min(vocab.max(1));
        let together = weight::rows_at_once(part, step);
        let scores = ops::Scores::new(runner, targets)?;
        for first in (0..vocab).step_by(step) {
            let rows = first..vocab.min(first + step);
            let p_rows = p.weight.rows(rows.clone())?;
            let q_rows = q.as_ref().map(|q| q.weight.rows(rows.clone())).transpose()?;
            for from in (0..targets.len()).step_by(together) {
                let positions = from..targets.len().min(from + together);
                let ours = p.over(&p_rows, rows.len(), positions.clone())?;
                let theirs = match (&q, &q_rows) {
                    (Some(q), Some(w)) => Some(q.over(w, rows.len(), positions.clone())?),
                    _ => None,
                };
                scores.add(positions, first, rows.len(), &ours, theirs.as_ref().unwrap_or(&ours))?;
            }
        }
        let scores = scores.finish()?;
        out = Some(match out {
            Some(others) => others.beside(scores),
            None => scores,
        });
    }
    Ok(out.unwrap_or_else(|| Scores::new(targets.len(), 0)))
}

//! Where work is done: the same operations on the CPU and on a card, with the same results.

use ndarray::Array2;

use super::cpu::{self, Feedback, Scales};
use super::cuda::{Buffer, Runner, ops};
use crate::codec::{Codec, Encode};
use crate::error::Result;

/// The CPU, or a card.
#[derive(Clone, Copy, Default)]
pub enum Worker<'a> {
    #[default]
    Cpu,
    Card(&'a dyn Runner),
}

/// Feedback where it will be used.
pub struct Columns<'a> {
    feedback: &'a Feedback,
    card: Option<ops::Shares<'a>>,
}

impl<'a> Worker<'a> {
    /// `encode` of a block format; formats without kernels stay on the CPU.
    pub fn encode(
        self,
        codec: &dyn Codec,
        encode: Encode,
        w: &[f32],
        cols: usize,
        importance: Option<&[f32]>,
        out: &mut [u8],
    ) -> Result<()> {
        match self {
            Worker::Card(card) if codec.facts().is_some_and(|f| f.grid.block) => {
                out.copy_from_slice(&ops::encode(card, codec, w, cols, importance)?);
            }
            _ => (encode.run)(w, cols, importance, out),
        }
        Ok(())
    }

    /// [`cpu::cholesky`]; a card's library does it where there is one, and room for the matrix and as much again.
    pub fn cholesky(self, a: &mut Array2<f64>) -> Result<Result<(), usize>> {
        let n = a.nrows();
        match (self, a.as_slice_mut()) {
            (Worker::Card(card), Some(numbers)) if card.factors() && card.room()? / 16 > n * n => {
                let matrix = Buffer::of(card, numbers)?;
                // SAFETY: `matrix` has its `n` rows of `n`.
                let done = unsafe { card.cholesky(matrix.address(), n)? };
                if done.is_ok() {
                    matrix.read_into(numbers)?;
                }
                Ok(done)
            }
            _ => Ok(cpu::cholesky(a)),
        }
    }

    pub fn columns(self, feedback: &'a Feedback) -> Result<Columns<'a>> {
        let card = match self {
            Worker::Cpu => None,
            Worker::Card(card) => Some(ops::Shares::upload(card, feedback)?),
        };
        Ok(Columns { feedback, card })
    }
}

impl Columns<'_> {
    pub fn feedback(&self) -> &Feedback {
        self.feedback
    }

    /// [`cpu::round_columns`].
    pub fn round(&self, w: &[f32], cols: usize, scales: Scales<'_>) -> Result<Vec<u8>> {
        match &self.card {
            Some(shares) => shares.round_columns(w, scales),
            None => {
                let mut codes = vec![0; w.len()];
                cpu::round_columns(w, cols, scales, self.feedback, &mut codes);
                Ok(codes)
            }
        }
    }
}

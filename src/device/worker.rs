//! Where work is done: the same operations on the CPU and on a card, with the same results.

use super::cuda::{Runner, ops};
use crate::codec::{Codec, Encode};
use crate::error::Result;

/// The CPU, or a card.
#[derive(Clone, Copy, Default)]
pub enum Worker<'a> {
    #[default]
    Cpu,
    Card(&'a dyn Runner),
}

impl Worker<'_> {
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
            Worker::Card(card) if self.encodes(codec) => {
                out.copy_from_slice(&ops::encode(card, codec, w, cols, importance)?);
            }
            _ => (encode.run)(w, cols, importance, out),
        }
        Ok(())
    }

    /// Whether it is a card that has a kernel for this format.
    pub fn encodes(self, codec: &dyn Codec) -> bool {
        matches!(self, Worker::Card(_)) && codec.facts().is_some_and(|f| f.grid.block)
    }
}

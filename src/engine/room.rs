//! What a forward pass takes of a card's memory, and how much text therefore goes through at a time.

use super::Engine;
use crate::codec::Activations;
use crate::container::Checkpoint;
use crate::device::Worker;
use crate::device::cuda::memory::{self, SLACK};
use crate::device::cuda::ops::weight::{Streamed, part, rows_at_once};
use crate::device::cuda::source::HEAD_DIMS;
use crate::error::{Error, Result};

/// Bytes, the most that are taken at once.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    /// Whatever is run.
    pub fixed: usize,
    pub each_token: usize,
}

/// Of each token beside activations: statistics of its logits.
const SCORES: usize = 64;
/// What is rounded up to whole blocks; and, of that many large arrays at once, to whole pages.
const BLOCKS: usize = 64 << 10;
const ARRAYS: usize = 16;

impl Room {
    /// Bytes for so many tokens together.
    pub fn of(&self, tokens: usize) -> usize {
        let all = tokens.saturating_mul(self.each_token).saturating_add(self.fixed);
        let pages = if all < memory::LARGE { 0 } else { all.min(ARRAYS * memory::PAGE) };
        all.saturating_add(all / SLACK).saturating_add(BLOCKS).saturating_add(pages)
    }

    /// Tokens that fit into `bytes`, at least `longest`.
    ///
    /// Errors: `longest` do not.
    pub fn tokens(&self, bytes: usize, longest: usize) -> Result<usize> {
        let needed = self.of(longest);
        if needed > bytes {
            let mib = |n: usize| n as f64 / f64::from(1 << 20);
            return Err(Error::limits(format!(
                "a sequence of {longest} tokens takes {:.1} MiB of the card, {:.1} MiB of it may be used",
                mib(needed) + 0.05,
                mib(bytes)
            ))
            .help("raise --vram, shorten what is run at a time (--context, --length), or use --device cpu"));
        }
        // That many fit, so many do not.
        let (mut fit, mut most) = (longest, (bytes / self.each_token.max(1)).max(longest) + 1);
        while most - fit > 1 {
            let middle = fit + (most - fit) / 2;
            if self.of(middle) <= bytes { fit = middle } else { most = middle }
        }
        Ok(fit)
    }
}

impl<'a> Engine<'a> {
    /// The same, on another device.
    ///
    /// Errors: what no card does: caches that are not in single precision, heads of a size without a kernel; less memory than one
    /// sequence takes.
    pub fn on(mut self, worker: Worker<'a>) -> Result<Engine<'a>> {
        self.worker = worker;
        let Worker::Card(_) = worker else { return Ok(self) };
        if !self.kv.is_full() {
            return Err(Error::unsupported("a card keeps keys and values in single precision alone"));
        }
        let dim = self.spec.head_dim();
        if !HEAD_DIMS.contains(&dim) {
            let known: Vec<_> = HEAD_DIMS.iter().map(usize::to_string).collect();
            return Err(Error::unsupported(format!(
                "no card runs heads of {dim}: there are kernels for {}",
                known.join(", ")
            )));
        }
        self.most_tokens()?;
        Ok(self)
    }

    /// Tokens that the card has room for at a time, at least as many as the engine has positions. `None`: it runs on the CPU.
    ///
    /// Errors: it has no room for them.
    pub fn most_tokens(&self) -> Result<Option<usize>> {
        let Worker::Card(runner) = self.worker else { return Ok(None) };
        let bytes = runner.room()?;
        self.room(bytes)?.tokens(bytes, self.positions).map(Some)
    }

    /// What a pass takes where `bytes` are free.
    pub fn room(&self, bytes: usize) -> Result<Room> {
        let (spec, part) = (&self.spec, part(bytes));
        let (hidden, head) = (self.hidden(), spec.head_dim());
        let (wide, narrow) = (spec.heads as usize * head, spec.kv_heads() * head);
        let shared = spec.shared_expert_ffn.unwrap_or(0) as usize;
        let inner = (spec.ffn as usize).max(shared).max(if spec.experts() > 0 { spec.expert_ffn() } else { 0 });
        let attention = 2 * hidden + 3 * wide + 2 * narrow;
        // Hidden states, normed, the experts' sum, the inputs and outputs of one of them.
        let feed = 5 * hidden + 2 * inner;
        let rounded = if self.activations == Activations::Plain { 0 } else { hidden.max(wide).max(inner) };
        let weight = largest_weight(self.checkpoint, part)?;
        Ok(Room {
            // Two models' heads and their logits.
            fixed: 2 * weight + 2 * part + self.positions.saturating_mul(head) * 4,
            each_token: (attention.max(feed) + rounded) * 4 + SCORES,
        })
    }
}

/// Bytes of the weight that takes most while `part` of it is decoded.
fn largest_weight(checkpoint: &dyn Checkpoint, part: usize) -> Result<usize> {
    let mut most = 0;
    for (i, tensor) in checkpoint.tensors().iter().enumerate() {
        let dims = tensor.dims();
        let rows = rows_at_once(part, dims.cols).min(dims.rows);
        let weight = checkpoint.read(i, 0)?;
        most = most.max(Streamed::bytes(&weight, rows).saturating_add(rows * dims.cols * 4));
    }
    Ok(most)
}

#[cfg(test)]
mod tests {
    use super::Room;

    #[test]
    fn as_many_tokens_as_fit() {
        let room = Room { fixed: 10 << 20, each_token: 4096 };
        for bytes in [32usize << 20, 100 << 20, 3 << 30] {
            let tokens = room.tokens(bytes, 8).unwrap();
            assert!(room.of(tokens) <= bytes && room.of(tokens + tokens / 100 + 2) > bytes, "{tokens} of {bytes}");
        }
        let error = room.tokens(8 << 20, 8).unwrap_err().to_string();
        assert!(error.contains("takes 21.4 MiB") && error.contains("8.0 MiB"), "{error}");
    }
}

//! How much memory a run takes, and how many tokens at a time fit into what is allowed.

use super::layout::{Shape, triangle};
use crate::device::Worker;
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Tokens that are run at a time where memory allows: enough that decoding weights and adding up Gram matrices in f64 cost
/// little.
const MOST: usize = 4096;
/// Vectors of the hidden size, and of the widest activation, that a layer holds for every token.
const HIDDEN_VECTORS: usize = 6;
const WIDE_VECTORS: usize = 4;

/// Bytes that this process has allocated so far; a guess where the system does not say.
pub fn used() -> u64 {
    const GUESS: u64 = 64 << 20;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("RssAnon:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.map_or(GUESS, |kib| kib << 10)
}

/// Tokens to run at a time, at least `longest`. Bytes of the model's file and of the hidden states are mapped, and do not count.
///
/// Errors: `memory` does not suffice for one sequence and one layer's sums.
pub fn batch(sites: &[Shape], gram: bool, hidden: usize, longest: usize, memory: Option<u64>) -> Result<usize> {
    let most = longest.max(MOST);
    let Some(memory) = memory else { return Ok(most) };
    let mut batch = most;
    loop {
        let needed = needed(sites, gram, hidden, batch);
        if needed <= memory {
            return Ok(batch);
        }
        if batch <= longest {
            let what = if gram { "one layer's Gram matrices and sequences" } else { "sequences" };
            return Err(Error::limits(format!(
                "{what} of {longest} tokens take {} MiB, {} MiB are left of what is allowed",
                needed.div_ceil(1 << 20),
                memory >> 20
            ))
            .help(if gram {
                "raise --memory, shorten --length, or drop --gram"
            } else {
                "raise --memory or shorten --length"
            }));
        }
        batch = (batch / 2).max(longest);
    }
}

/// Of `batch` tokens, as many as a card has room for.
///
/// Errors: it has no room for a sequence of `longest` and one layer's sums.
pub fn on_card(sites: &[Shape], gram: bool, engine: &Engine<'_>, longest: usize, batch: usize) -> Result<usize> {
    let Worker::Card(runner) = engine.worker() else { return Ok(batch) };
    let bytes = runner.room()?;
    let mut room = engine.room(bytes)?;
    let widest = sites.iter().map(|s| s.columns).max().unwrap_or(0);
    let sums = sums(sites, gram).saturating_add(widest as u64 * SHARES);
    room.fixed = room.fixed.saturating_add(usize::try_from(sums).unwrap_or(usize::MAX));
    Ok(room.tokens(bytes, longest)?.min(batch))
}

/// Bytes a column of an expert's squares, sums and maxima, and of the shares that a card adds them up from.
const COLUMN: u64 = 40;
const SHARES: u64 = 64 * 20;

/// Bytes of one layer's sums, the most that a layer takes.
fn sums(sites: &[Shape], gram: bool) -> u64 {
    let triangle = |s: &Shape| if gram { triangle(s.columns).unwrap_or(usize::MAX) as u64 } else { 0 };
    let of = |s: &Shape| (s.columns as u64 * COLUMN).saturating_add(triangle(s).saturating_mul(8));
    let layer = |s: &Shape| s.key.split('.').nth(1).map(str::to_owned);
    let layers = sites.chunk_by(|a, b| layer(a) == layer(b));
    layers.map(|part| part.iter().fold(0, |sum: u64, s| sum.saturating_add(of(s)))).max().unwrap_or(0)
}

/// Bytes at the most.
fn needed(sites: &[Shape], gram: bool, hidden: usize, batch: usize) -> u64 {
    let widest = sites.iter().map(|s| s.columns).max().unwrap_or(0);
    let tokens = HIDDEN_VECTORS * hidden + (WIDE_VECTORS + usize::from(gram)) * widest;
    sums(sites, gram).saturating_add((batch as u64).saturating_mul(tokens as u64 * 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn less_memory_means_smaller_batches_and_then_none() {
        let site = |key: &str, columns| Shape { key: key.into(), columns, ..Shape::default() };
        let sites = [
            site("blk.0.attn_q", 1000),
            site("blk.0.ffn_down", 4000),
            site("blk.1.attn_q", 1000),
            site("output", 1000),
        ];
        let at = |gram, memory: u64| batch(&sites, gram, 1000, 100, Some(memory));
        assert_eq!(batch(&sites, true, 1000, 100, None).unwrap(), MOST);
        assert_eq!(at(false, 1 << 40).unwrap(), MOST);
        assert_eq!(batch(&sites, false, 1000, 9000, None).unwrap(), 9000);
        // 22,000 values a token, and some for the sums.
        assert_eq!(at(false, 1024 * 88_000 + 200_000).unwrap(), 1024);
        assert!(at(false, 99 * 88_000).is_err());
        // Two layers are never in memory together.
        let grams = 8 * (1000 * 1001 / 2 + 4000 * 4001 / 2) + 5000 * 40;
        assert_eq!(at(true, grams + 100 * 104_000).unwrap(), 100);
        assert!(at(true, grams).is_err());
    }
}

//! How much memory a run takes, and how many tokens at a time fit into what is allowed.

use super::layout::{Shape, triangle};
use crate::device::Worker;
use crate::device::cuda::memory::taken;
use crate::device::cuda::{Runner, ops};
use crate::engine::Engine;
use crate::error::{Error, Result};

/// Tokens that are run at a time where memory allows: enough that decoding weights and adding up Gram matrices in f64 cost
/// little.
const MOST: usize = 4096;
/// Tokens that a card must still run at a time beside hidden states that it holds.
const HELD: usize = 8192;
/// What more of them are multiples of.
const STEP: usize = 8192;
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

/// How text goes through a layer.
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Tokens to run at a time, at least those of the longest sequence.
    pub tokens: usize,
    /// The hidden states of all of them stay on the device from layer to layer.
    pub resident: bool,
}

/// Of `all` tokens. Bytes of the model's file and of the hidden states that it maps do not count.
///
/// Errors: `memory`, or that of a card, does not suffice for one sequence and one layer's sums.
pub fn batch(
    sites: &[Shape],
    gram: bool,
    engine: &Engine<'_>,
    [all, longest]: [usize; 2],
    memory: Option<u64>,
) -> Result<Batch> {
    let hidden = engine.hidden();
    match engine.worker() {
        Worker::Cpu => {
            let widest = widest(sites);
            let values = HIDDEN_VECTORS * hidden + (WIDE_VECTORS + usize::from(gram)) * widest;
            let tokens = fit(sites, gram, values, longest.max(MOST), longest, memory)?;
            Ok(Batch { tokens, resident: false })
        }
        // Every batch brings all weights there once more, so it is as large as the card allows. Here are what it starts from and ends with.
        Worker::Card(runner) => {
            let states = all.saturating_mul(hidden * 4);
            let held = on_card(sites, gram, engine, runner, (longest, states)).ok();
            let (resident, most) = match held.filter(|tokens| *tokens >= all.min(HELD)) {
                Some(tokens) => (true, tokens),
                None => (false, on_card(sites, gram, engine, runner, (longest, 0))?),
            };
            // Not to the last token: a run that goes on finds a little more room, or less.
            let most = if most > STEP { most - most % STEP } else { most };
            let most = most.min(all).max(longest);
            let tokens = fit(sites, gram, if resident { hidden } else { 2 * hidden }, most, longest, memory)?;
            Ok(Batch { tokens, resident })
        }
    }
}

/// Of `most` tokens, as many as `memory` allows with so many values for each.
fn fit(sites: &[Shape], gram: bool, values: usize, most: usize, longest: usize, memory: Option<u64>) -> Result<usize> {
    let Some(memory) = memory else { return Ok(most) };
    let sums = sums(sites, gram, |bytes| bytes);
    let mut batch = most;
    loop {
        let needed = sums.saturating_add((batch as u64).saturating_mul(values as u64 * 4));
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

/// As many as a card has room for, beside what is held.
///
/// Errors: it has no room for a sequence of `longest` and one layer's sums.
fn on_card(
    sites: &[Shape],
    gram: bool,
    engine: &Engine<'_>,
    runner: &dyn Runner,
    (longest, held): (usize, usize),
) -> Result<usize> {
    let bytes = runner.room()?.saturating_sub(held);
    let mut room = engine.room(bytes)?;
    let widest = widest(sites);
    let scratch = if gram { ops::Gram::scratch(runner, widest) as u64 } else { 0 };
    let sums = sums(sites, gram, taken).saturating_add(widest as u64 * SHARES).saturating_add(scratch);
    room.fixed = room.fixed.saturating_add(usize::try_from(sums).unwrap_or(usize::MAX));
    room.tokens(bytes, longest)
}

fn widest(sites: &[Shape]) -> usize {
    sites.iter().map(|s| s.columns).max().unwrap_or(0)
}

/// Bytes a column of an expert's squares, sums and maxima, and of the shares that a card adds them up from.
const COLUMN: u64 = 40;
const SHARES: u64 = 64 * 20;

/// Bytes of one layer's sums, the most that a layer takes, where an array takes so many.
fn sums(sites: &[Shape], gram: bool, taken: fn(usize) -> usize) -> u64 {
    let triangle = |s: &Shape| if gram { triangle(s.columns).unwrap_or(usize::MAX).saturating_mul(8) } else { 0 };
    let of = |s: &Shape| (s.columns as u64 * COLUMN).saturating_add(taken(triangle(s)) as u64);
    let layer = |s: &Shape| s.key.split('.').nth(1).map(str::to_owned);
    let layers = sites.chunk_by(|a, b| layer(a) == layer(b));
    layers.map(|part| part.iter().fold(0, |sum: u64, s| sum.saturating_add(of(s)))).max().unwrap_or(0)
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
        let values = |gram| 6 * 1000 + (4 + usize::from(gram)) * 4000;
        let at = |gram, memory: u64| fit(&sites, gram, values(gram), MOST, 100, Some(memory));
        assert_eq!(fit(&sites, true, values(true), MOST, 100, None).unwrap(), MOST);
        assert_eq!(at(false, 1 << 40).unwrap(), MOST);
        // 22,000 values a token, and some for the sums.
        assert_eq!(at(false, 1024 * 88_000 + 200_000).unwrap(), 1024);
        assert!(at(false, 99 * 88_000).is_err());
        // Two layers are never in memory together.
        let grams = 8 * (1000 * 1001 / 2 + 4000 * 4001 / 2) + 5000 * 40;
        assert_eq!(at(true, grams + 100 * 104_000).unwrap(), 100);
        assert!(at(true, grams).is_err());
    }
}

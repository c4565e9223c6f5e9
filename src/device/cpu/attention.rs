//! Causal attention over cached keys and values. Scores are held for a block of queries at a time, never for all.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::kernel::{Kernel, Tile, WIDTH};
use super::span::{Kind, Span};
use super::{simd, softcap, softmax};
use crate::codec::kv::Held;

/// Keys and values that queries see.
pub struct Memory<'a> {
    /// Of all positions, or of those that are settled.
    pub settled: &'a Span,
    /// The others, for queries that come before they are.
    pub recent: Option<Recent<'a>>,
}

/// Positions that queries see as they wait to be encoded.
pub struct Recent<'a> {
    pub span: &'a Span,
    /// Of keys and values.
    pub settled: [Settled; 2],
}

/// Which positions are settled.
#[derive(Clone, Copy)]
pub struct Settled {
    pub held: Held,
    /// Those that are, whatever comes.
    pub least: usize,
}

impl Settled {
    /// When there are `n` positions, the first so many.
    pub fn of(&self, n: usize) -> usize {
        self.held.settled(n).max(self.least)
    }
}

/// What a layer's attention is made of.
#[derive(Clone, Debug)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Multiplies every score.
    pub scale: f32,
    /// Bounds every score by its tanh.
    pub softcap: Option<f32>,
    /// Positions that a query sees, itself included.
    pub window: Option<usize>,
    /// Of each head a score that takes its share of the softmax, and has no value.
    pub sinks: Option<Vec<f32>>,
}

/// Queries that share a block of scores.
const QUERIES: usize = 32;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

/// Scores over settled and over recent positions, and mixed values.
#[derive(Default)]
struct Scratch {
    scores: Vec<f32>,
    recent: Vec<f32>,
    mixed: Vec<f32>,
}

/// One head of a block of queries.
struct Block<'a> {
    kernel: Kernel,
    /// Of keys and values.
    head: usize,
    /// From the head's first value on, a row apart.
    queries: &'a [f32],
    row: usize,
    rows: usize,
    /// Positions that any of these queries sees, in whole panels.
    start: usize,
    end: usize,
}

impl Attention {
    /// `out[t] = softmax(q[t] k^T) v` over the positions up to the query's own. `q` and `out` are `[tokens][heads * head_dim]`;
    /// the first query stands at `position`.
    pub fn run(&self, memory: &Memory<'_>, position: usize, q: &[f32], out: &mut [f32]) {
        let row = self.heads * self.head_dim;
        let room = memory.recent.as_ref().map_or(memory.settled, |recent| recent.span);
        assert!(q.len() == out.len() && position + q.len() / row <= room.origin + room.room);
        let kernel = Kernel::best();
        out.par_chunks_mut(QUERIES * row).enumerate().for_each(|(block, out)| {
            let queries = &q[block * QUERIES * row..][..out.len()];
            SCRATCH.with_borrow_mut(|scratch| {
                for head in 0..self.heads {
                    self.head(kernel, memory, head, position + block * QUERIES, queries, out, scratch);
                }
            });
        });
    }

    /// One head of a block of queries, the first at position `first`.
    #[expect(clippy::too_many_arguments)]
    fn head(
        &self,
        kernel: Kernel,
        memory: &Memory<'_>,
        head: usize,
        first: usize,
        queries: &[f32],
        out: &mut [f32],
        scratch: &mut Scratch,
    ) {
        let (d, row) = (self.head_dim, self.heads * self.head_dim);
        let rows = queries.len() / row;
        let start = self.window.map_or(0, |w| (first + 1).saturating_sub(w)) / WIDTH * WIDTH;
        let end = (first + rows).next_multiple_of(WIDTH);
        let (width, padded) = (end - start, d.next_multiple_of(WIDTH));
        let kv = head / (self.heads / self.kv_heads);
        let block = Block { kernel, head: kv, queries: &queries[head * d..], row, rows, start, end };
        let Scratch { scores, recent, mixed } = scratch;
        scores.resize(scores.len().max(QUERIES * width), 0.0);
        mixed.resize(mixed.len().max(QUERIES * padded), 0.0);
        match &memory.recent {
            None => block.score(memory.settled, start..end, scores),
            Some(waiting) => {
                recent.resize(recent.len().max(QUERIES * width), 0.0);
                block.score_both(memory.settled, waiting, first, scores, recent);
            }
        }
        let mut sums = [0.0; QUERIES];
        for (r, scores) in scores[..rows * width].chunks_exact_mut(width).enumerate() {
            sums[r] = self.weigh(&mut scores[..], head, start, first + r);
        }
        match &memory.recent {
            None => block.mix(memory.settled, start..end, scores, mixed, false),
            Some(waiting) => block.mix_both(memory.settled, waiting, first, scores, recent, mixed),
        }
        for (r, out) in out.chunks_exact_mut(row).enumerate() {
            let scale = 1.0 / sums[r];
            for (o, m) in out[head * d..][..d].iter_mut().zip(&mixed[r * padded..]) {
                *o = m * scale;
            }
        }
    }

    /// Scores of the keys from `start` on into unnormalised weights, for the query at `position`; returns their sum.
    fn weigh(&self, scores: &mut [f32], head: usize, start: usize, position: usize) -> f32 {
        let seen_from = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let (before, rest) = scores.split_at_mut(seen_from.saturating_sub(start));
        let (seen, after) = rest.split_at_mut((position + 1).saturating_sub(seen_from.max(start)));
        scale(seen, self.scale);
        if let Some(cap) = self.softcap {
            softcap(seen, cap);
        }
        before.fill(f32::NEG_INFINITY);
        after.fill(f32::NEG_INFINITY);
        // A query sees itself: the largest is a number. Beside a sink far above it all weights vanish, as they should.
        let sink = self.sinks.as_ref().map(|sinks| sinks[head] - simd::max(scores));
        // Over the whole width, which begins at a multiple of WIDTH: the order of the sum depends on positions alone.
        softmax(scores) + sink.map_or(0.0, f32::exp)
    }
}

impl Block<'_> {
    /// Products of the queries with keys of whole panels of positions: `[rows][end - start]`.
    fn score(&self, span: &Span, positions: Range<usize>, scores: &mut [f32]) {
        let (keys, width) = (span.head(Kind::Keys, self.head), self.end - self.start);
        assert!(positions.is_empty() || positions.start >= span.origin && positions.end <= span.origin + span.room);
        for from in positions.step_by(WIDTH) {
            let tile = Tile {
                x: self.queries.as_ptr(),
                x_stride: self.row,
                panel: keys[from - span.origin..].as_ptr(),
                panel_stride: span.room,
                depth: span.head_dim,
                out: scores[from - self.start..].as_mut_ptr(),
                out_stride: width,
                add: false,
            };
            // SAFETY: `queries` has `rows` rows of `row` elements, less those before the head; `keys` head_dim rows of `room`,
            // `scores` at least `rows` rows of `width`; `start <= from`, `from + WIDTH <= end` and, as asserted, the span's end.
            unsafe { self.kernel.multiply(tile, self.rows, 0) };
        }
    }

    /// Weighted sums of the values of whole panels of positions: `[rows][head_dim rounded up]`.
    fn mix(&self, span: &Span, positions: Range<usize>, weights: &[f32], mixed: &mut [f32], add: bool) {
        let (values, width) = (span.head(Kind::Values, self.head), self.end - self.start);
        let padded = span.head_dim.next_multiple_of(WIDTH);
        assert!(positions.is_empty() || positions.start >= span.origin && positions.end <= span.origin + span.room);
        if positions.is_empty() {
            return;
        }
        for column in (0..padded).step_by(WIDTH) {
            let tile = Tile {
                x: weights[positions.start - self.start..].as_ptr(),
                x_stride: width,
                panel: values[(positions.start - span.origin) * padded + column..].as_ptr(),
                panel_stride: padded,
                depth: positions.len(),
                out: mixed[column..].as_mut_ptr(),
                out_stride: padded,
                add,
            };
            // SAFETY: `weights` has `rows` rows of `width`, `values` rows of `padded` up to the end of the positions, as
            // asserted, `mixed` at least `rows` rows of `padded`.
            unsafe { self.kernel.multiply(tile, self.rows, positions.start) };
        }
    }

    /// Positions that all of these queries may see settled, and those that some see recent, in whole panels.
    fn split(&self, settled: &Settled, first: usize) -> (Range<usize>, Range<usize>) {
        let until = settled.of(first + self.rows).next_multiple_of(WIDTH);
        let from = settled.of(first + 1) / WIDTH * WIDTH;
        (self.start..until.clamp(self.start, self.end), from.clamp(self.start, self.end)..self.end)
    }

    /// Where in a row of scores the recent positions begin for the query at `position`.
    fn border(&self, settled: &Settled, position: usize) -> usize {
        settled.of(position + 1).clamp(self.start, self.end) - self.start
    }

    /// Every query's scores: of what is settled when it comes, and of the rest as it waits.
    fn score_both(&self, settled: &Span, waiting: &Recent<'_>, first: usize, scores: &mut [f32], recent: &mut [f32]) {
        let (width, [keys, _]) = (self.end - self.start, &waiting.settled);
        let (old, new) = self.split(keys, first);
        self.score(settled, old, scores);
        self.score(waiting.span, new, recent);
        for r in 0..self.rows {
            let row = r * width + self.border(keys, first + r)..(r + 1) * width;
            scores[row.clone()].copy_from_slice(&recent[row]);
        }
    }

    /// The same of values. Weights of zero on either side change no sum, so it is the same in any block of queries.
    fn mix_both(
        &self,
        settled: &Span,
        waiting: &Recent<'_>,
        first: usize,
        weights: &mut [f32],
        recent: &mut [f32],
        mixed: &mut [f32],
    ) {
        let (width, [_, values]) = (self.end - self.start, &waiting.settled);
        let (old, new) = self.split(values, first);
        for r in 0..self.rows {
            let border = r * width + self.border(values, first + r);
            let end = (r + 1) * width;
            recent[r * width + new.start - self.start..border].fill(0.0);
            recent[border..end].copy_from_slice(&weights[border..end]);
            weights[border..end].fill(0.0);
        }
        let both = !old.is_empty();
        self.mix(settled, old, weights, mixed, false);
        self.mix(waiting.span, new, recent, mixed, both);
    }
}

crate::widest::widest! {
    fn scale(x: &mut [f32], factor: f32) = scale_body;
}

#[inline(always)]
fn scale_body(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::kv::{KvPolicy, KvShape};
    use crate::device::cpu::KvCache;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 7919 + i * i) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// As the formula says, in f64.
    fn plain(a: &Attention, q: &[f32], k: &[f32], v: &[f32], t: usize, head: usize) -> Vec<f64> {
        let (d, kv_row, kv) = (a.head_dim, a.kv_heads * a.head_dim, head / (a.heads / a.kv_heads));
        let from = a.window.map_or(0, |w| (t + 1).saturating_sub(w));
        let weights: Vec<f64> = (from..=t)
            .map(|s| {
                let at = |i| f64::from(q[t * a.heads * d + head * d + i]) * f64::from(k[s * kv_row + kv * d + i]);
                let score = (0..d).map(at).sum::<f64>() * f64::from(a.scale);
                a.softcap.map_or(score, |c| f64::from(c) * (score / f64::from(c)).tanh()).exp()
            })
            .collect();
        let sink = a.sinks.as_ref().map_or(0.0, |sinks| f64::from(sinks[head]).exp());
        let total = weights.iter().sum::<f64>() + sink;
        (0..d)
            .map(|i| (from..=t).zip(&weights).map(|(s, w)| w / total * f64::from(v[s * kv_row + kv * d + i])).sum())
            .collect()
    }

    #[test]
    fn attention_is_the_formula_and_the_same_in_parts() {
        let sinks = || Some(vec![-3.0, 0.0, 2.5, 9.0]);
        for (head_dim, window, softcap, sinks) in
            [(64, None, None, None), (40, Some(50), Some(3.0), None), (256, Some(300), None, sinks())]
        {
            let a = Attention { heads: 4, kv_heads: 2, head_dim, scale: 0.2, softcap, window, sinks };
            let n = 700;
            let (q, k, v) = (noise(n * 4 * head_dim, 1), noise(n * 2 * head_dim, 2), noise(n * 2 * head_dim, 3));
            let shape = KvShape { layers: 1, heads: 2, head_dim };
            let mut cache = KvCache::new(&KvPolicy::default(), shape, 1, n).unwrap();
            let mut whole = vec![f32::NAN; q.len()];
            cache.attend(&a, 0, &q, &k, &v, &|_, _| {}, &mut whole).unwrap();
            for (t, head) in [(0, 0), (49, 1), (50, 3), (511, 2), (699, 0)] {
                let got = &whole[(t * 4 + head) * head_dim..][..head_dim];
                for (got, exact) in got.iter().zip(plain(&a, &q, &k, &v, t, head)) {
                    assert!((f64::from(*got) - exact).abs() < 2e-6, "{got} {exact} at {t}");
                }
            }
            let mut cache = KvCache::new(&KvPolicy::default(), shape, 1, n + 77).unwrap();
            let mut from = 0;
            for step in [1, 2, 30, 200, 467] {
                let part =
                    |x: &[f32], heads: usize| x[from * heads * head_dim..(from + step) * heads * head_dim].to_vec();
                let mut out = vec![f32::NAN; step * 4 * head_dim];
                cache.attend(&a, 0, &part(&q, 4), &part(&k, 2), &part(&v, 2), &|_, _| {}, &mut out).unwrap();
                assert!(out == part(&whole, 4), "from {from}");
                cache.advance(step);
                from += step;
            }
        }
    }
}

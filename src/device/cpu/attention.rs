//! Causal attention over cached keys and values. Scores are held for a block of queries at a time, never for all.

use std::cell::RefCell;

use rayon::prelude::*;

use super::kernel::{Kernel, Tile, WIDTH};
use super::{simd, softcap, softmax};
use crate::error::{Error, Result};

/// Keys and values of one sequence, f32. Keys lie transposed, so that both are panels for the kernel.
#[derive(Clone, Debug)]
pub struct KvCache {
    heads: usize,
    head_dim: usize,
    /// Positions per layer, a multiple of [`WIDTH`].
    capacity: usize,
    layers: Vec<Layer>,
    len: usize,
}

#[derive(Clone, Debug)]
struct Layer {
    /// `[head][head_dim][capacity]`
    keys: Vec<f32>,
    /// `[head][capacity][head_dim rounded up to WIDTH]`
    values: Vec<f32>,
}

impl KvCache {
    /// Room for `positions`. With fewer `slots` than layers, layers share them in turn: enough for a forward pass over whole
    /// sequences that keeps nothing.
    pub fn new(slots: usize, heads: usize, head_dim: usize, positions: usize) -> Result<KvCache> {
        let capacity = positions.next_multiple_of(WIDTH);
        let sizes = [head_dim, head_dim.next_multiple_of(WIDTH)].map(|d| heads.checked_mul(d)?.checked_mul(capacity));
        let too_large = || Error::limits(format!("a cache of {positions} positions does not fit into memory"));
        let [Some(k), Some(v)] = sizes else { return Err(too_large()) };
        let zeros = |n: usize| {
            let mut out: Vec<f32> = Vec::new();
            out.try_reserve_exact(n).map_err(|_| too_large())?;
            out.resize(n, 0.0);
            Ok::<_, Error>(out)
        };
        let layers = (0..slots.max(1)).map(|_| Ok(Layer { keys: zeros(k)?, values: zeros(v)? }));
        let layers = layers.collect::<Result<_>>()?;
        Ok(KvCache { heads, head_dim, capacity, layers, len: 0 })
    }

    /// Positions that every layer holds.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether every layer keeps its own keys and values.
    pub fn keeps(&self, layers: usize) -> bool {
        self.layers.len() >= layers
    }

    /// Forgets all positions from `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// All layers have stored `n` more positions.
    pub fn advance(&mut self, n: usize) {
        self.len = (self.len + n).min(self.capacity);
    }

    fn slot(&self, layer: usize) -> usize {
        layer % self.layers.len()
    }

    /// Stores keys and values `[tokens][heads * head_dim]` behind the positions so far.
    pub fn store(&mut self, layer: usize, keys: &[f32], values: &[f32]) {
        let (d, capacity, start, row) = (self.head_dim, self.capacity, self.len, self.heads * self.head_dim);
        let tokens = keys.len() / row.max(1);
        assert!(start + tokens <= capacity && values.len() == keys.len());
        let padded = d.next_multiple_of(WIDTH);
        let slot = self.slot(layer);
        let Layer { keys: kept_keys, values: kept_values } = &mut self.layers[slot];
        let heads = kept_keys.par_chunks_mut(d * capacity).zip(kept_values.par_chunks_mut(capacity * padded));
        heads.enumerate().for_each(|(h, (kept_keys, kept_values))| {
            for t in 0..tokens {
                let at = t * row + h * d;
                for (i, k) in keys[at..at + d].iter().enumerate() {
                    kept_keys[i * capacity + start + t] = *k;
                }
                kept_values[(start + t) * padded..][..d].copy_from_slice(&values[at..at + d]);
            }
        });
    }
}

/// What a layer's attention is made of.
#[derive(Clone, Copy, Debug)]
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
}

/// Queries that share a block of scores.
const QUERIES: usize = 32;

thread_local! {
    static SCRATCH: RefCell<(Vec<f32>, Vec<f32>)> = RefCell::default();
}

impl Attention {
    /// `out[t] = softmax(q[t] k^T) v` over the cached positions up to the query's own, which `store` has put there.
    /// `q` and `out` are `[tokens][heads * head_dim]`; the first query stands at position `cache.len()`.
    pub fn run(&self, cache: &KvCache, layer: usize, q: &[f32], out: &mut [f32]) {
        let row = self.heads * self.head_dim;
        assert!(q.len() == out.len() && cache.len + q.len() / row <= cache.capacity);
        let kernel = Kernel::best();
        out.par_chunks_mut(QUERIES * row).enumerate().for_each(|(block, out)| {
            let queries = &q[block * QUERIES * row..][..out.len()];
            SCRATCH.with_borrow_mut(|scratch| {
                for head in 0..self.heads {
                    self.head(kernel, cache, layer, head, cache.len + block * QUERIES, queries, out, scratch);
                }
            });
        });
    }

    /// One head of a block of queries, the first at position `first`.
    #[expect(clippy::too_many_arguments)]
    fn head(
        &self,
        kernel: Kernel,
        cache: &KvCache,
        layer: usize,
        head: usize,
        first: usize,
        queries: &[f32],
        out: &mut [f32],
        (scores, mixed): &mut (Vec<f32>, Vec<f32>),
    ) {
        let (d, capacity, row) = (self.head_dim, cache.capacity, self.heads * self.head_dim);
        let (rows, padded, kv) = (queries.len() / row, d.next_multiple_of(WIDTH), head / (self.heads / self.kv_heads));
        let kept = &cache.layers[cache.slot(layer)];
        let keys = &kept.keys[kv * d * capacity..][..d * capacity];
        let values = &kept.values[kv * capacity * padded..][..capacity * padded];
        // Positions that any of these queries sees, in whole panels.
        let start = self.window.map_or(0, |w| (first + 1).saturating_sub(w)) / WIDTH * WIDTH;
        let end = (first + rows).next_multiple_of(WIDTH);
        let width = end - start;
        scores.resize(scores.len().max(QUERIES * width), 0.0);
        mixed.resize(mixed.len().max(QUERIES * padded), 0.0);
        for from in (start..end).step_by(WIDTH) {
            let tile = Tile {
                x: queries[head * d..].as_ptr(),
                x_stride: row,
                panel: keys[from..].as_ptr(),
                panel_stride: capacity,
                depth: d,
                out: scores[from - start..].as_mut_ptr(),
                out_stride: width,
                add: false,
            };
            // SAFETY: `queries` has `rows` rows of `row` elements, `keys` d rows of `capacity`, `scores` at least `rows` rows
            // of `width`; `from + WIDTH <= end <= capacity`.
            unsafe { kernel.multiply(tile, rows, 0) };
        }
        let mut sums = [0.0; QUERIES];
        for (r, scores) in scores[..rows * width].chunks_exact_mut(width).enumerate() {
            sums[r] = self.weigh(&mut scores[..], start, first + r);
        }
        for column in (0..padded).step_by(WIDTH) {
            let tile = Tile {
                x: scores.as_ptr(),
                x_stride: width,
                panel: values[start * padded + column..].as_ptr(),
                panel_stride: padded,
                depth: width,
                out: mixed[column..].as_mut_ptr(),
                out_stride: padded,
                add: false,
            };
            // SAFETY: `scores` has `rows` rows of `width`, `values` capacity >= start + width rows of `padded`, `mixed` at least
            // `rows` rows of `padded`.
            unsafe { kernel.multiply(tile, rows, start) };
        }
        for (r, out) in out.chunks_exact_mut(row).enumerate() {
            let scale = 1.0 / sums[r];
            for (o, m) in out[head * d..][..d].iter_mut().zip(&mixed[r * padded..]) {
                *o = m * scale;
            }
        }
    }

    /// Scores of the keys from `start` on into unnormalised weights, for the query at `position`; returns their sum.
    fn weigh(&self, scores: &mut [f32], start: usize, position: usize) -> f32 {
        let seen_from = self.window.map_or(0, |w| (position + 1).saturating_sub(w));
        let (before, rest) = scores.split_at_mut(seen_from.saturating_sub(start));
        let (seen, after) = rest.split_at_mut((position + 1).saturating_sub(seen_from.max(start)));
        scale(seen, self.scale);
        if let Some(cap) = self.softcap {
            softcap(seen, cap);
        }
        before.fill(f32::NEG_INFINITY);
        after.fill(f32::NEG_INFINITY);
        // Over the whole width, which begins at a multiple of WIDTH: the order of the sum depends on positions alone.
        softmax(scores)
    }
}

simd::widest! {
    fn scale(x: &mut [f32], factor: f32) = scale_body;
}

#[inline(always)]
fn scale_body(x: &mut [f32], factor: f32) {
    x.iter_mut().for_each(|x| *x *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;

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
        let total: f64 = weights.iter().sum();
        (0..d)
            .map(|i| (from..=t).zip(&weights).map(|(s, w)| w / total * f64::from(v[s * kv_row + kv * d + i])).sum())
            .collect()
    }

    #[test]
    fn attention_is_the_formula_and_the_same_in_parts() {
        for (head_dim, window, softcap) in [(64, None, None), (40, Some(50), Some(3.0)), (256, Some(300), None)] {
            let a = Attention { heads: 4, kv_heads: 2, head_dim, scale: 0.2, softcap, window };
            let n = 700;
            let (q, k, v) = (noise(n * 4 * head_dim, 1), noise(n * 2 * head_dim, 2), noise(n * 2 * head_dim, 3));
            let mut cache = KvCache::new(1, 2, head_dim, n).unwrap();
            let mut whole = vec![f32::NAN; q.len()];
            cache.store(0, &k, &v);
            a.run(&cache, 0, &q, &mut whole);
            for (t, head) in [(0, 0), (49, 1), (50, 3), (511, 2), (699, 0)] {
                let got = &whole[(t * 4 + head) * head_dim..][..head_dim];
                for (got, exact) in got.iter().zip(plain(&a, &q, &k, &v, t, head)) {
                    assert!((f64::from(*got) - exact).abs() < 2e-6, "{got} {exact} at {t}");
                }
            }
            let mut cache = KvCache::new(1, 2, head_dim, n + 77).unwrap();
            let mut from = 0;
            for step in [1, 2, 30, 200, 467] {
                let part =
                    |x: &[f32], heads: usize| x[from * heads * head_dim..(from + step) * heads * head_dim].to_vec();
                cache.store(0, &part(&k, 2), &part(&v, 2));
                let mut out = vec![f32::NAN; step * 4 * head_dim];
                a.run(&cache, 0, &part(&q, 4), &mut out);
                assert!(out == part(&whole, 4), "from {from}");
                cache.advance(step);
                from += step;
            }
        }
    }
}

//! What does a cache of fewer bits lose? Every policy against the same weights with a cache in single precision, by the
//! position of the predicting token: errors add up as attention spreads over more of them.

use std::ops::Range;

use serde::Serialize;

use super::position::{buckets, within};
use super::protocol::Window;
use super::score::{Side, compare};
use super::stats::{Summary, summarize};
use super::{states, targets};
use crate::codec::Codec;
use crate::codec::ggml::simple::Q4_0;
use crate::codec::kv::{KvPolicy, KvShape};
use crate::device::cpu::TokenScore;
use crate::engine::{Engine, Sequence};
use crate::error::{At, Result};

/// A line of the matrix.
#[derive(Serialize)]
pub struct Row {
    pub kv: String,
    /// What each further position costs, all layers together.
    pub bytes_per_token: f64,
    #[serde(flatten)]
    pub whole: Summary,
    pub buckets: Vec<Bucket>,
}

/// Predictions made at these positions.
#[derive(Serialize)]
pub struct Bucket {
    pub from: usize,
    pub to: usize,
    /// Of the cache when it holds `to` positions.
    pub bytes: u64,
    #[serde(flatten)]
    pub figures: Summary,
}

/// `scores`: of [`super::run`], `[policy][window][scored position]`.
///
/// Errors: a number that is not finite.
pub fn rows(
    policies: &[KvPolicy],
    shape: &KvShape,
    windows: &[Window],
    scores: &[Vec<Vec<TokenScore>>],
) -> Result<Vec<Row>> {
    let row = |(policy, scores): (&KvPolicy, &Vec<Vec<TokenScore>>)| -> Result<Row> {
        let bucket = |range: Range<usize>| {
            let found = within(windows, scores, &range);
            let of =
                |figures| Bucket { from: range.start, to: range.end, bytes: policy.bytes(shape, range.end), figures };
            (!found.is_empty()).then(|| summarize(&found).map(of))
        };
        let buckets = buckets(super::longest(windows)).into_iter().filter_map(bucket).collect::<Result<_>>()?;
        let bytes_per_token = policy.bytes_per_token(shape);
        Ok(Row { kv: policy.name().to_owned(), bytes_per_token, whole: summarize(scores)?, buckets })
    };
    policies.iter().zip(scores).map(|both| row(both).at(|| format!("cache type {}", both.0))).collect()
}

/// Largest divergence between a window read at once and the same read token by token, as in generation. 0: the same bits.
pub fn decode_gap(engine: &Engine<'_>, window: &Window) -> Result<f64> {
    let (head, hidden) = (engine.head()?, engine.hidden());
    let at_once = states(engine, std::slice::from_ref(window))?;
    let mut cache = engine.cache(window.tokens.len())?;
    let mut one_by_one = Vec::with_capacity(window.tokens.len() * hidden);
    for token in &window.tokens {
        let tokens = std::slice::from_ref(token);
        one_by_one.extend(engine.forward(&mut [Sequence { tokens, cache: &mut cache }])?);
    }
    let one_by_one = &one_by_one[window.scored.start * hidden..window.scored.end * hidden];
    let side = |hidden| Side { name: "the model", head: &head, hidden };
    let tokens = compare(&side(&at_once), &[side(one_by_one)], &targets(std::slice::from_ref(window)))?;
    Ok(tokens.iter().flatten().map(|t| t.kld).fold(0.0, f64::max))
}

/// What makes a layer's keys hard to store in few bits; the worst of its heads.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Keys {
    pub layer: usize,
    /// Mean square error of 4 bits by token, over the variance of the keys around each channel's mean: what tells tokens
    /// apart. 0.008 for normal keys.
    pub outliers: f64,
    /// How far the first key is from the mean of the others, over their standard deviation (both summed over channels).
    pub sink: f64,
}

/// From this error on, four bits by token cost several times what they cost normal keys, and rotation helps.
pub const OUTLIERS: f64 = 0.05;
/// From this one on, as much is lost as tells keys apart: a bias that all tokens share is far larger than they are, and rotation
/// spreads it over the channels that were spared.
pub const MASSIVE: f64 = 0.5;
/// A first key this far away draws attention by itself, and an error of it moves every query.
pub const SINK: f64 = 3.0;

/// Looks at the keys of so many tokens of a window, which an engine with a cache in single precision runs.
pub fn keys(engine: &Engine<'_>, window: &Window) -> Result<Vec<Keys>> {
    let tokens = &window.tokens[..window.tokens.len().min(256)];
    let mut cache = engine.cache(tokens.len())?;
    engine.forward(&mut [Sequence { tokens, cache: &mut cache }])?;
    let shape = engine.kv_shape();
    let head = |layer: usize, head: usize| {
        let key = cache.full_key(layer, head)?;
        let (n, d) = (tokens.len(), shape.head_dim);
        let all: Vec<f32> = (0..n).flat_map(|t| (0..d).map(move |c| (t, c))).map(|(t, c)| key(t, c)).collect();
        Some(judge(&all, d))
    };
    let worst = |layer| {
        let found = (0..shape.heads).filter_map(|h| head(layer, h));
        let (outliers, sink) = found.fold((0f64, 0f64), |(a, b), (c, d)| (a.max(c), b.max(d)));
        Keys { layer, outliers, sink }
    };
    Ok((0..shape.layers).map(worst).collect())
}

/// Outliers and sink of `[tokens][head_dim]`.
fn judge(all: &[f32], d: usize) -> (f64, f64) {
    let behind = all.get(d..).unwrap_or_default();
    let n = (behind.len() / d).max(1) as f64;
    let mean: Vec<f64> = (0..d)
        .map(|c| behind[c.min(behind.len())..].iter().step_by(d).map(|x| f64::from(*x)).sum::<f64>() / n)
        .collect();
    let off = |i: usize, x: f32| (f64::from(x) - mean[i % d]).powi(2);
    let variance = behind.iter().enumerate().map(|(i, x)| off(i, *x)).sum::<f64>() / n;
    let first: f64 = all[..d.min(all.len())].iter().enumerate().map(|(i, x)| off(i, *x)).sum();
    let sink = (first / variance.max(f64::MIN_POSITIVE)).sqrt();
    let wide = d.next_multiple_of(Q4_0.weights);
    let padded: Vec<f32> =
        behind.chunks_exact(d).flat_map(|k| k.iter().copied().chain(std::iter::repeat_n(0.0, wide - d))).collect();
    let mut bytes = vec![0; Q4_0.row_bytes(padded.len())];
    let mut back = vec![0.0; padded.len()];
    if let Some(encode) = Q4_0.block().and_then(|b| b.encode) {
        (encode.run)(&padded, wide, None, &mut bytes);
        (Q4_0.decode)(&bytes, &mut back);
    }
    let lost = padded.iter().zip(&back).map(|(x, y)| f64::from(x - y).powi(2)).sum::<f64>() / n;
    (lost / variance.max(f64::MIN_POSITIVE), sink)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Normal keys; a channel with an offset; a first key of its own.
    #[test]
    fn what_is_hard_is_seen() {
        let noise = |i: usize| {
            (0..12).map(|j| ((i * 12 + j) as f32 * 12.9898).sin() * 43758.547).map(|x| x - x.floor() - 0.5).sum::<f32>()
        };
        let plain: Vec<f32> = (0..200 * 64).map(noise).collect();
        let (outliers, sink) = judge(&plain, 64);
        assert!((0.004..0.012).contains(&outliers) && (0.7..1.3).contains(&sink), "{outliers} {sink}");
        let mut offset = plain.clone();
        offset.iter_mut().skip(5).step_by(64).for_each(|x| *x += 30.0);
        let (outliers, sink) = judge(&offset, 64);
        assert!(outliers > OUTLIERS && sink < SINK, "{outliers} {sink}");
        let mut first = plain;
        first[..64].iter_mut().for_each(|x| *x = *x * 4.0 + 3.0);
        let (outliers, sink) = judge(&first, 64);
        assert!(outliers < OUTLIERS && sink > SINK, "{outliers} {sink}");
    }
}

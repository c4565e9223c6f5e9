//! Rotary position embedding: angles of every position, and the turning of heads.
//! Sources: RoFormer (2104.09864), YaRN (2309.00071), LongRoPE (2402.13753); llama.cpp for what GGUF's keys mean.

use rayon::prelude::*;

use crate::arch::ModelSpec;
use crate::error::{Error, Result};

/// Cosine and sine of every position and pair.
#[derive(Debug)]
pub struct Angles {
    /// `[position][pair]` of cosine and sine, times the scaling's magnitude.
    turns: Vec<[f32; 2]>,
    pairs: usize,
}

/// Which rows of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `(2i, 2i + 1)`
    Neighbours,
    /// `(i, i + d/2)`
    Halves,
}

/// What decides the angles: the base, and a divisor for each pair (empty: all 1).
pub struct Frequencies<'a> {
    pub base: f64,
    pub divisors: &'a [f32],
    /// Linear and YaRN scaling apply; not to layers with a window of their own base.
    pub scaled: bool,
}

impl Angles {
    pub fn new(spec: &ModelSpec, frequencies: &Frequencies<'_>, positions: usize) -> Result<Angles> {
        let dim = spec.rope_dim().min(spec.head_dim());
        let pairs = dim / 2;
        if !frequencies.divisors.is_empty() && frequencies.divisors.len() < pairs {
            let n = frequencies.divisors.len();
            return Err(Error::input(format!("{n} rope factors for {pairs} pairs of a head")));
        }
        let rates: Vec<f64> = (0..pairs)
            .map(|pair| {
                let divisor = frequencies.divisors.get(pair).copied().unwrap_or(1.0);
                frequencies.base.powf(-(2.0 * pair as f64) / dim as f64) / f64::from(divisor)
            })
            .collect();
        let (rates, magnitude) = if frequencies.scaled { scale(spec, rates, frequencies.base) } else { (rates, 1.0) };
        let row = |position: usize| {
            let angle = move |rate: &f64| {
                let (sin, cos) = (position as f64 * rate).sin_cos();
                [(cos * magnitude) as f32, (sin * magnitude) as f32]
            };
            rates.iter().map(angle).collect::<Vec<_>>()
        };
        Ok(Angles { turns: (0..positions).into_par_iter().flat_map_iter(row).collect(), pairs })
    }

    pub fn pairs(&self) -> usize {
        self.pairs
    }

    /// Of the first so many positions: `[position][pair]` of cosine and sine.
    pub fn first(&self, positions: usize) -> &[[f32; 2]] {
        &self.turns[..positions * self.pairs]
    }

    /// Turns every head of `x`, `[tokens][heads * head_dim]`, whose first row stands at `position`.
    pub fn turn(&self, pairing: Pairing, head_dim: usize, row: usize, position: usize, x: &mut [f32]) {
        x.par_chunks_mut(row).enumerate().for_each(|(t, x)| {
            let turns = &self.turns[(position + t) * self.pairs..][..self.pairs];
            for head in x.chunks_exact_mut(head_dim) {
                for (i, [cos, sin]) in turns.iter().enumerate() {
                    let (a, b) = match pairing {
                        Pairing::Neighbours => (2 * i, 2 * i + 1),
                        Pairing::Halves => (i, i + self.pairs),
                    };
                    let (x, y) = (head[a], head[b]);
                    head[a] = x * cos - y * sin;
                    head[b] = x * sin + y * cos;
                }
            }
        });
    }
}

/// The scaled rates and the factor on cosine and sine.
fn scale(spec: &ModelSpec, rates: Vec<f64>, base: f64) -> (Vec<f64>, f64) {
    let own = f64::from(spec.rope_attn_factor.unwrap_or(1.0));
    let factor = f64::from(spec.rope_factor.filter(|f| *f > 0.0).unwrap_or(1.0));
    match spec.rope_scaling.as_deref() {
        Some("linear") => (rates.iter().map(|r| r / factor).collect(), own),
        Some("yarn") => yarn(spec, rates, base, factor, own),
        _ => (rates, own),
    }
}

/// Pairs that turn often within the trained context keep their rate, slow ones are stretched, those between blended. The borders
/// are whole, as llama.cpp has them: gpt-oss's `truncate: false` is lost in GGUF, and one model must not be two.
fn yarn(spec: &ModelSpec, rates: Vec<f64>, base: f64, factor: f64, own: f64) -> (Vec<f64>, f64) {
    let dim = 2 * rates.len();
    let or = |x: Option<f32>, default: f64| x.map_or(default, f64::from);
    let trained = spec.rope_original_context.or(spec.context).unwrap_or(1);
    let border =
        |turns: f64| dim as f64 * (f64::from(trained) / (turns * std::f64::consts::TAU)).ln() / (2.0 * base.ln());
    let low = border(or(spec.yarn_beta_fast, 32.0)).floor().max(0.0);
    let high = border(or(spec.yarn_beta_slow, 1.0)).ceil().min(dim as f64 - 1.0);
    let strength = or(spec.yarn_ext_factor, 1.0);
    let blend = |(pair, rate): (usize, &f64)| {
        let ramp = 1.0 - ((pair as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
        let keep = ramp * strength;
        rate / factor * (1.0 - keep) + rate * keep
    };
    // config.json's `attention_factor` is the whole magnitude, where it is given.
    let magnitude = spec.yarn_attn_factor.map_or(1.0 + 0.1 * factor.ln(), f64::from);
    (rates.iter().enumerate().map(blend).collect(), magnitude * own)
}

//! Softmax statistics of logits that are never all in memory: a block of the vocabulary at a time, for a reference and the
//! models compared with it, straight from their hidden states.

use super::simd::{self, LANES, exp};
use crate::widest::widest;

/// What one token's logits say, gathered block by block. Sums are f64: divergences of 1e-6 are differences of numbers near 10.
#[repr(C)]
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Running {
    /// Largest logit so far, its token, and the sum of `e^(logit - largest)`.
    largest: f32,
    top: u32,
    sum: f64,
    /// The logit of the token that came next in the text.
    target: f32,
    unused: f32,
}

impl Running {
    pub const NONE: Running = Running { largest: f32::NEG_INFINITY, top: 0, sum: 0.0, target: f32::NAN, unused: 0.0 };

    fn log_sum(&self) -> f64 {
        f64::from(self.largest) + self.sum.ln()
    }
}

/// One position: the reference's distribution and that of each model.
#[derive(Clone, Debug)]
struct Position {
    reference: Running,
    models: Vec<Running>,
    /// Sum of `e^(p - largest p) * (p - q)` for each model.
    gaps: Vec<f64>,
}

/// Positions of a batch, over one range of the vocabulary.
#[derive(Clone, Debug)]
pub struct Scores(Vec<Position>);

/// What one position says of one model; logarithms are natural.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenScore {
    /// -log p of the next token, by the reference and by the model.
    pub nll_ref: f64,
    pub nll: f64,
    /// KL divergence of the model from the reference over the whole vocabulary.
    pub kld: f64,
    pub same_top: bool,
}

impl Scores {
    pub fn new(positions: usize, models: usize) -> Scores {
        let none = Position { reference: Running::NONE, models: vec![Running::NONE; models], gaps: vec![0.0; models] };
        Scores(vec![none; positions])
    }

    /// What another device gathered for one model: of each position the reference, the model, and the gap between them.
    pub fn gathered(positions: impl Iterator<Item = (Running, Running, f64)>) -> Scores {
        let position = |(reference, model, gap)| Position { reference, models: vec![model], gaps: vec![gap] };
        Scores(positions.map(position).collect())
    }

    /// The models of both, which were held to one reference.
    pub fn beside(mut self, other: Scores) -> Scores {
        for (a, b) in self.0.iter_mut().zip(other.0) {
            a.models.extend(b.models);
            a.gaps.extend(b.gaps);
        }
        self
    }

    /// Takes in the logits of tokens `first..first + n` at `position`; of `target` they hold the logit if it is among them.
    pub fn add(&mut self, position: usize, first: usize, target: u32, reference: &[f32], models: &[&[f32]]) {
        let at = &mut self.0[position];
        let before = at.reference;
        take(&mut at.reference, first, target, reference);
        // What was summed relative to another maximum is scaled to the new one.
        let rescale = rescale(before.largest, at.reference.largest);
        for ((running, gap), logits) in at.models.iter_mut().zip(&mut at.gaps).zip(models) {
            take(running, first, target, logits);
            *gap = *gap * rescale + weighted_gap(reference, logits, at.reference.largest);
        }
    }

    /// Joins what was gathered over two ranges of the vocabulary, `other`'s after this one's.
    pub fn merge(&mut self, other: &Scores) {
        for (a, b) in self.0.iter_mut().zip(&other.0) {
            let largest = a.reference.largest.max(b.reference.largest);
            let (mine, theirs) = (rescale(a.reference.largest, largest), rescale(b.reference.largest, largest));
            for (gap, other) in a.gaps.iter_mut().zip(&b.gaps) {
                *gap = *gap * mine + other * theirs;
            }
            join(&mut a.reference, &b.reference);
            a.models.iter_mut().zip(&b.models).for_each(|(a, b)| join(a, b));
        }
    }

    /// -log p of the next token at every position, by the reference.
    pub fn reference(&self) -> impl Iterator<Item = f64> + '_ {
        self.0.iter().map(|at| at.reference.log_sum() - f64::from(at.reference.target))
    }

    /// The most likely token at every position, by the reference; of equal ones the first.
    pub fn top(&self) -> impl Iterator<Item = u32> + '_ {
        self.0.iter().map(|at| at.reference.top)
    }

    /// Positions of one model.
    pub fn finish(&self, model: usize) -> impl Iterator<Item = TokenScore> + '_ {
        self.0.iter().map(move |at| {
            let (p, q) = (&at.reference, &at.models[model]);
            let kld = at.gaps[model] / p.sum - p.log_sum() + q.log_sum();
            TokenScore {
                nll_ref: p.log_sum() - f64::from(p.target),
                nll: q.log_sum() - f64::from(q.target),
                // Below zero by rounding alone.
                kld: if kld < 0.0 { 0.0 } else { kld },
                same_top: p.top == q.top,
            }
        })
    }
}

fn rescale(from: f32, to: f32) -> f64 {
    if from == to { 1.0 } else { f64::from(from - to).exp() }
}

fn take(running: &mut Running, first: usize, target: u32, logits: &[f32]) {
    let (largest, at) = largest(logits);
    if largest > running.largest {
        running.sum *= rescale(running.largest, largest);
        (running.largest, running.top) = (largest, (first + at) as u32);
    }
    running.sum += exp_sum(logits, running.largest);
    if let Some(logit) = (target as usize).checked_sub(first).and_then(|i| logits.get(i)) {
        running.target = *logit;
    }
}

fn join(a: &mut Running, b: &Running) {
    let largest = a.largest.max(b.largest);
    a.sum = a.sum * rescale(a.largest, largest) + b.sum * rescale(b.largest, largest);
    if b.largest > a.largest {
        (a.largest, a.top) = (b.largest, b.top);
    }
    if a.target.is_nan() {
        a.target = b.target;
    }
}

/// The largest and the first place of it.
fn largest(logits: &[f32]) -> (f32, usize) {
    let largest = max(logits);
    (largest, logits.iter().position(|x| *x == largest).unwrap_or(0))
}

widest! {
    fn max(x: &[f32]) -> f32 = simd::max;
}

widest! {
    /// Sum of `e^(x - largest)`
    fn exp_sum(x: &[f32], largest: f32) -> f64 = exp_sum_body;
}

#[inline(always)]
fn exp_sum_body(x: &[f32], largest: f32) -> f64 {
    sum(x, x, |x, _| exp(x - largest))
}

widest! {
    /// Sum of `e^(p - largest) * (p - q)`
    fn weighted_gap(p: &[f32], q: &[f32], largest: f32) -> f64 = weighted_gap_body;
}

#[inline(always)]
fn weighted_gap_body(p: &[f32], q: &[f32], largest: f32) -> f64 {
    sum(p, q, |p, q| exp(p - largest) * (p - q))
}

/// In [`LANES`] sums, whatever the vectors' width.
#[inline(always)]
fn sum(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a.iter().zip(b) {
        for ((lane, a), b) in lanes.iter_mut().zip(a).zip(b) {
            *lane += f64::from(f(*a, *b));
        }
    }
    for ((lane, a), b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane += f64::from(f(*a, *b));
    }
    lanes.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_ranges_give_the_whole() {
        let vocab = 1000;
        let p: Vec<f32> = (0..vocab).map(|i| ((i * 7919) % 997) as f32 / 60.0 - 3.0).collect();
        let near: Vec<f32> = p.iter().enumerate().map(|(i, x)| x + ((i * 31) % 17) as f32 * 1e-3).collect();
        let far: Vec<f32> = (0..vocab).map(|i| ((i * 104_729) % 991) as f32 / 100.0).collect();
        let target = 613u32;
        let over = |range: std::ops::Range<usize>| {
            let mut s = Scores::new(1, 3);
            for first in range.clone().step_by(96) {
                let part = first..range.end.min(first + 96);
                let models = [&near[part.clone()], &far[part.clone()], &p[part.clone()]];
                s.add(0, first, target, &p[part], &models);
            }
            s
        };
        let mut all = over(0..300);
        all.merge(&over(300..700));
        all.merge(&over(700..vocab));
        let softmax = |x: &[f32]| -> Vec<f64> {
            let total: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
            x.iter().map(|x| f64::from(*x).exp() / total).collect()
        };
        let (ep, models) = (softmax(&p), [softmax(&near), softmax(&far), softmax(&p)]);
        for (m, eq) in models.iter().enumerate() {
            let got = all.finish(m).next().unwrap();
            let kld: f64 = ep.iter().zip(eq).map(|(p, q)| p * (p / q).ln()).sum();
            assert!((got.kld - kld).abs() < 1e-6 * kld.max(1e-2), "{} {kld}", got.kld);
            assert!((got.nll - -eq[target as usize].ln()).abs() < 1e-6, "{}", got.nll);
            assert!((got.nll_ref - -ep[target as usize].ln()).abs() < 1e-6);
            let top = |x: &[f64]| (0..vocab).max_by(|a, b| x[*a].total_cmp(&x[*b]).then(b.cmp(a))).unwrap();
            assert_eq!(got.same_top, top(&ep) == top(eq));
        }
        assert_eq!(all.finish(2).next().unwrap().kld, 0.0, "a model does not diverge from itself");
    }
}

//! Quantiles of the divergence, of all tokens and of draws of whole chunks, without sorting each draw.

use crate::device::cpu::TokenScore;

/// What is known of a distribution beside its mean: share of the tokens below.
pub const QUANTILES: [f64; 5] = [0.5, 0.9, 0.95, 0.99, 0.999];

/// KL divergences of all tokens, the largest first, and the chunk that each is from.
pub struct Ranked(Vec<(f64, usize)>);

impl Ranked {
    pub fn of(chunks: &[Vec<TokenScore>]) -> Ranked {
        let chunk = |(i, chunk): (usize, &Vec<TokenScore>)| chunk.iter().map(|t| (t.kld, i)).collect::<Vec<_>>();
        let mut all: Vec<(f64, usize)> = chunks.iter().enumerate().flat_map(chunk).collect();
        all.sort_unstable_by(|a, b| b.0.total_cmp(&a.0));
        Ranked(all)
    }

    pub fn largest(&self) -> f64 {
        self.0.first().map_or(0.0, |(kld, _)| *kld)
    }

    /// [`QUANTILES`] of `tokens`, which are those of every chunk so many `times`.
    pub fn quantiles(&self, times: &[usize], tokens: usize) -> [f64; QUANTILES.len()] {
        QUANTILES.map(|q| {
            let (below, share) = rank(q, tokens);
            let (mut rest, mut seen, mut value) = (self.0.iter(), 0, 0.0);
            // The value of a rank from below; ranks must fall from call to call.
            let mut at = |rank: usize| {
                while seen + rank < tokens {
                    let Some((kld, chunk)) = rest.next() else { break };
                    (value, seen) = (*kld, seen + times[*chunk]);
                }
                value
            };
            let above = at((below + 1).min(tokens - 1));
            between(at(below), above, share)
        })
    }
}

/// Where the `q` quantile (0 to 1) of `n` ascending values lies: the place below it, and its share of the way to the next.
fn rank(q: f64, n: usize) -> (usize, f64) {
    let rank = q * (n - 1) as f64;
    (rank as usize, rank.fract())
}

fn between(below: f64, above: f64, share: f64) -> f64 {
    if share == 0.0 { below } else { below + (above - below) * share }
}

/// The `q` quantile of an ascending, non-empty list, linear between neighbours as numpy has it.
pub fn percentile(sorted: &[f64], q: f64) -> f64 {
    let (below, share) = rank(q, sorted.len());
    between(sorted[below], sorted[(below + 1).min(sorted.len() - 1)], share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_as_numpy() {
        // numpy.percentile([1, 2, 4, 8, 16], [0, 10, 50, 90, 99, 99.9, 100])
        let list = [1.0, 2.0, 4.0, 8.0, 16.0];
        for (q, value) in [(0.0, 1.0), (0.1, 1.4), (0.5, 4.0), (0.9, 12.8), (0.99, 15.68), (0.999, 15.968), (1.0, 16.0)]
        {
            let found = percentile(&list, q);
            assert!((found - value).abs() < 1e-9, "{found} is not {value}");
        }
    }

    /// Draws are what their tokens, written out and sorted, have for quantiles.
    #[test]
    fn a_draw_needs_no_sorting() {
        let kld = |i: usize| (i * 7919 % 101) as f64 / 7.0;
        let token = |i| TokenScore { nll_ref: 1.0, nll: 1.0, kld: kld(i), same_top: true };
        let lengths = [1, 30, 7, 2];
        let chunks: Vec<Vec<TokenScore>> =
            lengths.iter().map(|n| (0..*n).map(|i| token(i * 13 + n)).collect()).collect();
        let ranked = Ranked::of(&chunks);
        for times in [[1, 1, 1, 1], [4, 0, 0, 0], [0, 3, 0, 1], [0, 0, 1, 3], [1, 2, 1, 0]] {
            let drawn = chunks.iter().zip(times).flat_map(|(chunk, n)| std::iter::repeat_n(chunk, n).flatten());
            let mut all: Vec<f64> = drawn.map(|t| t.kld).collect();
            all.sort_unstable_by(f64::total_cmp);
            assert_eq!(ranked.quantiles(&times, all.len()), QUANTILES.map(|q| percentile(&all, q)), "{times:?}");
        }
        assert_eq!(ranked.largest(), chunks.iter().flatten().map(|t| t.kld).fold(0.0, f64::max));
    }
}

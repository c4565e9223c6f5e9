//! 95 % intervals, by resampling whole chunks, because the tokens of one chunk resemble each other: block bootstrap (Künsch 1989), percentile interval (Efron 1979), widened
//! where chunks are few.

use super::quantiles::percentile;

/// Resamples of a bootstrap.
pub const RESAMPLES: usize = 2000;
/// Every run draws the same resamples.
pub const SEED: u64 = 0;
/// Both ends of a 95 % interval.
const TAILS: [f64; 2] = [0.025, 0.975];

/// What an interval of so many chunks is widened by, to both sides. Resampling n of n knows too small a spread, by sqrt((n - 1) / n),
/// and of the tails no more than a normal distribution, where Student's t is due (Hesterberg 2015): 9 times for 2 chunks, 1.4 for
/// 6, 1.04 for 40.
pub fn widening(chunks: usize) -> f64 {
    const Z: f64 = 1.959_964;
    const T: [f64; 10] = [12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281];
    let freedom = chunks.saturating_sub(1).max(1);
    let (n, f) = (chunks as f64, freedom as f64);
    // Cornish and Fisher's expansion, exact to a thousandth from there on.
    let t = T.get(freedom - 1).copied().unwrap_or(Z + 2.372 / f + 2.823 / (f * f) + 2.556 / f.powi(3));
    t / Z * (n / (n - 1.0).max(1.0)).sqrt()
}

/// The ends of the 95 % interval around `value`, of draws of so many chunks, within what the figure can be.
pub fn ends(value: f64, mut draws: Vec<f64>, chunks: usize, [least, most]: [f64; 2]) -> [f64; 2] {
    draws.sort_unstable_by(f64::total_cmp);
    TAILS.map(|q| (value + (percentile(&draws, q) - value) * widening(chunks)).clamp(least, most))
}

/// A figure of sums over chunks, and the ends of its 95 % interval, by the draws of [`summarize`](super::stats::summarize); all the same for one chunk.
pub fn resampled<const N: usize>(chunks: &[[f64; N]], figure: impl Fn([f64; N]) -> f64) -> [f64; 3] {
    let add = |mut sums: [f64; N], chunk: &[f64; N]| {
        sums.iter_mut().zip(chunk).for_each(|(sum, x)| *sum += x);
        sums
    };
    let whole = figure(chunks.iter().fold([0.0; N], add));
    if chunks.len() < 2 {
        return [whole; 3];
    }
    let mut rng = SplitMix(SEED);
    let mut draw = || figure((0..chunks.len()).fold([0.0; N], |sums, _| add(sums, &chunks[rng.below(chunks.len())])));
    let draws: Vec<f64> = (0..RESAMPLES).map(|_| draw()).collect();
    let [low, high] = ends(whole, draws, chunks.len(), [f64::NEG_INFINITY, f64::INFINITY]);
    [whole, low, high]
}

/// SplitMix64 (Steele, Lea and Flood 2014).
pub struct SplitMix(pub u64);

impl SplitMix {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// 0 to n - 1; its bias of n / 2^64 shows nowhere.
    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Means of the same distribution, a skewed one: how often the interval has the true mean in it.
    #[test]
    fn intervals_of_few_chunks_are_as_sure_as_they_say() {
        for (n, least) in [(2, 0.9), (3, 0.88), (6, 0.88), (20, 0.9)] {
            let mut rng = SplitMix(n as u64);
            let mut uniform = move || (rng.next() >> 11) as f64 / (1u64 << 53) as f64;
            let trials = 400;
            let holds = (0..trials).filter(|_| {
                let chunks: Vec<[f64; 2]> =
                    (0..n).map(|_| [(0..4).map(|_| -uniform().max(1e-12).ln()).sum(), 4.0]).collect();
                let [_, low, high] = resampled(&chunks, |[sum, n]| sum / n);
                (low..=high).contains(&1.0)
            });
            let share = holds.count() as f64 / f64::from(trials);
            assert!((least..=1.0).contains(&share), "{n} chunks: {share}");
        }
        assert!((widening(12) - 2.201 / 1.96 * (12.0f64 / 11.0).sqrt()).abs() < 1e-3);
        assert!(widening(1000) < 1.003);
    }
}

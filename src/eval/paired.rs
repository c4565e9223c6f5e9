//! Two models on the same questions: is one worse, and could it have been noticed?

use serde::Serialize;

/// The 0.975 and 0.8 quantiles of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;
const POWER: f64 = 0.841_621_233_572_914;
/// What a verdict may be wrong in.
pub const ALPHA: f64 = 0.05;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    Loss,
    Gain,
    /// No difference that these questions could show.
    None,
}

/// An artifact against its reference, question by question.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Paired {
    pub of: usize,
    /// Right before and wrong now; wrong before and right now.
    pub lost: usize,
    pub gained: usize,
    /// Change of the share of right answers, with a 95 % interval. Source: Bonett and Price 2012.
    pub difference: f64,
    pub low: f64,
    pub high: f64,
    /// Two-sided, exact. Source: McNemar 1947.
    pub p: f64,
    /// The same, for all tasks looked at. Source: Holm 1979.
    pub holm: f64,
    /// The smallest change that so many questions, of which so many flip, show four times in five. Source: Connor 1987.
    pub detectable: f64,
    pub verdict: Verdict,
}

impl Paired {
    /// `None`: no questions.
    pub fn of(before: &[bool], now: &[bool]) -> Option<Paired> {
        let pairs = || before.iter().zip(now);
        let of = pairs().count();
        if of == 0 {
            return None;
        }
        let lost = pairs().filter(|(b, n)| **b && !**n).count();
        let gained = pairs().filter(|(b, n)| !**b && **n).count();
        let n = of as f64;
        let (up, down) = ((gained as f64 + 1.0) / (n + 2.0), (lost as f64 + 1.0) / (n + 2.0));
        let half = Z * ((up + down - (up - down).powi(2)) / (n + 2.0)).max(0.0).sqrt();
        let p = mcnemar(lost, gained);
        let paired = Paired {
            of,
            lost,
            gained,
            difference: (gained as f64 - lost as f64) / n,
            low: (up - down - half).max(-1.0),
            high: (up - down + half).min(1.0),
            p,
            holm: p,
            detectable: detectable(of, (lost + gained + 1) as f64 / (n + 1.0)),
            verdict: Verdict::None,
        };
        Some(paired.judged())
    }

    fn judged(mut self) -> Paired {
        self.verdict = match self.holm < ALPHA {
            true if self.lost > self.gained => Verdict::Loss,
            true => Verdict::Gain,
            false => Verdict::None,
        };
        self
    }

    /// What is said of it.
    pub fn says(&self) -> String {
        match self.verdict {
            Verdict::Loss => "loss".to_owned(),
            Verdict::Gain => "gain".to_owned(),
            Verdict::None => format!("no loss seen, {:.1} pt would be", self.detectable * 100.0),
        }
    }
}

/// Probability of flips at least as uneven, if both directions were equally likely.
fn mcnemar(lost: usize, gained: usize) -> f64 {
    let (n, least) = (lost + gained, lost.min(gained));
    let mut ln_choose = 0.0;
    let mut sum = 0.0;
    for k in 0..=least {
        if k > 0 {
            ln_choose += ((n - k + 1) as f64 / k as f64).ln();
        }
        sum += (ln_choose - n as f64 * std::f64::consts::LN_2).exp();
    }
    (2.0 * sum).min(1.0)
}

/// The difference that `n` questions show at 5 % and with power 0.8, where the share `flips` of them changes either way: half of
/// 1.96 sqrt(flips) + 0.84 sqrt(flips - d^2) = d sqrt(n). It is at most `flips`.
fn detectable(n: usize, flips: f64) -> f64 {
    let enough = |d: f64| d * (n as f64).sqrt() >= Z * flips.sqrt() + POWER * (flips - d * d).max(0.0).sqrt();
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..50 {
        let middle = (low + high) / 2.0;
        if enough(middle) { high = middle } else { low = middle }
    }
    high
}

/// Adjusts the probabilities of all comparisons of one model, and the verdicts with them.
pub fn holm(all: &mut [&mut Paired]) {
    let mut order: Vec<usize> = (0..all.len()).collect();
    order.sort_by(|a, b| all[*a].p.total_cmp(&all[*b].p));
    let mut least: f64 = 0.0;
    for (rank, i) in order.into_iter().enumerate() {
        least = least.max((all[i].p * (all.len() - rank) as f64).min(1.0));
        all[i].holm = least;
    }
    all.iter_mut().for_each(|p| **p = p.judged());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::sample::Random;

    /// By exact integers, in Python.
    #[test]
    fn exact_probabilities() {
        for (lost, gained, p) in
            [(0, 0, 1.0), (1, 0, 1.0), (5, 0, 0.0625), (10, 2, 0.038_574_218_75), (30, 10, 0.002221433773), (3, 3, 1.0)]
        {
            assert!((mcnemar(lost, gained) - p).abs() < 1e-8, "{lost}, {gained}: {}", mcnemar(lost, gained));
        }
    }

    /// The table in the literature: questions for a power of 0.8.
    #[test]
    fn detectable_differences() {
        for (flips, d, n) in [(0.04, 0.01, 3137), (0.06, 0.02, 1174), (0.10, 0.05, 311), (0.15, 0.03, 1305)] {
            assert!((detectable(n, flips) - d).abs() < 2e-4, "{flips}: {}", detectable(n, flips));
        }
    }

    #[test]
    fn many_comparisons_ask_for_more() {
        let flips = |lost: usize, of: usize| {
            Paired::of(&vec![true; of], &(0..of).map(|i| i >= lost).collect::<Vec<_>>()).unwrap()
        };
        let mut all = [flips(6, 100), flips(9, 100), flips(1, 100)];
        assert_eq!(all[0].verdict, Verdict::Loss);
        let [a, b, c] = &mut all;
        holm(&mut [a, b, c]);
        assert!((all[0].holm - 2.0 * 0.03125).abs() < 1e-12 && all[0].verdict == Verdict::None);
        assert_eq!((all[1].verdict, all[2].verdict), (Verdict::Loss, Verdict::None));
        assert!(Paired::of(&[], &[]).is_none());
    }

    /// Of 400 pairs of equal models at most 5 % are called different; a loss of the size that is called detectable is found four
    /// times in five, nearly.
    #[test]
    fn verdicts_keep_their_word() {
        let (n, flips) = (300, 0.10);
        let trial = |random: &mut Random, lean: f64| {
            let mut now = Vec::new();
            for _ in 0..n {
                let u = random.uniform();
                // Of 100 answers 50 are right; `flips` of them change, by `lean` more for the worse.
                now.push(if u < (flips + lean) / 2.0 {
                    (true, false)
                } else if u < flips {
                    (false, true)
                } else {
                    (u > 0.5, u > 0.5)
                });
            }
            let (before, now): (Vec<bool>, Vec<bool>) = now.into_iter().unzip();
            Paired::of(&before, &now).unwrap().verdict
        };
        let mut random = Random::new(1);
        let mut share =
            |lean: f64, verdict| (0..400).filter(|_| trial(&mut random, lean) == verdict).count() as f64 / 400.0;
        assert!(share(0.0, Verdict::Loss) + share(0.0, Verdict::Gain) <= 0.05);
        let d = detectable(n, flips);
        let found = share(d, Verdict::Loss);
        assert!((0.7..0.9).contains(&found), "{found} of losses of {d}");
        assert!(share(2.0 * d, Verdict::Loss) > 0.99);
    }
}

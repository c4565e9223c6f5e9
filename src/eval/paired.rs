//! Two models on the same questions: is one worse, and could it have been noticed?

use serde::Serialize;

/// The 0.975 and 0.8 quantiles of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;
/// The 0.9875 quantile. A Brownian motion over [0, 1] leaves a band of this half-width in 5 % of cases (reflection), so that
/// sums that are looked at after every question may be this many standard errors of *all* questions away, at any look.
/// Source: O'Brien and Fleming 1979, for continuous looks Lan and DeMets 1983.
const Z_ANY_LOOK: f64 = 2.241_402_727_604_945;
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
    /// Of so many that were to be asked at most: intervals and probabilities hold however often they were looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub planned: Option<usize>,
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
        Paired::compare(before, now, None)
    }

    /// The same for the first of `planned` questions in random order, when asking may stop as soon as the answer is known: a
    /// repeated confidence interval and a repeated p-value, under normal approximation. Source: Jennison and Turnbull 1989.
    pub fn so_far(before: &[bool], now: &[bool], planned: usize) -> Option<Paired> {
        Paired::compare(before, now, Some(planned))
    }

    fn compare(before: &[bool], now: &[bool], planned: Option<usize>) -> Option<Paired> {
        let pairs = || before.iter().zip(now);
        let of = pairs().count();
        if of == 0 {
            return None;
        }
        let lost = pairs().filter(|(b, n)| **b && !**n).count();
        let gained = pairs().filter(|(b, n)| !**b && **n).count();
        Some(Paired::counted(of, lost, gained, planned))
    }

    fn counted(of: usize, lost: usize, gained: usize, planned: Option<usize>) -> Paired {
        let n = of as f64;
        // How much wider than at the last look.
        let early = planned.map(|all| (all.max(of) as f64 / n).sqrt());
        let z = early.map_or(Z, |early| early * Z_ANY_LOOK);
        let (up, down) = ((gained as f64 + 1.0) / (n + 2.0), (lost as f64 + 1.0) / (n + 2.0));
        let error = ((up + down - (up - down).powi(2)) / (n + 2.0)).max(0.0).sqrt();
        let p = match early {
            None => mcnemar(lost, gained),
            Some(early) => (4.0 * beyond((up - down).abs() / error / early)).min(1.0),
        };
        let flips = (lost + gained + 1) as f64 / (n + 1.0);
        let paired = Paired {
            of,
            planned,
            lost,
            gained,
            difference: (gained as f64 - lost as f64) / n,
            low: (up - down - z * error).max(-1.0),
            high: (up - down + z * error).min(1.0),
            p,
            holm: p,
            detectable: match planned {
                None => detectable(of, flips, Z),
                Some(all) => detectable(all.max(of), flips, Z_ANY_LOOK),
            },
            verdict: Verdict::None,
        };
        paired.judged()
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
            Verdict::None if self.planned.is_some_and(|all| self.of < all) => {
                format!("a loss of {:.1} pt at most", -self.low.min(0.0) * 100.0)
            }
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

/// Probability that a normal variable exceeds `z` >= 0. Source: Abramowitz and Stegun 26.2.17, to 7.5e-8.
fn beyond(z: f64) -> f64 {
    let t = 1.0 / (1.0 + 0.231_641_9 * z);
    let series = [1.330_274_429, -1.821_255_978, 1.781_477_937, -0.356_563_782, 0.319_381_530];
    let sum = series.iter().fold(0.0, |sum, b| (sum + b) * t);
    (-z * z / 2.0).exp() / std::f64::consts::TAU.sqrt() * sum
}

/// The difference that `n` questions show at `z`, 1.96 for 5 %, and with power 0.8, where the share `flips` of them changes either way: half of
/// 1.96 sqrt(flips) + 0.84 sqrt(flips - d^2) = d sqrt(n). It is at most `flips`.
fn detectable(n: usize, flips: f64, z: f64) -> f64 {
    let enough = |d: f64| d * (n as f64).sqrt() >= z * flips.sqrt() + POWER * (flips - d * d).max(0.0).sqrt();
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
            assert!((detectable(n, flips, Z) - d).abs() < 2e-4, "{flips}: {}", detectable(n, flips, Z));
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
        let d = detectable(n, flips, Z);
        let found = share(d, Verdict::Loss);
        assert!((0.7..0.9).contains(&found), "{found} of losses of {d}");
        assert!(share(2.0 * d, Verdict::Loss) > 0.99);
    }

    /// Trials of a gate that allows a loss of `margin` and is looked at after every question: how often each way, and how many
    /// questions were asked. `lost` and `gained`: true shares of flips.
    fn gate(trials: usize, planned: usize, margin: f64, [lost, gained]: [f64; 2]) -> [f64; 3] {
        let mut random = Random::new(5);
        let mut counts = [0.0; 3];
        for _ in 0..trials {
            let (mut of, mut flips) = (0, [0, 0]);
            let mut decided = None;
            while decided.is_none() && of < planned {
                let u = random.uniform();
                of += 1;
                flips[0] += usize::from(u < lost);
                flips[1] += usize::from(u >= lost && u < lost + gained);
                let found = Paired::counted(of, flips[0], flips[1], Some(planned));
                decided = (found.low >= -margin).then_some(0).or((found.high < -margin).then_some(1));
            }
            decided.into_iter().for_each(|way: usize| counts[way] += 1.0 / trials as f64);
            counts[2] += of as f64 / trials as f64;
        }
        counts
    }

    /// At the limit itself, where either verdict is wrong as often as it can be: at most 5 % for both together, whether few
    /// answers flip or many, in one direction or both, with few questions or many.
    #[test]
    fn looking_after_every_question_keeps_the_error_rate() {
        for (planned, margin, flips) in [
            (100, 0.05, [0.05, 0.0]),
            (200, 0.02, [0.02, 0.0]),
            (200, 0.02, [0.05, 0.03]),
            (400, 0.0, [0.02, 0.02]),
            (400, 0.0, [0.1, 0.1]),
            (1000, 0.02, [0.05, 0.03]),
        ] {
            let [pass, regression, _] = gate(2000, planned, margin, flips);
            assert!(pass + regression <= 0.05, "{planned} questions, {flips:?}: {pass} + {regression}");
        }
    }

    /// Real losses are found with a part of the questions; and so are files that lose nothing.
    #[test]
    fn stopping_early_saves_questions() {
        let (planned, margin) = (1000, 0.02);
        for (flips, way, most) in [([0.08, 0.02], 1, 0.75), ([0.15, 0.03], 1, 0.45), ([0.01, 0.01], 0, 0.6)] {
            let found = gate(200, planned, margin, flips);
            let share = found[2] / planned as f64;
            assert!(
                found[way] > 0.85 && share < most,
                "{flips:?}: {:.2} decided, {share:.2} of the questions",
                found[way]
            );
        }
    }

    #[test]
    fn an_interval_for_any_look() {
        assert!((beyond(1.959_963_985) - 0.025).abs() < 1e-7 && (beyond(0.0) - 0.5).abs() < 1e-7);
        assert!((4.0 * beyond(Z_ANY_LOOK) - ALPHA).abs() < 1e-6);
        let (before, now) = (vec![true; 100], (0..100).map(|i| i >= 20).collect::<Vec<_>>());
        let [whole, last, early] = [
            Paired::of(&before, &now).unwrap(),
            Paired::so_far(&before, &now, 100).unwrap(),
            Paired::so_far(&before, &now, 1600).unwrap(),
        ];
        let width = |p: &Paired| p.high - p.low;
        assert!((width(&last) / width(&whole) - Z_ANY_LOOK / Z).abs() < 1e-9);
        assert!((width(&early) / width(&last) - 4.0).abs() < 1e-9);
        assert!(last.verdict == Verdict::Loss && early.verdict == Verdict::None && early.p > last.p);
        assert!((early.holm < ALPHA) == (early.high < 0.0) && (last.holm < ALPHA) == (last.high < 0.0));
    }
}

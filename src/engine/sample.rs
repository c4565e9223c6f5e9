//! From logits to a token. The order of the filters is llama.cpp's: top-k, top-p, min-p, and only then the temperature, so
//! that what is cut away does not depend on it.

use crate::error::{Error, Result};

/// How to choose. The default is greedy: the largest logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 is greedy.
    pub temperature: f32,
    /// Keeps this many of the most likely tokens; 0 keeps all.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens that together have this probability; 1 keeps all.
    pub top_p: f32,
    /// Drops tokens less likely than this fraction of the most likely one; 0 keeps all.
    pub min_p: f32,
    pub seed: u64,
}

impl Default for Sampling {
    fn default() -> Self {
        Sampling { temperature: 0.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 0 }
    }
}

/// The most likely token; among equal logits the lowest.
///
/// Errors: no logits; one that is not finite.
pub fn greediest(logits: &[f32]) -> Result<u32> {
    if let Some(id) = logits.iter().position(|l| !l.is_finite()) {
        return Err(Error::input(format!("the logit of token {id} is {}", logits[id]))
            .help("run `quant verify` on the file: it names weights that are not numbers"));
    }
    argmax(logits).ok_or_else(|| Error::input("the model has no vocabulary"))
}

/// Chooses one token after another: the same ones for the same logits and seed.
pub struct Sampler {
    sampling: Sampling,
    random: Random,
}

#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Sampler {
    /// Errors: a setting outside its range.
    pub fn new(sampling: Sampling) -> Result<Sampler> {
        let Sampling { temperature, top_p, min_p, seed, .. } = sampling;
        let rules = [
            ("temperature", temperature, temperature.is_finite() && temperature >= 0.0, "a number from 0 on"),
            ("top-p", top_p, top_p > 0.0 && top_p <= 1.0, "above 0 and at most 1"),
            ("min-p", min_p, (0.0..1.0).contains(&min_p), "from 0 to below 1"),
        ];
        match rules.into_iter().find(|(_, _, ok, _)| !ok) {
            Some((name, value, _, range)) => Err(Error::request(format!("{name} is {value}, it must be {range}"))),
            None => Ok(Sampler { sampling, random: Random::new(seed) }),
        }
    }

    /// The next token. Among equal logits the lower id comes first.
    ///
    /// Errors: no logits; one that is not finite.
    pub fn next(&mut self, logits: &[f32]) -> Result<u32> {
        let best = greediest(logits)?;
        if self.sampling.temperature == 0.0 {
            return Ok(best);
        }
        let kept = self.keep(logits);
        let (most, temperature) = (f64::from(logits[best as usize]), f64::from(self.sampling.temperature));
        let weights: Vec<f64> = kept.iter().map(|c| ((f64::from(c.logit) - most) / temperature).exp()).collect();
        let mut left = self.random.uniform() * weights.iter().sum::<f64>();
        for (candidate, weight) in kept.iter().zip(&weights) {
            left -= weight;
            if left < 0.0 {
                return Ok(candidate.id);
            }
        }
        Ok(best) // rounding left nothing to subtract from
    }

    /// What the filters leave; always the most likely token.
    fn keep(&self, logits: &[f32]) -> Vec<Candidate> {
        let Sampling { top_k, top_p, min_p, .. } = self.sampling;
        let mut kept: Vec<_> = (0..).zip(logits).map(|(id, &logit)| Candidate { id, logit }).collect();
        if (1..kept.len()).contains(&top_k) {
            kept.select_nth_unstable_by(top_k - 1, likelier);
            kept.truncate(top_k);
        }
        kept.sort_unstable_by(likelier);
        let Some(most) = kept.first().map(|c| f64::from(c.logit)) else { return kept };
        let odds = |c: &Candidate| (f64::from(c.logit) - most).exp();
        if top_p < 1.0 {
            let enough = f64::from(top_p) * kept.iter().map(odds).sum::<f64>();
            let mut sum = 0.0;
            let reached = kept.iter().position(|c| {
                sum += odds(c);
                sum >= enough
            });
            kept.truncate(reached.map_or(kept.len(), |at| at + 1));
        }
        let likely = kept.partition_point(|c| odds(c) >= f64::from(min_p));
        kept.truncate(likely);
        kept
    }
}

/// The largest of finite logits, the lowest id among equals.
pub fn argmax(logits: &[f32]) -> Option<u32> {
    let all = (0..).zip(logits).map(|(id, &logit)| Candidate { id, logit });
    all.min_by(likelier).map(|c| c.id)
}

fn likelier(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    // Not `total_cmp`, which tells 0 from -0.
    b.logit.partial_cmp(&a.logit).unwrap_or(std::cmp::Ordering::Equal).then(a.id.cmp(&b.id))
}

/// SplitMix64. Source: Steele, Lea, Flood: Fast splittable pseudorandom number generators (2014).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below 1.
    pub fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn sampler(sampling: Sampling) -> Sampler {
        Sampler::new(sampling).unwrap()
    }

    /// How often each token comes in `n` draws.
    fn draw(sampling: Sampling, logits: &[f32], n: usize) -> BTreeMap<u32, usize> {
        let mut sampler = sampler(sampling);
        let mut counts = BTreeMap::new();
        (0..n).for_each(|_| *counts.entry(sampler.next(logits).unwrap()).or_default() += 1);
        counts
    }

    fn ids(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        sampler(sampling).keep(logits).iter().map(|c| c.id).collect()
    }

    const HOT: Sampling = Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, min_p: 0.0, seed: 7 };

    #[test]
    fn greedy_takes_the_largest_and_among_equals_the_first() {
        let mut greedy = sampler(Sampling::default());
        assert_eq!(greedy.next(&[1.0, 3.0, 3.0, -2.0]).unwrap(), 1);
        assert_eq!(greedy.next(&[-0.0, 0.0]).unwrap(), 0);
        assert_eq!(ids(Sampling { top_k: 1, ..HOT }, &[-0.0, 0.0]), [0]);
        assert_eq!(ids(Sampling { top_k: 2, ..HOT }, &[5.0, 5.0, 5.0]), [0, 1]);
    }

    #[test]
    fn filters_keep_what_their_definitions_say() {
        let logits = [0.1f32, 0.5, 0.3, 0.1].map(f32::ln);
        assert_eq!(ids(Sampling { top_p: 0.4, ..HOT }, &logits), [1]);
        assert_eq!(ids(Sampling { top_p: 0.75, ..HOT }, &logits), [1, 2]);
        assert_eq!(ids(Sampling { top_p: 0.85, ..HOT }, &logits), [1, 2, 0]);
        assert_eq!(ids(Sampling { min_p: 0.55, ..HOT }, &logits), [1, 2]);
        assert_eq!(ids(Sampling { top_k: 3, ..HOT }, &logits), [1, 2, 0]);
        // After top-k two tokens share all probability: 0.625 and 0.375.
        assert_eq!(ids(Sampling { top_k: 2, top_p: 0.6, ..HOT }, &logits), [1]);
        // The temperature comes after the filters.
        assert_eq!(ids(Sampling { top_p: 0.75, temperature: 9.0, ..HOT }, &logits), [1, 2]);
    }

    #[test]
    fn tokens_come_as_often_as_they_are_likely() {
        let p = [0.1f32, 0.5, 0.3, 0.1];
        let n = 20_000;
        let counts = draw(HOT, &p.map(f32::ln), n);
        for (id, p) in (0..).zip(p) {
            let (got, expected) = (counts[&id] as f64, f64::from(p) * n as f64);
            assert!((got - expected).abs() < 5.0 * expected.sqrt(), "{id}: {got} of {expected}");
        }
        let flat = draw(Sampling { temperature: 1e6, ..HOT }, &p.map(f32::ln), n);
        assert!(flat.values().all(|c| c.abs_diff(n / 4) < 500), "{flat:?}");
        assert_eq!(draw(Sampling { temperature: 1e-30, ..HOT }, &p.map(f32::ln), 100), BTreeMap::from([(1, 100)]));
    }

    #[test]
    fn logits_that_are_no_numbers_are_errors() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let error = sampler(Sampling::default()).next(&[0.0, bad]).unwrap_err();
            assert!(error.message().contains("token 1"), "{error}");
        }
        assert!(sampler(HOT).next(&[]).is_err());
    }

    #[test]
    fn settings_have_ranges() {
        let greedy = Sampling::default();
        for bad in [
            Sampling { temperature: -1.0, ..greedy },
            Sampling { temperature: f32::NAN, ..greedy },
            Sampling { temperature: f32::INFINITY, ..greedy },
            Sampling { top_p: 0.0, ..greedy },
            Sampling { top_p: 1.5, ..greedy },
            Sampling { min_p: 1.0, ..greedy },
            Sampling { min_p: -0.1, ..greedy },
        ] {
            assert!(Sampler::new(bad).is_err(), "{bad:?}");
        }
    }

    fn settings() -> impl Strategy<Value = Sampling> {
        (0.01f32..50.0, 0usize..40, 0.001f32..=1.0, 0.0f32..0.999, any::<u64>())
            .prop_map(|(temperature, top_k, top_p, min_p, seed)| Sampling { temperature, top_k, top_p, min_p, seed })
    }

    proptest! {
        #[test]
        fn what_is_drawn_was_kept(logits in prop::collection::vec(-90f32..90.0, 1..60), sampling in settings()) {
            let kept = ids(sampling, &logits);
            prop_assert!(!kept.is_empty());
            prop_assert!(sampling.top_k == 0 || kept.len() <= sampling.top_k);
            // Whatever stays is at least as likely as whatever goes.
            let least = kept.iter().map(|id| logits[*id as usize]).fold(f32::INFINITY, f32::min);
            let gone = (0..).zip(&logits).filter(|(id, _)| !kept.contains(id)).map(|(_, l)| *l);
            prop_assert!(gone.fold(f32::NEG_INFINITY, f32::max) <= least);
            let mut twins = [sampler(sampling), sampler(sampling)];
            for _ in 0..20 {
                let [a, b] = twins.each_mut().map(|s| s.next(&logits).unwrap());
                prop_assert!(a == b && kept.contains(&a));
            }
        }

        #[test]
        fn one_candidate_is_the_greedy_choice(logits in prop::collection::vec(-9i8..9, 1..60), sampling in settings()) {
            let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
            let greedy = sampler(Sampling::default()).next(&logits).unwrap();
            prop_assert_eq!(sampler(Sampling { top_k: 1, ..sampling }).next(&logits).unwrap(), greedy);
            prop_assert_eq!(Some(greedy), argmax(&logits));
            prop_assert!(logits.iter().position(|l| logits.iter().all(|m| m <= l)) == Some(greedy as usize));
        }

        /// A shift of all logits changes no probability. Small integers add exactly.
        #[test]
        fn only_differences_count(logits in prop::collection::vec(-9i8..9, 1..60), shift in -99i8..99, sampling in settings()) {
            let plain: Vec<f32> = logits.iter().map(|l| f32::from(*l)).collect();
            let shifted: Vec<f32> = plain.iter().map(|l| l + f32::from(shift)).collect();
            prop_assert_eq!(sampler(sampling).next(&plain).unwrap(), sampler(sampling).next(&shifted).unwrap());
        }
    }
}

//! From what each token lost to what a model lost, with how sure one can be.
//!
//! Definitions follow llama.cpp's `perplexity --kl-divergence`; how intervals come about is in `interval`.

use serde::Serialize;

use super::interval::{RESAMPLES, SEED, SplitMix, ends};
use super::quantiles::{QUANTILES, Ranked};
use crate::device::cpu::TokenScore;
use crate::error::{Error, Result};

/// A figure with its 95 % interval; no interval where there is one chunk only. Every number is finite.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Estimate {
    pub value: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

/// KL divergence from the reference, nats a token. A percentile between two ranks is interpolated linearly, as numpy does. The
/// interval is the mean's; of the largest value nobody knows one.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Divergence {
    pub mean: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub median: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    pub intervals: Option<Intervals>,
}

/// Both ends of the 95 % intervals of a [`Divergence`]'s quantiles.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Intervals {
    pub median: [f64; 2],
    pub p90: [f64; 2],
    pub p95: [f64; 2],
    pub p99: [f64; 2],
    pub p999: [f64; 2],
}

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Scored tokens.
    pub tokens: usize,
    pub chunks: usize,
    pub reference_perplexity: f64,
    /// exp of the mean negative log-likelihood.
    pub perplexity: Estimate,
    /// ln of artifact's over reference's perplexity, on the same tokens: far sharper than the difference of two intervals.
    pub ln_ppl_ratio: Estimate,
    pub kld: Divergence,
    /// Share of tokens, 0 to 1.
    pub same_top: Estimate,
    /// Mean change of the true token's probability, -1 to 1: bias.
    pub mean_delta_p: Estimate,
    /// Root mean square of that change, 0 to 1: noise.
    pub rms_delta_p: Estimate,
}

/// What a model says of a text, without a reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Likelihood {
    /// Scored tokens.
    pub tokens: usize,
    pub chunks: usize,
    /// exp of the mean negative log-likelihood.
    pub perplexity: Estimate,
}

/// Aggregates negative log-likelihoods, one inner list a chunk (a window of the protocol). Deterministic.
/// Errors: no chunks, a chunk without tokens, a number that is not finite.
pub fn likelihood(chunks: &[Vec<f64>]) -> Result<Likelihood> {
    let alone = |nll: &f64| TokenScore { nll_ref: *nll, nll: *nll, kld: 0.0, same_top: true };
    let chunks: Vec<Vec<TokenScore>> = chunks.iter().map(|chunk| chunk.iter().map(alone).collect()).collect();
    summarize(&chunks).map(|s| Likelihood { tokens: s.tokens, chunks: s.chunks, perplexity: s.perplexity })
}

/// Aggregates tokens, one inner list a chunk (a window of the protocol). Deterministic.
/// Errors: no chunks, a chunk without tokens, a number that is not finite.
pub fn summarize(chunks: &[Vec<TokenScore>]) -> Result<Summary> {
    if chunks.is_empty() {
        return Err(Error::request("no text was evaluated").help("ask for at least one chunk"));
    }
    for (index, chunk) in chunks.iter().enumerate() {
        check(chunk).map_err(|e| e.at(format!("chunk {index}")))?;
    }
    let sums: Vec<Sums> = chunks.iter().map(|chunk| Sums::of(chunk)).collect();
    let whole = sums.iter().fold(Sums::default(), Sums::plus);
    let ranked = Ranked::of(chunks);
    let intervals = bootstrap(&sums, &ranked);
    let estimate = |figure: usize| Estimate {
        value: whole.figures()[figure],
        low: intervals.map(|(i, _)| i[figure][0]),
        high: intervals.map(|(i, _)| i[figure][1]),
    };

    let tokens = whole.tokens as usize;
    let [median, p90, p95, p99, p999] = ranked.quantiles(&vec![1; chunks.len()], tokens);
    let mean = estimate(KLD);
    let summary = Summary {
        tokens,
        chunks: chunks.len(),
        reference_perplexity: (whole.nll_ref / whole.tokens).exp(),
        perplexity: estimate(PERPLEXITY),
        ln_ppl_ratio: estimate(LN_PPL_RATIO),
        kld: Divergence {
            mean: mean.value,
            low: mean.low,
            high: mean.high,
            median,
            p90,
            p95,
            p99,
            p999,
            max: ranked.largest(),
            intervals: intervals.map(|(_, [median, p90, p95, p99, p999])| Intervals { median, p90, p95, p99, p999 }),
        },
        same_top: estimate(SAME_TOP),
        mean_delta_p: estimate(MEAN_DELTA_P),
        rms_delta_p: estimate(RMS_DELTA_P),
    };
    let ends = [summary.perplexity.low, summary.perplexity.high];
    let perplexities =
        [summary.reference_perplexity, summary.perplexity.value].into_iter().chain(ends.into_iter().flatten());
    match perplexities.into_iter().all(f64::is_finite) {
        true => Ok(summary),
        false => Err(Error::input("the perplexity is too large for a number").help(BROKEN)),
    }
}

const BROKEN: &str =
    "the model is broken or does not fit its tokenizer: try `quant verify`, and the model it was made from";

fn check(chunk: &[TokenScore]) -> Result<()> {
    if chunk.is_empty() {
        return Err(Error::request("no token is scored"));
    }
    for (index, t) in chunk.iter().enumerate() {
        let named = [
            ("reference's negative log-likelihood", t.nll_ref),
            ("artifact's negative log-likelihood", t.nll),
            ("KL divergence", t.kld),
        ];
        if let Some((name, value)) = named.into_iter().find(|(_, value)| !value.is_finite()) {
            return Err(Error::input(format!("the {name} is {value}"))
                .at(format!("scored token {index}"))
                .help(BROKEN));
        }
    }
    Ok(())
}

/// What figures are made of, added up over tokens.
#[derive(Clone, Copy, Default)]
struct Sums {
    tokens: f64,
    nll_ref: f64,
    nll: f64,
    kld: f64,
    same_top: f64,
    delta_p: f64,
    delta_p_squared: f64,
}

/// Places in [`Sums::figures`].
const PERPLEXITY: usize = 0;
const LN_PPL_RATIO: usize = 1;
const KLD: usize = 2;
const SAME_TOP: usize = 3;
const MEAN_DELTA_P: usize = 4;
const RMS_DELTA_P: usize = 5;
const FIGURES: usize = 6;
/// What each of them can be.
const RANGES: [[f64; 2]; FIGURES] = [
    [1.0, f64::INFINITY],
    [f64::NEG_INFINITY, f64::INFINITY],
    [0.0, f64::INFINITY],
    [0.0, 1.0],
    [-1.0, 1.0],
    [0.0, 1.0],
];

impl Sums {
    fn of(chunk: &[TokenScore]) -> Sums {
        chunk.iter().fold(Sums::default(), |sums, t| {
            // A probability above 1 is one of rounding.
            let p = |nll: f64| (-nll).exp().min(1.0);
            let delta_p = p(t.nll) - p(t.nll_ref);
            sums.plus(&Sums {
                tokens: 1.0,
                nll_ref: t.nll_ref,
                nll: t.nll,
                kld: t.kld,
                same_top: f64::from(u8::from(t.same_top)),
                delta_p,
                delta_p_squared: delta_p * delta_p,
            })
        })
    }

    fn plus(self, other: &Sums) -> Sums {
        Sums {
            tokens: self.tokens + other.tokens,
            nll_ref: self.nll_ref + other.nll_ref,
            nll: self.nll + other.nll,
            kld: self.kld + other.kld,
            same_top: self.same_top + other.same_top,
            delta_p: self.delta_p + other.delta_p,
            delta_p_squared: self.delta_p_squared + other.delta_p_squared,
        }
    }

    fn figures(&self) -> [f64; FIGURES] {
        [
            (self.nll / self.tokens).exp(),
            (self.nll - self.nll_ref) / self.tokens,
            self.kld / self.tokens,
            self.same_top / self.tokens,
            self.delta_p / self.tokens,
            (self.delta_p_squared / self.tokens).sqrt(),
        ]
    }
}

/// Low and high of several figures.
type Ends<const N: usize> = [[f64; 2]; N];

/// [low, high] of every figure and of every quantile, `None` for one chunk. A resample draws as many chunks as there are, with
/// replacement, and all figures of artifact and reference are taken from that same draw (paired).
fn bootstrap(chunks: &[Sums], ranked: &Ranked) -> Option<(Ends<FIGURES>, Ends<{ QUANTILES.len() }>)> {
    if chunks.len() < 2 {
        return None;
    }
    let mut rng = SplitMix(SEED);
    let (mut draws, mut quantiles): ([Vec<f64>; FIGURES], [Vec<f64>; QUANTILES.len()]) = Default::default();
    for _ in 0..RESAMPLES {
        let (mut sums, mut times) = (Sums::default(), vec![0; chunks.len()]);
        for _ in 0..chunks.len() {
            let chunk = rng.below(chunks.len());
            sums = sums.plus(&chunks[chunk]);
            times[chunk] += 1;
        }
        draws.iter_mut().zip(sums.figures()).for_each(|(draws, figure)| draws.push(figure));
        let found = ranked.quantiles(&times, sums.tokens as usize);
        quantiles.iter_mut().zip(found).for_each(|(draws, quantile)| draws.push(quantile));
    }
    let whole = chunks.iter().fold(Sums::default(), Sums::plus);
    let values = whole.figures();
    let (mut figures, mut others) = ([[0.0; 2]; FIGURES], [[0.0; 2]; QUANTILES.len()]);
    for (i, draws) in draws.into_iter().enumerate() {
        figures[i] = ends(values[i], draws, chunks.len(), RANGES[i]);
    }
    let values = ranked.quantiles(&vec![1; chunks.len()], whole.tokens as usize);
    for (i, draws) in quantiles.into_iter().enumerate() {
        others[i] = ends(values[i], draws, chunks.len(), [0.0, f64::INFINITY]);
    }
    Some((figures, others))
}

/// Sums over one chunk's tokens: what a later report is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Chunk {
    pub tokens: usize,
    pub nll: f64,
    #[serde(flatten)]
    pub against: Option<Against>,
}

/// The part of a [`Chunk`] that needs a reference.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Against {
    pub nll_ref: f64,
    pub kld: f64,
    pub same_top: usize,
}

impl Chunk {
    pub fn of(tokens: &[TokenScore]) -> Chunk {
        let Sums { nll, nll_ref, kld, same_top, .. } = Sums::of(tokens);
        Chunk { tokens: tokens.len(), nll, against: Some(Against { nll_ref, kld, same_top: same_top as usize }) }
    }

    pub fn alone(nll: &[f64]) -> Chunk {
        Chunk { tokens: nll.len(), nll: nll.iter().sum(), against: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::interval::widening;

    fn token(nll_ref: f64, nll: f64, kld: f64, same_top: bool) -> TokenScore {
        TokenScore { nll_ref, nll, kld, same_top }
    }

    /// With these probabilities of the true token.
    fn likely(p_ref: f64, p: f64, kld: f64, same_top: bool) -> TokenScore {
        token(-p_ref.ln(), -p.ln(), kld, same_top)
    }

    fn near(a: f64, b: f64) {
        assert!((a - b).abs() < 1e-9, "{a} is not {b}");
    }

    fn normal(rng: &mut SplitMix) -> f64 {
        let uniform = |rng: &mut SplitMix| ((rng.next() >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        (-2.0 * uniform(rng).ln()).sqrt() * (std::f64::consts::TAU * uniform(rng)).cos()
    }

    /// Chunks whose tokens share a chunk effect: KLD 1 + chunk + token noise, nll = ref + 0.1 + noise.
    fn synthetic(chunks: usize, tokens: usize, seed: u64) -> Vec<Vec<TokenScore>> {
        let mut rng = SplitMix(seed);
        let chunk = |_| {
            let effect = normal(&mut rng);
            let one = |_| {
                let nll_ref = 2.0 + effect + normal(&mut rng);
                let nll = nll_ref + 0.1 + 0.01 * normal(&mut rng);
                let kld = 1.0 + 0.2 * effect + 0.2 * normal(&mut rng);
                token(nll_ref, nll, kld, true)
            };
            (0..tokens).map(one).collect()
        };
        (0..chunks).map(chunk).collect()
    }

    #[test]
    fn figures_by_hand() {
        let chunks = [
            vec![likely(0.5, 0.25, 0.1, true), likely(0.25, 0.5, 0.2, true)],
            vec![likely(0.75, 0.25, 0.6, false), likely(0.5, 0.5, 0.3, true)],
        ];
        let s = summarize(&chunks).unwrap();
        assert_eq!((s.tokens, s.chunks), (4, 2));
        near(s.reference_perplexity, (16.0f64 * 4.0 / 3.0).powf(0.25));
        near(s.perplexity.value, 2f64.powf(1.5));
        near(s.ln_ppl_ratio.value, 3f64.ln() / 4.0);
        near(s.kld.mean, 0.3);
        near(s.kld.median, 0.25);
        near(s.kld.p90, 0.51); // 0.3 + 0.7 * (0.6 - 0.3)
        near(s.kld.max, 0.6);
        near(s.same_top.value, 0.75);
        near(s.mean_delta_p.value, -0.125);
        near(s.rms_delta_p.value, (0.375f64 / 4.0).sqrt());
        // Two chunks: a resample is one of 1+1, 1+2, 2+2, and each extreme has a quarter of the draws.
        // Of two little is known: they are widened, within what can be.
        let wide = |value: f64, end: f64| value + (end - value) * widening(2);
        near(s.ln_ppl_ratio.low.unwrap(), wide(3f64.ln() / 4.0, 0.0));
        near(s.ln_ppl_ratio.high.unwrap(), wide(3f64.ln() / 4.0, 3f64.ln() / 2.0));
        near(s.perplexity.low.unwrap(), 2f64.powf(1.5));
        near(s.same_top.low.unwrap(), 0.0);
        near(s.same_top.high.unwrap(), 1.0);
        near(s.mean_delta_p.low.unwrap(), -1.0);
        near(s.rms_delta_p.high.unwrap(), wide((0.375f64 / 4.0).sqrt(), 0.125f64.sqrt()));
    }

    #[test]
    fn chunks_weigh_by_their_tokens() {
        let s = summarize(&[vec![token(1.0, 1.0, 0.0, true); 3], vec![token(1.0, 5.0, 0.4, true)]]);
        near(s.unwrap().ln_ppl_ratio.value, 1.0);
    }

    #[test]
    fn one_chunk_has_no_interval() {
        let s = summarize(&[vec![token(1.0, 1.5, 0.1, true)]]).unwrap();
        for e in [s.perplexity, s.ln_ppl_ratio, s.same_top, s.mean_delta_p, s.rms_delta_p] {
            assert_eq!((e.low, e.high), (None, None));
        }
        assert_eq!((s.kld.low, s.kld.high, s.kld.intervals), (None, None, None));
        assert_eq!((s.kld.median, s.kld.p999), (s.kld.max, s.kld.max), "one token is all its percentiles");
    }

    #[test]
    fn intervals_have_the_width_theory_gives() {
        let chunks = synthetic(400, 50, 1);
        let s = summarize(&chunks).unwrap();
        let means: Vec<f64> = chunks.iter().map(|c| c.iter().map(|t| t.kld).sum::<f64>() / c.len() as f64).collect();
        let mean = means.iter().sum::<f64>() / 400.0;
        let variance = means.iter().map(|m| (m - mean).powi(2)).sum::<f64>() / 399.0;
        let theory = 2.0 * 1.96 * (variance / 400.0).sqrt();
        let width = s.kld.high.unwrap() - s.kld.low.unwrap();
        assert!((width / theory - 1.0).abs() < 0.08, "{width} against {theory}");
        // Were tokens independent, the interval would be far narrower: the blocks matter.
        assert!(width > 5.0 * 2.0 * 1.96 * (0.08f64 / 20_000.0).sqrt(), "{width}");
    }

    #[test]
    fn intervals_hold_the_truth_nineteen_times_in_twenty() {
        let holds = |seed| {
            let s = summarize(&synthetic(40, 8, seed)).unwrap();
            // The 90 % quantile of a normal variable is 1.2816 standard deviations above its mean.
            let (p90, [low, high]) = (1.0 + 1.2816 * 0.08f64.sqrt(), s.kld.intervals.unwrap().p90);
            (s.kld.low.unwrap() <= 1.0 && 1.0 <= s.kld.high.unwrap(), low <= p90 && p90 <= high)
        };
        let (means, quantiles): (Vec<bool>, Vec<bool>) = (100..400).map(holds).unzip();
        for held in [means, quantiles].map(|held| held.into_iter().filter(|held| *held).count()) {
            assert!((271..=295).contains(&held), "{held} of 300");
        }
    }

    #[test]
    fn pairing_sharpens_the_ratio() {
        let s = summarize(&synthetic(100, 20, 3)).unwrap();
        let width = |e: Estimate| e.high.unwrap() - e.low.unwrap();
        assert!(width(s.ln_ppl_ratio) < width(s.perplexity) / s.perplexity.value / 50.0);
        assert!((s.ln_ppl_ratio.value - 0.1).abs() < 0.002);
    }

    #[test]
    fn same_tokens_same_summary() {
        let chunks = synthetic(30, 5, 7);
        assert_eq!(summarize(&chunks).unwrap(), summarize(&chunks).unwrap());
        assert_ne!(summarize(&chunks).unwrap(), summarize(&chunks[1..]).unwrap());
    }

    #[test]
    fn a_model_against_itself_lost_nothing() {
        let chunks = vec![vec![token(1.0, 1.0, 0.0, true); 4]; 3];
        let s = summarize(&chunks).unwrap();
        assert_eq!(s.ln_ppl_ratio, Estimate { value: 0.0, low: Some(0.0), high: Some(0.0) });
        assert_eq!((s.kld.max, s.same_top.value, s.rms_delta_p.value), (0.0, 1.0, 0.0));
        assert_eq!(s.perplexity.value, s.reference_perplexity);
    }

    #[test]
    fn what_is_not_finite_is_an_error() {
        let good = token(1.0, 1.0, 0.1, true);
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let tokens =
                [TokenScore { nll_ref: bad, ..good }, TokenScore { nll: bad, ..good }, TokenScore { kld: bad, ..good }];
            for token in tokens {
                let error = summarize(&[vec![good], vec![good, token]]).unwrap_err();
                assert_eq!(error.places(), ["scored token 1", "chunk 1"]);
            }
        }
        let huge = token(1.0, 1e4, 0.1, true);
        assert!(summarize(&[vec![huge], vec![huge]]).unwrap_err().message().contains("too large"));
        // The mean is a number, but resamples of the worst chunk are not.
        assert!(summarize(&[vec![good], vec![token(1.0, 1000.0, 0.1, true)]]).is_err());
        assert!(summarize(&[vec![token(-1e4, 1.0, 0.1, true)]]).is_ok(), "e^-10000 is 0, a number");
        assert!(summarize(&[]).is_err());
        assert!(summarize(&[vec![good], vec![]]).is_err());
    }

    #[test]
    fn json_has_the_documented_names() {
        let s = summarize(&[vec![token(1.0, 1.5, 0.1, true)]]).unwrap();
        let json = serde_json::to_value(s).unwrap();
        let keys = |v: &serde_json::Value| v.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
        assert_eq!(keys(&json["perplexity"]), ["value", "low", "high"]);
        let quantiles = ["median", "p90", "p95", "p99", "p999"];
        assert_eq!(keys(&json["kld"]), [&["mean", "low", "high"], &quantiles[..], &["max", "intervals"]].concat());
        let several = summarize(&synthetic(2, 2, 1)).unwrap();
        assert_eq!(keys(&serde_json::to_value(several.kld.intervals).unwrap()), quantiles);
        assert_eq!(
            keys(&json),
            [
                "tokens",
                "chunks",
                "reference_perplexity",
                "perplexity",
                "ln_ppl_ratio",
                "kld",
                "same_top",
                "mean_delta_p",
                "rms_delta_p"
            ]
        );
        assert!(json["perplexity"]["low"].is_null());
    }
}

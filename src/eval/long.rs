//! What do models make of a long context? The same tokens, predicted from all that stands before them and from the last of it alone:
//! which of them need the rest (LongPPL), and is more lost with it than without?

use serde::Serialize;

use super::interval::resampled;
use super::protocol::Window;
use super::stats::{Estimate, summarize};
use crate::device::cpu::TokenScore;
use crate::error::{Error, Result};

/// A key token gains more than this in log-likelihood from the long context, and is likelier than the other with it.
/// Source: LongPPL, Fang et al. 2024 (arXiv 2410.23771).
const GAIN: f64 = 2.0;
const LIKELY: f64 = -2.0;

/// An artifact against its reference, with long and with short context.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Long {
    /// Tokens of context, at most, that count as short.
    pub short: usize,
    /// That were predicted both ways.
    pub tokens: usize,
    /// Perplexities over key tokens; `None`: there are none.
    pub key: Option<Key>,
    /// Mean divergence with long context, with short context, and the one over the other.
    pub kld_long: Estimate,
    pub kld_short: Estimate,
    pub kld_ratio: Estimate,
}

/// Tokens for which the reference needs the long context.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Key {
    pub tokens: usize,
    pub reference: f64,
    pub perplexity: Estimate,
    /// ln of the artifact's over the reference's.
    pub ln_ratio: Estimate,
}

/// Positions of a window that have more than `short` tokens of context.
fn late(window: &Window, short: usize) -> std::ops::Range<usize> {
    window.scored.start.max(short).min(window.scored.end)..window.scored.end
}

/// For each window, windows that predict its tokens beyond `short` from `short / 2` to `short` tokens of context, behind BOS where
/// the protocol puts one.
///
/// Errors: no window is longer than that.
pub fn windows(long: &[Window], short: usize, bos: Option<u32>) -> Result<Vec<Vec<Window>>> {
    if short < 2 || long.iter().all(|w| late(w, short).is_empty()) {
        let longest = super::longest(long);
        return Err(Error::request(format!("no token of windows of {longest} has more context than {short}"))
            .help("pass a larger --context, or a smaller --short-context (at least 2)"));
    }
    let parts = |w: &Window| {
        let positions = late(w, short);
        let part = |from: usize| {
            let until = positions.end.min(from + short / 2);
            let start = until - short;
            let mut tokens = w.tokens[start..=until].to_vec();
            if let Some(bos) = bos.filter(|bos| w.tokens.first() == Some(bos)) {
                tokens[0] = bos;
            }
            Window { tokens, scored: from - start..until - start }
        };
        positions.clone().step_by(short / 2).map(part).collect()
    };
    Ok(long.iter().map(parts).collect())
}

/// `scores`: of the long windows; `again`: of all that [`windows`] made of them, in order.
///
/// Errors: a number that is not finite.
pub fn compare(long: &[Window], scores: &[Vec<TokenScore>], short: usize, again: &[TokenScore]) -> Result<Long> {
    let mut again = again.iter();
    let mut pairs: Vec<Vec<(TokenScore, TokenScore)>> = Vec::new();
    for (window, scores) in long.iter().zip(scores) {
        let first = late(window, short).start - window.scored.start;
        pairs.push(scores.iter().skip(first).zip(again.by_ref()).map(|(l, s)| (*l, *s)).collect());
    }
    pairs.retain(|chunk| !chunk.is_empty());
    let of = |pick: fn(&(TokenScore, TokenScore)) -> Option<TokenScore>| -> Vec<Vec<TokenScore>> {
        pairs.iter().map(|chunk| chunk.iter().filter_map(pick).collect()).filter(|c: &Vec<_>| !c.is_empty()).collect()
    };
    let keys = of(|(long, short)| (short.nll_ref - long.nll_ref > GAIN && -long.nll_ref > LIKELY).then_some(*long));
    let key = match keys.is_empty() {
        true => None,
        false => {
            let s = summarize(&keys)?;
            let (perplexity, ln_ratio) = (s.perplexity, s.ln_ppl_ratio);
            Some(Key { tokens: s.tokens, reference: s.reference_perplexity, perplexity, ln_ratio })
        }
    };
    let (with, without) = (summarize(&of(|(long, _)| Some(*long)))?, summarize(&of(|(_, short)| Some(*short)))?);
    let sum = |chunk: &Vec<(TokenScore, TokenScore)>| {
        chunk.iter().fold([0.0; 2], |[a, b], (long, short)| [a + long.kld, b + short.kld])
    };
    let [value, low, high] = resampled(&pairs.iter().map(sum).collect::<Vec<_>>(), |[long, short]| match short > 0.0 {
        true => long / short,
        false => 1.0,
    });
    let many = |x: f64| (pairs.len() > 1).then_some(x);
    let kld = |d: &super::stats::Divergence| Estimate { value: d.mean, low: d.low, high: d.high };
    Ok(Long {
        short,
        tokens: with.tokens,
        key,
        kld_long: kld(&with.kld),
        kld_short: kld(&without.kld),
        kld_ratio: Estimate { value, low: many(low), high: many(high) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_late_token_is_predicted_once_more() {
        for (length, first, short) in [(64, 0, 8), (64, 32, 16), (65, 40, 33), (33, 31, 2), (100, 0, 7)] {
            let tokens: Vec<u32> = (100..100 + length).collect();
            let long = vec![Window { tokens, scored: first..length as usize - 1 }; 2];
            let found = windows(&long, short, None).unwrap();
            for (window, parts) in long.iter().zip(&found) {
                let wanted: Vec<u32> = window.targets().filter(|(p, _)| *p >= short).map(|(_, t)| t).collect();
                let got: Vec<u32> = parts.iter().flat_map(|p| p.targets().map(|(_, t)| t)).collect();
                assert_eq!(got, wanted, "{length} {first} {short}");
                for part in parts {
                    assert!(part.tokens.len() == short + 1 && part.scored.start >= short / 2, "{part:?}");
                    assert!(part.tokens.windows(2).all(|pair| pair[0] + 1 == pair[1]));
                }
            }
        }
        let long = [Window { tokens: (0..20).collect(), scored: 0..19 }];
        assert!(windows(&long, 19, None).is_err() && windows(&long, 1, None).is_err());
        assert_eq!(windows(&long, 18, Some(0)).unwrap()[0][0].tokens[0], 0);
        assert_eq!(windows(&long, 18, Some(7)).unwrap()[0][0].tokens[0], 1, "the text itself has none");
    }

    #[test]
    fn tokens_that_need_the_context_are_found() {
        let long = vec![Window { tokens: vec![0; 9], scored: 0..8 }; 2];
        let score = |nll_ref: f64, nll: f64, kld: f64| TokenScore { nll_ref, nll, kld, same_top: true };
        // Of positions 4 to 7 the first gains 3, the second only 1, the third stays unlikely, the fourth loses.
        let with = [score(1.0, 1.5, 0.4), score(1.0, 1.0, 0.4), score(4.0, 4.0, 0.4), score(1.0, 1.0, 0.4)];
        let without = [score(4.0, 4.0, 0.1), score(2.0, 2.0, 0.1), score(9.0, 9.0, 0.1), score(0.5, 0.5, 0.1)];
        let early = [score(9.0, 9.0, 9.0); 4];
        let scores = vec![[early, with].concat(); 2];
        let found = compare(&long, &scores, 4, &[without, without].concat()).unwrap();
        let key = found.key.unwrap();
        assert!(found.tokens == 8 && key.tokens == 2 && (key.reference.ln() - 1.0).abs() < 1e-12);
        assert!((key.ln_ratio.value - 0.5).abs() < 1e-12 && (key.perplexity.value.ln() - 1.5).abs() < 1e-12);
        assert!((found.kld_ratio.value - 4.0).abs() < 1e-12 && (found.kld_short.value - 0.1).abs() < 1e-12);
        let none = compare(&long, &scores, 4, &[with, with].concat()).unwrap();
        assert!(none.key.is_none() && none.kld_ratio.value == 1.0);
    }
}

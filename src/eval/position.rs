//! Where in the context is something lost? Errors add up as attention spreads over more of them.

use std::ops::Range;

use serde::Serialize;

use super::protocol::Window;
use super::stats::{Estimate, summarize};
use crate::device::cpu::TokenScore;
use crate::error::Result;

/// Predictions made at these positions.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Position {
    pub from: usize,
    pub to: usize,
    pub tokens: usize,
    /// Mean.
    pub kld: Estimate,
    pub same_top: Estimate,
}

/// Ranges of positions up to `context`, each as long as all before it; the first has 1024, or a quarter of a shorter context.
pub fn buckets(context: usize) -> Vec<Range<usize>> {
    let quarter = (context / 4).max(1);
    let first = 0..context.min(1024).min(1 << quarter.ilog2());
    let next = |last: &Range<usize>| (last.end < context).then(|| last.end..context.min(last.end * 2));
    std::iter::successors(Some(first), next).collect()
}

/// The scores of these positions, of windows that have any.
pub fn within(windows: &[Window], scores: &[Vec<TokenScore>], range: &Range<usize>) -> Vec<Vec<TokenScore>> {
    let part = |(window, scores): (&Window, &Vec<TokenScore>)| -> Vec<TokenScore> {
        let positions = window.scored.clone().zip(scores);
        positions.filter(|(position, _)| range.contains(position)).map(|(_, score)| *score).collect()
    };
    windows.iter().zip(scores).map(part).filter(|part| !part.is_empty()).collect()
}

/// One model's scores `[window][scored position]`, by position.
///
/// Errors: a number that is not finite.
pub fn by_position(windows: &[Window], scores: &[Vec<TokenScore>]) -> Result<Vec<Position>> {
    let position = |range: Range<usize>| {
        let found = within(windows, scores, &range);
        let of = |s: super::stats::Summary| {
            let kld = Estimate { value: s.kld.mean, low: s.kld.low, high: s.kld.high };
            Position { from: range.start, to: range.end, tokens: s.tokens, kld, same_top: s.same_top }
        };
        (!found.is_empty()).then(|| summarize(&found).map(of))
    };
    buckets(super::longest(windows)).into_iter().filter_map(position).collect()
}

/// Up to where the mean divergence stays below `margin`: the start of the first range beyond it, else all that was read.
pub fn safe_context(positions: &[Position], margin: f64) -> usize {
    let beyond = positions.iter().find(|p| p.kld.value > margin).map(|p| p.from);
    beyond.or_else(|| positions.last().map(|p| p.to)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_double() {
        let ends = |context| buckets(context).iter().map(|b| b.end).collect::<Vec<_>>();
        assert_eq!(ends(8192), [1024, 2048, 4096, 8192]);
        assert_eq!(ends(5000), [1024, 2048, 4096, 5000]);
        assert_eq!(ends(2048), [512, 1024, 2048]);
        assert_eq!(ends(512), [128, 256, 512]);
        assert_eq!(ends(3), [1, 2, 3]);
        for context in 1..300 {
            let all = buckets(context);
            assert!(all[0].start == 0 && all.last().unwrap().end == context);
            assert!(all.windows(2).all(|pair| pair[0].end == pair[1].start) && all.iter().all(|b| !b.is_empty()));
        }
    }

    #[test]
    fn losses_stand_where_they_were_made() {
        let windows = vec![Window { tokens: vec![0; 17], scored: 4..16 }; 3];
        let score =
            |position: usize| TokenScore { nll_ref: 1.0, nll: 1.0, kld: position as f64, same_top: position < 8 };
        let scores = vec![(4..16).map(score).collect::<Vec<_>>(); 3];
        let found = by_position(&windows, &scores).unwrap();
        let means: Vec<_> = found.iter().map(|p| (p.from, p.to, p.tokens, p.kld.value, p.same_top.value)).collect();
        assert_eq!(means, [(4, 8, 12, 5.5, 1.0), (8, 16, 24, 11.5, 0.0)]);
        assert_eq!((safe_context(&found, 6.0), safe_context(&found, 20.0)), (8, 16));
    }
}

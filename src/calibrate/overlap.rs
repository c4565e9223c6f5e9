//! How much of the text that models will be judged by is among what they are calibrated on.

use std::collections::HashSet;
use std::hash::{DefaultHasher, Hash, Hasher};

use super::data::Sequence;

/// Tokens in a row that are hardly ever equal by chance. Source: Brown et al. 2020, appendix C.
pub const RUN: usize = 13;

/// Share of the runs of [`RUN`] tokens of `judged` that occur in `sequences` too; 0 for a shorter text.
pub fn share(sequences: &[Sequence], judged: &[Vec<u32>]) -> f64 {
    let hash = |run: &[u32]| {
        let mut hasher = DefaultHasher::new();
        run.hash(&mut hasher);
        hasher.finish()
    };
    let seen: HashSet<u64> = sequences.iter().flat_map(|s| s.tokens.windows(RUN).map(hash)).collect();
    let (mut all, mut known) = (0usize, 0usize);
    for run in judged.iter().flat_map(|text| text.windows(RUN)) {
        all += 1;
        known += usize::from(seen.contains(&hash(run)));
    }
    if all == 0 { 0.0 } else { known as f64 / all as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::layout::Split;

    #[test]
    fn the_share_is_of_the_judged_text() {
        let sequence = |range: std::ops::Range<u32>| Sequence { tokens: range.collect(), split: Split::Fit };
        let sequences = [sequence(0..100), sequence(500..600)];
        let judged = |range: std::ops::Range<u32>| vec![range.collect::<Vec<u32>>()];
        assert_eq!(share(&sequences, &judged(40..80)), 1.0);
        assert_eq!(share(&sequences, &judged(200..300)), 0.0);
        assert_eq!(share(&sequences, &judged(0..5)), 0.0);
        // 88 runs lie in the first sequence, of 188.
        assert_eq!(share(&sequences, &judged(0..200)), 88.0 / 188.0);
    }
}

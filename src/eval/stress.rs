//! What do models write when they are let go on? Greedy continuations of the reference and of an artifact side by side: small
//! divergences add up, and some losses (endless repetition, no end, another language) are not seen token by token.

use serde::Serialize;

use super::script;
use crate::container::tokenizer::Tokenizer;
use crate::engine::Engine;
use crate::engine::generate::{Ask, greedy};
use crate::error::Result;

/// How a model went on.
#[derive(Clone, Debug, PartialEq)]
pub struct Continuation {
    /// Without the one that ended it.
    pub tokens: Vec<u32>,
    /// The model said that it is done.
    pub ended: bool,
    pub text: String,
}

/// A share of continuations, of the reference and of the artifact.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Share {
    pub reference: f64,
    pub artifact: f64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Stress {
    pub prompts: usize,
    /// Share of continuations that are the reference's, to the last token.
    pub identical: f64,
    /// Tokens before the first that differs: quartiles of the others; `None` if there are none.
    pub first_divergence: Option<[usize; 3]>,
    /// That end in a loop.
    pub repetition: Share,
    /// That were cut off at the limit.
    pub no_end: Share,
    /// Tokens written over the reference's.
    pub length_ratio: f64,
    /// Share whose letters are mostly of another writing system than the reference's.
    pub drift: f64,
}

/// Continues every prompt greedily by up to `limit` tokens. `progress` is called with tokens. Runs in the caller's rayon pool.
pub fn go_on(
    engine: &Engine<'_>,
    tokenizer: &Tokenizer,
    ends: &[u32],
    prompts: &[&[u32]],
    limit: usize,
    progress: &dyn Fn(u64),
) -> Result<Vec<Continuation>> {
    let asks: Vec<Ask<'_>> = prompts.iter().map(|prompt| Ask { prompt, limit }).collect();
    let mut written: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    let mut each = |index: usize, token: u32| {
        written[index].push(token);
        Ok(true)
    };
    greedy(engine, &asks, ends, &mut each, progress)?;
    let continuation =
        |tokens: Vec<u32>| Ok(Continuation { ended: tokens.len() < limit, text: tokenizer.decode(&tokens)?, tokens });
    written.into_iter().map(continuation).collect()
}

/// Compares continuations of the same prompts.
pub fn compare(reference: &[Continuation], artifact: &[Continuation]) -> Stress {
    let pairs = || reference.iter().zip(artifact);
    let n = pairs().count().max(1) as f64;
    let same = |(a, b): &(&Continuation, &Continuation)| a.tokens == b.tokens && a.ended == b.ended;
    let mut firsts: Vec<usize> = pairs()
        .filter(|pair| !same(pair))
        .map(|(a, b)| a.tokens.iter().zip(&b.tokens).take_while(|(x, y)| x == y).count())
        .collect();
    firsts.sort_unstable();
    let quartile = |q: usize| firsts[(firsts.len() - 1) * q / 4];
    let share = |of: &dyn Fn(&Continuation) -> bool| {
        let count = |all: &[Continuation]| all.iter().filter(|c| of(c)).count() as f64 / n;
        Share { reference: count(reference), artifact: count(artifact) }
    };
    let length = |all: &[Continuation]| all.iter().map(|c| c.tokens.len()).sum::<usize>();
    let drifted = |(a, b): &(&Continuation, &Continuation)| matches!((script::main(&a.text), script::main(&b.text)), (Some(a), Some(b)) if a != b);
    Stress {
        prompts: pairs().count(),
        identical: pairs().filter(same).count() as f64 / n,
        first_divergence: (!firsts.is_empty()).then(|| [quartile(1), quartile(2), quartile(3)]),
        repetition: share(&|c| loops(&c.tokens)),
        no_end: share(&|c| !c.ended),
        length_ratio: length(artifact) as f64 / length(reference).max(1) as f64,
        drift: pairs().filter(drifted).count() as f64 / n,
    }
}

/// The longest piece that is looked for, and how often it must stand at the end one after the other.
const LONGEST: usize = 40;
const TIMES: usize = 4;

/// Whether the text ends in the same piece again and again. A single token must do so three times as often: dots and digits may.
pub fn loops(tokens: &[u32]) -> bool {
    (1..=LONGEST).any(|piece| {
        let times = if piece < 3 { 3 * TIMES } else { TIMES };
        let span = piece * times;
        tokens.len() >= span && tokens[tokens.len() - span..].windows(piece + 1).all(|w| w[0] == w[piece])
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrote(tokens: &[u32], ended: bool, text: &str) -> Continuation {
        Continuation { tokens: tokens.to_vec(), ended, text: text.into() }
    }

    #[test]
    fn loops_are_seen_and_lists_are_not() {
        let piece = [5, 6, 7, 8, 9];
        assert!(loops(&[&[1, 2, 3][..], &piece.repeat(4)].concat()));
        assert!(!loops(&[&[1, 2, 3][..], &piece.repeat(3)].concat()));
        assert!(!loops(&[1, 2, 3, 4, 4, 4, 4, 4]));
        assert!(loops(&[4; 12]));
        assert!(!loops(&(0..100).collect::<Vec<_>>()) && !loops(&[]));
    }

    #[test]
    fn what_differs_is_counted() {
        let a = [wrote(&[1, 2, 3], true, "yes"), wrote(&[1, 2, 3, 4], true, "so it is"), wrote(&[9], true, "no")];
        let b = [
            wrote(&[1, 2, 3], true, "yes"),
            wrote(&[1, 2, 7, 7, 7, 7, 7, 7], false, "\u{43d}\u{435}\u{442}"),
            wrote(&[9], false, "no"),
        ];
        let s = compare(&a, &b);
        assert_eq!((s.prompts, s.first_divergence), (3, Some([1, 1, 1])));
        assert!((s.identical - 1.0 / 3.0).abs() < 1e-12 && (s.drift - 1.0 / 3.0).abs() < 1e-12);
        assert!((s.no_end.artifact - 2.0 / 3.0).abs() < 1e-12 && s.no_end.reference == 0.0);
        assert!((s.length_ratio - 12.0 / 8.0).abs() < 1e-12);
        assert_eq!(compare(&a, &a).first_divergence, None);
    }
}

//! Texts that begin alike, run so that the common beginning is read once.

use super::{Prepared, Subject};
use crate::engine::{KvCache, Sequence};
use crate::error::Result;
use crate::eval::protocol::Window;
use crate::eval::score::{Side, predictions};

/// Tokens that are run at a time: enough that decoding weights costs little beside multiplying them.
const BATCH: usize = 2048;

/// A scored position of a text: how likely was what came next, and was it the most likely?
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Prediction {
    pub nll: f64,
    pub hit: bool,
}

/// Predictions of every scored position: `[item][window][position]`.
pub(super) fn run(
    subject: &Subject<'_>,
    items: &[Prepared<'_>],
    progress: &dyn Fn(u64),
) -> Result<Vec<Vec<Vec<Prediction>>>> {
    let mut out = Vec::with_capacity(items.len());
    let mut rest = items;
    while !rest.is_empty() {
        let mut tokens = 0;
        let fits = |p: &&Prepared<'_>| {
            tokens += p.windows.iter().map(|w| w.tokens.len()).max().unwrap_or(0);
            tokens <= BATCH
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (batch, others) = rest.split_at(count);
        rest = others;
        out.extend(together(subject, batch)?);
        progress(batch.iter().flat_map(|p| &p.windows).map(|w| w.tokens.len() as u64).sum());
    }
    Ok(out)
}

/// One item's texts, and what all of them begin with.
struct Tree<'a> {
    windows: &'a [Window],
    trunk: usize,
    cache: KvCache,
    /// Hidden states of the trunk, and of what each text has behind it.
    states: Vec<Vec<f32>>,
}

fn together(subject: &Subject<'_>, batch: &[Prepared<'_>]) -> Result<Vec<Vec<Vec<Prediction>>>> {
    let engine = &subject.candidate.engine;
    let tree = |p: &Prepared<'_>| {
        let windows = &p.windows;
        let most = windows.iter().map(|w| w.tokens.len()).max().unwrap_or(0);
        Ok(Tree { trunk: trunk(windows), cache: engine.cache(most)?, states: Vec::new(), windows: &[] })
    };
    let mut trees = batch.iter().map(tree).collect::<Result<Vec<Tree<'_>>>>()?;
    trees.iter_mut().zip(batch).for_each(|(t, p)| t.windows = &p.windows);

    let longest = trees.iter().map(|t| t.windows.len()).max().unwrap_or(0);
    // First the trunks, then every tree's first branch, its second ...
    for turn in 0..=longest {
        let mut sequences = Vec::new();
        let mut whose = Vec::new();
        for (i, tree) in trees.iter_mut().enumerate() {
            tree.cache.truncate(if turn == 0 { 0 } else { tree.trunk });
            let tokens = match turn.checked_sub(1) {
                None => tree.windows.first().map_or(&[][..], |w| &w.tokens[..tree.trunk]),
                Some(branch) => tree.windows.get(branch).map_or(&[][..], |w| &w.tokens[tree.trunk..]),
            };
            if tokens.is_empty() {
                tree.states.push(Vec::new());
            } else {
                whose.push((i, tokens.len()));
                sequences.push(Sequence { tokens, cache: &mut tree.cache });
            }
        }
        if sequences.is_empty() {
            continue;
        }
        let states = engine.forward(&mut sequences)?;
        let mut from = 0;
        for (i, tokens) in whose {
            let until = from + tokens * engine.hidden();
            trees[i].states.push(states[from..until].to_vec());
            from = until;
        }
    }
    predicted(subject, &trees)
}

/// Tokens that all texts begin with; each keeps one of its own.
fn trunk(windows: &[Window]) -> usize {
    let Some((first, others)) = windows.split_first() else { return 0 };
    let same = |w: &Window| first.tokens.iter().zip(&w.tokens).take_while(|(a, b)| a == b).count();
    let least = windows.iter().map(|w| w.tokens.len().saturating_sub(1)).min().unwrap_or(0);
    others.iter().map(same).fold(least, usize::min)
}

fn predicted(subject: &Subject<'_>, trees: &[Tree<'_>]) -> Result<Vec<Vec<Vec<Prediction>>>> {
    let n = subject.candidate.engine.hidden();
    let (mut hidden, mut targets) = (Vec::new(), Vec::new());
    for tree in trees {
        for (branch, window) in tree.windows.iter().enumerate() {
            for (position, target) in window.targets() {
                let (states, at) = match position.checked_sub(tree.trunk) {
                    None => (&tree.states[0], position),
                    Some(at) => (&tree.states[branch + 1], at),
                };
                hidden.extend_from_slice(&states[at * n..(at + 1) * n]);
                targets.push(target);
            }
        }
    }
    let head = subject.candidate.engine.head()?;
    let side = Side { name: &subject.candidate.name, head: &head, hidden: &hidden };
    let mut all = predictions(&side, &targets)?.into_iter().map(|(nll, hit)| Prediction { nll, hit });
    let mut take = |w: &Window| all.by_ref().take(w.scored.len()).collect();
    Ok(trees.iter().map(|t| t.windows.iter().map(&mut take).collect()).collect())
}

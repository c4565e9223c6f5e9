//! Questions with one right answer. A model is right if greedy decoding would write the answer, which one forward pass over
//! question and answer tells: every token of the answer must be the most likely one after those before it.

use serde::Serialize;

use super::probe::Item;
use super::protocol::Window;
use super::score::{Side, predictions};
use super::{Candidate, batches, states, targets, together};
use crate::container::Checkpoint;
use crate::container::tokenizer::leading_bos;
use crate::error::{Error, Result};

/// How often a model was right.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    pub right: usize,
    pub of: usize,
    /// 95 % interval of the share. Source: Wilson 1927.
    pub low: f64,
    pub high: f64,
}

/// The 0.975 quantile of the normal distribution.
const Z: f64 = 1.959_963_984_540_054;

impl Accuracy {
    pub fn of(answers: &[bool]) -> Accuracy {
        let (right, of) = (answers.iter().filter(|a| **a).count(), answers.len());
        let (k, n) = (right as f64, of as f64);
        if of == 0 {
            return Accuracy { right, of, low: 0.0, high: 1.0 };
        }
        let middle = (k + Z * Z / 2.0) / (n + Z * Z);
        let half = Z / (n + Z * Z) * (k * (n - k) / n + Z * Z / 4.0).sqrt();
        Accuracy { right, of, low: (middle - half).max(0.0), high: (middle + half).min(1.0) }
    }

    pub fn share(&self) -> f64 {
        self.right as f64 / self.of.max(1) as f64
    }
}

/// What of an item is to be predicted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Scored {
    /// The answer alone.
    Answer,
    /// Everything, to the line break at the end.
    Text,
}

/// One window an item, beginning with BOS where the model wants one.
///
/// Errors: an item longer than the model's context; nothing to predict.
pub fn windows(checkpoint: &dyn Checkpoint, items: &[Item], scored: Scored) -> Result<Vec<Window>> {
    let tokenizer = checkpoint.tokenizer()?;
    let bos = leading_bos(&checkpoint.metadata()?, &tokenizer)?;
    let most = checkpoint.family().and_then(|(_, spec)| spec.context).map_or(usize::MAX, |n| n as usize);
    let encode =
        |text: &str| -> Result<Vec<u32>> { Ok(bos.into_iter().chain(tokenizer.encode(text, false, false)?).collect()) };
    let window = |item: &Item| {
        let (tokens, known) = match scored {
            Scored::Text => (encode(&item.text())?, 1),
            Scored::Answer => {
                let (prompt, tokens) = (encode(&item.prompt)?, encode(&format!("{}{}", item.prompt, item.answer))?);
                // A token may reach from the question into the answer.
                let same = prompt.iter().zip(&tokens).take_while(|(a, b)| a == b).count();
                (tokens, same.max(1))
            }
        };
        if tokens.len() > most {
            let message = format!("an item of {} has {} tokens, the model's context {most}", item.skill, tokens.len());
            return Err(Error::request(message).help("ask for shorter items"));
        }
        if known >= tokens.len() {
            return Err(Error::input(format!("an item of {} leaves nothing to predict", item.skill)));
        }
        Ok(Window { scored: known - 1..tokens.len() - 1, tokens })
    };
    items.iter().map(window).collect()
}

/// Whether the model is right about each window's scored tokens, all of them. What other windows there are changes nothing.
/// `progress` is called with tokens as they are run. Runs in the caller's rayon pool.
pub fn right(model: &Candidate<'_>, windows: &[Window], progress: &dyn Fn(u64)) -> Result<Vec<bool>> {
    let head = model.engine.head()?;
    let mut out = Vec::with_capacity(windows.len());
    for range in batches(windows, together([&model.engine])?) {
        let batch = &windows[range];
        let hidden = states(&model.engine, batch)?;
        let found = predictions(&Side { name: &model.name, head: &head, hidden: &hidden }, &targets(batch))?;
        let mut hits = found.into_iter().map(|(_, hit)| hit);
        // Not `all`, which would leave the rest of a window's hits to the next one.
        let all = |w: &Window| hits.by_ref().take(w.scored.len()).filter(|hit| !hit).count() == 0;
        out.extend(batch.iter().map(all));
        progress(batch.iter().map(|w| w.tokens.len() as u64).sum());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By the formula in its usual form, in Python.
    #[test]
    fn wilson_intervals() {
        for (right, of, low, high) in [
            (0, 10, 0.0, 0.277_532_800),
            (5, 10, 0.236_593_091, 0.763_406_909),
            (10, 10, 0.722_467_201, 1.0),
            (95, 100, 0.888_249_531, 0.978_456_321),
        ] {
            let answers: Vec<bool> = (0..of).map(|i| i < right).collect();
            let a = Accuracy::of(&answers);
            assert_eq!((a.right, a.of), (right, of));
            assert!((a.low - low).abs() < 1e-8 && (a.high - high).abs() < 1e-8, "{a:?}");
        }
        assert_eq!(Accuracy::of(&[]), Accuracy { right: 0, of: 0, low: 0.0, high: 1.0 });
    }
}

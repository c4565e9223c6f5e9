//! One token after another.

use std::time::{Duration, Instant};

use super::sample::Sampler;
use super::{Engine, NoTap, Sequence};
use crate::error::{Error, Result};

/// Tokens of the prompt that are run at a time, so that memory does not grow with its length.
const BATCH: usize = 512;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// The model said that it is done.
    End,
    /// As many tokens as were asked for.
    Length,
    /// Whoever received the tokens wants no more.
    Caller,
}

#[derive(Clone, Debug)]
pub struct Generated {
    /// Without the one that ended it.
    pub tokens: Vec<u32>,
    pub stopped: Stopped,
    /// Until the prompt was read.
    pub prompt_time: Duration,
    /// From then on.
    pub time: Duration,
}

/// Continues `prompt` by up to `limit` tokens, or until one of `ends`. `each` receives every token as it is chosen and says
/// whether to go on. Runs in the caller's rayon pool.
///
/// Errors: an empty prompt; one that with `limit` has more positions than the engine; those of the model, the sampler and `each`.
pub fn generate(
    engine: &Engine<'_>,
    prompt: &[u32],
    limit: usize,
    ends: &[u32],
    sampler: &mut Sampler,
    each: &mut dyn FnMut(u32) -> Result<bool>,
) -> Result<Generated> {
    let start = Instant::now();
    let mut cache = engine.cache(prompt.len().saturating_add(limit))?;
    let head = engine.head()?;
    let mut hidden = Vec::new();
    for tokens in prompt.chunks(BATCH) {
        hidden = engine.forward(&mut [Sequence { tokens, cache: &mut cache }], &mut NoTap)?;
    }
    let prompt_time = start.elapsed();
    let (mut tokens, mut stopped) = (Vec::new(), Stopped::Length);
    while tokens.len() < limit {
        if let Some(last) = tokens.last() {
            let tokens = std::slice::from_ref(last);
            hidden = engine.forward(&mut [Sequence { tokens, cache: &mut cache }], &mut NoTap)?;
        }
        let last = hidden.len().checked_sub(engine.hidden()).ok_or_else(|| Error::request("the prompt is empty"))?;
        let token = sampler.next(&head.logits(&hidden[last..]))?;
        if ends.contains(&token) {
            stopped = Stopped::End;
            break;
        }
        tokens.push(token);
        if !each(token)? {
            stopped = Stopped::Caller;
            break;
        }
    }
    Ok(Generated { tokens, stopped, prompt_time, time: start.elapsed() - prompt_time })
}

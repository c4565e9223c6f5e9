//! One token after another.

use std::time::{Duration, Instant};

use super::sample::{Sampler, greediest};
use super::{Engine, KvCache, Sequence};
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
        hidden = engine.forward(&mut [Sequence { tokens, cache: &mut cache }])?;
    }
    let prompt_time = start.elapsed();
    let (mut tokens, mut stopped) = (Vec::new(), Stopped::Length);
    while tokens.len() < limit {
        if let Some(last) = tokens.last() {
            let tokens = std::slice::from_ref(last);
            hidden = engine.forward(&mut [Sequence { tokens, cache: &mut cache }])?;
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

/// A prompt, and how many tokens may follow it.
pub struct Ask<'a> {
    pub prompt: &'a [u32],
    pub limit: usize,
}

impl Ask<'_> {
    fn positions(&self) -> usize {
        self.prompt.len().saturating_add(self.limit)
    }
}

/// Prompts that are continued side by side: one pass over the weights gives each a token.
const SIDE_BY_SIDE: usize = 32;

/// One of them.
struct Running {
    ask: usize,
    cache: KvCache,
    written: usize,
    last: u32,
}

/// What all prompts begin with (examples in front of each question), read once; every prompt keeps a token of its own.
/// `None` where that is less than half of the longest: its copies would then take more memory than they save time.
fn front(engine: &Engine<'_>, asks: &[Ask<'_>]) -> Result<Option<KvCache>> {
    let Some((first, others)) = asks.split_first() else { return Ok(None) };
    let same = |ask: &Ask<'_>| first.prompt.iter().zip(ask.prompt).take_while(|(a, b)| a == b).count();
    let least = asks.iter().map(|a| a.prompt.len().saturating_sub(1)).min().unwrap_or(0);
    let shared = others.iter().map(same).fold(least, usize::min);
    let longest = asks.iter().map(|a| a.prompt.len()).max().unwrap_or(0);
    if others.is_empty() || shared == 0 || shared < longest.div_ceil(2) {
        return Ok(None);
    }
    let mut cache = engine.cache(asks.iter().map(Ask::positions).max().unwrap_or(0))?;
    for tokens in first.prompt[..shared].chunks(BATCH) {
        engine.forward(&mut [Sequence { tokens, cache: &mut cache }])?;
    }
    Ok(Some(cache))
}

/// Continues every prompt with its most likely tokens, exactly as [`generate`] would each alone. `each` receives the number of the
/// prompt and a token as it is chosen, and says whether to go on. `progress` is called with tokens, the limit's for a prompt
/// that ends before it. Runs in the caller's rayon pool.
///
/// Errors: as [`generate`].
pub fn greedy(
    engine: &Engine<'_>,
    asks: &[Ask<'_>],
    ends: &[u32],
    each: &mut dyn FnMut(usize, u32) -> Result<bool>,
    progress: &dyn Fn(u64),
) -> Result<()> {
    let head = engine.head()?;
    let front = front(engine, asks)?;
    let read = front.as_ref().map_or(0, KvCache::len);
    let mut waiting = asks.iter().enumerate().filter(|(_, ask)| ask.limit > 0);
    let mut running: Vec<Running> = Vec::new();
    loop {
        let mut fresh = running.len();
        let mut hidden = match running.is_empty() {
            true => Vec::new(),
            false => {
                let tokens: Vec<u32> = running.iter().map(|r| r.last).collect();
                let mut sequences: Vec<Sequence<'_>> = running
                    .iter_mut()
                    .zip(&tokens)
                    .map(|(r, token)| Sequence { tokens: std::slice::from_ref(token), cache: &mut r.cache })
                    .collect();
                engine.forward(&mut sequences)?
            }
        };
        for (index, ask) in waiting.by_ref().take(SIDE_BY_SIDE - running.len()) {
            let mut cache = match &front {
                Some(cache) => cache.clone(),
                None => engine.cache(ask.positions())?,
            };
            let mut states = Vec::new();
            for tokens in ask.prompt[read..].chunks(BATCH) {
                states = engine.forward(&mut [Sequence { tokens, cache: &mut cache }])?;
            }
            let last =
                states.len().checked_sub(engine.hidden()).ok_or_else(|| Error::request("the prompt is empty"))?;
            hidden.extend_from_slice(&states[last..]);
            progress(ask.prompt.len() as u64);
            running.push(Running { ask: index, cache, written: 0, last: 0 });
            fresh += 1;
        }
        if fresh == 0 {
            return Ok(());
        }
        let logits = head.logits(&hidden);
        let mut kept = Vec::with_capacity(running.len());
        for (mut r, logits) in running.into_iter().zip(logits.chunks_exact(head.weight.packed.dims.rows)) {
            let token = greediest(logits)?;
            let limit = asks[r.ask].limit;
            r.written += 1;
            r.last = token;
            if ends.contains(&token) || !each(r.ask, token)? || r.written == limit {
                progress((limit + 1 - r.written) as u64);
            } else {
                progress(1);
                kept.push(r);
            }
        }
        running = kept;
    }
}

//! What did a file lose? Perplexity and divergence of artifacts against their reference, window by window of a text, the
//! reference and all artifacts side by side. Nothing of the size of text x vocabulary is ever held.

pub mod gate;
mod interval;
pub mod kv;
pub mod long;
pub mod paired;
pub mod position;
pub mod probe;
pub mod protocol;
mod quantiles;
pub mod reference;
pub mod report;
pub mod score;
pub mod script;
pub mod skills;
pub mod stats;
pub mod stress;
pub mod task;
pub mod text;

use std::ops::Range;

use half::bf16;

use crate::container::{Checkpoint, tokenizer};
use crate::device::cpu::TokenScore;
use crate::engine::{Engine, KvCache, Sequence};
use crate::error::{At, Error, Result};
use crate::metadata::{Array, Metadata, Value};
use protocol::Window;
use reference::Reference;
use score::{Side, compare, likelihoods};

/// Tokens that are run at a time: enough that decoding weights costs little beside multiplying them.
pub const BATCH: usize = 2048;
/// The same on a card, to which weights have a longer way.
const CARD_BATCH: usize = 65_536;

/// A model to be compared, and what messages call it.
pub struct Candidate<'a> {
    pub name: String,
    pub engine: Engine<'a>,
}

/// Runs every window through the reference and all candidates: `[candidate][window][scored position]`.
/// `progress` is called with tokens as models finish them. Runs in the caller's rayon pool.
pub fn run(
    reference: &mut Reference<'_>,
    candidates: &[Candidate<'_>],
    windows: &[Window],
    progress: &dyn Fn(u64),
) -> Result<Vec<Vec<Vec<TokenScore>>>> {
    let heads = candidates.iter().map(|c| c.engine.head().at(|| c.name.clone())).collect::<Result<Vec<_>>>()?;
    let mut out = vec![Vec::with_capacity(windows.len()); candidates.len()];
    let live = match &*reference {
        Reference::Live(engine) => Some(engine.as_ref()),
        Reference::Cached(_) => None,
    };
    let most = together(candidates.iter().map(|c| &c.engine).chain(live))?;
    for range in batches(windows, most) {
        let batch = &windows[range.clone()];
        let count = batch.iter().map(|w| w.tokens.len() as u64).sum();
        let expected = reference.hidden(windows, range).at(|| "the reference")?;
        progress(count);
        let mut hidden = Vec::with_capacity(candidates.len());
        for c in candidates {
            hidden.push(states(&c.engine, batch).at(|| c.name.clone())?);
            progress(count);
        }
        let head = reference.head()?;
        let named = candidates.iter().zip(&heads).zip(&hidden);
        let sides: Vec<Side<'_>> = named.map(|((c, head), hidden)| Side { name: &c.name, head, hidden }).collect();
        let reference = Side { name: "the reference", head: &head, hidden: &expected };
        let tokens = compare(&reference, &sides, &targets(batch))?;
        for (out, tokens) in out.iter_mut().zip(tokens) {
            out.extend(by_window(batch, tokens));
        }
    }
    Ok(out)
}

/// Mean KL divergence of one model from another, nats a token. Runs in the caller's rayon pool.
pub fn divergence(reference: &dyn Checkpoint, model: &dyn Checkpoint, windows: &[Window]) -> Result<f64> {
    let engine = |checkpoint| Engine::new(checkpoint, longest(windows));
    let candidate = Candidate { name: "the artifact".into(), engine: engine(model)? };
    let scores = run(&mut Reference::Live(Box::new(engine(reference)?)), &[candidate], windows, &|_| {})?;
    let klds = || scores.iter().flatten().flatten().map(|t| t.kld);
    Ok(klds().sum::<f64>() / klds().count().max(1) as f64)
}

/// Negative log-likelihoods of one model, `[window][scored position]`: what can be said without a reference.
/// `progress` is called with tokens as they are run. Runs in the caller's rayon pool.
pub fn alone(model: &Candidate<'_>, windows: &[Window], progress: &dyn Fn(u64)) -> Result<Vec<Vec<f64>>> {
    let head = model.engine.head()?;
    let mut out = Vec::with_capacity(windows.len());
    for range in batches(windows, together([&model.engine])?) {
        let batch = &windows[range];
        let hidden = states(&model.engine, batch)?;
        let nll = likelihoods(&Side { name: &model.name, head: &head, hidden: &hidden }, &targets(batch))?;
        out.extend(by_window(batch, nll));
        progress(batch.iter().map(|w| w.tokens.len() as u64).sum());
    }
    Ok(out)
}

/// How far apart two runs of the same model are.
#[derive(Clone, Copy, Debug, serde::Serialize)]
pub struct Noise {
    /// Largest divergence between windows run together and each alone.
    pub batch_kld: f64,
    /// Mean divergence when the final hidden states are rounded to BF16.
    pub bf16_kld: f64,
}

/// Measures [`Noise`] on the first batch of windows.
pub fn noise(engine: &Engine<'_>, windows: &[Window]) -> Result<Noise> {
    let range = batches(windows, together([engine])?).next().unwrap_or(0..0);
    let batch = &windows[range];
    let head = engine.head()?;
    let together = states(engine, batch)?;
    let mut alone = Vec::with_capacity(together.len());
    for window in batch {
        alone.extend(states(engine, std::slice::from_ref(window))?);
    }
    let rounded: Vec<f32> = together.iter().map(|x| bf16::from_f32(*x).to_f32()).collect();
    let side = |hidden| Side { name: "the reference", head: &head, hidden };
    let tokens = compare(&side(&together), &[side(&alone), side(&rounded)], &targets(batch))?;
    let klds = |i: usize| tokens[i].iter().map(|t| t.kld);
    let count = tokens[1].len().max(1) as f64;
    Ok(Noise { batch_kld: klds(0).fold(0.0, f64::max), bf16_kld: klds(1).sum::<f64>() / count })
}

/// Tokens that all of these run at a time.
pub(crate) fn together<'e, 'a: 'e>(engines: impl IntoIterator<Item = &'e Engine<'a>>) -> Result<usize> {
    engines.into_iter().try_fold(usize::MAX, |least, engine| {
        let most = engine.most_tokens()?.map_or(BATCH, |most| most.min(CARD_BATCH));
        Ok(least.min(most))
    })
}

/// Ranges of windows with at most so many tokens, or one window.
pub(crate) fn batches(windows: &[Window], most: usize) -> impl Iterator<Item = Range<usize>> + '_ {
    let mut from = 0;
    std::iter::from_fn(move || {
        let (start, mut tokens) = (from, 0);
        while from < windows.len() && (from == start || tokens + windows[from].tokens.len() <= most) {
            tokens += windows[from].tokens.len();
            from += 1;
        }
        (start < from).then_some(start..from)
    })
}

/// Final hidden states of the scored positions of these windows, `[positions][hidden]`.
pub fn states(engine: &Engine<'_>, windows: &[Window]) -> Result<Vec<f32>> {
    let caches = windows.iter().map(|w| engine.transient(w.tokens.len()));
    let mut caches = caches.collect::<Result<Vec<KvCache>>>()?;
    let mut sequences: Vec<Sequence<'_>> =
        windows.iter().zip(&mut caches).map(|(w, cache)| Sequence { tokens: &w.tokens, cache }).collect();
    let all = engine.forward(&mut sequences)?;
    Ok(scored(windows, &all, engine.hidden()))
}

/// The scored positions' of all states, `[tokens][hidden]`.
pub(crate) fn scored(windows: &[Window], all: &[f32], hidden: usize) -> Vec<f32> {
    let (mut out, mut start) = (Vec::new(), 0);
    for w in windows {
        out.extend_from_slice(&all[(start + w.scored.start) * hidden..(start + w.scored.end) * hidden]);
        start += w.tokens.len();
    }
    out
}

pub(crate) fn targets(windows: &[Window]) -> Vec<u32> {
    windows.iter().flat_map(|w| w.targets().map(|(_, token)| token)).collect()
}

fn by_window<T>(windows: &[Window], tokens: Vec<T>) -> impl Iterator<Item = Vec<T>> {
    let mut tokens = tokens.into_iter();
    windows.iter().map(move |w| tokens.by_ref().take(w.scored.len()).collect())
}

/// Largest window; what an [`Engine`] needs positions for.
pub fn longest(windows: &[Window]) -> usize {
    windows.iter().map(|w| w.tokens.len()).max().unwrap_or(0)
}

/// Names what texts become under a tokenizer: BLAKE3 of its kind, tokens and merges, as GGUF stores them.
pub fn tokenizer_hash(metadata: &Metadata) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    let mut add = |text: &str| {
        hash.update(&(text.len() as u64).to_le_bytes());
        hash.update(text.as_bytes());
    };
    let model = metadata.str("tokenizer.ggml.model").ok_or_else(|| Error::input("there is no tokenizer"))?;
    add(model);
    for key in ["tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        if let Some(Array::Str(texts)) = metadata.get(key).and_then(Value::as_array) {
            add(&texts.len().to_string());
            texts.iter().for_each(|t| add(t));
        }
    }
    Ok(hash.finalize().to_hex()[..16].to_owned())
}

/// A tokenized text.
pub struct Text {
    pub tokens: Vec<u32>,
    /// What the tokenizer puts first.
    pub bos: Option<u32>,
}

/// Tokenizes with the BOS that the model wants, reading no special tokens out of the text. An end-of-text that some
/// tokenizers append is no part of a text.
pub fn tokenize(checkpoint: &dyn Checkpoint, text: &str) -> Result<Text> {
    let tokenizer = checkpoint.tokenizer()?;
    let bos = tokenizer::leading_bos(&checkpoint.metadata()?, &tokenizer)?;
    let mut tokens = tokenizer.encode(text, false, false)?;
    if let Some(bos) = bos {
        tokens.insert(0, bos);
    }
    Ok(Text { tokens, bos })
}

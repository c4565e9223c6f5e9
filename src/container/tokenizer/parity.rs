//! Does an artifact tokenize as its source does? Both are run on texts chosen to be awkward.

use std::sync::LazyLock;

use super::hugging_face::HuggingFace;
use super::{Inner, Tokenizer, keys, rebuild};
use crate::error::{Error, Result};
use crate::metadata::Metadata;

static AWKWARD: LazyLock<Vec<String>> =
    LazyLock::new(|| include_str!("awkward.txt").lines().filter_map(|line| serde_json::from_str(line).ok()).collect());

/// Digits, white space, scripts, marks, emoji, control characters, code, special-token texts, long words.
pub fn awkward() -> &'static [String] {
    &AWKWARD
}

/// A text that two tokenizers see differently.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    pub text: String,
    pub source: Vec<u32>,
    pub artifact: Vec<u32>,
    /// A difference that llama.cpp makes with every such model, right metadata or not.
    pub known: Option<&'static str>,
}

const COMPOSED: &str = "the source composes characters first (NFC), llama.cpp does not";
const SPECIAL: &str = "text that spells a special token is read differently";
const APPROXIMATE: &str = "llama.cpp approximates this pre-tokenizer beyond ASCII";

/// The texts on which the two differ, special tokens parsed, none added.
pub fn parity<'a>(
    source: &Tokenizer,
    artifact: &Tokenizer,
    texts: impl IntoIterator<Item = &'a str>,
) -> Result<Vec<Mismatch>> {
    let mut out = Vec::new();
    for text in texts {
        let (a, b) = (source.encode(text, false, true)?, artifact.encode(text, false, true)?);
        if a != b {
            let known = explain(source, artifact, text, [&a, &b])?;
            out.push(Mismatch { text: text.to_owned(), source: a, artifact: b, known });
        }
    }
    Ok(out)
}

fn explain(source: &Tokenizer, artifact: &Tokenizer, text: &str, ids: [&[u32]; 2]) -> Result<Option<&'static str>> {
    let same = |id: &&u32| source.token(**id) == artifact.token(**id);
    let folders = [source, artifact].iter().all(|t| matches!(t.0, Inner::HuggingFace(_)));
    // One program reads both folders alike; no runtime's habit gives an id another text.
    if folders || !ids.into_iter().flatten().all(|id| same(&id)) {
        return Ok(None);
    }
    if let Inner::HuggingFace(tokenizer) = &source.0
        && artifact.encode(&tokenizer.normalize(text)?, false, true)? == ids[0]
    {
        return Ok(Some(COMPOSED));
    }
    if artifact.encode(text, false, false)? == source.encode(text, false, false)? {
        return Ok(Some(SPECIAL));
    }
    Ok((artifact.is_approximate() && !text.is_ascii()).then_some(APPROXIMATE))
}

/// Refuses a pre-tokenizer that would cut ordinary text otherwise than the source does: a wrong one ruins a model in silence.
/// Special tokens are left out (flags such as `rstrip` have no key), and so is text beyond ASCII where llama.cpp is known
/// to approximate.
pub fn check(source: &HuggingFace, vocab: &Metadata, pre: &str) -> Result<()> {
    let mut metadata = vocab.clone();
    metadata.set(keys::PRE, pre);
    let artifact = rebuild(&metadata)?;
    let added: Vec<String> = source.added().into_values().map(|token| token.content).collect();
    for text in awkward() {
        if artifact.is_approximate() && !text.is_ascii() || added.iter().any(|token| text.contains(token)) {
            continue;
        }
        let expected = source.encode(text, false, true)?;
        // llama.cpp takes text as it comes, the source may compose it first.
        let got = artifact.encode(&source.normalize(text)?, false, false)?;
        if expected != got {
            return Err(Error::unsupported(format!(
                "llama.cpp's {pre:?} turns {text:?} into {got:?}, the source into {expected:?}"
            ))
            .at("tokenizer.json")
            .help("name the pre-tokenizer with --pre NAME if you know that it fits"));
        }
    }
    Ok(())
}

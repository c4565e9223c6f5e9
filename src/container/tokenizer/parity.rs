//! Does an artifact tokenize as its source does? Both are run on texts chosen to be awkward.

use std::sync::LazyLock;

use tokenizers::{NormalizedString, Normalizer};

use super::{Tokenizer, keys, pres, rebuild};
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
}

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
            out.push(Mismatch { text: text.to_owned(), source: a, artifact: b });
        }
    }
    Ok(out)
}

/// Refuses metadata that would cut ordinary text otherwise than its source: a wrong pre-tokenizer ruins a model in silence.
/// Special tokens are left out (flags such as `rstrip` have no key), and so is text beyond ASCII where llama.cpp is known
/// to approximate.
pub fn check(source: &tokenizers::Tokenizer, metadata: &Metadata) -> Result<()> {
    let artifact = rebuild(metadata)?;
    let name = metadata.str(keys::PRE).unwrap_or_default();
    let approximate = pres::find(name).is_none_or(|p| !p.sources.is_empty());
    let added = source.get_added_vocabulary().get_vocab();
    for text in awkward() {
        if approximate && !text.is_ascii() || added.keys().any(|token| text.contains(token.as_str())) {
            continue;
        }
        let normal = normalized(source, text);
        let (Ok(encoding), Ok(got)) =
            (source.encode_fast(text.as_str(), false), artifact.encode(&normal, false, false))
        else {
            continue;
        };
        if encoding.get_ids() != got {
            return Err(Error::unsupported(format!(
                "tokenizer.ggml.pre {name:?} cuts {text:?} into {got:?}, the source into {:?}",
                encoding.get_ids()
            ))
            .at("tokenizer.json")
            .help("name the pre-tokenizer with --pre NAME if you know that it fits"));
        }
    }
    Ok(())
}

/// llama.cpp takes text as it comes, the source may compose it first.
fn normalized(source: &tokenizers::Tokenizer, text: &str) -> String {
    let mut string = NormalizedString::from(text);
    let done = source.get_normalizer().map(|n| n.normalize(&mut string).is_ok());
    if done.unwrap_or(false) { string.get().to_owned() } else { text.to_owned() }
}

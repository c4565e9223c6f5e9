//! Tokens that a text begins with and that end a generation, by key and by text: no file lists them all. Source: llama.cpp `src/llama-vocab.cpp`.

use std::collections::BTreeSet;

use super::vocab::{self, TokenType};
use super::{Tokenizer, keys};
use crate::error::Result;
use crate::metadata::{Metadata, Value};

/// Ends wherever they are in the vocabulary; llama.cpp makes them control tokens whatever the file says.
pub const END_TEXTS: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];
/// What separates files and repositories in fill-in-the-middle training: (keys, texts).
pub const END_INFILL: &[(&[&str], &[&str])] = &[
    (&["fim_pad"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    (&["fim_rep"], &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    (&["fim_sep"], &["<|file_sep|>"]),
];

/// Texts that are no end in this vocabulary, and the type that they get.
pub fn demoted(has: impl Fn(&str) -> bool, eos: Option<&str>) -> Vec<(&'static str, TokenType)> {
    let harmony = has("<|return|>") && has("<|call|>");
    let solar = (has("<|call|>") || has("<|calls|>")) && has("<|flush|>");
    let normal_s = has("<|tool_response>") || eos == Some("<|plamo:eos|>");
    let rows = [(harmony || solar, "<|end|>", TokenType::UserDefined), (normal_s, "</s>", TokenType::Normal)];
    rows.into_iter().filter(|(applies, ..)| *applies).map(|(_, text, to)| (text, to)).collect()
}

/// Ids after which a model has nothing more to say, in ascending order.
///
/// Errors: the vocabulary is missing or names a token twice.
pub fn end_tokens(metadata: &Metadata) -> Result<Vec<u32>> {
    let tokens = vocab::tokens(metadata)?;
    let ids = vocab::index(&tokens)?;
    let key =
        |key: &str| metadata.u64(key).and_then(|id| u32::try_from(id).ok()).filter(|id| tokens.len() > *id as usize);
    let named = [keys::EOS_ID, keys::EOT_ID, keys::EOM_ID].into_iter().filter_map(key);
    let infill = END_INFILL.iter().filter_map(|(stems, texts)| {
        let given = stems.iter().find_map(|stem| key(&format!("tokenizer.ggml.{stem}_token_id")));
        given.or_else(|| texts.iter().filter_map(|t| ids.get(*t).copied()).min())
    });
    let mut ends: BTreeSet<u32> = named.chain(infill).collect();
    ends.extend(END_TEXTS.iter().filter_map(|t| ids.get(*t)));
    let eos = key(keys::EOS_ID).map(|id| tokens[id as usize].as_str());
    for (text, _) in demoted(|text| ids.contains_key(text), eos) {
        ids.get(text).map(|id| ends.remove(id));
    }
    Ok(ends.into_iter().collect())
}

/// The id that the metadata names for a role: `bos`, `eos`, `eot`.
pub fn special_id(metadata: &Metadata, role: &str) -> Option<u32> {
    u32::try_from(metadata.u64(&format!("tokenizer.ggml.{role}_token_id"))?).ok()
}

/// The BOS token, where the model wants it in front of every text: as the metadata says, else as the tokenizer does.
pub fn leading_bos(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<u32>> {
    if let Some(add) = metadata.get(keys::ADD_BOS).and_then(Value::as_bool) {
        return Ok(special_id(metadata, "bos").filter(|_| add));
    }
    let [with, without] = [true, false].map(|special| tokenizer.encode("a", special, false));
    let (with, without) = (with?.first().copied(), without?.first().copied());
    Ok(with.filter(|_| with != without))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(tokens: &[&str], ids: &[(&str, u32)]) -> Vec<u32> {
        let mut metadata = Metadata::default();
        metadata.set(keys::TOKENS, tokens.iter().map(|t| t.to_string()).collect::<Vec<_>>());
        ids.iter().for_each(|(key, id)| metadata.set(*key, *id));
        end_tokens(&metadata).unwrap()
    }

    #[test]
    fn keys_and_texts_end_a_generation() {
        assert_eq!(ends(&["a", "<|im_end|>", "<|file_sep|>", "stop"], &[(keys::EOS_ID, 3)]), [1, 2, 3]);
        assert_eq!(ends(&["a", "b", "c"], &[(keys::EOT_ID, 2), (keys::EOM_ID, 0)]), [0, 2]);
        assert_eq!(ends(&["a", "b"], &[(keys::EOS_ID, 2)]), [] as [u32; 0]);
        assert!(end_tokens(&Metadata::default()).is_err());
    }

    #[test]
    fn some_texts_are_no_end_everywhere() {
        assert_eq!(ends(&["<|end|>"], &[]), [0]);
        assert_eq!(ends(&["<|end|>", "<|return|>", "<|call|>"], &[]), [1, 2]);
        assert_eq!(ends(&["</s>", "<|tool_response>"], &[]), [1]);
        assert_eq!(ends(&["</s>", "<|plamo:eos|>"], &[(keys::EOS_ID, 1)]), [1]);
    }
}

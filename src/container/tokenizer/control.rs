//! Texts whose token type llama.cpp sets itself, whatever the file says. Source: llama.cpp `src/llama-vocab.cpp`.

use std::collections::HashMap;

use super::role;
use super::vocab::TokenType;
use crate::metadata::Metadata;

/// Fill-in-the-middle texts, control tokens too unless a key of the file names another: (keys, texts).
const INFILL_TEXTS: &[(&[&str], &[&str])] = &[
    (
        &["fim_pre", "prefix"],
        &[
            "<|fim_prefix|>",
            "<fim-prefix>",
            "<fim_prefix>",
            "<｜fim▁begin｜>",
            "<PRE>",
            "▁<PRE>",
            "<|code_prefix|>",
            "<|prefix|>",
        ],
    ),
    (
        &["fim_suf", "suffix"],
        &[
            "<|fim_suffix|>",
            "<fim-suffix>",
            "<fim_suffix>",
            "<｜fim▁hole｜>",
            "<SUF>",
            "▁<SUF>",
            "<|code_suffix|>",
            "<|suffix|>",
        ],
    ),
    (
        &["fim_mid", "middle"],
        &[
            "<|fim_middle|>",
            "<fim-middle>",
            "<fim_middle>",
            "<｜fim▁end｜>",
            "<MID>",
            "▁<MID>",
            "<|code_middle|>",
            "<|middle|>",
        ],
    ),
];
/// Always shown, so never control tokens.
const VISIBLE_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// `types`: one for each token; `ids`: tokens by text.
pub fn override_types(types: &mut [TokenType], ids: &HashMap<String, u32>, eos: Option<u32>, metadata: &Metadata) {
    let given = |stem: &&str| metadata.get(&format!("tokenizer.ggml.{stem}_token_id")).is_some();
    for (_, texts) in INFILL_TEXTS.iter().chain(role::END_INFILL).filter(|(stems, _)| !stems.iter().any(given)) {
        if let Some(&id) = texts.iter().filter_map(|t| ids.get(*t)).min() {
            types[id as usize] = TokenType::Control;
        }
    }
    let mut set = |text: &str, to: TokenType| {
        if let Some(&id) = ids.get(text) {
            types[id as usize] = to;
        }
    };
    role::END_TEXTS.iter().for_each(|t| set(t, TokenType::Control));
    VISIBLE_TEXTS.iter().for_each(|t| set(t, TokenType::UserDefined));
    let eos = eos.and_then(|eos| ids.iter().find(|(_, id)| **id == eos)).map(|(text, _)| text.as_str());
    role::demoted(|text| ids.contains_key(text), eos).into_iter().for_each(|(text, to)| set(text, to));
}

//! Texts whose token type llama.cpp sets itself, whatever the file says. Source: llama.cpp `src/llama-vocab.cpp`.

use std::collections::HashMap;

use super::vocab::TokenType;
use crate::metadata::Metadata;

/// Text that ends generation: llama.cpp makes these control tokens whatever the file says.
const END_TEXTS: &[&str] = &[
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
/// The same for fill-in-the-middle texts, unless a key of the file names the token: (keys, texts).
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
    (&["fim_pad"], &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"]),
    (&["fim_rep"], &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"]),
    (&["fim_sep"], &["<|file_sep|>"]),
];
/// Always shown, so never control tokens.
const VISIBLE_TEXTS: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// `types`: one for each token; `ids`: tokens by text.
pub fn override_types(types: &mut [TokenType], ids: &HashMap<String, u32>, eos: Option<u32>, metadata: &Metadata) {
    let given = |stem: &&str| metadata.get(&format!("tokenizer.ggml.{stem}_token_id")).is_some();
    for (_, texts) in INFILL_TEXTS.iter().filter(|(stems, _)| !stems.iter().any(given)) {
        if let Some(&id) = texts.iter().filter_map(|t| ids.get(*t)).min() {
            types[id as usize] = TokenType::Control;
        }
    }
    let mut set = |text: &str, to: TokenType| {
        if let Some(&id) = ids.get(text) {
            types[id as usize] = to;
        }
    };
    END_TEXTS.iter().for_each(|t| set(t, TokenType::Control));
    VISIBLE_TEXTS.iter().for_each(|t| set(t, TokenType::UserDefined));
    let has = |text: &str| ids.contains_key(text);
    let harmony = has("<|return|>") && has("<|call|>");
    let solar = (has("<|call|>") || has("<|calls|>")) && has("<|flush|>");
    if harmony || solar {
        set("<|end|>", TokenType::UserDefined);
    }
    let plamo = eos.is_some() && eos == ids.get("<|plamo:eos|>").copied();
    if plamo || has("<|tool_response>") {
        set("</s>", TokenType::Normal);
    }
}

//! Byte-level BPE: `tokenizer.json` as a `gpt2` vocabulary. Source: llama.cpp `conversion/base.py` (get_vocab_base).

use std::collections::HashMap;

use serde_json::Value as Json;

use super::folder::Folder;
use super::hugging_face::HuggingFace;
use super::merge::Merges;
use super::pres::Pre;
use super::vocab::{self, TokenType};
use super::{TokenizerOptions, keys, looks_special, parity, pre, pres, special};
use crate::error::{Error, Result};
use crate::metadata::Metadata;

pub fn write(folder: &Folder, vocab_size: usize, options: &TokenizerOptions, out: &mut Metadata) -> Result<()> {
    let json = folder.tokenizer.as_ref().ok_or_else(|| folder.missing("tokenizer.json"))?;
    if json["model"]["type"] != "BPE" {
        let kind = &json["model"]["type"];
        return Err(Error::unsupported(format!("a tokenizer of kind {kind} is not converted: only BPE is"))
            .at("tokenizer.json"));
    }
    let tokenizer = folder.tokenizer()?;
    let (texts, types) = tokens(json, &tokenizer, vocab_size)?;
    let merges = special::merges(folder)?;
    let ids = vocab::index(&texts)?;
    out.set(keys::MODEL, "gpt2");
    out.set(keys::PRE, ""); // chosen below, with the rest to try it on
    out.set(keys::TOKENS, texts);
    out.set(keys::TOKEN_TYPE, types.iter().map(|&t| t as i32).collect::<Vec<i32>>());
    // The converter leaves out an empty list, and llama.cpp does not load a file without the key. Empty, it loads.
    out.set(keys::MERGES, merges);
    if options.nameless {
        out.remove(keys::PRE);
        return Ok(());
    }
    let name = match &options.pre {
        Some(name) => pres::names().find(|n| n == name).ok_or_else(|| {
            let known = pres::names().collect::<Vec<_>>().join(", ");
            Error::request(format!("--pre {name}: llama.cpp has no such pre-tokenizer")).help(format!("known: {known}"))
        })?,
        None => {
            let merges_up = |row| merges_up(row, out, &ids, &types);
            let fits = |name: &str| match options.exact_llama {
                true => Ok(()),
                false => parity::check(&tokenizer, out, name),
            };
            pre::recognise(folder, &tokenizer, merges_up, fits)?
        }
    };
    out.set(keys::PRE, name);
    Ok(())
}

/// Whether merging the letters of each token gives that token.
fn merges_up(row: &'static Pre, metadata: &Metadata, ids: &HashMap<String, u32>, types: &[TokenType]) -> Result<bool> {
    let list = vocab::strings(metadata, keys::MERGES)?.unwrap_or_default();
    let merges = Merges::new(row, list, ids)?;
    Ok(ids.iter().filter(|(_, id)| types[**id as usize] == TokenType::Normal).all(|(text, _)| merges.reaches(text)))
}

fn tokens(json: &Json, tokenizer: &HuggingFace, vocab_size: usize) -> Result<(Vec<String>, Vec<TokenType>)> {
    let vocab = super::model_vocab(json)?;
    let mut texts: Vec<String> = (0..vocab_size).map(|i| format!("[PAD{i}]")).collect();
    let mut types = vec![TokenType::Unused; vocab_size];
    for (text, &id) in &vocab {
        super::in_range(id, text, vocab_size)?;
        if types[id as usize] != TokenType::Unused {
            let other = &texts[id as usize];
            return Err(Error::input(format!("tokens {other:?} and {text:?} share id {id}")).at("tokenizer.json"));
        }
        (texts[id as usize], types[id as usize]) = (text.clone(), TokenType::Normal);
    }
    for (id, token) in tokenizer.added() {
        super::in_range(id, &token.content, vocab_size)?;
        // llama.cpp looks for these in raw text, so they are written as they decode.
        let text = if token.normalized { None } else { tokenizer.decode(&[id]).ok() };
        let mut text = text.unwrap_or_else(|| token.content.clone());
        let control = token.special || looks_special(&text);
        if !control {
            text = text.replace('▁', " ");
        }
        types[id as usize] = if control { TokenType::Control } else { TokenType::UserDefined };
        texts[id as usize] = text;
    }
    Ok((texts, types))
}

//! Byte-level BPE: `tokenizer.json` as a `gpt2` vocabulary. Source: llama.cpp `conversion/base.py` (get_vocab_base).

use std::collections::BTreeMap;

use serde_json::Value as Json;

use super::folder::{Added, Folder};
use super::merge::Merges;
use super::vocab::TokenType;
use super::{TokenizerOptions, keys, looks_special, pre, pres, special};
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
    let (texts, types) = tokens(folder, json, &tokenizer, vocab_size)?;
    let merges = special::merges(folder)?;
    let ids = super::vocab::index(&texts)?;
    let name = match &options.pre {
        Some(name) => pres::find(name).and_then(|p| p.names.iter().find(|n| *n == name)).copied().ok_or_else(|| {
            let known = pres::names().collect::<Vec<_>>().join(", ");
            Error::request(format!("--pre {name}: llama.cpp has no such pre-tokenizer")).help(format!("known: {known}"))
        })?,
        None => pre::recognise(json, &tokenizer, |row| {
            let merges = Merges::new(row, &merges, &ids)?;
            Ok(texts.iter().zip(&types).filter(|(_, t)| **t == TokenType::Normal).all(|(text, _)| merges.reaches(text)))
        })?,
    };
    out.set(keys::MODEL, "gpt2");
    out.set(keys::PRE, name);
    out.set(keys::TOKENS, texts);
    out.set(keys::TOKEN_TYPE, types.into_iter().map(|t| t as i32).collect::<Vec<i32>>());
    if !merges.is_empty() {
        out.set(keys::MERGES, merges);
    }
    if options.pre.is_none() && !options.exact_llama {
        super::parity::check(&tokenizer, out)?;
    }
    Ok(())
}

fn tokens(
    folder: &Folder,
    json: &Json,
    tokenizer: &tokenizers::Tokenizer,
    vocab_size: usize,
) -> Result<(Vec<String>, Vec<TokenType>)> {
    let vocab = super::model_vocab(json)?;
    let added: BTreeMap<u32, Added> = folder.added_tokens(&vocab)?;
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
    for (id, token) in added {
        super::in_range(id, &token.content, vocab_size)?;
        // llama.cpp looks for these in raw text, so they are written as they decode.
        let text = if token.normalized { None } else { tokenizer.decode(&[id], false).ok() };
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

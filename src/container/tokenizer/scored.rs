//! Vocabularies whose pairs merge by score: a `tokenizer.model`, or a `tokenizer.json` in that style.
//! Sources: llama.cpp `conversion/base.py`, `conversion/phi.py`, `gguf-py/gguf/vocab.py` (LlamaHfVocab).

use std::collections::HashMap;

use serde_json::Value as Json;

use super::folder::{Folder, list};
use super::special::merges;
use super::vocab::{TokenType, byte_token};
use super::{keys, looks_special, sentencepiece};
use crate::error::{At, Error, Result};
use crate::metadata::Metadata;

/// The score of a token that is not merged.
const ADDED: f32 = -1000.0;
const PADDING: f32 = -10000.0;

pub struct Tokens {
    pub texts: Vec<String>,
    pub scores: Vec<f32>,
    pub types: Vec<TokenType>,
}

impl Tokens {
    fn padding(n: usize) -> Tokens {
        let texts = (0..n).map(|i| format!("[PAD{i}]")).collect();
        Tokens { texts, scores: vec![PADDING; n], types: vec![TokenType::Unused; n] }
    }

    /// Ids outside the vocabulary have no embedding and are left out.
    fn set(&mut self, id: usize, text: &str, score: f32, kind: TokenType) {
        if id < self.texts.len() {
            self.texts[id] = text.to_owned();
            self.scores[id] = score;
            self.types[id] = kind;
        }
    }

    pub fn write(self, out: &mut Metadata) -> Result<()> {
        super::vocab::index(&self.texts)?;
        out.set(keys::MODEL, "llama");
        out.set(keys::PRE, "default");
        out.set(keys::TOKENS, self.texts);
        out.set(keys::SCORES, self.scores);
        out.set(keys::TOKEN_TYPE, self.types.into_iter().map(|t| t as i32).collect::<Vec<i32>>());
        Ok(())
    }
}

/// `phi3`: that family trusts `tokenizer.json` over the other files and reads no meaning into texts.
pub fn from_model(folder: &Folder, model: &[u8], vocab_size: usize, phi3: bool) -> Result<Tokens> {
    let model = sentencepiece::parse(model).at(|| "tokenizer.model")?;
    let mut tokens = Tokens::padding(vocab_size);
    for (id, piece) in model.pieces.iter().enumerate() {
        let kind = match piece.kind.unwrap_or(1) {
            2 => TokenType::Unknown,
            3 => TokenType::Control,
            5 => TokenType::Unused,
            6 => TokenType::Byte,
            _ => TokenType::Normal,
        };
        tokens.set(id, &piece.piece, piece.score, kind);
    }
    for (text, id) in folder.json("added_tokens.json")?.iter().filter_map(Json::as_object).flatten() {
        tokens.set(index(id, "added_tokens.json")?, text, ADDED, TokenType::UserDefined);
    }
    for (id, token) in folder.config("added_tokens_decoder").as_object().into_iter().flatten() {
        let id = id.parse().map_err(|_| Error::input(format!("{id:?} is no token id")).at("tokenizer_config.json"))?;
        set_added(&mut tokens, id, token, phi3, "tokenizer_config.json")?;
    }
    if phi3 {
        for token in list(folder.tokenizer.as_ref().map(|t| &t["added_tokens"])) {
            set_added(&mut tokens, index(&token["id"], "tokenizer.json")?, token, phi3, "tokenizer.json")?;
        }
    }
    Ok(tokens)
}

fn set_added(tokens: &mut Tokens, id: usize, token: &Json, phi3: bool, place: &str) -> Result<()> {
    let text = token["content"].as_str().ok_or_else(|| Error::input(format!("token {id} has no text")).at(place))?;
    let special = token["special"].as_bool().unwrap_or(false) || !phi3 && looks_special(text);
    if special {
        tokens.set(id, text, ADDED, TokenType::Control);
    } else {
        // llama.cpp looks for these in the text as it was typed.
        let text = if phi3 { text.to_owned() } else { text.replace('▁', " ") };
        tokens.set(id, &text, ADDED, TokenType::UserDefined);
    }
    Ok(())
}

fn index(id: &Json, place: &str) -> Result<usize> {
    let id = id.as_u64().and_then(|id| usize::try_from(id).ok());
    id.ok_or_else(|| Error::input("an added token has no id").at(place))
}

/// Whether a `tokenizer.json` is BPE over raw text with bytes as a last resort.
pub fn is_scored(tokenizer: &Json) -> bool {
    let model = &tokenizer["model"];
    model["type"] == "BPE" && model["byte_fallback"] == true && tokenizer["decoder"]["type"] == "Sequence"
}

/// Without a `tokenizer.model` there are no scores. `exact`: -1000 for all, as llama.cpp's converter writes, which makes
/// llama.cpp merge from left to right. Else the order of the merges becomes the scores, and tokenization stays what it was.
pub fn from_json(folder: &Folder, tokenizer: &Json, vocab_size: usize, exact: bool) -> Result<Tokens> {
    let vocab = super::model_vocab(tokenizer)?;
    let ranks = if exact { HashMap::new() } else { best_ranks(&merges(folder)?) };
    let added = folder.tokenizer()?.added();
    let mut tokens = Tokens::padding(vocab_size);
    let unmerged = -(ranks.len() as f32);
    for (text, &id) in &vocab {
        super::in_range(id, text, vocab_size)?;
        let token = added.get(&id);
        let kind = match byte_token(text) {
            Some(_) => TokenType::Byte,
            None if token.is_some_and(|a| a.special) => TokenType::Control,
            None => TokenType::Normal,
        };
        let score = if exact { ADDED } else { ranks.get(text).map_or(unmerged, |&rank| -(rank as f32)) };
        tokens.set(id as usize, text, score, kind);
    }
    for (&id, token) in added.iter().filter(|(_, a)| !exact || !vocab.contains_key(&a.content)) {
        super::in_range(id, &token.content, vocab_size)?;
        let special = token.special || !exact && looks_special(&token.content);
        if special {
            tokens.set(id as usize, &token.content, ADDED, TokenType::Control);
        } else {
            let text = if exact { token.content.clone() } else { token.content.replace('▁', " ") };
            tokens.set(id as usize, &text, ADDED, TokenType::UserDefined);
        }
    }
    Ok(tokens)
}

/// The first merge that makes each token.
fn best_ranks(merges: &[String]) -> HashMap<String, usize> {
    let mut ranks = HashMap::with_capacity(merges.len());
    for merge in merges {
        let rank = ranks.len();
        ranks.entry(merge.replacen(' ', "", 1)).or_insert(rank);
    }
    ranks
}

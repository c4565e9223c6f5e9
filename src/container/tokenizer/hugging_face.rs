//! A `tokenizer.json` as the `tokenizers` crate runs it. The crate panics on some files that no tool writes; here those
//! are errors.

use std::collections::HashMap;
use std::sync::OnceLock;

use tokenizers::{
    AddedToken, DecoderWrapper, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString,
    PreTokenizer, Tokenizer,
};

use super::{bytes, vocab};
use crate::error::{Error, Result, caught};

pub struct HuggingFace {
    tokenizer: Tokenizer,
    /// The same with special tokens taken for plain text.
    plain: OnceLock<Box<Tokenizer>>,
}

fn guarded<T>(run: impl FnOnce() -> tokenizers::Result<T>) -> Result<T> {
    let error = match caught(run) {
        Some(Ok(done)) => return Ok(done),
        Some(Err(error)) => Error::input(error.to_string()),
        None => Error::input("the file breaks the tokenizers library"),
    };
    Err(error.at("tokenizer.json"))
}

impl HuggingFace {
    pub fn parse(json: &[u8]) -> Result<HuggingFace> {
        Ok(HuggingFace { tokenizer: guarded(|| Tokenizer::from_bytes(json))?, plain: OnceLock::new() })
    }

    pub fn add(&mut self, tokens: Vec<AddedToken>) -> Result<()> {
        guarded(|| self.tokenizer.add_tokens(tokens)).map(drop)
    }

    /// Tokens that are cut out of the text before anything else.
    pub fn added(&self) -> HashMap<u32, AddedToken> {
        self.tokenizer.get_added_tokens_decoder().into_iter().collect()
    }

    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let plain = || {
            let mut plain = Box::new(self.tokenizer.clone());
            plain.set_encode_special_tokens(true);
            plain
        };
        let tokenizer = if parse_special { &self.tokenizer } else { self.plain.get_or_init(plain) };
        guarded(|| Ok(tokenizer.encode_fast(text, add_special)?.get_ids().to_vec()))
    }

    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.tokenizer.decode(ids, false))
    }

    /// Text as the normalizer leaves it.
    pub fn normalize(&self, text: &str) -> Result<String> {
        let Some(normalizer) = self.tokenizer.get_normalizer() else { return Ok(text.to_owned()) };
        guarded(|| {
            let mut string = NormalizedString::from(text);
            normalizer.normalize(&mut string)?;
            Ok(string.get().to_owned())
        })
    }

    /// The words that the pre-tokenizer cuts, in its own alphabet.
    pub fn words(&self, text: &str) -> Result<Vec<String>> {
        let Some(pre) = self.tokenizer.get_pre_tokenizer() else { return Ok(vec![text.to_owned()]) };
        guarded(|| {
            let mut string = PreTokenizedString::from(text);
            pre.pre_tokenize(&mut string)?;
            let words = string.get_splits(OffsetReferential::Normalized, OffsetType::Byte);
            Ok(words.into_iter().map(|(word, ..)| word.to_owned()).collect())
        })
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }
    pub fn token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// The bytes that a token stands for; special tokens as their own text.
    pub fn piece(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.token(id) else { return Vec::new() };
        if self.tokenizer.get_added_vocabulary().get_added_tokens_decoder().contains_key(&id) {
            return token.into_bytes();
        }
        match self.tokenizer.get_decoder().is_some_and(is_byte_level) {
            true => bytes::decode(&token).unwrap_or_else(|| token.into_bytes()),
            false => vocab::scored_piece(&token),
        }
    }

    pub fn len(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }
}

fn is_byte_level(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteLevel(_) => true,
        DecoderWrapper::Sequence(all) => all.get_decoders().iter().any(is_byte_level),
        _ => false,
    }
}

//! The tokenizer of a GGUF file as llama.cpp runs it, quirks included: what this says is what that runtime will do.
//! Source: llama.cpp `src/llama-vocab.cpp`.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::merge::{Merges, Scored};
use super::pres::{self, Pre};
use super::{bytes, control, keys};
use crate::error::{Error, Result};
use crate::metadata::{Array, Metadata, Value};

/// Values of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum TokenType {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl TokenType {
    fn from_i32(v: i32) -> TokenType {
        use TokenType::*;
        [Normal, Unknown, Control, UserDefined, Unused, Byte].into_iter().find(|&t| t as i32 == v).unwrap_or(Unused)
    }
}

/// How text between special tokens becomes ids.
enum Scheme {
    /// Merges by rank inside the pieces that a pre-tokenizer cuts.
    Ranked { pre: &'static Pre, merges: Merges },
    /// Merges by score over the whole text.
    Scored { scores: Scored, add_space_prefix: bool },
}

pub struct Vocab {
    tokens: Vec<String>,
    types: Vec<TokenType>,
    ids: HashMap<String, u32>,
    scheme: Scheme,
    /// Tokens that are cut out of the text first, longest first.
    special: Vec<u32>,
    /// Space after these is swallowed (Phi-3).
    strips_right: HashSet<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    add_eos: bool,
}

/// A piece of the text, or a special token found in it.
enum Fragment<'a> {
    Text(&'a str),
    Token(u32),
}

impl Vocab {
    pub fn new(metadata: &Metadata) -> Result<Vocab> {
        let model = metadata.str(keys::MODEL).ok_or_else(|| missing(keys::MODEL))?;
        let ranked = match model {
            "gpt2" | "gemma4" => true,
            "llama" => false,
            other => {
                return Err(Error::unsupported(format!(
                    "tokenizer model {other:?} is not read: only gpt2 and llama are"
                )));
            }
        };
        let tokens = tokens(metadata)?;
        let ids = index(&tokens)?;
        let mut types = token_types(metadata, tokens.len())?;
        let pre = match metadata.str(keys::PRE) {
            _ if model == "gemma4" => "gemma4",
            _ if !ranked => "default", // it has none
            Some(name) if !name.is_empty() => name,
            _ => "default",
        };
        let row = pres::find(pre)
            .ok_or_else(|| Error::unsupported(format!("{} is {pre:?}, which llama.cpp does not know", keys::PRE)))?;
        let id = |key: &str, default: Option<u32>| {
            let in_range = |id: &u32| (*id as usize) < tokens.len();
            let given = metadata.u64(key).and_then(|v| u32::try_from(v).ok()).filter(in_range);
            given.or(default.filter(in_range))
        };
        let (bos, eos) = default_ends(model, pre);
        let (bos, eos) = (id(keys::BOS_ID, bos), id(keys::EOS_ID, eos));
        let scheme = match ranked {
            true => Scheme::Ranked { pre: row, merges: Merges::new(row, merges(metadata, pre)?, &ids)? },
            false => Scheme::Scored {
                scores: Scored::new(scores(metadata, tokens.len())?, &ids, id(keys::UNKNOWN_ID, Some(0))),
                add_space_prefix: flag(metadata, keys::ADD_SPACE_PREFIX).unwrap_or(true),
            },
        };
        control::override_types(&mut types, &ids, eos, metadata);
        let add_bos = flag(metadata, keys::ADD_BOS).unwrap_or(!ranked || row.add_bos) || ranked && !row.byte_level;
        let add_eos = flag(metadata, keys::ADD_EOS).unwrap_or(false);
        let special = special(&tokens, &types);
        let strips_right = strips_right(metadata, &tokens, &special);
        Ok(Vocab { tokens, types, ids, scheme, special, strips_right, bos, eos, add_bos, add_eos })
    }

    pub fn len(&self) -> usize {
        self.tokens.len()
    }
    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str)
    }
    pub fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    pub fn is_approximate(&self) -> bool {
        matches!(&self.scheme, Scheme::Ranked { pre, .. } if !pre.sources.is_empty())
    }

    /// As `llama_tokenize`: `add_special` obeys the file's BOS and EOS flags, `parse_special` finds control tokens in the text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        let mut out = Vec::with_capacity(text.len() / 3 + 2);
        let mut after_special = true;
        if add_special && self.add_bos {
            out.push(self.bos.ok_or_else(|| Error::input("the tokenizer adds a BOS token but names none"))?);
        }
        for fragment in self.partition(text, parse_special) {
            match fragment {
                Fragment::Token(id) => out.push(id),
                Fragment::Text(text) => self.encode_text(text, after_special, &mut out)?,
            }
            after_special = matches!(fragment, Fragment::Token(_));
        }
        if add_special && self.add_eos {
            out.push(self.eos.ok_or_else(|| Error::input("the tokenizer adds an EOS token but names none"))?);
        }
        Ok(out)
    }

    fn encode_text(&self, text: &str, after_special: bool, out: &mut Vec<u32>) -> Result<()> {
        match &self.scheme {
            Scheme::Ranked { merges, pre } if pre.byte_level => merges.encode(text, out),
            Scheme::Ranked { merges, .. } => merges.encode(&text.replace(' ', "▁"), out),
            Scheme::Scored { scores, add_space_prefix } => {
                let prefix = if *add_space_prefix && after_special { "▁" } else { "" };
                scores.encode(&format!("{prefix}{}", text.replace(' ', "▁")), out)
            }
        }
    }

    /// Cuts out special tokens, longest first wherever they stand.
    fn partition<'a>(&self, text: &'a str, parse_special: bool) -> Vec<Fragment<'a>> {
        let mut fragments = if text.is_empty() { vec![] } else { vec![Fragment::Text(text)] };
        let pairs: HashSet<&[u8]> = text.as_bytes().windows(2).collect();
        for &id in &self.special {
            let token = self.tokens[id as usize].as_str();
            if !parse_special && self.types[id as usize] != TokenType::UserDefined {
                continue;
            }
            let possible = token.as_bytes().windows(2).all(|p| pairs.contains(p));
            if possible && text.contains(token) {
                fragments = fragments.into_iter().flat_map(|f| self.cut(f, id, token)).collect();
            }
        }
        fragments
    }

    fn cut<'a>(&self, fragment: Fragment<'a>, id: u32, token: &str) -> Vec<Fragment<'a>> {
        let Fragment::Text(mut text) = fragment else { return vec![fragment] };
        let mut out = Vec::new();
        while let Some(at) = text.find(token) {
            if at > 0 {
                out.push(Fragment::Text(&text[..at]));
            }
            out.push(Fragment::Token(id));
            text = &text[at + token.len()..];
            if self.strips_right.contains(&id) {
                text = text.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']);
            }
        }
        if !text.is_empty() {
            out.push(Fragment::Text(text));
        }
        out
    }

    /// The bytes that a token stands for; control tokens as their own text.
    pub fn piece(&self, id: u32) -> Vec<u8> {
        let Some(token) = self.token(id) else { return Vec::new() };
        match (&self.scheme, self.types[id as usize]) {
            (_, TokenType::Control | TokenType::UserDefined | TokenType::Unknown) => token.as_bytes().to_vec(),
            (Scheme::Ranked { pre, .. }, _) if pre.byte_level => {
                bytes::decode(token).unwrap_or_else(|| token.as_bytes().to_vec())
            }
            _ => scored_piece(token),
        }
    }
}

/// What a token of a SentencePiece vocabulary stands for.
pub fn scored_piece(token: &str) -> Vec<u8> {
    match byte_token(token) {
        Some(byte) => vec![byte],
        None => token.replace('▁', " ").into_bytes(),
    }
}

/// `<0x0A>`
pub fn byte_token(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| u8::from_str_radix(hex, 16).ok())?
}

/// Ids of BOS and EOS where the file names none.
fn default_ends(model: &str, pre: &str) -> (Option<u32>, Option<u32>) {
    match (model, pre) {
        ("gemma4", _) => (None, None),
        ("llama", _) => (Some(1), Some(2)),
        (_, "glm4" | "glm5" | "chatglm-bpe") => (None, Some(11)),
        _ => (Some(11), Some(11)),
    }
}

/// Tokens that are looked for in the text, longest first.
fn special(tokens: &[String], types: &[TokenType]) -> Vec<u32> {
    use TokenType::{Control, Unknown, UserDefined};
    let mut special: Vec<(u32, &String)> = (0..).zip(tokens).collect();
    special.retain(|&(id, _)| matches!(types[id as usize], Control | UserDefined | Unknown));
    special.sort_by_key(|&(id, token)| (Reverse(token.len()), id));
    special.into_iter().map(|(id, _)| id).collect()
}

/// Special tokens that swallow the space behind them: Phi-3's.
fn strips_right(metadata: &Metadata, tokens: &[String], special: &[u32]) -> HashSet<u32> {
    let name = metadata.str("general.name").unwrap_or_default().to_ascii_lowercase();
    if !name.contains("phi-3") && !name.contains("phi3") {
        return HashSet::new();
    }
    let keeps = |id: u32| matches!(tokens[id as usize].as_str(), "<unk>" | "<s>" | "<|endoftext|>");
    special.iter().copied().filter(|&id| !keeps(id)).collect()
}

/// `left right`, best first. An empty list is fine; llama.cpp loads no file without the key, Kimi-K2 excepted.
fn merges<'a>(metadata: &'a Metadata, pre: &str) -> Result<&'a [String]> {
    match strings(metadata, keys::MERGES)? {
        Some(list) => Ok(list),
        None if pre == "kimi-k2" => Ok(&[]),
        None => Err(missing(keys::MERGES).help("llama.cpp does not load it either: convert the model again")),
    }
}

fn missing(key: &str) -> Error {
    Error::input(format!("the file has no {key}"))
}

fn flag(metadata: &Metadata, key: &str) -> Option<bool> {
    metadata.get(key)?.as_bool()
}

pub fn strings<'a>(metadata: &'a Metadata, key: &str) -> Result<Option<&'a [String]>> {
    match metadata.get(key) {
        None => Ok(None),
        Some(Value::Array(Array::Str(list))) => Ok(Some(list)),
        Some(other) => Err(Error::input(format!("{key} is {other}, not a list of strings"))),
    }
}

pub fn tokens(metadata: &Metadata) -> Result<Vec<String>> {
    let list = strings(metadata, keys::TOKENS)?.filter(|l| !l.is_empty()).ok_or_else(|| missing(keys::TOKENS))?;
    if i32::try_from(list.len()).is_err() {
        return Err(Error::limits(format!("{} tokens are more than ids can count", list.len())));
    }
    let named = |(id, token): (usize, &String)| if token.is_empty() { format!("[EMPTY_{id}]") } else { token.clone() };
    Ok(list.iter().enumerate().map(named).collect())
}

/// Ids by text. llama.cpp stops at a token that comes twice.
pub fn index(tokens: &[String]) -> Result<HashMap<String, u32>> {
    let mut ids = HashMap::with_capacity(tokens.len());
    for (id, token) in tokens.iter().enumerate() {
        if let Some(first) = ids.insert(token.clone(), id as u32) {
            return Err(Error::input(format!("token {token:?} comes twice: ids {first} and {id}"))
                .help("llama.cpp refuses such a vocabulary; rename one of them in the tokenizer's files"));
        }
    }
    Ok(ids)
}

fn token_types(metadata: &Metadata, n: usize) -> Result<Vec<TokenType>> {
    match metadata.get(keys::TOKEN_TYPE) {
        None => Ok(vec![TokenType::Normal; n]),
        Some(Value::Array(Array::I32(list))) if list.len() >= n => {
            Ok(list[..n].iter().map(|&t| TokenType::from_i32(t)).collect())
        }
        Some(other) => Err(Error::input(format!("{} is {other}, not {n} values of type i32", keys::TOKEN_TYPE))),
    }
}

fn scores(metadata: &Metadata, n: usize) -> Result<Vec<f32>> {
    match metadata.get(keys::SCORES) {
        None => Ok(vec![0.0; n]),
        Some(Value::Array(Array::F32(list))) if list.len() >= n => Ok(list[..n].to_vec()),
        Some(Value::Array(Array::I32(list))) if list.len() >= n => Ok(list[..n].iter().map(|&s| s as f32).collect()),
        Some(other) => Err(Error::input(format!("{} is {other}, not {n} numbers", keys::SCORES))),
    }
}

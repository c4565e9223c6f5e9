//! Tokenizers: a Hugging Face folder's as GGUF metadata, and back from metadata to ids, as llama.cpp does both.
//! Sources: llama.cpp `conversion/`, `gguf-py/gguf/vocab.py`, `src/llama-vocab.cpp`.

mod bytes;
mod clock;
mod control;
mod folder;
mod hugging_face;
mod merge;
mod parity;
mod pre;
mod pres;
mod ranked;
mod role;
mod scored;
mod sentencepiece;
mod sha256;
mod special;
mod template;
mod vocab;

use std::collections::HashMap;
use std::path::Path;

use serde_json::{Value as Json, json};

use crate::error::{At, Error, Result};
use crate::metadata::Metadata;

use folder::Folder;
use hugging_face::HuggingFace;
pub use parity::{Mismatch, awkward, parity};
pub use role::{end_tokens, leading_bos, special_id};
use special::Special;
pub use template::{check_template, render_template, templates};
use vocab::Vocab;

/// GGUF's names.
mod keys {
    pub const MODEL: &str = "tokenizer.ggml.model";
    pub const PRE: &str = "tokenizer.ggml.pre";
    pub const TOKENS: &str = "tokenizer.ggml.tokens";
    pub const SCORES: &str = "tokenizer.ggml.scores";
    pub const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
    pub const MERGES: &str = "tokenizer.ggml.merges";
    pub const BOS_ID: &str = "tokenizer.ggml.bos_token_id";
    pub const EOS_ID: &str = "tokenizer.ggml.eos_token_id";
    pub const UNKNOWN_ID: &str = "tokenizer.ggml.unknown_token_id";
    pub const EOT_ID: &str = "tokenizer.ggml.eot_token_id";
    pub const EOM_ID: &str = "tokenizer.ggml.eom_token_id";
    pub const ADD_BOS: &str = "tokenizer.ggml.add_bos_token";
    pub const ADD_EOS: &str = "tokenizer.ggml.add_eos_token";
    pub const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
    pub const CHAT_TEMPLATE: &str = "tokenizer.chat_template";
    pub const CHAT_TEMPLATES: &str = "tokenizer.chat_templates";
}

#[derive(Clone, Debug, Default)]
pub struct TokenizerOptions {
    /// The value of `tokenizer.ggml.pre`, when the files cannot tell.
    pub pre: Option<String>,
    /// Leave out the name of the pre-tokenizer, which takes long to find, and which llama.cpp may lack.
    pub nameless: bool,
    /// What llama.cpp's converter writes even where that tokenizes worse than the source.
    pub exact_llama: bool,
}

/// Architectures whose converter treats the folder as Llama's does.
const LLAMA_LIKE: &[&str] =
    &["llama", "arcee", "granite", "granitemoe", "smollm3", "apertus", "mistral3", "llama-embed", "nanbeige", "afmoe"];
/// Architectures whose text must not get a space in front.
const NO_SPACE_PREFIX: &[&str] = &["gemma", "gemma2", "gemma3", "gemma3n"];

/// The `tokenizer.*` keys of a GGUF file for this folder, in the order and the types of llama.cpp's converter.
/// `arch`: GGUF's name; `vocab_size`: rows of the embedding, which the vocabulary is padded to.
pub fn from_folder(dir: &Path, arch: &str, vocab_size: usize, options: &TokenizerOptions) -> Result<Metadata> {
    let folder = Folder::open(dir)?;
    if vocab_size == 0 || i32::try_from(vocab_size).is_err() {
        return Err(Error::input(format!("a vocabulary of {vocab_size} tokens")).at("config.json"));
    }
    write(&folder, arch, vocab_size, options).at(|| dir.display().to_string())
}

fn write(folder: &Folder, arch: &str, vocab_size: usize, options: &TokenizerOptions) -> Result<Metadata> {
    let mut out = Metadata::default();
    if LLAMA_LIKE.contains(&arch)
        && let Some(add) = folder.config("add_prefix_space").as_bool()
    {
        out.set(keys::ADD_SPACE_PREFIX, add);
    }
    let model = folder.bytes("tokenizer.model")?.filter(|_| !byte_level_phi(folder, arch));
    let scored = match (&model, &folder.tokenizer) {
        (Some(bytes), _) => Some(scored::from_model(folder, bytes, vocab_size, arch == "phi3")?),
        // The converter knows such files for Llama alone.
        (None, Some(json)) if scored::is_scored(json) && (LLAMA_LIKE.contains(&arch) || !options.exact_llama) => {
            Some(scored::from_json(folder, json, vocab_size, options.exact_llama)?)
        }
        (None, Some(_)) => None,
        (None, None) => return Err(folder.missing("tokenizer.json or tokenizer.model")),
    };
    let is_scored = scored.is_some();
    match scored {
        Some(tokens) => tokens.write(&mut out)?,
        None => ranked::write(folder, vocab_size, options, &mut out)?,
    }
    let mut special = Special::read(folder, special::ROLES, vocab_size)?;
    family_ids(folder, arch, &mut special)?;
    special.write(&mut out)?;
    family_extras(folder, arch, vocab_size, is_scored, &mut out)?;
    Ok(out)
}

/// Phi-4 calls itself Phi-3 but has GPT-4's tokenizer.
fn byte_level_phi(folder: &Folder, arch: &str) -> bool {
    arch == "phi3" && folder.config("tokenizer_class") == "GPT2Tokenizer"
}

/// Special tokens that a family knows by their text. Source: llama.cpp `conversion/{glm,base}.py`.
fn family_ids(folder: &Folder, arch: &str, special: &mut Special) -> Result<()> {
    let roles: &[(&str, &str)] = match arch {
        "chatglm" => {
            &[("eos", "<|endoftext|>"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("bos", "<|endoftext|>")]
        }
        "glm4" | "glm4moe" | "glm-dsa" => {
            &[("bos", "[gMASK]"), ("eot", "<|user|>"), ("unk", "<|endoftext|>"), ("eom", "<|observation|>")]
        }
        _ => return Ok(()),
    };
    let added: Vec<&Json> = folder::list(folder.tokenizer.as_ref().map(|t| &t["added_tokens"])).collect();
    for (role, text) in roles {
        special.set(role, added.iter().find(|t| t["content"] == *text).map(|t| &t["id"]))?;
    }
    Ok(())
}

/// What some families add at the end. Sources: llama.cpp `conversion/{llama,gemma}.py`.
fn family_extras(folder: &Folder, arch: &str, vocab_size: usize, scored: bool, out: &mut Metadata) -> Result<()> {
    let eot = match (arch, vocab_size) {
        ("llama", 32016) => Some(32010), // CodeLlama
        ("gemma", _) => Some(107),
        _ => None,
    };
    if let Some(id) = eot {
        let mut special = Special::read(folder, &["prefix", "suffix", "middle", "eot"], vocab_size)?;
        special.set("eot", Some(&json!(id)))?;
        if arch == "gemma" {
            special.forget_template();
        }
        special.write(out)?;
    }
    if LLAMA_LIKE.contains(&arch) && vocab_size == 49152 {
        out.set(keys::ADD_BOS, false); // Granite's small models
    }
    if NO_SPACE_PREFIX.contains(&arch) && scored {
        out.set(keys::ADD_SPACE_PREFIX, false);
    }
    Ok(())
}

/// Texts that are control tokens even if the files forget to say so. Source: llama.cpp `conversion/base.py`.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

fn model_vocab(tokenizer: &Json) -> Result<HashMap<String, u32>> {
    let vocab = tokenizer["model"]["vocab"].as_object();
    let vocab = vocab.ok_or_else(|| Error::input("model.vocab is missing").at("tokenizer.json"))?;
    let entry = |(text, id): (&String, &Json)| {
        let id = folder::as_id(id);
        let id = id.ok_or_else(|| Error::input(format!("token {text:?} has no id")).at("tokenizer.json"))?;
        Ok((text.clone(), id))
    };
    vocab.iter().map(entry).collect()
}

fn in_range(id: u32, text: &str, vocab_size: usize) -> Result<()> {
    if (id as usize) < vocab_size {
        return Ok(());
    }
    Err(Error::input(format!("token {text:?} has id {id}, the model has {vocab_size} embeddings"))
        .help("remove the token from the tokenizer's files, or give the model a row for it"))
}

/// Text to ids and back: a source model's own tokenizer, or the one in an artifact.
pub struct Tokenizer(Inner);

enum Inner {
    HuggingFace(Box<HuggingFace>),
    Gguf(Box<Vocab>),
}

/// The tokenizer that llama.cpp would run with this metadata.
pub fn rebuild(metadata: &Metadata) -> Result<Tokenizer> {
    Ok(Tokenizer(Inner::Gguf(Box::new(Vocab::new(metadata)?))))
}

/// The tokenizer that the source model was trained with: `tokenizer.json`, else `tokenizer.model`.
pub fn load_folder(dir: &Path) -> Result<Tokenizer> {
    let folder = Folder::open(dir)?;
    if folder.tokenizer.is_some() {
        let tokenizer = Box::new(folder.tokenizer().at(|| dir.display().to_string())?);
        return Ok(Tokenizer(Inner::HuggingFace(tokenizer)));
    }
    let bytes = folder.bytes("tokenizer.model")?.ok_or_else(|| folder.missing("tokenizer.json or tokenizer.model"))?;
    let pieces = sentencepiece::parse(&bytes).at(|| "tokenizer.model").at(|| dir.display().to_string())?.pieces.len();
    let given = folder.model.as_ref().and_then(|m| m["vocab_size"].as_u64()).and_then(|n| usize::try_from(n).ok());
    rebuild(&from_folder(dir, "llama", given.unwrap_or(pieces), &TokenizerOptions::default())?)
}

impl Tokenizer {
    /// As `llama_tokenize`: `add_special` adds BOS and EOS where the model wants them; `parse_special` finds special tokens
    /// in the text.
    pub fn encode(&self, text: &str, add_special: bool, parse_special: bool) -> Result<Vec<u32>> {
        match &self.0 {
            Inner::HuggingFace(tokenizer) => tokenizer.encode(text, add_special, parse_special),
            Inner::Gguf(vocab) => vocab.encode(text, add_special, parse_special),
        }
    }

    /// Text of the ids; bytes that are no UTF-8 become U+FFFD, ids outside the vocabulary nothing.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        match &self.0 {
            Inner::HuggingFace(tokenizer) => tokenizer.decode(ids),
            Inner::Gguf(vocab) => {
                let bytes: Vec<u8> = ids.iter().flat_map(|&id| vocab.piece(id)).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
        }
    }

    /// The bytes that a token stands for, which need not be whole characters; special tokens as their own text. Nothing for
    /// an id outside the vocabulary.
    pub fn piece(&self, id: u32) -> Vec<u8> {
        match &self.0 {
            Inner::HuggingFace(tokenizer) => tokenizer.piece(id),
            Inner::Gguf(vocab) => vocab.piece(id),
        }
    }

    /// The id of a token's exact text: `<|im_end|>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.0 {
            Inner::HuggingFace(tokenizer) => tokenizer.id(token),
            Inner::Gguf(vocab) => vocab.id(token),
        }
    }

    pub fn token(&self, id: u32) -> Option<String> {
        match &self.0 {
            Inner::HuggingFace(tokenizer) => tokenizer.token(id),
            Inner::Gguf(vocab) => vocab.token(id).map(str::to_owned),
        }
    }

    /// Whether llama.cpp only comes close to the source on text beyond ASCII.
    fn is_approximate(&self) -> bool {
        matches!(&self.0, Inner::Gguf(vocab) if vocab.is_approximate())
    }

    /// Tokens, padding included.
    pub fn vocab_size(&self) -> usize {
        match &self.0 {
            Inner::HuggingFace(tokenizer) => tokenizer.len(),
            Inner::Gguf(vocab) => vocab.len(),
        }
    }
}

//! The tokenizer files of a Hugging Face folder, read and checked once.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;
use tokenizers::AddedToken;

use super::hugging_face::HuggingFace;
use crate::error::{At, Error, Result};

/// No tokenizer comes near; a larger file is a mistake.
const MAX_FILE: u64 = 512 << 20;

pub struct Folder {
    dir: PathBuf,
    /// `tokenizer.json`
    pub tokenizer: Option<Json>,
    /// `tokenizer_config.json`
    pub config: Option<Json>,
    /// `config.json` of the model
    pub model: Option<Json>,
}

impl Folder {
    pub fn open(dir: &Path) -> Result<Folder> {
        let json = |name| read_json(&dir.join(name));
        Ok(Folder {
            dir: dir.to_owned(),
            tokenizer: json("tokenizer.json")?,
            config: json("tokenizer_config.json")?,
            model: json("config.json")?,
        })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
    pub fn json(&self, name: &str) -> Result<Option<Json>> {
        read_json(&self.path(name))
    }
    pub fn text(&self, name: &str) -> Result<Option<String>> {
        read(&self.path(name))?.map(|bytes| utf8(bytes).at(|| name)).transpose()
    }
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        read(&self.path(name))
    }
    pub fn config(&self, key: &str) -> &Json {
        self.config.as_ref().map_or(&Json::Null, |c| &c[key])
    }

    /// `tokenizer.json` with the tokens that `tokenizer_config.json` adds.
    pub fn tokenizer(&self) -> Result<HuggingFace> {
        let bytes = self.bytes("tokenizer.json")?.ok_or_else(|| self.missing("tokenizer.json"))?;
        let mut tokenizer = HuggingFace::parse(&bytes)?;
        self.add_config_tokens(&mut tokenizer).at(|| "tokenizer_config.json")?;
        Ok(tokenizer)
    }

    /// `tokenizer_config.json` may change added tokens, and name special ones that nothing else mentions.
    fn add_config_tokens(&self, tokenizer: &mut HuggingFace) -> Result<()> {
        let mut listed = Vec::new();
        for (id, token) in self.config("added_tokens_decoder").as_object().into_iter().flatten() {
            let id: u32 = id.parse().map_err(|_| Error::input(format!("{id:?} is no token id")))?;
            let content = token["content"].as_str().ok_or_else(|| Error::input(format!("token {id} has no text")))?;
            let flag = |name: &str| token[name].as_bool();
            let special = flag("special").unwrap_or(false);
            let added = AddedToken::from(content, special)
                .normalized(flag("normalized").unwrap_or(!special))
                .single_word(flag("single_word").unwrap_or(false))
                .lstrip(flag("lstrip").unwrap_or(false))
                .rstrip(flag("rstrip").unwrap_or(false));
            listed.push((id, added));
        }
        listed.sort_by_key(|(id, _)| *id);
        tokenizer.add(listed.into_iter().map(|(_, token)| token).collect())?;
        let names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"].map(|role| format!("{role}_token"));
        let named = names.iter().map(|n| self.config(n)).chain(list(Some(self.config("additional_special_tokens"))));
        let named: Vec<&str> = named.filter_map(token_text).collect();
        let known: HashSet<String> = tokenizer.added().into_values().map(|token| token.content).collect();
        let new = named.into_iter().filter(|content| !known.contains(*content));
        tokenizer.add(new.map(|content| AddedToken::from(content, true)).collect())
    }

    pub fn missing(&self, name: &str) -> Error {
        Error::input(format!("there is no {name}"))
            .at(self.dir.display().to_string())
            .help("copy the tokenizer's files from the model's repository")
    }
}

/// A token given as text or as an object with `content`.
pub fn token_text(token: &Json) -> Option<&str> {
    token.as_str().or_else(|| token["content"].as_str()).filter(|t| !t.is_empty())
}

pub fn list(json: Option<&Json>) -> impl Iterator<Item = &Json> {
    json.and_then(Json::as_array).into_iter().flatten()
}

pub fn as_id(json: &Json) -> Option<u32> {
    json.as_u64().and_then(|id| u32::try_from(id).ok())
}

fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let place = || path.display().to_string();
    match std::fs::metadata(path) {
        Ok(m) if !m.is_file() => Ok(None),
        Ok(m) if m.len() > MAX_FILE => Err(Error::limits(format!("{} bytes are too many for it", m.len())).at(place())),
        Ok(_) => std::fs::read(path).map(Some).at(place),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::from(e).at(place())),
    }
}

fn utf8(bytes: Vec<u8>) -> Result<String> {
    String::from_utf8(bytes).map_err(|e| Error::input(format!("the text is not UTF-8: {e}")))
}

fn read_json(path: &Path) -> Result<Option<Json>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let json = serde_json::from_slice(&bytes).map_err(|e| Error::input(format!("the JSON is damaged: {e}")));
    json.map(Some).at(|| path.display().to_string())
}

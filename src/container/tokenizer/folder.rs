//! The tokenizer files of a Hugging Face folder, read and checked once.

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

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

/// A token that is cut out of the text before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    pub content: String,
    pub special: bool,
    pub normalized: bool,
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

    /// `tokenizer.json` as the `tokenizers` crate runs it, with the tokens that `tokenizer_config.json` adds.
    pub fn tokenizer(&self) -> Result<tokenizers::Tokenizer> {
        let bytes = self.bytes("tokenizer.json")?.ok_or_else(|| self.missing("tokenizer.json"))?;
        // The crate may panic on files that no tool writes.
        let parsed = catch_unwind(AssertUnwindSafe(|| tokenizers::Tokenizer::from_bytes(&bytes)));
        let mut tokenizer = match parsed {
            Ok(parsed) => parsed.map_err(|e| Error::input(e.to_string())).at(|| "tokenizer.json")?,
            Err(_) => return Err(Error::input("the file breaks the tokenizers library").at("tokenizer.json")),
        };
        let known = tokenizer.get_vocab(true);
        for (_, added) in self.added_tokens(&known)? {
            let token = tokenizers::AddedToken::from(added.content.clone(), added.special).normalized(added.normalized);
            if !tokenizer.get_added_vocabulary().get_vocab().contains_key(&added.content) {
                tokenizer.add_tokens([token]).map_err(|e| Error::input(e.to_string()).at("tokenizer_config.json"))?;
            }
        }
        Ok(tokenizer)
    }

    pub fn missing(&self, name: &str) -> Error {
        Error::input(format!("there is no {name}"))
            .at(self.dir.display().to_string())
            .help("copy the tokenizer's files from the model's repository")
    }

    /// Added tokens by id: `tokenizer.json`, then what `tokenizer_config.json` changes and names. `vocab`: the model's own ids.
    pub fn added_tokens(&self, vocab: &HashMap<String, u32>) -> Result<BTreeMap<u32, Added>> {
        let mut added = BTreeMap::new();
        let mut insert = |id: Option<u32>, token: &Json, place: &str| -> Result<()> {
            let content = token["content"].as_str().filter(|c| !c.is_empty());
            let (Some(content), Some(id)) = (content, id) else {
                return Err(Error::input(format!("an added token has no text or no id: {token}")).at(place));
            };
            let id = vocab.get(content).copied().unwrap_or(id);
            let special = token["special"].as_bool().unwrap_or(false);
            let normalized = token["normalized"].as_bool().unwrap_or(!special);
            added.insert(id, Added { content: content.to_owned(), special, normalized });
            Ok(())
        };
        for token in list(self.tokenizer.as_ref().map(|t| &t["added_tokens"])) {
            insert(as_id(&token["id"]), token, "tokenizer.json")?;
        }
        for (id, token) in self.config("added_tokens_decoder").as_object().into_iter().flatten() {
            insert(id.parse().ok(), token, "tokenizer_config.json")?;
        }
        let names = ["bos", "eos", "unk", "sep", "pad", "cls", "mask"].map(|role| format!("{role}_token"));
        let named = names.iter().map(|n| self.config(n)).chain(list(Some(self.config("additional_special_tokens"))));
        for content in named.filter_map(token_text) {
            if added.values().any(|a| a.content == content) {
                continue;
            }
            // A special token that nothing else mentions is appended to the vocabulary.
            let next = vocab.values().chain(added.keys()).max().map_or(0, |&id| id.saturating_add(1));
            let id = vocab.get(content).copied().unwrap_or(next);
            added.insert(id, Added { content: content.to_owned(), special: true, normalized: false });
        }
        Ok(added)
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

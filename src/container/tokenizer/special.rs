//! Special token ids, the flags that add them, merges and chat templates: what every kind of vocabulary shares.
//! Source: llama.cpp `gguf-py/gguf/vocab.py` (SpecialVocab), `gguf_writer.py`.

use serde_json::{Value as Json, json};

use super::folder::{Folder, list, token_text};
use super::keys;
use crate::error::{Error, Result};
use crate::metadata::Metadata;

/// Roles with a key for their id. Others are read but cannot be written.
const ID_KEYS: &[(&str, &str)] = &[
    ("bos", keys::BOS_ID),
    ("eos", keys::EOS_ID),
    ("unk", keys::UNKNOWN_ID),
    ("sep", "tokenizer.ggml.seperator_token_id"),
    ("pad", "tokenizer.ggml.padding_token_id"),
    ("mask", "tokenizer.ggml.mask_token_id"),
    ("eot", keys::EOT_ID),
    ("eom", keys::EOM_ID),
];
const ADD_KEYS: &[(&str, &str)] =
    &[("bos", keys::ADD_BOS), ("eos", keys::ADD_EOS), ("sep", "tokenizer.ggml.add_sep_token")];
pub const ROLES: &[&str] = &["bos", "eos", "unk", "sep", "pad", "cls", "mask"];

pub struct Special {
    roles: Vec<String>,
    vocab_size: usize,
    ids: Vec<(String, u32)>,
    add: Vec<(String, bool)>,
    template: Option<Json>,
    lowercase: Option<bool>,
    strip_accents: Option<bool>,
}

impl Special {
    pub fn read(folder: &Folder, roles: &[&str], vocab_size: usize) -> Result<Special> {
        let mut special = Special {
            roles: roles.iter().map(|r| r.to_string()).collect(),
            vocab_size,
            ids: Vec::new(),
            add: Vec::new(),
            template: None,
            lowercase: None,
            strip_accents: None,
        };
        let mut config = folder.config.clone();
        if let Some(tokenizer) = &folder.tokenizer {
            special.read_normalizer(&tokenizer["normalizer"]);
            special.read_post_processor(tokenizer, config.as_mut())?;
        }
        special.template = template(folder)?;
        if let Some(config) = &config {
            special.read_config(folder, config)?;
        }
        special.read_model(folder)?;
        Ok(special)
    }

    /// The first id of a role wins; ids outside the vocabulary do not count.
    pub fn set(&mut self, role: &str, id: Option<&Json>) -> Result<()> {
        let Some(id) = id.and_then(Json::as_i64) else { return Ok(()) };
        if id < 0 {
            return Err(Error::input(format!("the id of the {role} token is {id}")));
        }
        let known = self.ids.iter().any(|(r, _)| r == role);
        if let Some(id) = u32::try_from(id).ok().filter(|&id| !known && (id as usize) < self.vocab_size) {
            self.ids.push((role.to_owned(), id));
        }
        Ok(())
    }

    pub fn forget_template(&mut self) {
        self.template = None;
    }

    pub fn write(&self, out: &mut Metadata) -> Result<()> {
        for (role, id) in &self.ids {
            if let Some((_, key)) = ID_KEYS.iter().find(|(r, _)| r == role) {
                out.set(*key, *id);
            }
        }
        for (role, add) in &self.add {
            if let Some((_, key)) = ADD_KEYS.iter().find(|(r, _)| r == role) {
                out.set(*key, *add);
            }
        }
        if let Some(template) = &self.template {
            write_template(template, out)?;
        }
        if let Some(lowercase) = self.lowercase {
            out.set("tokenizer.ggml.normalizer.lowercase", lowercase);
        }
        if let Some(strip) = self.strip_accents {
            out.set("tokenizer.ggml.normalizer.strip_accents", strip);
        }
        Ok(())
    }

    fn set_add(&mut self, role: &str, value: bool) {
        match self.add.iter_mut().find(|(r, _)| r == role) {
            Some(slot) => slot.1 = value,
            None => self.add.push((role.to_owned(), value)),
        }
    }
    fn default_add(&mut self, role: &str, value: bool) {
        if !self.add.iter().any(|(r, _)| r == role) {
            self.set_add(role, value);
        }
    }

    fn read_normalizer(&mut self, normalizer: &Json) {
        match normalizer["type"].as_str() {
            Some("Lowercase") => self.lowercase = Some(true),
            Some("StripAccents") => self.strip_accents = Some(true),
            Some("BertNormalizer") => {
                self.lowercase = normalizer["lowercase"].as_bool().or(self.lowercase);
                self.strip_accents = normalizer["strip_accents"].as_bool().or(self.strip_accents);
            }
            Some("Sequence") => list(Some(&normalizer["normalizers"])).for_each(|n| self.read_normalizer(n)),
            _ => {}
        }
    }

    fn read_post_processor(&mut self, tokenizer: &Json, config: Option<&mut Json>) -> Result<()> {
        let has_config = config.is_some();
        let mut none = json!({});
        let config = config.filter(|c| c.is_object()).unwrap_or(&mut none);
        for (role, stand_in) in [("bos_token", "cls_token"), ("eos_token", "sep_token")] {
            if !truthy(&config[role]) && truthy(&config[stand_in]) && has_config {
                config[role] = config[stand_in].clone();
            }
        }
        let processor = &tokenizer["post_processor"];
        let alone = [processor.clone()];
        let processors = processor["processors"].as_array().map_or(alone.as_slice(), Vec::as_slice);
        for processor in processors {
            match processor["type"].as_str() {
                Some("ByteLevel") => {
                    self.default_add("bos", false);
                    self.default_add("eos", false);
                }
                Some("RobertaProcessing") => {
                    ["bos", "eos", "sep"].into_iter().for_each(|r| self.set_add(r, true));
                    for (role, field) in [("cls_token", "cls"), ("sep_token", "sep")] {
                        if !truthy(&config[role]) && has_config {
                            config[role] = processor[field][0].clone();
                        }
                    }
                }
                Some("TemplateProcessing") => self.read_sequence_template(processor, config, has_config),
                _ => {}
            }
        }
        Ok(())
    }

    /// Which special tokens surround a text, from the template of `TemplateProcessing`.
    fn read_sequence_template(&mut self, processor: &Json, config: &mut Json, has_config: bool) {
        let single: Vec<&Json> = list(Some(&processor["single"])).collect();
        let (mut first, mut last) = (None, None);
        if single.len() > 1 {
            first = special(single.first());
            last = special(single.last());
        }
        if let Some(first) = &first {
            if !has_config {
                config["bos_token"] = first.clone();
            } else if *first != config["bos_token"] && *first != config["cls_token"] {
                for role in ["bos_token", "cls_token"] {
                    if !truthy(&config[role]) {
                        config[role] = first.clone();
                    }
                }
            }
            self.set_add("bos", *first == config["bos_token"] || *first == config["cls_token"]);
        }
        if let Some(last) = &last {
            if has_config && *last != config["eos_token"] {
                // The old end token keeps a role of its own.
                if let Some(role) = ["eot", "eom"].into_iter().find(|r| !self.roles.iter().any(|known| known == r)) {
                    self.roles.push(role.to_owned());
                    config[format!("{role}_token")] = config["eos_token"].clone();
                }
            }
            config["eos_token"] = last.clone();
            self.set_add("eos", true);
        }
        self.read_separator(processor, config, has_config, first, last);
    }

    /// Whether the template puts a special token between the two texts of a pair, which `first` and `last` surround.
    fn read_separator(
        &mut self,
        processor: &Json,
        config: &mut Json,
        has_config: bool,
        first: Option<Json>,
        last: Option<Json>,
    ) {
        let pair: Vec<&Json> = list(Some(&processor["pair"])).collect();
        let starts = first.is_some() && special(pair.first()) == first;
        let ends = last.is_some() && special(pair.last()) == last;
        let inner = pair.get(usize::from(starts)..pair.len().saturating_sub(usize::from(ends))).unwrap_or_default();
        let sequence = |piece: Option<&&Json>, name: &str| piece.is_some_and(|p| p["Sequence"]["id"] == name);
        if inner.len() < 3 || !sequence(inner.first(), "A") || !sequence(inner.last(), "B") {
            return;
        }
        let between = &inner[1..inner.len() - 1];
        let separates = |piece: Option<&&Json>| {
            special(piece).is_some_and(|id| id == config["sep_token"] || id == config["eos_token"])
        };
        let add_sep = separates(between.first()) && last.is_none() || between.len() == 2 && separates(between.get(1));
        self.set_add("sep", add_sep);
        if add_sep && !truthy(&config["sep_token"]) && has_config {
            config["sep_token"] = config["eos_token"].clone();
        }
    }

    fn read_config(&mut self, folder: &Folder, config: &Json) -> Result<()> {
        for role in self.roles.clone() {
            if let Some(add) = config[format!("add_{role}_token")].as_bool() {
                self.default_add(&role, add);
            }
            let Some(text) = token_text(&config[format!("{role}_token")]) else { continue };
            let mut added = list(folder.tokenizer.as_ref().map(|t| &t["added_tokens"]));
            let found = added.find(|t| t["content"] == text);
            self.set(&role, found.map(|t| &t["id"]))?;
        }
        Ok(())
    }

    fn read_model(&mut self, folder: &Folder) -> Result<()> {
        let Some(model) = &folder.model else { return Ok(()) };
        for role in self.roles.clone() {
            let key = format!("{role}_token_id");
            let id = model.get(&key).filter(|v| !v.is_null()).or_else(|| model["text_config"].get(&key));
            self.set(&role, id)?;
        }
        Ok(())
    }
}

/// The text of a special token in a template.
fn special(piece: Option<&&Json>) -> Option<Json> {
    piece.map(|p| p["SpecialToken"]["id"].clone()).filter(truthy)
}

/// As Python sees it.
fn truthy(json: &Json) -> bool {
    match json {
        Json::Null => false,
        Json::String(s) => !s.is_empty(),
        Json::Object(o) => !o.is_empty(),
        _ => true,
    }
}

/// Pairs as `left right`; a space inside a symbol is written U+0120, as its byte is.
pub fn merges(folder: &Folder) -> Result<Vec<String>> {
    let listed = folder.tokenizer.as_ref().map(|t| &t["model"]["merges"]);
    let merges = list(listed).map(|merge| {
        let parts: Option<Vec<&str>> = merge.as_array().map(|pair| pair.iter().filter_map(Json::as_str).collect());
        match (merge.as_str(), parts.as_deref()) {
            (Some(text), _) => Ok(text.to_owned()),
            (_, Some([left, right])) => Ok(format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ"))),
            _ => Err(Error::input(format!("{merge} is no merge")).at("tokenizer.json")),
        }
    });
    let merges: Vec<String> = merges.collect::<Result<_>>()?;
    if !merges.is_empty() {
        return Ok(merges);
    }
    let text = folder.text("merges.txt")?.unwrap_or_default();
    let lines = text.lines().enumerate().filter(|(i, line)| !(*i == 0 && line.trim().starts_with('#'))).map(|(_, l)| l);
    let pairs = lines.map(|line| line.split_whitespace().collect::<Vec<_>>()).filter(|parts| parts.len() == 2);
    Ok(pairs.map(|parts| parts.join(" ")).collect())
}

/// `tokenizer_config.json`, else `chat_template.jinja` with its companions, else `chat_template.json`.
fn template(folder: &Folder) -> Result<Option<Json>> {
    let given = folder.config("chat_template");
    if given.is_string() || given.is_array() {
        return Ok(Some(given.clone()));
    }
    let Some(default) = folder.text("chat_template.jinja")? else {
        let file = folder.json("chat_template.json")?;
        return Ok(file.map(|f| f["chat_template"].clone()).filter(|t| t.is_string() || t.is_array()));
    };
    let mut names: Vec<String> = std::fs::read_dir(folder.path("additional_chat_templates"))
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.ends_with(".jinja"))
        .collect();
    if names.is_empty() {
        return Ok(Some(default.into()));
    }
    names.sort();
    let mut all = vec![json!({"name": "default", "template": default})];
    for name in names {
        let text = folder.text(&format!("additional_chat_templates/{name}"))?;
        all.push(json!({"name": name.trim_end_matches(".jinja"), "template": text}));
    }
    Ok(Some(all.into()))
}

fn write_template(template: &Json, out: &mut Metadata) -> Result<()> {
    if let Some(text) = template.as_str() {
        out.set(keys::CHAT_TEMPLATE, text);
        return Ok(());
    }
    let mut default = None;
    let mut names: Vec<String> = Vec::new();
    for choice in list(Some(template)) {
        let clean = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = choice["name"].as_str().unwrap_or_default().chars().map(clean).collect();
        let Some(text) = choice["template"].as_str().filter(|_| !name.is_empty()) else { continue };
        if name == "default" {
            default = Some(text);
            continue;
        }
        out.set(format!("{}.{name}", keys::CHAT_TEMPLATE), text);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if !names.is_empty() {
        out.set(keys::CHAT_TEMPLATES, names);
    }
    if let Some(text) = default {
        out.set(keys::CHAT_TEMPLATE, text);
    }
    Ok(())
}

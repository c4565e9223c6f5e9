//! `general.*`: name, origin, licence and sampling advice of a model, derived from its folder as llama.cpp's converter
//! does. Source: `gguf-py/gguf/metadata.py`, `gguf-py/gguf/utility.py` (size_label).

mod card;
mod id;

use serde_json::Value as Json;

use crate::metadata::{Metadata, Value};
pub use card::Fact;
use id::ModelId;

/// What a folder holds besides weights and tokenizer.
#[derive(Clone, Copy)]
pub struct Folder<'a> {
    /// Its own name, or the repository's: `Qwen3-0.6B`.
    pub name: &'a str,
    pub config: &'a Json,
    /// generation_config.json
    pub generation: Option<&'a Json>,
    /// README.md
    pub readme: Option<&'a str>,
    pub size: Size,
}

/// Parameters of a model, experts counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    pub total: u64,
    shared: u64,
    /// One expert of every layer.
    expert: u64,
    experts: u64,
    stacks: u64,
}

impl Size {
    /// Counts canonical tensors by name and shape, outermost dimension first.
    pub fn of<'a>(tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>) -> Size {
        let mut size = Size::default();
        for (name, shape) in tensors {
            let n = shape.iter().fold(1u64, |n, d| n.saturating_mul(*d as u64));
            size.total = size.total.saturating_add(n);
            match shape {
                [experts, _, _, ..] if *experts > 0 && name.contains("_exps.") => {
                    size.expert = size.expert.saturating_add(n / *experts as u64);
                    size.experts = size.experts.saturating_add(*experts as u64);
                    size.stacks += 1;
                }
                _ => size.shared = size.shared.saturating_add(n),
            }
        }
        size
    }

    /// `135M`, `8.0B`; `8x7.1B` with experts.
    pub fn label(&self) -> String {
        match self.experts.checked_div(self.stacks) {
            Some(experts) if experts > 0 => format!("{experts}x{}", rounded(self.shared.saturating_add(self.expert))),
            _ => rounded(self.total),
        }
    }
}

/// At least two digits.
fn rounded(n: u64) -> String {
    let n = n as f64;
    let units = [(1e12, 1e-12, "T"), (1e9, 1e-9, "B"), (1e6, 1e-6, "M")];
    let (_, scale, suffix) = units.into_iter().find(|(unit, ..)| n > *unit).unwrap_or((0.0, 1e-3, "K"));
    let scaled = n * scale;
    let digits = format!("{}", scaled.round_ties_even()).trim_start_matches('0').len();
    format!("{scaled:.0$}{suffix}", 2usize.saturating_sub(digits))
}

/// generation_config.json to `general.sampling.*`; the first name present counts.
const SAMPLING: &[(&str, &[&str], bool)] = &[
    ("sequence", &["sequence"], false),
    ("top_k", &["top_k"], true),
    ("top_p", &["top_p"], false),
    ("min_p", &["min_p"], false),
    ("xtc_probability", &["xtc_probability"], false),
    ("xtc_threshold", &["xtc_threshold"], false),
    ("temp", &["temperature"], false),
    ("penalty_last_n", &["penalty_last_n"], true),
    ("penalty_repeat", &["penalty_repeat", "repetition_penalty"], false),
    ("mirostat", &["mirostat"], true),
    ("mirostat_tau", &["mirostat_tau"], false),
    ("mirostat_eta", &["mirostat_eta"], false),
];

/// `general.*` texts in the order of the file, with the model card's keys for them; the first key present counts.
const TEXTS: &[(&str, &[&str])] = &[
    ("name", &["name", "model_name"]),
    ("author", &["author", "model_author", "model_creator"]),
    ("version", &["version", "model_version"]),
    ("organization", &["organization", "model_organization"]),
    ("finetune", &["finetune", "model_finetune"]),
    ("basename", &["basename", "model_basename", "model_type"]),
    ("description", &["description", "model_description"]),
    ("size_label", &["size_label", "model_size_label"]),
    ("license", &["license"]),
    ("license.name", &["license_name"]),
    ("license.link", &["license_link"]),
    ("source.url", &["url", "model_url"]),
    ("source.doi", &["doi", "model_doi"]),
    ("source.uuid", &["uuid", "model_uuid"]),
    ("source.repo_url", &["repo_url", "model_repo_url"]),
];

/// `general.*` of a folder, without architecture, file type and quantization version. Never fails: what is not
/// understood is not stated.
pub fn general(folder: &Folder<'_>) -> Metadata {
    let mut out = Metadata::default();
    out.set("general.type", "model");
    for (key, names, whole) in SAMPLING {
        let found = names.iter().find_map(|n| folder.generation?.get(n)).and_then(|v| number(v, *whole));
        if let Some(value) = found {
            out.set(format!("general.sampling.{key}"), value);
        }
    }
    let card = card::front_matter(&folder.readme.unwrap_or_default().replace('\t', "  "));
    let fact = |keys: &[&str]| keys.iter().find_map(|k| card.iter().find(|(name, _)| name == k).map(|(_, f)| f));
    let ids = ids(folder);
    for (key, keys) in TEXTS {
        let derived = || ids.iter().find_map(|id| of_id(id, key));
        let stated = match fact(keys) {
            Some(Fact::Text(text)) => Some(text.clone()),
            Some(Fact::List(list)) if *key == "license" => Some(list.join(",")),
            _ => None,
        };
        let value = stated.or_else(derived).or_else(|| match *key {
            "name" => Some(folder.name.to_owned()),
            "size_label" if folder.size.total > 0 => Some(folder.size.label()),
            _ => None,
        });
        if let Some(value) = value.filter(|v| !v.is_empty()) {
            out.set(format!("general.{key}"), value);
        }
    }
    related(&mut out, "base_model", fact(&["base_model", "base_models", "base_model_sources"]), folder.size.total);
    related(&mut out, "dataset", fact(&["datasets", "dataset", "dataset_sources"]), folder.size.total);
    for (key, sources) in [("tags", ["tags", "pipeline_tag"]), ("languages", ["languages", "language"])] {
        let all: Vec<_> = sources.iter().filter_map(|s| fact(&[*s])).flat_map(values).map(str::to_owned).collect();
        if !all.is_empty() {
            out.set(format!("general.{key}"), all);
        }
    }
    out
}

fn number(value: &Json, whole: bool) -> Option<Value> {
    match whole {
        true => value.as_i64().and_then(|n| i32::try_from(n).ok()).map(Value::I32),
        false => value.as_f64().map(|x| x as f32).filter(|x| x.is_finite()).map(Value::F32),
    }
}

fn values(fact: &Fact) -> impl Iterator<Item = &str> {
    match fact {
        Fact::Text(one) => std::slice::from_ref(one).iter(),
        Fact::List(many) => many.iter(),
    }
    .map(String::as_str)
}

/// The ids that speak for a folder: its origin if config.json names one, then its own name.
fn ids(folder: &Folder<'_>) -> Vec<ModelId> {
    let origin = folder.config.get("_name_or_path").and_then(Json::as_str);
    // More slashes are a path on someone's computer.
    let origin = origin.filter(|o| o.matches('/').count() <= 1);
    origin.into_iter().chain([folder.name]).map(|id| id::parse(id, folder.size.total)).collect()
}

fn of_id(id: &ModelId, key: &str) -> Option<String> {
    match key {
        "name" => id.name.as_deref().map(id::title),
        "organization" => id.organization.as_deref().map(id::title),
        "version" => id.version.clone(),
        "finetune" => id.finetune.clone(),
        "basename" => id.basename.clone(),
        "size_label" => id.size_label.clone(),
        _ => None,
    }
}

/// `general.{what}.N.*` for ids or URLs of models and datasets.
fn related(out: &mut Metadata, what: &str, fact: Option<&Fact>, parameters: u64) {
    const HUB: &str = "https://huggingface.co/";
    let Some(fact) = fact else { return };
    let all: Vec<_> = values(fact).collect();
    out.set(format!("general.{what}.count"), all.len() as u32);
    for (i, text) in all.into_iter().enumerate() {
        let url = ["http://", "https://", "ssh://"].iter().any(|scheme| text.starts_with(scheme));
        let hub_id = text.strip_prefix(HUB).or_else(|| text.strip_prefix("http://huggingface.co/"));
        let id = match (url, hub_id) {
            (true, Some(id)) if id.split('/').count() == 2 && !id.split('/').any(str::is_empty) => Some(id),
            (true, _) => None,
            (false, _) => Some(text),
        };
        let parsed = id.map(|id| id::parse(id, parameters)).unwrap_or_default();
        let page = match (&parsed.organization, &parsed.name) {
            (Some(org), Some(name)) => Some(format!("{HUB}{org}/{name}")),
            _ => None,
        };
        let repo_url = if url { Some(text.to_owned()) } else { page };
        let facts = [
            ("name", parsed.name.as_deref().map(id::title)),
            ("version", parsed.version),
            ("organization", parsed.organization.as_deref().map(id::title)),
            ("repo_url", repo_url),
        ];
        for (key, value) in facts.into_iter().filter_map(|(k, v)| Some((k, v.filter(|v| !v.is_empty())?))) {
            out.set(format!("general.{what}.{i}.{key}"), value);
        }
    }
}

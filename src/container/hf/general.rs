//! `general.*`: what the folder says about the model besides its architecture.
//! Source: `gguf-py/gguf/metadata.py` (keys, their order and types).

use std::path::Path;

use serde_json::Value as Json;

use super::json;
use crate::container::Tensor;
use crate::metadata::{Metadata, Value};

/// generation_config.json to `general.sampling.*`.
const SAMPLING: &[(&str, &str)] = &[
    ("top_k", "top_k"),
    ("top_p", "top_p"),
    ("min_p", "min_p"),
    ("temperature", "temp"),
    ("repetition_penalty", "penalty_repeat"),
];

pub fn metadata(dir: &Path, arch: &str, tensors: &[Tensor]) -> Metadata {
    let mut out = Metadata::default();
    out.set("general.architecture", arch);
    out.set("general.type", "model");
    // A broken generation_config.json is no reason to refuse the weights.
    let sampling = json::config(dir, "generation_config.json").ok().flatten().unwrap_or_default();
    for (theirs, ours) in SAMPLING {
        if let Some(value) = number(sampling.get(theirs), *theirs == "top_k") {
            out.set(format!("general.sampling.{ours}"), value);
        }
    }
    if let Some(name) = folder_name(dir) {
        out.set("general.name", title(&name));
    }
    out.set("general.size_label", size_label(tensors));
    let card = std::fs::read_to_string(dir.join("README.md")).unwrap_or_default();
    for (key, values) in front_matter(&card) {
        match (key, values.as_slice()) {
            ("license", [one]) => out.set("general.license", one.as_str()),
            ("license_name" | "license_link", [one]) => {
                out.set(format!("general.{}", key.replacen('_', ".", 1)), one.as_str())
            }
            ("tags", many) if !many.is_empty() => out.set("general.tags", values),
            ("language" | "languages", many) if !many.is_empty() => out.set("general.languages", values),
            _ => {}
        }
    }
    out
}

fn number(value: Option<&Json>, integer: bool) -> Option<Value> {
    let value = value?;
    match integer {
        true => value.as_i64().and_then(|n| i32::try_from(n).ok()).map(Value::I32),
        false => value.as_f64().map(|x| x as f32).filter(|x| x.is_finite()).map(Value::F32),
    }
}

/// The last part of the path; for a snapshot in the hub's cache the model's name.
fn folder_name(dir: &Path) -> Option<String> {
    let dir = std::path::absolute(dir).ok()?;
    let name = |p: &Path| Some(p.file_name()?.to_str()?.to_owned());
    let above = dir.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent);
    let model = above.and_then(name).and_then(|n| Some(n.strip_prefix("models--")?.rsplit_once("--")?.1.to_owned()));
    model.or_else(|| name(&dir))
}

/// `smollm2-135M-instruct` -> `Smollm2 135M Instruct`
fn title(name: &str) -> String {
    let lower = |w: &str| !w.chars().any(char::is_uppercase) && w.chars().any(char::is_alphabetic);
    let version = |w: &str| w.trim_start_matches('v').starts_with(|c: char| c.is_ascii_digit());
    let word = |w: &str| match w.chars().next() {
        Some(first) if lower(w) && !version(w) => first.to_uppercase().chain(w.chars().skip(1)).collect(),
        _ => w.to_owned(),
    };
    name.split(['-', ' ']).filter(|w| !w.is_empty()).map(word).collect::<Vec<String>>().join(" ")
}

/// `135M`; with experts their number and the size with one of each: `8x2.1B`.
fn size_label(tensors: &[Tensor]) -> String {
    let (mut shared, mut expert, mut experts) = (0usize, 0usize, 0);
    for t in tensors {
        if t.name.contains("_exps.") && t.shape.len() >= 3 {
            expert += t.len() / t.planes();
            experts = experts.max(t.planes());
        } else {
            shared += t.len();
        }
    }
    let size = rounded((shared + expert) as f64);
    if experts > 0 { format!("{experts}x{size}") } else { size }
}

/// At least two digits.
fn rounded(n: f64) -> String {
    let units = [(1e12, "T"), (1e9, "B"), (1e6, "M")];
    let (unit, suffix) = units.into_iter().find(|(unit, _)| n > *unit).unwrap_or((1e3, "K"));
    let scaled = n / unit;
    let digits = format!("{scaled:.0}").trim_start_matches('0').len();
    format!("{scaled:.0$}{suffix}", 2usize.saturating_sub(digits))
}

/// The model card's YAML, as far as cards use it: `key: value`, `key: [a, b]` and lists of `- value`.
fn front_matter(card: &str) -> Vec<(&str, Vec<String>)> {
    let mut lines = card.lines();
    if lines.next() != Some("---") {
        return Vec::new();
    }
    let mut out: Vec<(&str, Vec<String>)> = Vec::new();
    for line in lines.take_while(|l| *l != "---") {
        if let Some((_, values)) = out.last_mut()
            && let Some(item) = line.trim_start().strip_prefix("- ")
        {
            values.push(unquote(item));
        } else if !line.starts_with([' ', '#'])
            && let Some((key, value)) = line.split_once(':')
        {
            let value = value.trim();
            let list = value.strip_prefix('[').and_then(|v| v.strip_suffix(']'));
            let values = match list {
                Some(list) => list.split(',').map(unquote).collect(),
                None => vec![unquote(value)],
            };
            out.push((key, values.into_iter().filter(|v| !v.is_empty()).collect()));
        }
    }
    out
}

fn unquote(text: &str) -> String {
    text.trim().trim_matches(['"', '\'']).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_two_digits() {
        for (n, label) in
            [(134_515_008.0, "135M"), (494_032_768.0, "494M"), (8.03e9, "8.0B"), (70.6e9, "71B"), (661_000.0, "661K")]
        {
            assert_eq!(rounded(n), label);
        }
    }

    #[test]
    fn titles() {
        assert_eq!(title("smollm2-135M-instruct-v0.2"), "Smollm2 135M Instruct v0.2");
        assert_eq!(title("Qwen2.5-Coder-0.5B"), "Qwen2.5 Coder 0.5B");
    }

    #[test]
    fn names_of_cached_snapshots() {
        let cached = Path::new("/c/hub/models--org--My-Model/snapshots/0123456789abcdef");
        assert_eq!(folder_name(cached).as_deref(), Some("My-Model"));
        assert_eq!(folder_name(Path::new("/m/My-Model/")).as_deref(), Some("My-Model"));
    }

    #[test]
    fn model_cards() {
        let card = "---\nlicense: apache-2.0\nlanguage:\n- en\n- \"no\"\ntags: [chat, 'code']\nmodel-index:\n  - name: x\n---\n# Title: no";
        let fields = front_matter(card);
        let get = |key| fields.iter().find(|(k, _)| *k == key).map(|(_, v)| v.join("|"));
        assert_eq!(get("license").as_deref(), Some("apache-2.0"));
        assert_eq!(get("language").as_deref(), Some("en|no"));
        assert_eq!(get("tags").as_deref(), Some("chat|code"));
        assert_eq!(get("# Title"), None);
        assert!(front_matter("# no front matter").is_empty());
    }
}

//! What the files say of the model besides its weights, against its source.

use std::path::Path;

use serde_json::Value as Json;

use crate::arch::{Arch, ModelSpec};
use crate::container::{Checkpoint, hf};
use crate::error::{Error, Result};
use crate::metadata::{Metadata, Value};

/// Differences that a message lists.
const LISTED: usize = 8;

/// The facts of the model, the tokenizer's keys and the chat template are the source's; of folders config.json too.
pub fn compare(artifact: &dyn Checkpoint, source: &dyn Checkpoint) -> Result<String> {
    let (found, expected) = (stated(artifact)?, stated(source)?);
    let mut differing: Vec<String> =
        expected.iter().filter_map(|(key, value)| difference(key, found.get(key), value)).collect();
    if let (Some(found), Some(expected)) = (artifact.folder(), source.folder()) {
        differing.extend(of_folders(found, expected)?);
    }
    match differing.len() {
        0 => Ok(format!("{} keys say what the source says", expected.len())),
        n => {
            differing.truncate(LISTED);
            let more = if n > LISTED { format!(" and {} more", n - LISTED) } else { String::new() };
            Err(Error::input(format!("not as the source has it: {}{more}", differing.join(", "))))
        }
    }
}

/// What a runtime computes with: not the names of the model, of its authors and of its file.
fn stated(checkpoint: &dyn Checkpoint) -> Result<Metadata> {
    let all = checkpoint.metadata()?;
    let prefix = format!("{}.", checkpoint.arch());
    let own = |key: &str| key == "general.architecture" || key.starts_with(&prefix);
    let mut out = match checkpoint.family() {
        Some((arch, spec)) => facts(arch, spec),
        None => pairs(&all, own),
    };
    out.extend(pairs(&all, |key| key.starts_with("tokenizer.")).iter().map(|(k, v)| (k, v.clone())));
    Ok(out)
}

fn pairs(all: &Metadata, kept: impl Fn(&str) -> bool) -> Metadata {
    let mut out = Metadata::default();
    out.extend(all.iter().filter(|(key, _)| kept(key)).map(|(k, v)| (k, v.clone())));
    out
}

/// Those that a file may leave out are said. That of the vocabulary's size is: embeddings tell it.
fn facts(arch: &Arch, spec: &ModelSpec) -> Metadata {
    let said = ModelSpec {
        kv_heads: u32::try_from(spec.kv_heads()).ok(),
        head_dim: u32::try_from(spec.head_dim()).ok(),
        rope_dim: u32::try_from(spec.rope_dim()).ok(),
        vocab: None,
        ..spec.clone()
    };
    arch.metadata(&said)
}

fn difference(key: &str, found: Option<&Value>, expected: &Value) -> Option<String> {
    let Some(found) = found else { return Some(format!("{key} is missing")) };
    let [a, b] = [found, expected].map(Value::to_string);
    match (found == expected, a == b || a.len() > 40 || b.len() > 40) {
        (true, _) => None,
        (_, true) => Some(key.to_owned()),
        _ => Some(format!("{key} is {a} instead of {b}")),
    }
}

/// What loaders of folders read directly.
fn of_folders(found: &Path, expected: &Path) -> Result<Vec<String>> {
    let [a, b] = [hf::model_config(found)?, hf::model_config(expected)?];
    let mut out = differing(hf::CONFIG, &a, &b, |_| true);
    // A broken one is no reason to refuse a model.
    let generation = |dir: &Path| hf::json::config(dir, hf::GENERATION).ok().flatten().unwrap_or_default();
    out.extend(differing(hf::GENERATION, &generation(found), &generation(expected), |k| k.ends_with("_token_id")));
    Ok(out)
}

fn differing(file: &str, found: &Json, expected: &Json, counts: impl Fn(&str) -> bool) -> Vec<String> {
    let expected = expected.as_object().into_iter().flatten();
    let other = expected.filter(|(key, value)| counts(key) && found.get(key.as_str()).unwrap_or(&Json::Null) != *value);
    other.map(|(key, _)| format!("{key} of {file}")).collect()
}

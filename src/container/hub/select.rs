//! Which files of a repository are needed.

use std::path::Path;

use super::Reference;
use crate::container::hf;
use crate::error::{Error, Result};

/// Everything but the weights, of a model folder; matched against files at the top of the repository.
const SMALL: &[fn(&str) -> bool] = &[
    |n| matches!(n, "config.json" | "generation_config.json" | "README.md" | "tekken.json" | "chat_template.json"),
    |n| matches!(n, "added_tokens.json" | "special_tokens_map.json" | hf::INDEX),
    |n| n.starts_with("tokenizer") || n.starts_with("vocab") || n.starts_with("merges"),
    |n| n.ends_with(".jinja"),
    |n| hf::SIDECARS.iter().any(|(file, _)| *file == n),
];

/// What to download before anything else: for a folder all that tells whether the weights can be used.
pub fn first(model: &Reference, names: &[String]) -> Result<Vec<String>> {
    if let Some(file) = &model.file {
        return splits(file, names);
    }
    if !names.iter().any(|n| n == "config.json") {
        return Err(no_config(model, names));
    }
    Ok(names.iter().filter(|n| small(n)).cloned().collect())
}

fn small(name: &str) -> bool {
    let folder = "additional_chat_templates/";
    let base = name.strip_prefix(folder).filter(|n| n.ends_with(".jinja")).unwrap_or(name);
    !base.contains(['/', '\\']) && SMALL.iter().any(|rule| rule(base))
}

/// Refuses models that cannot be read before their weights are downloaded.
pub fn check(folder: &Path) -> Result<()> {
    hf::describe(folder).map(|_| ())
}

/// The safetensors files that opening the folder will look for.
pub fn weights(folder: &Path, names: &[String]) -> Result<Vec<String>> {
    let top: Vec<_> = names.iter().filter(|n| !n.contains(['/', '\\'])).cloned().collect();
    hf::weight_files(folder, &top)
}

/// A GGUF file, with its siblings if it is split.
fn splits(file: &str, names: &[String]) -> Result<Vec<String>> {
    if !names.iter().any(|n| n == file) {
        return Err(Error::request(format!("the repository has no file {file}")).help(listing(names)));
    }
    let Some((prefix, count)) = split_of(file) else { return Ok(vec![file.to_owned()]) };
    Ok(names.iter().filter(|n| split_of(n) == Some((prefix, count))).cloned().collect())
}

/// `dir/name-00001-of-00003.gguf` -> ("dir/name", "00003")
fn split_of(name: &str) -> Option<(&str, &str)> {
    let (rest, count) = name.strip_suffix(".gguf")?.rsplit_once("-of-")?;
    let (prefix, number) = rest.rsplit_once('-')?;
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    (digits(number) && digits(count)).then_some((prefix, count))
}

fn no_config(model: &Reference, names: &[String]) -> Error {
    if names.iter().any(|n| n.ends_with(".gguf")) {
        return Error::request("the repository holds GGUF files, no model folder").help(format!(
            "name one: {}/FILE. {}",
            model,
            listing(names)
        ));
    }
    Error::unsupported("the repository has no config.json: it is no transformers model")
        .help("look for the `-hf` variant of the model, or for one with config.json and *.safetensors")
}

fn listing(names: &[String]) -> String {
    let files: Vec<_> = names.iter().filter(|n| n.ends_with(".gguf")).map(String::as_str).collect();
    match files.as_slice() {
        [] => "It has no GGUF files".to_owned(),
        some => {
            format!("It has {}{}", some[..some.len().min(20)].join(", "), if some.len() > 20 { " ..." } else { "" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_files() {
        for yes in [
            "config.json",
            "tokenizer.model",
            "tokenizer_config.json",
            "vocab.json",
            "chat_template.jinja",
            hf::INDEX,
            "additional_chat_templates/tool_use.jinja",
            "quantize_config.json",
        ] {
            assert!(small(yes), "{yes}");
        }
        for no in [
            "model.safetensors",
            "pytorch_model.bin",
            "original/tokenizer.model",
            "../config.json",
            "a\\vocab.json",
            "additional_chat_templates/x.py",
            "onnx/config.json",
            "model.gguf",
        ] {
            assert!(!small(no), "{no}");
        }
    }

    #[test]
    fn split_files_come_together() {
        let names =
            ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf", "x.gguf"].map(String::from);
        assert_eq!(splits("m-00001-of-00002.gguf", &names).unwrap(), names[..2]);
        assert_eq!(splits("x.gguf", &names).unwrap(), ["x.gguf"]);
        assert!(splits("y.gguf", &names).is_err());
    }
}

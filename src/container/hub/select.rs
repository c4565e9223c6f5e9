//! Which files of a repository are needed.

use std::path::Path;

use super::{Holds, Reference, sound};
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

/// Rows of data, as far as the name tells.
pub fn is_rows(name: &str) -> bool {
    let plain = name.strip_suffix(".gz").unwrap_or(name);
    [".jsonl", ".json", ".parquet"].iter().any(|suffix| plain.ends_with(suffix))
}

/// What to download before anything else: for a folder all that tells whether the weights can be used.
pub fn first(model: &Reference, names: &[String]) -> Result<Vec<String>> {
    if let Some(file) = &model.file {
        return splits(model.holds, file, names);
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

/// The only file of rows of a data set.
pub fn rows(set: &Reference, names: &[String]) -> Result<String> {
    let mut rows = names.iter().filter(|name| is_rows(name) && sound(name));
    match (rows.next(), rows.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => Err(Error::unsupported("the data set has no files of rows (.jsonl, .json, .parquet)")
            .help("look for a copy in Parquet, often at @refs/convert/parquet, or pass a file of your own")),
        _ => Err(Error::request("the data set has several files")
            .help(format!("name one: {set}/FILE. {}", listing(Holds::Data, names)))),
    }
}

/// A file, with its siblings if it is a split GGUF file.
fn splits(holds: Holds, file: &str, names: &[String]) -> Result<Vec<String>> {
    if !names.iter().any(|n| n == file) {
        return Err(Error::request(format!("the repository has no file {file}")).help(listing(holds, names)));
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
            listing(Holds::Model, names)
        ));
    }
    Error::unsupported("the repository has no config.json: it is no transformers model")
        .help("look for the `-hf` variant of the model, or for one with config.json and *.safetensors")
}

fn listing(holds: Holds, names: &[String]) -> String {
    let files: Vec<_> = names.iter().filter(|n| holds.is_file(n)).map(String::as_str).collect();
    match files.as_slice() {
        [] if holds == Holds::Data => "It has no files of rows (.jsonl, .json, .parquet)".to_owned(),
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
        let splits = |file| splits(Holds::Model, file, &names);
        assert_eq!(splits("m-00001-of-00002.gguf").unwrap(), names[..2]);
        assert_eq!(splits("x.gguf").unwrap(), ["x.gguf"]);
        assert!(splits("y.gguf").is_err());
    }
}

//! Recognises a byte-level pre-tokenizer by what its `tokenizer.json` says it does, not by a list of known models.

use serde_json::Value as Json;

use super::folder::{Folder, list, token_text};
use super::hugging_face::HuggingFace;
use super::merge::Merges;
use super::pres::{self, DIGIT, DIGITS, GPT2, PRES, PUNCTUATION, PUNCTUATION_RUN, Pre};
use super::sha256;
use crate::error::{Error, Result};

/// SHA-256 of the ids that a model gives the probe, and the name that llama.cpp's converter then writes.
/// Source: llama.cpp `conversion/base.py` (get_vocab_base_pre).
const HASHES: &str = include_str!("pre_hashes.txt");
const PROBE: &str = include_str!("pre_probe.txt");

/// The value of `tokenizer.ggml.pre`. Structure finds the candidates; the converter's own table puts one of their names first,
/// and is the second chance of a structure unknown here. `fits` has the last word on each.
/// `merges_up`: whether every token can be merged from its letters.
pub fn recognise(
    folder: &Folder,
    tokenizer: &HuggingFace,
    merges_up: impl Fn(&'static Pre) -> Result<bool>,
    fits: impl Fn(&'static str) -> Result<()>,
) -> Result<&'static str> {
    let json = folder.tokenizer.as_ref().unwrap_or(&Json::Null);
    let steps = steps(json);
    let ignore_merges = json["model"]["ignore_merges"].as_bool().unwrap_or(false);
    let rows = PRES.iter().filter(|p| p.byte_level && stands_for(p, &steps));
    let (same, other): (Vec<_>, Vec<_>) = rows.partition(|p| p.ignore_merges == ignore_merges);
    let known = known(folder, tokenizer)?;
    let mut names: Vec<&'static str> = Vec::new();
    names.extend(
        known.filter(|n| same.is_empty() && other.is_empty() || same.iter().chain(&other).any(|p| p.names.contains(n))),
    );
    names.extend(same.iter().map(|p| p.names[0]));
    for row in other {
        // Otherwise the flag changes nothing.
        if merges_up(row)? {
            names.push(row.names[0]);
        }
    }
    let mut refusal = None;
    for name in names {
        match fits(name) {
            Ok(()) => return Ok(name),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.unwrap_or_else(|| unknown(json, tokenizer, &steps)))
}

fn stands_for(pre: &Pre, steps: &[String]) -> bool {
    let own = [pre.splits];
    let sources = if pre.sources.is_empty() { &own[..] } else { pre.sources };
    sources.iter().any(|source| source.iter().map(|step| canonical(step)).eq(steps.iter().cloned()))
}

/// The name in the converter's table.
fn known(folder: &Folder, tokenizer: &HuggingFace) -> Result<Option<&'static str>> {
    let probe: String = serde_json::from_str(PROBE).map_err(|e| Error::input(e.to_string()))?;
    // transformers' class for Llama puts BOS in front whatever the post-processor says.
    let class = folder.config("tokenizer_class").as_str().unwrap_or_default();
    let own_bos = class.starts_with("LlamaTokenizer");
    let Ok(mut ids) = tokenizer.encode(&probe, !own_bos, true) else { return Ok(None) };
    if own_bos && folder.config("add_bos_token").as_bool().unwrap_or(true) {
        let bos = token_text(folder.config("bos_token")).and_then(|t| tokenizer.id(t));
        ids.splice(0..0, bos);
    }
    let hash = sha256::hex(format!("{ids:?}").as_bytes());
    Ok(HASHES.lines().find_map(|line| line.strip_prefix(&hash)).map(str::trim))
}

/// What happens to a text before merging, one pattern or description a step; empty if nothing was understood.
fn steps(json: &Json) -> Vec<String> {
    let mut out = Vec::new();
    normalizer_steps(&json["normalizer"], &mut out);
    pre_tokenizer_steps(&json["pre_tokenizer"], &mut out);
    out
}

/// llama.cpp normalizes nothing. Composing (NFC) leaves almost all text alone, so it is let pass as its converter does.
fn normalizer_steps(normalizer: &Json, out: &mut Vec<String>) {
    match normalizer["type"].as_str() {
        None if normalizer.is_null() => {}
        Some("NFC") => {}
        Some("Sequence") => {
            list(Some(&normalizer["normalizers"])).for_each(|n| normalizer_steps(n, out));
        }
        _ => out.push(describe(normalizer)),
    }
}

fn pre_tokenizer_steps(step: &Json, out: &mut Vec<String>) {
    let behavior = step["behavior"].as_str().unwrap_or_default();
    let invert = step["invert"].as_bool().unwrap_or(false);
    // These patterns match all of a text, so dropping the rest drops nothing.
    let isolates = behavior == "Isolated" || behavior == "Removed" && invert;
    let pattern = match (&step["pattern"]["Regex"], &step["pattern"]["String"]) {
        (Json::String(regex), _) => Some(canonical(regex)),
        (_, Json::String(text)) => Some(canonical(&regex::escape(text))),
        _ => None,
    };
    match (step["type"].as_str(), pattern) {
        (Some("Sequence"), _) => {
            list(Some(&step["pretokenizers"])).for_each(|s| pre_tokenizer_steps(s, out));
        }
        (Some("Split"), Some(pattern)) if isolates => out.push(pattern),
        (Some("Digits"), _) => {
            let one = step["individual_digits"].as_bool().unwrap_or(false);
            out.push(canonical(if one { DIGIT } else { DIGITS }));
        }
        (Some("Punctuation"), _) if behavior == "Contiguous" => out.push(canonical(PUNCTUATION_RUN)),
        (Some("Punctuation"), _) if matches!(behavior, "Isolated" | "") => out.push(canonical(PUNCTUATION)),
        (Some("ByteLevel"), _) if !step["add_prefix_space"].as_bool().unwrap_or(true) => {
            if step["use_regex"].as_bool().unwrap_or(true) {
                out.push(canonical(GPT2));
            }
        }
        _ => out.push(describe(step)),
    }
}

fn describe(step: &Json) -> String {
    step.to_string()
}

/// One spelling for patterns that match alike. Order matters.
const SPELLINGS: &[(&str, &str)] = &[
    ("\r", r"\r"),
    ("\n", r"\n"),
    (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)", CONTRACTION),
    (r"'(?i:[sdmt]|ll|ve|re)", CONTRACTION),
    // Possessive or not, these classes never overlap what follows them.
    (r"[^\r\n\p{L}\p{N}]?+", r"[^\r\n\p{L}\p{N}]?"),
    (r"[^\s\p{L}\p{N}]++", r"[^\s\p{L}\p{N}]+"),
    (r"\p{N}{1,3}+", r"\p{N}{1,3}"),
    (r"\p{N}{1}", r"\p{N}"),
    // White space before it already takes all but the last line break.
    (r"|\s*[\r\n]|", r"|\s*[\r\n]+|"),
];
const CONTRACTION: &str = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])";

fn canonical(regex: &str) -> String {
    SPELLINGS.iter().fold(regex.to_owned(), |text, (from, to)| text.replace(from, to))
}

fn unknown(json: &Json, tokenizer: &HuggingFace, steps: &[String]) -> Error {
    let seen = if steps.is_empty() { describe(&json["pre_tokenizer"]) } else { steps.join("\n    ") };
    let alike = alike(tokenizer);
    let hint = match alike.as_slice() {
        [] => "none of them splits like it".to_owned(),
        names => format!("on the test strings it splits like {}", names.join(", ")),
    };
    Error::unsupported(format!("llama.cpp has no pre-tokenizer with these steps:\n    {seen}"))
        .at("tokenizer.json")
        .help(format!("name one with --pre NAME ({hint}); known: {}", pres::names().collect::<Vec<_>>().join(", ")))
}

/// Pre-tokenizers that cut the test strings as this one does.
fn alike(tokenizer: &HuggingFace) -> Vec<&'static str> {
    let strings = super::awkward();
    let expected: Result<Vec<_>> = strings.iter().map(|text| tokenizer.words(text)).collect();
    let Ok(expected) = expected else { return Vec::new() };
    let same = |pre: &&'static Pre| {
        let Ok(merges) = Merges::new(pre, &[], &Default::default()) else { return false };
        strings.iter().zip(&expected).all(|(text, expected)| {
            merges.pieces(text).into_iter().map(super::bytes::encode).eq(expected.iter().cloned())
        })
    };
    PRES.iter().filter(|p| p.byte_level).filter(same).map(|p| p.names[0]).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn rows(pre_tokenizer: &Json) -> Vec<&'static str> {
        let steps = steps(&json!({"normalizer": null, "pre_tokenizer": pre_tokenizer}));
        PRES.iter().filter(|p| p.byte_level && stands_for(p, &steps)).map(|p| p.names[0]).collect()
    }

    fn sequence(splits: &[&str]) -> Json {
        let split = |regex: &&str| json!({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"});
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "use_regex": false});
        json!({"type": "Sequence", "pretokenizers": splits.iter().map(split).chain([byte_level]).collect::<Vec<_>>()})
    }

    #[test]
    fn every_row_is_found_by_its_own_patterns() {
        for pre in PRES.iter().filter(|p| p.byte_level) {
            let own = [pre.splits];
            let sources = if pre.sources.is_empty() { &own[..] } else { pre.sources };
            for source in sources {
                assert!(rows(&sequence(source)).contains(&pre.names[0]), "{:?}", pre.names);
            }
        }
    }

    /// As published files spell them.
    #[test]
    fn other_spellings_are_found() {
        let llama3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
        assert_eq!(rows(&sequence(&[llama3])), ["llama-bpe", "dbrx", "glm4"]);
        assert_eq!(rows(&sequence(&[&llama3.replace("{1,3}", "")])), ["qwen2"]);
        let cl100k = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+";
        assert_eq!(rows(&sequence(&[cl100k])), ["llama-bpe", "dbrx", "glm4"]);
        let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false});
        assert_eq!(rows(&byte_level), ["gpt-2"]);
        let digits = json!({"type": "Digits", "individual_digits": true});
        assert_eq!(rows(&json!({"type": "Sequence", "pretokenizers": [digits, byte_level]})), ["smollm"]);
        let unusual =
            [json!({"type": "ByteLevel"}), json!({"type": "Whitespace"}), json!(null), sequence(&["[aeiou]"])];
        for unknown in unusual {
            assert!(rows(&unknown).is_empty(), "{unknown}");
        }
    }
}

//! Tokenizers against llama.cpp: what its converter writes for three small folders, and the ids that it gives awkward texts.
//! The golden files come from `tests/interop/tokenizer_golden.py`.

use std::path::{Path, PathBuf};

use quant::container::tokenizer::{
    TokenizerOptions, awkward, check_template, from_folder, load_folder, parity, rebuild, templates,
};
use quant::metadata::{Array, Metadata, Value};
use serde_json::Value as Json;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tokenizer").join(name)
}

fn read(path: PathBuf) -> String {
    std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn json(path: PathBuf) -> Json {
    serde_json::from_str(&read(path)).unwrap()
}

/// Rows of (key, type, value).
fn metadata(rows: &Json) -> Metadata {
    let mut out = Metadata::default();
    for row in rows.as_array().unwrap() {
        let (key, kind, value) = (row[0].as_str().unwrap(), row[1].as_str().unwrap(), &row[2]);
        let value = match kind {
            "STRING" => value.as_str().unwrap().into(),
            "BOOL" => value.as_bool().unwrap().into(),
            "UINT32" => Value::U32(value.as_u64().unwrap() as u32),
            "ARRAY" => Value::Array(array(value.as_array().unwrap())),
            other => panic!("{key} is {other}"),
        };
        out.set(key, value);
    }
    out
}

fn array(values: &[Json]) -> Array {
    match &values[0] {
        Json::String(_) => Array::Str(values.iter().map(|v| v.as_str().unwrap().to_owned()).collect()),
        first if first.is_i64() => Array::I32(values.iter().map(|v| v.as_i64().unwrap() as i32).collect()),
        _ => Array::F32(values.iter().map(|v| v.as_f64().unwrap() as f32).collect()),
    }
}

fn checksum(ids: &[u32]) -> String {
    let bytes = ids.iter().flat_map(|id| id.to_le_bytes());
    let hash = bytes.fold(0x811C_9DC5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
    format!("{:04x}", (hash >> 16) ^ (hash & 0xffff))
}

/// `expected`: four digits a string of `awkward`.
fn assert_ids(metadata: &Metadata, expected: &str, add: bool, parse: bool, what: &str) {
    let tokenizer = rebuild(metadata).unwrap();
    assert_eq!(expected.len(), awkward().len() * 4, "{what}");
    for (i, text) in awkward().iter().enumerate() {
        let ids = tokenizer.encode(text, add, parse).unwrap();
        assert_eq!(checksum(&ids), expected[i * 4..i * 4 + 4], "{what} on {text:?}: {ids:?}");
    }
}

fn vocab_size(folder: &str) -> usize {
    json(golden(folder).join("config.json"))["vocab_size"].as_u64().unwrap() as usize
}

fn convert(folder: &str, exact_llama: bool) -> Metadata {
    let options = TokenizerOptions { exact_llama, ..Default::default() };
    from_folder(&golden(folder), "llama", vocab_size(folder), &options).unwrap()
}

const FOLDERS: [&str; 3] = ["byte-level", "sentencepiece", "raw-bpe"];

#[test]
fn metadata_equals_the_converters() {
    for folder in FOLDERS {
        let (got, want) = (convert(folder, true), metadata(&json(golden(folder).join("expected.json"))));
        let keys = |m: &Metadata| m.iter().map(|(k, _)| k.to_owned()).collect::<Vec<_>>();
        assert_eq!(keys(&got), keys(&want), "{folder}");
        for (key, value) in want.iter() {
            assert!(got.get(key) == Some(value), "{folder}: {key} is {:?}, not {value:?}", got.get(key));
        }
    }
}

#[test]
fn ids_equal_llama_cpps() {
    for folder in FOLDERS {
        let vocab = metadata(&json(golden(folder).join("expected.json")));
        for line in read(golden(folder).join("ids.txt")).lines() {
            let (mode, expected) = line.split_once(' ').unwrap();
            assert_ids(&vocab, expected, &mode[..1] == "1", &mode[1..] == "1", folder);
        }
    }
}

#[test]
fn every_pre_tokenizer_cuts_as_llama_cpp_does() {
    let mut vocab = metadata(&json(golden("byte-level/expected.json")));
    vocab.remove("tokenizer.ggml.add_bos_token"); // so that the pre-tokenizer decides
    let file = read(golden("pres.txt"));
    assert_eq!(file.lines().count(), 31);
    for line in file.lines() {
        let (name, expected) = line.split_once(' ').unwrap();
        vocab.set("tokenizer.ggml.pre", name);
        assert_ids(&vocab, expected, true, true, name);
    }
}

/// llama.cpp's converter leaves the key out, and llama.cpp does not load such a file; with an empty list it does.
#[test]
fn no_merges_are_an_empty_list() {
    let dir = folder_with("byte-level", |t| t["model"]["merges"] = serde_json::json!([]));
    let options = TokenizerOptions { pre: Some("qwen2".into()), ..Default::default() };
    let mut vocab = from_folder(dir.path(), "llama", vocab_size("byte-level"), &options).unwrap();
    assert_eq!(vocab.get("tokenizer.ggml.merges"), Some(&Value::Array(Array::Str(vec![]))));
    assert_ids(&vocab, read(golden("no-merges.txt")).trim(), false, true, "no merges");
    let artifact = rebuild(&vocab).unwrap();
    let source = load_folder(dir.path()).unwrap();
    assert_eq!(source.encode("ab", false, false).unwrap(), artifact.encode("ab", false, false).unwrap());
    vocab.remove("tokenizer.ggml.merges");
    let error = rebuild(&vocab).err().unwrap().to_string();
    assert!(error.contains("tokenizer.ggml.merges") && error.contains("llama.cpp does not load it"), "{error}");
    vocab.set("tokenizer.ggml.pre", "kimi-k2");
    rebuild(&vocab).unwrap();
}

#[test]
fn artifacts_tokenize_as_their_sources() {
    for folder in ["byte-level", "raw-bpe"] {
        let (source, artifact) = (load_folder(&golden(folder)).unwrap(), rebuild(&convert(folder, false)).unwrap());
        let differing = parity(&source, &artifact, awkward().iter().map(String::as_str)).unwrap();
        let unexplained: Vec<_> = differing.iter().filter(|m| m.known.is_none()).collect();
        assert!(unexplained.is_empty(), "{folder}: {unexplained:?}");
    }
}

/// llama.cpp's converter writes one score for all tokens of a `tokenizer.json` without `tokenizer.model`.
#[test]
fn equal_scores_are_noticed() {
    let source = load_folder(&golden("raw-bpe")).unwrap();
    let artifact = rebuild(&convert("raw-bpe", true)).unwrap();
    let differing = parity(&source, &artifact, awkward().iter().map(String::as_str)).unwrap();
    assert!(differing.iter().filter(|m| m.known.is_none()).count() > 10, "{differing:?}");
}

#[test]
fn a_wrong_pre_tokenizer_is_noticed() {
    let options = TokenizerOptions { pre: Some("gpt-2".into()), ..Default::default() };
    let wrong = from_folder(&golden("byte-level"), "llama", vocab_size("byte-level"), &options).unwrap();
    assert_eq!(wrong.str("tokenizer.ggml.pre"), Some("gpt-2"));
    let source = load_folder(&golden("byte-level")).unwrap();
    let differing = parity(&source, &rebuild(&wrong).unwrap(), ["x1234", "plain words"]).unwrap();
    assert_eq!(differing.iter().map(|m| (m.text.as_str(), m.known)).collect::<Vec<_>>(), [("x1234", None)]);
    let options = TokenizerOptions { pre: Some("nonsense".into()), ..Default::default() };
    let error =
        from_folder(&golden("byte-level"), "llama", vocab_size("byte-level"), &options).unwrap_err().to_string();
    assert!(error.contains("qwen2"), "{error}");
}

#[test]
fn decoding_inverts_encoding() {
    for folder in FOLDERS {
        let artifact = rebuild(&convert(folder, false)).unwrap();
        for text in awkward().iter().filter(|t| t.is_ascii()) {
            let decoded = artifact.decode(&artifact.encode(text, false, false).unwrap()).unwrap();
            let decoded = decoded.strip_prefix(' ').filter(|d| *d == text).unwrap_or(&decoded);
            assert_eq!(decoded, text, "{folder}");
        }
    }
}

#[test]
fn templates_come_from_every_source() {
    let listed = convert("byte-level", false);
    let names: Vec<&str> = templates(&listed).into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["tool_use", "default"]);
    let own_file = convert("sentencepiece", false);
    let found = templates(&own_file);
    assert_eq!(found.len(), 1);
    assert!(found[0].1.contains("<|im_start|>"));
    assert!(templates(&convert("raw-bpe", false)).is_empty());
    for (_, source) in templates(&listed).into_iter().chain(found) {
        check_template(source).unwrap();
    }
}

/// A folder of one test, filled with copies and changed files.
fn folder_with(from: &str, change: impl Fn(&mut Json)) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for file in ["tokenizer_config.json", "config.json"] {
        std::fs::copy(golden(from).join(file), dir.path().join(file)).unwrap();
    }
    let mut tokenizer = json(golden(from).join("tokenizer.json"));
    change(&mut tokenizer);
    std::fs::write(dir.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    dir
}

#[test]
fn an_unknown_structure_is_an_error_that_says_what_was_seen() {
    let dir = folder_with("byte-level", |t| {
        t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = "[aeiou]+".into();
    });
    let error = from_folder(dir.path(), "llama", vocab_size("byte-level"), &TokenizerOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("[aeiou]+") && error.contains("--pre"), "{error}");
    let options = TokenizerOptions { pre: Some("qwen2".into()), ..Default::default() };
    from_folder(dir.path(), "llama", vocab_size("byte-level"), &options).unwrap();
    let options = TokenizerOptions { nameless: true, ..Default::default() };
    let nameless = from_folder(dir.path(), "llama", vocab_size("byte-level"), &options).unwrap();
    assert!(nameless.get("tokenizer.ggml.pre").is_none() && nameless.get("tokenizer.ggml.tokens").is_some());
}

#[test]
fn a_new_spelling_is_recognised_by_what_it_does_in_the_error() {
    let dir = folder_with("byte-level", |t| {
        let regex = t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"].as_str().unwrap().to_owned();
        t["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = format!("(?:{regex})").into();
    });
    let error = from_folder(dir.path(), "llama", vocab_size("byte-level"), &TokenizerOptions::default())
        .unwrap_err()
        .to_string();
    assert!(error.contains("splits like qwen2"), "{error}");
}

/// Each is a way in which the files can lie.
#[test]
fn damaged_folders_are_errors() {
    type Lie = fn(&mut Json);
    let lies: [(&str, Lie); 8] = [
        ("id beyond the embeddings", |t| t["model"]["vocab"]["!"] = 999_999.into()),
        ("no id", |t| t["model"]["vocab"]["!"] = "x".into()),
        ("two tokens, one id", |t| t["model"]["vocab"]["!"] = 1.into()),
        ("merge of an unknown token", |t| t["model"]["merges"] = serde_json::json!(["zzzz qqqq"])),
        ("merge of one token", |t| t["model"]["merges"] = serde_json::json!(["x"])),
        ("no model", |t| t["model"] = Json::Null),
        ("another kind", |t| {
            t["model"] = serde_json::json!({"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"})
        }),
        ("added token without text", |t| t["added_tokens"][0]["content"] = Json::Null),
    ];
    for (what, lie) in lies {
        let dir = folder_with("byte-level", lie);
        assert!(
            from_folder(dir.path(), "llama", vocab_size("byte-level"), &TokenizerOptions::default()).is_err(),
            "{what}"
        );
    }
    // The crate panics on this one as soon as it encodes.
    let dir = folder_with("byte-level", |t| t["post_processor"]["special_tokens"] = serde_json::json!({}));
    let _ = from_folder(dir.path(), "llama", vocab_size("byte-level"), &TokenizerOptions::default());
    if let Ok(tokenizer) = load_folder(dir.path()) {
        assert!(tokenizer.encode("x", true, true).is_err());
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(from_folder(empty.path(), "llama", 10, &TokenizerOptions::default()).is_err());
    assert!(from_folder(&golden("byte-level"), "llama", 0, &TokenizerOptions::default()).is_err());
    assert!(from_folder(&golden("byte-level"), "llama", usize::MAX, &TokenizerOptions::default()).is_err());
    std::fs::write(empty.path().join("tokenizer.model"), b"\x0a\xff\xff\xff\xff\xff").unwrap();
    assert!(from_folder(empty.path(), "llama", 10, &TokenizerOptions::default()).is_err());
    assert!(load_folder(empty.path()).is_err());
}

#[test]
fn damaged_metadata_is_an_error() {
    let good = metadata(&json(golden("byte-level/expected.json")));
    let lies: [(&str, Value); 9] = [
        ("tokenizer.ggml.model", "bert".into()),
        ("tokenizer.ggml.pre", "nonsense".into()),
        ("tokenizer.ggml.tokens", Value::Array(Array::Str(vec![]))),
        ("tokenizer.ggml.tokens", vec!["a".to_owned(), "a".to_owned()].into()),
        ("tokenizer.ggml.tokens", vec![1u32].into()),
        ("tokenizer.ggml.token_type", vec![1i32].into()),
        ("tokenizer.ggml.token_type", "normal".into()),
        ("tokenizer.ggml.merges", vec!["alone".to_owned()].into()),
        ("tokenizer.ggml.merges", vec![1i32].into()),
    ];
    for (key, lie) in lies {
        let mut bad = good.clone();
        bad.set(key, lie.clone());
        assert!(rebuild(&bad).is_err(), "{key} = {lie:?}");
    }
    for key in ["tokenizer.ggml.model", "tokenizer.ggml.tokens", "tokenizer.ggml.merges"] {
        let mut bad = good.clone();
        bad.remove(key);
        assert!(rebuild(&bad).is_err(), "{key}");
    }
}

mod arbitrary {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Whatever a file holds, reading it and using it ends in a value or an error.
        #[test]
        fn vocabularies_never_panic(
            model in prop::sample::select(vec!["gpt2", "llama", "gemma4"]),
            tokens in prop::collection::vec("[ab▁ĠĊ<>0xF|]{0,4}", 1..40),
            merges in prop::collection::vec("[ab Ġ]{0,6}", 0..20),
            types in prop::collection::vec(-1i32..9, 1..60),
            scores in prop::collection::vec(prop::num::f32::ANY, 1..60),
            ids in prop::collection::vec(any::<u32>(), 0..20),
            bos: u32,
            text in "\\PC{0,40}",
        ) {
            let mut m = Metadata::default();
            m.set("tokenizer.ggml.model", model);
            m.set("tokenizer.ggml.pre", "llama-bpe");
            m.set("tokenizer.ggml.tokens", tokens);
            m.set("tokenizer.ggml.merges", merges);
            m.set("tokenizer.ggml.token_type", types);
            m.set("tokenizer.ggml.scores", scores);
            m.set("tokenizer.ggml.bos_token_id", bos);
            m.set("tokenizer.ggml.add_bos_token", true);
            if let Ok(tokenizer) = rebuild(&m) {
                for (add, parse) in [(true, true), (false, false)] {
                    if let Ok(out) = tokenizer.encode(&text, add, parse) {
                        prop_assert!(out.iter().all(|&id| (id as usize) < tokenizer.vocab_size()));
                        tokenizer.decode(&out).unwrap();
                    }
                }
                tokenizer.decode(&ids).unwrap();
            }
        }

        #[test]
        fn templates_never_panic(source in "(\\{%|%\\}|\\{\\{|\\}\\}|for|in|if|end|set|[a-z]|['\"()\\[\\]. +|-]){0,30}") {
            let _ = check_template(&source);
        }
    }
}

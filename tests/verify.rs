//! What `quant verify` finds in files that can be read.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::folder::Folder;
use common::model::{DENSE, Shape, model};
use common::{quant, quant_ok};
use quant::container::gguf;
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn converted(source: &Folder, to: &str, name: &str) -> PathBuf {
    let out = source.path().with_extension(name);
    quant_ok(&["convert", text(source.path()), "--to", to, "-o", text(&out), "--quiet"]);
    out
}

/// The checks that fail, and what they say.
fn failed(artifact: &Path, source: Option<&Folder>) -> Vec<(String, String)> {
    let mut args = vec!["verify", text(artifact), "--json", "--quiet"];
    args.extend(source.iter().flat_map(|s| ["--source", text(s.path())]));
    let report: Value = serde_json::from_slice(&quant(&args).stdout).unwrap();
    let checks = report["checks"].as_array().unwrap().iter().filter(|c| c["status"] == "failed");
    checks.map(|c| (c["name"].as_str().unwrap().to_owned(), c["detail"].as_str().unwrap().to_owned())).collect()
}

fn find(bytes: &[u8], what: &[u8]) -> usize {
    bytes.windows(what.len()).position(|w| w == what).unwrap()
}

/// Overwrites the value of a key of four bytes.
fn set(bytes: &mut [u8], key: &str, value: [u8; 4]) {
    let at = find(bytes, key.as_bytes()) + key.len() + 4;
    bytes[at..at + 4].copy_from_slice(&value);
}

fn replace(bytes: &mut [u8], from: &str, to: &str) {
    let at = find(bytes, from.as_bytes());
    bytes[at..at + to.len()].copy_from_slice(to.as_bytes());
}

/// Where a tensor lies, and how long it is.
fn tensor(bytes: &[u8], name: &str) -> (usize, usize) {
    let header = gguf::parse(bytes).unwrap();
    let t = header.tensors.iter().find(|t| t.name == name).unwrap();
    (t.offset, t.bytes)
}

type Lie = (&'static str, fn(&mut Vec<u8>), &'static str, &'static str);

/// What is done to a file, the check that fails, and what it says.
const LIES: &[Lie] = &[
    (
        "the sign of one gain",
        |b| {
            let (at, _) = tensor(b, "blk.1.ffn_norm.weight");
            b[at + 4 * 7 + 3] ^= 0x80;
        },
        "weights",
        "1 of 256 values are not the source's, rounded to f32; the first is at row 0, column 7",
    ),
    (
        "the last bit of one gain",
        |b| {
            let (at, _) = tensor(b, "output_norm.weight");
            b[at] ^= 1;
        },
        "weights",
        "output_norm.weight: 1 of 256 values",
    ),
    (
        "two rows of a matrix",
        |b| {
            let (at, bytes) = tensor(b, "blk.1.ffn_up.weight");
            let row = bytes / 512;
            let (a, b) = b[at..].split_at_mut(9 * row);
            a[3 * row..4 * row].swap_with_slice(&mut b[..row]);
        },
        "weights",
        "blk.1.ffn_up.weight: 2 of its rows are not the source's, the first is row 3",
    ),
    (
        "the base of rotary embedding",
        |b| set(b, "llama.rope.freq_base", 5e5f32.to_le_bytes()),
        "metadata",
        "llama.rope.freq_base is 500000 instead of 10000",
    ),
    (
        "the end of a text",
        |b| set(b, "tokenizer.ggml.eos_token_id", 9u32.to_le_bytes()),
        "metadata",
        "tokenizer.ggml.eos_token_id is 9 instead of 258",
    ),
    ("the template", |b| replace(b, "m in messages", "m in messagez"), "metadata", "tokenizer.chat_template"),
    ("a special token", |b| replace(b, "<|end|>", "<|eXd|>"), "tokenizer", "strings become other tokens"),
    ("heads", |b| set(b, "llama.attention.head_count_kv", 1u32.to_le_bytes()), "structure", "rows instead of 64"),
    ("heads that cannot be", |b| set(b, "llama.attention.head_count_kv", 3u32.to_le_bytes()), "structure", "multiple"),
    ("width", |b| set(b, "llama.feed_forward_length", 256u32.to_le_bytes()), "structure", "512 columns instead of 256"),
    ("bytes behind", |b| b.extend([0; 32]), "structure", "32 bytes after the last tensor belong to no tensor"),
];

#[test]
fn lies_of_a_gguf_file_are_found() {
    let source = model(&Shape { layers: 2, ..DENSE });
    let file = converted(&source, "q4_k_m", "gguf");
    assert_eq!(failed(&file, Some(&source)), []);
    let honest = fs::read(&file).unwrap();
    for (name, lie, check, expected) in LIES {
        let mut bytes = honest.clone();
        lie(&mut bytes);
        fs::write(&file, &bytes).unwrap();
        let found = failed(&file, (*check != "structure").then_some(&source));
        assert!(found.iter().any(|(c, said)| c == check && said.contains(expected)), "{name}: {found:?}");
    }
}

/// A file, what is done to it, and what is said of it.
type Edit = (&'static str, fn(&mut Value), &'static str);

#[test]
fn lies_of_a_folder_are_found() {
    let source = model(&Shape { layers: 2, ..DENSE });
    source.put("generation_config.json", json!({"eos_token_id": [258, 257], "temperature": 0.7}).to_string());
    let folder = converted(&source, "w4a16", "folder");
    assert_eq!(failed(&folder, Some(&source)), []);
    let lies: [Edit; 4] = [
        ("config.json", |c| c["rope_theta"] = json!(5e5), "llama.rope.freq_base is 500000 instead of 10000"),
        ("config.json", |c| c["eos_token_id"] = json!(5), "eos_token_id of config.json"),
        ("generation_config.json", |c| c["eos_token_id"] = json!(258), "eos_token_id of generation_config.json"),
        (
            "tokenizer_config.json",
            |c| c.as_object_mut().unwrap().retain(|k, _| k != "chat_template"),
            "tokenizer.chat_template is missing",
        ),
    ];
    for (file, lie, expected) in lies {
        let honest = fs::read(folder.join(file)).unwrap();
        let mut json: Value = serde_json::from_slice(&honest).unwrap();
        lie(&mut json);
        fs::write(folder.join(file), json.to_string()).unwrap();
        let found = failed(&folder, Some(&source));
        assert!(found.iter().any(|(check, said)| check == "metadata" && said.contains(expected)), "{found:?}");
        fs::write(folder.join(file), honest).unwrap();
    }
}

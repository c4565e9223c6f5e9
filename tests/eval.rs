//! `quant eval` and `quant reference` through the binary, on a small random model.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::folder::Folder;
use common::model::{DENSE, Shape, model};
use common::{quant_fails, quant_ok};
use serde_json::Value;

/// A model, its text and artifacts in several formats.
struct Bench {
    dir: tempfile::TempDir,
    model: Folder,
}

impl Bench {
    fn new(formats: &str) -> Bench {
        let (dir, model) = (tempfile::tempdir().unwrap(), model(&Shape { layers: 2, ..DENSE }));
        let text: String = (0..200).map(|i| format!("the {} heron sees {} fish. ", i % 7, i * i % 31)).collect();
        fs::write(dir.path().join("text.txt"), text).unwrap();
        for format in formats.split(',') {
            let out = dir.path().join(format!("{format}.gguf"));
            let from = model.path().to_str().unwrap();
            quant_ok(&["convert", from, "--to", format, "-o", out.to_str().unwrap(), "--quiet"]);
        }
        Bench { dir, model }
    }

    fn path(&self, name: &str) -> String {
        self.dir.path().join(name).to_str().unwrap().to_owned()
    }

    /// `quant eval ... --json` on a few windows of the text.
    fn eval(&self, artifacts: &[&str], more: &[&str]) -> Value {
        let paths: Vec<String> = artifacts.iter().map(|a| self.path(a)).collect();
        let text = self.path("text.txt");
        let model = self.model.path().to_str().unwrap();
        let mut args = vec!["eval"];
        args.extend(paths.iter().map(String::as_str));
        if !more.contains(&"--reference") {
            args.extend(["--reference", model, "--data", &text, "--context", "96", "--chunks", "6"]);
        }
        args.extend(["--json", "--quiet"]);
        args.extend(more);
        serde_json::from_str(&quant_ok(&args)).unwrap()
    }
}

fn kld(report: &Value, i: usize) -> f64 {
    report["artifacts"][i]["kld"]["mean"].as_f64().unwrap()
}

#[test]
fn fewer_bits_lose_more_and_the_closest_comes_first() {
    let bench = Bench::new("f32,q8_0,q4_k_m,q2_k");
    let report = bench.eval(&["q2_k.gguf", "f32.gguf", "q4_k_m.gguf", "q8_0.gguf"], &["--weights"]);
    let artifacts = report["artifacts"].as_array().unwrap();
    let names: Vec<&str> = artifacts.iter().map(|a| a["path"].as_str().unwrap()).collect();
    for (name, expected) in names.iter().zip(["f32", "q8_0", "q4_k_m", "q2_k"]) {
        assert!(name.ends_with(&format!("{expected}.gguf")), "{names:?}");
    }
    assert!(kld(&report, 0) < 1e-8 && kld(&report, 1) > kld(&report, 0) && kld(&report, 3) > 3.0 * kld(&report, 2));
    for a in artifacts {
        let k = &a["kld"];
        let at = |name: &str| k[name].as_f64().unwrap();
        assert!(
            at("low") <= at("mean") && at("mean") <= at("high") && at("median") <= at("p99") && at("p99") <= at("max")
        );
        let worst =
            a["weights"].as_array().unwrap().iter().map(|w| w["relative"].as_f64().unwrap()).fold(0.0, f64::max);
        assert!((worst == 0.0) == (kld(&report, 0) == at("mean")), "{a}");
    }
    assert_eq!(report["noise"]["batch_kld"], 0.0);
    assert!(report["noise"]["bf16_kld"].as_f64().unwrap() > 0.0);
    let conditions = &report["conditions"];
    assert_eq!((conditions["protocol"].as_str(), conditions["context"].as_u64()), (Some("llamacpp-512"), Some(96)));
    // tokenizer_config.json asks for it, although tokenizer.json does not add it.
    assert_eq!(conditions["bos"], 257);
    // 6 windows of 96, the second half of each.
    assert_eq!(report["tokens"], 6 * 47);
}

#[test]
fn threads_change_nothing() {
    let bench = Bench::new("q4_0");
    let [one, two] = ["1", "2"].map(|n| bench.eval(&["q4_0.gguf"], &["--threads", n]));
    assert_eq!(one, two);
}

#[test]
fn a_reference_file_gives_what_the_model_gives() {
    let bench = Bench::new("q4_k_m");
    for (protocol, context) in [("llamacpp-512", "96"), ("gptq-2048", "64"), ("strided", "128")] {
        let text = bench.path("text.txt");
        let conditions = ["--data", &text, "--protocol", protocol, "--context", context, "--chunks", "5"];
        let reference = bench.path("model.ref");
        let from = bench.model.path().to_str().unwrap();
        let mut args = vec!["reference", from, "-o", &reference, "--json", "--quiet"];
        args.extend(conditions);
        let written: Value = serde_json::from_str(&quant_ok(&args)).unwrap();
        assert_eq!(written["bytes"].as_u64().unwrap(), fs::metadata(&reference).unwrap().len());
        assert_eq!(written["bytes_per_token"], 4.0 * 256.0);
        let mut args = vec!["--reference", from];
        args.extend(conditions);
        let live = bench.eval(&["q4_k_m.gguf"], &args);
        let cached = bench.eval(&["q4_k_m.gguf"], &["--reference", &reference]);
        assert_eq!(live["artifacts"], cached["artifacts"], "{protocol}");
        assert_eq!(live["conditions"], cached["conditions"], "{protocol}");
        // A folder and its GGUF read a text alike.
        let q4 = bench.path("q4_k_m.gguf");
        let mut args = vec!["--reference", &q4];
        args.extend(conditions);
        assert_eq!(live["conditions"], bench.eval(&["q4_k_m.gguf"], &args)["conditions"], "{protocol}");
        assert_eq!(live["reference"]["perplexity"], cached["reference"]["perplexity"]);
    }
    let (whole, cut) = (fs::read(bench.path("model.ref")).unwrap(), bench.path("cut.ref"));
    fs::write(&cut, &whole[..whole.len() - 9]).unwrap();
    let said = quant_fails(&["eval", &bench.path("q4_k_m.gguf"), "--reference", &cut]);
    assert!(said.contains(&format!("cut short: {} of {} bytes", whole.len() - 9, whole.len())), "{said}");
}

#[test]
fn without_a_reference_there_is_perplexity_alone() {
    let bench = Bench::new("f32,q2_k");
    let paired = bench.eval(&["f32.gguf", "q2_k.gguf"], &[]);
    let (text, paths) = (bench.path("text.txt"), [bench.path("q2_k.gguf"), bench.path("f32.gguf")]);
    let args = ["eval", &paths[0], &paths[1], "--data", &text, "--context", "96", "--chunks", "6", "--quiet"];
    let alone: Value = serde_json::from_str(&quant_ok(&[&args[..], &["--json"]].concat())).unwrap();
    assert_eq!(alone["reference"], Value::Null);
    assert_eq!(alone["conditions"], paired["conditions"]);
    let all = |report: &Value| report["artifacts"].as_array().unwrap().clone();
    let values: Vec<f64> = all(&alone).iter().map(|a| a["perplexity"]["value"].as_f64().unwrap()).collect();
    assert!(values[0] <= values[1], "the likeliest first");
    for a in all(&alone) {
        let same = all(&paired).into_iter().find(|b| b["path"] == a["path"]).unwrap();
        assert_eq!((&a["perplexity"], &a["tokens"]), (&same["perplexity"], &same["tokens"]));
        assert_eq!(a.get("kld"), None);
    }
    let table = quant_ok(&args);
    assert!(table.contains("perplexity") && !table.contains("KLD"), "{table}");
    let error = quant_fails(&[&args[..], &["--weights"]].concat());
    assert!(error.contains("--reference"), "{error}");
}

#[test]
fn tables_are_for_people_too() {
    let bench = Bench::new("q8_0");
    let (artifact, model, text) =
        (bench.path("q8_0.gguf"), bench.model.path().to_str().unwrap(), bench.path("text.txt"));
    let markdown = bench.path("table.md");
    let args = [
        "eval",
        &artifact,
        "--reference",
        model,
        "--data",
        &text,
        "--context",
        "64",
        "--chunks",
        "3",
        "--markdown",
        &markdown,
    ];
    let out = quant_ok(&args);
    for word in ["reference", "q8_0.gguf", "KLD mean", "noise floor", "llamacpp-512", "tokenizer"] {
        assert!(out.contains(word), "no {word} in\n{out}");
    }
    let table = fs::read_to_string(&markdown).unwrap();
    let columns: Vec<usize> = table.lines().filter(|l| l.starts_with('|')).map(|l| l.matches('|').count()).collect();
    assert!(columns.len() == 4 && columns.iter().all(|n| *n == columns[0]), "{table}");
}

#[test]
fn what_cannot_be_compared_is_refused() {
    let bench = Bench::new("q4_0");
    let (artifact, model, text) =
        (bench.path("q4_0.gguf"), bench.model.path().to_str().unwrap(), bench.path("text.txt"));
    let fails = |args: &[&str], words: &[&str]| {
        let mut all = vec!["eval"];
        all.extend(args);
        let error = quant_fails(&all);
        words.iter().for_each(|word| assert!(error.contains(word), "no {word} in\n{error}"));
    };
    let short = bench.path("short.txt");
    fs::write(&short, "the heron").unwrap();
    fails(&[&artifact, "--reference", model, "--data", &short], &["8 tokens", "512"]);
    fs::write(&short, "").unwrap();
    fails(&[&artifact, "--reference", model, "--data", &short], &["short.txt"]);
    fails(&[&artifact, "--reference", model, "--data", &text, "--context", "600"], &["88 more", "--context 512"]);
    let nowhere = bench.path("none.txt");
    fails(&[&artifact, "--reference", model, "--data", &nowhere], &["none.txt"]);

    // Another tokenizer, and the same tokenizer on a larger vocabulary.
    let other = common::model::model(&Shape { layers: 2, ..DENSE });
    let tokenizer = fs::read_to_string(other.file("tokenizer.json")).unwrap();
    other.put("tokenizer.json", tokenizer.replace("\"h e\"", "\"t h\"").replace("\"he\"", "\"th\""));
    let other = other.path().to_str().unwrap();
    fails(&[&artifact, "--reference", other, "--data", &text], &["tokenizer", "q4_0.gguf"]);
    let wide = common::model::model(&Shape { layers: 2, vocab: 416, ..DENSE });
    let wide = wide.path().to_str().unwrap();
    fails(&[&artifact, "--reference", wide, "--data", &text, "--context", "64", "--chunks", "2"], &["tokenizer"]);

    // An artifact that was cut short.
    let bytes = fs::read(&artifact).unwrap();
    let cut = bench.path("cut.gguf");
    fs::write(&cut, &bytes[..bytes.len() - 1000]).unwrap();
    fails(&[&cut, "--reference", model, "--data", &text], &["cut.gguf"]);
}

#[test]
fn a_reference_of_another_size_is_pointed_out() {
    let bench = Bench::new("q8_0");
    let larger = model(&Shape { layers: 5, ..DENSE });
    let said = |reference: &Folder| {
        let (artifact, text) = (bench.path("q8_0.gguf"), bench.path("text.txt"));
        let reference = reference.path().to_str().unwrap();
        let args = ["eval", &artifact, "--reference", reference, "--data", &text, "--context", "64", "--chunks", "2"];
        let out = common::quant(&args);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stderr).into_owned()
    };
    let warned = said(&larger);
    assert!(warned.contains("q8_0.gguf: it has") && warned.contains("was it made from this reference?"), "{warned}");
    assert!(!said(&bench.model).contains("warning"));
}

#[test]
fn a_weight_that_is_not_a_number_is_no_table_row() {
    let bench = Bench::new("f32");
    let path = PathBuf::from(bench.path("f32.gguf"));
    let mut bytes = fs::read(&path).unwrap();
    let n = bytes.len();
    // The last tensor's last weight; every tensor of the file is f32.
    bytes[n - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let (artifact, model, text) =
        (bench.path("f32.gguf"), bench.model.path().to_str().unwrap(), bench.path("text.txt"));
    let error =
        quant_fails(&["eval", &artifact, "--reference", model, "--data", &text, "--context", "64", "--chunks", "2"]);
    assert!(error.contains("not finite") && error.contains("f32.gguf") && error.contains("layer"), "{error}");
}

#[test]
fn damaged_reference_files_are_refused() {
    let bench = Bench::new("q8_0");
    let (artifact, model, text) =
        (bench.path("q8_0.gguf"), bench.model.path().to_str().unwrap(), bench.path("text.txt"));
    let path = bench.path("model.ref");
    quant_ok(&["reference", model, "-o", &path, "--data", &text, "--context", "64", "--chunks", "2", "--quiet"]);
    let honest = fs::read(&path).unwrap();
    let refused = |bytes: &[u8]| {
        fs::write(Path::new(&path), bytes).unwrap();
        quant_fails(&["eval", &artifact, "--reference", &path])
    };
    for bytes in [&honest[..honest.len() - 1], &honest[..100], &honest[..4], b""] {
        assert!(refused(bytes).contains("model.ref"));
    }
    let header = u64::from_le_bytes(honest[..8].try_into().unwrap()) as usize;
    let text = String::from_utf8(honest[8..8 + header].to_vec()).unwrap();
    for (from, to) in [
        ("\\\"version\\\":1", "\\\"version\\\":9"),
        ("head_codec\\\":\\\"f32", "head_codec\\\":\\\"f16"),
        ("head_dims\\\":[384", "head_dims\\\":[999"),
        ("\"hidden\"", "\"hiddex\""),
        ("quant.reference", "quant.reverence"),
    ] {
        let changed = text.replace(from, to);
        assert_ne!(changed, text, "{from}");
        let error = refused(&[&honest[..8], changed.as_bytes(), &honest[8 + header..]].concat());
        assert!(error.contains("model.ref") && error.contains("help"), "{from}: {error}");
    }
    // Nothing is written over an input.
    let before = fs::read(&artifact).unwrap();
    let text = bench.path("text.txt");
    for args in [
        vec!["reference", &artifact, "-o", &artifact, "--data", &text],
        vec!["reference", &artifact, "-o", &text, "--data", &text],
        vec!["eval", &artifact, "--reference", model, "--data", &text, "--markdown", &artifact],
    ] {
        assert!(quant_fails(&args).contains("one of the inputs"), "{args:?}");
    }
    assert!(before == fs::read(&artifact).unwrap());
    // Its own text and weights cannot be had.
    fs::write(Path::new(&path), &honest).unwrap();
    assert!(quant_fails(&["eval", &artifact, "--reference", &path, "--weights"]).contains("--weights"));
    // Its text cannot be exchanged.
    fs::write(Path::new(&path), &honest).unwrap();
    let error = quant_fails(&["eval", &artifact, "--reference", &path, "--chunks", "1"]);
    assert!(error.contains("--chunks"), "{error}");
}

/// By position, window by window, and let go on.
#[test]
fn losses_by_position_and_in_what_is_written() {
    let bench = Bench::new("f32,q2_k");
    let report = bench.eval(&["q2_k.gguf", "f32.gguf"], &["--stress", "3"]);
    let [exact, coarse] = [0, 1].map(|i| &report["artifacts"][i]);
    for artifact in [exact, coarse] {
        let tokens =
            |part: &str| artifact[part].as_array().unwrap().iter().map(|p| p["tokens"].as_u64().unwrap()).sum::<u64>();
        assert_eq!((tokens("positions"), tokens("chunks")), (report["tokens"].as_u64().unwrap(), tokens("positions")));
        let sum: f64 = artifact["chunks"].as_array().unwrap().iter().map(|c| c["kld"].as_f64().unwrap()).sum();
        let mean = sum / report["tokens"].as_f64().unwrap();
        assert!((mean - artifact["kld"]["mean"].as_f64().unwrap()).abs() <= 1e-9 + 1e-6 * mean);
    }
    let stress = |path: &str| {
        let all = report["stress"].as_array().unwrap();
        all.iter().find(|s| s["path"].as_str().unwrap().ends_with(path)).unwrap().clone()
    };
    let (same, other) = (stress("f32.gguf"), stress("q2_k.gguf"));
    assert!(
        same["identical"] == 1.0 && same["first_divergence"].is_null() && same["examples"] == serde_json::json!([])
    );
    assert!(other["identical"].as_f64().unwrap() < 1.0 && other["length_ratio"].as_f64().unwrap() > 0.0, "{other}");
    assert!(!other["examples"][0]["artifact"].as_str().unwrap().is_empty());
    let said = quant_fails(&["eval", &bench.path("q2_k.gguf"), "--stress", "3"]);
    assert!(said.contains("--reference"), "{said}");
}

/// The tokens of long texts that need them: codes that are asked for at their end.
#[test]
fn key_tokens_need_the_long_context() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let probe = concat!(env!("CARGO_MANIFEST_DIR"), "/evals/probe/model");
    let (text, small) = (path("facts.txt"), path("q2_0.gguf"));
    fs::write(&text, quant_ok(&["probe", "--skill", "recall", "--length", "1200", "--count", "7", "--text"])).unwrap();
    quant_ok(&["convert", probe, "--to", "q2_0", "-o", &small, "--quiet"]);
    let all = ["eval", &small, "--reference", probe, "--data", &text, "--protocol", "gptq-2048", "--context", "512"];
    fn with<'a>(all: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
        [all, more].concat()
    }
    let report: Value =
        serde_json::from_str(&quant_ok(&with(&all, &["--short-context", "64", "--json", "--quiet"]))).unwrap();
    let long = &report["artifacts"][0]["long"];
    let key = &long["key"];
    assert!(long["short"] == 64 && key["tokens"].as_u64().unwrap() > 0, "{long}");
    assert!(key["tokens"].as_u64() < long["tokens"].as_u64() && long["tokens"].as_u64() < report["tokens"].as_u64());
    assert!(key["perplexity"]["value"].as_f64().unwrap() > key["reference"].as_f64().unwrap(), "{long}");
    assert!(long["kld_long"]["value"].as_f64().unwrap() > 0.0 && long["kld_ratio"]["low"].is_f64(), "{long}");
    assert!(quant_ok(&with(&all, &["--short-context", "64"])).contains("LongPPL"));
    for short in ["512", "1"] {
        let said = quant_fails(&with(&all, &["--short-context", short]));
        assert!(said.contains("--short-context"), "{said}");
    }
}

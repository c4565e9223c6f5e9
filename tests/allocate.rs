//! Formats chosen by measurement, and what weights are blamed for, through the binary.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{quant_fails, quant_ok};
use quant::container;
use quant::eval::probe::model;
use serde_json::Value;

/// The probe model, statistics of it, and text to judge by.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let bench = Bench { dir: tempfile::tempdir().unwrap() };
        fs::create_dir(bench.file("probe")).unwrap();
        model::write(&bench.file("probe")).unwrap();
        for split in ["calibration", "test"] {
            let text = quant_ok(&["probe", "--split", split, "--count", "6", "--text"]);
            fs::write(bench.file(split), text).unwrap();
        }
        let (probe, text) = (bench.path("probe"), bench.path("calibration"));
        let amount = ["--rows", "12", "--length", "512", "--gram", "--quiet"];
        // Few formats, and so little to try.
        let few = "extends = \"gguf\"\nladder = '^(q2_k|q3_k|q4_k|q6_k)$'\ndefault = \"q2_k\"\n";
        fs::write(bench.file("few.toml"), few).unwrap();
        quant_ok(&[&["calibrate", &probe, "--data", &text, "-o", &bench.path("stats")], &amount[..]].concat());
        bench
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn path(&self, name: &str) -> String {
        self.file(name).to_str().unwrap().to_owned()
    }

    fn args(&self, to: &str, out: &str, goal: [&str; 2]) -> Vec<String> {
        let few = self.path("few.toml");
        let to = if to == "few" { &few } else { to };
        let (probe, stats, text, out) = (self.path("probe"), self.path("stats"), self.path("test"), self.path(out));
        let args = ["convert", &probe, "--to", to, "-o", &out, "--stats", &stats, goal[0], goal[1]];
        let judge = ["--data", &text, "--chunks", "6", "--json", "--quiet"];
        [&args[..], &judge[..]].concat().iter().map(|a| (*a).to_owned()).collect()
    }

    fn made(&self, args: &[String]) -> Value {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        serde_json::from_str::<Value>(&quant_ok(&args)).unwrap()["outputs"][0].clone()
    }
}

fn strs(args: &[String]) -> Vec<&str> {
    args.iter().map(String::as_str).collect()
}

#[test]
fn mixes_keep_their_budget_and_lose_less_than_presets() {
    let bench = Bench::new();
    let measurement = bench.path("m.json");
    let mut args = bench.args("few", "mix.gguf", ["--target-bpw", "3.4"]);
    args.extend(["--measurement".to_owned(), measurement.clone()]);
    let made = bench.made(&args);
    let found = &made["allocation"];
    assert!(made["bpw"].as_f64().unwrap() <= 3.4, "{made}");
    assert_eq!(found["rejected"], false, "{found}");
    let (kld, preset) = (found["kld"].as_f64().unwrap(), found["preset"]["kld"].as_f64().unwrap());
    assert!(kld < 0.85 * preset, "{found}");

    // The recipe says all of it: the same file again.
    let (probe, stats, again) = (bench.path("probe"), bench.path("stats"), bench.path("again.gguf"));
    quant_ok(&["convert", &probe, "--to", &bench.path("mix.toml"), "--stats", &stats, "-o", &again, "--quiet"]);
    let formats = |path: &Path| {
        let file = container::open(path).unwrap();
        file.tensors().iter().map(|t| (t.name.clone(), t.codec.name())).collect::<Vec<_>>()
    };
    assert_eq!(formats(&bench.file("mix.gguf")), formats(&bench.file("again.gguf")));
    assert_eq!(fs::metadata(&again).unwrap().len(), fs::metadata(bench.file("mix.gguf")).unwrap().len());

    // A recipe of one's own is not overwritten, and points in the names of folders are no suffixes.
    let own = fs::read(bench.file("few.toml")).unwrap();
    let said = quant_fails(&strs(&bench.args("few", "few.gguf", ["--target-bpw", "3.4"])));
    assert!(said.contains("few.toml") && fs::read(bench.file("few.toml")).unwrap() == own, "{said}");
    let mut split = args.clone();
    split.extend(["--split-max-size", "1MiB"].map(str::to_owned));
    assert!(quant_fails(&strs(&split)).contains("cannot be used with"));

    // A measurement serves every goal, and no other model.
    let mut smaller = bench.args("few", "small.gguf", ["--target-size", "1700KiB"]);
    smaller.extend(["--measurement".to_owned(), measurement.clone()]);
    bench.made(&smaller);
    assert!(fs::metadata(bench.file("small.gguf")).unwrap().len() <= 1700 << 10);
    let mut other = bench.args("packed", "never", ["--target-bpw", "4"]);
    other.extend(["--measurement".to_owned(), measurement.clone()]);
    assert!(quant_fails(&strs(&other)).contains("not measured with the formats"));
    let text = fs::read_to_string(&measurement).unwrap();
    let hash = serde_json::from_str::<Value>(&text).unwrap()["model_hash"].as_str().unwrap().to_owned();
    fs::write(&measurement, text.replace(&hash, "0123456789abcdef")).unwrap();
    assert!(quant_fails(&strs(&smaller)).contains("another model"));
}

#[test]
fn divergences_are_kept_and_fused_weights_are_alike() {
    let bench = Bench::new();
    let made = bench.made(&bench.args("packed", "packed", ["--max-kld", "0.02"]));
    assert!(made["allocation"]["kld"].as_f64().unwrap() <= 0.02, "{made}");
    let file = container::open(&bench.file("packed")).unwrap();
    let codec = |name: String| file.tensors()[file.find(&name).unwrap()].codec.name();
    for layer in 0..6 {
        let of = |stem: &str| codec(format!("blk.{layer}.{stem}.weight"));
        assert!(of("attn_q") == of("attn_k") && of("attn_q") == of("attn_v") && of("ffn_gate") == of("ffn_up"));
    }
}

/// exllamav2's count of a weight's bits. Source: `conversion/qparams.py` (total_bits).
fn exllamav2_bits(bands: &Value, rows: u64, cols: u64) -> u64 {
    let (mut left, mut bits) = (cols, 32 * cols);
    for (width, share) in bands["bits"].as_array().unwrap().iter().zip(bands["bits_prop"].as_array().unwrap()) {
        let width = width.as_u64().unwrap();
        let group = bands["group_size"][width.to_string()].as_u64().unwrap();
        let groups = ((cols as f64 * share.as_f64().unwrap()).min(left as f64) / group as f64).ceil() as u64;
        let columns = left.min(groups * group);
        left -= columns;
        bits += columns * rows * width + groups * (16 + 32 + 4 * rows);
    }
    bits
}

#[test]
fn exllamav2_reads_our_measurements_and_we_read_its_own() {
    let bench = Bench::new();
    let few = "extends = \"exl2\"\noffers = '^exl2-(8b5g32\\+[34]b10\\+[23]b|[2346]b)-g32$'\n";
    fs::write(bench.file("bands.toml"), few).unwrap();
    let with = |out: &str, goal: [&str; 2], measurement: &str| {
        let mut args = bench.args(&bench.path("bands.toml"), out, goal);
        args.extend(["--measurement".to_owned(), bench.path(measurement)]);
        args
    };
    let ours = bench.made(&with("ours", ["--target-bpw", "4"], "m.json"));
    assert!(ours["allocation"]["predicted_kld"].as_f64().unwrap() > 0.0, "{ours}");
    let file: Value = serde_json::from_str(&fs::read_to_string(bench.file("m.json")).unwrap()).unwrap();
    let halves = file["measurement"].as_object().unwrap();
    assert_eq!(halves.len(), 12, "two halves of six layers");
    for (half, mixes) in halves {
        let mixes = mixes.as_array().unwrap();
        let errors: Vec<f64> = mixes.iter().map(|m| 1.0 - m["accuracy"].as_f64().unwrap()).collect();
        assert!(mixes.len() > 4 && errors.windows(2).all(|e| e[0] > e[1] && e[1] > 0.0), "{half}: {errors:?}");
    }
    let mix = &halves["model.layers.3.mlp"][2];
    let of = |weight: &str, rows, cols| exllamav2_bits(&mix[weight], rows, cols);
    let all = of("gate_proj", 512, 256) + of("up_proj", 512, 256) + of("down_proj", 256, 512);
    assert_eq!(mix["total_bits"].as_u64().unwrap(), all, "{mix}");

    // What exllamav2 would have written: nothing but that.
    let theirs = |change: &dyn Fn(&mut Value)| {
        let mut theirs = serde_json::json!({"measurement": file["measurement"], "last_module_idx": 14});
        change(&mut theirs["measurement"]);
        fs::write(bench.file("theirs.json"), theirs.to_string()).unwrap();
    };
    theirs(&|_| ());
    let made = bench.made(&with("theirs", ["--target-bpw", "4"], "theirs.json"));
    assert!(made["bpw"].as_f64().unwrap() <= 4.0, "{made}");
    let found = &made["allocation"];
    // Nothing was measured again.
    let took = |of: &Value| of["search_seconds"].as_f64().unwrap();
    assert!(found["predicted_kld"].is_null() && took(found) < took(&ours["allocation"]) / 2.0, "{found}");
    let (kld, own) = (found["kld"].as_f64().unwrap(), ours["allocation"]["kld"].as_f64().unwrap());
    assert!(kld < 1.5 * own, "the same errors, in coarser steps: {kld} {own}");
    assert!(fs::read_to_string(bench.file("theirs.toml")).unwrap().contains("a measurement of exllamav2"));

    let fails = |goal: [&str; 2], message: &str| {
        let said = quant_fails(&strs(&with("never", goal, "theirs.json")));
        assert!(said.contains(message), "{message}: {said}");
    };
    fails(["--max-kld", "0.01"], "no divergences");
    theirs(&|m| m["model.layers.2.mlp"][0]["up_proj"]["bits"] = serde_json::json!([7]));
    fails(["--target-bpw", "4"], "bands of [7] bits");
    theirs(&|m| m["model.layers.2.mlp"][0]["total_bits"] = serde_json::json!(1_000_000_000));
    fails(["--target-bpw", "4"], "another model");
    theirs(&|m| m["model.layers.2.mlp"][0]["accuracy"] = Value::Null);
    fails(["--target-bpw", "4"], "model.layers.2.mlp");
    theirs(&|m| drop(m.as_object_mut().unwrap().remove("model.layers.5.self_attn")));
    fails(["--target-bpw", "4"], "not measured");
    assert!(!bench.file("never").exists());
}

#[test]
fn goals_that_cannot_be_reached() {
    let bench = Bench::new();
    for (to, goal, message) in [
        ("few", ["--target-bpw", "1.2"], "is the least"),
        ("few", ["--target-size", "20KiB"], "ask for more"),
        ("few", ["--target-bpw", "nan"], "no number above 0"),
        ("few", ["--max-kld", "-1"], "no number above 0"),
        ("q4_k_m", ["--target-bpw", "4"], "says which format"),
    ] {
        let mut args = bench.args(to, "never.gguf", goal);
        args.extend(["--measurement".to_owned(), bench.path("never.json")]);
        let said = quant_fails(&strs(&args));
        assert!(said.contains(message), "{said}");
    }
    assert!(!bench.file("never.json").exists(), "refused before anything is measured");
    let mut planned = bench.args("few", "never.gguf", ["--target-bpw", "4"]);
    planned[0] = "plan".to_owned();
    let said = quant_fails(&strs(&planned));
    assert!(said.contains("only after it"), "{said}");
    let (probe, text) = (bench.path("probe"), bench.path("test"));
    let said = quant_fails(&["convert", &probe, "--to", "gguf", "--target-bpw", "4", "--data", &text]);
    assert!(said.contains("statistics"), "{said}");
    let said = quant_fails(&["convert", &probe, "--to", "q4_0,gguf"]);
    assert!(said.contains("GGUF chooses among formats"), "{said}");
    let said = quant_fails(&["convert", &probe, "--to", "q4_0", "--data", &text]);
    assert!(said.contains("--target-bpw"), "{said}");
    assert!(!bench.file("never.gguf").exists());
}

#[test]
fn blame_adds_up() {
    let bench = Bench::new();
    let (probe, stats, text) = (bench.path("probe"), bench.path("stats"), bench.path("test"));
    let blame = |artifact: &str| -> Value {
        let args = ["blame", artifact, "--reference", &probe, "--data", &text, "--json", "--quiet"];
        serde_json::from_str(&quant_ok(&args)).unwrap()
    };
    let plain = bench.path("q2_k.gguf");
    quant_ok(&["convert", &probe, "--to", "q2_k", "--exact-llama", "-o", &plain, "--quiet"]);
    let found = blame(&plain);
    let (sum, whole) = (found["sum"].as_f64().unwrap(), found["kld"].as_f64().unwrap());
    assert!(sum > 0.5 * whole && sum < 2.0 * whole, "{sum} {whole}");
    let klds: Vec<f64> = found["weights"].as_array().unwrap().iter().map(|w| w["kld"].as_f64().unwrap()).collect();
    assert_eq!(klds.len(), 43);
    assert!(klds.windows(2).all(|w| w[0] >= w[1]) && klds.iter().all(|k| *k >= 0.0));
    assert_eq!(found["folded"], false);

    // Layer by layer, in a report beside what `eval` said of the same windows.
    let layers = found["artifacts"][0]["blame"].as_array().unwrap();
    let in_layers: f64 = layers.iter().map(|l| l["kld"].as_f64().unwrap()).sum();
    assert!(layers.len() == 6 && in_layers > 0.3 * sum && in_layers < sum, "{in_layers} of {sum}");
    let evaluated = ["eval", &plain, "--reference", &probe, "--data", &text, "--chunks", "4", "--json", "--quiet"];
    fs::write(bench.file("eval.json"), quant_ok(&evaluated)).unwrap();
    fs::write(bench.file("blame.json"), found.to_string()).unwrap();
    let page = bench.path("page.html");
    quant_ok(&["report", &bench.path("eval.json"), &bench.path("blame.json"), "-o", &page]);
    let page = fs::read_to_string(page).unwrap();
    assert!(
        page.contains("kld-layer") && page.matches("<h2").count() > 0 && !page.contains("part-1"),
        "one part, with its layers"
    );

    // Where scales were folded away, halves of layers are what can be told apart.
    let folded = bench.path("awq.gguf");
    quant_ok(&["convert", &probe, "--to", "q2_k", "--stats", &stats, "--method", "awq", "-o", &folded, "--quiet"]);
    let found = blame(&folded);
    assert_eq!(found["folded"], true);
    let (sum, whole) = (found["sum"].as_f64().unwrap(), found["kld"].as_f64().unwrap());
    assert!(sum > 0.5 * whole && sum < 2.0 * whole, "{sum} {whole}");
    let said = quant_fails(&["blame", &probe, "--reference", &probe, "--data", &text]);
    assert!(said.contains("nothing to blame"), "{said}");
}

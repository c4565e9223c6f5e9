//! Hugging Face artifacts, through the binary: written to the byte as planned, read back, transcoded; and ways they can lie.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use common::folder::{Folder, Stored, safetensors};
use common::model::{DENSE, MOE, ODD, Shape, model};
use common::{quant_fails, quant_ok};
use quant::calibrate::stats::Statistics;
use quant::container::{Checkpoint, open};
use quant::engine::ops::{Lent, OnCpu};
use quant::engine::{Engine, Sequence, Site, Tap};
use quant::error::Result;
use quant::recipe;
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn convert(model: &Path, to: &str, out: &Path, more: &[&str]) -> Value {
    let mut args = vec!["convert", text(model), "--to", to, "-o", text(out), "--json", "--quiet"];
    args.extend(more);
    let report: Value = serde_json::from_str(&quant_ok(&args)).unwrap();
    report["outputs"][0].clone()
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// Presets that become folders of packed weights, whatever the model.
fn presets() -> Vec<String> {
    let all = recipe::list().unwrap().into_iter().filter(|p| p.container == "hf").map(|p| p.name.to_lowercase());
    all.filter(|name| !name.starts_with("hf-") && !["mxfp4-gpt-oss", "packed"].contains(&name.as_str())).collect()
}

/// Presets that store how large inputs become.
const MEASURED: [&str; 3] = ["nvfp4", "modelopt-nvfp4", "modelopt-fp8"];

/// Statistics of a model.
fn statistics(model: &Path, out: &Path) -> String {
    let data = out.with_extension("txt");
    let line = |i: usize| format!("the {} heron sees {} fish, and {} of them see it. ", i % 7, i * i % 31, i % 5);
    fs::write(&data, (0..300).map(line).collect::<String>()).unwrap();
    let args = ["--rows", "20", "--length", "64", "--gram", "--quiet"];
    quant_ok(&[&["calibrate", text(model), "--data", text(&data), "-o", text(out)], &args[..]].concat());
    text(out).to_owned()
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn size(folder: &Path) -> u64 {
    names(folder).iter().map(|n| fs::metadata(folder.join(n)).unwrap().len()).sum()
}

/// Every decoded value, by name and plane.
fn values(model: &dyn Checkpoint) -> BTreeMap<(String, usize), Vec<f32>> {
    let mut out = BTreeMap::new();
    for (i, t) in model.tensors().iter().enumerate() {
        for plane in 0..t.planes() {
            let weight = model.read(i, plane).unwrap();
            let mut w = vec![f32::NAN; weight.packed.dims.len()];
            weight.codec.decode(&weight.packed, 0..weight.packed.dims.rows, &mut w);
            w.iter_mut().for_each(|w| *w *= weight.scale);
            out.insert((t.name.clone(), plane), w);
        }
    }
    out
}

#[test]
fn folders_have_the_planned_bytes_and_all_side_files() {
    let dir = tempfile::tempdir().unwrap();
    let presets = presets();
    assert!(presets.len() >= 15, "{presets:?}");
    for (kind, shape) in [("dense", DENSE), ("moe", MOE)] {
        let source = model(&shape);
        source
            .put("generation_config.json", "{}")
            .put("LICENSE", "words")
            .put("pytorch_model.bin", "weights")
            .put(".hidden", "");
        let stats = statistics(source.path(), &dir.path().join(format!("{kind}.stats")));
        for preset in &presets {
            let measured = ["--stats", stats.as_str(), "--method", "imatrix"];
            let more = if MEASURED.contains(&preset.as_str()) { &measured[..] } else { &[] };
            let args = ["plan", text(source.path()), "--to", preset, "--json", "--quiet"];
            let plan: Value = serde_json::from_str(&quant_ok(&[&args[..], more].concat())).unwrap();
            let out = dir.path().join(format!("{kind}-{preset}"));
            let written = convert(source.path(), preset, &out, more);
            assert_eq!(plan["outputs"][0]["bytes"], size(&out), "{kind} {preset}");
            assert_eq!(written["bytes"], size(&out), "{kind} {preset}");
            assert!(written["exact"].is_null());
            let mut expected = vec![
                "LICENSE",
                "config.json",
                "generation_config.json",
                "model.safetensors",
                "tokenizer.json",
                "tokenizer_config.json",
            ];
            if preset.starts_with("gptq") {
                expected.insert(4, "quantize_config.json");
                let config = read_json(&out.join("config.json"));
                assert_eq!(config["quantization_config"], read_json(&out.join("quantize_config.json")));
            }
            if preset.starts_with("modelopt") {
                expected.insert(3, "hf_quant_config.json");
            }
            if preset.starts_with("exl2") {
                (expected[3], expected[4]) = ("output.safetensors", "tokenizer.json");
            }
            assert_eq!(names(&out), expected, "{kind} {preset}");
            let model = open(&out).unwrap_or_else(|e| panic!("{kind} {preset}: {e}"));
            let packed = model.tensors().iter().filter(|t| t.codec.packed()).count();
            let linear = match kind {
                // What its owner leaves as they are.
                "moe" if preset == "nf4" => 2 * 4,
                "moe" => 2 * 7,
                _ => 4 * 7,
            };
            // MLX has the embedding too, and the head unless it is the same; EXL2 a head in any case.
            let more = match preset.split('-').next() {
                Some("mlx") => model.find("output.weight").map_or(1, |_| 2),
                Some("exl2") => 1,
                _ => 0,
            };
            assert_eq!(packed, linear + more, "{kind} {preset}");
        }
    }
}

#[test]
fn the_same_bytes_with_one_thread_and_two_alone_and_together() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&DENSE);
    let alone = dir.path().join("alone");
    convert(source.path(), "awq", &alone, &["--threads", "1"]);
    let together = dir.path().join("together");
    convert(source.path(), "q4_k_m,awq,gptq", &together, &["--threads", "2"]);
    let same = names(&together).into_iter().find(|n| n.ends_with("-awq")).unwrap();
    for file in names(&alone) {
        assert!(fs::read(alone.join(&file)).unwrap() == fs::read(together.join(&same).join(&file)).unwrap(), "{file}");
    }
}

#[test]
fn shards_have_an_index_and_hold_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&MOE);
    let (one, many) = (dir.path().join("one"), dir.path().join("many"));
    convert(source.path(), "w4a16-asym", &one, &[]);
    convert(source.path(), "w4a16-asym", &many, &["--split-max-size", "300KB"]);
    assert!(names(&many).iter().filter(|n| n.ends_with(".safetensors")).count() > 2);
    assert!(names(&many).contains(&"model.safetensors.index.json".to_owned()));
    assert_eq!(values(open(&one).unwrap().as_ref()), values(open(&many).unwrap().as_ref()));
}

#[test]
fn layers_that_do_not_fit_stay_and_are_declared() {
    let dir = tempfile::tempdir().unwrap();
    let mut source = model(&DENSE);
    // No group of 32 or more divides 208.
    for layer in 0..4 {
        for (name, shape) in [("gate_proj", [208, 256]), ("up_proj", [208, 256]), ("down_proj", [256, 208])] {
            let t = source.tensors.get_mut(&format!("model.layers.{layer}.mlp.{name}.weight")).unwrap();
            t.bytes.truncate(208 * 256 * 4);
            t.shape = shape.to_vec();
        }
    }
    source.config["intermediate_size"] = json!(208);
    source.write();
    let down = "model.layers.2.mlp.down_proj";
    let out = |to: &str| dir.path().join(to);
    convert(source.path(), "w4a16", &out("ct"), &[]);
    let ignore = read_json(&out("ct").join("config.json"))["quantization_config"]["ignore"].clone();
    assert!(ignore.as_array().unwrap().contains(&json!(down)), "{ignore}");
    convert(source.path(), "awq", &out("awq"), &[]);
    let skipped = read_json(&out("awq").join("config.json"))["quantization_config"]["modules_to_not_convert"].clone();
    assert!(skipped.as_array().unwrap().contains(&json!(down)), "{skipped}");
    let stays = open(&out("awq")).unwrap();
    assert_eq!(stays.tensors()[stays.find("blk.2.ffn_down.weight").unwrap()].codec.name(), "f16");
    // Of another group size each names its own.
    convert(source.path(), "w4a16", &out("mixed"), &["--set", "ffn_down=pack-8bit-g16-asym"]);
    let groups = read_json(&out("mixed").join("config.json"))["quantization_config"]["config_groups"].clone();
    assert_eq!(groups["group_1"]["weights"]["group_size"], 16);
    assert_eq!(groups["group_1"]["targets"].as_array().unwrap().len(), 4);
    let mixed = open(&out("mixed")).unwrap();
    assert_eq!(mixed.tensors()[mixed.find("blk.2.ffn_down.weight").unwrap()].codec.name(), "pack-8bit-g16-asym");

    let fails = |to: &str, more: &[&str]| {
        let mut args = vec!["convert", text(source.path()), "--to", to, "-o", text(dir.path()), "--quiet"];
        args.extend(more);
        quant_fails(&args)
    };
    assert!(fails("gptq", &["--set", "ffn_down=gptq-4bit-g16"]).contains("one format for all"));
    assert!(fails("w4a16", &["--set", "attn_q=keep"]).contains("runtimes fuse them"));
    assert!(fails("w4a16", &["--set", "attn_q=q4_0"]).contains("cannot hold"));
    let odd = model(&ODD);
    let smaller = out("odd");
    convert(odd.path(), "w4a16", &smaller, &[]);
    let codecs = open(&smaller).unwrap();
    assert_eq!(codecs.tensors()[codecs.find("blk.2.ffn_down.weight").unwrap()].codec.name(), "pack-4bit-g32-sym");
    let args = ["convert", text(odd.path()), "--to", "gptq", "-o", text(dir.path()), "--quiet"];
    assert!(quant_fails(&args).contains("nothing would be quantized"));
}

#[test]
fn quantized_weights_keep_their_values_where_formats_agree() {
    let dir = tempfile::tempdir().unwrap();
    for (name, shape) in [("dense", DENSE), ("moe", MOE)] {
        let source = model(&shape);
        let made = |to: &str| {
            let out = dir.path().join(format!("{name}-{to}"));
            if !out.exists() {
                convert(source.path(), to, &out, &[]);
            }
            out
        };
        for (from, to) in [
            ("gptq", "w4a16"),
            ("w4a16", "gptq"),
            ("gptq-g32", "q4_0"),
            ("gptq", "q4_0"),
            ("awq", "w4a16-asym"),
            ("awq", "gptq-asym"),
            ("gptq-asym", "awq"),
            ("w4a16-asym", "awq"),
            ("gptq-8bit", "q8_0"),
            ("awq", "q8_0"),
            ("w8a16", "w8a8"),
            ("w4a16-g32", "q4_0"),
            ("gptq", "gptq"),
            ("gptq", "mlx-4bit"),
            ("gptq-8bit", "mlx-8bit"),
            ("w4a16-g32", "mlx-4bit-g32"),
            ("awq", "mlx-5bit"),
            ("w4a16-asym", "mlx-8bit"),
            ("mlx-4bit", "mlx-4bit-g32"),
            ("mxfp4", "mlx-mxfp4"),
            ("mxfp4", "mxfp4_moe"),
            ("mxfp4", "mxfp8"),
            ("mxfp8", "mlx-mxfp8"),
            ("fp8-tensor", "fp8-tensor"),
            ("nf4", "nf4"),
        ] {
            let source = made(from);
            let is_file = to.starts_with('q') || to == "mxfp4_moe";
            let out = dir.path().join(format!("{name}-{from}-{to}{}", if is_file { ".gguf" } else { "" }));
            // Weights that were not packed would be quantized by a GGUF preset.
            let keep: &[&str] =
                if is_file { &["--set", "output=f16", "--set", "token_embd=f16", "--set", "pure=true"] } else { &[] };
            let report = convert(&source, to, &out, keep);
            assert_eq!((&report["exact"], &report["requantized"]), (&json!(true), &json!(0)), "{name}: {from} to {to}");
            let verify = ["verify", text(&out), "--source", text(&source), "--json", "--quiet"];
            let report: Value = serde_json::from_str(&quant_ok(&verify)).unwrap();
            for weight in report["weights"].as_array().unwrap() {
                let quantized = open(&source).unwrap();
                let packed =
                    quantized.tensors()[quantized.find(weight["name"].as_str().unwrap()).unwrap()].codec.scheme();
                assert!(packed.is_none() || weight["relative"] == 0.0, "{name}: {from} to {to}: {weight}");
            }
        }
    }
}

/// One model in the three dialects of NVFP4, each made from each: the same values, scales of inputs and all.
#[test]
fn dialects_of_nvfp4_say_the_same() {
    let dir = tempfile::tempdir().unwrap();
    for (kind, shape) in [("dense", DENSE), ("moe", MOE)] {
        let source = model(&shape);
        let out = |name: &str| dir.path().join(format!("{kind}-{name}"));
        let stats = statistics(source.path(), &out("stats"));
        let with = ["--stats", stats.as_str(), "--method", "gptq"];
        convert(source.path(), "nvfp4", &out("a"), &with);
        let exact = |from: &str, to: &str, name: &str| {
            let floats = ["--set", "output=f32", "--set", "token_embd=f32"];
            let report = convert(&out(from), to, &out(name), if to == "nvfp4-gguf" { &floats } else { &[] });
            assert_eq!((&report["exact"], &report["requantized"]), (&json!(true), &json!(0)), "{kind}: {from} to {to}");
        };
        exact("a", "modelopt-nvfp4", "b");
        exact("b", "nvfp4", "c");
        exact("a", "nvfp4-gguf", "d.gguf");
        exact("b", "nvfp4-gguf", "e.gguf");
        let [a, b, d, e] = ["a", "b", "d.gguf", "e.gguf"].map(|name| open(&out(name)).unwrap());
        assert_eq!(values(a.as_ref()), values(b.as_ref()));
        assert_eq!(values(d.as_ref()), values(e.as_ref()));
        let bytes = |name: &str| fs::read(out(name).join("model.safetensors")).unwrap();
        assert!(bytes("a") == bytes("c"), "there and back");
        // GGUF has the rows of q and k in another order.
        let (folder, file) = (values(a.as_ref()), values(d.as_ref()));
        for (name, w) in folder.iter().filter(|((name, _), _)| name.contains("ffn_") && name.ends_with("weight")) {
            assert_eq!(w, &file[name], "{name:?}");
        }
        for (i, t) in a.tensors().iter().enumerate().filter(|(_, t)| t.codec.tensor_scale().is_some()) {
            for plane in 0..t.planes() {
                let [one, two, three] = [&a, &b, &d].map(|m| {
                    let weight = m.read(m.find(&t.name).unwrap(), plane).unwrap();
                    (weight.scale, weight.inputs.unwrap())
                });
                assert_eq!(one.0, two.0);
                assert_eq!(one.0, three.0);
                assert!((one.1 / two.1 - 1.0).abs() < 1e-6 && two.1 == three.1, "{} of {i}: {one:?} {two:?}", t.name);
            }
        }
        // Weights that runtimes fuse share their scales.
        let scale = |name: &str| {
            let weight = a.read(a.find(name).unwrap(), 0).unwrap();
            (weight.scale, weight.inputs)
        };
        assert_eq!(scale("blk.0.attn_q.weight"), scale("blk.0.attn_v.weight"));
        let experts = if kind == "moe" { "_exps" } else { "" };
        assert_eq!(scale(&format!("blk.0.ffn_gate{experts}.weight")), scale(&format!("blk.0.ffn_up{experts}.weight")));
    }
}

#[test]
fn inputs_that_nobody_measured_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&DENSE);
    for to in MEASURED {
        let said = quant_fails(&["convert", text(source.path()), "--to", to, "-o", text(dir.path()), "--quiet"]);
        assert!(said.contains("no statistics") && said.contains("--stats STATS"), "{said}");
    }
    assert!(names(dir.path()).is_empty());
}

/// llama.cpp's quantizer knows no scale of the matrix; with one, more is left of the weights.
#[test]
fn scales_of_the_matrix_pay() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&DENSE);
    let errors = |name: &str, more: &[&str]| {
        let out = dir.path().join(name);
        convert(source.path(), "nvfp4-gguf", &out, more);
        let verify = ["verify", text(&out), "--source", text(source.path()), "--json", "--quiet"];
        let report: Value = serde_json::from_str(&quant_ok(&verify)).unwrap();
        let all = report["weights"].as_array().unwrap().clone();
        let of = all.iter().filter(|w| w["codec"] == "nvfp4").map(|w| w["relative"].as_f64().unwrap());
        (of.clone().sum::<f64>(), of.count())
    };
    let (theirs, plain, ours) =
        (errors("a.gguf", &["--exact-llama"]), errors("b.gguf", &["--method", "largest"]), errors("c.gguf", &[]));
    assert_eq!((theirs.1, ours.1), (28, 28));
    assert!(ours.0 < 0.95 * plain.0 && plain.0 <= theirs.0, "{ours:?} {plain:?} {theirs:?}");
}

#[test]
fn rounding_twice_has_to_be_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&DENSE);
    let (awq, gguf) = (dir.path().join("awq"), dir.path().join("x.gguf"));
    convert(source.path(), "awq-g32", &awq, &[]);
    let mlx = dir.path().join("mlx");
    let args = |to: &'static str, more: &[&'static str]| {
        let out = if to.starts_with("mlx") { &mlx } else { &gguf };
        let mut args = vec!["convert", text(&awq), "--to", to, "-o", text(out), "--quiet", "--json"];
        args.extend(more);
        args.into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    let run = |to, more: &[&'static str]| quant_fails(&args(to, more).iter().map(String::as_str).collect::<Vec<_>>());
    // Known from the formats alone, and found in the values.
    assert!(run("q4_k_m", &[]).contains("already quantized: awq-4bit-g32 would become"));
    assert!(run("q4_1", &[]).contains("awq-4bit-g32 cannot become q4_1 without loss"));
    // Zero times scale has more bits than a bias.
    assert!(run("mlx-4bit-g32", &[]).contains("awq-4bit-g32 cannot become mlx-4bit-g32-f16 without loss"));
    assert!(!gguf.exists() && !mlx.exists());
    let anyway = args("q4_1", &["--allow-requantize"]);
    let report: Value =
        serde_json::from_str(&quant_ok(&anyway.iter().map(String::as_str).collect::<Vec<_>>())).unwrap();
    assert_eq!(report["outputs"][0]["exact"], false);
    // Floats hold all values.
    let floats = dir.path().join("floats");
    convert(&awq, "hf-f32", &floats, &[]);
    assert_eq!(values(open(&awq).unwrap().as_ref()), values(open(&floats).unwrap().as_ref()));
    assert!(read_json(&floats.join("config.json")).get("quantization_config").is_none());
    convert(&awq, "f16", &gguf, &[]);
    let back = quant_fails(&["convert", text(&gguf), "--to", "awq", "-o", text(&dir.path().join("no")), "--quiet"]);
    assert!(back.contains("start from the model's Hugging Face folder"), "{back}");
}

#[test]
fn folders_of_others_are_not_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&DENSE);
    let out = dir.path().join("out");
    let before = convert(source.path(), "w4a16", &out, &[])["bytes"].clone();
    // What a killed run leaves: the names of unfinished files, some of which are not written this time.
    let partial = dir.path().join(".out.partial");
    fs::create_dir(&partial).unwrap();
    fs::write(partial.join(".model-00001-of-00009.safetensors.partial"), "").unwrap();
    fs::write(partial.join(".config.json.partial"), "junk that is longer than nothing").unwrap();
    assert_eq!(convert(source.path(), "w4a16", &out, &[])["bytes"], before);
    assert_eq!(names(dir.path()), ["out"]);
    fs::write(out.join("notes.txt"), "mine").unwrap();
    let args = ["convert", text(source.path()), "--to", "w4a16", "-o", text(&out), "--quiet"];
    assert!(quant_fails(&args).contains("holds other files, such as notes.txt"));
    assert_eq!(fs::read(out.join("notes.txt")).unwrap(), b"mine");
    let args = ["convert", text(source.path()), "--to", "w4a16", "-o", text(source.path()), "--quiet"];
    assert!(quant_fails(&args).contains("the output is one of the inputs"));
    // An original is not an artifact that is made again; what was made of it unquantized is.
    let other = model(&Shape { layers: 1, ..DENSE });
    let args = ["convert", text(source.path()), "--to", "w4a16", "-o", text(other.path()), "--quiet"];
    assert!(quant_fails(&args).contains("holds a model that is not quantized"));
    assert!(open(other.path()).is_ok());
    let plain = dir.path().join("plain");
    (0..2).for_each(|_| drop(convert(source.path(), "hf-f16", &plain, &[])));
    assert!(open(source.path()).is_ok());
}

// ---- ways an artifact can lie

struct Lie {
    folder: PathBuf,
    file: PathBuf,
    tensors: BTreeMap<String, Stored>,
    config: Value,
    _dir: tempfile::TempDir,
}

/// An artifact, to be changed.
fn artifact(to: &str) -> Lie {
    artifact_of(&DENSE, to)
}

fn artifact_of(shape: &Shape, to: &str) -> Lie {
    let dir = tempfile::tempdir().unwrap();
    let source = model(shape);
    let folder = dir.path().join("a");
    convert(source.path(), to, &folder, &[]);
    let file = folder.join(names(&folder).into_iter().find(|n| n.ends_with(".safetensors")).unwrap());
    let bytes = fs::read(&file).unwrap();
    let read = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let tensors = read.tensors().into_iter().map(|(name, t)| {
        let dtype: &'static str = Box::leak(t.dtype().to_string().into_boxed_str());
        (name, Stored { dtype, shape: t.shape().to_vec(), bytes: t.data().to_vec() })
    });
    let config = read_json(&folder.join("config.json"));
    Lie { tensors: tensors.collect(), folder, file, config, _dir: dir }
}

impl Lie {
    fn part(&mut self, suffix: &str) -> &mut Stored {
        self.tensors.get_mut(&format!("model.layers.1.mlp.down_proj.{suffix}")).unwrap()
    }

    fn write(&self) {
        fs::write(&self.file, safetensors(self.tensors.iter())).unwrap();
        fs::write(self.folder.join("config.json"), self.config.to_string()).unwrap();
    }

    fn refused(&self, words: &[&str]) {
        self.write();
        let said = quant_fails(&["inspect", text(&self.folder)]);
        assert!(words.iter().all(|w| said.contains(w)), "{said}");
    }
}

const DOWN: &str = "model.layers.1.mlp.down_proj";

#[test]
fn parts_that_are_missing_or_too_many() {
    for (to, parts) in [
        ("gptq", &["qweight", "qzeros", "scales"][..]),
        ("awq", &["qweight", "qzeros", "scales"]),
        ("w4a16", &["weight_packed", "weight_scale", "weight_shape"]),
        ("w8a8", &["weight", "weight_scale"]),
        ("fp8", &["weight", "weight_scale"]),
        ("fp8-tensor", &["weight", "weight_scale"]),
        ("nvfp4a16", &["weight_packed", "weight_scale", "weight_global_scale"]),
        ("mxfp4", &["weight_packed", "weight_scale"]),
        ("mxfp8", &["weight", "weight_scale"]),
        ("nf4", &["weight", "weight.absmax", "weight.quant_map", "weight.quant_state.bitsandbytes__nf4"]),
        ("exl2", &["q_weight", "q_scale", "q_scale_max", "q_groups", "q_invperm"]),
    ] {
        for part in parts {
            let mut lie = artifact(to);
            lie.tensors.remove(&format!("{DOWN}.{part}"));
            lie.refused(&[DOWN]);
        }
    }
    // A plain weight beside its packed self.
    let mut lie = artifact("gptq");
    let plain = lie.tensors["model.norm.weight"].clone();
    lie.tensors.insert(format!("{DOWN}.weight"), plain);
    lie.refused(&[DOWN, "same weight"]);
}

#[test]
fn shapes_and_types_that_disagree() {
    for (to, part, shape) in [
        ("gptq", "qweight", vec![32, 512]),
        ("gptq", "qzeros", vec![8, 16]),
        ("gptq", "scales", vec![256, 4]),
        ("gptq", "g_idx", vec![2, 256]),
        ("awq", "qweight", vec![256, 64]),
        ("awq", "scales", vec![1024]),
        ("w4a16", "weight_packed", vec![128, 128]),
        ("w4a16", "weight_scale", vec![512, 2]),
        ("w4a16-asym", "weight_zero_point", vec![64, 2]),
        ("w8a8", "weight_scale", vec![1, 256]),
        ("fp8", "weight_scale", vec![1, 256]),
        ("fp8-block", "weight_scale", vec![1, 8]),
        ("nvfp4a16", "weight_scale", vec![32, 256]),
        ("mxfp4", "weight_packed", vec![256, 2, 128]),
        ("mxfp8", "weight_scale", vec![512, 8]),
        ("nf4", "weight.absmax", vec![1024, 2]),
    ] {
        let mut lie = artifact(to);
        lie.part(part).shape = shape;
        lie.refused(&[DOWN]);
    }
    let mut lie = artifact("gptq");
    lie.part("scales").dtype = "I16";
    lie.refused(&[DOWN, "elements of type I16"]);
    let mut lie = artifact("w4a16");
    lie.part("weight_shape").bytes[..8].copy_from_slice(&i64::MAX.to_le_bytes());
    lie.refused(&[DOWN, "weight_shape says"]);
    let mut lie = artifact("w4a16");
    lie.part("weight_shape").bytes[8..].copy_from_slice(&(-1i64).to_le_bytes());
    lie.refused(&[DOWN, "two sizes"]);
}

#[test]
fn configurations_that_do_not_fit() {
    let mut lie = artifact("gptq");
    lie.config["quantization_config"]["bits"] = json!(8);
    lie.refused(&["mlp.down_proj", "4 bits", "config.json says"]);
    let mut lie = artifact("w4a16");
    lie.config["quantization_config"]["config_groups"]["group_0"]["weights"]["num_bits"] = json!(8);
    lie.refused(&["mlp.down_proj", "words a row"]);
    let mut lie = artifact("w3a16");
    // 10 codes a word, as before version 0.17.
    let packed = lie.part("weight_packed");
    packed.shape = vec![256, 52];
    packed.bytes.resize(256 * 52 * 4, 0);
    lie.refused(&[DOWN, "before 0.17"]);
    let mut lie = artifact("gptq");
    lie.config.as_object_mut().unwrap().remove("quantization_config");
    lie.write();
    assert!(open(&lie.folder).is_ok(), "quantize_config.json says the same");
    fs::remove_file(lie.folder.join("quantize_config.json")).unwrap();
    lie.refused(&["qweight", "does not say how"]);
    // Groups too: a loader that believes the configuration reads other scales.
    for to in ["gptq-g32", "awq-g32", "w4a16"] {
        let mut lie = artifact(to);
        let config = &mut lie.config["quantization_config"];
        let group = match to {
            "w4a16" => config["config_groups"]
                .as_object_mut()
                .unwrap()
                .values_mut()
                .next()
                .unwrap()
                .get_mut("weights")
                .unwrap(),
            _ => config,
        };
        group["group_size"] = json!(16);
        lie.refused(&["scales are of", "config.json says 16"]);
    }
}

const STATE: &str = "weight.quant_state.bitsandbytes__nf4";

#[test]
fn states_of_bitsandbytes_must_be_those_of_the_parts() {
    for (from, to, words) in [
        (r#""nf4""#, r#""fp4""#, &["quant_type fp4"][..]),
        (r#""bfloat16""#, r#""int8""#, &["decoded to int8"]),
        ("64, ", "128, ", &["blocks of 128 weights, not of 64"]),
        ("[256, 512]", "[256, 500]", &["rows of 500, so that blocks of 64 span two"]),
        ("[256, 512]", "[256, 576]", &["[65536, 1] of U8 instead of [73728, 1]"]),
        ("[256, 512]", "[131072]", &["not that of a matrix"]),
        ("[256, 512]", "[-256, 512]", &["not that of a matrix"]),
        ("[256, 512]", "[4611686018427387904, 64]", &["overflow"]),
        ("}", "", &["not valid JSON"]),
        ("}", r#", "nested_offset": "x"}"#, &["are not numbers"]),
        ("}", r#", "nested_offset": 0.5, "nested_blocksize": 0}"#, &["are not numbers"]),
        ("}", r#", "nested_offset": 0.5, "nested_blocksize": 256}"#, &["[2048] of F32 instead of [2048] of U8"]),
    ] {
        let mut lie = artifact("nf4");
        let state = lie.part(STATE);
        let text = String::from_utf8(state.bytes.clone()).unwrap();
        assert!(text.contains(from), "{text}");
        state.bytes = text.replace(from, to).into_bytes();
        state.shape = vec![state.bytes.len()];
        lie.refused(&[&[DOWN], words].concat());
    }
    let mut lie = artifact("nf4");
    lie.part("weight.quant_map").bytes[3] ^= 1;
    lie.refused(&[DOWN, "not that of nf4"]);
    let mut lie = artifact("nf4");
    lie.tensors.remove(&format!("{DOWN}.weight")).unwrap();
    lie.refused(&[DOWN, "codes are missing"]);
}

/// Scales that are quantized themselves, by bitsandbytes' `bnb_4bit_use_double_quant`.
#[test]
fn nested_scales_are_read() {
    let mut lie = artifact("nf4");
    let before = values(open(&lie.folder).unwrap().as_ref());
    let key = ("blk.1.ffn_down.weight".to_owned(), 0);
    let bytes = |values: &[f32]| -> Vec<u8> { values.iter().flat_map(|x| x.to_le_bytes()).collect() };
    let (scales, offset): (Vec<f32>, f32) = ((1..9).map(|n| n as f32 / 8.0).collect(), 0.25);
    let table: Vec<f32> = (0..256).map(|n| n as f32 / 255.0).collect();
    let absmax = lie.part("weight.absmax");
    let old: Vec<f32> = absmax.bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let codes: Vec<u8> = (0..old.len()).map(|n| (n * 7 % 256) as u8).collect();
    let new: Vec<f32> =
        codes.iter().enumerate().map(|(n, c)| table[usize::from(*c)] * scales[n / 256] + offset).collect();
    *absmax = Stored { dtype: "U8", shape: vec![codes.len()], bytes: codes };
    let nested = Stored { dtype: "F32", shape: vec![8], bytes: bytes(&scales) };
    lie.tensors.insert(format!("{DOWN}.weight.nested_absmax"), nested);
    let nested = Stored { dtype: "F32", shape: vec![256], bytes: bytes(&table) };
    lie.tensors.insert(format!("{DOWN}.weight.nested_quant_map"), nested);
    let state = lie.part(STATE);
    state.bytes.pop();
    state.bytes.extend(br#", "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.25}"#);
    state.shape = vec![state.bytes.len()];
    lie.write();
    let after = values(open(&lie.folder).unwrap().as_ref());
    for (n, (now, was)) in after[&key].iter().zip(&before[&key]).enumerate() {
        let level = was / old[n / 64];
        assert!((now - level * new[n / 64]).abs() < 1e-6, "weight {n}: {now}, was {was}");
    }
    lie.tensors.remove(&format!("{DOWN}.weight.nested_absmax"));
    lie.refused(&[DOWN, "nested_absmax is missing"]);
}

#[test]
fn mlx_parts_must_fit_together() {
    let refused = |words: &[&str], change: &dyn Fn(&mut Lie)| {
        let mut lie = artifact("mlx-4bit");
        change(&mut lie);
        lie.refused(words);
    };
    for part in ["biases", "scales"] {
        let name = format!("{DOWN}.{part}");
        refused(&[DOWN, &format!("{part} is missing")], &|lie| drop(lie.tensors.remove(&name)));
        refused(&[DOWN, "[512, 4] of BF16 instead of [256, 8] of BF16"], &|lie| lie.part(part).shape = vec![512, 4]);
    }
    refused(&[DOWN, "[256, 8] of F16 instead of"], &|lie| lie.part("biases").dtype = "F16");
    refused(&[DOWN, "with scales of I16"], &|lie| lie.part("scales").dtype = "I16");
    refused(&[DOWN, "instead of [256, 64] of U32"], &|lie| lie.part("weight").dtype = "F32");
    refused(&[DOWN, "codes are missing"], &|lie| drop(lie.tensors.remove(&format!("{DOWN}.weight"))));
    refused(&[DOWN, "columns in multiples of 64, this weight has 504"], &|lie| {
        lie.part("weight").shape = vec![256, 63];
        lie.part("weight").bytes.truncate(256 * 63 * 4);
    });
    refused(&[DOWN, "shape [256, 0] holds no weights"], &|lie| {
        ["weight", "scales", "biases"].iter().for_each(|part| {
            lie.part(part).shape = vec![256, 0];
            lie.part(part).bytes.clear();
        });
    });
    refused(&[DOWN, "1 matrices, config.json says 0 experts"], &|lie| {
        ["weight", "scales", "biases"].iter().for_each(|part| lie.part(part).shape.insert(0, 1));
    });
    let setting = |key: &str, value: Value| {
        let key = key.to_owned();
        move |lie: &mut Lie| lie.config["quantization"][&key] = value.clone()
    };
    refused(&["lm_head", "instead of [384, 2]"], &setting("bits", json!(8)));
    refused(&["lm_head", "7 bits in groups of 64"], &|lie| {
        lie.config["quantization"]["bits"] = json!(7);
        for part in lie.tensors.values_mut().filter(|t| t.dtype == "U32") {
            part.shape[1] = part.shape[1] / 7 * 7;
            part.bytes.truncate(part.shape[0] * part.shape[1] * 4);
        }
    });
    refused(&["lm_head", "32 words a row for codes of 7 bits"], &setting("bits", json!(7)));
    refused(&[DOWN, "says that it is not packed"], &setting(DOWN, json!(false)));
    refused(&[DOWN, "instead of [256, 16]"], &setting(DOWN, json!({ "bits": 4, "group_size": 32 })));
    refused(&["bits is 0"], &setting("bits", json!(0)));
    refused(&["mlx, mode mxfp9"], &setting("mode", json!("mxfp9")));
    refused(&["lm_head", "4 bits in groups of 64 with scales of BF16"], &setting("mode", json!("mxfp4")));
    refused(&["lm_head.weight", "does not say how it is packed"], &|lie| {
        lie.config.as_object_mut().unwrap().retain(|key, _| !key.starts_with("quantization"));
    });

    let stack = "model.layers.1.block_sparse_moe.switch_mlp.down_proj";
    let mut lie = artifact_of(&MOE, "mlx-4bit");
    for part in ["weight", "scales", "biases"] {
        let part = lie.tensors.get_mut(&format!("{stack}.{part}")).unwrap();
        assert_eq!((part.shape.len(), part.shape[0]), (3, 4));
        part.shape[0] = 2;
        part.bytes.truncate(part.bytes.len() / 2);
    }
    lie.refused(&[stack, "2 matrices, config.json says 4 experts"]);
}

#[test]
fn mlx_folders_say_what_each_module_is() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&ODD);
    let out = dir.path().join("out");
    convert(source.path(), "mlx-mixed-4-6", &out, &["--set", "attn_k=keep"]);
    let config = read_json(&out.join("config.json"));
    assert_eq!(config["quantization"], config["quantization_config"]);
    // No group of 64 divides 96 or 160; a tied head has its bits.
    let setting = |bits: u32| json!({ "group_size": 32, "bits": bits, "mode": "affine" });
    let of = |module: &str| config["quantization"][module].clone();
    assert_eq!([of("bits"), of("group_size"), of("mode")], [json!(4), json!(32), json!("affine")]);
    assert_eq!([of("model.embed_tokens"), of("model.layers.3.mlp.down_proj")], [setting(6), setting(6)]);
    let bytes = fs::read(out.join("model.safetensors")).unwrap();
    let (_, header) = ::safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(header.metadata().as_ref().unwrap()["format"], "mlx");
    let read = open(&out).unwrap();
    let codec = |name: &str| read.tensors()[read.find(name).unwrap()].codec.name();
    assert_eq!(codec("token_embd.weight"), "mlx-6bit-g32");
    assert_eq!((codec("blk.1.attn_q.weight"), codec("blk.1.attn_k.weight")), ("mlx-4bit-g32", "f32"));
    let args = ["convert", text(source.path()), "--to", "mlx-4bit", "--set", "attn_q=pack-4bit-g32-sym", "-o"];
    let said = quant_fails(&[&args[..], &[text(&dir.path().join("no")), "--quiet"]].concat());
    assert!(said.contains("cannot share a folder"), "{said}");
}

#[test]
fn scales_of_a_matrix_that_cannot_be() {
    for value in [0.0, -1.0, f32::NAN, f32::INFINITY, 1e-45] {
        let mut lie = artifact("nvfp4a16");
        lie.part("weight_global_scale").bytes = value.to_le_bytes().to_vec();
        lie.refused(&[DOWN, "weight_global_scale", "one positive number"]);
    }
    let mut lie = artifact("fp8-tensor");
    *lie.part("weight_scale") = Stored { dtype: "I32", shape: vec![1], bytes: vec![0; 4] };
    lie.refused(&[DOWN, "weight_scale", "of I32"]);
}

#[test]
fn columns_and_zeros_that_loaders_disagree_on() {
    let set = |part: &mut Stored, n: usize, word: u32| part.bytes[n * 4..][..4].copy_from_slice(&word.to_le_bytes());
    let mut lie = artifact("gptq");
    set(lie.part("g_idx"), 7, 4);
    lie.refused(&[DOWN, "g_idx", "group 4, there are 4"]);
    set(lie.part("g_idx"), 7, u32::MAX);
    lie.refused(&[DOWN, "g_idx", "group -1"]);
    set(lie.part("g_idx"), 7, 1);
    lie.refused(&[DOWN, "g_idx", "desc_act"]);
    lie.config["quantization_config"]["desc_act"] = json!(true);
    lie.write();
    let permuted = open(&lie.folder).unwrap();
    let other = values(permuted.as_ref());
    // Without it, or blank, columns are in order.
    let whole = artifact("gptq");
    let expected = values(open(&whole.folder).unwrap().as_ref());
    let name = ("blk.1.ffn_down.weight".to_owned(), 0);
    let differing = other[&name].iter().zip(&expected[&name]).enumerate().filter(|(_, (a, b))| a != b);
    assert!(differing.clone().count() > 100 && differing.map(|(i, _)| i % 512).all(|column| column == 7));
    // It cannot go on as codes: groups must be runs of columns there.
    let said = quant_fails(&[
        "convert",
        text(&lie.folder),
        "--to",
        "w4a16",
        "-o",
        text(&lie.folder.with_extension("b")),
        "--quiet",
    ]);
    assert!(said.contains("without loss"), "{said}");
    let mut lie = artifact("gptq");
    lie.part("g_idx").bytes.fill(0);
    lie.write();
    assert_eq!(values(open(&lie.folder).unwrap().as_ref()), expected);
    let said = common::quant(&["verify", text(&lie.folder), "--json", "--quiet"]);
    let said = String::from_utf8(said.stdout).unwrap();
    assert!(said.contains(DOWN) && said.contains("into group 0"), "{said}");
    lie.tensors.remove(&format!("{DOWN}.g_idx"));
    lie.write();
    assert_eq!(values(open(&lie.folder).unwrap().as_ref()), expected);

    let mut lie = artifact("gptq");
    set(lie.part("qzeros"), 3, 0x7777_f777);
    lie.refused(&[DOWN, "qzeros", "zero of 0"]);
}

#[test]
fn scales_that_are_no_numbers_are_found() {
    for (to, part, nan) in [
        ("gptq", "scales", [0x00, 0x7e]),
        ("w4a16", "weight_scale", [0xc0, 0x7f]),
        ("awq", "scales", [0, 0x7c]),
        ("mlx-4bit", "biases", [0xc0, 0x7f]),
    ] {
        let mut lie = artifact(to);
        lie.part(part).bytes[..2].copy_from_slice(&nan);
        lie.write();
        let out = common::quant(&["verify", text(&lie.folder), "--json", "--quiet"]);
        let report: Value = serde_json::from_slice(&out.stdout).unwrap();
        let finite = report["checks"].as_array().unwrap().iter().find(|c| c["name"] == "finite").unwrap().clone();
        assert_eq!(finite["status"], "failed", "{to}: {finite}");
        assert!(finite["detail"].as_str().unwrap().contains("blk.1.ffn_down"), "{finite}");
        let said = quant_fails(&[
            "convert",
            text(&lie.folder),
            "--to",
            "f16",
            "-o",
            text(&lie.folder.with_extension("gguf")),
            "--quiet",
        ]);
        assert!(said.contains("the weight at row 0"), "{said}");
    }
}

#[test]
fn scales_of_activations_are_left_out() {
    let mut lie = artifact("w8a8");
    let scale = Stored { dtype: "F32", shape: vec![1], bytes: vec![0; 4] };
    lie.tensors.insert(format!("{DOWN}.input_scale"), scale.clone());
    lie.tensors.insert("model.layers.0.self_attn.k_scale".to_owned(), scale.clone());
    lie.write();
    let found = open(&lie.folder).unwrap();
    assert_eq!(found.dropped().len(), 2);
    let error = found.cache_scales().unwrap_err().to_string();
    assert!(error.contains("one positive number") && error.contains("self_attn.k_scale"), "{error}");
    // One of a pair stands for both, and layers without any have 1.
    lie.tensors.get_mut("model.layers.0.self_attn.k_scale").unwrap().bytes = 0.25f32.to_le_bytes().to_vec();
    lie.write();
    let scales = open(&lie.folder).unwrap().cache_scales().unwrap().unwrap();
    assert!(scales[0] == [0.25; 2] && scales[1..].iter().all(|s| *s == [1.0; 2]), "{scales:?}");
    lie.tensors.insert("model.layers.0.self_attn.q_proj.scales".to_owned(), scale);
    lie.refused(&["q_proj.scales", "codes are missing"]);
}

#[test]
fn weights_too_large_for_half_precision_are_not_made_infinite() {
    let dir = tempfile::tempdir().unwrap();
    let mut source: Folder = model(&DENSE);
    let norm = source.tensors.get_mut("model.norm.weight").unwrap();
    norm.bytes[20..24].copy_from_slice(&1e5f32.to_le_bytes());
    source.write();
    let out = dir.path().join("out");
    let said = quant_fails(&["convert", text(source.path()), "--to", "awq", "-o", text(&out), "--quiet"]);
    assert!(said.contains("column 5 is 1e5, too large for f16") && said.contains("output_norm"), "{said}");
    assert!(names(dir.path()).is_empty());
    convert(source.path(), "w4a16", &out, &[]);
    // Nor in GGUF files, nor are scales of blocks.
    let weight = source.tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap();
    weight.bytes[28..32].copy_from_slice(&1.5e38f32.to_le_bytes());
    source.write();
    let lost = dir.path().join("lost");
    for to in ["q4_k_m", "q8_0", "gptq", "mlx-4bit"] {
        let said = quant_fails(&["convert", text(source.path()), "--to", to, "-o", text(&lost), "--quiet"]);
        assert!(said.contains("column 7 is 1.5e38, too large for") && said.contains("ffn_up"), "{to}: {said}");
    }
}

// ---- EXL2

#[test]
fn any_average_of_bits_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&DENSE);
    let mut last = 0;
    for bits in ["2.5", "2.75", "3", "3.33", "4.25", "5", "6.5", "7.9"] {
        let out = dir.path().join(bits);
        convert(source.path(), &format!("exl2-{bits}bpw"), &out, &[]);
        let artifact = open(&out).unwrap();
        let packed = artifact.tensors().iter().filter(|t| t.codec.packed());
        let (bytes, weights) = packed.fold((0, 0), |(b, w), t| (b + t.bytes, w + t.len()));
        let (found, asked) = (bytes as f64 * 8.0 / weights as f64, bits.parse::<f64>().unwrap());
        assert!(found <= asked && found > asked - 0.1, "{found} bits instead of {asked}");
        assert!(bytes > last, "{bits} bits take no more than fewer");
        last = bytes;
        let config = read_json(&out.join("config.json"))["quantization_config"].clone();
        assert_eq!((&config["quant_method"], &config["head_bits"]), (&json!("exl2"), &json!(6)));
        assert!((config["bits"].as_f64().unwrap() - found).abs() < 0.006);
    }
    let fails = |to: &str, more: &[&str]| {
        let mut args = vec!["plan", text(source.path()), "--to", to, "--quiet"];
        args.extend(more);
        quant_fails(&args)
    };
    assert!(fails("exl2-1.9bpw", &[]).contains("1.9 bits a weight are too few"));
    assert!(fails("exl2-9bpw", &[]).contains("9 bits a weight are too many"));
    assert!(fails("exl2-4..5bpw", &[]).contains("is no number of bits"));
    assert!(fails("exl2", &["--set", "bpw=-1"]).contains("is no number of bits"));
    assert!(fails("gptq-4bpw", &[]).contains("no ladder"));
    assert!(fails("exl2", &["--set", "attn_q=awq-4bit-g32"]).contains("cannot share a folder"));
    // What is named keeps its format, and its bits are counted.
    let named = &["--set", "ffn_down=exl2-8b-g32", "--set", "output=keep", "--json"];
    let mut args = vec!["plan", text(source.path()), "--to", "exl2-5bpw", "--quiet"];
    args.extend(named);
    let plan: Value = serde_json::from_str(&quant_ok(&args)).unwrap();
    let tensors = plan["outputs"][0]["tensors"].as_array().unwrap();
    let codec = |name: &str| tensors.iter().find(|t| t["name"] == name).unwrap()["codec"].clone();
    assert_eq!(codec("blk.0.ffn_down.weight"), "exl2-8b-g32");
    assert_eq!(codec("output.weight"), "f16");
    // The others are lifted in turn, values before gates.
    assert_eq!(
        (codec("blk.3.attn_v.weight"), codec("blk.3.ffn_up.weight")),
        (json!("exl2-4b-g32"), json!("exl2-3b-g32"))
    );
}

#[test]
fn outputs_are_filled_up_and_cut_off_again() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&Shape { vocab: 397, ..DENSE });
    let out = dir.path().join("out");
    convert(source.path(), "exl2-6bpw", &out, &[]);
    let bytes = fs::read(out.join("output.safetensors")).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(file.tensor("lm_head.q_weight").unwrap().shape()[1], 416);
    assert_eq!(file.tensor("lm_head.q_scale").unwrap().shape()[1], 416 / 8);
    let artifact = open(&out).unwrap();
    assert_eq!(artifact.tensors()[artifact.find("output.weight").unwrap()].shape, [397, 256]);
    quant_ok(&["verify", text(&out), "--source", text(source.path()), "--quiet"]);
}

#[test]
fn shards_of_exl2_have_no_index() {
    let dir = tempfile::tempdir().unwrap();
    let source = model(&MOE);
    let (one, many) = (dir.path().join("one"), dir.path().join("many"));
    convert(source.path(), "exl2", &one, &[]);
    convert(source.path(), "exl2", &many, &["--split-max-size", "300KB"]);
    let files: Vec<_> = names(&many).into_iter().filter(|n| n.contains("safetensors")).collect();
    assert!(files.len() > 2 && files[0].starts_with("output-00001-of-0000"), "{files:?}");
    assert_eq!(values(open(&one).unwrap().as_ref()), values(open(&many).unwrap().as_ref()));
}

#[test]
fn bands_and_columns_that_make_no_sense() {
    let set = |part: &mut Stored, n: usize, value: i16| part.bytes[n * 2..][..2].copy_from_slice(&value.to_le_bytes());
    let mut lie = artifact("exl2");
    lie.config.as_object_mut().unwrap().remove("quantization_config");
    lie.write();
    assert!(open(&lie.folder).is_ok(), "loaders look at the parts");
    set(lie.part("q_groups"), 0, 2);
    lie.refused(&[DOWN, "q_groups", "bits"]);
    set(lie.part("q_groups"), 0, 7);
    lie.refused(&[DOWN, "q_groups", "a width of 7 bits"]);
    let mut lie = artifact("exl2");
    set(lie.part("q_groups"), 3, 1);
    lie.refused(&[DOWN, "q_groups"]);
    let mut lie = artifact("exl2");
    set(lie.part("q_groups"), 3, i16::MIN);
    lie.refused(&[DOWN, "q_groups"]);
    let mut lie = artifact("exl2");
    let first = lie.part("q_invperm").bytes[..4].to_vec();
    lie.part("q_invperm").bytes[4..8].copy_from_slice(&first);
    lie.refused(&[DOWN, "q_invperm", "twice"]);
    lie.part("q_invperm").bytes[4..8].copy_from_slice(&(-5i32).to_le_bytes());
    lie.refused(&[DOWN, "q_invperm", "column -5"]);
    let mut lie = artifact("exl2");
    set(lie.part("q_scale_max"), 1, 0x7e00);
    lie.refused(&[DOWN, "q_scale_max", "group 1 is no finite number"]);
    // Shapes of other sizes.
    for (part, shape) in [("q_invperm", vec![480]), ("q_scale", vec![1, 32])] {
        let mut lie = artifact("exl2");
        let stored = lie.part(part);
        stored.shape = shape;
        stored.bytes.truncate(stored.shape.iter().product::<usize>() * 4);
        lie.refused(&[DOWN]);
    }
    let mut lie = artifact("exl2");
    let stored = lie.part("q_groups");
    stored.bytes.truncate(2);
    stored.shape = vec![1];
    lie.refused(&[DOWN, "q_groups"]);
    let mut lie = artifact("exl2");
    lie.tensors.retain(|name, _| !name.contains(".q_"));
    lie.refused(&["none is"]);
    let mut lie = artifact("exl2");
    lie.config["hidden_size"] = json!(288);
    lie.refused(&["config.json"]);
}

/// Scales of the KV cache are what the engine's own keys and values say, under the names that each kind of loader looks for.
#[test]
fn caches_get_scales_from_statistics() {
    struct Largest(Vec<[f32; 2]>);
    impl Tap<OnCpu> for Largest {
        fn input(&mut self, _: &OnCpu, _: Site, _: &Lent, _: Option<&[f32]>) -> Result<()> {
            Ok(())
        }

        fn cached(&mut self, _: &OnCpu, layer: u32, keys: &Lent, values: &Lent) -> Result<()> {
            assert_eq!(keys.len(), values.len());
            self.0.resize(self.0.len().max(layer as usize + 1), [0.0; 2]);
            for (most, x) in self.0[layer as usize].iter_mut().zip([keys, values]) {
                *most = x.iter().fold(*most, |most, x| most.max(x.abs()));
            }
            Ok(())
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = model(&DENSE);
    let stats = dir.path().join("s.safetensors");
    let data = dir.path().join("one.txt");
    fs::write(&data, "the heron sees fish, and all of them see it, and one more of them does not").unwrap();
    let args = ["--rows", "1", "--length", "48", "--keep-tokens", "--quiet"];
    quant_ok(&[&["calibrate", text(folder.path()), "--data", text(&data), "-o", text(&stats)], &args[..]].concat());
    let kept = Statistics::open(&stats).unwrap();
    let tokens = kept.about().runs[0].kept.as_ref().unwrap()[0].clone();
    let checkpoint = open(folder.path()).unwrap();
    let engine = Engine::new(checkpoint.as_ref(), tokens.len()).unwrap();
    let (mut cache, mut largest) = (engine.transient(tokens.len()).unwrap(), Largest(Vec::new()));
    let mut sequences = [Sequence { tokens: &tokens, cache: &mut cache }];
    engine.forward_on(&OnCpu::default(), &mut sequences, &mut largest).unwrap();
    assert_eq!(largest.0.len(), DENSE.layers);

    for (preset, names, shape) in [
        ("fp8", ["k_scale", "v_scale"], &[1][..]),
        ("w4a16-g32", ["k_scale", "v_scale"], &[1]),
        ("modelopt-fp8", ["k_proj.k_scale", "v_proj.v_scale"], &[]),
    ] {
        let out = dir.path().join(preset);
        convert(folder.path(), preset, &out, &["--set", "kv_cache=fp8", "--method", "rtn", "--stats", text(&stats)]);
        let bytes = fs::read(out.join("model.safetensors")).unwrap();
        let tensors = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for (layer, largest) in largest.0.iter().enumerate() {
            for (name, most) in names.iter().zip(largest) {
                let scale = tensors.tensor(&format!("model.layers.{layer}.self_attn.{name}")).unwrap();
                assert_eq!(scale.shape(), shape);
                let scale = f32::from_le_bytes(scale.data().try_into().unwrap());
                assert!(*most > 0.0 && (scale * 448.0 / most - 1.0).abs() < 1e-6, "{preset} {layer} {name}: {scale}");
            }
        }
        let config = &read_json(&out.join("config.json"))["quantization_config"];
        assert_eq!(config["kv_cache_scheme"]["num_bits"], 8, "{preset}");
        if preset.starts_with("modelopt") {
            assert_eq!(read_json(&out.join("hf_quant_config.json"))["quantization"]["kv_cache_quant_algo"], "FP8");
        }
        let scales = open(&out).unwrap().cache_scales().unwrap().unwrap();
        assert_eq!(scales.len(), DENSE.layers);
        for (scale, most) in scales.as_flattened().iter().zip(largest.0.as_flattened()) {
            assert!((scale * 448.0 / most - 1.0).abs() < 1e-6, "{preset}: {scale}");
        }
    }
    for (preset, more, message) in [
        ("gptq", &["--stats", text(&stats), "--method", "rtn"][..], "no place for scales of the KV cache"),
        ("fp8", &[], "come from statistics"),
    ] {
        let out = dir.path().join("none");
        let args = ["convert", text(folder.path()), "--to", preset, "-o", text(&out), "--set", "kv_cache=fp8"];
        let error = quant_fails(&[&args[..], more].concat());
        assert!(error.contains(message), "{error}");
        assert!(!out.exists());
    }
    let args = ["convert", text(folder.path()), "--to", "fp8", "--set", "kv_cache=int8"];
    assert!(quant_fails(&args).contains("known: plain, fp8"));
}

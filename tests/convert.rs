//! The main job, through the binary: a folder in, GGUF files out, the same bytes however it is run.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use common::folder::{Folder, Stored};
use common::model::{DENSE, MOE, ODD, Shape, model};
use common::{quant_fails, quant_ok};
use quant::calibrate::stats::Statistics;
use quant::container::{Checkpoint, open};
use quant::convert::fold::Folds;
use quant::convert::{self, Plan, Request, fold};
use quant::engine::{Engine, NoTap, Sequence};
use quant::recipe::{self, Recipe};
use serde_json::{Value, json};

fn convert(model: &Path, to: &str, out: &Path, more: &[&str]) -> Value {
    let (model, out) = (model.to_str().unwrap(), out.to_str().unwrap());
    let mut args = vec!["convert", model, "--to", to, "-o", out, "--json", "--quiet"];
    args.extend(more);
    serde_json::from_str(&quant_ok(&args)).unwrap()
}

/// Presets whose every format can be written without an importance matrix.
fn plain_presets(model: &Path) -> Vec<String> {
    let writable = |name: &String| {
        let out = common::quant(&["plan", model.to_str().unwrap(), "--to", name, "--quiet"]);
        out.status.success()
    };
    recipe::list().unwrap().into_iter().map(|p| p.name).filter(writable).collect()
}

#[test]
fn every_preset_converts_every_shape_and_verifies_against_its_source() {
    let dir = tempfile::tempdir().unwrap();
    for (name, shape) in [("dense", DENSE), ("odd", ODD), ("moe", MOE)] {
        let model = model(&shape);
        let presets = plain_presets(model.path());
        assert!(presets.len() >= 20, "{presets:?}");
        let out = dir.path().join(format!("{name}-out"));
        let report = convert(model.path(), &presets.join(","), &out, &[]);
        for output in report["outputs"].as_array().unwrap() {
            let path = output["path"].as_str().unwrap();
            let args = ["verify", path, "--source", model.path().to_str().unwrap(), "--json", "--quiet"];
            let verified: Value = serde_json::from_str(&quant_ok(&args)).unwrap();
            for check in verified["checks"].as_array().unwrap() {
                assert_eq!(check["status"], "passed", "{path}: {check}");
            }
        }
    }
}

/// An importance matrix for every weight of the layers, in llama.cpp's older format.
fn write_importance(model: &Path, path: &Path) {
    let source = open(model).unwrap();
    let layers = source.tensors().iter().filter(|t| t.name.starts_with("blk.") && t.shape.len() > 1);
    let mut count = 0i32;
    let mut entries = Vec::new();
    for t in layers {
        let cols = t.planes() * t.dims().cols;
        count += 1;
        entries.extend((t.name.len() as i32).to_le_bytes());
        entries.extend(t.name.as_bytes());
        entries.extend(1i32.to_le_bytes());
        entries.extend((cols as i32).to_le_bytes());
        entries.extend((0..cols).flat_map(|i| (0.1 + (i * 37 % 101) as f32).to_le_bytes()));
    }
    fs::write(path, [&count.to_le_bytes(), &entries[..]].concat()).unwrap();
}

#[test]
fn with_an_importance_matrix_every_preset_converts_and_verifies() {
    let dir = tempfile::tempdir().unwrap();
    for (name, shape) in [("dense", DENSE), ("moe", MOE)] {
        let model = model(&shape);
        let importance = dir.path().join(format!("{name}.dat"));
        write_importance(model.path(), &importance);
        let plain = plain_presets(model.path());
        let presets = recipe::list().unwrap().into_iter().map(|p| p.name);
        let needy: Vec<_> = presets.filter(|p| !plain.contains(p)).collect();
        assert!(needy.len() >= 8, "{needy:?}");
        let out = dir.path().join(format!("{name}-out"));
        let report = convert(model.path(), &needy.join(","), &out, &["--imatrix", importance.to_str().unwrap()]);
        for output in report["outputs"].as_array().unwrap() {
            quant_ok(&["verify", output["path"].as_str().unwrap(), "--source", model.path().to_str().unwrap()]);
        }
    }
}

#[test]
fn formats_that_need_importance_are_refused_without() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&DENSE);
    let out = dir.path().join("out.gguf");
    let args = |more: &[&str]| -> Vec<String> {
        let args = ["convert", model.path().to_str().unwrap(), "-o", out.to_str().unwrap()];
        args.iter().chain(more).map(|a| a.to_string()).collect()
    };
    for more in [&["--to", "iq2_xs"][..], &["--to", "q8_0", "--set", "token_embd=iq2_xxs"]] {
        let args = args(more);
        let error = quant_fails(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert!(error.contains("needs an importance matrix"), "{error}");
        assert!(!out.exists());
    }
    // As in llama.cpp, embeddings may go without where the encoder can.
    convert(model.path(), "q8_0", &out, &["--set", "token_embd=iq1_m"]);
}

#[test]
fn same_bytes_with_one_and_two_threads_alone_and_together() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&DENSE);
    let alone = dir.path().join("alone.gguf");
    convert(model.path(), "q4_k_m", &alone, &["--threads", "1"]);
    let together = dir.path().join("together");
    convert(model.path(), "q4_k_m,q8_0,q2_k", &together, &["--threads", "2"]);
    let made = fs::read_dir(&together).unwrap().map(|e| e.unwrap().path());
    let same = made.into_iter().find(|p| p.to_str().unwrap().ends_with("q4_k_m.gguf")).unwrap();
    assert!(fs::read(&alone).unwrap() == fs::read(same).unwrap());
}

#[test]
fn quantizing_from_a_gguf_equals_quantizing_from_the_folder() {
    let dir = tempfile::tempdir().unwrap();
    for (name, shape) in [("dense", DENSE), ("odd", ODD), ("moe", MOE)] {
        let model = model(&shape);
        let f32 = dir.path().join(format!("{name}-f32.gguf"));
        convert(model.path(), "f32", &f32, &[]);
        let (direct, via) = (dir.path().join("direct.gguf"), dir.path().join("via.gguf"));
        convert(model.path(), "q4_k_m", &direct, &[]);
        convert(&f32, "q4_k_m", &via, &[]);
        let (direct, via) = (open(&direct).unwrap(), open(&via).unwrap());
        assert_eq!(direct.tensors().len(), via.tensors().len());
        for (i, (a, b)) in direct.tensors().iter().zip(via.tensors()).enumerate() {
            assert_eq!((&a.name, a.codec.name()), (&b.name, b.codec.name()));
            for plane in 0..a.planes() {
                let (a, b) = (direct.read(i, plane).unwrap(), via.read(i, plane).unwrap());
                assert_eq!(a.packed.parts, b.packed.parts);
            }
        }
    }
}

#[test]
fn splits_load_as_one_model_with_the_same_weights() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&DENSE);
    let whole = dir.path().join("whole.gguf");
    convert(model.path(), "q8_0", &whole, &[]);
    let report = convert(model.path(), "q8_0", &dir.path().join("split.gguf"), &["--split-max-size", "1MiB"]);
    let paths = report["outputs"][0]["paths"].as_array().unwrap();
    assert!(paths.len() > 2, "{paths:?}");
    let split = open(Path::new(paths[0].as_str().unwrap())).unwrap();
    let whole = open(&whole).unwrap();
    assert_eq!(whole.tensors().len(), split.tensors().len());
    for (i, t) in whole.tensors().iter().enumerate() {
        let j = split.find(&t.name).unwrap();
        assert_eq!(whole.read(i, 0).unwrap().packed.parts, split.read(j, 0).unwrap().packed.parts);
    }
}

#[test]
fn quantized_input_is_refused_unless_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&DENSE);
    let q8 = dir.path().join("q8.gguf");
    convert(model.path(), "q8_0", &q8, &[]);
    let again = dir.path().join("again.gguf");
    let args = ["convert", q8.to_str().unwrap(), "--to", "q4_0", "-o", again.to_str().unwrap()];
    let error = quant_fails(&args);
    assert!(error.contains("--allow-requantize"), "{error}");
    assert!(!again.exists());
    convert(&q8, "q4_0", &again, &["--allow-requantize"]);
    assert!(again.exists());
}

#[test]
fn a_plan_predicts_the_file_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&ODD);
    let out = dir.path().join("m.gguf");
    let args = ["plan", model.path().to_str().unwrap(), "--to", "q4_k_m", "-o", out.to_str().unwrap(), "--json"];
    let plan: Value = serde_json::from_str(&quant_ok(&args)).unwrap();
    assert!(!out.exists());
    let done = convert(model.path(), "q4_k_m", &out, &[]);
    assert_eq!(plan["outputs"][0]["bytes"].as_u64().unwrap(), fs::metadata(&out).unwrap().len());
    assert_eq!(plan["outputs"][0]["tensors"], done["outputs"][0]["tensors"]);
    let fallbacks = plan["outputs"][0]["tensors"].as_array().unwrap().iter().filter(|t| !t["fallback"].is_null());
    assert!(fallbacks.count() > 10, "96 is no multiple of 256");
}

#[test]
fn a_weight_that_is_not_a_number_is_named_and_nothing_is_left_behind() {
    let dir = tempfile::tempdir().unwrap();
    for bad in [f32::NAN, f32::INFINITY] {
        let shape = Shape { layers: 1, ..DENSE };
        let mut model = model(&shape);
        let weight = model.tensors.get_mut("model.layers.0.mlp.up_proj.weight").unwrap();
        weight.bytes[(3 * 256 + 7) * 4..][..4].copy_from_slice(&bad.to_le_bytes());
        model.write();
        let out = dir.path().join("bad.gguf");
        let error =
            quant_fails(&["convert", model.path().to_str().unwrap(), "--to", "q4_k_m", "-o", out.to_str().unwrap()]);
        assert!(error.contains("row 3, column 7") && error.contains("mlp.up_proj.weight"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}

#[test]
fn output_equal_to_input_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let model = model(&DENSE);
    let f16 = dir.path().join("m.gguf");
    convert(model.path(), "f16", &f16, &[]);
    let before = fs::read(&f16).unwrap();
    let path = f16.to_str().unwrap();
    quant_fails(&["convert", path, "--to", "q8_0", "-o", path]);
    #[cfg(unix)]
    {
        let link = dir.path().join("link.gguf");
        std::os::unix::fs::symlink(&f16, &link).unwrap();
        quant_fails(&["convert", path, "--to", "q8_0", "-o", link.to_str().unwrap()]);
    }
    assert!(before == fs::read(&f16).unwrap());
}

#[test]
fn usage_errors_exit_with_two_and_say_what_is_known() {
    let model = model(&ODD);
    let out = common::quant(&["convert", model.path().to_str().unwrap(), "--to", "q4_k_xxl"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("q4_k_m"));
    assert_eq!(common::quant(&["convert"]).status.code(), Some(2));
}

/// A model with a few channels that are far more active than the rest, wherever a scale can hide: AWQ has much to gain.
fn uneven(shape: &Shape) -> Folder {
    let mut folder = model(shape);
    let writes = |name: &str| ["norm", "v_proj", "up_proj"].iter().any(|w| name.contains(w));
    for (_, t) in folder.tensors.iter_mut().filter(|(name, _)| writes(name)) {
        let cols = t.shape.get(1).copied().unwrap_or(1);
        change(t, |i, w| if (i / cols) % 37 == 5 { 10.0 * w } else { w });
    }
    folder.write();
    folder
}

fn change(t: &mut Stored, value: impl Fn(usize, f32) -> f32) {
    let read = |(i, b): (usize, &[u8])| value(i, f32::from_le_bytes(b.try_into().unwrap())).to_le_bytes();
    t.bytes = t.bytes.chunks_exact(4).enumerate().flat_map(read).collect();
}

/// Small models whose folds differ: their name, what they are, and what AWQ scales in a layer.
fn families() -> Vec<(&'static str, Folder, Vec<&'static str>)> {
    let norm = |name: &str| name.ends_with("norm.weight");
    let plain = Shape { layers: 2, ..DENSE };
    let heads = Shape { kv_heads: 4, ..plain };
    let mut gemma = uneven(&Shape { tied: true, ..plain });
    gemma.config["architectures"] = json!(["GemmaForCausalLM"]);
    gemma.config["hidden_act"] = json!("gelu_pytorch_tanh");
    gemma.config["head_dim"] = json!(64);
    for (_, gain) in gemma.tensors.iter_mut().filter(|(name, _)| norm(name)) {
        change(gain, |_, g| g - 1.0);
    }
    let mut qwen = uneven(&heads);
    qwen.config["architectures"] = json!(["Qwen2ForCausalLM"]);
    for (layer, head) in (0..2).flat_map(|l| ["q", "k", "v"].map(|h| (l, h))) {
        let values: Vec<f32> = (0..256).map(|i| ((i * 37 + layer) % 19) as f32 / 19.0 - 0.5).collect();
        let bias = Stored { dtype: "F32", shape: vec![256], bytes: bytemuck::cast_slice(&values).to_vec() };
        qwen.tensors.insert(format!("model.layers.{layer}.self_attn.{head}_proj.bias"), bias);
    }
    [&gemma, &qwen].map(Folder::write);
    let common = ["attn_norm", "attn_q", "attn_k", "attn_v", "ffn_norm", "ffn_gate", "ffn_up", "ffn_down"];
    let own = |more: &[&'static str]| [&common[..], &["attn_output"], more].concat();
    vec![
        ("llama", uneven(&plain), common.to_vec()),
        ("heads of their own", uneven(&heads), own(&[])),
        ("gemma", gemma, common.to_vec()),
        ("qwen2", qwen, own(&["attn_v.bias"])),
        ("experts", uneven(&MOE), common[..4].to_vec()),
    ]
}

/// A little text through a model, with Gram matrices.
fn statistics(dir: &Path, model: &Folder) -> PathBuf {
    let (text, stats) = (dir.join("text.txt"), dir.join("stats"));
    let line = |i: usize| format!("the {} heron sees {} fish, and {} of them see it. ", i % 7, i * i % 31, i % 5);
    fs::write(&text, (0..100).map(line).collect::<String>()).unwrap();
    let [model, text, out] = [model.path(), &text, &stats].map(|p| p.to_str().unwrap());
    let amount = ["--rows", "8", "--length", "64"];
    quant_ok(&[&["calibrate", model, "--data", text, "--gram", "--quiet", "-o", out], &amount[..]].concat());
    stats
}

fn request<'a>(source: &'a dyn Checkpoint, statistics: Option<&'a Statistics>) -> Request<'a> {
    Request {
        source,
        imatrix: None,
        statistics,
        fold: statistics.is_some(),
        feedback: false,
        search: true,
        exact_llama: false,
        allow_requantize: false,
        split_max_bytes: None,
    }
}

fn logits(checkpoint: &dyn Checkpoint) -> Vec<f32> {
    let tokens: Vec<u32> = (0..60).map(|i| (i * 7919 + 13) % 256).collect();
    let engine = Engine::new(checkpoint, tokens.len()).unwrap();
    let mut cache = engine.transient(tokens.len()).unwrap();
    let hidden = engine.forward(&mut [Sequence { tokens: &tokens, cache: &mut cache }], &mut NoTap).unwrap();
    engine.head().unwrap().logits(&hidden)
}

/// What AWQ's scales do to one side of a product, the other side takes back: in weights that lose nothing, in both containers.
#[test]
fn folding_leaves_the_function_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    for (name, folder, expected) in families() {
        let statistics = Statistics::open(&statistics(dir.path(), &folder)).unwrap();
        let source = open(folder.path()).unwrap();
        let plain = logits(source.as_ref());
        let request = request(source.as_ref(), Some(&statistics));
        for (coarse, fine) in [("awq", "hf-f32"), ("q4_0", "f32")] {
            let path = dir.path().join(format!("{name}-{fine}"));
            let plan = |to: &str| Plan::new(&request, &Recipe::load(to).unwrap(), &path).unwrap();
            let (coarse, fine) = (plan(coarse), plan(fine));
            let names = |p: &Plan| p.tensors.iter().map(|t| t.spec.name.clone()).collect::<Vec<_>>();
            assert_eq!(names(&coarse), names(&fine));
            let folds = fold::search(&request, &coarse).unwrap();
            let found: BTreeSet<&str> = folds.keys().map(|o| stem(&coarse.tensors[*o].spec.name)).collect();
            assert_eq!(found, expected.iter().copied().collect(), "{name}");
            let apart = |folds: Folds| {
                convert::run_folded(&request, std::slice::from_ref(&fine), &|_| Ok(folds.clone()), 2, &|_| {}).unwrap();
                let folded = logits(open(&path).unwrap().as_ref());
                let most = plain.iter().fold(0.0f32, |m, x| m.max(x.abs()));
                plain.iter().zip(&folded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max) / most
            };
            let (whole, half) = (apart(folds.clone()), apart(without_writers(&folds)));
            println!("{name} {}: {whole:e}, {half:e} with one side alone", fine.target);
            assert!(whole <= 1e-5, "{name} {}: {whole:e}", fine.target);
            // The scales are not all 1.
            assert!(half > 1e-2, "{name} {}: {half:e}", fine.target);
        }
    }
}

/// `blk.1.attn_v.weight` is `attn_v`.
fn stem(name: &str) -> &str {
    let stem = name.splitn(3, '.').last().unwrap();
    stem.strip_suffix(".weight").unwrap_or(stem)
}

/// Scales that nothing takes back.
fn without_writers(folds: &Folds) -> Folds {
    let mut folds = folds.clone();
    folds.values_mut().for_each(|f| f.rows = None);
    folds
}

/// Names of what is not meant to stay.
fn hidden(folder: &Path) -> Vec<String> {
    let names = fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap());
    names.filter(|n| n.starts_with('.')).collect()
}

/// All files under a path, in the order of their names, with what they hold.
fn contents(path: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    if path.is_file() {
        return vec![(PathBuf::new(), fs::read(path).unwrap())];
    }
    let mut names: Vec<_> = fs::read_dir(path).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    names.iter().map(|p| (p.file_name().unwrap().into(), fs::read(p).unwrap())).collect()
}

#[test]
fn killed_runs_go_on_and_end_in_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let model = model(&Shape { layers: 2, ..MOE });
    let stats = statistics(dir.path(), &model);
    for (to, more) in [("q4_k_m", "awq+gptq"), ("w4a16", "gptq"), ("q6_k", "rtn")] {
        let (whole, killed) = (file(&format!("{to}-whole")), file(&format!("{to}-killed")));
        let args = |out: &Path| {
            let [model, stats, out] = [model.path(), &stats, out].map(|p| p.to_str().unwrap().to_owned());
            let args = ["convert", &model, "--to", to, "--stats", &stats, "--method", more, "--json", "-o", &out];
            args.map(str::to_owned)
        };
        let start = Instant::now();
        let said = |args: &[String]| -> Value {
            let said = quant_ok(&args.iter().map(String::as_str).collect::<Vec<_>>());
            serde_json::from_str(&said).unwrap()
        };
        let expected = said(&args(&whole));
        let took = start.elapsed();
        let (mut kills, mut resumed) = (0, 0);
        for i in 0..80 {
            let mut child = Command::new(env!("CARGO_BIN_EXE_quant"))
                .args(args(&killed))
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap();
            std::thread::sleep(took.mul_f64(0.1 + 0.9 * f64::from(i * 7 % 10) / 10.0));
            child.kill().unwrap();
            let out = child.wait_with_output().unwrap();
            resumed += usize::from(String::from_utf8_lossy(&out.stderr).contains("weights of a run that was stopped"));
            // A run that is killed while it reports has published its files.
            if killed.exists() {
                assert!(contents(&whole) == contents(&killed), "{to}");
                if killed.is_dir() { fs::remove_dir_all(&killed).unwrap() } else { fs::remove_file(&killed).unwrap() }
            } else {
                kills += 1;
            }
            if kills >= 20 && resumed >= 5 {
                break;
            }
        }
        assert!(kills >= 20 && resumed >= 5, "{to}: {kills} kills, {resumed} resumed");
        let end = said(&args(&killed));
        assert!(contents(&whole) == contents(&killed), "{to}");
        assert_eq!(hidden(dir.path()), [""; 0], "{to}");
        // What was solved by a run that was killed is told as if it had not been.
        for key in ["solved", "carried", "requantized"] {
            assert_eq!(expected["outputs"][0][key], end["outputs"][0][key], "{to}");
        }
    }
}

/// What the journal of a conversion to q8_0 says when all is done: its first line, and a line for each weight.
fn journal_of(model: &Path) -> (String, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let (source, text) = (open(model).unwrap(), Mutex::new(String::new()));
    let request = request(source.as_ref(), None);
    let plan = Plan::new(&request, &Recipe::load("q8_0").unwrap(), &dir.path().join("m.gguf")).unwrap();
    let listen = |_| *text.lock().unwrap() = fs::read_to_string(dir.path().join(".m.gguf.journal")).unwrap();
    convert::run(&request, &[plan], 1, &listen).unwrap();
    assert!(hidden(dir.path()).is_empty());
    let text = text.into_inner().unwrap();
    let mut lines = text.lines().map(|line| format!("{line}\n"));
    (lines.next().unwrap(), lines.collect())
}

#[test]
fn what_a_killed_run_left_is_used_by_the_same_job_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name);
    let (model, other) = (model(&Shape { layers: 1, ..DENSE }), model(&Shape { layers: 1, ..MOE }));
    let (whole, out) = (file("whole.gguf"), file("out.gguf"));
    convert(model.path(), "q8_0", &whole, &[]);
    let expected = fs::read(&whole).unwrap();
    // A run that was killed at its very end: everything is there but the name.
    let (job, done) = journal_of(model.path());
    let left = |bytes: &[u8], lines: &str| {
        fs::write(file(".out.gguf.partial"), bytes).unwrap();
        fs::write(file(".out.gguf.journal"), lines).unwrap();
    };
    let run = |model: &Path, to: &str| {
        let args = ["convert", model.to_str().unwrap(), "--to", to, "-o", out.to_str().unwrap()];
        let said = common::quant(&args);
        assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
        assert_eq!(hidden(dir.path()), [""; 0]);
        String::from_utf8(said.stderr).unwrap().lines().find(|l| l.contains("going on")).map(str::to_owned)
    };
    let (all, lines) = (done.len(), format!("{job}{}", done.concat()));
    left(&expected, &lines);
    let going_on = |n: usize| Some(format!("going on after {n} of {all} weights of a run that was stopped"));
    assert_eq!(run(model.path(), "q8_0"), going_on(all));
    assert!(fs::read(&out).unwrap() == expected);
    // One weight has other bytes by now, another was never done.
    let last = open(&whole).unwrap().tensors().last().unwrap().name.clone();
    let undone = done.iter().find(|line| !line.contains(&last)).unwrap();
    let mut damaged = expected.clone();
    *damaged.last_mut().unwrap() ^= 1;
    left(&damaged, &lines.replace(undone, ""));
    assert_eq!(run(model.path(), "q8_0"), going_on(all - 2));
    assert!(fs::read(&out).unwrap() == expected);
    // A file of another length, another job, another model.
    left(&expected[1..], &lines);
    assert_eq!(run(model.path(), "q8_0"), None);
    assert!(fs::read(&out).unwrap() == expected);
    for (model, to) in [(model.path(), "q4_0"), (other.path(), "q8_0")] {
        left(&expected, &lines);
        assert_eq!(run(model, to), None);
    }
    // The same model, changed since.
    model.write();
    left(&expected, &lines);
    assert_eq!(run(model.path(), "q8_0"), None);
}

//! The main job, through the binary: a folder in, GGUF files out, the same bytes however it is run.

mod common;

use std::fs;
use std::path::Path;

use common::family::{FAMILIES, family};
use common::model::{DENSE, MOE, ODD, Shape, model};
use common::{quant_fails, quant_ok};
use quant::container::open;
use quant::recipe;
use serde_json::Value;

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
        // Three need statistics: how large inputs become, no importance matrix says. One is one family's own layout, two want a goal.
        let others = ["NVFP4", "MODELOPT-NVFP4", "MODELOPT-FP8", "MXFP4-GPT-OSS", "GGUF", "PACKED"];
        let needy: Vec<_> = presets.filter(|p| !plain.contains(p) && !others.contains(&p.as_str())).collect();
        assert!(needy.len() >= 8, "{needy:?}");
        let out = dir.path().join(format!("{name}-out"));
        let report = convert(model.path(), &needy.join(","), &out, &["--imatrix", importance.to_str().unwrap()]);
        for output in report["outputs"].as_array().unwrap() {
            quant_ok(&["verify", output["path"].as_str().unwrap(), "--source", model.path().to_str().unwrap()]);
        }
    }
}

#[test]
fn an_importance_matrix_of_another_model_is_noticed() {
    let (deep, shallow) = (model(&Shape { layers: 3, ..DENSE }), model(&Shape { layers: 2, ..DENSE }));
    let (matrix, out) = (deep.file("m.dat"), deep.file("out.gguf"));
    write_importance(deep.path(), &matrix);
    let with = |matrix: &Path| {
        let args =
            ["convert", shallow.path().to_str().unwrap(), "--to", "q4_0", "-o", out.to_str().unwrap(), "--imatrix"];
        common::quant(&[&args[..], &[matrix.to_str().unwrap()]].concat())
    };
    let done = with(&matrix);
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success() && said.contains("(blk.2.") && said.contains("another model"), "{said}");
    let renamed =
        fs::read(&matrix).unwrap().windows(4).map(|w| if w == b"blk." { b'x' } else { w[0] }).collect::<Vec<_>>();
    fs::write(&matrix, [&renamed[..], &[0; 3]].concat()).unwrap();
    let said = String::from_utf8_lossy(&with(&matrix).stderr).into_owned();
    assert!(said.contains("no entry of this importance matrix"), "{said}");
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
    let folder = dir.path().join("several");
    quant_ok(&["plan", model.path().to_str().unwrap(), "--to", "q4_k_m,q8_0", "-o", folder.to_str().unwrap()]);
    assert!(!folder.exists());
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
fn a_file_of_another_model_is_told_from_its_source() {
    let (model, other) = (model(&DENSE), model(&Shape { vocab: 352, ..DENSE }));
    let out = model.file("out.gguf");
    quant_ok(&["convert", model.path().to_str().unwrap(), "--to", "q8_0", "-o", out.to_str().unwrap(), "--quiet"]);
    let said = common::quant(&["verify", out.to_str().unwrap(), "--source", other.path().to_str().unwrap(), "--json"]);
    assert_eq!(said.status.code(), Some(1), "{}", String::from_utf8_lossy(&said.stderr));
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert!(report.to_string().contains("[384, 256], its source [352, 256]"), "{report}");
}

#[test]
fn what_llama_cpp_cannot_split_needs_no_name_outside_gguf() {
    let model = model(&DENSE);
    let file = model.file("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    tokenizer["pre_tokenizer"] = serde_json::json!({"type": "Sequence", "pretokenizers": [
        {"type": "Split", "pattern": {"Regex": "[aeiou]+|[^aeiou]+"}, "behavior": "Isolated", "invert": false},
        {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]});
    fs::write(&file, tokenizer.to_string()).unwrap();
    let (path, out) = (model.path().to_str().unwrap(), model.file("out"));
    let out = out.to_str().unwrap();
    quant_ok(&["convert", path, "--to", "w4a16", "-o", out, "--quiet"]);
    quant_ok(&["verify", out, "--source", path, "--quiet"]);
    quant_ok(&["generate", out, "--prompt", "hello", "--tokens", "2", "--quiet"]);
    let error = quant_fails(&["convert", path, "--to", "q8_0", "-o", model.file("out.gguf").to_str().unwrap()]);
    assert!(error.contains("--pre"), "{error}");
}

#[test]
fn usage_errors_exit_with_two_and_say_what_is_known() {
    let model = model(&ODD);
    let out = common::quant(&["convert", model.path().to_str().unwrap(), "--to", "q4_k_xxl"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("q4_k_m"));
    assert_eq!(common::quant(&["convert"]).status.code(), Some(2));
}

/// A shared expert's gate is a matrix of one row in a folder, and a vector in GGUF.
#[test]
fn every_family_goes_to_gguf_and_is_found_again() {
    for of in FAMILIES {
        let (folder, dir) = (family(of), tempfile::tempdir().unwrap());
        let out = dir.path().join("m.gguf");
        convert(folder.path(), "q8_0", &out, &[]);
        let [source, out] = [folder.path(), out.as_path()].map(|p| p.to_str().unwrap());
        quant_ok(&["verify", out, "--source", source, "--quiet"]);
    }
}

//! What a checkpoint holds beside its language model, through the binary: said and left out of GGUF files, kept in folders.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::folder::{Folder, bf16};
use common::model::{DENSE, model};
use common::{quant_fails, quant_ok};
use quant::container::open;
use serde_json::{Value, json};

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn convert(model: &Path, to: &str, out: &Path) -> Value {
    let report = quant_ok(&["convert", text(model), "--to", to, "-o", text(out), "--json", "--quiet"]);
    serde_json::from_str::<Value>(&report).unwrap()["outputs"][0].clone()
}

fn stored(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    all.tensors().into_iter().map(|(name, t)| (name, t.data().to_vec())).collect()
}

fn quantization(dir: &Path) -> Value {
    let config: Value = serde_json::from_slice(&std::fs::read(dir.join("config.json")).unwrap()).unwrap();
    config["quantization_config"].clone()
}

/// The two ways in which transformers has called the parts of one model.
const NAMES: [(&str, &str); 2] =
    [("language_model.model.", "language_model.lm_head"), ("model.language_model.", "lm_head")];
const TOWER: [(&str, &[usize]); 4] = [
    ("vision_tower.encoder.layers.0.attention.q_proj.weight", &[32, 32]),
    ("vision_tower.patch_conv.weight", &[32, 3, 2, 2]),
    ("vision_tower.ln_pre.weight", &[32]),
    ("multi_modal_projector.linear_1.weight", &[256, 32]),
];

/// Mistral with eyes.
fn seeing(inner: &str, head: &str) -> Folder {
    let mut folder = model(&DENSE);
    let mut text = folder.config.take();
    text["model_type"] = json!("mistral");
    text.as_object_mut().unwrap().remove("architectures");
    folder.config = json!({ "architectures": ["Mistral3ForConditionalGeneration"], "model_type": "mistral3",
        "text_config": text, "vision_config": { "hidden_size": 32 }, "torch_dtype": "float32" });
    let renamed = |name: String| match name.strip_prefix("model.") {
        Some(rest) => format!("{inner}{rest}"),
        None => name.replace("lm_head", head),
    };
    folder.tensors = std::mem::take(&mut folder.tensors).into_iter().map(|(name, t)| (renamed(name), t)).collect();
    for (i, (name, shape)) in TOWER.into_iter().enumerate() {
        let outer = if inner.starts_with("model.") { "model." } else { "" };
        folder.tensors.insert(format!("{outer}{name}"), bf16(i, shape));
    }
    folder.write();
    folder
}

#[test]
fn files_of_a_language_model_say_what_they_leave_out() {
    let (plain, dir) = (model(&DENSE), tempfile::tempdir().unwrap());
    let alone = dir.path().join("alone.gguf");
    convert(plain.path(), "q8_0", &alone);
    let alone = open(&alone).unwrap();
    for (n, (inner, head)) in NAMES.into_iter().enumerate() {
        let folder = seeing(inner, head);
        let out = dir.path().join(format!("{n}.gguf"));
        let report = convert(folder.path(), "q8_0", &out);
        let bytes: usize = TOWER.iter().map(|(_, shape)| shape.iter().product::<usize>() * 2).sum();
        let left_out = &report["left_out"][0];
        assert_eq!((&left_out["tensors"], &left_out["bytes"]), (&json!(4), &json!(bytes)));
        assert_eq!(left_out["reason"], "not part of the language model");
        assert_eq!(report["beside"], json!([]));
        let seen = open(&out).unwrap();
        assert_eq!(seen.arch(), "mistral3");
        // The same bytes as of the language model by itself.
        for (i, t) in alone.tensors().iter().enumerate() {
            let found = seen.find(&t.name).unwrap();
            assert_eq!(seen.read(found, 0).unwrap().packed.parts, alone.read(i, 0).unwrap().packed.parts, "{}", t.name);
        }
        let said = quant_ok(&["convert", text(folder.path()), "--to", "q8_0", "-o", text(&out)]);
        assert!(said.contains("4 tensors of") && said.contains("left out"), "{said}");
        let said = quant_ok(&["inspect", text(folder.path())]);
        assert_eq!(said.matches("left out").count(), 1, "{said}");
    }
}

#[test]
fn folders_keep_other_towers_as_they_are() {
    let dir = tempfile::tempdir().unwrap();
    for (n, (inner, head)) in NAMES.into_iter().enumerate() {
        let folder = seeing(inner, head);
        for preset in ["w4a16", "gptq", "awq", "fp8", "hf-bf16"] {
            let out = dir.path().join(format!("{n}-{preset}"));
            let report = convert(folder.path(), preset, &out);
            assert_eq!((&report["beside"][0]["tensors"], &report["left_out"]), (&json!(4), &json!([])), "{preset}");
            let found = stored(&out);
            for (name, t) in
                folder.tensors.iter().filter(|(name, _)| name.contains("vision") || name.contains("projector"))
            {
                assert_eq!(found[name], t.bytes, "{preset} {name}");
            }
            // Each weight, packed or not, is called as it was.
            let module = format!("{inner}layers.1.mlp.down_proj.");
            assert!(found.keys().any(|name| name.starts_with(&module)), "{preset}: {:?}", found.keys());
            assert!(found.contains_key(&format!("{head}.weight")), "{preset}");
            quant_ok(&["verify", text(&out), "--source", text(folder.path()), "--quiet"]);
        }
        let ignored = quantization(&dir.path().join(format!("{n}-w4a16")))["ignore"].clone();
        for name in ["re:.*vision_tower.*", "re:.*multi_modal_projector.*"] {
            assert!(ignored.as_array().unwrap().contains(&json!(name)), "{ignored}");
        }
        let outer = if inner.starts_with("model.") { "model." } else { "" };
        let module = format!("{outer}multi_modal_projector.linear_1");
        let plain = quantization(&dir.path().join(format!("{n}-awq")))["modules_to_not_convert"].clone();
        assert!(plain.as_array().unwrap().contains(&json!(module)), "{plain}");
        let rules = quantization(&dir.path().join(format!("{n}-gptq")))["dynamic"].clone();
        let key = format!("-:^{}$", module.replace('.', r"\."));
        assert!(rules.get(&key).is_some(), "{rules}");
        let error = quant_fails(&["plan", text(folder.path()), "--to", "mlx-4bit"]);
        assert!(error.contains("a language model and nothing else"), "{error}");
    }
}

#[test]
fn layers_that_predict_further_tokens_are_kept_or_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut folder = model(&DENSE);
    let behind = ["model.layers.4.self_attn.q_proj.weight", "model.layers.4.enorm.weight", "mtp.fc.weight"];
    folder.tensors.insert(behind[0].to_owned(), bf16(0, &[8, 8]));
    folder.write();
    let error = open(folder.path()).err().unwrap().to_string();
    assert!(error.contains("is beyond the 4 layers"), "{error}");
    for (i, name) in behind.into_iter().enumerate() {
        folder.tensors.insert(name.to_owned(), bf16(i, &[8, 8]));
    }
    folder.config["num_nextn_predict_layers"] = json!(1);
    folder.write();
    let report = convert(folder.path(), "q4_k_m", &dir.path().join("m.gguf"));
    let left_out = &report["left_out"][0];
    assert_eq!((&left_out["tensors"], &left_out["bytes"]), (&json!(3), &json!(3 * 128)));
    assert!(left_out["reason"].as_str().unwrap().contains("MTP"));
    let out = dir.path().join("w4a16");
    let report = convert(folder.path(), "w4a16", &out);
    assert_eq!(report["beside"][0]["tensors"], 3);
    let (found, ignored) = (stored(&out), quantization(&out)["ignore"].clone());
    for name in behind {
        assert_eq!(found[name], folder.tensors[name].bytes, "{name}");
        let module = json!(name.strip_suffix(".weight").unwrap());
        assert!(ignored.as_array().unwrap().contains(&module), "{ignored}");
    }
}

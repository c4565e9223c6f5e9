//! gpt-oss through the binary: experts that lie transposed and in turn, or as MXFP4 blocks, read, written and repacked.

mod common;

use std::collections::BTreeMap;
use std::path::Path;

use common::folder::{Folder, Stored};
use common::model::{DENSE, model};
use common::{quant_fails, quant_ok};
use quant::container::{Checkpoint, open};
use serde_json::{Value, json};

const HIDDEN: usize = 64;
const WIDTH: usize = 32;
const EXPERTS: usize = 3;
const HEADS: usize = 4;
const HEAD: usize = 16;
const VOCAB: usize = 384;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn convert(model: &Path, to: &str, out: &Path) -> Value {
    let report = quant_ok(&["convert", text(model), "--to", to, "-o", text(out), "--json", "--quiet"]);
    serde_json::from_str::<Value>(&report).unwrap()["outputs"][0].clone()
}

/// Numbers below 1 that BF16 holds, or codes of four bits and their scales.
fn stored(seed: usize, dtype: &'static str, shape: &[usize]) -> Stored {
    let n: usize = shape.iter().product();
    let number = |i: usize| ((i + seed) * 7919 + i * i) % 255;
    let bytes = match dtype {
        "U8" if shape.len() == 3 => (0..n).map(|i| 118 + number(i) as u8 % 8).collect(),
        "U8" => (0..n).map(|i| number(i) as u8).collect(),
        _ => (0..n).flat_map(|i| half::bf16::from_f32(number(i) as f32 / 256.0 - 0.5).to_le_bytes()).collect(),
    };
    Stored { dtype, shape: shape.to_vec(), bytes }
}

/// A tiny model of two layers, its experts packed or not.
fn gpt_oss(packed: bool) -> Folder {
    let mut folder = model(&DENSE);
    folder.config = json!({
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "hidden_size": HIDDEN, "intermediate_size": WIDTH,
        "num_hidden_layers": 2, "num_attention_heads": HEADS, "num_key_value_heads": 2, "head_dim": HEAD, "vocab_size": VOCAB,
        "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "max_position_embeddings": 512, "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "sliding_window": 8, "swiglu_limit": 7.0, "tie_word_embeddings": false,
        "torch_dtype": "bfloat16", "bos_token_id": 257, "eos_token_id": 258
    });
    let (q, kv) = (HEADS * HEAD, 2 * HEAD);
    let mut shapes: Vec<(String, Vec<usize>)> = vec![
        ("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]),
        ("model.norm.weight".into(), vec![HIDDEN]),
        ("lm_head.weight".into(), vec![VOCAB, HIDDEN]),
    ];
    for layer in 0..2 {
        let p = format!("model.layers.{layer}");
        for (name, rows, cols) in [("q", q, HIDDEN), ("k", kv, HIDDEN), ("v", kv, HIDDEN), ("o", HIDDEN, q)] {
            shapes.push((format!("{p}.self_attn.{name}_proj.weight"), vec![rows, cols]));
            shapes.push((format!("{p}.self_attn.{name}_proj.bias"), vec![rows]));
        }
        shapes.push((format!("{p}.self_attn.sinks"), vec![HEADS]));
        shapes.push((format!("{p}.input_layernorm.weight"), vec![HIDDEN]));
        shapes.push((format!("{p}.post_attention_layernorm.weight"), vec![HIDDEN]));
        shapes.push((format!("{p}.mlp.router.weight"), vec![EXPERTS, HIDDEN]));
        shapes.push((format!("{p}.mlp.router.bias"), vec![EXPERTS]));
        for (name, rows, cols) in [("gate_up_proj", 2 * WIDTH, HIDDEN), ("down_proj", HIDDEN, WIDTH)] {
            let stack = format!("{p}.mlp.experts.{name}");
            shapes.push((format!("{stack}_bias"), vec![EXPERTS, rows]));
            if packed {
                shapes.push((format!("{stack}_blocks"), vec![EXPERTS, rows, cols / 32, 16]));
                shapes.push((format!("{stack}_scales"), vec![EXPERTS, rows, cols / 32]));
            } else {
                shapes.push((stack, vec![EXPERTS, cols, rows]));
            }
        }
    }
    let dtype = |name: &str| if name.ends_with("_blocks") || name.ends_with("_scales") { "U8" } else { "BF16" };
    let one = |(i, (name, shape)): (usize, (String, Vec<usize>))| {
        let tensor = stored(i, dtype(&name), &shape);
        (name, tensor)
    };
    folder.tensors = shapes.into_iter().enumerate().map(one).collect();
    if packed {
        folder.config["quantization_config"] = json!({ "quant_method": "mxfp4" });
    }
    folder.write();
    folder
}

/// All values of a tensor.
fn values(model: &dyn Checkpoint, name: &str) -> Vec<f32> {
    let i = model.find(name).unwrap_or_else(|| panic!("no {name}"));
    let t = &model.tensors()[i];
    let plane = |plane| {
        let weight = model.read(i, plane).unwrap();
        let mut out = vec![f32::NAN; t.dims().len()];
        weight.codec.decode(&weight.packed, 0..t.dims().rows, &mut out);
        out
    };
    (0..t.planes()).flat_map(plane).collect()
}

fn halves(t: &Stored) -> Vec<f32> {
    t.bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect()
}

/// What OCP says that blocks of four-bit floats mean.
fn decoded(blocks: &Stored, scales: &Stored) -> Vec<f32> {
    const SIZES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let value = |code: u8| if code < 8 { SIZES[usize::from(code)] } else { -SIZES[usize::from(code - 8)] };
    let block = |(block, scale): (&[u8; 16], &u8)| {
        let scale = f32::from(*scale).mul_add(1.0, -127.0).exp2();
        block.iter().flat_map(move |b| [value(b & 15) * scale, value(b >> 4) * scale]).collect::<Vec<_>>()
    };
    blocks.bytes.as_chunks::<16>().0.iter().zip(&scales.bytes).flat_map(block).collect()
}

fn files(dir: &Path) -> BTreeMap<String, (String, Vec<usize>, Vec<u8>)> {
    let bytes = std::fs::read(dir.join("model.safetensors")).unwrap();
    let all = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let one = |(name, t): (String, safetensors::tensor::TensorView<'_>)| {
        (name, (t.dtype().to_string(), t.shape().to_vec(), t.data().to_vec()))
    };
    all.tensors().into_iter().map(one).collect()
}

#[test]
fn transposed_experts_become_rows_and_take_no_turns() {
    let folder = gpt_oss(false);
    let model = open(folder.path()).unwrap();
    assert_eq!(model.arch(), "gpt-oss");
    let fused = halves(&folder.tensors["model.layers.1.mlp.experts.gate_up_proj"]);
    let down = halves(&folder.tensors["model.layers.1.mlp.experts.down_proj"]);
    let bias = halves(&folder.tensors["model.layers.1.mlp.experts.gate_up_proj_bias"]);
    for (name, odd) in [("gate", 0), ("up", 1)] {
        let found = values(model.as_ref(), &format!("blk.1.ffn_{name}_exps.weight"));
        let biases = values(model.as_ref(), &format!("blk.1.ffn_{name}_exps.bias"));
        for (e, row, col) in places(WIDTH, HIDDEN) {
            let expected = fused[(e * HIDDEN + col) * 2 * WIDTH + 2 * row + odd];
            assert_eq!(found[(e * WIDTH + row) * HIDDEN + col], expected, "{name} {e} {row} {col}");
            assert_eq!(biases[e * WIDTH + row], bias[e * 2 * WIDTH + 2 * row + odd]);
        }
    }
    let found = values(model.as_ref(), "blk.1.ffn_down_exps.weight");
    for (e, row, col) in places(HIDDEN, WIDTH) {
        assert_eq!(found[(e * HIDDEN + row) * WIDTH + col], down[(e * WIDTH + col) * HIDDEN + row]);
    }
    let sinks = halves(&folder.tensors["model.layers.0.self_attn.sinks"]);
    assert_eq!(values(model.as_ref(), "blk.0.attn_sinks.weight"), sinks);
}

/// Expert, row and column.
fn places(rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize, usize)> {
    (0..EXPERTS * rows * cols).map(move |i| (i / (rows * cols), i / cols % rows, i % cols))
}

#[test]
fn blocks_are_repacked_without_a_change() {
    let (folder, dir) = (gpt_oss(true), tempfile::tempdir().unwrap());
    let source = open(folder.path()).unwrap();
    let all = &folder.tensors;
    let stack = |name: &str| {
        let part = |part: &str| &all[&format!("model.layers.0.mlp.experts.{name}_{part}")];
        decoded(part("blocks"), part("scales"))
    };
    let (fused, down) = (stack("gate_up_proj"), stack("down_proj"));
    for (to, name) in [("mxfp4_moe", "m.gguf"), ("copy", "c.gguf"), ("mlx-mxfp4", "mlx"), ("mxfp4-gpt-oss", "own")] {
        let out = dir.path().join(name);
        let report = convert(folder.path(), to, &out);
        assert_eq!((&report["exact"], &report["requantized"]), (&json!(true), &json!(0)), "{to}");
        let model = open(&out).unwrap();
        for (name, odd) in [("gate", 0), ("up", 1)] {
            let found = values(model.as_ref(), &format!("blk.0.ffn_{name}_exps.weight"));
            assert_eq!(found, values(source.as_ref(), &format!("blk.0.ffn_{name}_exps.weight")));
            let rows = fused.chunks_exact(HIDDEN).skip(odd).step_by(2);
            assert!(
                found.iter().zip(rows.flatten()).all(|(a, b)| a.to_bits() == b.to_bits() || *b == 0.0),
                "{to} {name}"
            );
        }
        assert_eq!(values(model.as_ref(), "blk.0.ffn_down_exps.weight"), down, "{to}");
        let verify = ["verify", text(&out), "--source", text(folder.path()), "--json", "--quiet"];
        quant_ok(&verify);
    }
    // The layout's own bytes, the two zeros of a float included.
    let own = files(&dir.path().join("own"));
    for (name, t) in all {
        assert_eq!(own[name], (t.dtype.to_owned(), t.shape.clone(), t.bytes.clone()), "{name}");
    }
    assert_eq!(own.len(), all.len());
    let gguf = open(&dir.path().join("c.gguf")).unwrap();
    let weight = gguf.read(gguf.find("blk.0.ffn_up_exps.weight").unwrap(), 0).unwrap();
    let (blocks, scales) = (&all["model.layers.0.mlp.experts.gate_up_proj_blocks"], "gate_up_proj_scales");
    let scales = &all[&format!("model.layers.0.mlp.experts.{scales}")];
    for (n, block) in weight.packed.parts[0].as_chunks::<17>().0.iter().enumerate() {
        // The second row is the first of `up`.
        let at = (2 * (n / 2) + 1) * 2 + n % 2;
        let from: Vec<u8> = blocks.bytes[at * 16..][..16].iter().flat_map(|b| [b & 15, b >> 4]).collect();
        let to: Vec<u8> = (0..32).map(|i| block[1 + i % 16] >> (i / 16 * 4) & 15).collect();
        assert_eq!((block[0], &to), (scales.bytes[at], &from), "block {n}");
    }
}

#[test]
fn floats_become_the_layout_and_are_read_back() {
    let (folder, dir) = (gpt_oss(false), tempfile::tempdir().unwrap());
    let out = dir.path().join("own");
    let report = convert(folder.path(), "mxfp4-gpt-oss", &out);
    assert!(report["exact"].is_null());
    let own = files(&out);
    let shape = |name: &str| own[&format!("model.layers.0.mlp.experts.{name}")].1.clone();
    assert_eq!(shape("gate_up_proj_blocks"), [EXPERTS, 2 * WIDTH, HIDDEN / 32, 16]);
    assert_eq!(shape("gate_up_proj_scales"), [EXPERTS, 2 * WIDTH, HIDDEN / 32]);
    assert_eq!(shape("down_proj_blocks"), [EXPERTS, HIDDEN, WIDTH / 32, 16]);
    for (name, t) in folder
        .tensors
        .iter()
        .filter(|(name, _)| !name.ends_with("experts.gate_up_proj") && !name.ends_with("experts.down_proj"))
    {
        assert_eq!(own[name].2, t.bytes, "{name}");
    }
    let config: Value = serde_json::from_slice(&std::fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["quantization_config"]["quant_method"], "mxfp4");
    let verify = ["verify", text(&out), "--source", text(folder.path()), "--json", "--quiet"];
    let verified: Value = serde_json::from_str(&quant_ok(&verify)).unwrap();
    for weight in verified["weights"].as_array().unwrap() {
        let packed = weight["name"].as_str().unwrap().ends_with("_exps.weight");
        let loss = weight["relative"].as_f64().unwrap();
        assert!(if packed { loss > 0.0 && loss < 0.2 } else { loss == 0.0 }, "{weight}");
    }
    // The same weights by way of the file's own layout and without.
    let (direct, again) = (dir.path().join("a.gguf"), dir.path().join("b.gguf"));
    convert(&out, "copy", &again);
    let from = open(&out).unwrap();
    let to = open(&again).unwrap();
    assert_eq!(values(from.as_ref(), "blk.1.ffn_gate_exps.weight"), values(to.as_ref(), "blk.1.ffn_gate_exps.weight"));
    convert(folder.path(), "q8_0", &direct);
    assert_eq!(open(&direct).unwrap().tensors().len(), to.tensors().len());
}

#[test]
fn the_bytes_are_the_same_with_one_thread_and_two() {
    let (folder, dir) = (gpt_oss(false), tempfile::tempdir().unwrap());
    let made = ["1", "2"].map(|threads| {
        let out = dir.path().join(threads);
        let args = ["--to", "mxfp4-gpt-oss", "--threads", threads, "--quiet"];
        quant_ok(&[&["convert", text(folder.path()), "-o", text(&out)], &args[..]].concat());
        std::fs::read(out.join("model.safetensors")).unwrap()
    });
    assert!(made[0] == made[1]);
}

#[test]
fn what_cannot_be_is_said() {
    let (folder, dir) = (gpt_oss(false), tempfile::tempdir().unwrap());
    let fails = |model: &Folder, to: &str| {
        quant_fails(&["convert", text(model.path()), "--to", to, "-o", text(&dir.path().join("x")), "--quiet"])
    };
    // A folder of another dialect would hold experts that nobody loads.
    let error = fails(&folder, "w4a16-g32");
    assert!(error.contains("no name in Hugging Face layout") && error.contains("mxfp4-gpt-oss"), "{error}");
    let error = fails(&model(&DENSE), "mxfp4-gpt-oss");
    assert!(error.contains("experts are their modules' own"), "{error}");

    let lie = |change: &dyn Fn(&mut Folder), message: &str| {
        let mut folder = gpt_oss(true);
        change(&mut folder);
        folder.write();
        let error = open(folder.path()).err().unwrap_or_else(|| panic!("{message}")).to_string();
        assert!(error.contains(message), "{error}");
    };
    let key = "model.layers.0.mlp.experts.gate_up_proj";
    lie(&|f| f.config["layer_types"] = json!(["full_attention", "full_attention"]), "layer_types");
    lie(&|f| f.config["swiglu_limit"] = json!(6.0), "swiglu_limit is 6");
    lie(&|f| f.config["quantization_config"] = json!(null), "does not say how it is packed");
    lie(
        &|f| drop(f.tensors.remove(&format!("{key}_scales"))),
        "part model.layers.0.mlp.experts.gate_up_proj_scales is missing",
    );
    lie(&|f| drop(f.tensors.remove(&format!("{key}_blocks"))), "whose codes are missing");
    lie(&|f| f.tensors.get_mut(&format!("{key}_scales")).unwrap().shape = vec![EXPERTS, WIDTH, 4], "instead of");
    lie(
        &|f| f.tensors.get_mut(&format!("{key}_blocks")).unwrap().shape = vec![EXPERTS, 2 * WIDTH * HIDDEN / 2],
        "not one of blocks",
    );
    lie(
        &|f| f.tensors.get_mut(&format!("{key}_bias")).unwrap().shape = vec![EXPERTS * 2 * WIDTH],
        "but there are 3 experts",
    );
}

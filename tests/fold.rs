//! Scales of columns that AWQ folds away.

mod common;

use std::collections::BTreeSet;
use std::fs;

use common::folder::{Folder, Stored};
use common::model::{DENSE, MOE, Shape, model};
use common::{request, statistics};
use quant::calibrate::method::ops::OnCpu;
use quant::calibrate::stats::Statistics;
use quant::container::{Checkpoint, gguf, open};
use quant::convert::fold::Folds;
use quant::convert::verify::{Status, WeightError, verify};
use quant::convert::{self, Plan, Request, fold};
use quant::engine::{Engine, Sequence};
use quant::recipe::Recipe;
use serde_json::json;

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
    gemma.write();
    qwen.write();
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

fn logits(checkpoint: &dyn Checkpoint) -> Vec<f32> {
    let tokens: Vec<u32> = (0..60).map(|i| (i * 7919 + 13) % 256).collect();
    let engine = Engine::new(checkpoint, tokens.len()).unwrap();
    let mut cache = engine.transient(tokens.len()).unwrap();
    let hidden = engine.forward(&mut [Sequence { tokens: &tokens, cache: &mut cache }]).unwrap();
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
            let folds = fold::search(&request, &OnCpu, &coarse).unwrap();
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

/// Scales are no errors, and hide none.
#[test]
fn what_was_folded_verifies() {
    let dir = tempfile::tempdir().unwrap();
    for (name, folder, _) in families() {
        let statistics = Statistics::open(&statistics(dir.path(), &folder)).unwrap();
        let source = open(folder.path()).unwrap();
        for to in ["gptq-3bit", "nvfp4a16", "mlx-2bit-g32", "q2_k", "q4_0"] {
            let path = dir.path().join(format!("{name}-{to}"));
            let request = Request { feedback: true, ..request(source.as_ref(), Some(&statistics)) };
            let plan = Plan::new(&request, &Recipe::load(to).unwrap(), &path).unwrap();
            convert::run(&request, &[plan], 2, &|_| {}).unwrap();
            let verified = || verify(open(&path).unwrap().as_ref(), Some(source.as_ref()), 2, &|_| {});
            let report = verified();
            assert!(report.passed(), "{name} {to}: {:?}", report.checks);
            let gain = |w: &WeightError| w.name.ends_with("_norm.weight");
            assert!(report.weights.iter().filter(|w| gain(w)).all(|w| w.relative < 1e-3), "{name} {to}");
            if path.is_file() {
                let mut bytes = fs::read(&path).unwrap();
                let header = gguf::parse(&bytes).unwrap();
                let norm = header.tensors.iter().find(|t| t.name == "blk.1.attn_norm.weight").unwrap();
                // Two bits a weight hide twice the scale, not its sign.
                for (at, bit) in [(3, 0x80), (2, 0x80)].into_iter().take(if to == "q2_k" { 1 } else { 2 }) {
                    bytes[norm.offset + 4 * 30 + at] ^= bit;
                    fs::write(&path, &bytes).unwrap();
                    let weights = verified().checks.into_iter().find(|c| c.name == "weights").unwrap();
                    assert_eq!(weights.status, Status::Failed, "{name} {to}");
                    assert!(weights.detail.contains("blk.1.attn_"), "{name} {to}: {}", weights.detail);
                    bytes[norm.offset + 4 * 30 + at] ^= bit;
                }
            }
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

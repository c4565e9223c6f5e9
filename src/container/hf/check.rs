//! Do the weights make the model that config.json describes?

use std::collections::HashSet;

use crate::arch::{Arch, ModelSpec, Role};
use crate::container::Tensor;
use crate::error::{Error, Result};

/// Every weight of the family's table is there, for every layer; biases are there in all layers or in none.
pub fn complete(arch: &Arch, spec: &ModelSpec, tensors: &[Tensor]) -> Result<()> {
    let have: HashSet<&str> = tensors.iter().map(|t| t.name.as_str()).collect();
    let biased: HashSet<String> = tensors.iter().filter_map(|t| layerless(t.name.strip_suffix(".bias")?)).collect();
    for stem in stems(arch, spec) {
        let layers = if stem.contains(LAYER) { spec.layers } else { 1 };
        for layer in 0..layers {
            let stem_here = stem.replace(LAYER, &layer.to_string());
            let names = [Some(".weight"), biased.contains(stem).then_some(".bias")];
            for name in names.into_iter().flatten().map(|suffix| format!("{stem_here}{suffix}")) {
                if !have.contains(name.as_str()) {
                    return Err(missing(arch, spec, &name));
                }
            }
        }
    }
    Ok(())
}

const LAYER: &str = "{L}";

/// Names of the family's weights, without suffix, layers as `{L}`.
fn stems<'a>(arch: &'a Arch, spec: &'a ModelSpec) -> impl Iterator<Item = &'a str> {
    let mut seen = HashSet::new();
    let all = arch.names.iter().copied().flatten().map(|n| n.gguf);
    all.filter(|gguf| !(spec.tied && *gguf == Role::Output.stem())).filter(move |gguf| seen.insert(*gguf))
}

/// `blk.3.attn_q` -> `blk.{L}.attn_q`
fn layerless(stem: &str) -> Option<String> {
    let (layer, rest) = stem.strip_prefix("blk.")?.split_once('.')?;
    layer.parse::<u32>().ok().map(|_| format!("blk.{LAYER}.{rest}"))
}

fn missing(arch: &Arch, spec: &ModelSpec, name: &str) -> Error {
    let own = arch.own_name(name).map(|(own, _)| own);
    let source = own.or_else(|| arch.hf_name(name, Some(0))).or_else(|| arch.hf_name(name, None)).unwrap_or_default();
    let error = Error::input(format!("{source} is missing")).at(name);
    match name {
        "output.weight" => error.help("if the model ties its output to the embedding, config.json must say \"tie_word_embeddings\": true"),
        _ => error.help(format!(
            "the checkpoint is incomplete or config.json (num_hidden_layers {}) is of another model: download both again",
            spec.layers
        )),
    }
}

/// Weights whose shape follows from the spec have it.
pub fn shapes(spec: &ModelSpec, tensors: &[Tensor]) -> Result<()> {
    for t in tensors.iter().filter(|t| t.name.ends_with(".weight")) {
        let Some(expected) = expected(spec, &t.id.role) else { continue };
        if t.shape != expected {
            return Err(Error::input(format!("shape {:?}, but config.json asks for {expected:?}", t.shape))
                .at(&t.source)
                .at(&t.file)
                .help("config.json and weights are of different models: download both again"));
        }
    }
    Ok(())
}

pub fn expected(spec: &ModelSpec, role: &Role) -> Option<Vec<usize>> {
    let (hidden, ffn) = (spec.hidden as usize, spec.ffn as usize);
    let (heads, kv_heads) = (spec.heads as usize, spec.kv_heads());
    let (experts, expert_ffn) = (spec.experts() as usize, spec.expert_ffn());
    let per_head = |n: usize| n.checked_mul(spec.head_dim());
    Some(match role {
        Role::TokenEmbd | Role::Output => vec![spec.vocab? as usize, hidden],
        Role::AttnNorm | Role::FfnNorm | Role::OutputNorm | Role::PostAttentionNorm | Role::PostFfwNorm => vec![hidden],
        Role::AttnQ => vec![per_head(heads)?, hidden],
        Role::AttnK | Role::AttnV => vec![per_head(kv_heads)?, hidden],
        Role::AttnQkv => vec![per_head(heads.checked_add(kv_heads.checked_mul(2)?)?)?, hidden],
        Role::AttnOutput => vec![hidden, per_head(heads)?],
        Role::FfnGate => vec![ffn, hidden],
        Role::FfnDown => vec![hidden, ffn],
        Role::FfnGateInp => vec![experts, hidden],
        Role::AttnSinks => vec![heads],
        Role::FfnGateExps | Role::FfnUpExps => vec![experts, expert_ffn, hidden],
        Role::FfnDownExps => vec![experts, hidden, expert_ffn],
        _ => return None,
    })
}

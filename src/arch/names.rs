//! Tensor names, both ways. Templates use `{L}` for the layer and `{E}` for the expert.

use std::ops::Range;

use super::{Arch, ModelSpec};
use crate::error::{Error, Result};

/// A weight's name in Hugging Face and in GGUF, both without `.weight` or `.bias`.
#[derive(Clone, Copy, Debug)]
pub struct Name {
    pub hf: &'static str,
    pub gguf: &'static str,
    /// Which rows of the Hugging Face tensor these are.
    pub part: Split,
}

/// transformers 5 may store the experts of a layer as one tensor, gate above up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Whole,
    First,
    Second,
}

pub const fn name(hf: &'static str, gguf: &'static str) -> Name {
    Name { hf, gguf, part: Split::Whole }
}

/// The rows of each matrix of a Hugging Face tensor that a canonical tensor takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Rows(Range<usize>),
}

/// Where a Hugging Face tensor goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Canonical name with suffix: `blk.3.ffn_down_exps.weight`.
    pub name: String,
    /// The plane of the stacked tensor, if the source holds one expert; `None` if it is the whole tensor.
    pub expert: Option<u32>,
    pub part: Part,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// One place; two for a fused gate and up.
    Place(Vec<Place>),
    /// Not part of a converted model, for this reason.
    Drop(&'static str),
}

const SUFFIXES: &[&str] = &[".weight", ".bias"];

/// Why tensors of other towers are left out.
pub const OTHER_TOWER: &str = "not part of the language model";

/// Tensors of the other towers of a multimodal model. Source: llama.cpp `conversion/base.py` (filter_tensors).
const OTHER_TOWERS: &[&str] = &["visual.", "vision.", "audio.", "vision_", "audio_", "projector."];

/// Buffers that some checkpoints carry although they follow from the configuration.
const BUFFERS: &[&str] = &[".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

impl Arch {
    pub(crate) fn has_experts(&self) -> bool {
        self.rows().any(|n| n.gguf.ends_with("_exps"))
    }

    fn rows(&self) -> impl Iterator<Item = &'static Name> {
        self.names.iter().copied().flatten()
    }

    /// Where the Hugging Face tensor `hf_name` (a weight or bias, not a scale of some format) belongs.
    pub fn resolve(&self, hf_name: &str, spec: &ModelSpec) -> Result<Placement> {
        if BUFFERS.iter().any(|b| hf_name.ends_with(b)) {
            return Ok(Placement::Drop("a buffer that runtimes compute"));
        }
        if OTHER_TOWERS.iter().any(|t| hf_name.contains(t)) {
            return Ok(Placement::Drop(OTHER_TOWER));
        }
        let name = hf_name.replace("language_model.", "");
        let suffix = SUFFIXES.iter().find(|s| name.ends_with(**s)).copied();
        let module = suffix.map_or(&*name, |s| &name[..name.len() - s.len()]);
        if module == "lm_head" && (spec.tied || !self.rows().any(|n| n.hf == "lm_head")) {
            return Ok(Placement::Drop("the output matrix is the embedding (tied)"));
        }
        let mut places = Vec::new();
        for row in self.rows() {
            let Some((layer, expert)) = matches(row.hf, module) else { continue };
            if layer.is_some_and(|l| l >= spec.layers) || expert.is_some_and(|e| e >= spec.experts()) {
                return Err(Error::input(format!(
                    "{hf_name} is beyond the {} layers and {} experts of config.json",
                    spec.layers,
                    spec.experts()
                )));
            }
            // Only stacked experts come without a suffix.
            if suffix.is_none() && !row.gguf.ends_with("_exps") {
                continue;
            }
            let stem = row.gguf.replace("{L}", &layer.unwrap_or_default().to_string());
            let width = spec.expert_ffn();
            let part = match row.part {
                Split::Whole => Part::Whole,
                Split::First => Part::Rows(0..width),
                Split::Second => Part::Rows(width..2 * width),
            };
            places.push(Place { name: stem + suffix.unwrap_or(".weight"), expert, part });
        }
        if places.is_empty() {
            return Err(Error::unsupported(format!("{} has no tensor named {hf_name}", self.name)).help(
                "the checkpoint is newer than this architecture's table, or has parts (adapters) to merge first",
            ));
        }
        Ok(Placement::Place(places))
    }

    /// The Hugging Face name of a canonical tensor, for one expert of a stacked one or for the stack as mlx-lm has it. The inverse
    /// of [`Arch::resolve`] for such checkpoints.
    pub fn hf_name(&self, canonical: &str, expert: Option<u32>) -> Option<String> {
        let suffix = SUFFIXES.iter().find(|s| canonical.ends_with(**s))?;
        let stem = &canonical[..canonical.len() - suffix.len()];
        self.rows().find_map(|row| {
            let (layer, _) = matches(row.gguf, stem)?;
            if row.hf.contains("{E}") != expert.is_some() || row.part != Split::Whole {
                return None;
            }
            let hf = row.hf.replace("{L}", &layer.unwrap_or_default().to_string());
            Some(hf.replace("{E}", &expert.unwrap_or_default().to_string()) + suffix)
        })
    }
}

/// Matches dotted segments; returns the layer and the expert.
fn matches(template: &str, name: &str) -> Option<(Option<u32>, Option<u32>)> {
    let (mut layer, mut expert) = (None, None);
    let (mut want, mut have) = (template.split('.'), name.split('.'));
    loop {
        match (want.next(), have.next()) {
            (None, None) => return Some((layer, expert)),
            (Some("{L}"), Some(n)) => layer = Some(index(n)?),
            (Some("{E}"), Some(n)) => expert = Some(index(n)?),
            (Some(w), Some(h)) if w == h => {}
            _ => return None,
        }
    }
}

/// Digits only: `parse` alone would take `+3` and `03`, so that two names could mean one weight.
fn index(digits: &str) -> Option<u32> {
    let n: u32 = digits.parse().ok()?;
    (n.to_string() == digits).then_some(n)
}

pub const EMBEDDING: &[Name] = &[name("model.embed_tokens", "token_embd"), name("model.norm", "output_norm")];
pub const HEAD: &[Name] = &[name("lm_head", "output")];
pub const ATTN_NORM: &[Name] = &[name("model.layers.{L}.input_layernorm", "blk.{L}.attn_norm")];
pub const ATTENTION: &[Name] = &[
    name("model.layers.{L}.self_attn.q_proj", "blk.{L}.attn_q"),
    name("model.layers.{L}.self_attn.k_proj", "blk.{L}.attn_k"),
    name("model.layers.{L}.self_attn.v_proj", "blk.{L}.attn_v"),
    name("model.layers.{L}.self_attn.o_proj", "blk.{L}.attn_output"),
];
pub const QK_NORM: &[Name] = &[
    name("model.layers.{L}.self_attn.q_norm", "blk.{L}.attn_q_norm"),
    name("model.layers.{L}.self_attn.k_norm", "blk.{L}.attn_k_norm"),
];
/// The norm before the feed-forward layer, in families with two norms a layer.
pub const FFN_NORM: &[Name] = &[name("model.layers.{L}.post_attention_layernorm", "blk.{L}.ffn_norm")];
/// The norms around the feed-forward layer, in families with four norms a layer.
pub const FOUR_NORMS: &[Name] = &[
    name("model.layers.{L}.post_attention_layernorm", "blk.{L}.post_attention_norm"),
    name("model.layers.{L}.pre_feedforward_layernorm", "blk.{L}.ffn_norm"),
    name("model.layers.{L}.post_feedforward_layernorm", "blk.{L}.post_ffw_norm"),
];
pub const GATED_FFN: &[Name] = &[
    name("model.layers.{L}.mlp.gate_proj", "blk.{L}.ffn_gate"),
    name("model.layers.{L}.mlp.up_proj", "blk.{L}.ffn_up"),
    name("model.layers.{L}.mlp.down_proj", "blk.{L}.ffn_down"),
];
pub const EXPERTS: &[Name] = &[
    name("model.layers.{L}.mlp.gate", "blk.{L}.ffn_gate_inp"),
    name("model.layers.{L}.mlp.experts.{E}.gate_proj", "blk.{L}.ffn_gate_exps"),
    name("model.layers.{L}.mlp.experts.{E}.up_proj", "blk.{L}.ffn_up_exps"),
    name("model.layers.{L}.mlp.experts.{E}.down_proj", "blk.{L}.ffn_down_exps"),
    // All of them in one tensor, as mlx-lm stores them.
    name("model.layers.{L}.mlp.switch_mlp.gate_proj", "blk.{L}.ffn_gate_exps"),
    name("model.layers.{L}.mlp.switch_mlp.up_proj", "blk.{L}.ffn_up_exps"),
    name("model.layers.{L}.mlp.switch_mlp.down_proj", "blk.{L}.ffn_down_exps"),
];
/// The experts of a layer in one tensor `[experts, rows, cols]`, as transformers 5 holds them in memory.
pub const FUSED_EXPERTS: &[Name] = &[
    Name { hf: "model.layers.{L}.mlp.experts.gate_up_proj", gguf: "blk.{L}.ffn_gate_exps", part: Split::First },
    Name { hf: "model.layers.{L}.mlp.experts.gate_up_proj", gguf: "blk.{L}.ffn_up_exps", part: Split::Second },
    name("model.layers.{L}.mlp.experts.down_proj", "blk.{L}.ffn_down_exps"),
];

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
    pub owner: Owner,
}

/// transformers may store the experts of a layer as one tensor: gate above up, or their rows in turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Whole,
    First,
    Second,
    Even,
    Odd,
}

/// Whose tensor it is, which decides how it is called and how it lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A linear layer's or a norm's: `.weight` and `.bias`.
    Layer,
    /// The module's own: nothing stands behind the name of a weight, `_bias` behind that of a bias.
    Module,
    /// The same, and matrices of floats lie `[inputs, outputs]`.
    ModuleTransposed,
}

pub const fn name(hf: &'static str, gguf: &'static str) -> Name {
    Name { hf, gguf, part: Split::Whole, owner: Owner::Layer }
}

pub const fn part(hf: &'static str, gguf: &'static str, part: Split, owner: Owner) -> Name {
    Name { hf, gguf, part, owner }
}

/// The rows of each matrix of a Hugging Face tensor that a canonical tensor takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    Whole,
    Rows(Range<usize>),
    /// Every second, from this one on.
    Alternate(usize),
}

/// Where a Hugging Face tensor goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// Canonical name with suffix: `blk.3.ffn_down_exps.weight`.
    pub name: String,
    /// The plane of the stacked tensor, if the source holds one expert; `None` if it is the whole tensor.
    pub expert: Option<u32>,
    pub part: Part,
    /// Its matrices lie `[inputs, outputs]` if they are plain floats: rows are columns there.
    pub transposed: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// One place; two for a fused gate and up.
    Place(Vec<Place>),
    /// Not part of a converted model, for this reason.
    Drop(&'static str),
}

/// Behind a layer's name, and behind a module's.
const SUFFIXES: &[(&str, &str)] = &[(".weight", ""), (".bias", "_bias")];

/// Why tensors are left out that belong to the model, and stay in its folder.
pub const OTHER_TOWER: &str = "not part of the language model";
pub const FURTHER_TOKENS: &str = "layers that predict further tokens (MTP), which the model runs without";
pub const STAYING: &[&str] = &[OTHER_TOWER, FURTHER_TOKENS];

/// What the name of a language model inside a larger one has somewhere.
const INSIDE: &str = "language_model.";

/// The name that a language model's tensor has where nothing is around it.
pub fn alone(hf_name: &str) -> String {
    hf_name.replace(INSIDE, "")
}

/// The inverse, as `like`, a name of the same model, has it.
pub fn inside(mut name: String, like: &str) -> String {
    if let Some(at) = like.find(INSIDE).filter(|at| name.is_char_boundary(*at)) {
        name.insert_str(at, INSIDE);
    }
    name
}

/// The part of a multimodal model's name that tells its tower: `vision_tower`.
pub fn tower(hf_name: &str) -> Option<&str> {
    let mark = OTHER_TOWERS.iter().find(|mark| hf_name.contains(**mark))?;
    hf_name.split_inclusive('.').find(|part| part.contains(mark)).map(|part| part.trim_end_matches('.'))
}

/// Whole modules that predict further tokens.
const MTP: &[&str] = &["mtp.", "model.mtp."];

/// Tensors of the other towers of a multimodal model. Source: llama.cpp `conversion/base.py` (filter_tensors).
const OTHER_TOWERS: &[&str] = &["visual.", "vision.", "audio.", "vision_", "audio_", "projector."];

/// Buffers that some checkpoints carry although they follow from the configuration.
const BUFFERS: &[&str] = &[".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

impl Arch {
    pub(crate) fn has_experts(&self) -> bool {
        self.rows().any(|n| n.gguf.ends_with(EXPERTS_STEM))
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
        let name = alone(hf_name);
        let behind = |layer| layer >= spec.layers && layer - spec.layers < spec.further_tokens.unwrap_or(0);
        let layer = name.strip_prefix("model.layers.").and_then(|rest| index(rest.split('.').next()?));
        if MTP.iter().any(|m| name.starts_with(m)) || layer.is_some_and(behind) {
            return Ok(Placement::Drop(FURTHER_TOKENS));
        }
        if matches!(&*name, "lm_head.weight" | "lm_head.bias") && (spec.tied || !self.rows().any(|n| n.hf == "lm_head"))
        {
            return Ok(Placement::Drop("the output matrix is the embedding (tied)"));
        }
        let mut places = Vec::new();
        for row in self.rows() {
            let Some((suffix, layer, expert)) = row.matches(&name) else { continue };
            if layer.is_some_and(|l| l >= spec.layers) || expert.is_some_and(|e| e >= spec.experts()) {
                return Err(Error::input(format!(
                    "{hf_name} is beyond the {} layers and {} experts of config.json",
                    spec.layers,
                    spec.experts()
                )));
            }
            let stem = row.gguf.replace("{L}", &layer.unwrap_or_default().to_string());
            let width = spec.expert_ffn();
            let part = match row.part {
                Split::Whole => Part::Whole,
                Split::First => Part::Rows(0..width),
                Split::Second => Part::Rows(width..2 * width),
                Split::Even => Part::Alternate(0),
                Split::Odd => Part::Alternate(1),
            };
            places.push(Place { name: stem + suffix, expert, part, transposed: row.owner == Owner::ModuleTransposed });
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
        self.rows().find_map(|row| {
            // Stacks of experts that are a module's own have a layout of their own.
            let own = row.owner != Owner::Layer && row.gguf.ends_with(EXPERTS_STEM);
            if own || row.hf.contains("{E}") != expert.is_some() || row.part != Split::Whole {
                return None;
            }
            row.named(canonical, expert)
        })
    }

    /// The tensor that holds a stack of experts where it is their module's own, and which of its rows they are. `None` for
    /// families that have no such layout, or gate and up one above the other.
    pub fn own_name(&self, canonical: &str) -> Option<(String, Part)> {
        self.rows().find_map(|row| {
            let part = match row.part {
                Split::Whole => Part::Whole,
                Split::Even => Part::Alternate(0),
                Split::Odd => Part::Alternate(1),
                Split::First | Split::Second => return None,
            };
            let own = row.owner == Owner::ModuleTransposed;
            own.then(|| row.named(canonical, None)).flatten().map(|name| (name, part))
        })
    }
}

const EXPERTS_STEM: &str = "_exps";

impl Name {
    /// The suffix in GGUF, the layer and the expert of a Hugging Face tensor.
    fn matches(&self, hf_name: &str) -> Option<(&'static str, Option<u32>, Option<u32>)> {
        SUFFIXES.iter().find_map(|(suffix, own)| {
            // Tools that pack stacks of experts treat them as layers.
            let known: &[&str] = match self.owner {
                Owner::Layer => &[suffix],
                Owner::Module => &[suffix, own],
                Owner::ModuleTransposed => &[own],
            };
            let (layer, expert) = known.iter().find_map(|s| matches(self.hf, hf_name.strip_suffix(s)?))?;
            Some((*suffix, layer, expert))
        })
    }

    /// What Hugging Face calls a canonical tensor of this row.
    fn named(&self, canonical: &str, expert: Option<u32>) -> Option<String> {
        SUFFIXES.iter().find_map(|(suffix, own)| {
            let (layer, _) = matches(self.gguf, canonical.strip_suffix(suffix)?)?;
            let hf = self.hf.replace("{L}", &layer.unwrap_or_default().to_string());
            let suffix = if self.owner == Owner::Layer { suffix } else { own };
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
    part("model.layers.{L}.mlp.experts.gate_up_proj", "blk.{L}.ffn_gate_exps", Split::First, Owner::Module),
    part("model.layers.{L}.mlp.experts.gate_up_proj", "blk.{L}.ffn_up_exps", Split::Second, Owner::Module),
    part("model.layers.{L}.mlp.experts.down_proj", "blk.{L}.ffn_down_exps", Split::Whole, Owner::Module),
];

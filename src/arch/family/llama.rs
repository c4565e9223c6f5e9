//! Llama 2, Llama 3 and their many derivatives.

use crate::arch::config::Config;
use crate::arch::keys::{self, Key};
use crate::arch::names::*;
use crate::arch::{Arch, ModelSpec, Rope, RopeTensors, Runtime};
use crate::error::Result;

/// What llama.cpp's `LlamaModel` adds to the base.
pub const KEYS: &[&[Key]] = &[keys::BASE, &[keys::VOCAB_SIZE, keys::ROPE_DIMENSION_COUNT]];

pub const BASE: Arch = Arch {
    name: "llama",
    classes: &["LlamaForCausalLM", "LLaMAForCausalLM"],
    defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-6, "rope_theta": 10000.0}"#,
    names: &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, FFN_NORM, GATED_FFN],
    rope: Rope::Norm,
    rope_tensors: RopeTensors::Llama3,
    norm_offset: 0.0,
    runtime: Runtime::LLAMA,
    sliding_period: None,
    keys: KEYS,
    finish,
};

pub static LLAMA: Arch = BASE;

/// Its configuration class derives the head size, so the converter states it.
fn finish(config: &Config<'_>, spec: &mut ModelSpec) -> Result<()> {
    spec.head_dim = Some(spec.head_dim() as u32);
    rope_over_whole_head(config, spec)
}

pub fn rope_over_whole_head(_: &Config<'_>, spec: &mut ModelSpec) -> Result<()> {
    spec.rope_dim = Some(spec.head_dim() as u32);
    Ok(())
}

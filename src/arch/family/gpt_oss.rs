//! gpt-oss: experts with biases and a clamped activation, attention sinks, every second layer attends to a window.

use super::qwen2;
use crate::arch::config::Config;
use crate::arch::names::*;
use crate::arch::{Activation, Arch, ModelSpec, Runtime, keys};
use crate::error::{Error, Result};

pub static GPT_OSS: Arch = Arch {
    name: "gpt-oss",
    classes: &["GptOssForCausalLM"],
    defaults: r#"{"vocab_size": 201088, "hidden_size": 2880, "intermediate_size": 2880, "num_hidden_layers": 36,
        "num_attention_heads": 64, "num_key_value_heads": 8, "head_dim": 64, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-5, "rope_theta": 150000.0, "sliding_window": 128, "num_local_experts": 128,
        "num_experts_per_tok": 4, "rope_scaling": {"rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0,
        "beta_slow": 1.0, "original_max_position_embeddings": 4096}}"#,
    names: &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, LAYER],
    sliding_period: Some(2),
    keys: &[keys::BASE, &[keys::SLIDING_WINDOW, keys::EXPERT_FEED_FORWARD_LENGTH]],
    finish,
    runtime: Runtime { activation: Activation::ClampedSilu, ..Runtime::LLAMA },
    ..qwen2::BASE
};

const LAYER: &[Name] = &[
    part("model.layers.{L}.self_attn.sinks", "blk.{L}.attn_sinks", Split::Whole, Owner::Module),
    name("model.layers.{L}.post_attention_layernorm", "blk.{L}.post_attention_norm"),
    name("model.layers.{L}.mlp.router", "blk.{L}.ffn_gate_inp"),
    part("model.layers.{L}.mlp.experts.gate_up_proj", "blk.{L}.ffn_gate_exps", Split::Even, Owner::ModuleTransposed),
    part("model.layers.{L}.mlp.experts.gate_up_proj", "blk.{L}.ffn_up_exps", Split::Odd, Owner::ModuleTransposed),
    part("model.layers.{L}.mlp.experts.down_proj", "blk.{L}.ffn_down_exps", Split::Whole, Owner::ModuleTransposed),
    // As mlx-lm stores them.
    name("model.layers.{L}.mlp.experts.gate_proj", "blk.{L}.ffn_gate_exps"),
    name("model.layers.{L}.mlp.experts.up_proj", "blk.{L}.ffn_up_exps"),
    name("model.layers.{L}.mlp.experts.down_proj", "blk.{L}.ffn_down_exps"),
];

/// Facts that llama.cpp knows of every such model.
fn finish(config: &Config<'_>, spec: &mut ModelSpec) -> Result<()> {
    spec.expert_ffn = Some(spec.ffn);
    let kinds = config.find(&["layer_types"]).and_then(|(_, kinds)| kinds.as_array());
    let sliding = |(layer, kind): (usize, &serde_json::Value)| {
        (kind == "sliding_attention") == spec.is_sliding(u32::try_from(layer).unwrap_or(u32::MAX))
    };
    if !kinds.is_none_or(|kinds| kinds.iter().enumerate().all(sliding)) {
        return Err(Error::unsupported("layer_types other than a sliding window in every second layer"));
    }
    match config.real(&["swiglu_limit"])? {
        Some(limit) if limit != f64::from(Activation::LIMIT) => {
            Err(Error::unsupported(format!("swiglu_limit is {limit}, runtimes know {} only", Activation::LIMIT)))
        }
        _ => Ok(()),
    }
}

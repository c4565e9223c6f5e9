//! Phi 3 and 4: q, k, v in one matrix, gate and up in one matrix, longrope.

use crate::arch::config::Config;
use crate::arch::keys;
use crate::arch::names::*;
use crate::arch::rope;
use crate::arch::{Arch, ModelSpec, Rope, RopeTensors, Runtime};
use crate::error::{Error, Result};

pub static PHI3: Arch = Arch {
    name: "phi3",
    classes: &["Phi3ForCausalLM"],
    defaults: r#"{"vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 4096, "original_max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "partial_rotary_factor": 1.0}"#,
    names: &[EMBEDDING, HEAD, LAYER, FFN_NORM],
    rope: Rope::Neox,
    rope_tensors: RopeTensors::Long,
    norm_offset: 0.0,
    runtime: Runtime::LLAMA,
    sliding_period: None,
    keys: &[&[
        keys::ROPE_ATTN_FACTOR,
        keys::CONTEXT_LENGTH,
        keys::ROPE_ORIGINAL_CONTEXT,
        keys::EMBEDDING_LENGTH,
        keys::FEED_FORWARD_LENGTH,
        keys::BLOCK_COUNT,
        keys::HEAD_COUNT,
        keys::HEAD_COUNT_KV,
        keys::RMS_EPS,
        keys::ROPE_DIMENSION_COUNT,
        keys::ROPE_FREQ_BASE,
        keys::SLIDING_WINDOW,
    ]],
    finish,
};

const LAYER: &[Name] = &[
    name("model.layers.{L}.input_layernorm", "blk.{L}.attn_norm"),
    name("model.layers.{L}.self_attn.qkv_proj", "blk.{L}.attn_qkv"),
    name("model.layers.{L}.self_attn.o_proj", "blk.{L}.attn_output"),
    name("model.layers.{L}.mlp.gate_up_proj", "blk.{L}.ffn_up"),
    name("model.layers.{L}.mlp.down_proj", "blk.{L}.ffn_down"),
];

/// Rotary embedding may cover a part of the head; longrope scales attention by how far the context grew.
fn finish(config: &Config<'_>, spec: &mut ModelSpec) -> Result<()> {
    let context = spec.context.ok_or_else(|| Error::input("max_position_embeddings is missing"))?;
    let original = rope::original_context(config)?
        .filter(|n| *n > 1)
        .ok_or_else(|| Error::input("original_max_position_embeddings is missing or below 2"))?;
    let share = rope::partial(config)?.filter(|p| *p > 0.0 && *p <= 1.0).unwrap_or(1.0);
    let rope_dim = (share * f64::from(spec.hidden)) as u32 / spec.heads;
    spec.rope_original_context = Some(original);
    spec.rope_dim = Some(rope_dim);
    // llama.cpp tells Phi 4 by a window of zero.
    spec.sliding_window = spec.sliding_window.or(Some(0));
    if spec.rope_long.is_empty() {
        return Ok(());
    }
    let pairs = [spec.rope_long.len(), spec.rope_short.len()];
    if pairs.iter().any(|n| n * 2 != rope_dim as usize) {
        return Err(Error::input(format!(
            "long_factor and short_factor have {pairs:?} values, rope turns {rope_dim} rows"
        )));
    }
    let grown = f64::from(context) / f64::from(original);
    let factor = if grown > 1.0 { (1.0 + grown.ln() / f64::from(original).ln()).sqrt() } else { 1.0 };
    spec.rope_attn_factor = Some(factor as f32);
    Ok(())
}

//! Gemma 1: norms are stored minus one, the output matrix is the embedding.

use crate::arch::keys::{self, Key};
use crate::arch::names::*;
use crate::arch::{Arch, ModelSpec, Rope, RopeTensors, Runtime};

pub const KEYS: &[Key] = &[
    keys::CONTEXT_LENGTH,
    keys::EMBEDDING_LENGTH,
    keys::BLOCK_COUNT,
    keys::FEED_FORWARD_LENGTH,
    keys::HEAD_COUNT,
    keys::HEAD_COUNT_KV,
    keys::RMS_EPS,
    keys::KEY_LENGTH,
    keys::VALUE_LENGTH,
];

pub const BASE: Arch = Arch {
    name: "gemma",
    classes: &["GemmaForCausalLM"],
    defaults: r#"{"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
        "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true}"#,
    names: &[EMBEDDING, ATTN_NORM, ATTENTION, FFN_NORM, GATED_FFN],
    rope: Rope::Neox,
    rope_tensors: RopeTensors::None,
    norm_offset: 1.0,
    runtime: Runtime::GEMMA,
    sliding_period: None,
    keys: &[KEYS],
    finish: |_, _| Ok(()),
};

pub static GEMMA: Arch = BASE;

/// config.json's `query_pre_attn_scalar`. GGUF does not store it: llama.cpp knows the one model (27B) by its depth whose
/// scores are scaled by the width that a head would have if heads divided the hidden size.
pub fn query_scalar(spec: &ModelSpec, layers_of_27b: u32) -> f64 {
    let known = if spec.layers == layers_of_27b { spec.hidden / spec.heads.max(1) } else { spec.head_dim() as u32 };
    spec.query_scalar.map_or(f64::from(known), f64::from)
}

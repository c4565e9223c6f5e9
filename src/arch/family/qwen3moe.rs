//! Qwen 3 with experts.

use super::qwen2;
use crate::arch::names::*;
use crate::arch::{Arch, keys};

pub static QWEN3MOE: Arch = Arch {
    name: "qwen3moe",
    classes: &["Qwen3MoeForCausalLM"],
    defaults: r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24,
        "num_attention_heads": 32, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "moe_intermediate_size": 768, "num_experts_per_tok": 8, "num_experts": 128}"#,
    names: &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, QK_NORM, FFN_NORM, EXPERTS, FUSED_EXPERTS],
    keys: &[keys::BASE, &[keys::EXPERT_FEED_FORWARD_LENGTH]],
    ..qwen2::BASE
};

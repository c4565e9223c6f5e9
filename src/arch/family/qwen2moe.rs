//! Qwen 1.5 and 2 with experts, one of them shared.

use super::qwen2;
use crate::arch::names::*;
use crate::arch::{Arch, Runtime, keys};

pub static QWEN2MOE: Arch = Arch {
    name: "qwen2moe",
    classes: &["Qwen2MoeForCausalLM"],
    defaults: r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24,
        "num_attention_heads": 16, "num_key_value_heads": 16, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0, "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632,
        "num_experts_per_tok": 4, "num_experts": 60}"#,
    names: &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, FFN_NORM, EXPERTS, FUSED_EXPERTS, SHARED_EXPERT],
    keys: &[keys::BASE, &[keys::EXPERT_FEED_FORWARD_LENGTH, keys::EXPERT_SHARED_FEED_FORWARD_LENGTH]],
    runtime: Runtime { normalized_experts: false, ..Runtime::LLAMA },
    ..qwen2::BASE
};

const SHARED_EXPERT: &[Name] = &[
    name("model.layers.{L}.mlp.shared_expert_gate", "blk.{L}.ffn_gate_inp_shexp"),
    name("model.layers.{L}.mlp.shared_expert.gate_proj", "blk.{L}.ffn_gate_shexp"),
    name("model.layers.{L}.mlp.shared_expert.up_proj", "blk.{L}.ffn_up_shexp"),
    name("model.layers.{L}.mlp.shared_expert.down_proj", "blk.{L}.ffn_down_shexp"),
];

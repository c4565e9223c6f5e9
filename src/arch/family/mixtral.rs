//! Mixtral: Mistral with experts.

use super::llama;
use crate::arch::Arch;
use crate::arch::names::*;

pub static MIXTRAL: Arch = Arch {
    classes: &["MixtralForCausalLM"],
    defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "rope_theta": 1e6, "num_experts_per_tok": 2, "num_local_experts": 8}"#,
    names: &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, FFN_NORM, MOE, FUSED_EXPERTS],
    finish: llama::rope_over_whole_head,
    ..llama::BASE
};

const MOE: &[Name] = &[
    name("model.layers.{L}.block_sparse_moe.gate", "blk.{L}.ffn_gate_inp"),
    name("model.layers.{L}.block_sparse_moe.experts.{E}.w1", "blk.{L}.ffn_gate_exps"),
    name("model.layers.{L}.block_sparse_moe.experts.{E}.w3", "blk.{L}.ffn_up_exps"),
    name("model.layers.{L}.block_sparse_moe.experts.{E}.w2", "blk.{L}.ffn_down_exps"),
    name("model.layers.{L}.block_sparse_moe.switch_mlp.gate_proj", "blk.{L}.ffn_gate_exps"),
    name("model.layers.{L}.block_sparse_moe.switch_mlp.up_proj", "blk.{L}.ffn_up_exps"),
    name("model.layers.{L}.block_sparse_moe.switch_mlp.down_proj", "blk.{L}.ffn_down_exps"),
];

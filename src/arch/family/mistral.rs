//! Mistral: Llama's weights; llama.cpp ignores the sliding window of the first version.

use super::llama;
use crate::arch::Arch;

pub const BASE: Arch = Arch {
    classes: &["MistralForCausalLM"],
    defaults: r#"{"vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0}"#,
    finish: llama::rope_over_whole_head,
    ..llama::BASE
};

pub static MISTRAL: Arch = BASE;

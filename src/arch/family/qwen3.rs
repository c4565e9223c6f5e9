//! Qwen 3: norms on q and k.

use super::qwen2;
use crate::arch::Arch;
use crate::arch::names::*;

pub const NAMES: &[&[Name]] = &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, QK_NORM, FFN_NORM, GATED_FFN];

pub static QWEN3: Arch = Arch {
    name: "qwen3",
    classes: &["Qwen3ForCausalLM"],
    defaults: r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 32768,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0}"#,
    names: NAMES,
    ..qwen2::BASE
};

//! Seed-OSS: Qwen 2's layer; GGUF names its second norm after what precedes it.

use super::qwen2;
use crate::arch::Arch;
use crate::arch::names::*;

pub static SEED_OSS: Arch = Arch {
    name: "seed_oss",
    classes: &["SeedOssForCausalLM"],
    defaults: r#"{"vocab_size": 155136, "hidden_size": 4096, "intermediate_size": 27648, "num_hidden_layers": 64,
        "num_attention_heads": 80, "num_key_value_heads": 8, "head_dim": 128, "max_position_embeddings": 524288,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0}"#,
    names: &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, NORM, GATED_FFN],
    ..qwen2::BASE
};

const NORM: &[Name] = &[name("model.layers.{L}.post_attention_layernorm", "blk.{L}.post_attention_norm")];

//! Qwen 2 and 2.5.

use crate::arch::names::*;
use crate::arch::{Arch, Rope, RopeTensors, Runtime, keys};

pub const BASE: Arch = Arch {
    name: "qwen2",
    classes: &["Qwen2ForCausalLM"],
    defaults: r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0}"#,
    names: &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, FFN_NORM, GATED_FFN],
    rope: Rope::Neox,
    rope_tensors: RopeTensors::None,
    norm_offset: 0.0,
    runtime: Runtime::LLAMA,
    sliding_period: None,
    keys: &[keys::BASE],
    finish: |_, _| Ok(()),
};

pub static QWEN2: Arch = BASE;

//! SmolLM3: Llama without rotary embedding in every fourth layer, which runtimes know.

use super::llama;
use crate::arch::{Arch, Runtime};

pub static SMOLLM3: Arch = Arch {
    name: "smollm3",
    classes: &["SmolLM3ForCausalLM"],
    defaults: r#"{"vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36,
        "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768, "rms_norm_eps": 1e-6,
        "rope_theta": 2000000.0, "tie_word_embeddings": true}"#,
    finish: llama::rope_over_whole_head,
    runtime: Runtime { rope_skip_period: Some(4), ..Runtime::LLAMA },
    ..llama::BASE
};

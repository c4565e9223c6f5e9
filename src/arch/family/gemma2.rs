//! Gemma 2: four norms a layer, capped logits, every second layer attends to a window.

use super::gemma;
use crate::arch::names::*;
use crate::arch::{Arch, Runtime, keys};

pub static GEMMA2: Arch = Arch {
    name: "gemma2",
    classes: &["Gemma2ForCausalLM"],
    defaults: r#"{"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "tie_word_embeddings": true, "sliding_window": 4096,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}"#,
    names: &[EMBEDDING, ATTN_NORM, ATTENTION, FOUR_NORMS, GATED_FFN],
    sliding_period: Some(2),
    keys: &[gemma::KEYS, &[keys::ATTN_SOFTCAP, keys::FINAL_SOFTCAP, keys::SLIDING_WINDOW]],
    runtime: Runtime { query_scalar: |spec| gemma::query_scalar(spec, 46), ..Runtime::GEMMA },
    ..gemma::BASE
};

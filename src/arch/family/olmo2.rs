//! OLMo 2: norms after attention and feed-forward instead of before, norms over all of q and k.

use super::qwen2;
use crate::arch::Arch;
use crate::arch::names::*;

pub static OLMO2: Arch = Arch {
    name: "olmo2",
    classes: &["Olmo2ForCausalLM"],
    defaults: r#"{"vocab_size": 50304, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
        "num_attention_heads": 32, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5, "rope_theta": 10000.0}"#,
    names: &[EMBEDDING, HEAD, ATTENTION, QK_NORM, NORMS, GATED_FFN],
    ..qwen2::BASE
};

const NORMS: &[Name] = &[
    name("model.layers.{L}.post_attention_layernorm", "blk.{L}.post_attention_norm"),
    name("model.layers.{L}.post_feedforward_layernorm", "blk.{L}.post_ffw_norm"),
];

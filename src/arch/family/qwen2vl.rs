//! Qwen 2 VL and 2.5 VL: Qwen 2 as the language model of the multimodal class.

use super::qwen2;
use crate::arch::Arch;

pub static QWEN2VL: Arch = Arch {
    name: "qwen2vl",
    classes: &["Qwen2VLForConditionalGeneration", "Qwen2_5_VLForConditionalGeneration"],
    defaults: r#"{"vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768, "rms_norm_eps": 1e-5,
        "rope_theta": 1000000.0}"#,
    ..qwen2::BASE
};

//! Qwen 3 VL: Qwen 3 as the language model of the multimodal class.

use super::{qwen2, qwen3};
use crate::arch::config::Config;
use crate::arch::{Arch, ModelSpec, keys};
use crate::error::Result;

pub static QWEN3VL: Arch = Arch {
    name: "qwen3vl",
    classes: &["Qwen3VLForConditionalGeneration"],
    defaults: r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "head_dim": 128, "max_position_embeddings": 128000,
        "rms_norm_eps": 1e-6, "rope_theta": 5000000.0}"#,
    names: qwen3::NAMES,
    keys: &[keys::BASE, &[keys::DEEPSTACK_LAYERS]],
    finish,
    ..qwen2::BASE
};

/// How many layers of the vision tower are added to hidden states.
fn finish(config: &Config<'_>, spec: &mut ModelSpec) -> Result<()> {
    let vision = Config::inside(config.object("vision_config")?);
    let layers = vision.reals("deepstack_visual_indexes")?.unwrap_or_default().len();
    spec.deepstack_layers = Some(u32::try_from(layers).unwrap_or(u32::MAX));
    Ok(())
}

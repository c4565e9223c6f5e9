//! Gemma 3, alone or as the language model of the multimodal class: norms on q and k, five of six layers attend to a
//! window and use their own rope base.

use super::gemma;
use crate::arch::config::Config;
use crate::arch::names::*;
use crate::arch::{Arch, ModelSpec, Runtime, keys};
use crate::error::{Error, Result};

pub static GEMMA3: Arch = Arch {
    name: "gemma3",
    classes: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    defaults: r#"{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "tie_word_embeddings": true,
        "sliding_window": 4096}"#,
    names: &[EMBEDDING, HEAD, ATTN_NORM, ATTENTION, QK_NORM, FOUR_NORMS, GATED_FFN],
    sliding_period: Some(6),
    keys: &[keys::BASE, &[keys::FINAL_SOFTCAP, keys::SLIDING_WINDOW]],
    finish,
    runtime: Runtime {
        window_rope_base: Some(10_000.0),
        query_scalar: |spec| gemma::query_scalar(spec, 62),
        ..Runtime::GEMMA
    },
    ..gemma::BASE
};

fn finish(config: &Config<'_>, spec: &mut ModelSpec) -> Result<()> {
    if spec.attn_softcap.is_some() {
        return Err(Error::unsupported("gemma3 has no attn_logit_softcapping"));
    }
    if let Some(period) = config.count(&["sliding_window_pattern"])? {
        spec.sliding_period = Some(period);
    }
    if spec.sliding_period == Some(1) {
        spec.sliding_window = None;
    }
    Ok(())
}

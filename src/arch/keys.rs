//! One row for each fact: its field, its names in config.json, its key and value type in GGUF.
//! Source: llama.cpp `conversion/base.py` (set_gguf_parameters), `gguf-py/gguf/constants.py`.

use super::config::Config;
use super::{Arch, ModelSpec};
use crate::error::{Error, Result};
use crate::metadata::{Array, Value};

/// A fact's place in a [`ModelSpec`]; its kind fixes the GGUF value type and whether it may be absent.
pub enum Slot<'a> {
    Count(&'a mut u32),
    MaybeCount(&'a mut Option<u32>),
    /// Above 0.
    Real(&'a mut f32),
    MaybeReal(&'a mut Option<f32>),
    MaybeBool(&'a mut Option<bool>),
    MaybeText(&'a mut Option<String>),
    /// Four small numbers.
    MaybeFour(&'a mut Option<[u32; 4]>),
}

#[derive(Clone, Copy)]
pub struct Key {
    /// GGUF key without the architecture in front.
    pub gguf: &'static str,
    /// Names in config.json, the first present one counts. None: `arch::rope` or the family fills the field.
    pub hf: &'static [&'static str],
    pub field: fn(&mut ModelSpec) -> Slot<'_>,
}

impl Key {
    pub fn name(&self, arch: &Arch) -> String {
        format!("{}.{}", arch.name, self.gguf)
    }
}

impl Slot<'_> {
    /// As GGUF stores it; `None` if the fact is not stated.
    pub fn value(&self) -> Option<Value> {
        match self {
            Slot::Count(v) => Some(Value::U32(**v)),
            Slot::MaybeCount(v) => v.map(Value::U32),
            Slot::Real(v) => Some(Value::F32(**v)),
            Slot::MaybeReal(v) => v.map(Value::F32),
            Slot::MaybeBool(v) => v.map(Value::Bool),
            Slot::MaybeText(v) => v.as_ref().map(|text| Value::Str(text.clone())),
            Slot::MaybeFour(v) => v.map(|four| Value::Array(Array::I32(four.map(|n| n as i32).to_vec()))),
        }
    }

    /// From config.json; an absent key leaves the field as it is.
    pub fn read(self, config: &Config<'_>, names: &[&'static str]) -> Result<()> {
        match self {
            Slot::Count(v) => *v = config.count(names)?.unwrap_or(*v),
            Slot::MaybeCount(v) => *v = config.count(names)?.or(*v),
            Slot::Real(v) => *v = config.positive(names)?.map_or(*v, |x| x as f32),
            Slot::MaybeReal(v) => *v = config.real(names)?.map(|x| x as f32).or(*v),
            Slot::MaybeBool(_) | Slot::MaybeText(_) | Slot::MaybeFour(_) => {}
        }
        Ok(())
    }

    /// From GGUF metadata.
    pub fn set(self, value: &Value) -> Result<()> {
        let wrong = || Error::input(format!("unexpected value {value}"));
        let count = || value.as_u64().and_then(|n| u32::try_from(n).ok()).ok_or_else(wrong);
        let real = || value.as_f64().map(|x| x as f32).filter(|x| x.is_finite()).ok_or_else(wrong);
        match self {
            Slot::Count(v) => *v = count()?,
            Slot::MaybeCount(v) => *v = Some(count()?),
            Slot::Real(v) => *v = real()?,
            Slot::MaybeReal(v) => *v = Some(real()?),
            Slot::MaybeBool(v) => *v = Some(value.as_bool().ok_or_else(wrong)?),
            Slot::MaybeText(v) => *v = Some(value.as_str().ok_or_else(wrong)?.to_owned()),
            Slot::MaybeFour(v) => {
                let Some(Array::I32(all)) = value.as_array() else { return Err(wrong()) };
                let all: Vec<u32> = all
                    .iter()
                    .map(|n| u32::try_from(*n))
                    .collect::<std::result::Result<_, _>>()
                    .map_err(|_| wrong())?;
                *v = Some(<[u32; 4]>::try_from(all).map_err(|_| wrong())?);
            }
        }
        Ok(())
    }
}

macro_rules! keys {
    ($($name:ident = $gguf:literal [$($hf:literal),*] $kind:ident $field:ident;)*) => {
        $(pub const $name: Key = Key { gguf: $gguf, hf: &[$($hf),*], field: |s| Slot::$kind(&mut s.$field) };)*
        /// Every fact that config.json or GGUF metadata can state.
        pub static KEYS: &[Key] = &[$($name),*];
    };
}

keys! {
    BLOCK_COUNT = "block_count" ["n_layers", "num_hidden_layers", "n_layer", "num_layers"] Count layers;
    CONTEXT_LENGTH = "context_length"
        ["max_position_embeddings", "n_ctx", "n_positions", "max_length", "max_sequence_length", "model_max_length"]
        MaybeCount context;
    EMBEDDING_LENGTH = "embedding_length" ["hidden_size", "n_embd", "dim"] Count hidden;
    FEED_FORWARD_LENGTH = "feed_forward_length"
        ["prefix_dense_intermediate_size", "dense_intermediate_size", "intermediate_size", "n_inner", "hidden_dim"]
        Count ffn;
    HEAD_COUNT = "attention.head_count" ["num_attention_heads", "n_head", "n_heads"] Count heads;
    HEAD_COUNT_KV = "attention.head_count_kv" ["num_key_value_heads", "n_kv_heads"] MaybeCount kv_heads;
    CAUSAL = "attention.causal" [] MaybeBool causal;
    ROPE_SCALING_TYPE = "rope.scaling.type" [] MaybeText rope_scaling;
    ROPE_SCALING_FACTOR = "rope.scaling.factor" [] MaybeReal rope_factor;
    ROPE_ORIGINAL_CONTEXT = "rope.scaling.original_context_length" [] MaybeCount rope_original_context;
    YARN_EXT_FACTOR = "rope.scaling.yarn_ext_factor" [] MaybeReal yarn_ext_factor;
    YARN_ATTN_FACTOR = "rope.scaling.yarn_attn_factor" [] MaybeReal yarn_attn_factor;
    YARN_BETA_FAST = "rope.scaling.yarn_beta_fast" [] MaybeReal yarn_beta_fast;
    YARN_BETA_SLOW = "rope.scaling.yarn_beta_slow" [] MaybeReal yarn_beta_slow;
    ROPE_SECTIONS = "rope.dimension_sections" [] MaybeFour rope_sections;
    ROPE_FREQ_BASE = "rope.freq_base" [] MaybeReal rope_base;
    ROPE_FREQ_BASE_SWA = "rope.freq_base_swa" [] MaybeReal rope_base_swa;
    RMS_EPS = "attention.layer_norm_rms_epsilon" ["rms_norm_eps", "norm_eps"] Real rms_eps;
    EXPERT_COUNT = "expert_count" ["num_local_experts", "num_experts", "n_routed_experts"] MaybeCount experts;
    EXPERT_USED_COUNT = "expert_used_count"
        ["num_experts_per_tok", "num_experts_per_token", "top_k_experts"] MaybeCount experts_used;
    EXPERT_GROUP_COUNT = "expert_group_count" ["n_group"] MaybeCount expert_groups;
    EXPERT_GROUP_USED_COUNT = "expert_group_used_count" ["topk_group"] MaybeCount expert_groups_used;
    EXPERT_GATING_FUNC = "expert_gating_func" [] MaybeCount expert_gating;
    KEY_LENGTH = "attention.key_length" ["head_dim"] MaybeCount head_dim;
    VALUE_LENGTH = "attention.value_length" ["head_dim"] MaybeCount head_dim;
    FURTHER_TOKENS = "nextn_predict_layers"
        ["num_nextn_predict_layers", "mtp_num_hidden_layers", "num_mtp_modules"] MaybeCount further_tokens;
    VOCAB_SIZE = "vocab_size" ["vocab_size"] MaybeCount vocab;
    ROPE_DIMENSION_COUNT = "rope.dimension_count" [] MaybeCount rope_dim;
    EXPERT_FEED_FORWARD_LENGTH = "expert_feed_forward_length" ["moe_intermediate_size"] MaybeCount expert_ffn;
    EXPERT_SHARED_FEED_FORWARD_LENGTH =
        "expert_shared_feed_forward_length" ["shared_expert_intermediate_size"] MaybeCount shared_expert_ffn;
    SLIDING_WINDOW = "attention.sliding_window" ["sliding_window"] MaybeCount sliding_window;
    ATTN_SOFTCAP = "attn_logit_softcapping" ["attn_logit_softcapping"] MaybeReal attn_softcap;
    FINAL_SOFTCAP = "final_logit_softcapping" ["final_logit_softcapping"] MaybeReal final_softcap;
    DEEPSTACK_LAYERS = "n_deepstack_layers" [] MaybeCount deepstack_layers;
    ROPE_ATTN_FACTOR = "rope.scaling.attn_factor" [] MaybeReal rope_attn_factor;
}

/// What the converter writes for a family without rules of its own.
pub const BASE: &[Key] = &[
    BLOCK_COUNT,
    CONTEXT_LENGTH,
    EMBEDDING_LENGTH,
    FEED_FORWARD_LENGTH,
    HEAD_COUNT,
    HEAD_COUNT_KV,
    CAUSAL,
    ROPE_SCALING_TYPE,
    ROPE_SCALING_FACTOR,
    ROPE_ORIGINAL_CONTEXT,
    YARN_EXT_FACTOR,
    YARN_ATTN_FACTOR,
    YARN_BETA_FAST,
    YARN_BETA_SLOW,
    ROPE_SECTIONS,
    ROPE_FREQ_BASE,
    ROPE_FREQ_BASE_SWA,
    RMS_EPS,
    EXPERT_COUNT,
    EXPERT_USED_COUNT,
    EXPERT_GROUP_COUNT,
    EXPERT_GROUP_USED_COUNT,
    EXPERT_GATING_FUNC,
    KEY_LENGTH,
    VALUE_LENGTH,
];

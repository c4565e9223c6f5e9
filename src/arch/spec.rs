//! The facts about one model that a runtime needs, whichever container they come from.

use serde_json::Value;

use super::config::Config;
use super::keys::{self, KEYS};
use super::rope::{self, Llama3, RopeTensors};
use super::{ARCHES, Arch, Rope, for_class};
use crate::error::{Error, Result};
use crate::metadata::Metadata;

/// Facts as the files state them; `None` is "not stated". The methods say what absence means.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModelSpec {
    pub layers: u32,
    pub hidden: u32,
    /// Width of a dense feed-forward layer.
    pub ffn: u32,
    pub heads: u32,
    pub kv_heads: Option<u32>,
    pub head_dim: Option<u32>,
    pub vocab: Option<u32>,
    pub context: Option<u32>,
    pub rms_eps: f32,
    pub causal: Option<bool>,
    /// config.json says that `lm_head` is the embedding. GGUF says so by having no `output.weight`.
    pub tied: bool,

    pub experts: Option<u32>,
    pub experts_used: Option<u32>,
    /// Width of one expert, where it differs from `ffn`.
    pub expert_ffn: Option<u32>,
    /// Width of the expert that every token visits.
    pub shared_expert_ffn: Option<u32>,
    pub expert_groups: Option<u32>,
    pub expert_groups_used: Option<u32>,
    /// 1 softmax, 2 sigmoid.
    pub expert_gating: Option<u32>,

    /// Layers behind the last that predict further tokens; not counted in `layers`.
    pub further_tokens: Option<u32>,

    /// Layers alternate between this window and full attention; see [`ModelSpec::is_sliding`].
    pub sliding_window: Option<u32>,
    pub sliding_period: Option<u32>,
    pub attn_softcap: Option<f32>,
    pub final_softcap: Option<f32>,
    /// Scores are divided by its square root; unknown when read from GGUF.
    pub query_scalar: Option<f32>,

    pub rope_dim: Option<u32>,
    /// Pairs of a head that turn by an image's time, height and width; in a text these are the same position.
    pub rope_sections: Option<[u32; 4]>,
    /// Layers of a vision tower whose outputs are added to hidden states.
    pub deepstack_layers: Option<u32>,
    pub rope_base: Option<f32>,
    /// Base of the layers with a sliding window, where it differs.
    pub rope_base_swa: Option<f32>,
    /// `linear`, `yarn` or `longrope`; the `llama3` rule is in [`ModelSpec::llama3`].
    pub rope_scaling: Option<String>,
    pub rope_factor: Option<f32>,
    pub rope_original_context: Option<u32>,
    pub rope_attn_factor: Option<f32>,
    pub yarn_ext_factor: Option<f32>,
    pub yarn_attn_factor: Option<f32>,
    pub yarn_beta_fast: Option<f32>,
    pub yarn_beta_slow: Option<f32>,
    /// The rule behind `rope_freqs.weight`; unknown when read from GGUF, which stores its result.
    pub llama3: Option<Llama3>,
    /// Per-frequency divisors of longrope beyond and within the original context; empty when read from GGUF.
    pub rope_long: Vec<f32>,
    pub rope_short: Vec<f32>,
}

impl ModelSpec {
    /// Reads config.json of a Hugging Face folder.
    pub fn from_config(config: &Value) -> Result<(&'static Arch, ModelSpec)> {
        let arch = for_class(class(config)?)?;
        let defaults = serde_json::from_str(arch.defaults).map_err(|e| Error::input(e.to_string()).at(arch.name))?;
        let config = Config::new(config, &defaults)?;
        if let Some((key, stated)) = config.find(&["hidden_activation", "hidden_act"]) {
            let known = arch.runtime.activation.names();
            if !known.iter().any(|name| *stated == **name) {
                let message = format!("{key} is {stated}, of {} models {} is known", arch.name, known[0]);
                return Err(Error::unsupported(message).at("config.json"));
            }
        }
        let mut spec = ModelSpec {
            // Stated only where it is unusual.
            causal: config.bool("is_causal")?.filter(|causal| !causal),
            tied: config.bool("tie_word_embeddings")?.unwrap_or(false),
            sliding_period: arch.sliding_period,
            query_scalar: config.real(&["query_pre_attn_scalar"])?.map(|x| x as f32),
            ..ModelSpec::default()
        };
        for key in KEYS {
            (key.field)(&mut spec).read(&config, key.hf)?;
        }
        config.positive(keys::CONTEXT_LENGTH.hf)?;
        // What is no id would be passed over, and the model would begin or end its texts in another way.
        ["bos_token_id", "eos_token_id"].iter().try_for_each(|key| config.token_ids(key))?;
        rope::read(&config, &mut spec)?;
        if spec.llama3.is_some() && arch.rope_tensors != RopeTensors::Llama3 {
            return Err(
                Error::unsupported(format!("{} models cannot carry llama3 rope scaling", arch.name)).at("config.json")
            );
        }
        spec.check(arch).map_err(|e| e.at("config.json"))?;
        spec.kv_heads = spec.kv_heads.or(Some(spec.heads));
        (arch.finish)(&config, &mut spec).map_err(|e| e.at("config.json"))?;
        Ok((arch, spec))
    }

    /// Reads a GGUF file's metadata.
    pub fn from_metadata(metadata: &Metadata) -> Result<(&'static Arch, ModelSpec)> {
        let name = metadata.str("general.architecture").ok_or_else(|| Error::input("no general.architecture"))?;
        let experts = metadata.u64(&format!("{name}.expert_count")).unwrap_or(0) > 0;
        let families = || ARCHES.iter().copied().filter(|a| a.name == name);
        let arch = families().find(|a| a.has_experts() == experts).or_else(|| families().next()).ok_or_else(|| {
            let known: Vec<_> = ARCHES.iter().map(|a| a.name).collect();
            Error::unsupported(format!("unknown architecture {name:?}")).help(format!("known: {}", known.join(", ")))
        })?;
        let mut spec = ModelSpec { sliding_period: arch.sliding_period, ..ModelSpec::default() };
        for key in KEYS {
            let name = key.name(arch);
            if let Some(value) = metadata.get(&name) {
                (key.field)(&mut spec).set(value).map_err(|e| e.at(name))?;
            }
        }
        spec.check(arch)?;
        Ok((arch, spec))
    }

    /// What every layer's arithmetic relies on.
    fn check(&self, arch: &Arch) -> Result<()> {
        let positive = [
            ("num_hidden_layers", self.layers),
            ("hidden_size", self.hidden),
            ("intermediate_size", self.ffn),
            ("num_attention_heads", self.heads),
            ("num_key_value_heads", self.kv_heads.unwrap_or(1)),
            ("head_dim", self.head_dim.unwrap_or(1)),
        ];
        if let Some((name, _)) = positive.into_iter().find(|(_, v)| *v == 0) {
            return Err(Error::input(format!("{name} is missing or zero")));
        }
        if self.heads > self.hidden && self.head_dim.is_none() {
            return Err(Error::input(format!("{} heads do not fit hidden_size {}", self.heads, self.hidden)));
        }
        if !self.heads.is_multiple_of(self.kv_heads() as u32) {
            let kv = self.kv_heads();
            return Err(Error::input(format!(
                "{} attention heads are no multiple of {kv} key-value heads",
                self.heads
            )));
        }
        if arch.rope == Rope::Norm && !self.head_dim().is_multiple_of(2) {
            return Err(Error::input(format!("head_dim is {}, rotary embedding needs pairs", self.head_dim())));
        }
        // Far beyond any model; below, no product of two facts overflows and no table made from them is large.
        const MOST: u32 = 1 << 16;
        let limited = [
            ("num_hidden_layers", self.layers),
            ("num_attention_heads", self.heads),
            ("head_dim", self.head_dim() as u32),
            ("num_experts", self.experts()),
        ];
        if let Some((name, v)) = limited.into_iter().find(|(_, v)| *v > MOST) {
            return Err(Error::input(format!("{name} is {v}, more than any model has")));
        }
        Ok(())
    }

    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads) as usize
    }
    /// Width of one attention head; at least 1.
    pub fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden / self.heads.max(1)).max(1) as usize
    }
    pub fn rope_dim(&self) -> usize {
        self.rope_dim.map_or(self.head_dim(), |d| d as usize)
    }
    /// 0: a dense model.
    pub fn experts(&self) -> u32 {
        self.experts.unwrap_or(0)
    }
    pub fn expert_ffn(&self) -> usize {
        self.expert_ffn.unwrap_or(self.ffn) as usize
    }
    pub fn is_sliding(&self, layer: u32) -> bool {
        let windowed = self.sliding_window.is_some_and(|w| w > 0);
        windowed && self.sliding_period.is_some_and(|p| p > 0 && !(u64::from(layer) + 1).is_multiple_of(p.into()))
    }
}

/// The class whose weights these are. A language model inside a larger one may name its own.
fn class(config: &Value) -> Result<&str> {
    let text = config.get("text_config").and_then(|t| t.get("architectures"));
    let classes = text.filter(|v| !v.is_null()).or_else(|| config.get("architectures"));
    classes.and_then(|c| c.get(0)?.as_str()).ok_or_else(|| {
        Error::input("no model class in `architectures`").at("config.json").help("is this the model's config.json?")
    })
}

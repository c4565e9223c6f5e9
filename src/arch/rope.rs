//! Rotary embedding: its keys in config.json, and the per-frequency factors that GGUF stores as tensors.
//! Source: llama.cpp `conversion/base.py` (TextModel), `conversion/llama.py` and `conversion/phi.py` (generate_extra_tensors).

use serde_json::Value;

use super::config::Config;
use super::{Arch, ModelSpec};
use crate::error::{Error, Result};

/// Which factor tensors a family's GGUF carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RopeTensors {
    None,
    /// `rope_freqs.weight` when config.json asks for Llama 3's frequency rule.
    Llama3,
    /// `rope_factors_long.weight` and `rope_factors_short.weight` of longrope.
    Long,
}

/// Llama 3's rule: long wavelengths are stretched by `factor`, short ones kept, those between blended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Llama3 {
    pub base: f64,
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    pub original_context: f64,
}

const GLOBAL_BASE: &[&str] =
    &["global_rope_theta", "rope_global_theta", "rope_theta_global", "rope_theta", "rotary_emb_base"];
const LOCAL_BASE: &[&str] =
    &["local_rope_theta", "rope_local_theta", "rope_theta_local", "swa_rope_theta", "rope_local_base_freq"];

/// `rope_scaling` of transformers 4, or `rope_parameters` of transformers 5, which may be nested by layer type.
struct Parameters<'a> {
    /// Those of layers with full attention.
    global: Config<'a>,
    /// Those of layers with a sliding window, if stated apart.
    local: Option<Config<'a>>,
    /// Nested parameters are complete; others are completed from the top level.
    nested: bool,
}

impl<'a> Parameters<'a> {
    fn new(config: &Config<'a>) -> Result<Self> {
        let key = if config.has("rope_parameters") { "rope_parameters" } else { "rope_scaling" };
        let all = config.object(key)?;
        let part = |key| all?.get(key).and_then(Value::as_object);
        let (global, local) = (part("full_attention"), part("sliding_attention"));
        let nested = global.is_some() || local.is_some();
        let global = Config::inside(global.or(all));
        Ok(Parameters { global, local: local.map(|l| Config::inside(Some(l))), nested })
    }
}

/// The context length a model was trained with before it was extended.
pub fn original_context(config: &Config<'_>) -> Result<Option<u32>> {
    let Parameters { global, nested, .. } = Parameters::new(config)?;
    match global.count(&["original_max_position_embeddings"])? {
        None if !nested => config.count(&["original_max_position_embeddings"]),
        stated => Ok(stated),
    }
}

/// The share of a head that rope turns.
pub fn partial(config: &Config<'_>) -> Result<Option<f64>> {
    let Parameters { global, nested, .. } = Parameters::new(config)?;
    match global.real(&["partial_rotary_factor"])? {
        None if !nested => config.real(&["partial_rotary_factor", "rope_pct", "rope_percent"]),
        stated => Ok(stated),
    }
}

/// Fills the rope fields of `spec`.
pub fn read(config: &Config<'_>, spec: &mut ModelSpec) -> Result<()> {
    let Parameters { global, local, nested } = Parameters::new(config)?;
    let base = match global.positive(&["rope_theta"])? {
        None if !nested => config.positive(GLOBAL_BASE)?,
        stated => stated,
    };
    spec.rope_base = base.map(|b| b as f32);
    spec.rope_base_swa = match local {
        Some(local) => local.positive(&["rope_theta"])?,
        None if !nested => config.positive(LOCAL_BASE)?,
        None => None,
    }
    .map(|b| b as f32);

    let sections = global.reals("mrope_section")?.filter(|s| !s.is_empty());
    spec.rope_sections = sections.map(|s| std::array::from_fn(|i| s.get(i).map_or(0, |n| *n as u32)));
    let original = original_context(config)?;
    let kind = match global.text("rope_type")? {
        None => global.text("type")?,
        stated => stated,
    };
    let real = |key| Ok::<_, Error>(global.real(&[key])?.map(|x| x as f32));
    match kind.unwrap_or("default") {
        "default" | "dynamic" | "mrope" => {}
        kind @ ("linear" | "yarn") => {
            spec.rope_scaling = Some(kind.to_owned());
            spec.rope_factor = Some(real("factor")?.ok_or_else(|| missing(kind, "factor"))?);
            if kind == "yarn" {
                let original = original.ok_or_else(|| missing(kind, "original_max_position_embeddings"))?;
                spec.rope_original_context = Some(original);
                spec.yarn_ext_factor = real("extrapolation_factor")?;
                spec.yarn_attn_factor = match global.has("attention_factor") {
                    true => real("attention_factor")?,
                    false => real("attn_factor")?,
                };
                spec.yarn_beta_fast = real("beta_fast")?;
                spec.yarn_beta_slow = real("beta_slow")?;
            }
        }
        "su" | "longrope" => {
            spec.rope_scaling = Some("longrope".to_owned());
            spec.rope_long = factors(&global, "long_factor")?;
            spec.rope_short = factors(&global, "short_factor")?;
        }
        llama3 if llama3.eq_ignore_ascii_case("llama3") => {
            let rule = Llama3 {
                base: base.unwrap_or(10000.0),
                factor: global.real(&["factor"])?.unwrap_or(8.0),
                low_freq_factor: global.real(&["low_freq_factor"])?.unwrap_or(1.0),
                high_freq_factor: global.real(&["high_freq_factor"])?.unwrap_or(4.0),
                original_context: original.map_or(8192.0, f64::from),
            };
            let all = [rule.base, rule.factor, rule.low_freq_factor, rule.original_context];
            if all.iter().any(|x| *x <= 0.0) || rule.low_freq_factor >= rule.high_freq_factor {
                return Err(Error::input(format!("impossible llama3 rope scaling: {rule:?}")).at("config.json"));
            }
            spec.llama3 = Some(rule);
        }
        other => return Err(Error::unsupported(format!("unknown rope type {other:?}")).at("config.json")),
    }
    Ok(())
}

fn missing(kind: &str, key: &str) -> Error {
    Error::input(format!("rope type {kind} needs {key}")).at("config.json")
}

fn factors(rope: &Config<'_>, key: &'static str) -> Result<Vec<f32>> {
    Ok(rope.reals(key)?.unwrap_or_default().into_iter().map(|x| x as f32).collect())
}

impl Arch {
    /// Tensors that GGUF stores and Hugging Face computes: f32 vectors by name.
    pub fn extra_tensors(&self, spec: &ModelSpec) -> Vec<(String, Vec<f32>)> {
        match (self.rope_tensors, spec.llama3) {
            (RopeTensors::Llama3, Some(rule)) => vec![("rope_freqs.weight".into(), rule.factors(spec.head_dim()))],
            (RopeTensors::Long, _) if !spec.rope_long.is_empty() => vec![
                ("rope_factors_long.weight".into(), spec.rope_long.clone()),
                ("rope_factors_short.weight".into(), spec.rope_short.clone()),
            ],
            _ => Vec::new(),
        }
    }
}

impl Llama3 {
    /// One divisor per pair of a head. In f32 and in the converter's order of operations, whose divisions of a number
    /// by a tensor are multiplications by its reciprocal.
    pub fn factors(&self, head_dim: usize) -> Vec<f32> {
        let (factor, low) = (self.factor as f32, self.low_freq_factor as f32);
        let context = self.original_context;
        let longest = (context / self.low_freq_factor) as f32;
        let shortest = (context / self.high_freq_factor) as f32;
        let span = (self.high_freq_factor - self.low_freq_factor) as f32;
        let one = |pair: usize| {
            let exponent = (2 * pair) as f32 / head_dim as f32;
            let frequency = 1.0 / f64::powf(f64::from(self.base as f32), f64::from(exponent)) as f32;
            let wavelength = 1.0 / frequency * std::f64::consts::TAU as f32;
            if wavelength < shortest {
                1.0
            } else if wavelength > longest {
                factor
            } else {
                let smooth = (1.0 / wavelength * context as f32 - low) / span;
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        (0..head_dim.div_ceil(2)).map(one).collect()
    }
}

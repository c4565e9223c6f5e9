//! What rules may ask about a model.

use crate::error::{Error, Result};
use crate::metadata::{Array, Metadata, Value};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFacts {
    /// GGUF's name of the architecture: `llama`.
    pub arch: String,
    /// All layers, also those that only predict further tokens.
    pub layers: u32,
    /// Attention heads of the first layer.
    pub heads: u32,
    /// Key and value heads of the first layer; 0 if it has no attention.
    pub kv_heads: u32,
    /// Experts per layer; 0 in dense models.
    pub experts: u32,
    /// Whether an importance matrix is given.
    pub has_importance: bool,
}

impl ModelFacts {
    /// From the metadata of a GGUF file. Errors: an architecture or a layer count is missing.
    pub fn of(metadata: &Metadata, has_importance: bool) -> Result<ModelFacts> {
        let missing = |key: &str| Error::input(format!("the metadata has no {key}"));
        let arch = metadata.str("general.architecture").ok_or_else(|| missing("general.architecture"))?;
        let number = |key: &str| metadata.get(&format!("{arch}.{key}")).and_then(first);
        let heads = number("attention.head_count").unwrap_or(0);
        Ok(ModelFacts {
            arch: arch.to_owned(),
            layers: number("block_count").ok_or_else(|| missing(&format!("{arch}.block_count")))?,
            heads,
            kv_heads: number("attention.head_count_kv").unwrap_or(heads),
            experts: number("expert_count").unwrap_or(0),
            has_importance,
        })
    }

    /// Query heads that share one key and value head: 8 in Llama 3 70B, 1 without grouping, 0 without attention.
    pub fn gqa(&self) -> u32 {
        self.heads.checked_div(self.kv_heads).unwrap_or(0)
    }
}

/// A number, or the first layer's where each layer has its own.
fn first(value: &Value) -> Option<u32> {
    let number = match value {
        Value::Array(Array::U32(v)) => u64::from(*v.first()?),
        Value::Array(Array::I32(v)) => u64::try_from(*v.first()?).ok()?,
        other => other.as_u64()?,
    };
    number.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_layers_heads_count() {
        let mut metadata = Metadata::default();
        metadata.set("general.architecture", "deci");
        assert!(ModelFacts::of(&metadata, false).unwrap_err().message().contains("deci.block_count"));
        metadata.set("deci.block_count", 3u32);
        metadata.set("deci.attention.head_count", vec![64i32, 0, 32]);
        let facts = ModelFacts::of(&metadata, true).unwrap();
        assert_eq!((facts.kv_heads, facts.gqa(), facts.experts), (64, 1, 0));
        metadata.set("deci.attention.head_count_kv", vec![8u32, 0, 8]);
        assert_eq!(ModelFacts::of(&metadata, true).unwrap().gqa(), 8);
        metadata.set("deci.attention.head_count_kv", 0u32);
        assert_eq!(ModelFacts::of(&metadata, true).unwrap().gqa(), 0);
    }
}

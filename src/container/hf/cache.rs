//! Scales of the KV cache that lie beside packed weights.

use super::integers::number;
use super::shards::{Located, Shard};
use crate::container::Tensor;
use crate::error::{Error, Result};

/// Of keys and of values.
const SUFFIXES: [&str; 2] = [".k_scale", ".v_scale"];

/// The tensors that may be such scales.
pub fn scales(located: &[Located]) -> Vec<Located> {
    let is_scale = |l: &&Located| SUFFIXES.iter().any(|suffix| l.entry.name.ends_with(suffix));
    located.iter().filter(is_scale).cloned().collect()
}

/// Those of each layer's keys and values, as runtimes take them: one of a pair stands for both, and where a layer has none, 1.
/// Source: vLLM `BaseKVCacheMethod`.
///
/// Errors: a scale that is not one positive number.
pub fn read(found: &[Located], shards: &[Shard], tensors: &[Tensor], layers: u32) -> Result<Option<Vec<[f32; 2]>>> {
    let layer = |layer| -> Result<[f32; 2]> {
        let output = format!("blk.{layer}.attn_output.weight");
        // model.layers.0.self_attn.o_proj.weight, or a part of it
        let source = tensors.iter().find(|t| t.name == output).map_or("", |t| t.source.as_str());
        let module = source.rsplitn(3, '.').nth(2).unwrap_or(source);
        let own = |l: &&Located| l.entry.name.strip_prefix(module).is_some_and(|rest| rest.starts_with('.'));
        let scale = |suffix| {
            let found = found.iter().filter(own).find(|l| l.entry.name.ends_with(suffix));
            found.map(|l| value(l, shards)).transpose()
        };
        let [key, value] = SUFFIXES.map(scale);
        let [key, value] = [key?, value?];
        Ok([key.or(value), value.or(key)].map(|scale| scale.unwrap_or(1.0)))
    };
    (!found.is_empty()).then(|| (0..layers).map(layer).collect()).transpose()
}

fn value(located: &Located, shards: &[Shard]) -> Result<f32> {
    let raw = located.raw(shards);
    number(raw.bytes, raw.dtype).filter(|scale| scale.is_finite() && *scale > 0.0).ok_or_else(|| {
        let what =
            format!("a scale of the KV cache must be one positive number, this is {:?} of {}", raw.shape, raw.dtype);
        Error::unsupported(what).at(raw.name).at(&shards[located.shard].file)
    })
}

//! `quantization_config`: what loaders must be told about packed weights. Source: as `quantized`, which reads it back.

use serde_json::{Map, Value, json};

use super::mlx;
use crate::codec::{Family, Scheme};
use crate::error::{Error, Result};

/// A linear layer of the model and how its matrix is stored, if packed.
pub struct Module {
    /// `model.layers.0.mlp.down_proj`
    pub name: String,
    pub scheme: Option<Scheme>,
}

/// What goes into config.json, under these keys, and the file that older tools read instead, where there is one.
pub struct Declaration {
    pub config: Value,
    pub keys: &'static [&'static str],
    pub sidecar: Option<&'static str>,
}

/// Says how all modules are stored; `None` if none is packed.
///
/// Errors: formats of several methods, or settings that a method has for all weights alike.
pub fn declare(modules: &[Module]) -> Result<Option<Declaration>> {
    let Some(first) = modules.iter().find_map(|m| m.scheme) else { return Ok(None) };
    let plain: Vec<&str> = modules.iter().filter(|m| m.scheme.is_none()).map(|m| m.name.as_str()).collect();
    let (config, sidecar) = match first.family {
        Family::Gptq | Family::GptqV2 => (gptq(&alike(modules)?, &plain), Some("quantize_config.json")),
        Family::Awq => (awq(&alike(modules)?, &plain), None),
        Family::Packed | Family::Int => (compressed_tensors(modules, &plain)?, None),
        Family::Mlx => return mlx::declare(modules).map(Some),
    };
    fused_alike(modules)?;
    Ok(Some(Declaration { config, keys: &["quantization_config"], sidecar }))
}

/// The scheme of all packed modules.
fn alike(modules: &[Module]) -> Result<Scheme> {
    let mut packed = modules.iter().filter_map(|m| Some((&m.name, m.scheme?)));
    let (_, first) = packed.next().ok_or_else(|| Error::request("no weight is packed"))?;
    match packed.find(|(_, scheme)| *scheme != first) {
        None => Ok(first),
        Some((name, _)) => Err(Error::request("GPTQ and AWQ folders have one format for all their packed weights")
            .at(name)
            .help("give it that format or \"keep\", or use a recipe of compressed-tensors formats (w4a16)")),
    }
}

/// Matrices that runtimes fuse into one.
const FUSED: &[&[&str]] = &[&["q_proj", "k_proj", "v_proj"], &["gate_proj", "up_proj"], &["w1", "w3"]];

fn fused_alike(modules: &[Module]) -> Result<()> {
    for module in modules {
        let Some((parent, own)) = module.name.rsplit_once('.') else { continue };
        let Some(set) = FUSED.iter().find(|set| set[1..].contains(&own)) else { continue };
        let first =
            modules.iter().find(|m| m.name.strip_suffix(set[0]).and_then(|p| p.strip_suffix('.')) == Some(parent));
        if first.is_some_and(|first| first.scheme != module.scheme) {
            let message = format!("it and {} have different formats, but runtimes fuse them into one matrix", set[0]);
            return Err(Error::request(message)
                .at(&module.name)
                .help("give all of them one format, or keep all of them"));
        }
    }
    Ok(())
}

fn group_size(scheme: &Scheme) -> i64 {
    scheme.group.map_or(-1, |g| g as i64)
}

fn gptq(scheme: &Scheme, plain: &[&str]) -> Value {
    let layout = if scheme.family == Family::Gptq { "gptq" } else { "gptq_v2" };
    let mut config = json!({
        "quant_method": "gptq", "bits": scheme.bits, "group_size": group_size(scheme), "desc_act": false,
        "sym": scheme.symmetric, "lm_head": false, "checkpoint_format": layout, "format": layout, "pack_dtype": "int32",
        "meta": { "quantizer": [concat!("quant:", env!("CARGO_PKG_VERSION"))] }
    });
    let skipped = plain.iter().filter(|name| **name != HEAD);
    let rules: Map<String, Value> = skipped.map(|name| (format!("-:^{}$", regex::escape(name)), json!({}))).collect();
    if !rules.is_empty() {
        config["dynamic"] = Value::Object(rules);
    }
    config
}

fn awq(scheme: &Scheme, plain: &[&str]) -> Value {
    let plain = if plain.iter().all(|name| *name == HEAD) { Value::Null } else { json!(plain) };
    json!({
        "quant_method": "awq", "bits": scheme.bits, "group_size": group_size(scheme), "zero_point": true,
        "version": "gemm", "modules_to_not_convert": plain
    })
}

const HEAD: &str = "lm_head";

fn compressed_tensors(modules: &[Module], plain: &[&str]) -> Result<Value> {
    // The most frequent scheme stands for all linear layers; others name theirs.
    let mut kinds: Vec<(Value, Family, Vec<&str>)> = Vec::new();
    for module in modules {
        let Some(scheme) = &module.scheme else { continue };
        if !matches!(scheme.family, Family::Packed | Family::Int) {
            return Err(
                Error::request("GPTQ, AWQ, MLX and compressed-tensors formats cannot share a folder").at(&module.name)
            );
        }
        let weights = weights(scheme);
        match kinds.iter_mut().find(|(w, family, _)| (w, *family) == (&weights, scheme.family)) {
            Some((_, _, names)) => names.push(&module.name),
            None => kinds.push((weights, scheme.family, vec![&module.name])),
        }
    }
    kinds.sort_by_key(|(_, _, names)| std::cmp::Reverse(names.len()));
    let format = |family: Family| if family == Family::Int { "int-quantized" } else { "pack-quantized" };
    let mixed = kinds.iter().any(|(_, family, _)| *family != kinds[0].1);
    let mut groups = Map::new();
    for (n, (weights, family, names)) in kinds.iter().enumerate() {
        let targets = if n == 0 { json!(["Linear"]) } else { json!(names) };
        let mut group =
            json!({ "targets": targets, "weights": weights, "input_activations": null, "output_activations": null });
        if *family == Family::Int {
            // What such files are for: products of bytes, the activations rounded token by token as they come.
            group["input_activations"] =
                json!({ "num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true });
        }
        if mixed {
            group["format"] = json!(format(*family));
        }
        groups.insert(format!("group_{n}"), group);
    }
    let mut ignore = plain.to_vec();
    if !ignore.contains(&HEAD) {
        // Of a tied model it is no tensor, but a layer all the same.
        ignore.push(HEAD);
    }
    Ok(json!({
        "quant_method": "compressed-tensors", "format": if mixed { "mixed-precision" } else { format(kinds[0].1) },
        "quantization_status": "compressed", "config_groups": groups, "ignore": ignore, "kv_cache_scheme": null
    }))
}

fn weights(scheme: &Scheme) -> Value {
    let mut out = json!({ "num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, "dynamic": false });
    match scheme.group {
        Some(group) => {
            out["strategy"] = json!("group");
            out["group_size"] = json!(group);
        }
        None => out["strategy"] = json!("channel"),
    }
    out
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::container::hf::quantized::{Integers, Storage, method};

    fn module(name: &str, family: Family, bits: usize, group: Option<usize>) -> Module {
        let symmetric = family == Family::Gptq;
        Module { name: name.into(), scheme: Some(Scheme { family, bits, group, symmetric, scales: Dtype::F16 }) }
    }

    fn plain(name: &str) -> Module {
        Module { name: name.into(), scheme: None }
    }

    #[test]
    fn what_is_declared_is_read_back() {
        for (family, bits, group) in [
            (Family::Gptq, 4, Some(128)),
            (Family::GptqV2, 3, None),
            (Family::Awq, 4, Some(64)),
            (Family::Packed, 5, None),
            (Family::Int, 8, Some(128)),
        ] {
            let modules = [module("a.x", family, bits, group), module("a.y", family, bits, group), plain("lm_head")];
            let config = declare(&modules).unwrap().unwrap().config;
            let read = method(&config, config["quant_method"].as_str().unwrap()).unwrap();
            let family = if family == Family::Int { Family::Packed } else { family };
            let expected = Integers { family, widths: vec![bits], channel: group.is_none(), permuted: false };
            assert_eq!(read, Storage::Integers(expected));
        }
        assert!(declare(&[plain("a")]).unwrap().is_none());
    }

    #[test]
    fn layers_that_stay_are_listed() {
        let modules = |f| [module("l.0.mlp.x", f, 4, Some(32)), plain("l.0.mlp.gate"), plain("lm_head")];
        let config = |f| declare(&modules(f)).unwrap().unwrap().config;
        assert_eq!(config(Family::Packed)["ignore"], json!(["l.0.mlp.gate", "lm_head"]));
        assert_eq!(config(Family::Awq)["modules_to_not_convert"], json!(["l.0.mlp.gate", "lm_head"]));
        assert_eq!(config(Family::Gptq)["dynamic"], json!({ r"-:^l\.0\.mlp\.gate$": {} }));
    }

    #[test]
    fn several_schemes_have_groups_of_their_own() {
        let modules = [
            module("a.down", Family::Packed, 8, Some(128)),
            module("a.o", Family::Packed, 4, Some(128)),
            module("b.o", Family::Packed, 4, Some(128)),
        ];
        let config = declare(&modules).unwrap().unwrap().config;
        assert_eq!(config["format"], "pack-quantized");
        assert_eq!(config["config_groups"]["group_0"]["weights"]["num_bits"], 4);
        assert_eq!(config["config_groups"]["group_0"]["targets"], json!(["Linear"]));
        assert_eq!(config["config_groups"]["group_1"]["targets"], json!(["a.down"]));
        let mixed = [module("a", Family::Packed, 4, None), module("b", Family::Int, 8, None)];
        let config = declare(&mixed).unwrap().unwrap().config;
        assert_eq!(config["format"], "mixed-precision");
        assert_eq!(config["config_groups"]["group_1"]["format"], "int-quantized");
    }

    #[test]
    fn what_loaders_cannot_take_is_refused() {
        for (modules, message) in [
            ([module("a", Family::Gptq, 4, None), module("b", Family::Gptq, 8, None)], "one format for all"),
            ([module("a", Family::Packed, 4, None), module("b", Family::Awq, 4, None)], "cannot share a folder"),
            ([module("a.q_proj", Family::Packed, 4, None), module("a.k_proj", Family::Packed, 8, None)], "fuse"),
            ([module("a.gate_proj", Family::Packed, 4, None), plain("a.up_proj")], "fuse"),
        ] {
            let error = declare(&modules).err().unwrap();
            assert!(error.message().contains(message), "{error}");
        }
    }
}

//! `quantization_config`: what loaders must be told about packed weights. Source: as `quantized`, which reads it back.

use serde_json::{Map, Value, json};

use super::{bnb, mlx};
use crate::arch;
use crate::codec::{Activations, Family, Scheme, fp4};
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
    pub sidecar: Option<(&'static str, Value)>,
}

/// Where transformers looks.
pub const KEYS: &[&str] = &["quantization_config"];

/// Says how all modules are stored, and whether the KV cache has scales; `None` if none is packed.
///
/// Errors: formats of several methods, or settings that a method has for all weights alike.
pub fn declare(modules: &[Module], activations: Activations, cache: bool) -> Result<Option<Declaration>> {
    let Some(first) = modules.iter().find_map(|m| m.scheme) else { return Ok(None) };
    let mut plain: Vec<&str> = modules.iter().filter(|m| m.scheme.is_none()).map(|m| m.name.as_str()).collect();
    // Of a tied model the head is no tensor, but a layer all the same.
    if !modules.iter().any(|m| m.name == HEAD) {
        plain.push(HEAD);
    }
    let alone = |config| Declaration { config, keys: KEYS, sidecar: None };
    let declared = match first.family {
        Family::Mlx | Family::MlxFloat => return mlx::declare(modules).map(Some),
        Family::Gptq | Family::GptqV2 => {
            let config = gptq(&alike(modules)?, &plain);
            Declaration { sidecar: Some(("quantize_config.json", config.clone())), ..alone(config) }
        }
        Family::Awq if !plain.contains(&HEAD) => {
            let message = "loaders of AWQ look for a head that is not packed";
            return Err(Error::request(message).at(HEAD).help("keep the output, or make GPTQ or w4a16"));
        }
        Family::Awq => alone(awq(&alike(modules)?, &plain)),
        Family::GptOss => {
            alike(modules)?;
            alone(gpt_oss())
        }
        Family::Nf4 | Family::BnbFp4 => {
            // Names match as regular expressions.
            let plain: Vec<_> = ignored(&plain).iter().map(|name| name.trim_start_matches("re:").to_owned()).collect();
            alone(bnb::declare(&alike(modules)?, &plain))
        }
        Family::ModelOptFloat8 | Family::ModelOptNvfp4 => modelopt(&alike(modules)?, &plain, activations, cache),
        _ => alone(compressed_tensors(modules, &plain, activations, cache)?),
    };
    fused_alike(modules)?;
    Ok(Some(declared))
}

/// The scheme of all packed modules.
fn alike(modules: &[Module]) -> Result<Scheme> {
    let mut packed = modules.iter().filter_map(|m| Some((&m.name, m.scheme?)));
    let (_, first) = packed.next().ok_or_else(|| Error::request("no weight is packed"))?;
    match packed.find(|(_, scheme)| *scheme != first) {
        None => Ok(first),
        Some((name, _)) => Err(Error::request(
            "folders of GPTQ, AWQ, ModelOpt and bitsandbytes have one format for all their packed weights",
        )
        .at(name)
        .help("give it that format or \"keep\", or use a recipe of compressed-tensors formats (w4a16)")),
    }
}

/// Matrices that runtimes fuse into one, and what vLLM calls that.
const FUSED: &[(&[&str], Option<&str>)] = &[
    (&["q_proj", "k_proj", "v_proj"], Some("qkv_proj")),
    (&["gate_proj", "up_proj"], Some("gate_up_proj")),
    (&["w1", "w3"], None),
];

fn fused_alike(modules: &[Module]) -> Result<()> {
    for module in modules {
        let Some((parent, own)) = module.name.rsplit_once('.') else { continue };
        let Some((set, _)) = FUSED.iter().find(|(set, _)| set[1..].contains(&own)) else { continue };
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
        "sym": scheme.symmetric, "lm_head": !plain.contains(&HEAD), "checkpoint_format": layout, "format": layout, "pack_dtype": "int32",
        "meta": { "quantizer": [concat!("quant:", env!("CARGO_PKG_VERSION"))] }
    });
    let skipped = plain.iter().filter(|name| **name != HEAD);
    let rules: Map<String, Value> = skipped.map(|name| (format!("-:^{}$", asked(name)), json!({}))).collect();
    if !rules.is_empty() {
        config["dynamic"] = Value::Object(rules);
    }
    config
}

/// Of a module that stays as it is, the regular expression by which loaders know it: GPTQModel asks for `q_proj`, vLLM for `qkv_proj`.
fn asked(name: &str) -> String {
    let Some((parent, own)) = name.rsplit_once('.') else { return regex::escape(name) };
    match FUSED.iter().find(|(set, _)| set.contains(&own)) {
        Some((set, Some(whole))) => format!(r"{}\.({}|{whole})", regex::escape(parent), set.join("|")),
        _ => regex::escape(name),
    }
}

fn awq(scheme: &Scheme, plain: &[&str]) -> Value {
    let plain = if plain.iter().all(|name| *name == HEAD) { Value::Null } else { json!(plain) };
    json!({
        "quant_method": "awq", "bits": scheme.bits, "group_size": group_size(scheme), "zero_point": true,
        "version": "gemm", "modules_to_not_convert": plain
    })
}

/// As every such model has it: experts and nothing else.
fn gpt_oss() -> Value {
    let plain = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", HEAD];
    json!({ "quant_method": fp4::GPT_OSS_METHOD, "modules_to_not_convert": plain })
}

const HEAD: &str = "lm_head";

/// What the scales of a layer's keys and values are called, behind the name of its attention, and their shape. `None`: loaders
/// of such weights look for none. Sources: vLLM `maybe_remap_kv_scale_name`, compressed-tensors, ModelOpt `export/quant_utils.py`.
pub fn cache_scales(family: Family) -> Option<([&'static str; 2], &'static [usize])> {
    match family {
        Family::ModelOptFloat8 | Family::ModelOptNvfp4 => Some((["k_proj.k_scale", "v_proj.v_scale"], &[])),
        _ => FORMATS.iter().any(|(f, _)| *f == family).then_some((["k_scale", "v_scale"], &[1])),
    }
}

/// The names of compressed-tensors.
const FORMATS: &[(Family, &str)] = &[
    (Family::Packed, "pack-quantized"),
    (Family::Int, "int-quantized"),
    (Family::Float8, "float-quantized"),
    (Family::Float8Tensor, "float-quantized"),
    (Family::Nvfp4, "nvfp4-pack-quantized"),
    (Family::Mxfp4, "mxfp4-pack-quantized"),
    (Family::Mxfp8, "mxfp8-quantized"),
];

fn compressed_tensors(modules: &[Module], plain: &[&str], activations: Activations, cache: bool) -> Result<Value> {
    // The most frequent scheme stands for all linear layers; others name theirs.
    let mut kinds: Vec<(Value, &str, Vec<&str>)> = Vec::new();
    for module in modules {
        let Some(scheme) = &module.scheme else { continue };
        let Some((_, format)) = FORMATS.iter().find(|(family, _)| *family == scheme.family) else {
            let message = "formats of compressed-tensors and of others cannot share a folder";
            return Err(Error::request(message).at(&module.name));
        };
        let kind = json!({ "weights": weights(scheme), "input_activations": inputs(scheme, activations) });
        match kinds.iter_mut().find(|(k, f, _)| (k, *f) == (&kind, *format)) {
            Some((_, _, names)) => names.push(&module.name),
            None => kinds.push((kind, format, vec![&module.name])),
        }
    }
    kinds.sort_by_key(|(_, _, names)| std::cmp::Reverse(names.len()));
    let mixed = kinds.iter().any(|(_, format, _)| *format != kinds[0].1);
    let mut groups = Map::new();
    for (n, (kind, format, names)) in kinds.iter().enumerate() {
        let mut group = kind.clone();
        group["targets"] = if n == 0 { json!(["Linear"]) } else { json!(names) };
        group["output_activations"] = Value::Null;
        if mixed {
            group["format"] = json!(format);
        }
        groups.insert(format!("group_{n}"), group);
    }
    Ok(json!({
        "quant_method": "compressed-tensors", "format": if mixed { "mixed-precision" } else { kinds[0].1 },
        "quantization_status": "compressed", "config_groups": groups, "ignore": ignored(plain),
        "kv_cache_scheme": cache.then(|| json!({ "num_bits": 8, "type": "float", "strategy": "tensor", "symmetric": true, "dynamic": false }))
    }))
}

/// Runtimes call the other towers of a multimodal model what they like, up to the tower's own name.
fn ignored(plain: &[&str]) -> Vec<String> {
    let mut out: Vec<String> = Vec::new();
    for name in plain.iter().copied() {
        let name = arch::tower(name).map_or(name.to_owned(), |tower| format!("re:.*{}.*", regex::escape(tower)));
        if !out.contains(&name) {
            out.push(name);
        }
    }
    out
}

fn weights(scheme: &Scheme) -> Value {
    let kind = if scheme.family.is_integer() { "int" } else { "float" };
    let mut out = json!({ "num_bits": scheme.bits, "type": kind, "symmetric": scheme.symmetric, "dynamic": false });
    let (strategy, group) = match (scheme.family, scheme.group) {
        (Family::Float8Tensor, _) => ("tensor", None),
        (Family::Float8, Some(side)) => {
            out["block_structure"] = json!([side, side]);
            ("block", None)
        }
        (Family::Nvfp4, group) => ("tensor_group", group),
        (_, None) => ("channel", None),
        (_, group) => ("group", group),
    };
    out["strategy"] = json!(strategy);
    if let Some(group) = group {
        out["group_size"] = json!(group);
    }
    if let Some(dtype) = scale_dtype(scheme) {
        out["scale_dtype"] = json!(dtype);
        out["zp_dtype"] = json!(dtype);
    }
    out
}

/// Of formats whose scales are not of the model's own type.
fn scale_dtype(scheme: &Scheme) -> Option<&'static str> {
    match scheme.family {
        Family::Nvfp4 => Some("torch.float8_e4m3fn"),
        Family::Mxfp4 | Family::Mxfp8 => Some("torch.uint8"),
        _ => None,
    }
}

/// What becomes of the inputs at run time.
fn inputs(scheme: &Scheme, activations: Activations) -> Value {
    let mut out = json!({ "num_bits": scheme.bits, "type": "float", "symmetric": true });
    match (scheme.family, activations) {
        // What such files are for: products of bytes, the activations rounded token by token as they come.
        (Family::Int, _) => {
            return json!({ "num_bits": 8, "type": "int", "symmetric": true, "strategy": "token", "dynamic": true });
        }
        (Family::Packed, _) | (_, Activations::Plain) => return Value::Null,
        (Family::Nvfp4, _) => {
            out["strategy"] = json!("tensor_group");
            out["group_size"] = json!(scheme.group);
            // The scale of the tensor is given, those of its groups are not.
            out["dynamic"] = json!("local");
            out["scale_dtype"] = json!(scale_dtype(scheme));
        }
        (Family::Float8Tensor, Activations::Static) => {
            out["strategy"] = json!("tensor");
            out["dynamic"] = json!(false);
        }
        _ => {
            out["strategy"] = json!(if scheme.group.is_some() { "group" } else { "token" });
            if let Some(group) = scheme.group {
                out["group_size"] = json!(group);
            }
            if let Some(dtype) = scale_dtype(scheme) {
                out["scale_dtype"] = json!(dtype);
            }
            out["dynamic"] = json!(true);
        }
    }
    out
}

/// Source: ModelOpt `export/convert_hf_config.py`; the version is that of the layout.
fn modelopt(scheme: &Scheme, plain: &[&str], activations: Activations, cache: bool) -> Declaration {
    let producer = json!({ "name": "modelopt", "version": "0.47.0" });
    let algorithm = match (scheme.family, activations) {
        (Family::ModelOptFloat8, _) => "FP8",
        (_, Activations::Plain) => "W4A16_NVFP4",
        _ => "NVFP4",
    };
    let mut kind = json!({ "num_bits": scheme.bits, "type": "float", "dynamic": false });
    let mut sidecar =
        json!({ "quant_algo": algorithm, "kv_cache_quant_algo": cache.then_some("FP8"), "exclude_modules": plain });
    if let Some(group) = scheme.group {
        kind["group_size"] = json!(group);
        sidecar["group_size"] = json!(group);
    }
    let inputs = if activations == Activations::Plain { Value::Null } else { kind.clone() };
    let groups = json!({ "group_0": { "weights": kind, "input_activations": inputs, "targets": ["Linear"] } });
    let mut config = json!({
        "quant_method": "modelopt", "quant_algo": algorithm, "config_groups": groups, "ignore": plain,
        "producer": producer
    });
    if cache {
        config["kv_cache_scheme"] = json!({ "num_bits": 8, "type": "float", "dynamic": false });
    }
    let sidecar = json!({ "producer": producer, "quantization": sidecar });
    Declaration { config, keys: KEYS, sidecar: Some(("hf_quant_config.json", sidecar)) }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::container::hf::quantized::{Packing, Storage, method};

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
            let config = declare(&modules, Activations::Plain, false).unwrap().unwrap().config;
            let read = method(&config, config["quant_method"].as_str().unwrap()).unwrap();
            let bytes = family == Family::Int;
            let family = if bytes { Family::Packed } else { family };
            let activations = if bytes { Activations::Dynamic } else { Activations::Plain };
            let expected = Packing { family, widths: vec![bits], groups: vec![group], permuted: false, activations };
            assert_eq!(read, Storage::Packed(expected));
        }
        assert!(declare(&[plain("a")], Activations::Plain, false).unwrap().is_none());
    }

    #[test]
    fn what_becomes_of_inputs_is_read_back() {
        for (family, bits, group, activations) in [
            (Family::Float8, 8, None, Activations::Dynamic),
            (Family::Float8, 8, Some(128), Activations::Dynamic),
            (Family::Float8Tensor, 8, None, Activations::Static),
            (Family::Float8Tensor, 8, None, Activations::Plain),
            (Family::ModelOptFloat8, 8, None, Activations::Static),
            (Family::Nvfp4, 4, Some(16), Activations::Static),
            (Family::Nvfp4, 4, Some(16), Activations::Plain),
            (Family::ModelOptNvfp4, 4, Some(16), Activations::Static),
            (Family::ModelOptNvfp4, 4, Some(16), Activations::Plain),
            (Family::Mxfp4, 4, Some(32), Activations::Plain),
            (Family::Mxfp8, 8, Some(32), Activations::Plain),
        ] {
            let declared = declare(&[module("a.x", family, bits, group)], activations, false).unwrap().unwrap();
            let named = declared.config["quant_method"].as_str().unwrap();
            let both = std::iter::once(declared.config.clone()).chain(declared.sidecar.map(|(_, sidecar)| sidecar));
            for config in both {
                let Storage::Packed(read) = method(&config, named).unwrap() else { panic!("{config}") };
                assert_eq!(read.activations, activations, "{config}");
            }
        }
    }

    #[test]
    fn layers_that_stay_are_listed() {
        let modules = |f| [module("l.0.mlp.x", f, 4, Some(32)), plain("l.0.mlp.gate"), plain("lm_head")];
        let config = |f| declare(&modules(f), Activations::Plain, false).unwrap().unwrap().config;
        assert_eq!(config(Family::Packed)["ignore"], json!(["l.0.mlp.gate", "lm_head"]));
        assert_eq!(config(Family::Awq)["modules_to_not_convert"], json!(["l.0.mlp.gate", "lm_head"]));
        assert_eq!(config(Family::Gptq)["dynamic"], json!({ r"-:^l\.0\.mlp\.gate$": {} }));
    }

    #[test]
    fn a_packed_head_is_none_of_them() {
        for family in [Family::Packed, Family::Nvfp4, Family::Gptq, Family::Nf4, Family::ModelOptNvfp4, Family::Awq] {
            let group = if family == Family::Nvfp4 || family == Family::ModelOptNvfp4 { 16 } else { 64 };
            let modules = [module("l.0.x", family, 4, Some(group)), module("lm_head", family, 4, Some(group))];
            let Ok(declared) = declare(&modules, Activations::Plain, false) else {
                assert_eq!(family, Family::Awq, "which knows no such head");
                continue;
            };
            let config = declared.unwrap().config;
            let listed = ["ignore", "llm_int8_skip_modules"].iter().filter_map(|key| config[key].as_array());
            assert!(listed.flatten().all(|name| name != "lm_head"), "{config}");
            assert!(family != Family::Gptq || config["lm_head"] == true, "{config}");
        }
    }

    #[test]
    fn what_is_fused_stays_under_the_name_of_the_whole_too() {
        let of = |own: &str| plain(&format!("l.0.attn.{own}"));
        let modules =
            [module("l.0.x", Family::Gptq, 4, Some(32)), of("q_proj"), of("k_proj"), of("v_proj"), of("o_proj")];
        let config = declare(&modules, Activations::Plain, false).unwrap().unwrap().config;
        let expected = json!({ r"-:^l\.0\.attn\.(q_proj|k_proj|v_proj|qkv_proj)$": {}, r"-:^l\.0\.attn\.o_proj$": {} });
        assert_eq!((&config["dynamic"], &config["lm_head"]), (&expected, &json!(false)));
    }

    #[test]
    fn several_schemes_have_groups_of_their_own() {
        let modules = [
            module("a.down", Family::Packed, 8, Some(128)),
            module("a.o", Family::Packed, 4, Some(128)),
            module("b.o", Family::Packed, 4, Some(128)),
        ];
        let config = declare(&modules, Activations::Plain, false).unwrap().unwrap().config;
        assert_eq!(config["format"], "pack-quantized");
        assert_eq!(config["config_groups"]["group_0"]["weights"]["num_bits"], 4);
        assert_eq!(config["config_groups"]["group_0"]["targets"], json!(["Linear"]));
        assert_eq!(config["config_groups"]["group_1"]["targets"], json!(["a.down"]));
        let mixed = [module("a", Family::Packed, 4, None), module("b", Family::Int, 8, None)];
        let config = declare(&mixed, Activations::Plain, false).unwrap().unwrap().config;
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
            let error = declare(&modules, Activations::Plain, false).err().unwrap();
            assert!(error.message().contains(message), "{error}");
        }
    }
}

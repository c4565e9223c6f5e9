//! What `quantization_config` says about how the weights are stored. Source: transformers `utils/quantization_config.py`,
//! compressed-tensors `quantization/quant_config.py`, GPTQModel `quantization/config.py`, AutoAWQ `models/_config.py`.

use serde_json::Value;

use super::bnb;
use super::mlx::{self, Mlx};
use crate::codec::{Activations, Family, fp4, fp8};
use crate::error::{At, Error, Result};

/// How the weights of a folder are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Every tensor is what its element type says.
    Plain,
    /// `X` of F8_E4M3 comes with `X_scale_inv`, one multiplier per 128 x 128 block (DeepSeek-V3).
    Fp8Block,
    /// Weights that come in several parts; the others are plain.
    Packed(Packing),
    Mlx(Mlx),
    BitsAndBytes,
    /// Weights that come in the parts of EXL2, which tell the rest.
    Exl2,
}

/// What is said of all weights together. The shapes of a weight's parts tell the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Packing {
    /// Of compressed-tensors `Packed`, of ModelOpt either: what the parts look like tells them apart.
    pub family: Family,
    /// Widths of integers that occur; empty if single weights may have any.
    pub widths: Vec<usize>,
    /// Columns under one scale, as they occur (`None`: whole rows); empty if there may be any.
    pub groups: Vec<Option<usize>>,
    /// GPTQ: columns were taken out of their order, so groups need not be runs of columns.
    pub permuted: bool,
    /// What runtimes do with the inputs.
    pub activations: Activations,
}

/// Files that older tools write instead of `quantization_config`.
pub const SIDECARS: &[(&str, &str)] = &[
    ("quantize_config.json", "gptq"),
    ("quant_config.json", "awq"),
    ("hf_quant_config.json", "modelopt"),
    ("quantization_config.json", "exl3"),
];

/// The keys of config.json that this module reads, of the whole and of a model inside it.
pub const KEYS: &[&str] = &["quantization_config", "compression_config"];

/// Reads config.json. What cannot be read is [`Kind::Unsupported`](crate::error::Kind).
pub fn storage(config: &Value) -> Result<Storage> {
    let text = config.get("text_config").unwrap_or(&Value::Null);
    let places = [config, text].into_iter().flat_map(|object| KEYS.iter().map(move |key| object.get(*key)));
    match places.flatten().find(|v| !v.is_null()) {
        Some(q) if q.get("quant_method").is_some() => method(q, word(q, &["quant_method"]).unwrap_or("unnamed")),
        other => match (config.get(mlx::KEY).filter(|v| !v.is_null()), other) {
            (Some(q), _) => mlx::read(q).at(|| mlx::KEY),
            (None, Some(_)) => Err(refuse("unnamed")),
            (None, None) => Ok(Storage::Plain),
        },
    }
}

/// Reads the settings of one method: `quantization_config`, or a file of [`SIDECARS`].
pub fn method(q: &Value, method: &str) -> Result<Storage> {
    let row = METHODS.iter().find(|(name, _)| *name == method);
    row.map_or_else(|| Err(refuse(method)), |(_, read)| read(q))
}

type Read = fn(&Value) -> Result<Storage>;

const METHODS: &[(&str, Read)] = &[
    ("fp8", fp8),
    ("gptq", gptq),
    ("awq", awq),
    ("auto-round", auto_round),
    ("compressed-tensors", compressed_tensors),
    ("exl2", |_| Ok(Storage::Exl2)),
    (bnb::METHOD, bnb::read),
    ("modelopt", modelopt),
    (fp4::GPT_OSS_METHOD, |_| Ok(floats(Family::GptOss, Activations::Plain))),
];

fn fp8(q: &Value) -> Result<Storage> {
    match q.get("weight_block_size").and_then(Value::as_array) {
        Some(sizes) if sizes.iter().map(Value::as_u64).eq(fp8::BLOCK_FP8.square.map(|n| Some(n as u64))) => {
            Ok(Storage::Fp8Block)
        }
        Some(sizes) => {
            let sizes: Vec<_> = sizes.iter().map(Value::to_string).collect();
            Err(refuse(&format!("fp8 with blocks of {}", sizes.join(" x "))))
        }
        None if word(q, &["activation_scheme"]) == Some("static") => Ok(floats(Family::Float8, Activations::Static)),
        None => Ok(floats(Family::Float8, Activations::Dynamic)),
    }
}

/// The parts say all there is to know.
fn floats(family: Family, activations: Activations) -> Storage {
    Storage::Packed(Packing { family, widths: Vec::new(), groups: Vec::new(), permuted: false, activations })
}

/// config.json says it plainly, hf_quant_config.json one level down.
fn modelopt(q: &Value) -> Result<Storage> {
    const READ: &[(&str, Activations)] = &[
        ("FP8", Activations::Static),
        ("FP8_PER_CHANNEL_PER_TOKEN", Activations::Dynamic),
        ("FP8_PB_WO", Activations::Plain),
        ("NVFP4", Activations::Static),
        ("W4A16_NVFP4", Activations::Plain),
        ("MIXED_PRECISION", Activations::Static),
    ];
    let inner = q.get("quantization").unwrap_or(q);
    let named = word(inner, &["quant_algo"]).unwrap_or("unnamed");
    match READ.iter().find(|(algorithm, _)| *algorithm == named) {
        Some((_, activations)) => Ok(floats(Family::ModelOptNvfp4, *activations)),
        None => Err(refuse(&format!("modelopt {named}"))),
    }
}

fn gptq(q: &Value) -> Result<Storage> {
    let layout = word(q, &["checkpoint_format", "format"]).unwrap_or("gptq");
    let family = match layout {
        "gptq" => Family::Gptq,
        "gptq_v2" => Family::GptqV2,
        other => return Err(refuse(&format!("gptq in the layout {other}"))),
    };
    if let Some(other) = word(q, &["pack_dtype"]).filter(|t| *t != "int32") {
        return Err(refuse(&format!("gptq packed in {other}")));
    }
    if q.get("is_marlin_format").is_some_and(|v| v == true) {
        return Err(refuse("gptq in the layout marlin"));
    }
    let bits = width(q, &["bits"])?;
    if ![2, 3, 4, 8].contains(&bits) {
        return Err(refuse(&format!("gptq with {bits} bits")));
    }
    // GPTQModel and AutoRound have rules for single weights.
    let rules = ["dynamic", "extra_config"].iter().filter_map(|key| q.get(*key)?.as_object());
    let own = rules.into_iter().any(|rules| !rules.is_empty());
    Ok(Storage::Packed(Packing {
        family,
        widths: if own { Vec::new() } else { vec![bits] },
        groups: if own { Vec::new() } else { vec![group(q, &["group_size"])] },
        permuted: q.get("desc_act").is_some_and(|v| v == true),
        activations: Activations::Plain,
    }))
}

fn awq(q: &Value) -> Result<Storage> {
    let version = word(q, &["version", "format"]).unwrap_or("gemm").to_lowercase();
    let bits = width(q, &["bits", "w_bit"])?;
    if version != "gemm" || bits != 4 || q.get("zero_point").is_some_and(|v| v == false) {
        let zeros = if q.get("zero_point").is_some_and(|v| v == false) { ", without zeros" } else { "" };
        return Err(refuse(&format!("awq, version {version}, {bits} bits{zeros}")));
    }
    Ok(Storage::Packed(Packing {
        family: Family::Awq,
        widths: vec![4],
        groups: vec![group(q, &["group_size", "q_group_size"])],
        permuted: false,
        activations: Activations::Plain,
    }))
}

/// AutoRound writes the layouts of others.
fn auto_round(q: &Value) -> Result<Storage> {
    match word(q, &["packing_format"]).unwrap_or("auto_round:auto_gptq") {
        "auto_round:auto_gptq" => gptq(q),
        "auto_round:auto_awq" => awq(q),
        other => Err(refuse(&format!("auto-round in the layout {other}"))),
    }
}

fn compressed_tensors(q: &Value) -> Result<Storage> {
    let name = word(q, &["format"]).unwrap_or("unnamed");
    let refuse = |what: &str| Err(refuse(&format!("compressed-tensors {what}")));
    const READ: &[&str] = &[
        "pack-quantized",
        "int-quantized",
        "float-quantized",
        "naive-quantized",
        "nvfp4-pack-quantized",
        "mxfp4-pack-quantized",
        "mxfp8-quantized",
        "mixed-precision",
    ];
    if !READ.contains(&name) {
        return refuse(name);
    }
    if q.get("sparsity_config").and_then(|s| s.get("format")).is_some_and(|f| f != "dense") {
        return refuse("with sparse weights");
    }
    let mut out = Packing {
        family: Family::Packed,
        widths: Vec::new(),
        groups: Vec::new(),
        permuted: false,
        activations: Activations::Plain,
    };
    let groups = q.get("config_groups").and_then(Value::as_object);
    let inputs = groups.into_iter().flatten().filter_map(|(_, g)| g.get("input_activations")).find(|i| !i.is_null());
    out.activations = match inputs.map(|i| i.get("dynamic").is_some_and(|d| d == true)) {
        None => Activations::Plain,
        Some(true) => Activations::Dynamic,
        Some(false) => Activations::Static,
    };
    let mut weights = groups.into_iter().flatten().filter_map(|(_, g)| g.get("weights")).filter(|w| !w.is_null());
    let mut described = false;
    for weights in &mut weights {
        let (kind, strategy) =
            (word(weights, &["type"]).unwrap_or("int"), word(weights, &["strategy"]).unwrap_or("tensor"));
        let bits = width(weights, &["num_bits"])?;
        match (kind, bits, strategy) {
            ("int", _, "group" | "channel") => {
                out.widths.push(bits);
                out.groups.push(group(weights, &["group_size"]).filter(|_| strategy == "group"));
            }
            ("float", 8, "tensor" | "channel" | "block") | ("float", 4, "tensor_group" | "group") => {}
            ("float", 8, "group") if word(weights, &["scale_dtype"]) == Some("torch.uint8") => {}
            _ => return refuse(&format!("{name} of type {kind} with {bits} bits by {strategy}")),
        }
        described = true;
    }
    if !described {
        return Err(Error::input("config_groups describe no weights"));
    }
    Ok(Storage::Packed(out))
}

fn word<'a>(q: &'a Value, keys: &[&str]) -> Option<&'a str> {
    keys.iter().find_map(|key| q.get(*key)?.as_str())
}

/// Columns under one scale; `None`: whole rows.
fn group(q: &Value, keys: &[&str]) -> Option<usize> {
    let stated = keys.iter().find_map(|key| q.get(*key)?.as_u64());
    stated.filter(|n| *n > 0).and_then(|n| usize::try_from(n).ok())
}

/// Bits of a code.
fn width(q: &Value, keys: &[&str]) -> Result<usize> {
    let stated = keys.iter().find_map(|key| q.get(*key));
    let bits = stated.and_then(Value::as_u64).filter(|n| (1..=16).contains(n));
    match (bits, stated) {
        (Some(bits), _) => Ok(bits as usize),
        (None, Some(other)) => Err(Error::input(format!("{} is {other}", keys[0]))),
        (None, None) => Err(Error::input(format!("the quantization has no {}", keys[0]))),
    }
}

pub fn refuse(method: &str) -> Error {
    Error::unsupported(format!("the weights are already quantized ({method}), which cannot be read"))
        .help("start from the unquantized model, usually named without the method's suffix")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn stored(q: Value) -> Storage {
        storage(&json!({ "quantization_config": q })).unwrap()
    }

    #[test]
    fn settings_are_read_wherever_they_stand() {
        assert_eq!(storage(&json!({})).unwrap(), Storage::Plain);
        assert_eq!(storage(&json!({ "quantization_config": null })).unwrap(), Storage::Plain);
        assert_eq!(stored(json!({ "quant_method": "fp8", "weight_block_size": [128, 128] })), Storage::Fp8Block);
        let gptq = Packing {
            family: Family::Gptq,
            widths: vec![4],
            groups: vec![Some(128)],
            permuted: false,
            activations: Activations::Plain,
        };
        let q = json!({ "quant_method": "gptq", "bits": 4, "group_size": 128, "sym": true });
        assert_eq!(stored(q.clone()), Storage::Packed(gptq.clone()));
        assert_eq!(storage(&json!({ "text_config": { "quantization_config": q } })).unwrap(), Storage::Packed(gptq));
        let q = json!({ "quant_method": "gptq", "bits": 3, "group_size": -1, "desc_act": true, "checkpoint_format": "gptq_v2",
            "dynamic": { "+:.*": { "bits": 8 } } });
        let v2 = Packing {
            family: Family::GptqV2,
            widths: vec![],
            groups: vec![],
            permuted: true,
            activations: Activations::Plain,
        };
        assert_eq!(stored(q), Storage::Packed(v2));
        let awq = Packing {
            family: Family::Awq,
            widths: vec![4],
            groups: vec![Some(128)],
            permuted: false,
            activations: Activations::Plain,
        };
        let old = json!({ "zero_point": true, "q_group_size": 128, "w_bit": 4, "version": "GEMM" });
        assert_eq!(method(&old, "awq").unwrap(), Storage::Packed(awq));
        let weights = |bits: u32, strategy: &str| json!({ "weights": { "num_bits": bits, "type": "int", "strategy": strategy, "group_size": 32 } });
        let q = json!({ "quant_method": "compressed-tensors", "format": "mixed-precision",
            "config_groups": { "a": weights(4, "group"), "b": weights(8, "channel") } });
        let mixed = Packing {
            family: Family::Packed,
            widths: vec![4, 8],
            groups: vec![Some(32), None],
            permuted: false,
            activations: Activations::Plain,
        };
        assert_eq!(storage(&json!({ "compression_config": q })).unwrap(), Storage::Packed(mixed));
        let nested = json!({ "producer": {}, "quantization": { "quant_algo": "FP8" } });
        assert_eq!(method(&nested, "modelopt").unwrap(), floats(Family::ModelOptNvfp4, Activations::Static));
        assert_eq!(stored(json!({ "quant_method": "fp8" })), floats(Family::Float8, Activations::Dynamic));
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        let q = |extra: Value| json!({ "quantization_config": extra });
        let floats = json!({ "g": { "weights": { "num_bits": 8, "type": "float", "strategy": "group" } } });
        for (config, named) in [
            (q(json!({ "quant_method": "bitsandbytes", "load_in_8bit": true })), "(bitsandbytes with 8 bits)"),
            (q(json!({ "load_in_4bit": true })), "(unnamed)"),
            (q(json!({ "quant_method": "fp8", "weight_block_size": [64, 128] })), "(fp8 with blocks of 64 x 128)"),
            (json!({ "quantization": { "bits": 4, "group_size": 16, "mode": "mxfp9" } }), "(mlx, mode mxfp9)"),
            (json!({ "quantization": { "bits": 4, "a": { "mode": "nvfp9" } } }), "(mlx, mode nvfp9)"),
            (
                json!({ "text_config": { "quantization_config": { "quant_method": "modelopt", "quant_algo": "NVFP4_AWQ" } } }),
                "(modelopt NVFP4_AWQ)",
            ),
            (
                q(json!({ "quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin" })),
                "(gptq in the layout marlin)",
            ),
            (q(json!({ "quant_method": "gptq", "bits": 5 })), "(gptq with 5 bits)"),
            (q(json!({ "quant_method": "awq", "bits": 4, "version": "gemv" })), "(awq, version gemv, 4 bits)"),
            (
                q(json!({ "quant_method": "compressed-tensors", "format": "mxfp6-pack-quantized" })),
                "mxfp6-pack-quantized",
            ),
            (
                q(
                    json!({ "quant_method": "compressed-tensors", "format": "naive-quantized", "config_groups": floats }),
                ),
                "of type float with 8 bits by group",
            ),
        ] {
            let error = storage(&config).unwrap_err();
            assert!(error.message().contains(named), "{error}");
        }
        for wrong in [json!({ "quant_method": "gptq" }), json!({ "quant_method": "gptq", "bits": "four" })] {
            assert!(storage(&q(wrong)).unwrap_err().to_string().contains("bits"));
        }
    }
}

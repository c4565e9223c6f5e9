//! What `quantization_config` says about how the weights are stored.

use serde_json::Value;

use crate::codec::fp8;
use crate::error::{Error, Result};

/// How the weights of a folder are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    /// Every tensor is what its element type says.
    Plain,
    /// `X` of F8_E4M3 comes with `X_scale_inv`, one multiplier per 128 x 128 block (DeepSeek-V3).
    Fp8Block,
}

/// Files that older tools write instead of `quantization_config`.
pub const SIDECARS: &[(&str, &str)] = &[
    ("quantize_config.json", "gptq"),
    ("quant_config.json", "awq"),
    ("hf_quant_config.json", "modelopt"),
    ("quantization_config.json", "exl2"),
];

/// Reads `quantization_config` of a config.json. Anything but block FP8 is [`Kind::Unsupported`](crate::error::Kind).
pub fn storage(config: &Value) -> Result<Storage> {
    let text = config.get("text_config").unwrap_or(&Value::Null);
    let places = [(config, "quantization_config"), (text, "quantization_config"), (config, "compression_config")];
    let Some(q) = places.iter().find_map(|(object, key)| object.get(*key).filter(|v| !v.is_null())) else {
        return match config.get("quantization").filter(|v| !v.is_null()) {
            Some(_) => Err(refuse("mlx")),
            None => Ok(Storage::Plain),
        };
    };
    let method = q.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
    let blocks = q.get("weight_block_size").and_then(Value::as_array);
    match (method, blocks) {
        ("fp8", Some(sizes)) if sizes.iter().map(Value::as_u64).eq(fp8::BLOCK_FP8.square.map(|n| Some(n as u64))) => {
            Ok(Storage::Fp8Block)
        }
        ("fp8", Some(sizes)) => {
            let sizes: Vec<_> = sizes.iter().map(Value::to_string).collect();
            Err(refuse(&format!("fp8 with blocks of {}", sizes.join(" x "))))
        }
        ("fp8", None) => Err(refuse("fp8 with one scale a tensor")),
        _ => Err(refuse(method)),
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

    #[test]
    fn block_fp8_is_read_and_the_rest_is_named() {
        let fp8 = |extra: Value| json!({ "quantization_config": extra });
        assert_eq!(storage(&json!({})).unwrap(), Storage::Plain);
        assert_eq!(storage(&json!({ "quantization_config": null })).unwrap(), Storage::Plain);
        let block = fp8(json!({ "quant_method": "fp8", "weight_block_size": [128, 128] }));
        assert_eq!(storage(&block).unwrap(), Storage::Fp8Block);
        for (config, named) in [
            (fp8(json!({ "quant_method": "gptq", "bits": 4 })), "(gptq)"),
            (fp8(json!({ "quant_method": "awq" })), "(awq)"),
            (fp8(json!({ "quant_method": "compressed-tensors" })), "(compressed-tensors)"),
            (fp8(json!({ "load_in_4bit": true })), "(unnamed)"),
            (fp8(json!({ "quant_method": "fp8", "weight_block_size": [64, 128] })), "(fp8 with blocks of 64 x 128)"),
            (fp8(json!({ "quant_method": "fp8" })), "(fp8 with one scale a tensor)"),
            (json!({ "quantization": { "bits": 4, "group_size": 64 } }), "(mlx)"),
            (json!({ "text_config": { "quantization_config": { "quant_method": "modelopt" } } }), "(modelopt)"),
        ] {
            let error = storage(&config).unwrap_err();
            assert!(error.message().contains(named), "{error}");
        }
    }
}

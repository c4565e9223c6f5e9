//! Hugging Face folders: safetensors, config.json, tokenizer.

pub mod header;
pub mod json;
mod quantized;
mod shards;

use std::path::Path;

use crate::error::{At, Error, Result};
pub use quantized::SIDECARS;
pub use shards::INDEX;

/// Whether the model that config.json describes can be read at all.
pub fn check_config(dir: &Path) -> Result<()> {
    let config = json::config(dir, "config.json")?.ok_or_else(|| Error::input("no config.json"))?;
    quantized::storage(&config).at(|| "config.json")?;
    Ok(())
}

/// The weight files of a folder that holds (or will hold) `names`; the index, if one is among them, is there already.
pub fn weight_files(dir: &Path, names: &[String]) -> Result<Vec<String>> {
    shards::files(dir, names)
}

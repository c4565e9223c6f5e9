//! The model that comes with the program: what it can do, and how it was trained, is in `evals/probe/README.md`.

use std::path::Path;

use crate::error::{At, Result};

macro_rules! files {
    ($($name:literal),*) => {
        [$(($name, include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/evals/probe/model/", $name)).as_slice())),*]
    };
}

/// Name and bytes of every file of its Hugging Face folder.
pub static FILES: [(&str, &[u8]); 5] =
    files!("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json");

/// Writes the folder, which must exist.
pub fn write(folder: &Path) -> Result<()> {
    FILES.iter().try_for_each(|(name, bytes)| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).at(|| path.display().to_string())
    })
}

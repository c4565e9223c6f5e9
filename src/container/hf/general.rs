//! The folder as [`crate::arch::general`] wants it described.

use std::path::Path;

use super::json;
use crate::arch::{self, Arch, ModelSpec, Size};
use crate::container::Tensor;
use crate::error::Result;
use crate::metadata::Metadata;

/// All metadata but the tokenizer's, in the converter's order.
pub fn metadata(dir: &Path, arch: &Arch, spec: &ModelSpec, tensors: &[Tensor]) -> Result<Metadata> {
    let config = json::config(dir, super::CONFIG)?.unwrap_or_default();
    // A broken generation_config.json is no reason to refuse the weights.
    let generation = json::config(dir, super::GENERATION).ok().flatten();
    let readme = std::fs::read_to_string(dir.join("README.md")).ok();
    let name = folder_name(dir).unwrap_or_default();
    let size = Size::of(tensors.iter().map(|t| (t.name.as_str(), t.shape.as_slice())));
    let folder =
        arch::Folder { name: &name, config: &config, generation: generation.as_ref(), readme: readme.as_deref(), size };
    Ok(arch.describe(spec, &arch::general(&folder)))
}

/// The last part of the path; for a snapshot in the hub's cache the model's name.
fn folder_name(dir: &Path) -> Option<String> {
    let dir = std::path::absolute(dir).ok()?;
    let name = |p: &Path| Some(p.file_name()?.to_str()?.to_owned());
    let above = dir.parent().filter(|p| p.ends_with("snapshots")).and_then(Path::parent);
    let model = above.and_then(name).and_then(|n| Some(n.strip_prefix("models--")?.rsplit_once("--")?.1.to_owned()));
    model.or_else(|| name(&dir))
}

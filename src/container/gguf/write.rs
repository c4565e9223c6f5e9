//! Writing a GGUF file whose layout is known.

use std::path::{Path, PathBuf};

use super::{TensorSpec, layout};
use crate::container::sink::{NewFile, Sink, Start};
use crate::error::Result;
use crate::metadata::Metadata;

/// Reserves the disk space of [`layout`] beside `path` and writes the headers. `inputs` are files that must not be
/// overwritten; `job` is that of [`Sink::create`]. `path` names the file; shards of a split model are called `<path without .gguf>-00001-of-00003.gguf`.
pub fn create(
    path: &Path,
    metadata: &Metadata,
    tensors: &[TensorSpec],
    split: Option<u64>,
    inputs: &[PathBuf],
    job: Option<&str>,
) -> Result<Sink> {
    let layout = layout(metadata, tensors, split)?;
    let files = layout.paths(path).into_iter().zip(layout.shards);
    let files = files.map(|(path, shard)| NewFile { path, start: Start::Bytes(shard.header), bytes: shard.bytes });
    let slots = tensors.iter().map(|t| t.name.clone()).zip(layout.slots).collect();
    Sink::create(&files.collect::<Vec<_>>(), slots, inputs, job)
}

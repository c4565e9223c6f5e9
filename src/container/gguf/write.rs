//! Writing a GGUF file whose layout is known: any tensor, any part of it, from any thread.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Slot, TensorSpec, layout};
use crate::container::output::{self, Output};
use crate::error::{Error, Result};
use crate::metadata::Metadata;

/// Files under temporary names until [`GgufWriter::finish`]; dropped before, it leaves nothing behind.
pub struct GgufWriter {
    outputs: Vec<Output>,
    tensors: Vec<Progress>,
}

struct Progress {
    name: String,
    slot: Slot,
    written: AtomicU64,
}

impl GgufWriter {
    /// Reserves the disk space of [`layout`] beside `path` and writes the headers. `inputs` are files that must not be
    /// overwritten. `path` names the file; shards of a split model are called `<path without .gguf>-00001-of-00003.gguf`.
    pub fn create(
        path: &Path,
        metadata: &Metadata,
        tensors: &[TensorSpec],
        split: Option<u64>,
        inputs: &[PathBuf],
    ) -> Result<GgufWriter> {
        let layout = layout(metadata, tensors, split)?;
        let paths = layout.paths(path);
        output::refuse_inputs(&paths, inputs)?;
        let outputs = paths.iter().map(|path| Output::create(path)).collect::<Result<Vec<_>>>()?;
        output::check_space(path, layout.bytes())?;
        for (output, shard) in outputs.iter().zip(&layout.shards) {
            output.reserve(shard.bytes)?;
        }
        for (output, shard) in outputs.iter().zip(&layout.shards) {
            output.write_at(0, &shard.header)?;
        }
        let progress = |(tensor, slot): (&TensorSpec, Slot)| Progress {
            name: tensor.name.clone(),
            slot,
            written: AtomicU64::new(0),
        };
        Ok(GgufWriter { outputs, tensors: tensors.iter().zip(layout.slots).map(progress).collect() })
    }

    /// Writes bytes of a tensor, `offset` counted from its first. Each byte must be written once, in any order, from any
    /// thread.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let progress =
            self.tensors.get(tensor).ok_or_else(|| Error::request(format!("no tensor {tensor} in the layout")))?;
        let Slot { shard, offset: start, bytes: size } = progress.slot;
        let length = bytes.len() as u64;
        if offset.checked_add(length).is_none_or(|end| end > size) {
            let message = format!("{length} bytes at {offset} reach beyond the tensor's {size}");
            return Err(Error::request(message).at(&progress.name));
        }
        self.outputs[shard].write_at(start + offset, bytes)?;
        progress.written.fetch_add(length, Ordering::Relaxed);
        Ok(())
    }

    /// Makes the files durable and gives them their final names, which it returns. Refuses if a tensor is not complete.
    pub fn finish(self) -> Result<Vec<PathBuf>> {
        for tensor in &self.tensors {
            let (written, size) = (tensor.written.load(Ordering::Acquire), tensor.slot.bytes);
            if written != size {
                return Err(Error::request(format!("{written} of {size} bytes were written")).at(&tensor.name));
            }
        }
        output::publish(self.outputs)
    }
}

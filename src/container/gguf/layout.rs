//! Where every byte of a GGUF file goes, before one is written.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::header::stored_bytes;
use super::{ALIGNMENT, KEY_ALIGNMENT, MAX_DIMS, MAX_NAME, Slot, encode, padded, shards};
use crate::codec::Codec;
use crate::error::{At, Error, Result};
use crate::metadata::{Metadata, Value};
use crate::tensor::without_leading_ones;

/// A tensor to be written.
#[derive(Clone, Debug)]
pub struct TensorSpec {
    pub name: String,
    /// Outermost first, as in [`crate::container::Tensor`].
    pub shape: Vec<usize>,
    pub codec: &'static dyn Codec,
}

/// The files to be written: one, or the shards of a split model.
#[derive(Clone, Debug)]
pub struct Layout {
    pub shards: Vec<Shard>,
    /// One per tensor, in the order given.
    pub slots: Vec<Slot>,
    split: bool,
}

#[derive(Clone, Debug)]
pub struct Shard {
    /// Everything before the data section, padding included.
    pub header: Vec<u8>,
    /// Length of the file.
    pub bytes: u64,
}

impl Layout {
    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        self.shards.iter().map(|s| s.bytes).sum()
    }

    /// The files' final names, where the user asks for `path`.
    pub fn paths(&self, path: &Path) -> Vec<PathBuf> {
        let count = self.split.then_some(self.shards.len());
        (0..self.shards.len()).map(|no| shards::output(path, no, count)).collect()
    }
}

/// Lays out a GGUF file (version 3) of `metadata` and `tensors`, in the order given, aligned to `general.alignment` or
/// 32. With `split`, a new shard starts where the tensors of one would exceed that many bytes; a larger tensor has a shard
/// of its own. The bytes equal those of llama.cpp's writer and `llama-gguf-split --split-max-size`.
pub fn layout(metadata: &Metadata, tensors: &[TensorSpec], split: Option<u64>) -> Result<Layout> {
    let alignment = alignment(metadata)?;
    check_keys(metadata)?;
    let stored = stored(tensors)?;
    let ranges = ranges(&stored, alignment, split)?;
    let split = split.is_some();
    let mut layout = Layout { shards: Vec::new(), slots: Vec::new(), split };
    for (no, range) in ranges.iter().enumerate() {
        let pairs = shard_metadata(metadata, no, split.then_some(ranges.len()), tensors.len())?;
        let mut entries = Vec::new();
        let mut offset = 0;
        for (tensor, stored) in tensors[range.clone()].iter().zip(&stored[range.clone()]) {
            let (name, shape) = (tensor.name.as_str(), without_leading_ones(&tensor.shape));
            entries.push(encode::Entry { name, shape, type_id: stored.type_id, offset: offset as u64 });
            offset = advance(offset, stored.bytes, alignment)?;
        }
        let mut header = encode::header(&pairs, &entries);
        header.resize(header.len().next_multiple_of(alignment), 0);
        let data = header.len() as u64;
        layout.slots.extend(entries.iter().zip(&stored[range.clone()]).map(|(entry, stored)| Slot {
            shard: no,
            offset: data + entry.offset,
            bytes: stored.bytes as u64,
        }));
        layout.shards.push(Shard { header, bytes: data + offset as u64 });
    }
    Ok(layout)
}

/// A tensor's type and size in the file.
struct Stored {
    type_id: u32,
    bytes: usize,
}

fn alignment(metadata: &Metadata) -> Result<usize> {
    match metadata.get(KEY_ALIGNMENT) {
        None => Ok(ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() && *n <= MAX_ALIGNMENT => Ok(*n as usize),
        Some(other) => Err(Error::request(format!("{KEY_ALIGNMENT} is {other}"))
            .help(format!("write a power of two up to {MAX_ALIGNMENT} (u32), or leave the key out"))),
    }
}

/// More would only be padding: no page or block device asks for it.
const MAX_ALIGNMENT: u32 = 1 << 20;

fn check_keys(metadata: &Metadata) -> Result<()> {
    match metadata.iter().find(|(key, _)| key.is_empty() || key.len() > u16::MAX.into()) {
        Some((key, _)) => {
            Err(Error::request(format!("a metadata key of {} bytes; 1 to 65535 are possible", key.len())))
        }
        None => Ok(()),
    }
}

fn stored(tensors: &[TensorSpec]) -> Result<Vec<Stored>> {
    let mut seen = HashSet::new();
    let mut all = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if !seen.insert(tensor.name.as_str()) {
            return Err(Error::request("two tensors of this name").at(&tensor.name));
        }
        all.push(store(tensor).at(|| tensor.name.as_str())?);
    }
    Ok(all)
}

fn store(tensor: &TensorSpec) -> Result<Stored> {
    let (codec, length) = (tensor.codec, tensor.name.len());
    if length == 0 || length > MAX_NAME {
        return Err(Error::request(format!("a name of {length} bytes; llama.cpp reads 1 to {MAX_NAME}")));
    }
    if tensor.shape.contains(&0) || without_leading_ones(&tensor.shape).len() > MAX_DIMS {
        return Err(Error::request(format!("GGUF cannot hold a tensor of shape {:?}", tensor.shape)));
    }
    let type_id = codec.block().and_then(|b| b.ggml);
    let type_id = type_id.ok_or_else(|| Error::request(format!("GGUF has no type for {}", codec.name())))?;
    Ok(Stored { type_id, bytes: stored_bytes(codec, &tensor.shape)? })
}

fn advance(offset: usize, bytes: usize, alignment: usize) -> Result<usize> {
    let end = padded(bytes, alignment).and_then(|n| n.checked_add(offset)).filter(|n| *n <= isize::MAX as usize);
    end.ok_or_else(|| Error::limits("the tensors together are larger than any file"))
}

/// The tensors of each shard.
fn ranges(stored: &[Stored], alignment: usize, split: Option<u64>) -> Result<Vec<std::ops::Range<usize>>> {
    let limit = split.unwrap_or(u64::MAX);
    let (mut ranges, mut start, mut filled) = (Vec::new(), 0, 0);
    for (i, tensor) in stored.iter().enumerate() {
        let with_this = advance(filled, tensor.bytes, alignment)?;
        if with_this as u64 > limit && i > start {
            ranges.push(start..i);
            start = i;
            filled = advance(0, tensor.bytes, alignment)?;
        } else {
            filled = with_this;
        }
    }
    ranges.push(start..stored.len());
    match u16::try_from(ranges.len()) {
        Ok(_) => Ok(ranges),
        Err(_) => Err(Error::request(format!("{} shards; at most 65535 can be numbered", ranges.len()))
            .help("allow larger shards")),
    }
}

/// All pairs in the first shard; in every shard of a split model its number, in gguf-split's order.
fn shard_metadata(metadata: &Metadata, no: usize, count: Option<usize>, tensors: usize) -> Result<Metadata> {
    let mut pairs = if no == 0 { metadata.clone() } else { Metadata::default() };
    for key in shards::KEYS {
        pairs.remove(key);
    }
    if let Some(count) = count {
        let tensors = i32::try_from(tensors).map_err(|_| Error::request(format!("{tensors} tensors")))?;
        pairs.set(shards::KEY_NO, no as u16);
        pairs.set(shards::KEY_TENSORS, tensors);
        pairs.set(shards::KEY_COUNT, count as u16);
    }
    Ok(pairs)
}

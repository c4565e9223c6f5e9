//! Where every byte of the safetensors files of a folder goes, before one is written.

use std::collections::HashSet;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::shards::INDEX;
use crate::container::sink::{NewFile, Slot, Start};
use crate::error::{Error, Result};

/// A stored tensor.
#[derive(Clone, Debug)]
pub struct NewTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: u64,
}

/// What the weight files are called.
#[derive(Clone, Copy)]
pub struct Names {
    pub stem: &'static str,
    /// Whether several have an index.
    pub index: bool,
    /// Whose layout the tensors have, as the header says.
    pub format: &'static str,
}

/// As transformers has it.
pub const MODEL: Names = Names { stem: "model", index: true, format: "pt" };
/// As exllamav2 has it.
pub const OUTPUT: Names = Names { stem: "output", index: false, format: "pt" };
/// As mlx-lm has it.
pub const MLX: Names = Names { format: "mlx", ..MODEL };

/// Above it a shard ends, as transformers has it.
pub const SHARD_BYTES: u64 = 5_000_000_000;

/// The weight files and their index; one slot for each tensor, in the order given.
pub fn layout(weights: &[Vec<NewTensor>], names: Names, split: Option<u64>) -> Result<(Vec<NewFile>, Vec<Slot>)> {
    let all: Vec<&NewTensor> = weights.iter().flatten().collect();
    let mut seen = HashSet::new();
    if let Some(twice) = all.iter().find(|t| !seen.insert(t.name.as_str())) {
        return Err(Error::request("two tensors of this name").at(&twice.name));
    }
    let shards = ranges(weights, split.unwrap_or(SHARD_BYTES));
    let mut slots = vec![Slot { shard: 0, offset: 0, bytes: 0 }; all.len()];
    let (mut files, mut map) = (Vec::new(), Map::new());
    for (no, shard) in shards.iter().enumerate() {
        let file = match shards.len() {
            1 => format!("{}.safetensors", names.stem),
            count => format!("{}-{:05}-of-{count:05}.safetensors", names.stem, no + 1),
        };
        // Widest elements first, so that all of them are aligned; by name among equals.
        let mut order: Vec<usize> = shard.clone().collect();
        order.sort_by(|a, b| (all[*b].dtype, &all[*a].name).cmp(&(all[*a].dtype, &all[*b].name)));
        let header = header(order.iter().map(|i| all[*i]), names.format);
        let mut offset = header.len() as u64;
        for i in order {
            slots[i] = Slot { shard: no, offset, bytes: all[i].bytes };
            offset = offset.checked_add(all[i].bytes).ok_or_else(|| Error::limits("a file larger than any"))?;
            map.insert(all[i].name.clone(), file.as_str().into());
        }
        files.push(NewFile { path: file.into(), start: Start::Bytes(header), bytes: offset });
    }
    if names.index && shards.len() > 1 {
        map.sort_keys();
        let total: u64 = all.iter().map(|t| t.bytes).sum();
        files.push(text(INDEX, &json!({ "metadata": { "total_size": total }, "weight_map": map })));
    }
    Ok((files, slots))
}

/// A JSON file.
pub fn text(name: &str, value: &Value) -> NewFile {
    let bytes = format!("{value:#}\n").into_bytes();
    NewFile { path: name.into(), bytes: bytes.len() as u64, start: Start::Bytes(bytes) }
}

/// The tensors of each shard. The parts of a weight stay together.
fn ranges(weights: &[Vec<NewTensor>], limit: u64) -> Vec<std::ops::Range<usize>> {
    let (mut ranges, mut start, mut end, mut filled) = (Vec::new(), 0, 0, 0u64);
    for parts in weights {
        let bytes = parts.iter().map(|t| t.bytes).sum();
        if filled.saturating_add(bytes) > limit && end > start {
            ranges.push(start..end);
            (start, filled) = (end, 0);
        }
        filled = filled.saturating_add(bytes);
        end += parts.len();
    }
    ranges.push(start..end);
    ranges
}

/// The length, the JSON, and blanks up to a multiple of eight bytes.
fn header<'a>(tensors: impl Iterator<Item = &'a NewTensor>, format: &str) -> Vec<u8> {
    let mut entries = Map::new();
    // Loaders ask for it.
    entries.insert("__metadata__".into(), json!({ "format": format }));
    let mut offset = 0u64;
    for t in tensors {
        let end = offset.saturating_add(t.bytes);
        let entry = json!({ "dtype": t.dtype.to_string(), "shape": t.shape, "data_offsets": [offset, end] });
        entries.insert(t.name.clone(), entry);
        offset = end;
    }
    let mut json = Value::Object(entries).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.append(&mut json);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::hf::header;

    fn tensor(name: &str, dtype: Dtype, shape: &[usize]) -> NewTensor {
        let bytes = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        NewTensor { name: name.into(), dtype, shape: shape.to_vec(), bytes: bytes as u64 }
    }

    fn weights() -> Vec<Vec<NewTensor>> {
        let packed = |n: usize| {
            vec![
                tensor(&format!("{n}.weight_packed"), Dtype::I32, &[3, 2]),
                tensor(&format!("{n}.weight_scale"), Dtype::BF16, &[3, 1]),
                tensor(&format!("{n}.weight_shape"), Dtype::I64, &[2]),
            ]
        };
        vec![packed(0), vec![tensor("norm", Dtype::BF16, &[5])], packed(1)]
    }

    /// The file with its header, and data in which each tensor has its own number.
    fn fill(file: &NewFile, no: usize, slots: &[Slot]) -> Vec<u8> {
        let Start::Bytes(mut bytes) = file.start.clone() else { panic!() };
        bytes.resize(file.bytes as usize, 0xff);
        for (i, slot) in slots.iter().enumerate().filter(|(_, s)| s.shard == no) {
            bytes[slot.offset as usize..][..slot.bytes as usize].fill(i as u8);
        }
        bytes
    }

    #[test]
    fn readers_find_every_tensor_where_its_slot_is() {
        for (split, count) in [(None, 1), (Some(60), 2), (Some(1), 3)] {
            let (files, slots) = layout(&weights(), MODEL, split).unwrap();
            let shards: Vec<&NewFile> = files.iter().filter(|f| f.path.extension().unwrap() == "safetensors").collect();
            assert_eq!((shards.len(), files.len()), (count, if count == 1 { 1 } else { count + 1 }));
            let mut seen = 0;
            for (no, file) in shards.iter().enumerate() {
                let bytes = fill(file, no, &slots);
                for entry in header::parse(&bytes).unwrap() {
                    let i = weights().into_iter().flatten().position(|t| t.name == entry.name).unwrap();
                    assert!(bytes[entry.bytes.clone()].iter().all(|b| *b == i as u8));
                    assert!(
                        entry.bytes.start.is_multiple_of(entry.dtype.bitsize() / 8),
                        "{} is not aligned",
                        entry.name
                    );
                    seen += 1;
                }
                safetensors::SafeTensors::deserialize(&bytes).unwrap();
            }
            assert_eq!(seen, 7);
        }
    }

    #[test]
    fn the_index_names_the_shard_of_every_tensor() {
        let (files, _) = layout(&weights(), MODEL, Some(60)).unwrap();
        let Start::Bytes(bytes) = &files.last().unwrap().start else { panic!() };
        let index: Value = serde_json::from_slice(bytes).unwrap();
        assert_eq!(index["metadata"]["total_size"], 2 * (24 + 6 + 16) + 10);
        assert_eq!(index["weight_map"]["0.weight_shape"], "model-00001-of-00002.safetensors");
        assert_eq!(index["weight_map"]["1.weight_packed"], "model-00002-of-00002.safetensors");
        assert_eq!(index["weight_map"].as_object().unwrap().len(), 7);
    }
}

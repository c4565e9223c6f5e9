//! The JSON files of a model folder, read with bounds.

use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::Value;

use super::header::sound_name;
use crate::error::{At, Error, Kind, Result};

/// Bounds of what is read into memory. The largest configs are some 100 kB; the index of a model with 100,000 tensors is 10 MB.
const MAX_CONFIG: u64 = 4 << 20;
const MAX_INDEX: u64 = 256 << 20;

/// Reads a JSON object; `None` if there is no such file.
pub fn config(dir: &Path, file: &str) -> Result<Option<Value>> {
    let Some(text) = text(dir, file, MAX_CONFIG)? else { return Ok(None) };
    parse_config(&text).at(|| file).map(Some)
}

pub fn parse_config(text: &[u8]) -> Result<Value> {
    let value: Value = serde_json::from_slice(text).map_err(|e| Error::input(format!("not valid JSON: {e}")))?;
    match value {
        Value::Object(_) => Ok(value),
        _ => Err(Error::input("not a JSON object")),
    }
}

/// Reads `model.safetensors.index.json` into (tensor, shard) pairs; `None` if there is no such file.
pub fn index(dir: &Path, file: &str) -> Result<Option<Vec<(String, String)>>> {
    let Some(text) = text(dir, file, MAX_INDEX)? else { return Ok(None) };
    parse_index(&text).at(|| file).map(Some)
}

/// Shard names are plain file names: an index cannot point outside its folder.
pub fn parse_index(text: &[u8]) -> Result<Vec<(String, String)>> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: WeightMap,
    }
    let index: Index = serde_json::from_slice(text).map_err(|e| Error::input(format!("not a valid index: {e}")))?;
    for (tensor, shard) in &index.weight_map.0 {
        if !is_file_name(shard) {
            return Err(Error::input(format!("shard name {shard:?} is not a plain file name"))
                .at(tensor)
                .help("shards must lie beside the index; do not trust this model"));
        }
    }
    Ok(index.weight_map.0)
}

fn is_file_name(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\\', '\0', ':'])
}

fn text(dir: &Path, file: &str, limit: u64) -> Result<Option<Vec<u8>>> {
    let path = dir.join(file);
    let size = match std::fs::metadata(&path) {
        Ok(m) if !m.is_file() => return Err(Error::input("not a file").at(path.display().to_string())),
        Ok(m) => m.len(),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e).at(|| path.display().to_string()),
    };
    if size > limit {
        return Err(Error::new(Kind::Limits, format!("{size} bytes of JSON, at most {limit} are read")).at(file));
    }
    std::fs::read(&path).at(|| path.display().to_string()).map(Some)
}

/// Keeps the order and notices duplicates.
struct WeightMap(Vec<(String, String)>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = WeightMap;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and shard file names")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<WeightMap, M::Error> {
                let (mut pairs, mut seen) = (Vec::new(), HashSet::new());
                while let Some((tensor, shard)) = map.next_entry::<String, String>()? {
                    sound_name(&tensor).map_err(M::Error::custom)?;
                    if !seen.insert(tensor.clone()) {
                        return Err(M::Error::custom(format!("tensor {tensor} is listed twice")));
                    }
                    pairs.push((tensor, shard));
                }
                Ok(WeightMap(pairs))
            }
        }
        json.deserialize_map(Pairs)
    }
}

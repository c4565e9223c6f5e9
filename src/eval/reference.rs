//! The reference, live or from a file. The file keeps the final hidden states of the scored positions and the output
//! matrix, from which its exact logits are computed again: `4 x hidden` bytes a token where logits would take
//! `4 x vocabulary`. It is a safetensors file, so that other tools can read it.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};

use super::protocol::Window;
use super::states;
use crate::codec::{self, Codec};
use crate::container::hf::header;
use crate::container::output::{Output, publish};
use crate::container::{Weight, map};
use crate::device::Worker;
use crate::engine::{Engine, Head};
use crate::error::{At, Error, Result};
use crate::tensor::{Dims, Packed};

/// What the figures of an evaluation depend on beside the model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Conditions {
    pub protocol: String,
    /// Tokens of a window.
    pub context: usize,
    pub corpus: String,
    pub corpus_hash: String,
    pub tokenizer_hash: String,
    /// The token that windows or the text begin with.
    pub bos: Option<u32>,
    /// `as-served`: activations were rounded as runtimes do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub activations: Option<String>,
}

/// What is known of the reference itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Facts {
    pub name: String,
    pub arch: String,
    /// Of its weights.
    pub bytes: u64,
    pub weights: u64,
    /// Of its files; 0 in reference files of earlier versions.
    #[serde(default)]
    pub files: u64,
}

impl Facts {
    /// Bytes that it takes on a disk.
    pub fn size(&self) -> u64 {
        if self.files == 0 { self.bytes } else { self.files }
    }
}

#[derive(Serialize, Deserialize)]
struct Description {
    version: u32,
    conditions: Conditions,
    facts: Facts,
    head_codec: String,
    head_dims: (usize, usize),
    head_scale: f32,
    softcap: Option<f32>,
    /// BLAKE3 of all that follows the header; files of earlier versions have none.
    #[serde(default)]
    data_hash: Option<String>,
}

const KEY: &str = "quant.reference";
const VERSION: u32 = 1;
const HIDDEN: &str = "hidden";
/// For every window its tokens, in order.
const TOKENS: &str = "tokens";
/// For every window: number of tokens, first scored position, end of the scored positions.
const WINDOWS: &str = "windows";

pub enum Reference<'a> {
    Live(Box<Engine<'a>>),
    Cached(&'a Cached),
}

impl Reference<'_> {
    /// Final hidden states of the scored positions of `windows[range]`.
    pub fn hidden(&mut self, windows: &[Window], range: Range<usize>) -> Result<Vec<f32>> {
        match self {
            Reference::Live(engine) => states(engine, &windows[range]),
            Reference::Cached(cached) => cached.hidden(range),
        }
    }

    pub fn head(&self) -> Result<Head<'_>> {
        match self {
            Reference::Live(engine) => engine.head(),
            Reference::Cached(cached) => Ok(cached.head()),
        }
    }
}

/// A reference file, checked when opened.
pub struct Cached {
    pub path: PathBuf,
    map: Mmap,
    pub conditions: Conditions,
    pub facts: Facts,
    pub windows: Vec<Window>,
    codec: &'static dyn Codec,
    dims: Dims,
    scale: f32,
    softcap: Option<f32>,
    /// Bytes of the states, and of the parts of the output matrix, in the file.
    hidden: Range<usize>,
    parts: Vec<Range<usize>>,
}

impl Cached {
    /// Whether a path is meant to be one; `open` says whether it is.
    pub fn detect(path: &Path) -> bool {
        path.extension().is_some_and(|e| e == "ref")
    }

    pub fn open(path: &Path) -> Result<Cached> {
        Self::parse(path, map::map(path)?).at(|| path.display().to_string())
    }

    fn parse(path: &Path, map: Mmap) -> Result<Cached> {
        let damaged = |what: &str| Error::input(what.to_owned()).help("make it again with `quant reference`");
        let not_ours = || damaged("this is not a reference file of quant");
        let again = |cut: Error| cut.help("make it again with `quant reference`");
        let unreadable = |_| header::cut_short(&map).map_or_else(not_ours, again);
        let (_, header) = SafeTensors::read_metadata(&map).map_err(unreadable)?;
        let text = header.metadata().as_ref().and_then(|m| m.get(KEY)).ok_or_else(not_ours)?;
        let about: Description = serde_json::from_str(text).map_err(|e| damaged(&format!("its description: {e}")))?;
        if about.version != VERSION {
            return Err(Error::unsupported(format!("a reference file of version {}", about.version))
                .help("make it again with this version of quant"));
        }
        let entries = crate::container::hf::header::parse(&map)?;
        let start = entries.iter().map(|e| e.bytes.start).min().unwrap_or(map.len());
        let found = || blake3::Hasher::new().update_rayon(&map[start..]).finalize().to_hex().to_string();
        if about.data_hash.as_ref().is_some_and(|hash| *hash != found()) {
            return Err(damaged("its data are not those that were written"));
        }
        let find = |name: &str, dtype: Dtype| {
            let entry = entries.iter().find(|e| e.name == name && e.dtype == dtype);
            entry.ok_or_else(|| damaged(&format!("it has no {name}")))
        };
        let codec = codec::find(&about.head_codec)?;
        let dims = Dims::new(about.head_dims.0, about.head_dims.1);
        let too_large = || damaged("its output matrix is larger than the file");
        dims.rows.checked_mul(dims.cols).filter(|n| *n > 0 && n / 64 <= map.len()).ok_or_else(too_large)?;
        let layout = codec.layout(dims)?;
        let mut parts = Vec::new();
        for (i, part) in layout.iter().enumerate() {
            let entry = find(&format!("head.{i}"), Dtype::U8)?;
            if entry.bytes.len() != part.bytes {
                return Err(damaged("its output matrix has another size than its description says"));
            }
            parts.push(entry.bytes.clone());
        }
        let words = |name| -> Result<Vec<u32>> {
            let bytes = &map[find(name, Dtype::U32)?.bytes.clone()];
            Ok(bytes.as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect())
        };
        let windows = windows(&words(TOKENS)?, &words(WINDOWS)?).ok_or_else(|| damaged("its windows make no sense"))?;
        let hidden = find(HIDDEN, Dtype::F32)?.bytes.clone();
        let scored: usize = windows.iter().map(|w| w.scored.len()).sum();
        if hidden.len() != scored * dims.cols * 4 {
            return Err(damaged("it has another number of hidden states than scored positions"));
        }
        let Description { conditions, facts, head_scale: scale, softcap, .. } = about;
        let path = path.to_owned();
        Ok(Cached { path, map, conditions, facts, windows, codec, dims, scale, softcap, hidden, parts })
    }

    fn hidden(&self, range: Range<usize>) -> Result<Vec<f32>> {
        let row = self.dims.cols * 4;
        let positions = |windows: &[Window]| windows.iter().map(|w| w.scored.len()).sum::<usize>();
        let start = self.hidden.start + positions(&self.windows[..range.start]) * row;
        let bytes = &self.map[start..start + positions(&self.windows[range]) * row];
        let states: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match states.iter().all(|x| x.is_finite()) {
            true => Ok(states),
            false => Err(Error::input("a hidden state is not finite").help("make it again with `quant reference`")),
        }
    }

    pub fn head(&self) -> Head<'_> {
        let parts = self.parts.iter().map(|p| self.map[p.clone()].into()).collect();
        let packed = Packed { dims: self.dims, parts };
        let weight = Weight { codec: self.codec, packed, scale: self.scale, inputs: None };
        Head { weight, softcap: self.softcap, worker: Worker::Cpu }
    }
}

/// `None`: numbers that do not fit together.
fn windows(tokens: &[u32], index: &[u32]) -> Option<Vec<Window>> {
    let (rows, []) = index.as_chunks::<3>() else { return None };
    let mut rest = tokens;
    let mut out = Vec::with_capacity(rows.len());
    for &[count, start, end] in rows {
        let tokens = rest.split_off(..count as usize)?.to_vec();
        if start >= end || end >= count {
            return None;
        }
        out.push(Window { tokens, scored: start as usize..end as usize });
    }
    (rest.is_empty() && !out.is_empty()).then_some(out)
}

/// Runs the reference over all windows and writes what [`Cached`] reads. Returns the file's size.
pub fn write(
    path: &Path,
    engine: &Engine<'_>,
    windows: &[Window],
    conditions: &Conditions,
    facts: &Facts,
    progress: &dyn Fn(u64),
) -> Result<u64> {
    let head = engine.head()?;
    let dims = head.weight.packed.dims;
    let mut about = Description {
        version: VERSION,
        conditions: conditions.clone(),
        facts: facts.clone(),
        head_codec: head.weight.codec.name().to_owned(),
        head_dims: (dims.rows, dims.cols),
        head_scale: head.weight.scale,
        softcap: head.softcap,
        // Its place is kept until the data are known.
        data_hash: Some(blake3::hash(b"").to_hex().to_string()),
    };
    let scored: usize = windows.iter().map(|w| w.scored.len()).sum();
    let tokens: Vec<u8> = windows.iter().flat_map(|w| &w.tokens).flat_map(|t| t.to_le_bytes()).collect();
    let row = |w: &Window| [w.tokens.len(), w.scored.start, w.scored.end].map(|n| n as u32);
    let index: Vec<u8> = windows.iter().flat_map(row).flat_map(u32::to_le_bytes).collect();
    let states_bytes = scored * dims.cols * 4;
    let mut sections = vec![
        (HIDDEN.to_owned(), "F32", vec![scored, dims.cols], states_bytes),
        (TOKENS.to_owned(), "U32", vec![tokens.len() / 4], tokens.len()),
        (WINDOWS.to_owned(), "U32", vec![windows.len(), 3], index.len()),
    ];
    for (i, part) in head.weight.packed.parts.iter().enumerate() {
        sections.push((format!("head.{i}"), "U8", vec![part.len()], part.len()));
    }
    let header = header(&about, &sections)?;
    let total = (header.len() + sections.iter().map(|s| s.3).sum::<usize>()) as u64;
    let output = Output::create(path)?;
    output.reserve(total)?;
    let mut at = header.len() as u64;
    let mut hasher = blake3::Hasher::new();
    for range in super::batches(windows, super::together([engine])?) {
        let hidden = states(engine, &windows[range.clone()])?;
        let bytes: Vec<u8> = hidden.iter().flat_map(|x| x.to_le_bytes()).collect();
        output.write_at(at, &bytes)?;
        hasher.update_rayon(&bytes);
        at += bytes.len() as u64;
        progress(windows[range].iter().map(|w| w.tokens.len() as u64).sum());
    }
    for bytes in [&tokens[..], &index].into_iter().chain(head.weight.packed.parts.iter().map(|p| &p[..])) {
        output.write_at(at, bytes)?;
        hasher.update_rayon(bytes);
        at += bytes.len() as u64;
    }
    debug_assert_eq!(at, total);
    about.data_hash = Some(hasher.finalize().to_hex().to_string());
    output.write_at(0, &self::header(&about, &sections)?)?;
    publish(vec![output])?;
    Ok(total)
}

/// The start of a safetensors file with these sections: name, type, shape and bytes.
fn header(about: &Description, sections: &[(String, &str, Vec<usize>, usize)]) -> Result<Vec<u8>> {
    let about = serde_json::to_string(about).map_err(|e| Error::input(e.to_string()))?;
    let mut json = serde_json::Map::new();
    json.insert("__metadata__".into(), serde_json::json!(HashMap::from([(KEY, about)])));
    let mut at = 0;
    for (name, dtype, shape, bytes) in sections {
        let offsets = [at, at + bytes];
        json.insert(name.clone(), serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": offsets}));
        at += bytes;
    }
    let mut text = serde_json::Value::Object(json).to_string();
    // The data begin at a multiple of 8.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    Ok(out)
}

//! The header of a safetensors file: which tensors it holds and where.
//! Format: 8 bytes little-endian length of the header, the header (JSON), the tensors without gaps. Source: the
//! `safetensors` crate, whose rules these are; here every error names its tensor.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::de::{Deserialize, Deserializer, Error as _, IntoDeserializer, MapAccess, Visitor, value};

use crate::error::{At, Error, Result};

/// No real header comes near; the reference implementation has the same bound.
const MAX_HEADER: usize = 100_000_000;

const MAX_DIMS: usize = 8;

/// One tensor of a file. Checked: `bytes` lies within the file and has the size that `dtype` and `shape` give.
#[derive(Clone, Debug)]
pub struct Entry {
    pub name: String,
    pub dtype: Dtype,
    /// Outermost first.
    pub shape: Vec<usize>,
    /// Counted from the start of the file.
    pub bytes: Range<usize>,
}

/// Reads the header of a whole file. Errors name the tensor; the caller adds the file.
pub fn parse(file: &[u8]) -> Result<Vec<Entry>> {
    let json = header(file)?;
    let start = 8 + json.len();
    let header: Header =
        serde_json::from_slice(json).map_err(|e| Error::input(format!("the safetensors header is not valid: {e}")))?;
    let mut entries = Vec::with_capacity(header.0.len());
    for (name, raw) in header.0 {
        entries.push(entry(&name, raw, start).map_err(|e| e.at(&name))?);
    }
    entries.sort_by_key(|e| (e.bytes.start, e.bytes.end));
    contiguous(&entries, start, file.len())?;
    Ok(entries)
}

/// What is wrong with a file that is shorter than its own header says; `None`: it is not.
pub fn cut_short(file: &[u8]) -> Option<Error> {
    let (length, rest) = file.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok().filter(|n| *n <= MAX_HEADER)?;
    let tensors = match rest.get(..length) {
        Some(json) => serde_json::from_slice::<Header>(json).ok()?.0.iter().map(|(_, raw)| raw.data_offsets.1).max(),
        // What is there of the header must look like one.
        None => (rest.first() == Some(&b'{')).then_some(0),
    };
    let whole = (8 + length).checked_add(tensors?)?;
    (file.len() < whole).then(|| Error::input(format!("the file is cut short: {} of {whole} bytes", file.len())))
}

/// The JSON text, after checking that the file can hold it.
fn header(file: &[u8]) -> Result<&[u8]> {
    if file.is_empty() {
        return Err(Error::input("the file is empty"));
    }
    if let Some((what, help)) =
        SIGNATURES.iter().find_map(|(magic, what, help)| file.starts_with(magic).then_some((what, help)))
    {
        return Err(Error::input(format!("this is {what}, not a safetensors file")).help(*help));
    }
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(Error::input(format!("{} bytes are too few for a safetensors file", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER as u64 {
        return Err(Error::input(format!(
            "the safetensors header claims {length} bytes, at most {MAX_HEADER} are allowed"
        )));
    }
    let json = rest.get(..length as usize).ok_or_else(|| {
        let missing = length - rest.len() as u64;
        Error::input(format!("the file ends inside its header: {missing} bytes missing"))
    })?;
    match json.first() {
        Some(b'{') => Ok(json),
        _ => Err(Error::input("the safetensors header does not start with `{`")),
    }
}

/// What people have instead of the tensors.
const SIGNATURES: &[(&[u8], &str, &str)] = &[
    (
        b"version https://git-lfs",
        "a Git LFS pointer",
        "the folder was cloned without its large files: run `git lfs pull` in it, or download it again",
    ),
    (b"GGUF", "a GGUF file", "pass the file itself instead of its folder, with the extension .gguf"),
    (b"PK\x03\x04", "a PyTorch archive", "save the model again with `save_pretrained(..., safe_serialization=True)`"),
    (b"<!DOCTYPE", "a web page", "the download failed (a login page?): download it again"),
    (b"<html", "a web page", "the download failed (a login page?): download it again"),
];

fn entry(name: &str, raw: Raw, start: usize) -> Result<Entry> {
    let dtype: IntoStr<'_> = raw.dtype.as_str().into_deserializer();
    let dtype = Dtype::deserialize(dtype).map_err(|_| {
        let shown: String = raw.dtype.chars().take(20).collect();
        Error::unsupported(format!("element type {shown:?} is not one of safetensors'"))
            .help("the file is newer than this program, or damaged")
    })?;
    let Raw { shape, data_offsets: (from, to), .. } = raw;
    if shape.len() > MAX_DIMS {
        return Err(Error::input(format!("{} dimensions, at most {MAX_DIMS} are read", shape.len())));
    }
    let overflow = || Error::input(format!("shape {shape:?} of {dtype} overflows"));
    let elements = shape.iter().try_fold(1usize, |n, d| n.checked_mul(*d)).ok_or_else(overflow)?;
    let bits = elements.checked_mul(dtype.bitsize()).ok_or_else(overflow)?;
    let size = to
        .checked_sub(from)
        .ok_or_else(|| Error::input(format!("its bytes end at {to}, before they start at {from}")))?;
    if bits % 8 != 0 || bits / 8 != size {
        let expected = bits.div_ceil(8);
        return Err(Error::input(format!("it has {size} bytes, but {shape:?} of {dtype} takes {expected}")));
    }
    let end = start.checked_add(to).ok_or_else(overflow)?;
    Ok(Entry { name: name.to_owned(), dtype, shape, bytes: end - size..end })
}

type IntoStr<'a> = value::StrDeserializer<'a, value::Error>;

/// Tensors follow each other without gaps from the header to the end of the file.
fn contiguous(entries: &[Entry], start: usize, file: usize) -> Result<()> {
    let mut end = start;
    for e in entries {
        let gap = e.bytes.start.abs_diff(end);
        match e.bytes.start {
            s if s < end => {
                return Err(Error::input(format!("{gap} bytes also belong to another tensor"))).at(|| &e.name);
            }
            s if s > end => {
                return Err(Error::input(format!("{gap} bytes before it belong to no tensor"))).at(|| &e.name);
            }
            _ => end = e.bytes.end,
        }
    }
    match file.checked_sub(end) {
        Some(0) => Ok(()),
        Some(extra) => Err(Error::input(format!("{extra} bytes after the last tensor belong to no tensor"))),
        None => {
            let cut = entries.iter().find(|e| e.bytes.end > file).map_or("", |e| e.name.as_str());
            let message = format!("the file is cut short: {} of {end} bytes missing", end - file);
            Err(Error::input(message).at(cut).help("the download was interrupted: download it again"))
        }
    }
}

/// Names are printed and matched: what no library writes is refused before it fills a terminal.
pub(super) fn sound_name(name: &str) -> Result<(), String> {
    match name {
        "" => Err("a tensor has no name".into()),
        n if n.len() > 1024 => Err(format!("a tensor's name has {} bytes", n.len())),
        n if n.contains(char::is_control) => Err(format!("tensor name {n:?} has control characters")),
        _ => Ok(()),
    }
}

/// As it stands in the JSON.
#[derive(serde::Deserialize)]
struct Raw {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (usize, usize),
}

/// Keeps the order and notices duplicates, which a map would swallow.
struct Header(Vec<(String, Raw)>);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Header;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object with one entry a tensor")
            }
            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Header, M::Error> {
                let (mut tensors, mut seen) = (Vec::new(), HashSet::new());
                while let Some(name) = map.next_key::<String>()? {
                    sound_name(&name).map_err(M::Error::custom)?;
                    if name == "__metadata__" {
                        map.next_value::<Option<HashMap<String, String>>>()?;
                        continue;
                    }
                    let raw = map.next_value().map_err(|e| M::Error::custom(format!("tensor {name}: {e}")))?;
                    if !seen.insert(name.clone()) {
                        return Err(M::Error::custom(format!("tensor {name} is listed twice")));
                    }
                    tensors.push((name, raw));
                }
                Ok(Header(tensors))
            }
        }
        json.deserialize_map(Tensors)
    }
}

//! Importance matrices: the mean square of every input of every weight, as llama.cpp's `imatrix` tool collects them.
//! Source: llama.cpp `tools/imatrix` (both formats), `common/imatrix-loader.cpp`, `tools/quantize` (arithmetic).

use std::collections::{BTreeMap, btree_map};
use std::path::Path;

use super::stats;
use crate::container::map::map;
use crate::container::{gguf, sniff};
use crate::error::{At, Error, Result};
use crate::metadata::{Array, Metadata, Value};

/// The importance of one weight's columns.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// `planes * cols` mean squares, finite and not negative, plane after plane; all ones where a plane (an expert) saw
    /// no data.
    pub values: Vec<f32>,
    /// 1 in the legacy format, which lays experts one after the other and does not say how many there are.
    pub planes: usize,
    pub cols: usize,
    /// Tokens that every plane saw, or one number for all; 0 where the file does not say.
    pub counts: Vec<u64>,
}

impl Entry {
    /// From tokens and mean squares of every plane.
    pub fn counted(planes: Vec<(u64, Vec<f32>)>) -> Entry {
        let cols = planes.first().map_or(0, |(_, values)| values.len());
        let mut out = Entry { values: Vec::new(), counts: Vec::new(), planes: planes.len(), cols };
        for (tokens, values) in planes {
            out.counts.push(tokens);
            out.values.extend(values.into_iter().map(|v| if tokens == 0 { 1.0 } else { v }));
        }
        out
    }

    /// Whether it tells columns apart: where no token came by all are alike.
    pub fn is_known(&self) -> bool {
        self.values.iter().any(|v| *v != 0.0 && *v != 1.0)
    }

    /// The importance of one plane's columns, for a weight of `planes` matrices of `cols` columns.
    pub fn plane(&self, plane: usize, planes: usize, cols: usize) -> Result<&[f32]> {
        let fits = planes.checked_mul(cols) == Some(self.values.len());
        let values = self.values.chunks_exact(cols.max(1)).nth(plane).filter(|_| fits);
        values.ok_or_else(|| {
            Error::request(format!(
                "the importance matrix has {} values for a weight of {planes} x {cols} inputs",
                self.values.len()
            ))
            .help("it was collected on another model")
        })
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Imatrix {
    entries: BTreeMap<String, Entry>,
    /// Paths of the texts, as recorded.
    pub datasets: Vec<String>,
    pub chunk_count: u32,
    /// Tokens; 0 in the legacy format, which does not say.
    pub chunk_size: u32,
}

impl Imatrix {
    /// Opens a GGUF importance matrix or a legacy `.dat`.
    pub fn open(path: &Path) -> Result<Imatrix> {
        let opened = map(path).and_then(|file| Imatrix::parse(&file));
        opened.at(|| path.display().to_string())
    }

    /// The whole file's bytes to importance, with llama-quantize's arithmetic.
    pub fn parse(file: &[u8]) -> Result<Imatrix> {
        match file.starts_with(gguf::MAGIC) {
            true => from_gguf(file),
            false if stats::detect(file) => {
                Err(Error::request("these are statistics of `quant calibrate`, not an importance matrix")
                    .help("pass them with --stats, or make a matrix of them with `quant calibrate export`"))
            }
            false => from_legacy(file),
        }
    }

    /// By name.
    pub fn iter(&self) -> btree_map::Iter<'_, String, Entry> {
        self.entries.iter()
    }

    /// Sorted names.
    pub fn entries(&self) -> btree_map::Keys<'_, String, Entry> {
        self.entries.keys()
    }

    /// Adds an entry of values that are known to be good, or replaces one.
    pub(super) fn add(&mut self, name: String, entry: Entry) {
        self.entries.insert(name, entry);
    }

    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.entries.get(name)
    }

    pub fn entries_count(&self) -> usize {
        self.entries.len()
    }

    /// What llama-quantize records in a model made with it, in its order. `file` is the path as the user gave it.
    pub fn metadata(&self, file: &str) -> Vec<(&'static str, Value)> {
        let mut pairs = vec![("quantize.imatrix.file", Value::from(cut(file)))];
        if let Some(first) = self.datasets.first() {
            pairs.push(("quantize.imatrix.dataset", cut(first).into()));
        }
        pairs.push(("quantize.imatrix.entries_count", (self.entries.len() as u32).into()));
        if self.chunk_count > 0 {
            pairs.push(("quantize.imatrix.chunks_count", self.chunk_count.into()));
        }
        pairs
    }

    fn insert(&mut self, name: String, entry: Entry) -> Result<()> {
        if let Some(bad) = entry.values.iter().find(|v| !v.is_finite() || **v < 0.0) {
            return Err(Error::input(format!("a mean square of {bad}")).at(name).help(COLLECT_AGAIN));
        }
        match self.entries.entry(name) {
            btree_map::Entry::Vacant(slot) => slot.insert(entry),
            btree_map::Entry::Occupied(slot) => {
                return Err(Error::input("this entry occurs twice").at(slot.key()));
            }
        };
        Ok(())
    }
}

const COLLECT_AGAIN: &str = "collect the importance matrix again; a NaN in it often means that the model overflows";

/// llama-quantize keeps 127 bytes of a string, and C ends it at a NUL. A character that does not fit is left out whole.
fn cut(text: &str) -> &str {
    let text = text.split('\0').next().unwrap_or_default();
    let mut end = text.len().min(127);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn from_gguf(file: &[u8]) -> Result<Imatrix> {
    let header = gguf::parse(file)?;
    let mut imatrix = about(&header.metadata)?;
    let mut pairs: BTreeMap<&str, (Option<&gguf::TensorInfo>, Option<&gguf::TensorInfo>)> = BTreeMap::new();
    for tensor in &header.tensors {
        if let Some(name) = tensor.name.strip_suffix(".in_sum2") {
            pairs.entry(name).or_default().0 = Some(tensor);
        } else if let Some(name) = tensor.name.strip_suffix(".counts") {
            pairs.entry(name).or_default().1 = Some(tensor);
        }
    }
    if pairs.is_empty() {
        return Err(Error::input("this importance matrix has no entries").help(COLLECT_AGAIN));
    }
    for (name, pair) in pairs {
        let entry = match pair {
            (Some(sums), Some(counts)) => mean_squares(file, sums, counts),
            (None, _) => Err(Error::input("in_sum2 is missing")),
            (_, None) => Err(Error::input("counts is missing")),
        };
        imatrix.insert(name.to_owned(), entry.at(|| name)?)?;
    }
    Ok(imatrix)
}

/// The keys that llama-quantize insists on.
fn about(metadata: &Metadata) -> Result<Imatrix> {
    let missing = |key| {
        let error =
            Error::input(format!("{key} is missing or of another type: this GGUF file is no importance matrix"));
        match metadata.str("general.architecture") {
            Some(arch) => {
                error.help(format!("this is a model ({arch}); collect one with `quant calibrate` or llama-imatrix"))
            }
            None => error.help("collect one with `quant calibrate` or llama-imatrix"),
        }
    };
    let number = |key| {
        let number = metadata.u64(key).and_then(|n| u32::try_from(n).ok()).filter(|n| *n <= i32::MAX as u32);
        number.ok_or_else(|| missing(key))
    };
    match metadata.get("imatrix.datasets") {
        Some(Value::Array(Array::Str(datasets))) => Ok(Imatrix {
            entries: BTreeMap::new(),
            datasets: datasets.clone(),
            chunk_count: number("imatrix.chunk_count")?,
            chunk_size: number("imatrix.chunk_size")?,
        }),
        _ => Err(missing("imatrix.datasets")),
    }
}

fn mean_squares(file: &[u8], sums: &gguf::TensorInfo, counts: &gguf::TensorInfo) -> Result<Entry> {
    let cols = sums.shape.last().copied().unwrap_or(1);
    let (mut values, counts) = (floats(file, sums)?, floats(file, counts)?);
    let planes = values.len() / cols;
    // One count a plane; a single count holds for all.
    if counts.len() != planes && counts.len() != 1 {
        return Err(Error::input(format!("{} counts for sums of shape {:?}", counts.len(), sums.shape)));
    }
    let run = values.len() / counts.len();
    for (sums, count) in values.chunks_exact_mut(run).zip(&counts) {
        if !count.is_finite() || *count < 0.0 {
            return Err(Error::input(format!("a count of {count}")));
        }
        match count.round() {
            0.0 => sums.fill(1.0),
            count => sums.iter_mut().for_each(|s| *s /= count),
        }
    }
    let counts = counts.iter().map(|c| c.round() as u64).collect();
    Ok(Entry { values, planes, cols, counts })
}

fn floats(file: &[u8], tensor: &gguf::TensorInfo) -> Result<Vec<f32>> {
    if tensor.codec.block().is_none_or(|b| b.ggml != Some(F32)) {
        return Err(Error::input(format!("{} is {}, not f32", tensor.name, tensor.codec.name())));
    }
    let bytes = &file[tensor.offset..tensor.offset + tensor.bytes];
    Ok(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect())
}

/// ggml's type id.
const F32: u32 = 0;

/// i32 entries; each {i32 length, name, i32 calls, i32 values, f32 sums}; then perhaps {i32 chunks, i32 length, dataset}.
fn from_legacy(file: &[u8]) -> Result<Imatrix> {
    let mut rest = Rest(file);
    let strange = |e: Error| match sniff::guess(file) {
        Some((what, help)) => Error::input(format!("not an importance matrix: this is {what}")).help(help),
        None => e.help("this is neither a GGUF nor a legacy (.dat) importance matrix, or it is cut short"),
    };
    let mut imatrix = Imatrix::default();
    let count = rest.count("entries").map_err(strange)?;
    if count == 0 {
        return Err(Error::input("this importance matrix has no entries").help(COLLECT_AGAIN));
    }
    for i in 0..count {
        let (name, entry) = legacy_entry(&mut rest).map_err(strange).at(|| format!("entry {i} of {count}"))?;
        imatrix.insert(name, entry)?;
    }
    if !rest.0.is_empty() {
        imatrix.chunk_count = rest.count("chunks").map_err(strange)? as u32;
        let dataset = rest.text("the dataset's name").map_err(strange)?;
        imatrix.datasets.extend((!dataset.is_empty()).then(|| dataset.to_owned()));
    }
    match rest.0.len() {
        0 => Ok(imatrix),
        n => Err(strange(Error::input(format!("{n} bytes follow the end")))),
    }
}

fn legacy_entry(rest: &mut Rest<'_>) -> Result<(String, Entry)> {
    let name = rest.text("the name")?.to_owned();
    if name.is_empty() {
        return Err(Error::input("the name is empty"));
    }
    let calls = i32::from_le_bytes(rest.array("the calls")?);
    let cols = rest.count("values").at(|| name.as_str())?;
    if cols == 0 {
        return Err(Error::input("no values").at(name));
    }
    let sums = rest.take(cols.saturating_mul(4), "the values").at(|| name.as_str())?;
    let divisor = if calls > 0 { calls as f32 } else { 1.0 };
    let values = sums.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b) / divisor).collect();
    Ok((name, Entry { values, planes: 1, cols, counts: vec![calls.max(0) as u64] }))
}

/// What has not been read yet.
struct Rest<'a>(&'a [u8]);

impl<'a> Rest<'a> {
    fn take(&mut self, len: usize, what: &str) -> Result<&'a [u8]> {
        let (taken, rest) =
            self.0.split_at_checked(len).ok_or_else(|| Error::input(format!("the file ends inside {what}")))?;
        self.0 = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    fn count(&mut self, what: &str) -> Result<usize> {
        let n = i32::from_le_bytes(self.array(what)?);
        usize::try_from(n).map_err(|_| Error::input(format!("{n} {what}")))
    }

    /// Ends at a NUL, if there is one.
    fn text(&mut self, what: &str) -> Result<&'a str> {
        let len = self.count("bytes of a string")?;
        let bytes = self.take(len, what)?;
        let bytes = bytes.split(|b| *b == 0).next().unwrap_or_default();
        std::str::from_utf8(bytes).map_err(|e| Error::input(format!("{what} is not valid UTF-8: {e}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn legacy(calls: i32, values: &[f32]) -> Vec<u8> {
        let mut out = [1i32, 1].map(i32::to_le_bytes).concat();
        out.push(b'w');
        out.extend([calls, values.len() as i32].map(i32::to_le_bytes).concat());
        out.extend(values.iter().flat_map(|v| v.to_le_bytes()));
        out
    }

    #[test]
    fn legacy_sums_are_divided_by_calls() {
        let values = |calls| Imatrix::parse(&legacy(calls, &[1.0, 2.0])).unwrap().get("w").unwrap().values.clone();
        assert_eq!(values(3), [1.0f32 / 3.0, 2.0f32 / 3.0]);
        assert_eq!(values(0), [1.0, 2.0]);
        assert_eq!(values(-4), [1.0, 2.0]);
    }

    #[test]
    fn planes_follow_the_weight() {
        let imatrix = Imatrix::parse(&legacy(1, &[1.0, 2.0, 3.0, 4.0])).unwrap();
        let entry = imatrix.get("w").unwrap();
        assert_eq!(entry.plane(1, 2, 2).unwrap(), [3.0, 4.0]);
        assert_eq!(entry.plane(0, 1, 4).unwrap(), [1.0, 2.0, 3.0, 4.0]);
        for (plane, planes, cols) in [(0, 1, 2), (2, 2, 2), (0, 3, 2), (0, 0, 0), (0, usize::MAX, 4)] {
            assert!(entry.plane(plane, planes, cols).is_err(), "{plane} {planes} {cols}");
        }
    }

    #[test]
    fn recorded_as_llama_quantize_does() {
        let mut imatrix = Imatrix::parse(&legacy(1, &[1.0])).unwrap();
        let keys = |m: &Imatrix| m.metadata("f").into_iter().map(|(k, _)| k).collect::<Vec<_>>();
        assert_eq!(keys(&imatrix), ["quantize.imatrix.file", "quantize.imatrix.entries_count"]);
        imatrix.chunk_count = 7;
        imatrix.datasets = vec!["a.txt\0b".into(), "second".into()];
        let long = format!("{}é", "x".repeat(126));
        let expected = [
            ("quantize.imatrix.file", Value::Str("x".repeat(126))),
            ("quantize.imatrix.dataset", Value::Str("a.txt".into())),
            ("quantize.imatrix.entries_count", Value::U32(1)),
            ("quantize.imatrix.chunks_count", Value::U32(7)),
        ];
        assert_eq!(imatrix.metadata(&long), expected);
        assert_eq!(cut(&"y".repeat(200)).len(), 127);
    }
}

//! Bytes to [`Header`]. Everything a header can say is checked here, so that later reads cannot fail.

use std::collections::HashSet;
use std::fmt::Display;

use super::{ALIGNMENT, KEY_ALIGNMENT, MAGIC, MAX_DIMS, TYPE_ARRAY, TYPE_STRING, VERSION, padded};
use crate::codec::{self, Codec};
use crate::error::{Error, Kind, Result};
use crate::metadata::{Array, Metadata, Value};
use crate::tensor::Dims;

/// What a GGUF file says about itself, checked against its length.
#[derive(Clone, Debug)]
pub struct Header {
    pub version: u32,
    /// Every pair, in file order.
    pub metadata: Metadata,
    /// In file order.
    pub tensors: Vec<TensorInfo>,
    pub alignment: usize,
    /// Where the data section starts.
    pub data: usize,
}

/// The place of one tensor.
#[derive(Clone, Debug)]
pub struct TensorInfo {
    pub name: String,
    /// Outermost first, without leading ones: ggml does not tell `[1, 1, 576]` from `[576]`. At least one dimension.
    pub shape: Vec<usize>,
    pub codec: &'static dyn Codec,
    /// From the start of the file; `offset + bytes` lies inside it.
    pub offset: usize,
    pub bytes: usize,
}

impl Header {
    /// Whether each tensor starts where the one before it ends, padded. llama.cpp loads no other file.
    pub fn is_contiguous(&self) -> bool {
        let mut expected = Some(self.data);
        self.tensors.iter().all(|t| {
            let here = expected == Some(t.offset);
            expected = padded(t.bytes, self.alignment).and_then(|n| n.checked_add(t.offset));
            here
        })
    }

    /// Bytes of a file of `len` that lie behind the last tensor and its padding.
    pub fn trailing(&self, len: usize) -> usize {
        let end = self.tensors.iter().map(|t| t.offset + t.bytes).max().unwrap_or(self.data);
        len.saturating_sub(padded(end, self.alignment).unwrap_or(len))
    }
}

/// Reads the header of a whole GGUF file (version 2 or 3, little-endian) and checks it against the file's length.
/// Allocates no more than a small multiple of `file.len()`.
pub fn parse(file: &[u8]) -> Result<Header> {
    let mut cursor = Cursor { file, position: 0 };
    let version = version(&mut cursor)?;
    let tensor_count = cursor.u64("the number of tensors")?;
    let pair_count = cursor.u64("the number of metadata pairs")?;
    let metadata = metadata(&mut cursor, pair_count)?;
    let alignment = alignment(&metadata)?;
    let infos = tensor_infos(&mut cursor, tensor_count)?;
    let data = match infos.is_empty() {
        true => cursor.position,
        false => padded(cursor.position, alignment).filter(|d| *d <= file.len()).ok_or_else(|| {
            Error::input(format!("the file ends inside its header ({} bytes)", file.len())).help(DOWNLOAD_AGAIN)
        })?,
    };
    let tensors = infos
        .into_iter()
        .map(|info| {
            let name = info.name.clone();
            info.place(data, alignment, file.len()).map_err(|e| e.at(name))
        })
        .collect::<Result<Vec<_>>>()?;
    refuse_overlap(&tensors)?;
    Ok(Header { version, metadata, tensors, alignment, data })
}

const DOWNLOAD_AGAIN: &str = "the file is cut short or damaged: download or convert it again";

fn version(cursor: &mut Cursor<'_>) -> Result<u32> {
    if cursor.take(4, "the magic")? != MAGIC {
        return Err(Error::input("this is not a GGUF file: it does not start with the bytes `GGUF`"));
    }
    match cursor.u32("the version")? {
        version @ 2..=VERSION => Ok(version),
        1 => Err(Error::unsupported("GGUF version 1").help("convert the original model again with today's tools")),
        // Versions are small, so a zero low half means that the bytes are swapped.
        version if version & 0xffff == 0 => Err(Error::unsupported("this GGUF file is big-endian")
            .help("use the little-endian file, or swap it with gguf-py's gguf_convert_endian")),
        version => Err(Error::unsupported(format!("GGUF version {version}; versions 2 and {VERSION} are known"))
            .help("use a newer `quant`")),
    }
}

fn metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata> {
    // The shortest pair: an 8-byte key length, a 1-byte key, a type and a 1-byte value.
    cursor.expect(count, 8 + 1 + 4 + 1, "metadata pairs")?;
    let mut seen = HashSet::new();
    let mut pairs = Vec::new();
    for i in 0..count {
        let key = cursor.str(format_args!("key {i}"))?;
        if key.is_empty() {
            return Err(Error::input(format!("metadata key {i} is empty")));
        }
        if !seen.insert(key) {
            return Err(Error::input(format!("metadata key {key} occurs twice")));
        }
        let value = value(cursor).map_err(|e| e.at(format!("metadata {key}")))?;
        pairs.push((key.to_owned(), value));
    }
    Ok(Metadata::from_distinct(pairs))
}

fn value(cursor: &mut Cursor<'_>) -> Result<Value> {
    let kind = cursor.u32("the value's type")?;
    if kind == TYPE_ARRAY {
        let element = cursor.u32("the array's type")?;
        let len = cursor.u64("the array's length")?;
        return Ok(Value::Array(array(cursor, element, len)?));
    }
    Ok(match kind {
        0 => Value::U8(u8::from_le_bytes(cursor.scalar()?)),
        1 => Value::I8(i8::from_le_bytes(cursor.scalar()?)),
        2 => Value::U16(u16::from_le_bytes(cursor.scalar()?)),
        3 => Value::I16(i16::from_le_bytes(cursor.scalar()?)),
        4 => Value::U32(u32::from_le_bytes(cursor.scalar()?)),
        5 => Value::I32(i32::from_le_bytes(cursor.scalar()?)),
        6 => Value::F32(f32::from_le_bytes(cursor.scalar()?)),
        7 => Value::Bool(boolean(cursor.scalar()?)?),
        TYPE_STRING => Value::Str(cursor.str("the string")?.to_owned()),
        10 => Value::U64(u64::from_le_bytes(cursor.scalar()?)),
        11 => Value::I64(i64::from_le_bytes(cursor.scalar()?)),
        12 => Value::F64(f64::from_le_bytes(cursor.scalar()?)),
        _ => return Err(Error::input(format!("unknown value type {kind}"))),
    })
}

fn array(cursor: &mut Cursor<'_>, element: u32, len: u64) -> Result<Array> {
    Ok(match element {
        0 => Array::U8(cursor.take_many::<1>(len)?.as_flattened().to_vec()),
        1 => Array::I8(cursor.scalars(len, i8::from_le_bytes)?),
        2 => Array::U16(cursor.scalars(len, u16::from_le_bytes)?),
        3 => Array::I16(cursor.scalars(len, i16::from_le_bytes)?),
        4 => Array::U32(cursor.scalars(len, u32::from_le_bytes)?),
        5 => Array::I32(cursor.scalars(len, i32::from_le_bytes)?),
        6 => Array::F32(cursor.scalars(len, f32::from_le_bytes)?),
        7 => Array::Bool(cursor.take_many::<1>(len)?.iter().map(|b| boolean(*b)).collect::<Result<_>>()?),
        TYPE_STRING => Array::Str(cursor.strings(len)?),
        TYPE_ARRAY => return Err(Error::unsupported("an array of arrays, which no known model uses")),
        10 => Array::U64(cursor.scalars(len, u64::from_le_bytes)?),
        11 => Array::I64(cursor.scalars(len, i64::from_le_bytes)?),
        12 => Array::F64(cursor.scalars(len, f64::from_le_bytes)?),
        _ => return Err(Error::input(format!("unknown array element type {element}"))),
    })
}

fn boolean(byte: [u8; 1]) -> Result<bool> {
    match byte {
        [0] => Ok(false),
        [1] => Ok(true),
        [other] => Err(Error::input(format!("a boolean is 0 or 1, this one is {other}"))),
    }
}

fn alignment(metadata: &Metadata) -> Result<usize> {
    match metadata.get(KEY_ALIGNMENT) {
        None => Ok(ALIGNMENT),
        Some(Value::U32(n)) if n.is_power_of_two() => Ok(*n as usize),
        Some(other) => Err(Error::input(format!("{KEY_ALIGNMENT} is {other}, not a power of two of type u32"))),
    }
}

/// A tensor's entry before the place of the data section is known.
struct Entry {
    name: String,
    shape: Vec<usize>,
    type_id: u32,
    offset: u64,
}

fn tensor_infos(cursor: &mut Cursor<'_>, count: u64) -> Result<Vec<Entry>> {
    // The shortest entry: an 8-byte name length, a 1-byte name, no dimension, a type and an offset.
    cursor.expect(count, 8 + 1 + 4 + 4 + 8, "tensors")?;
    let mut seen = HashSet::new();
    let mut infos = Vec::new();
    for i in 0..count {
        let name = cursor.str(format_args!("the name of tensor {i}"))?;
        if name.is_empty() {
            return Err(Error::input(format!("tensor {i} has no name")));
        }
        if !seen.insert(name) {
            return Err(Error::input(format!("tensor {name} occurs twice")));
        }
        let shape = shape(cursor).map_err(|e| e.at(name))?;
        let type_id = cursor.u32("the tensor's type").map_err(|e| e.at(name))?;
        let offset = cursor.u64("the tensor's offset").map_err(|e| e.at(name))?;
        infos.push(Entry { name: name.to_owned(), shape, type_id, offset });
    }
    Ok(infos)
}

fn shape(cursor: &mut Cursor<'_>) -> Result<Vec<usize>> {
    let n_dims = cursor.u32("the number of dimensions")?;
    if n_dims as usize > MAX_DIMS {
        return Err(Error::input(format!("{n_dims} dimensions; GGUF tensors have at most {MAX_DIMS}")));
    }
    let mut shape = Vec::with_capacity(n_dims as usize);
    for _ in 0..n_dims {
        let dim = cursor.u64("a dimension")?;
        match usize::try_from(dim) {
            Ok(dim) if dim > 0 => shape.push(dim),
            _ => return Err(Error::input(format!("a dimension of {dim}"))),
        }
    }
    while shape.len() > 1 && shape.last() == Some(&1) {
        shape.pop();
    }
    shape.reverse();
    if shape.is_empty() {
        shape.push(1);
    }
    Ok(shape)
}

impl Entry {
    fn place(self, data: usize, alignment: usize, file_len: usize) -> Result<TensorInfo> {
        let Entry { name, shape, type_id, offset } = self;
        let codec = codec::ggml_type(type_id).ok_or_else(|| {
            Error::unsupported(format!("unknown tensor type {type_id}"))
                .help("the file comes from a fork or a newer llama.cpp: convert from the original model instead")
        })?;
        let bytes = stored_bytes(codec, &shape).map_err(|mut e| {
            e.kind = Kind::Input;
            e
        })?;
        let relative = usize::try_from(offset).ok().filter(|o| o.is_multiple_of(alignment));
        let relative = relative
            .ok_or_else(|| Error::input(format!("offset {offset} is not a multiple of the alignment {alignment}")))?;
        let end = data.checked_add(relative).and_then(|start| start.checked_add(bytes));
        match end {
            Some(end) if end <= file_len => Ok(TensorInfo { name, shape, codec, offset: end - bytes, bytes }),
            _ => Err(Error::input(format!(
                "{bytes} bytes at data offset {offset} reach beyond the end of the file ({file_len} bytes)"
            ))
            .help(DOWNLOAD_AGAIN)),
        }
    }
}

/// Bytes of a tensor of `shape` (outermost first, not empty) in `codec`, or why there is no such tensor.
pub(super) fn stored_bytes(codec: &dyn Codec, shape: &[usize]) -> Result<usize> {
    let (cols, outer) = shape.split_last().ok_or_else(|| Error::input("a tensor without dimensions"))?;
    let overflow = || Error::input(format!("shape {shape:?} is larger than any file"));
    let rows = outer.iter().try_fold(1usize, |product, dim| product.checked_mul(*dim)).ok_or_else(overflow)?;
    // Element counts are multiplied freely later on, so they must fit even where the bytes of a dense format do.
    rows.checked_mul(*cols).filter(|n| *n <= isize::MAX as usize).ok_or_else(overflow)?;
    codec.bytes(Dims::new(rows, *cols))
}

fn refuse_overlap(tensors: &[TensorInfo]) -> Result<()> {
    let mut by_offset: Vec<&TensorInfo> = tensors.iter().collect();
    by_offset.sort_by_key(|t| t.offset);
    for pair in by_offset.windows(2) {
        if pair[1].offset < pair[0].offset + pair[0].bytes {
            return Err(Error::input(format!("its bytes overlap those of {}", pair[0].name)).at(&pair[1].name));
        }
    }
    Ok(())
}

struct Cursor<'a> {
    file: &'a [u8],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn remaining(&self) -> usize {
        self.file.len() - self.position
    }

    fn take(&mut self, len: usize, what: impl Display) -> Result<&'a [u8]> {
        if len > self.remaining() {
            return Err(Error::input(format!("the file ends inside {what}")).help(DOWNLOAD_AGAIN));
        }
        let bytes = &self.file[self.position..self.position + len];
        self.position += len;
        Ok(bytes)
    }

    /// Refuses a count that the rest of the file cannot hold, given the least size of one item.
    fn expect(&self, count: u64, least: usize, what: &str) -> Result<()> {
        match count > (self.remaining() / least) as u64 {
            true => {
                Err(Error::input(format!("{count} {what} do not fit in the {} bytes that follow", self.remaining()))
                    .help(DOWNLOAD_AGAIN))
            }
            false => Ok(()),
        }
    }

    fn u32(&mut self, what: impl Display) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(what)?))
    }

    fn u64(&mut self, what: impl Display) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(what)?))
    }

    fn scalar<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.array("the value")
    }

    fn array<const N: usize>(&mut self, what: impl Display) -> Result<[u8; N]> {
        let bytes = self.take(N, what)?;
        Ok(std::array::from_fn(|i| bytes[i]))
    }

    fn take_many<const N: usize>(&mut self, count: u64) -> Result<&'a [[u8; N]]> {
        self.expect(count, N, "array elements")?;
        let bytes = self.take(count as usize * N, "the array")?;
        Ok(bytes.as_chunks().0)
    }

    fn scalars<const N: usize, T>(&mut self, count: u64, value: fn([u8; N]) -> T) -> Result<Vec<T>> {
        Ok(self.take_many(count)?.iter().map(|b| value(*b)).collect())
    }

    fn str(&mut self, what: impl Display) -> Result<&'a str> {
        let len = self.u64(&what)?;
        self.expect(len, 1, "bytes of a string")?;
        let bytes = self.take(len as usize, &what)?;
        std::str::from_utf8(bytes).map_err(|e| Error::input(format!("{what} is not valid UTF-8: {e}")))
    }

    fn strings(&mut self, count: u64) -> Result<Vec<String>> {
        self.expect(count, 8, "strings")?;
        (0..count).map(|i| Ok(self.str(format_args!("string {i}"))?.to_owned())).collect()
    }
}

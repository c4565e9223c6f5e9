//! Folders of bitsandbytes: what config.json says of them, and which parts make one weight. Source: bitsandbytes `functional.py`
//! (QuantState, dequantize_4bit), transformers `utils/quantization_config.py`.

use safetensors::Dtype;
use serde_json::{Value, json};

use super::integers::{self, All, Bundle, Found};
use super::json::parse_config;
use super::place::{Plane, Stored};
use super::quantized::{Storage, refuse};
use super::shards::{Located, Shard};
use crate::codec::nf4::{self, Coded, SPAN};
use crate::codec::{Codec, Part, Scheme, float};
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// What config.json calls it.
pub const METHOD: &str = "bitsandbytes";

/// Reads `quantization_config`.
pub fn read(q: &Value) -> Result<Storage> {
    match q.get("load_in_4bit").is_some_and(|v| v == true) {
        true => Ok(Storage::BitsAndBytes),
        false => Err(refuse("bitsandbytes with 8 bits")),
    }
}

/// Says how all modules but `plain` are stored.
pub fn declare(scheme: &Scheme, plain: &[String]) -> Value {
    let kind = nf4::kinds().find(|c| c.scheme() == scheme).map(|c| c.kind);
    json!({
        "quant_method": METHOD, "load_in_4bit": true, "load_in_8bit": false, "bnb_4bit_quant_type": kind,
        "bnb_4bit_use_double_quant": false, "bnb_4bit_compute_dtype": float::torch_name(scheme.scales),
        "bnb_4bit_quant_storage": "uint8", "llm_int8_skip_modules": plain
    })
}

/// Takes all packed weights out of the tensors of a folder.
pub fn bundles(shards: &[Shard], located: Vec<Located>) -> Result<Found> {
    integers::collect(shards, located, |name, file, all| {
        let module = name.strip_suffix(".weight")?;
        let packed = all.contains_key(&format!("{module}.{}", nf4::ABSMAX));
        let packed = packed || all.get(name).is_some_and(|l| l.entry.dtype == Dtype::U8);
        packed.then(|| Module { shards, module }.bundle(file, all))
    })
}

struct Module<'a> {
    shards: &'a [Shard],
    module: &'a str,
}

impl Module<'_> {
    fn bundle(&self, file: &str, all: &mut All) -> Result<Bundle> {
        let stated = nf4::kinds().find(|c| all.contains_key(&format!("{}.{}", self.module, c.state_name)));
        let stated = stated.ok_or_else(|| Error::input("its part quant_state.bitsandbytes__nf4 is missing"))?;
        let name = format!("{}.{}", self.module, stated.state_name);
        let (state, codec, dims) = self.state(stated, all).at(|| name.as_str())?;
        all.remove(&name);
        // The shapes in a file are no request of anyone's.
        let layout = codec.layout(dims).map_err(|e| match dims.cols.is_multiple_of(SPAN) {
            true => Error::input(e.message()),
            false => Error::unsupported(format!("rows of {}, so that blocks of {SPAN} span two", dims.cols)),
        })?;
        let parts = vec![
            self.codes(all, &layout[0])?,
            self.scales(all, &layout[1], &state)?,
            self.table(all, codec, &layout[2])?,
            Stored::Made(codec.state(dims)),
        ];
        let name = format!("{}.weight", self.module);
        let planes = vec![Plane { parts, scale: 1.0, inputs: None }];
        Ok(Bundle {
            source: name.clone(),
            name,
            file: file.to_owned(),
            codec,
            dims,
            experts: None,
            planes,
            fault: None,
        })
    }

    /// What the JSON says.
    fn state(&self, stated: &Coded, all: &All) -> Result<(Value, &'static Coded, Dims)> {
        let located = integers::find(self.module, all, stated.state_name)?;
        let state = parse_config(&self.shards[located.shard].map[located.entry.bytes.clone()])?;
        let word = |key: &str| state.get(key).and_then(Value::as_str).unwrap_or("unnamed");
        let floats = float::TORCH.iter().find(|(_, name)| *name == word("dtype")).map(|(dtype, _)| *dtype);
        let codec = nf4::kinds().find(|c| c.kind == word("quant_type") && Some(c.scheme().scales) == floats);
        let codec = codec.filter(|c| c.kind == stated.kind).ok_or_else(|| {
            Error::unsupported(format!("quant_type {} decoded to {}", word("quant_type"), word("dtype")))
        })?;
        let block = state.get("blocksize").unwrap_or(&Value::Null);
        if *block != SPAN {
            return Err(Error::unsupported(format!("blocks of {block} weights, not of {SPAN}")));
        }
        let shape = state.get("shape").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
        let size = |n: &Value| n.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| *n > 0);
        match shape.iter().map(size).collect::<Vec<_>>()[..] {
            [Some(rows), Some(cols)] => Ok((state, codec, Dims::new(rows, cols))),
            _ => Err(Error::input("its shape is not that of a matrix")),
        }
    }

    /// Bytes, whatever type they are stored as.
    fn codes(&self, all: &mut All, part: &Part) -> Result<Stored> {
        let name = format!("{}.{}", self.module, part.name);
        let located = all.remove(&name).ok_or_else(|| Error::input(format!("its part {name} is missing")))?;
        if located.entry.bytes.len() != part.bytes {
            let (dtype, shape) = (located.entry.dtype, &located.entry.shape);
            let message = format!("{shape:?} of {dtype} instead of {:?} of {}", part.shape, part.dtype);
            return Err(Error::input(message));
        }
        Ok(Stored::Mapped { shard: located.shard, bytes: located.entry.bytes, widened: false })
    }

    /// The scales of blocks, which may be quantized themselves.
    fn scales(&self, all: &mut All, part: &Part, state: &Value) -> Result<Stored> {
        let mut take = |name, dtype, n| {
            Part::new(name, dtype, vec![n]).and_then(|part| integers::take(self.module, all, &part, None))
        };
        let Some(offset) = state.get("nested_offset").filter(|v| !v.is_null()) else {
            return take(part.name, part.dtype, part.shape[0]);
        };
        let block = state.get("nested_blocksize").and_then(Value::as_u64).and_then(|n| usize::try_from(n).ok());
        let (Some(offset), Some(block)) = (offset.as_f64(), block.filter(|n| *n > 0)) else {
            return Err(Error::input("nested_offset and nested_blocksize are not numbers").at(part.name));
        };
        Ok(Stored::Nested(Box::new(Nested {
            codes: take(part.name, Dtype::U8, part.shape[0])?,
            scales: take("weight.nested_absmax", Dtype::F32, part.shape[0].div_ceil(block))?,
            table: take("weight.nested_quant_map", Dtype::F32, 256)?,
            first: 0,
            block,
            offset: offset as f32,
        })))
    }

    /// Runtimes do not look at it, so one that is another would not be what they decode by.
    fn table(&self, all: &mut All, codec: &Coded, part: &Part) -> Result<Stored> {
        let stored = integers::take(self.module, all, part, None)?;
        let bytes = stored.read(self.shards);
        let near = |(stored, own): (&[u8; 4], f32)| (f32::from_le_bytes(*stored) - own).abs() < 1e-6;
        if !bytes.as_chunks::<4>().0.iter().zip(codec.table()).all(near) {
            return Err(Error::unsupported(format!("a quant_map that is not that of {}", codec.kind)));
        }
        Ok(Stored::Made(codec.table().flat_map(f32::to_le_bytes).collect()))
    }
}

/// Scales of blocks as codes into a table, with scales and an offset of their own.
#[derive(Clone)]
pub struct Nested {
    codes: Stored,
    scales: Stored,
    table: Stored,
    /// The number of the first code.
    first: usize,
    /// Codes under one scale.
    block: usize,
    offset: f32,
}

impl Nested {
    /// As F32.
    pub fn read(&self, shards: &[Shard]) -> Vec<u8> {
        let [codes, scales, table] = [&self.codes, &self.scales, &self.table].map(|part| part.read(shards));
        let (scales, table) = (scales.as_chunks::<4>().0, table.as_chunks::<4>().0);
        let value = |(n, code): (usize, &u8)| {
            let scale = f32::from_le_bytes(scales[(self.first + n) / self.block]);
            f32::from_le_bytes(table[usize::from(*code)]) * scale + self.offset
        };
        codes.iter().enumerate().flat_map(|coded| value(coded).to_le_bytes()).collect()
    }

    /// The `n`th of equal pieces, whose F32 are so many bytes.
    pub fn plane(&self, n: usize, size: usize) -> Nested {
        let first = self.first + n * size / 4;
        Nested { codes: self.codes.plane(n, size / 4), first, ..self.clone() }
    }

    /// Its size in the file.
    pub fn bytes(&self) -> usize {
        [&self.codes, &self.scales, &self.table].map(Stored::bytes).iter().sum()
    }
}

//! [`Header`](super::Header) to bytes: the inverse of `header.rs`.

use super::{MAGIC, TYPE_ARRAY, TYPE_STRING, VERSION};
use crate::metadata::{Array, Metadata, Value};

/// A tensor's entry as it is written: `offset` counts from the data section.
pub(super) struct Entry<'a> {
    pub name: &'a str,
    /// Outermost first.
    pub shape: &'a [usize],
    pub type_id: u32,
    pub offset: u64,
}

/// The header, without the padding that follows it.
pub(super) fn header(metadata: &Metadata, tensors: &[Entry<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend(MAGIC);
    out.extend(VERSION.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_str(&mut out, key);
        put_value(&mut out, value);
    }
    for tensor in tensors {
        put_str(&mut out, tensor.name);
        out.extend((tensor.shape.len() as u32).to_le_bytes());
        for dim in tensor.shape.iter().rev() {
            out.extend((*dim as u64).to_le_bytes());
        }
        out.extend(tensor.type_id.to_le_bytes());
        out.extend(tensor.offset.to_le_bytes());
    }
    out
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    out.extend((s.len() as u64).to_le_bytes());
    out.extend(s.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(v) => scalar(0, &v.to_le_bytes()),
        Value::I8(v) => scalar(1, &v.to_le_bytes()),
        Value::U16(v) => scalar(2, &v.to_le_bytes()),
        Value::I16(v) => scalar(3, &v.to_le_bytes()),
        Value::U32(v) => scalar(4, &v.to_le_bytes()),
        Value::I32(v) => scalar(5, &v.to_le_bytes()),
        Value::F32(v) => scalar(6, &v.to_le_bytes()),
        Value::Bool(v) => scalar(7, &[u8::from(*v)]),
        Value::U64(v) => scalar(10, &v.to_le_bytes()),
        Value::I64(v) => scalar(11, &v.to_le_bytes()),
        Value::F64(v) => scalar(12, &v.to_le_bytes()),
        Value::Str(v) => {
            scalar(TYPE_STRING, &[]);
            put_str(out, v);
        }
        Value::Array(v) => {
            scalar(TYPE_ARRAY, &[]);
            put_array(out, v);
        }
    }
}

fn put_array(out: &mut Vec<u8>, array: &Array) {
    let start = |out: &mut Vec<u8>, kind: u32| {
        out.extend(kind.to_le_bytes());
        out.extend((array.len() as u64).to_le_bytes());
    };
    macro_rules! scalars {
        ($kind:literal, $values:expr) => {{
            start(out, $kind);
            $values.iter().for_each(|v| out.extend(v.to_le_bytes()));
        }};
    }
    match array {
        Array::U8(v) => scalars!(0, v),
        Array::I8(v) => scalars!(1, v),
        Array::U16(v) => scalars!(2, v),
        Array::I16(v) => scalars!(3, v),
        Array::U32(v) => scalars!(4, v),
        Array::I32(v) => scalars!(5, v),
        Array::F32(v) => scalars!(6, v),
        Array::U64(v) => scalars!(10, v),
        Array::I64(v) => scalars!(11, v),
        Array::F64(v) => scalars!(12, v),
        Array::Bool(v) => {
            start(out, 7);
            out.extend(v.iter().map(|b| u8::from(*b)));
        }
        Array::Str(v) => {
            start(out, TYPE_STRING);
            v.iter().for_each(|s| put_str(out, s));
        }
    }
}

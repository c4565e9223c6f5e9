//! Dense element types: one weight per block.

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::Codec;
use super::block::{Block, Encode, Importance};

pub static CODECS: &[&dyn Codec] = &[&F32, &F16, &BF16, &F64, &I8, &I16, &I32, &I64];

static F32: Block = Block {
    name: "f32",
    about: "IEEE 754 single precision",
    ggml: Some(0),
    weights: 1,
    bytes: 4,
    decode: |b, out| each(b, out, f32::from_le_bytes),
    encode: same(|w, _, _, out| put(w, out, f32::to_le_bytes)),
};

static F16: Block = Block {
    name: "f16",
    about: "IEEE 754 half precision",
    ggml: Some(1),
    weights: 1,
    bytes: 2,
    decode: |b, out| each(b, out, |x| f16::from_le_bytes(x).to_f32()),
    encode: same(|w, _, _, out| match bytemuck::try_cast_slice_mut::<u8, f16>(out) {
        Ok(out) => out.convert_from_f32_slice(w),
        Err(_) => put(w, out, |x| f16::from_f32(x).to_le_bytes()),
    }),
};

static BF16: Block = Block {
    name: "bf16",
    about: "bfloat16: single precision cut to 16 bits, rounded to nearest even",
    ggml: Some(30),
    weights: 1,
    bytes: 2,
    decode: |b, out| each(b, out, |x| bf16::from_le_bytes(x).to_f32()),
    encode: same(|w, _, _, out| put(w, out, |x| bf16::from_f32(x).to_le_bytes())),
};

static F64: Block = Block {
    name: "f64",
    about: "IEEE 754 double precision (read only)",
    ggml: Some(28),
    weights: 1,
    bytes: 8,
    decode: |b, out| each(b, out, |x| f64::from_le_bytes(x) as f32),
    encode: None,
};

static I8: Block = int("i8", 24, 1, |b, out| each(b, out, |x| i8::from_le_bytes(x) as f32));
static I16: Block = int("i16", 25, 2, |b, out| each(b, out, |x| i16::from_le_bytes(x) as f32));
static I32: Block = int("i32", 26, 4, |b, out| each(b, out, |x| i32::from_le_bytes(x) as f32));
static I64: Block = int("i64", 27, 8, |b, out| each(b, out, |x| i64::from_le_bytes(x) as f32));

const fn int(name: &'static str, id: u32, bytes: usize, decode: fn(&[u8], &mut [f32])) -> Block {
    Block {
        name,
        about: "signed integers (copied, never encoded)",
        ggml: Some(id),
        weights: 1,
        bytes,
        decode,
        encode: None,
    }
}

/// Rounding one weight at a time has no faster twin.
const fn same(run: super::block::EncodeFn) -> Option<Encode> {
    Some(Encode { importance: Importance::Ignored, run, plain: run })
}

fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (x, o) in elements.iter().zip(out) {
        *o = value(*x);
    }
}

fn put<const N: usize>(w: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    let (elements, _) = out.as_chunks_mut::<N>();
    for (x, o) in w.iter().zip(elements) {
        *o = bytes(*x);
    }
}

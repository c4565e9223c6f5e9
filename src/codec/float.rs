//! Dense element types: one weight per block.

use half::{f16, slice::HalfFloatSliceExt};
use safetensors::Dtype;

use super::Codec;
use super::block::{Block, DecodeFn, Encode, EncodeFn, Importance};
use super::cpu::{self, Cpu, Decoder};
use super::fp8;

pub static CODECS: &[&dyn Codec] = &[&F32, &F16, &BF16, &F64, &I8, &I16, &I32, &I64];

/// The element types of safetensors that hold weights.
pub static DTYPES: &[(Dtype, &Block)] = &[
    (Dtype::F32, &F32),
    (Dtype::F16, &F16),
    (Dtype::BF16, &BF16),
    (Dtype::F64, &F64),
    (Dtype::I8, &I8),
    (Dtype::I16, &I16),
    (Dtype::I32, &I32),
    (Dtype::I64, &I64),
    (Dtype::F8_E4M3, &fp8::F8_E4M3),
    (Dtype::F8_E5M2, &fp8::F8_E5M2),
];

/// The element type whose elements are the weights.
pub fn dtype(codec: &dyn Codec) -> Option<Dtype> {
    DTYPES.iter().find(|(_, block)| block.name == codec.name()).map(|(dtype, _)| *dtype)
}

/// Whether its elements are whole numbers, which some files hold beside their weights.
pub fn is_integer(codec: &dyn Codec) -> bool {
    [&I8, &I16, &I32, &I64].iter().any(|block| block.name == codec.name())
}

/// What torch calls those that models compute in.
pub const TORCH: [(Dtype, &str); 3] = [(Dtype::BF16, "bfloat16"), (Dtype::F16, "float16"), (Dtype::F32, "float32")];

/// The last for others.
pub fn torch_name(dtype: Dtype) -> &'static str {
    TORCH.iter().find(|(d, _)| *d == dtype).unwrap_or(&TORCH[2]).1
}

pub static F32: Block = Block {
    name: "f32",
    about: "IEEE 754 single precision",
    ggml: Some(0),
    weights: 1,
    bytes: 4,
    decode: |b, out| each(b, out, f32::from_le_bytes),
    decode_plain: |b, out| each(b, out, f32::from_le_bytes),
    encode: same(|w, _, _, out| put(w, out, f32::to_le_bytes)),
    grid: None,
    tensor_scale: None,
};

pub static F16: Block = Block {
    name: "f16",
    about: "IEEE 754 half precision",
    ggml: Some(1),
    weights: 1,
    bytes: 2,
    decode: cpu::fastest::<Halves>,
    decode_plain: cpu::plain::<Halves>,
    encode: Some(Encode {
        importance: Importance::Ignored,
        run: |w, _, _, out| match bytemuck::try_cast_slice_mut::<u8, f16>(out) {
            Ok(out) if cfg!(target_endian = "little") => out.convert_from_f32_slice(w),
            _ => put(w, out, half),
        },
        plain: |w, _, _, out| put(w, out, half),
    }),
    grid: None,
    tensor_scale: None,
};

pub static BF16: Block = Block {
    name: "bf16",
    about: "bfloat16: single precision cut to 16 bits, rounded to nearest even",
    ggml: Some(30),
    weights: 1,
    bytes: 2,
    decode: cpu::fastest::<Bf16>,
    decode_plain: cpu::plain::<Bf16>,
    encode: same(|w, _, _, out| put(w, out, bf16)),
    grid: None,
    tensor_scale: None,
};

pub static F64: Block = Block {
    name: "f64",
    about: "IEEE 754 double precision (read only)",
    ggml: Some(28),
    weights: 1,
    bytes: 8,
    decode: |b, out| each(b, out, |x| f64::from_le_bytes(x) as f32),
    decode_plain: |b, out| each(b, out, |x| f64::from_le_bytes(x) as f32),
    encode: None,
    grid: None,
    tensor_scale: None,
};

pub static I8: Block = int("i8", 24, 1, |b, out| each(b, out, |x| i8::from_le_bytes(x) as f32));
pub static I16: Block = int("i16", 25, 2, |b, out| each(b, out, |x| i16::from_le_bytes(x) as f32));
pub static I32: Block = int("i32", 26, 4, |b, out| each(b, out, |x| i32::from_le_bytes(x) as f32));
pub static I64: Block = int("i64", 27, 8, |b, out| each(b, out, |x| i64::from_le_bytes(x) as f32));

const fn int(name: &'static str, id: u32, bytes: usize, decode: DecodeFn) -> Block {
    Block {
        name,
        about: "signed integers (copied, never encoded)",
        ggml: Some(id),
        weights: 1,
        bytes,
        decode,
        decode_plain: decode,
        encode: None,
        grid: None,
        tensor_scale: None,
    }
}

/// Rounding one weight at a time has no faster twin.
const fn same(run: EncodeFn) -> Option<Encode> {
    Some(Encode { importance: Importance::Ignored, run, plain: run })
}

struct Halves;

impl Decoder for Halves {
    #[inline(always)]
    fn run<C: Cpu>(bytes: &[u8], out: &mut [f32]) {
        let (halves, _) = bytes.as_chunks::<2>();
        let ((eights, rest), (outs, out_rest)) = (halves.as_chunks::<8>(), out.as_chunks_mut::<8>());
        for (h, o) in eights.iter().zip(outs) {
            *o = C::halves(h.map(u16::from_le_bytes));
        }
        for (h, o) in rest.iter().zip(out_rest) {
            *o = C::half(*h);
        }
    }
}

struct Bf16;

impl Decoder for Bf16 {
    #[inline(always)]
    fn run<C: Cpu>(bytes: &[u8], out: &mut [f32]) {
        each(bytes, out, |x| f32::from_bits(u32::from(u16::from_le_bytes(x)) << 16));
    }
}

fn half(x: f32) -> [u8; 2] {
    f16::from_f32_const(x).to_le_bytes()
}

/// Rounds to nearest, ties to even: adding just under half of the last kept bit carries exactly when it must. NaNs stay
/// quiet NaNs.
#[inline(always)]
fn bf16(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let rounded = (bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16;
    let quiet = (bits >> 16) as u16 | 0x40;
    if x.is_nan() { quiet } else { rounded }.to_le_bytes()
}

#[inline(always)]
fn each<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (elements, _) = bytes.as_chunks::<N>();
    for (x, o) in elements.iter().zip(out) {
        *o = value(*x);
    }
}

#[inline(always)]
fn put<const N: usize>(w: &[f32], out: &mut [u8], bytes: impl Fn(f32) -> [u8; N]) {
    let (elements, _) = out.as_chunks_mut::<N>();
    for (x, o) in w.iter().zip(elements) {
        *o = bytes(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_to_nearest_even() {
        for bits in (0..=u32::MAX).step_by(257) {
            let x = f32::from_bits(bits);
            assert_eq!(bf16(x), half::bf16::from_f32_const(x).to_le_bytes(), "{bits:#x}");
        }
    }

    #[test]
    fn half_conversions_agree() {
        let w: Vec<f32> = (0..=u32::MAX).step_by(4099).map(f32::from_bits).filter(|x| x.is_finite()).collect();
        let encode = F16.encode.unwrap();
        let (mut fast, mut plain) = (vec![0; 2 * w.len()], vec![0; 2 * w.len()]);
        (encode.run)(&w, w.len(), None, &mut fast);
        (encode.plain)(&w, w.len(), None, &mut plain);
        assert!(fast == plain);
    }
}

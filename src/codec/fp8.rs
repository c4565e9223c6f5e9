//! 8-bit floats: plain, and with one F32 multiplier for each 128 x 128 block of the weight.
//! Sources: OCP 8-bit floating point (e4m3fn, e5m2); DeepSeek-V3 `inference/kernel.py` for the block scales.

use std::ops::Range;

use half::f16;

use super::block::Block;
use super::{Codec, Part};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

pub static CODECS: &[&dyn Codec] = &[&F8_E4M3, &F8_E5M2, &Fp8Block];

static F8_E4M3: Block = Block {
    name: "f8_e4m3",
    about: "8-bit float, 4 exponent bits, no infinities (OCP e4m3fn; read only)",
    ggml: None,
    weights: 1,
    bytes: 1,
    decode: |bytes, out| each(bytes, out, &E4M3),
    encode: None,
};

static F8_E5M2: Block = Block {
    name: "f8_e5m2",
    about: "8-bit float, 5 exponent bits (OCP e5m2; read only)",
    ggml: None,
    weights: 1,
    bytes: 1,
    decode: |bytes, out| each(bytes, out, &E5M2),
    encode: None,
};

fn each(bytes: &[u8], out: &mut [f32], values: &[f32; 256]) {
    for (x, o) in bytes.iter().zip(out) {
        *o = values[*x as usize];
    }
}

/// The values of e5m2: it is the upper byte of an IEEE half.
static E5M2: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        values[code] = f16::from_bits((code as u16) << 8).to_f32_const();
        code += 1;
    }
    values
};

/// The values of e4m3fn: a half whose exponent bias is 7 instead of 15, hence the factor 2^8, and whose top code is NaN.
static E4M3: [f32; 256] = {
    let mut values = [0.0; 256];
    let mut code = 0;
    while code < 256 {
        let (sign, rest) = (code as u16 & 0x80, code as u16 & 0x7f);
        values[code] = f16::from_bits(sign << 8 | rest << 7).to_f32_const() * 256.0;
        if rest == 0x7f {
            values[code] = f32::NAN;
        }
        code += 1;
    }
    values
};

/// Rows and columns that share one multiplier.
pub const BLOCK: usize = 128;

/// Parts: e4m3fn codes `[rows, cols]`, then F32 multipliers `[ceil(rows / 128), ceil(cols / 128)]`, which
/// checkpoints call `weight_scale_inv`.
pub struct Fp8Block;

impl Codec for Fp8Block {
    fn name(&self) -> &'static str {
        "fp8_block"
    }

    fn about(&self) -> &'static str {
        "8-bit floats (e4m3fn) with an F32 multiplier per 128 x 128 block, as DeepSeek-V3 publishes (read only)"
    }

    fn layout(&self, dims: Dims) -> Result<Vec<Part>> {
        let codes = dims.rows.checked_mul(dims.cols);
        let codes = codes.ok_or_else(|| Error::input(format!("{} x {} weights overflow", dims.rows, dims.cols)))?;
        let blocks = dims.rows.div_ceil(BLOCK) * dims.cols.div_ceil(BLOCK);
        Ok(vec![Part { name: "weight", bytes: codes }, Part { name: "weight_scale_inv", bytes: blocks * 4 }])
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let cols = packed.dims.cols;
        if cols == 0 {
            return;
        }
        let (scales, _) = packed.parts[1].as_chunks::<4>();
        let blocks = cols.div_ceil(BLOCK);
        let codes = packed.parts[0][rows.start * cols..rows.end * cols].chunks_exact(cols);
        for ((row, codes), out) in rows.zip(codes).zip(out.chunks_exact_mut(cols)) {
            let scales = &scales[row / BLOCK * blocks..][..blocks];
            for ((codes, out), scale) in codes.chunks(BLOCK).zip(out.chunks_mut(BLOCK)).zip(scales) {
                let scale = f32::from_le_bytes(*scale);
                for (code, out) in codes.iter().zip(out) {
                    *out = E4M3[*code as usize] * scale;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_has_the_values_of_the_standard() {
        let known =
            [(0x00, 0.0), (0x01, 2f32.powi(-9)), (0x08, 2f32.powi(-6)), (0x38, 1.0), (0x3c, 1.5), (0x7e, 448.0)];
        for (code, value) in known {
            assert_eq!(E4M3[code], value);
            assert_eq!(E4M3[code | 0x80], -value);
        }
        assert!(E4M3[0x7f].is_nan() && E4M3[0xff].is_nan());
        assert_eq!(E4M3.iter().filter(|v| !v.is_finite()).count(), 2);
    }

    #[test]
    fn e5m2_has_the_values_of_the_standard() {
        let known = [(0x00, 0.0), (0x01, 2f32.powi(-16)), (0x3c, 1.0), (0x7b, 57344.0), (0x7c, f32::INFINITY)];
        for (code, value) in known {
            assert_eq!(E5M2[code], value);
        }
        assert!(E5M2[0x7d].is_nan());
    }

    #[test]
    fn ragged_blocks_take_their_own_scale() {
        let dims = Dims::new(130, 200);
        let sizes: Vec<_> = Fp8Block.layout(dims).unwrap().iter().map(|p| p.bytes).collect();
        assert_eq!(sizes, [130 * 200, 2 * 2 * 4]);
        let scales: Vec<u8> = [1.0f32, 2.0, 4.0, 8.0].iter().flat_map(|s| s.to_le_bytes()).collect();
        let packed = Packed { dims, parts: vec![vec![0x38; dims.len()].into(), scales.into()] };
        let mut out = vec![0.0; 3 * 200];
        Fp8Block.decode(&packed, 127..130, &mut out);
        let row = |i: usize| &out[i * 200..(i + 1) * 200];
        assert!(row(0)[..128].iter().all(|v| *v == 1.0) && row(0)[128..].iter().all(|v| *v == 2.0));
        assert!(row(2)[..128].iter().all(|v| *v == 4.0) && row(2)[128..].iter().all(|v| *v == 8.0));
    }
}

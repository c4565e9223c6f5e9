//! The integers of compressed-tensors. Source: compressed-tensors `compressors/pack_quantized/`, `naive_quantized/`,
//! `quantization/lifecycle/forward.py`.
//!
//! `pack-quantized`; codes of 3, 5, 6 and 7 bits as since version 0.17, without gaps:
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `weight_packed` | I32 | `[rows, cols * bits / 32]` | codes, each moved up by 2^(bits - 1) |
//! | `weight_scale` | BF16 or as the model | `[rows, groups]` | |
//! | `weight_zero_point` | I32 | `[rows * bits / 32, groups]` | if asymmetric; packed down the rows |
//! | `weight_shape` | I64 | `[2]` | rows, columns |
//!
//! `int-quantized`:
//!
//! | part | type | shape |
//! |---|---|---|
//! | `weight` | I8 | `[rows, cols]` |
//! | `weight_scale` | as above | `[rows, groups]` |
//! | `weight_zero_point` | I8 | `[rows, groups]`, if asymmetric |

use std::ops::Range;

use safetensors::Dtype;

use super::affine::{self, Form, Naming, Row, Taken, VARIANTS};
use super::bits::{self, UNIT, put, word};
use super::scheme::{Family, Scheme};
use super::{Codec, Part};
use crate::error::Result;
use crate::tensor::{Dims, Packed};

const WIDTHS: &[usize] = &[2, 3, 4, 5, 6, 7, 8];
const SYMMETRIC: &[bool] = &[true, false];

static PACKED_ROWS: [Row<Pack>; WIDTHS.len() * 2 * VARIANTS] = affine::rows(
    Naming { family: Family::Packed, prefix: "pack", symmetry: true, scales: Dtype::BF16, groups: affine::GROUPS },
    WIDTHS,
    SYMMETRIC,
);
static INT_ROWS: [Row<Int>; 2 * VARIANTS] = affine::rows(
    Naming { family: Family::Int, prefix: "int", symmetry: true, scales: Dtype::BF16, groups: affine::GROUPS },
    &[8],
    SYMMETRIC,
);
pub static PACKED: [&dyn Codec; WIDTHS.len() * 2 * VARIANTS] = affine::table(&PACKED_ROWS);
pub static INT: [&dyn Codec; 2 * VARIANTS] = affine::table(&INT_ROWS);

pub struct Pack;

impl Form for Pack {
    const PATTERN: &'static str = "pack-{2..8}bit-{g16..g1024,channel}-{sym,asym}";
    const ABOUT: &'static str = "w = s (q - zero) (compressed-tensors pack-quantized; W4A16, W8A16 ...)";

    fn device(scheme: &Scheme) -> Vec<usize> {
        vec![scheme.bits, usize::from(scheme.symmetric)]
    }

    fn multiples(_: &Scheme) -> Dims {
        Dims::new(1, 1)
    }

    fn layout(scheme: &Scheme, Dims { rows, cols }: Dims) -> Result<Vec<Part>> {
        let groups = scheme.groups(cols);
        let mut parts = vec![
            Part::new("weight_packed", Dtype::I32, vec![rows, bits::words(cols, scheme.bits)])?,
            scheme.scales_part("weight_scale", vec![rows, groups])?,
        ];
        if !scheme.symmetric {
            parts.push(Part::new("weight_zero_point", Dtype::I32, vec![bits::words(rows, scheme.bits), groups])?);
        }
        parts.push(Part::new("weight_shape", Dtype::I64, vec![2])?);
        Ok(parts)
    }

    fn decode(scheme: &Scheme, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let cols = packed.dims.cols;
        let (group, groups) = (scheme.columns(cols), scheme.groups(cols));
        let mut codes = vec![0; cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            bits::unpack_row(&packed.parts[0], row, scheme.bits, &mut codes);
            for (g, (codes, out)) in codes.chunks_exact(group).zip(out.chunks_exact_mut(group)).enumerate() {
                let scale = scheme.read_scale(&packed.parts[1], row * groups + g);
                affine::values(codes, zero(scheme, packed, row, g), scale, out);
            }
        }
    }

    fn pack(scheme: &Scheme, dims: Dims, taken: &Taken<'_>) -> Vec<Vec<u8>> {
        let Dims { rows, cols } = dims;
        let (width, groups) = (scheme.bits, scheme.groups(cols));
        let mut parts = vec![bits::pack_rows(&taken.codes, cols, width), taken.scales.clone()];
        if !scheme.symmetric {
            let mut zeros = vec![0; bits::words(rows, width) * groups * 4];
            for g in 0..groups {
                for unit in 0..rows.div_ceil(UNIT) {
                    let here = unit * UNIT..rows.min((unit + 1) * UNIT);
                    let mut codes = [0; UNIT];
                    here.clone().zip(&mut codes).for_each(|(row, c)| *c = taken.zeros[row * groups + g]);
                    for (i, w) in bits::pack(width, &codes)[..bits::words(here.len(), width)].iter().enumerate() {
                        put(&mut zeros, (unit * width + i) * groups + g, *w);
                    }
                }
            }
            parts.push(zeros);
        }
        parts.push([rows, cols].iter().flat_map(|n| (*n as i64).to_le_bytes()).collect());
        parts
    }

    fn unpack(scheme: &Scheme, packed: &Packed<'_>) -> Option<Taken<'static>> {
        let Dims { rows, cols } = packed.dims;
        let groups = scheme.groups(cols);
        let mut codes = vec![0; rows * cols];
        for (row, codes) in codes.chunks_exact_mut(cols.max(1)).enumerate() {
            bits::unpack_row(&packed.parts[0], row, scheme.bits, codes);
        }
        let at = (0..rows).flat_map(|row| (0..groups).map(move |g| (row, g)));
        let zeros = at.map(|(row, g)| zero(scheme, packed, row, g)).collect();
        Some(Taken { scales: packed.parts[1].to_vec(), zeros, codes: codes.into() })
    }
}

fn zero(scheme: &Scheme, packed: &Packed<'_>, row: usize, group: usize) -> u8 {
    if scheme.symmetric {
        return scheme.middle();
    }
    let groups = scheme.groups(packed.dims.cols);
    bits::get(scheme.bits, row, |i| word(&packed.parts[2], i * groups + group))
}

pub struct Int;

/// Between a signed byte and a code.
const SIGN: u8 = 0x80;

impl Form for Int {
    const PATTERN: &'static str = "int-8bit-{g16..g1024,channel}-{sym,asym}";
    const ABOUT: &'static str = "8 bits, w = s (q - zero), a byte a weight (compressed-tensors int-quantized)";

    fn device(scheme: &Scheme) -> Vec<usize> {
        vec![usize::from(scheme.symmetric)]
    }

    fn multiples(_: &Scheme) -> Dims {
        Dims::new(1, 1)
    }

    fn layout(scheme: &Scheme, Dims { rows, cols }: Dims) -> Result<Vec<Part>> {
        let groups = scheme.groups(cols);
        let mut parts = vec![
            Part::new("weight", Dtype::I8, vec![rows, cols])?,
            scheme.scales_part("weight_scale", vec![rows, groups])?,
        ];
        if !scheme.symmetric {
            parts.push(Part::new("weight_zero_point", Dtype::I8, vec![rows, groups])?);
        }
        Ok(parts)
    }

    fn decode(scheme: &Scheme, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let cols = packed.dims.cols;
        let (group, groups) = (scheme.columns(cols), scheme.groups(cols));
        let mut codes = vec![0; group];
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            let stored = &packed.parts[0][row * cols..][..cols];
            for (g, (stored, out)) in stored.chunks_exact(group).zip(out.chunks_exact_mut(group)).enumerate() {
                codes.iter_mut().zip(stored).for_each(|(c, s)| *c = s ^ SIGN);
                let zero = packed.parts.get(2).map_or(SIGN, |zeros| zeros[row * groups + g] ^ SIGN);
                affine::values(&codes, zero, scheme.read_scale(&packed.parts[1], row * groups + g), out);
            }
        }
    }

    fn pack(scheme: &Scheme, _: Dims, taken: &Taken<'_>) -> Vec<Vec<u8>> {
        let signed = |codes: &[u8]| codes.iter().map(|c| c ^ SIGN).collect();
        let mut parts = vec![signed(&taken.codes), taken.scales.clone()];
        if !scheme.symmetric {
            parts.push(signed(&taken.zeros));
        }
        parts
    }

    fn unpack(scheme: &Scheme, packed: &Packed<'_>) -> Option<Taken<'static>> {
        let codes = |part: &[u8]| part.iter().map(|c| c ^ SIGN).collect::<Vec<u8>>();
        let zeros = match packed.parts.get(2) {
            Some(zeros) => codes(zeros),
            None => vec![SIGN; packed.dims.rows * scheme.groups(packed.dims.cols)],
        };
        Some(Taken { scales: packed.parts[1].to_vec(), zeros, codes: codes(&packed.parts[0]).into() })
    }
}

//! AWQ's `gemm` version: four bits, packed across the rows of a matrix that lies transposed. Source: AutoAWQ
//! `modules/linear/gemm.py`, `utils/packing_utils.py`.
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[cols, rows / 8]` | eight rows a word, in an order of their own |
//! | `qzeros` | I32 | `[groups, rows / 8]` | likewise |
//! | `scales` | F16 | `[groups, rows]` | |

use std::ops::Range;

use safetensors::Dtype;

use super::affine::{self, Form, Naming, Row, Taken, VARIANTS};
use super::bits::{put, word};
use super::scheme::{Family, Scheme};
use super::{Codec, Part};
use crate::error::Result;
use crate::tensor::{Dims, Packed};

static ROWS: [Row<Gemm>; VARIANTS] = affine::rows(
    Naming { family: Family::Awq, prefix: "awq", symmetry: false, scales: Dtype::F16, groups: affine::GROUPS },
    &[4],
    &[false],
);
pub static CODECS: [&dyn Codec; VARIANTS] = affine::table(&ROWS);

pub struct Gemm;

const LANES: usize = 8;

/// How far up in its word row `8 n + i` lies, in bits.
pub const SHIFT: [usize; LANES] = [0, 16, 4, 20, 8, 24, 12, 28];

fn lane(word: u32, row: usize) -> u8 {
    (word >> SHIFT[row % LANES]) as u8 & 15
}

impl Form for Gemm {
    const PATTERN: &'static str = "awq-4bit-{g16..g1024,channel}";
    const ABOUT: &'static str = "4 bits, w = s (q - zero) (AWQ, version gemm)";

    fn device(_: &Scheme) -> Vec<usize> {
        Vec::new()
    }

    fn multiples(_: &Scheme) -> Dims {
        Dims::new(LANES, 1)
    }

    fn layout(scheme: &Scheme, Dims { rows, cols }: Dims) -> Result<Vec<Part>> {
        let groups = scheme.groups(cols);
        Ok(vec![
            Part::new("qweight", Dtype::I32, vec![cols, rows / LANES])?,
            Part::new("qzeros", Dtype::I32, vec![groups, rows / LANES])?,
            scheme.scales_part("scales", vec![groups, rows])?,
        ])
    }

    fn decode(scheme: &Scheme, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let Dims { rows: all, cols } = packed.dims;
        let (group, across) = (scheme.columns(cols), all / LANES);
        let mut codes = vec![0; SIDE * cols];
        for (first, out) in rows.clone().step_by(SIDE).zip(out.chunks_mut(SIDE * cols)) {
            let side = first..(first + SIDE).min(rows.end);
            take(packed, side.clone(), &mut codes);
            for ((row, codes), out) in side.zip(codes.chunks_exact(cols)).zip(out.chunks_exact_mut(cols)) {
                for (g, (codes, out)) in codes.chunks_exact(group).zip(out.chunks_exact_mut(group)).enumerate() {
                    let zero = lane(word(&packed.parts[1], g * across + row / LANES), row);
                    affine::values(codes, zero, scheme.read_scale(&packed.parts[2], g * all + row), out);
                }
            }
        }
    }

    fn pack(scheme: &Scheme, Dims { rows, cols }: Dims, taken: &Taken<'_>) -> Vec<Vec<u8>> {
        let (groups, width) = (scheme.groups(cols), scheme.scales.bitsize() / 8);
        let mut scales = Vec::with_capacity(groups * rows * width);
        for g in 0..groups {
            (0..rows).for_each(|row| scales.extend(&taken.scales[(row * groups + g) * width..][..width]));
        }
        vec![across(&taken.codes, rows, cols), across(&taken.zeros, rows, groups), scales]
    }

    fn unpack(scheme: &Scheme, packed: &Packed<'_>) -> Option<Taken<'static>> {
        let Dims { rows, cols } = packed.dims;
        let (groups, width, words) = (scheme.groups(cols), scheme.scales.bitsize() / 8, rows / LANES);
        let (mut scales, mut zeros, mut codes) = (Vec::new(), Vec::new(), vec![0; rows * cols]);
        for (first, codes) in (0..rows).step_by(SIDE).zip(codes.chunks_mut((SIDE * cols).max(1))) {
            take(packed, first..(first + SIDE).min(rows), codes);
        }
        for row in 0..rows {
            zeros.extend((0..groups).map(|g| lane(word(&packed.parts[1], g * words + row / LANES), row)));
            (0..groups).for_each(|g| scales.extend(&packed.parts[2][(g * rows + row) * width..][..width]));
        }
        Some(Taken { scales, zeros, codes: codes.into() })
    }
}

/// Rows that are taken apart together: their words lie side by side.
const SIDE: usize = 16;

/// Codes of some rows, `[rows][cols]`.
fn take(packed: &Packed<'_>, rows: Range<usize>, codes: &mut [u8]) {
    let Dims { rows: all, cols } = packed.dims;
    for k in 0..cols {
        for (n, row) in rows.clone().enumerate() {
            codes[n * cols + k] = lane(word(&packed.parts[0], k * (all / LANES) + row / LANES), row);
        }
    }
}

/// `[rows][cols]` values to `[cols][rows / 8]` words.
fn across(values: &[u8], rows: usize, cols: usize) -> Vec<u8> {
    let mut out = vec![0; cols * rows / LANES * 4];
    for (n, eight) in values.chunks_exact((cols * LANES).max(1)).enumerate() {
        for k in 0..cols {
            let bits = |i: usize| u32::from(eight[i * cols + k] & 15) << SHIFT[i];
            put(&mut out, k * (rows / LANES) + n, (0..LANES).fold(0, |word, i| word | bits(i)));
        }
    }
    out
}

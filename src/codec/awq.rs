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

use super::affine::{self, Family, Form, Naming, Row, Scheme, Taken, VARIANTS, put, word};
use super::{Codec, Part};
use crate::error::Result;
use crate::tensor::{Dims, Packed};

static ROWS: [Row<Gemm>; VARIANTS] =
    affine::rows(Naming { family: Family::Awq, prefix: "awq", symmetry: false, scales: Dtype::F16 }, &[4], &[false]);
pub static CODECS: [&dyn Codec; VARIANTS] = affine::table(&ROWS);

pub struct Gemm;

const LANES: usize = 8;

/// How far up in its word row `8 n + i` lies, in bits.
const SHIFT: [usize; LANES] = [0, 16, 4, 20, 8, 24, 12, 28];

fn lane(word: u32, row: usize) -> u8 {
    (word >> SHIFT[row % LANES]) as u8 & 15
}

impl Form for Gemm {
    const PATTERN: &'static str = "awq-4bit-{g16..g1024,channel}";
    const ABOUT: &'static str = "4 bits, w = s (q - zero) (AWQ, version gemm)";

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
        let (groups, across) = (scheme.groups(cols), all / LANES);
        let mut codes = vec![0; cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            codes.iter_mut().enumerate().for_each(|(k, c)| {
                *c = lane(word(&packed.parts[0], k * across + row / LANES), row);
            });
            let group = scheme.columns(cols);
            for (g, (codes, out)) in codes.chunks_exact(group).zip(out.chunks_exact_mut(group)).enumerate().take(groups)
            {
                let zero = lane(word(&packed.parts[1], g * across + row / LANES), row);
                affine::values(codes, zero, scheme.read_scale(&packed.parts[2], g * all + row), out);
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
        let (mut scales, mut zeros, mut codes) = (Vec::new(), Vec::new(), Vec::with_capacity(rows * cols));
        for row in 0..rows {
            let of = |part: usize, k: usize| lane(word(&packed.parts[part], k * words + row / LANES), row);
            codes.extend((0..cols).map(|k| of(0, k)));
            zeros.extend((0..groups).map(|g| of(1, g)));
            (0..groups).for_each(|g| scales.extend(&packed.parts[2][(g * rows + row) * width..][..width]));
        }
        Some(Taken { scales, zeros, codes: codes.into() })
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

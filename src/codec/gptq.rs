//! GPTQ: codes packed down the columns of a transposed matrix, and a group for each input feature. Source: GPTQModel
//! `nn_modules/qlinear/__init__.py` (buffers, packing), `utils/model.py` (the two versions).
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `qweight` | I32 | `[cols * bits / 32, rows]` | codes of a row run down |
//! | `qzeros` | I32 | `[groups, rows * bits / 32]` | zeros of a group run across; version 1 stores them less one |
//! | `scales` | F16 | `[groups, rows]` | |
//! | `g_idx` | I32 | `[cols]` | the group of each column |

use std::ops::Range;

use safetensors::Dtype;

use super::affine::{self, Form, Naming, Row, Taken, VARIANTS};
use super::bits::{self, UNIT, put, word};
use super::scheme::{Family, Scheme};
use super::{Codec, Part};
use crate::error::Result;
use crate::tensor::{Dims, Packed};

const WIDTHS: &[usize] = &[2, 3, 4, 8];
const ROWS: usize = WIDTHS.len() * VARIANTS;

/// Written with the zero in the middle: where version 1 stores a zero of 0, its readers disagree.
static V1_ROWS: [Row<Version<1>>; ROWS] = affine::rows(
    Naming { family: Family::Gptq, prefix: "gptq", symmetry: false, scales: Dtype::F16, groups: affine::GROUPS },
    WIDTHS,
    &[true],
);
static V2_ROWS: [Row<Version<2>>; ROWS] = affine::rows(
    Naming { family: Family::GptqV2, prefix: "gptq-v2", symmetry: false, scales: Dtype::F16, groups: affine::GROUPS },
    WIDTHS,
    &[false],
);
pub static V1: [&dyn Codec; ROWS] = affine::table(&V1_ROWS);
pub static V2: [&dyn Codec; ROWS] = affine::table(&V2_ROWS);

/// Version 1 or 2.
pub struct Version<const V: usize>;

/// Rows that are decoded and packed together: their words lie side by side and fill a cache line.
const SIDE: usize = 16;

impl<const V: usize> Form for Version<V> {
    const PATTERN: &'static str =
        ["gptq-{2,3,4,8}bit-{g16..g1024,channel}", "gptq-v2-{2,3,4,8}bit-{g16..g1024,channel}"][V - 1];
    const ABOUT: &'static str = [
        "w = s (q - zero), symmetric when written (GPTQ, AutoGPTQ; checkpoint_format gptq)",
        "w = s (q - zero) (GPTQModel; checkpoint_format gptq_v2)",
    ][V - 1];

    fn device(scheme: &Scheme) -> Vec<usize> {
        vec![scheme.bits, usize::from(LESS[V - 1])]
    }

    fn multiples(scheme: &Scheme) -> Dims {
        let whole = bits::per_whole_words(scheme.bits);
        Dims::new(whole, whole)
    }

    fn layout(scheme: &Scheme, Dims { rows, cols }: Dims) -> Result<Vec<Part>> {
        let groups = scheme.groups(cols);
        Ok(vec![
            Part::new("qweight", Dtype::I32, vec![bits::words(cols, scheme.bits), rows])?,
            Part::new("qzeros", Dtype::I32, vec![groups, bits::words(rows, scheme.bits)])?,
            scheme.scales_part("scales", vec![groups, rows])?,
            Part::new("g_idx", Dtype::I32, vec![cols])?,
        ])
    }

    fn decode(scheme: &Scheme, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let Dims { rows: all, cols } = packed.dims;
        let groups = scheme.groups(cols);
        let index: Vec<usize> = (0..cols).map(|k| (word(&packed.parts[3], k) as usize).min(groups - 1)).collect();
        for first in rows.clone().step_by(SIDE) {
            let side = first..(first + SIDE).min(rows.end);
            let scales: Vec<f32> = (0..groups)
                .flat_map(|g| side.clone().map(move |row| (g, row)))
                .map(|(g, row)| scheme.read_scale(&packed.parts[2], g * all + row))
                .collect();
            let zeros: Vec<u8> =
                (0..groups).flat_map(|g| side.clone().map(move |row| zero::<V>(scheme, packed, g, row))).collect();
            for (unit, index) in index.chunks(UNIT).enumerate() {
                let one = index.iter().all(|g| *g == index[0]).then_some(index[0]);
                for (n, row) in side.clone().enumerate() {
                    let codes = unit_of(scheme, packed, unit, row);
                    let at = (row - rows.start) * cols + unit * UNIT;
                    let out = &mut out[at..][..index.len()];
                    if let Some(g) = one {
                        affine::values(&codes, zeros[g * side.len() + n], scales[g * side.len() + n], out);
                        continue;
                    }
                    for (i, g) in index.iter().enumerate() {
                        let at = g * side.len() + n;
                        affine::values(&codes[i..], zeros[at], scales[at], &mut out[i..=i]);
                    }
                }
            }
        }
    }

    fn pack(scheme: &Scheme, Dims { rows, cols }: Dims, taken: &Taken<'_>) -> Vec<Vec<u8>> {
        let (groups, width) = (scheme.groups(cols), scheme.scales.bitsize() / 8);
        let down = bits::words(cols, scheme.bits);
        let mut qweight = vec![0; down * rows * 4];
        for first in (0..rows).step_by(SIDE) {
            for unit in 0..cols.div_ceil(UNIT) {
                for row in first..(first + SIDE).min(rows) {
                    let mut codes = [0; UNIT];
                    let from = &taken.codes[row * cols..][..cols][unit * UNIT..];
                    let len = from.len().min(UNIT);
                    codes[..len].copy_from_slice(&from[..len]);
                    let words = bits::pack(scheme.bits, &codes);
                    for (i, w) in words[..bits::words(len, scheme.bits)].iter().enumerate() {
                        put(&mut qweight, (unit * scheme.bits + i) * rows + row, *w);
                    }
                }
            }
        }
        let across = bits::words(rows, scheme.bits);
        let (mut qzeros, mut scales) = (vec![0; groups * across * 4], Vec::with_capacity(groups * rows * width));
        for g in 0..groups {
            for unit in 0..rows.div_ceil(UNIT) {
                let mut zeros = [0; UNIT];
                for (row, zero) in (unit * UNIT..rows).zip(&mut zeros) {
                    *zero = taken.zeros[row * groups + g].wrapping_sub(LESS[V - 1]);
                }
                let words = bits::pack(scheme.bits, &zeros);
                let len = bits::words((rows - unit * UNIT).min(UNIT), scheme.bits);
                for (i, w) in words[..len].iter().enumerate() {
                    put(&mut qzeros, g * across + unit * scheme.bits + i, *w);
                }
            }
            (0..rows).for_each(|row| scales.extend(&taken.scales[(row * groups + g) * width..][..width]));
        }
        let g_idx = (0..cols).flat_map(|k| ((k / scheme.columns(cols)) as i32).to_le_bytes()).collect();
        vec![qweight, qzeros, scales, g_idx]
    }

    fn unpack(scheme: &Scheme, packed: &Packed<'_>) -> Option<Taken<'static>> {
        let Dims { rows, cols } = packed.dims;
        let (groups, width) = (scheme.groups(cols), scheme.scales.bitsize() / 8);
        let natural = (0..cols).all(|k| word(&packed.parts[3], k) as usize == k / scheme.columns(cols));
        let (mut scales, mut zeros, mut codes) = (Vec::new(), Vec::new(), vec![0; rows * cols]);
        for row in 0..rows {
            for g in 0..groups {
                scales.extend(&packed.parts[2][(g * rows + row) * width..][..width]);
                zeros.push(zero::<V>(scheme, packed, g, row));
            }
        }
        for first in (0..rows).step_by(SIDE) {
            for unit in 0..cols.div_ceil(UNIT) {
                for row in first..(first + SIDE).min(rows) {
                    let out = &mut codes[row * cols..][..cols][unit * UNIT..];
                    let len = out.len().min(UNIT);
                    out[..len].copy_from_slice(&unit_of(scheme, packed, unit, row)[..len]);
                }
            }
        }
        // Version 1 can say one more than the largest code.
        let fits = zeros.iter().all(|z| usize::from(*z) < 1 << scheme.bits && (V == 2 || *z > 0));
        (natural && fits).then(|| Taken { scales, zeros, codes: codes.into() })
    }
}

/// What the versions take off their zeros.
const LESS: [u8; 2] = [1, 0];

/// Codes `32 * unit` and on of a row; zeros past its end.
#[inline(always)]
fn unit_of(scheme: &Scheme, packed: &Packed<'_>, unit: usize, row: usize) -> [u8; UNIT] {
    let Dims { rows, cols } = packed.dims;
    let mut words = [0; 8];
    let len = bits::words((cols - unit * UNIT).min(UNIT), scheme.bits);
    for (i, w) in words[..len].iter_mut().enumerate() {
        *w = word(&packed.parts[0], (unit * scheme.bits + i) * rows + row);
    }
    bits::unpack(scheme.bits, &words)
}

fn zero<const V: usize>(scheme: &Scheme, packed: &Packed<'_>, group: usize, row: usize) -> u8 {
    let across = bits::words(packed.dims.rows, scheme.bits);
    let stored = bits::get(scheme.bits, row, |i| word(&packed.parts[1], group * across + i));
    stored.wrapping_add(LESS[V - 1])
}

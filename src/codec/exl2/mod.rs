//! EXL2: the columns of a matrix, the most active first, in groups of falling width. Source: exllamav2
//! `conversion/{qparams,adaptivegptq}.py`, `ext.py`, `exllamav2_ext/cuda/{q_matrix,pack_tensor}.cu`.
//!
//! With `cols` input features in sorted order and `rows` output features, padded to multiples of 32:
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `q_weight` | I32 | `[words, rows]` | codes of an output run down, group after group |
//! | `q_scale` | I32 | `[groups, rows / 8]` | 4 bits c of each output |
//! | `q_scale_max` | F16 | `[groups]` | |
//! | `q_groups` | I16 | `[2 * groups]` | width and first row of words of each group |
//! | `q_invperm` | I32 | `[cols]` | where each column is stored |
//!
//! `w = (code - 2^(bits - 1)) * (c + 1)^2 / 256 * q_scale_max`

mod bands;
mod grid;
mod mix;

use std::ops::Range;

use half::f16;
use safetensors::Dtype;

use super::bits::word;
use super::bits::{self, UNIT};
use super::{Codec, Joint, Part};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};
pub use bands::{Bands, Group, order};
pub use mix::{CODECS, Mix, Share, shares, with_bands, with_shares};

/// Outputs come in whole words of 4-bit scales, and in whole warps.
pub const ROWS: usize = 32;
/// Columns come in runs that fill whole words whatever their width.
pub const COLS: usize = UNIT;

pub const PATTERN: &str = "exl2-[8b5g32+]{2..8}b{5..95}+{2..8}b-{g32,g64,g128}";
const ABOUT: &str = "w = s (q - middle), columns by activity in bands of 8 to 2 bits (EXL2, exllamav2)";

/// Weights in other bands than those of the table, as files have them: they can be read.
pub static OTHER: Other = Other;

pub struct Other;

impl Codec for Other {
    fn name(&self) -> &str {
        "exl2"
    }

    fn pattern(&self) -> &str {
        PATTERN
    }

    fn about(&self) -> &'static str {
        ABOUT
    }

    fn layout(&self, _: Dims) -> Result<Vec<Part>> {
        Err(Error::unsupported("bands of a weight's own, which only that weight has")
            .help("choose a format of the list: `quant list formats`"))
    }

    fn multiples(&self) -> Dims {
        Dims::new(1, COLS)
    }

    fn packed(&self) -> bool {
        true
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        decode(packed, rows, out);
    }
}

impl Codec for Mix {
    fn name(&self) -> &str {
        Mix::name(self)
    }

    fn pattern(&self) -> &str {
        PATTERN
    }

    fn about(&self) -> &'static str {
        ABOUT
    }

    fn layout(&self, dims: Dims) -> Result<Vec<Part>> {
        if dims.cols == 0 || !dims.cols.is_multiple_of(COLS) {
            return Err(Error::request(format!(
                "{} needs columns in multiples of {COLS}, this weight has {}",
                Mix::name(self),
                dims.cols
            )));
        }
        let overflow = || Error::input(format!("{} x {} weights overflow", dims.rows, dims.cols));
        let across = dims.rows.checked_next_multiple_of(ROWS).ok_or_else(overflow)?;
        let (groups, words) = self.size(dims.cols);
        if words > i16::MAX as usize {
            let message = format!("{words} words down a matrix of {} columns", dims.cols);
            return Err(Error::request(format!("{message}, EXL2 has room for {}", i16::MAX)));
        }
        dims.rows.checked_mul(dims.cols).ok_or_else(overflow)?;
        let parts = vec![
            Part::new("q_weight", Dtype::I32, vec![words, across])?,
            Part::new("q_scale", Dtype::I32, vec![groups, across / 8])?,
            Part::new("q_scale_max", Dtype::F16, vec![groups])?,
            Part::new("q_groups", Dtype::I16, vec![2 * groups])?,
            Part::new("q_invperm", Dtype::I32, vec![dims.cols])?,
        ];
        let sum = parts.iter().try_fold(0usize, |sum, p| sum.checked_add(p.bytes));
        sum.map(|_| parts).ok_or_else(overflow)
    }

    fn multiples(&self) -> Dims {
        Dims::new(1, COLS)
    }

    fn packed(&self) -> bool {
        true
    }

    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        decode(packed, rows, out);
    }

    fn joint(&self) -> Option<&dyn Joint> {
        Some(self)
    }
}

/// The factor between 4 bits of scale and what `q_scale_max` gives.
fn share(code: u8) -> f32 {
    let root = f32::from(code) + 1.0;
    root * root
}

/// Outputs that are decoded and packed together: their words lie side by side and fill a cache line.
const SIDE: usize = 16;

/// Bands or columns that make no sense decode to no numbers.
fn decode(packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
    let Dims { rows: all, cols } = packed.dims;
    let [weight, scale, largest, groups, places] = &packed.parts[..] else { return out.fill(f32::NAN) };
    let across = all.next_multiple_of(ROWS);
    let bands = Bands::parse(groups, weight.len() / 4 / across.max(1), cols);
    let (Ok(bands), Ok(order)) = (bands, order(places)) else { return out.fill(f32::NAN) };
    for first in rows.clone().step_by(SIDE) {
        let side = first..(first + SIDE).min(rows.end);
        for (g, group) in bands.groups.iter().enumerate() {
            let max = f16::from_le_bytes([largest[2 * g], largest[2 * g + 1]]).to_f32() / 256.0;
            let middle = 1i16 << (group.bits - 1);
            for row in side.clone() {
                let step = share(bits::get(4, row, |i| word(scale, g * (across / 8) + i))) * max;
                let out = &mut out[(row - rows.start) * cols..][..cols];
                for (unit, order) in order[group.columns.clone()].chunks(UNIT).enumerate() {
                    let from = group.word + unit * group.bits;
                    let mut words = [0; 8];
                    for (i, w) in words[..bits::words(order.len(), group.bits)].iter_mut().enumerate() {
                        *w = word(weight, (from + i) * across + row);
                    }
                    let codes = bits::unpack(group.bits, &words);
                    for (column, code) in order.iter().zip(codes) {
                        out[*column as usize] = f32::from(i16::from(code) - middle) * step;
                    }
                }
            }
        }
    }
}

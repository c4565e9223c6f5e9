//! MLX's affine formats. Source: mlx `python/src/ops.cpp` (quantize), mlx-lm `utils.py`.
//!
//! | part | type | shape | |
//! |---|---|---|---|
//! | `weight` | U32 | `[rows, cols * bits / 32]` | codes of a row run on from word to word |
//! | `scales` | as the model | `[rows, groups]` | |
//! | `biases` | as `scales` | `[rows, groups]` | what is added to all values of a group |

use std::ops::Range;

use safetensors::Dtype;

use super::affine::{self, Form, Naming, Row, Taken};
use super::scheme::{Family, Scheme};
use super::{Codec, Part, bits};
use crate::error::Result;
use crate::tensor::{Dims, Packed};

const WIDTHS: &[usize] = &[2, 3, 4, 5, 6, 8];
const GROUPS: &[Option<usize>] = &[Some(32), Some(64), Some(128)];
const COUNT: usize = WIDTHS.len() * affine::variants(GROUPS);

static ROWS: [Row<Affine>; COUNT] = affine::rows(
    Naming { family: Family::Mlx, prefix: "mlx", symmetry: false, scales: Dtype::BF16, groups: GROUPS },
    WIDTHS,
    &[false],
);
pub static CODECS: [&dyn Codec; COUNT] = affine::table(&ROWS);

pub struct Affine;

impl Form for Affine {
    const PATTERN: &'static str = "mlx-{2,3,4,5,6,8}bit-{g32,g64,g128}";
    const ABOUT: &'static str = "w = s q + bias (MLX, mode affine)";

    fn device(scheme: &Scheme) -> Vec<usize> {
        vec![scheme.bits]
    }

    fn multiples(_: &Scheme) -> Dims {
        Dims::new(1, 1)
    }

    fn layout(scheme: &Scheme, Dims { rows, cols }: Dims) -> Result<Vec<Part>> {
        let groups = scheme.groups(cols);
        Ok(vec![
            Part::new("weight", Dtype::U32, vec![rows, bits::words(cols, scheme.bits)])?,
            scheme.scales_part("scales", vec![rows, groups])?,
            scheme.scales_part("biases", vec![rows, groups])?,
        ])
    }

    fn decode(scheme: &Scheme, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]) {
        let cols = packed.dims.cols;
        let (group, groups) = (scheme.columns(cols), scheme.groups(cols));
        let mut codes = vec![0; cols];
        for (row, out) in rows.zip(out.chunks_exact_mut(cols)) {
            bits::unpack_row(&packed.parts[0], row, scheme.bits, &mut codes);
            for (g, (codes, out)) in codes.chunks_exact(group).zip(out.chunks_exact_mut(group)).enumerate() {
                let at = row * groups + g;
                let (scale, bias) = (scheme.read_scale(&packed.parts[1], at), scheme.read_scale(&packed.parts[2], at));
                out.iter_mut().zip(codes).for_each(|(out, q)| *out = f32::from(*q) * scale + bias);
            }
        }
    }

    fn pack(scheme: &Scheme, dims: Dims, taken: &Taken<'_>) -> Vec<Vec<u8>> {
        vec![bits::pack_rows(&taken.codes, dims.cols, scheme.bits), taken.scales.clone(), taken.zeros.clone()]
    }

    fn unpack(scheme: &Scheme, packed: &Packed<'_>) -> Option<Taken<'static>> {
        let Dims { rows, cols } = packed.dims;
        let mut codes = vec![0; rows * cols];
        for (row, codes) in codes.chunks_exact_mut(cols.max(1)).enumerate() {
            bits::unpack_row(&packed.parts[0], row, scheme.bits, codes);
        }
        Some(Taken { scales: packed.parts[1].to_vec(), zeros: packed.parts[2].to_vec(), codes: codes.into() })
    }
}

//! The numeric half of a scalar format: the values that a weight may take, given the parameters stored for its group. Methods
//! choose among them; a format's byte half only packs what they chose.

use super::facts::Facts;
use super::fp8;
use crate::tensor::Dims;

/// `value = (level - zero) * step + offset`, in this order, in f32: the arithmetic of the format's decoder.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, bytemuck::Pod, bytemuck::Zeroable)]
pub struct Scale {
    pub step: f32,
    pub zero: f32,
    pub offset: f32,
}

impl Scale {
    #[inline(always)]
    pub fn value(self, level: f32) -> f32 {
        (level - self.zero) * self.step + self.offset
    }
}

/// What codes 0, 1, 2 ... stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// `first`, `first + 1` ...
    Integers { first: i32, count: usize },
    /// At most 16 of them, in any order.
    Table(&'static [f32]),
    /// 8-bit floats: a code is its own bits.
    E4m3,
}

/// Whole rows as a grid stores them: `params` `[rows][cols / group][param_bytes]`, `codes` `[rows][cols]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Codes {
    pub params: Vec<u8>,
    pub codes: Vec<u8>,
}

impl Codes {
    /// Those of rows after rows.
    pub fn joined(parts: Vec<Codes>) -> Codes {
        let mut parts = parts.into_iter();
        let mut all = parts.next().unwrap_or_default();
        for part in parts {
            all.params.extend(part.params);
            all.codes.extend(part.codes);
        }
        all
    }
}

pub trait Grid: Send + Sync {
    /// Columns that share stored parameters, in rows of `cols`. Rows are whole groups.
    fn group(&self, cols: usize) -> usize;

    /// Columns under one [`Scale`]; divides `group`.
    fn span(&self, cols: usize) -> usize;

    /// Rows that share stored parameters: from a multiple of these on, they are fitted together.
    fn rows(&self) -> usize {
        1
    }

    fn levels(&self) -> Levels;

    /// Those of a column, where columns differ.
    fn levels_at(&self, _column: usize) -> Levels {
        self.levels()
    }

    /// Stored parameter bytes of one group; 0 where a scale of the whole matrix says all.
    fn param_bytes(&self) -> usize;

    /// The same grid on a device. `None`: nobody wrote it there.
    fn facts(&self) -> Option<Facts> {
        None
    }

    /// Chooses parameters for whole rows: `w` is `[rows][cols]`, `importance` has `cols` mean squares of the inputs, `params`
    /// is `[rows][cols / group][param_bytes]`.
    fn fit(&self, w: &[f32], cols: usize, importance: Option<&[f32]>, params: &mut [u8]);

    /// The same from the largest magnitude alone, without a search: what the formats' own descriptions do.
    fn fit_largest(&self, w: &[f32], cols: usize, params: &mut [u8]) {
        self.fit(w, cols, None, params);
    }

    /// What the stored parameters of one group say: `out.len() == group / span`.
    fn scales(&self, params: &[u8], out: &mut [Scale]);

    /// Stores the scales that another format has, one for each span of one group: exactly their steps, and zero and offset as
    /// near as the format comes. False if it cannot hold the steps, or has no such parameters.
    fn adopt(&self, scales: &[Scale], params: &mut [u8]) -> bool;

    /// The stored parts of these rows, in the order of the codec's layout. `codes` is `[rows][cols]`, each below the number of
    /// levels; `params` as [`Grid::fit`] wrote them. Where words span rows, these are all rows of a matrix.
    fn pack(&self, dims: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>>;
}

/// A format whose grid is made for one matrix: what its rows share, and the order of its columns, depend on all of it.
pub trait Joint: Send + Sync {
    /// What whole rows would have the shared parameters be; those of all rows together, one row after the other, make a grid.
    fn wishes(&self, w: &[f32], cols: usize, importance: Option<&[f32]>) -> Vec<f32>;

    fn grid(&self, cols: usize, importance: Option<&[f32]>, wishes: &[f32]) -> Box<dyn Grid>;
}

/// The grid of one matrix.
pub enum MatrixGrid {
    /// Its format's.
    Format(&'static dyn Grid),
    /// Its own, see [`Joint`].
    Made(Box<dyn Grid>),
}

impl MatrixGrid {
    pub fn get(&self) -> &dyn Grid {
        match self {
            MatrixGrid::Format(grid) => *grid,
            MatrixGrid::Made(grid) => grid.as_ref(),
        }
    }
}

/// A grid whose parameters are the plain ones.
pub struct Unsearched<'a>(pub &'a dyn Grid);

impl Grid for Unsearched<'_> {
    fn group(&self, cols: usize) -> usize {
        self.0.group(cols)
    }

    fn span(&self, cols: usize) -> usize {
        self.0.span(cols)
    }

    fn rows(&self) -> usize {
        self.0.rows()
    }

    fn levels(&self) -> Levels {
        self.0.levels()
    }

    fn levels_at(&self, column: usize) -> Levels {
        self.0.levels_at(column)
    }

    fn param_bytes(&self) -> usize {
        self.0.param_bytes()
    }

    fn facts(&self) -> Option<Facts> {
        self.0.facts()
    }

    fn fit(&self, w: &[f32], cols: usize, _: Option<&[f32]>, params: &mut [u8]) {
        self.0.fit_largest(w, cols, params);
    }

    fn scales(&self, params: &[u8], out: &mut [Scale]) {
        self.0.scales(params, out);
    }

    fn adopt(&self, scales: &[Scale], params: &mut [u8]) -> bool {
        self.0.adopt(scales, params)
    }

    fn pack(&self, dims: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>> {
        self.0.pack(dims, params, codes)
    }
}

/// The scales of `weights` weights in rows of `cols`: one for each span.
pub fn scales(grid: &dyn Grid, cols: usize, weights: usize, params: &[u8]) -> Vec<Scale> {
    let (group, span, bytes) = (grid.group(cols).max(1), grid.span(cols).max(1), grid.param_bytes());
    let mut out = vec![Scale::default(); weights / span];
    for (n, out) in out.chunks_exact_mut(group / span).enumerate() {
        grid.scales(&params[n * bytes..(n + 1) * bytes], out);
    }
    out
}

impl Levels {
    pub fn count(self) -> usize {
        match self {
            Levels::Integers { count, .. } => count,
            Levels::Table(table) => table.len(),
            Levels::E4m3 => 256,
        }
    }

    pub fn level(self, code: u8) -> f32 {
        match self {
            Levels::Integers { first, .. } => (first + i32::from(code)) as f32,
            Levels::Table(table) => table[usize::from(code)],
            Levels::E4m3 => fp8::value(code),
        }
    }

    /// The code whose value is nearest to `w`. With a step of zero all are alike: that of level 0.
    pub fn nearest(self, w: f32, scale: Scale) -> u8 {
        if scale.step == 0.0 {
            return self.zero();
        }
        let level = (w - scale.offset) / scale.step + scale.zero;
        match self {
            Levels::Integers { first, count } => {
                let code = (level - first as f32).round_ties_even();
                code.clamp(0.0, (count - 1) as f32) as u8
            }
            Levels::Table(table) => {
                let mut best = (f32::INFINITY, 0);
                for (code, candidate) in table.iter().enumerate() {
                    let distance = (level - candidate).abs();
                    if distance < best.0 {
                        best = (distance, code as u8);
                    }
                }
                best.1
            }
            Levels::E4m3 => fp8::nearest(level).0,
        }
    }

    /// The code of level 0, or of the level nearest to it.
    pub fn zero(self) -> u8 {
        self.nearest(0.0, Scale { step: 1.0, ..Scale::default() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::all;
    use crate::tensor::{Bytes, Packed};

    fn noise(n: usize) -> Vec<f32> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next() * next().abs()).collect()
    }

    /// For every grid of the table: what it stores decodes to its own values, of which rounding picks a nearest one.
    #[test]
    fn packed_codes_decode_to_the_values_of_their_scales() {
        let mut seen = 0;
        for codec in all() {
            let Some(grid) = codec.grid() else { continue };
            seen += 1;
            let multiples = codec.multiples();
            let (rows, cols) = (multiples.rows.max(3).next_multiple_of(multiples.rows), multiples.cols * 2);
            let dims = Dims::new(rows, cols);
            let w = noise(dims.len());
            let importance: Vec<f32> = noise(cols).iter().map(|x| x * x + 1e-3).collect();
            let mut params = vec![0; dims.len() / grid.group(cols) * grid.param_bytes()];
            grid.fit(&w, cols, Some(&importance), &mut params);
            let levels = grid.levels();
            let (mut codes, mut values) = (Vec::new(), Vec::new());
            for (scale, w) in scales(grid, cols, w.len(), &params).iter().zip(w.chunks_exact(grid.span(cols))) {
                for w in w {
                    let code = levels.nearest(*w, *scale);
                    let value = |code: u8| scale.value(levels.level(code));
                    let best = (0..levels.count()).map(|c| (value(c as u8) - w).abs()).fold(f32::INFINITY, f32::min);
                    let error = (value(code) - w).abs();
                    assert!(error <= best * 1.0001 + 1e-6, "{}: {w} is {error} off, not {best}", codec.name());
                    codes.push(code);
                    values.push(value(code));
                }
            }
            let parts = grid.pack(dims, &params, &codes);
            let layout = codec.layout(dims).unwrap();
            assert!(parts.iter().map(Vec::len).eq(layout.iter().map(|p| p.bytes)), "{}", codec.name());
            let packed = Packed { dims, parts: parts.into_iter().map(Bytes::from).collect() };
            let mut decoded = vec![0.0; dims.len()];
            codec.decode(&packed, 0..rows, &mut decoded);
            for (i, (a, b)) in decoded.iter().zip(&values).enumerate() {
                assert!(a == b, "{}: weight {i} reads {a}, its grid says {b}", codec.name());
            }
        }
        assert!(seen >= 14);
    }
}

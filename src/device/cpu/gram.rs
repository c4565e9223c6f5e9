//! Sums over the rows of an activation: squares, values, maxima, and x x^T.

use rayon::prelude::*;

use super::kernel::{DEPTH, Kernel, Tile, WIDTH};
use crate::widest::widest;

/// Panels of a block: its side is 128, so that a block of sums and the terms it is made of stay in the second-level cache.
const BLOCK: usize = 4;
const SIDE: usize = BLOCK * WIDTH;
/// Rows whose products are added up in f32; longer sums are in f64.
pub const ROWS: usize = 4096;

/// The sum of `w^2 x x^T` over rows `x` with weights `w`: upper triangle, row after row, in f64.
pub struct Gram {
    columns: usize,
    upper: Vec<f64>,
}

/// Rows as panels of [`WIDTH`] columns, `[panel][row][WIDTH]`; lent to one Gram after the other.
#[derive(Default)]
pub struct GramScratch(Vec<f32>);

impl Gram {
    /// `None`: it does not fit into memory.
    pub fn new(columns: usize) -> Option<Gram> {
        let len = columns.checked_mul(columns.checked_add(1)?)? / 2;
        let mut upper = Vec::new();
        upper.try_reserve_exact(len).ok()?;
        upper.resize(len, 0.0);
        Some(Gram { columns, upper })
    }

    pub fn upper(&self) -> &[f64] {
        &self.upper
    }

    pub fn into_upper(self) -> Vec<f64> {
        self.upper
    }

    /// Adds rows `[rows][columns]`. The bits of the result depend on how rows are divided among calls, not on threads.
    pub fn add(&mut self, x: &[f32], weights: Option<&[f32]>, scratch: &mut GramScratch) {
        let n = self.columns.max(1);
        for (i, x) in x.chunks(ROWS * n).enumerate() {
            let rows = x.len() / n;
            scratch.fill(x, n, weights.map(|w| &w[i * ROWS..][..rows]));
            let blocks = blocks(n, &mut self.upper);
            blocks.into_par_iter().enumerate().with_max_len(1).for_each(|(block, upper)| {
                add_block(&scratch.0, n, rows, block, upper);
            });
        }
    }
}

/// The rows of a triangle, [`SIDE`] at a time.
fn blocks(columns: usize, mut upper: &mut [f64]) -> Vec<&mut [f64]> {
    let mut out = Vec::new();
    for from in (0..columns).step_by(SIDE) {
        let len = (from..columns.min(from + SIDE)).map(|i| columns - i).sum();
        let (block, rest) = upper.split_at_mut(len);
        out.push(block);
        upper = rest;
    }
    out
}

impl GramScratch {
    fn fill(&mut self, x: &[f32], columns: usize, weights: Option<&[f32]>) {
        let (rows, panels) = (x.len() / columns, columns.div_ceil(WIDTH));
        self.0.resize(panels * rows * WIDTH, 0.0);
        self.0.par_chunks_exact_mut((rows * WIDTH).max(1)).enumerate().for_each(|(panel, out)| {
            let columns = panel * WIDTH..columns.min((panel + 1) * WIDTH);
            for (r, (out, x)) in out.chunks_exact_mut(WIDTH).zip(x.chunks_exact(x.len() / rows)).enumerate() {
                let (used, beyond) = out.split_at_mut(columns.len());
                used.copy_from_slice(&x[columns.clone()]);
                beyond.fill(0.0);
                if let Some(weights) = weights {
                    used.iter_mut().for_each(|x| *x *= weights[r]);
                }
            }
        });
    }
}

/// Adds to [`SIDE`] rows of the triangle: a square of sums after the other, from the diagonal to the right.
fn add_block(panels: &[f32], columns: usize, rows: usize, block: usize, upper: &mut [f64]) {
    let count = columns.div_ceil(WIDTH);
    let (top, bottom) = (block * BLOCK, count.min((block + 1) * BLOCK));
    let mut sums = vec![0.0f32; SIDE * SIDE];
    for left in (top..count).step_by(BLOCK) {
        let right = count.min(left + BLOCK);
        multiply(panels, rows, top..bottom, left..right, &mut sums);
        let mut rest = &mut *upper;
        for i in top * WIDTH..columns.min(bottom * WIDTH) {
            let (row, below) = rest.split_at_mut(columns - i);
            rest = below;
            let (from, until) = (i.max(left * WIDTH), columns.min(right * WIDTH));
            let sums = &sums[(i - top * WIDTH) * SIDE + from - left * WIDTH..];
            row[from - i..until - i].iter_mut().zip(sums).for_each(|(sum, x)| *sum += f64::from(*x));
        }
    }
}

/// `sums[i][j]` over all rows, for the columns of two ranges of panels; below the diagonal they may be anything.
fn multiply(
    panels: &[f32],
    rows: usize,
    down: std::ops::Range<usize>,
    across: std::ops::Range<usize>,
    sums: &mut [f32],
) {
    let kernel = Kernel::down_a_panel();
    assert!(down.len() <= BLOCK && across.len() <= BLOCK && sums.len() == SIDE * SIDE);
    assert!(panels.len() >= down.end.max(across.end) * rows * WIDTH);
    for from in (0..rows).step_by(DEPTH) {
        let depth = DEPTH.min(rows - from);
        for j in across.clone() {
            for i in down.start..down.end.min(j + 1) {
                let place = |panel: usize| panels[(panel * rows + from) * WIDTH..][..depth * WIDTH].as_ptr();
                let tile = Tile {
                    x: place(i),
                    x_stride: 1,
                    panel: place(j),
                    panel_stride: WIDTH,
                    depth,
                    out: sums[((i - down.start) * SIDE + j - across.start) * WIDTH..].as_mut_ptr(),
                    out_stride: SIDE,
                    add: from > 0,
                };
                // SAFETY: both panels have `depth` rows of WIDTH from there, and the square of sums lies within `sums`.
                unsafe { kernel.multiply(tile, WIDTH, 0) };
            }
        }
    }
}

/// Columns that one job sums.
const COLUMNS: usize = 128;

/// Per column of `x`, `[rows][columns]`: adds up squares and values, in the order of the rows, and takes the largest magnitude.
/// Squares of f32 are exact in f64, so the result hardly depends on how much text there is.
pub fn moments(x: &[f32], squares: &mut [f64], sums: &mut [f64], most: &mut [f32]) {
    let columns = squares.len();
    assert!(sums.len() == columns && most.len() == columns);
    let parts = squares.par_chunks_mut(COLUMNS).zip(sums.par_chunks_mut(COLUMNS)).zip(most.par_chunks_mut(COLUMNS));
    parts
        .enumerate()
        .for_each(|(i, ((squares, sums), most))| add_moments(x, columns, i * COLUMNS, squares, sums, most));
}

widest! {
    fn add_moments(x: &[f32], columns: usize, from: usize, squares: &mut [f64], sums: &mut [f64], most: &mut [f32]) = moments_of_part;
}

#[inline(always)]
fn moments_of_part(x: &[f32], columns: usize, from: usize, squares: &mut [f64], sums: &mut [f64], most: &mut [f32]) {
    for row in x.chunks_exact(columns) {
        let row = &row[from..from + squares.len()];
        for (((x, square), sum), most) in row.iter().zip(&mut *squares).zip(&mut *sums).zip(&mut *most) {
            let wide = f64::from(*x);
            *square += wide * wide;
            *sum += wide;
            *most = if x.abs() > *most { x.abs() } else { *most };
        }
    }
}

/// Adds up `w^2 x^2` over rows `x` with weights `w`, per column.
pub fn weighted_squares(x: &[f32], weights: &[f32], squares: &mut [f64]) {
    let columns = squares.len();
    assert_eq!(x.len(), weights.len() * columns);
    squares.par_chunks_mut(COLUMNS).enumerate().for_each(|(i, squares)| {
        for (row, weight) in x.chunks_exact(columns).zip(weights) {
            let row = &row[i * COLUMNS..][..squares.len()];
            for (x, square) in row.iter().zip(&mut *squares) {
                let x = f64::from(*x) * f64::from(*weight);
                *square += x * x;
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn gram(x: &[f32], columns: usize, weights: Option<&[f32]>) -> Vec<f64> {
        let (mut out, mut scratch) = (Gram::new(columns).unwrap(), GramScratch::default());
        out.add(x, weights, &mut scratch);
        out.upper
    }

    #[test]
    fn gram_is_the_naive_sum() {
        for (rows, columns) in [(1, 1), (3, 33), (300, 100), (517, 200), (ROWS + 5, 40), (0, 7)] {
            let (x, weights) = (noise(rows * columns, 1), noise(rows, 2));
            for weights in [None, Some(&weights[..])] {
                let got = gram(&x, columns, weights);
                let mut at = 0;
                for i in 0..columns {
                    for j in i..columns {
                        let weight = |t: usize| weights.map_or(1.0, |w| f64::from(w[t]).powi(2));
                        let term = |t: usize| weight(t) * f64::from(x[t * columns + i]) * f64::from(x[t * columns + j]);
                        let exact: f64 = (0..rows).map(term).sum();
                        let scale = (rows as f64).sqrt().max(1.0);
                        assert!(
                            (got[at] - exact).abs() < 1e-5 * scale,
                            "{rows} x {columns}: {i} {j} {} {exact}",
                            got[at]
                        );
                        at += 1;
                    }
                }
            }
        }
    }

    #[test]
    fn gram_does_not_depend_on_threads() {
        let (rows, columns) = (700, 300);
        let x = noise(rows * columns, 3);
        let with = |threads| crate::device::cpu::pool(threads).unwrap().install(|| gram(&x, columns, None));
        let one = with(1);
        assert!([2, 5].into_iter().all(|t| with(t) == one));
    }

    #[test]
    fn moments_do_not_depend_on_the_batch() {
        let (rows, columns) = (50, 300);
        let x = noise(rows * columns, 4);
        let with = |batch: usize| {
            let (mut squares, mut sums, mut most) = (vec![0.0; columns], vec![0.0; columns], vec![0.0; columns]);
            x.chunks(batch * columns).for_each(|x| moments(x, &mut squares, &mut sums, &mut most));
            (squares, sums, most)
        };
        let whole = with(rows);
        assert!(with(7) == whole);
        let column = |c: usize| x.iter().skip(c).step_by(columns).map(|x| f64::from(*x));
        for c in [0, 131, 299] {
            assert_eq!(whole.0[c], column(c).map(|x| x * x).sum::<f64>());
            assert_eq!(whole.1[c], column(c).sum::<f64>());
            assert_eq!(f64::from(whole.2[c]), column(c).map(f64::abs).fold(0.0, f64::max));
        }
        let weights = noise(rows, 5);
        let mut weighted = vec![0.0; columns];
        weighted_squares(&x, &weights, &mut weighted);
        let expected: f64 = column(7).zip(&weights).map(|(x, w)| (x * f64::from(*w)).powi(2)).sum();
        assert!((weighted[7] - expected).abs() < 1e-9);
    }
}

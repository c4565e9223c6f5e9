//! The column solver: codes chosen one column after the other, each seeing the errors of those before it.

use ndarray::{Array2, Zip};
use rayon::prelude::*;

use super::factor::cholesky;
use super::kernel::{Kernel, Tile, WIDTH};
use crate::codec::fp8;
use crate::codec::grid::{Levels, Scale};
use crate::widest::widest;

/// Rows that are solved side by side, one in each lane.
pub const LANES: usize = 16;
/// Columns whose errors reach each other at once; those of earlier blocks arrive by one product.
pub const BLOCK: usize = 128;

/// How the error of one column is made good by those that are still to come.
#[derive(Clone, Debug)]
pub struct Feedback {
    /// Columns in the order in which they are solved.
    pub order: Vec<u32>,
    /// `[n][stride]`: row `j`, column `k > j`, both counted in that order, is the share of the error of `j` that `k` takes on.
    pub shares: Vec<f32>,
    /// Columns rounded up to whole panels.
    pub stride: usize,
    /// What an error's square at each column, in the order of the weight, adds to the output's: the variance of its input that
    /// the columns after it do not explain.
    pub variances: Vec<f32>,
}

impl Feedback {
    /// That of a Gram matrix, its rows filled up to whole panels, whose diagonal is multiplied with `damped`. With the columns in their
    /// order, `H = R R^T`, R upper triangular; the share of `k` in the error of `j` is `R[j,k] / R[k,k]`. Columns that are always
    /// zero have no part in it.
    ///
    /// Errors: the first pivot, from the last column on, that is not positive.
    pub fn factored(dense: Array2<f32>, order: Vec<u32>, damped: f64) -> Result<Feedback, usize> {
        let n = order.len();
        // The lower factor of the reversed matrix is the upper one of the matrix.
        let mut factor = Array2::<f64>::zeros((n, n));
        Zip::indexed(factor.rows_mut()).par_for_each(|i, mut row| {
            let from = order[n - 1 - i] as usize;
            for (j, out) in row.iter_mut().enumerate().take(i + 1) {
                *out = f64::from(dense[[from, order[n - 1 - j] as usize]]);
            }
            row[i] = if row[i] > 0.0 { row[i] * damped } else { 1.0 };
        });
        drop(dense);
        cholesky(&mut factor)?;
        let stride = Feedback::stride(n);
        let mut shares = vec![0.0f32; n * stride];
        shares.par_chunks_exact_mut(stride.max(1)).enumerate().for_each(|(j, row)| {
            for (k, out) in row.iter_mut().enumerate().take(n).skip(j + 1) {
                let at = n - 1 - k;
                *out = (factor[[n - 1 - j, at]] / factor[[at, at]]) as f32;
            }
        });
        let mut variances = vec![0.0; n];
        for (j, column) in order.iter().enumerate() {
            let at = n - 1 - j;
            variances[*column as usize] = factor[[at, at]].powi(2) as f32;
        }
        Ok(Feedback { order, shares, stride, variances })
    }

    /// The same for weights whose columns are multiplied with `scale`.
    pub fn scaled(&self, scale: &[f32]) -> Feedback {
        let mut out = self.clone();
        let ordered: Vec<f32> = self.order.iter().map(|c| scale[*c as usize]).collect();
        for (row, from) in out.shares.chunks_exact_mut(self.stride.max(1)).zip(&ordered) {
            row.iter_mut().zip(&ordered).for_each(|(share, to)| *share *= to / from);
        }
        out.variances.iter_mut().zip(scale).for_each(|(v, s)| *v /= s * s);
        out
    }

    pub fn stride(n: usize) -> usize {
        n.next_multiple_of(WIDTH)
    }
}

/// A grid's scales for some rows: `[rows][cols / span]`.
#[derive(Clone, Copy)]
pub struct Scales<'a> {
    /// `[cols / span]`, all of one kind.
    pub levels: &'a [Levels],
    pub span: usize,
    pub all: &'a [Scale],
}

/// Codes for rows of weights, `[rows][cols]`. `target_k = w_k + sum over j before k of (w_j - value_j) shares[j][k]` is rounded
/// to the nearest value: GPTQ (Frantar et al. 2022) as LDLQ computes it (Chee et al. 2023). Deterministic, whatever the CPU.
pub fn round_columns(w: &[f32], cols: usize, scales: Scales<'_>, feedback: &Feedback, codes: &mut [u8]) {
    assert!(codes.len() == w.len() && feedback.order.len() == cols && feedback.stride >= cols);
    assert!(feedback.shares.len() == cols * feedback.stride && feedback.stride.is_multiple_of(WIDTH));
    let groups = cols / scales.span;
    assert!(scales.all.len() * cols == w.len() * groups && groups * scales.span == cols);
    assert!(scales.levels.len() == groups);
    let mut errors = vec![0.0; LANES * feedback.stride];
    let mut carried = vec![0.0; LANES * BLOCK];
    let lanes = w.chunks(LANES * cols).zip(codes.chunks_mut(LANES * cols)).zip(scales.all.chunks(LANES * groups));
    for ((w, codes), all) in lanes {
        let rows = w.len() / cols;
        let part = Scales { all, ..scales };
        for from in (0..cols).step_by(BLOCK) {
            let until = cols.min(from + BLOCK);
            carried.fill(0.0);
            for column in (from..until).step_by(WIDTH).filter(|_| from > 0) {
                let tile = Tile {
                    x: errors.as_ptr(),
                    x_stride: feedback.stride,
                    panel: feedback.shares[column..].as_ptr(),
                    panel_stride: feedback.stride,
                    depth: from,
                    out: carried[column - from..].as_mut_ptr(),
                    out_stride: BLOCK,
                    add: false,
                };
                // SAFETY: `errors` has LANES rows of `stride`, of which `from` terms are read; `shares` has `cols > from` rows of
                // `stride >= column + WIDTH`; `carried` has LANES rows of BLOCK, and `column - from + WIDTH <= BLOCK`.
                unsafe { Kernel::best().multiply(tile, rows, 0) };
            }
            let block = Block { w, cols, scales: part, feedback, columns: from..until };
            solve(&block, &carried, &mut errors, codes);
        }
    }
}

struct Block<'a> {
    w: &'a [f32],
    cols: usize,
    scales: Scales<'a>,
    feedback: &'a Feedback,
    columns: std::ops::Range<usize>,
}

widest! {
    fn solve(block: &Block<'_>, carried: &[f32], errors: &mut [f32], codes: &mut [u8]) = solve_body;
}

#[inline(always)]
fn solve_body(block: &Block<'_>, carried: &[f32], errors: &mut [f32], codes: &mut [u8]) {
    match block.scales.levels.first() {
        Some(Levels::Table(table)) => columns(block, carried, errors, codes, |_, level| {
            let (mut best, mut found) = (f32::INFINITY, (0.0, table[0]));
            for (code, candidate) in table.iter().enumerate() {
                let distance = (level - candidate).abs();
                if distance < best {
                    best = distance;
                    found = (code as f32, *candidate);
                }
            }
            found
        }),
        Some(Levels::E4m3) => columns(block, carried, errors, codes, |_, level| {
            let (code, level) = fp8::nearest(level);
            (f32::from(code), level)
        }),
        _ => columns(block, carried, errors, codes, |ends, level| {
            let (first, last) = ends;
            let code = (level - first).round_ties_even();
            let code = if code > 0.0 { code } else { 0.0 };
            let code = if code < last { code } else { last };
            (code, code + first)
        }),
    }
}

/// First level and last code.
#[inline(always)]
fn ends(levels: Levels) -> (f32, f32) {
    match levels {
        Levels::Integers { first, count } => (first as f32, (count - 1) as f32),
        Levels::Table(_) | Levels::E4m3 => (0.0, 0.0),
    }
}

/// `nearest` gives code and level, given the ends of whole numbers.
#[inline(always)]
fn columns(
    block: &Block<'_>,
    carried: &[f32],
    errors: &mut [f32],
    codes: &mut [u8],
    nearest: impl Fn((f32, f32), f32) -> (f32, f32),
) {
    let Block { w, cols, scales, feedback, columns } = block;
    let (cols, rows, groups) = (*cols, w.len() / cols, cols / scales.span);
    let mut targets = [[0.0f32; LANES]; BLOCK];
    for (k, target) in columns.clone().zip(&mut targets) {
        let column = feedback.order[k] as usize;
        for (r, t) in target.iter_mut().enumerate().take(rows) {
            *t = w[r * cols + column] + carried[r * BLOCK + k - columns.start];
        }
    }
    for (i, k) in columns.clone().enumerate() {
        let column = feedback.order[k] as usize;
        let (mut step, mut shift, mut offset, mut weight) = ([0.0f32; LANES], [0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for r in 0..rows {
            let scale = scales.all[r * groups + column / scales.span];
            (step[r], shift[r], offset[r], weight[r]) = (scale.step, scale.zero, scale.offset, w[r * cols + column]);
        }
        let levels = scales.levels[column / scales.span];
        let (ends, zero) = (ends(levels), f32::from(levels.zero()));
        let (mut code, mut error) = ([0.0f32; LANES], [0.0f32; LANES]);
        for l in 0..LANES {
            let (c, level) = nearest(ends, (targets[i][l] - offset[l]) / step[l] + shift[l]);
            code[l] = if step[l] == 0.0 { zero } else { c };
            let value = (level - shift[l]) * step[l] + offset[l];
            error[l] = weight[l] - if step[l] == 0.0 { offset[l] } else { value };
        }
        for r in 0..rows {
            codes[r * cols + column] = code[r] as u8;
            errors[r * feedback.stride + k] = error[r];
        }
        let shares = &feedback.shares[k * feedback.stride..][..columns.end];
        for (target, share) in targets[..columns.len()].iter_mut().zip(&shares[columns.start..]).skip(i + 1) {
            for l in 0..LANES {
                target[l] = error[l].mul_add(*share, target[l]);
            }
        }
    }
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

    #[test]
    fn columns_see_the_errors_before_them() {
        let table: &'static [f32] = &[-3.0, -1.0, 0.0, 2.0];
        for levels in [Levels::Integers { first: -4, count: 8 }, Levels::Table(table), Levels::E4m3] {
            let (rows, cols, span) = (21, 320, 32);
            let stride = Feedback::stride(cols);
            let w = noise(rows * cols, 1);
            let order: Vec<u32> = (0..cols as u32).map(|i| i * 7 % cols as u32).collect();
            let mut shares: Vec<f32> = noise(cols * stride, 2).iter().map(|x| x * 0.05).collect();
            for j in 0..cols {
                shares[j * stride..=j * stride + j].fill(0.0);
            }
            let scale = |i: usize| match i % 11 {
                0 => Scale { step: 0.0, zero: 0.0, offset: 0.1 },
                _ => Scale { step: 0.1 + 0.01 * (i % 7) as f32, zero: 0.5, offset: 0.02 },
            };
            let all: Vec<Scale> = (0..rows * cols / span).map(scale).collect();
            let feedback = Feedback { order, shares, stride, variances: vec![1.0; cols] };
            let mut codes = vec![0; w.len()];
            let same = vec![levels; cols / span];
            round_columns(&w, cols, Scales { levels: &same, span, all: &all }, &feedback, &mut codes);
            for r in 0..rows {
                let mut errors = Vec::new();
                for (k, column) in feedback.order.iter().enumerate() {
                    let column = *column as usize;
                    let carried: f32 = (0..k).map(|j| errors[j] * feedback.shares[j * stride + k]).sum();
                    let (scale, w) = (all[(r * cols + column) / span], w[r * cols + column]);
                    let code = codes[r * cols + column];
                    let value = scale.value(levels.level(code));
                    let best = scale.value(levels.level(levels.nearest(w + carried, scale)));
                    let target = w + carried;
                    assert!((value - target).abs() <= (best - target).abs() + 1e-4, "row {r}, column {column}");
                    errors.push(w - value);
                }
            }
        }
    }
}

//! Ranges that are cut where the output gains (Lin et al. 2023, "weight clipping"): a group's large weights may lose if the others win
//! more. What is lost is `e H e^T` with the square of the Gram matrix that the group's inputs have.

use rayon::prelude::*;

use super::awq::columns_back;
use super::{coded, errors, fit, nearest};
use crate::calibrate::stats::Gram;
use crate::codec::grid::{Codes, Grid, Unsearched};
use crate::device::cpu;

/// Rows that one thread takes.
const ROWS: usize = 16;

/// Shares of the largest weight at which ranges are cut.
pub const CUTS: [f32; 10] = [1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55];

/// [`nearest`] on whichever scales leave each group the least error: those that it would use, or those of a cut range. `w` are rows
/// whose columns were multiplied with `scale`; `gram` is of the inputs as they come.
pub fn clipped(
    grid: &dyn Grid,
    w: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    gram: &Gram<'_>,
    scale: Option<&[f32]>,
) -> Codes {
    let (group, bytes) = (grid.group(cols), grid.param_bytes());
    if w.is_empty() || grid.rows() > 1 || bytes == 0 {
        return nearest(grid, w, cols, importance); // no group has a scale to itself
    }
    let squares = Squares::new(gram, group, scale);
    Codes::joined(w.par_chunks(ROWS * cols).map(|w| best(grid, w, cols, importance, &squares)).collect())
}

/// Of each group the scale, and the codes, that lose least.
fn best(grid: &dyn Grid, w: &[f32], cols: usize, importance: Option<&[f32]>, squares: &Squares<'_>) -> Codes {
    let mut best = nearest(grid, w, cols, importance);
    let (group, bytes) = (squares.group, grid.param_bytes());
    let mut least = squares.losses(grid, w, cols, &best);
    for cut in CUTS {
        let found = coded(grid, w, cols, fit(&Unsearched(grid), &cut_to(grid, w, cols, cut), cols, None));
        for (at, loss) in squares.losses(grid, w, cols, &found).into_iter().enumerate() {
            if loss < least[at] {
                least[at] = loss;
                let (params, codes) = (at * bytes..(at + 1) * bytes, at * group..(at + 1) * group);
                best.params[params.clone()].copy_from_slice(&found.params[params]);
                best.codes[codes.clone()].copy_from_slice(&found.codes[codes]);
            }
        }
    }
    best
}

/// Weights that do not exceed the share `cut` of the largest under their scale.
pub fn cut_to(grid: &dyn Grid, w: &[f32], cols: usize, cut: f32) -> Vec<f32> {
    let mut out = w.to_vec();
    for span in out.chunks_exact_mut(grid.span(cols)) {
        let most = cut * span.iter().fold(0.0f32, |m, w| m.max(w.abs()));
        span.iter_mut().for_each(|w| *w = w.clamp(-most, most));
    }
    out
}

/// What errors within each group do to the output.
struct Squares<'a> {
    group: usize,
    /// `[cols / group][group][group]`
    of_groups: Vec<f32>,
    scale: Option<&'a [f32]>,
}

impl<'a> Squares<'a> {
    fn new(gram: &Gram<'_>, group: usize, scale: Option<&'a [f32]>) -> Squares<'a> {
        let cols = gram.columns();
        let mut of_groups = vec![0.0; cols * group];
        for (i, out) in of_groups.chunks_exact_mut(group).enumerate() {
            let first = i - i % group;
            out.iter_mut().enumerate().for_each(|(j, out)| *out = gram.get(i, first + j));
        }
        Squares { group, of_groups, scale }
    }

    /// `[rows][cols / group]`
    fn losses(&self, grid: &dyn Grid, w: &[f32], cols: usize, found: &Codes) -> Vec<f64> {
        let mut errors = errors(grid, w, cols, found);
        if let Some(scale) = self.scale {
            columns_back(&mut errors, scale);
        }
        let squares = self.of_groups.chunks_exact(self.group * self.group).cycle();
        let loss = |(e, square): (&[f32], &[f32])| -> f64 {
            let rows = square.chunks_exact(self.group);
            e.iter().zip(rows).map(|(at, row)| f64::from(*at) * f64::from(cpu::dot(row, e))).sum()
        };
        errors.chunks_exact(self.group).zip(squares).map(loss).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::method::tests::correlated;
    use crate::codec;

    /// On correlated inputs, and behind a fold, no group loses more than by its own scales, and all together less.
    #[test]
    fn groups_lose_less_under_ranges_that_may_be_cut() {
        for name in ["q4_0", "q4_k", "gptq-4bit-g128", "awq-4bit-g128", "mlx-nvfp4"] {
            let grid = codec::find(name).unwrap_or_else(|_| panic!("{name}")).grid().unwrap();
            let cols = grid.group(512).max(512);
            let gram = correlated(cols);
            // Some weights stand out, so that there is something to cut.
            let spread = |i: usize| if i.is_multiple_of(61) { 2.0 } else { 0.5 };
            let w: Vec<f32> = (0..8 * cols).map(|i| spread(i) * (((i * 7919) % 1013) as f32 / 1013.0 - 0.5)).collect();
            let scale: Vec<f32> = (0..cols).map(|i| 0.5 + (i % 7) as f32 / 4.0).collect();
            let importance: Vec<f32> = (0..cols).map(|i| gram.get(i, i) / (scale[i] * scale[i])).collect();
            let squares = Squares::new(&gram, grid.group(cols), Some(&scale));
            let plain = squares.losses(grid, &w, cols, &nearest(grid, &w, cols, Some(&importance)));
            let found = clipped(grid, &w, cols, Some(&importance), &gram, Some(&scale));
            let cut = squares.losses(grid, &w, cols, &found);
            assert!(cut.iter().zip(&plain).all(|(cut, plain)| cut <= plain), "{name}");
            let (cut, plain): (f64, f64) = (cut.iter().sum(), plain.iter().sum());
            assert!(cut < 0.95 * plain, "{name}: {cut} is not below {plain}");
        }
    }
}

//! How codes are chosen, for any format whose values form a grid.

pub mod awq;
pub mod clip;
pub mod gptq;
pub mod ops;

use crate::codec::grid::{self, Codes, Grid, Levels, Scale, Unsearched};
use crate::device::cpu::{self, Feedback};
pub use clip::clipped;

/// What a method must know of the inputs of a weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Needs {
    Nothing,
    /// The mean square of every input.
    MeanSquares,
    /// The mean product of every two inputs.
    Gram,
}

impl std::fmt::Display for Needs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Needs::Nothing => "nothing",
            Needs::MeanSquares => "the mean squares of the inputs",
            Needs::Gram => "Gram matrices",
        })
    }
}

/// A row of the table of methods.
#[derive(Debug)]
pub struct Method {
    pub name: &'static str,
    /// One line for `quant list methods`, with the source.
    pub about: &'static str,
    pub needs: Needs,
    /// Scales columns first, where the model has a place for the inverse.
    pub folds: bool,
    /// Codes see each other's errors.
    pub feedback: bool,
    /// Scales are looked for that lose less than those that the largest weights ask for.
    pub search: bool,
}

/// From the simplest to the best.
pub static METHODS: &[Method] = &[
    Method {
        name: "largest",
        about: "scales from the largest weights alone, as the formats describe themselves: the baseline",
        needs: Needs::Nothing,
        folds: false,
        feedback: false,
        search: false,
    },
    Method {
        name: "rtn",
        about: "round to nearest: looks at the weights alone",
        needs: Needs::Nothing,
        folds: false,
        feedback: false,
        search: true,
    },
    Method {
        name: "imatrix",
        about: "scales that weigh errors by the mean square of the inputs (llama.cpp)",
        needs: Needs::MeanSquares,
        folds: false,
        feedback: false,
        search: true,
    },
    Method {
        name: "awq",
        about: "active columns are scaled up before rounding, and folded away; ranges cut where the output gains (Lin et al. 2023)",
        needs: Needs::Gram,
        folds: true,
        feedback: false,
        search: true,
    },
    Method {
        name: "gptq",
        about: "codes that make good each other's errors (Frantar et al. 2022), on the scales of `imatrix`",
        needs: Needs::Gram,
        folds: false,
        feedback: true,
        search: true,
    },
    Method { name: "awq+gptq", about: "both", needs: Needs::Gram, folds: true, feedback: true, search: true },
];

/// The best that these statistics suffice for.
pub fn best(known: Needs) -> &'static Method {
    METHODS.iter().rfind(|m| m.needs <= known).unwrap_or(&METHODS[0])
}

/// Each weight by itself: the nearest value of its group's scale. `w` are whole rows of `cols` columns; `importance` has the mean
/// squares of their inputs.
pub fn nearest(grid: &dyn Grid, w: &[f32], cols: usize, importance: Option<&[f32]>) -> Codes {
    coded(grid, w, cols, fit(grid, w, cols, importance))
}

/// The same under scales that were chosen.
fn coded(grid: &dyn Grid, w: &[f32], cols: usize, (params, scales): (Vec<u8>, Vec<Scale>)) -> Codes {
    let span = grid.span(cols).max(1);
    let mut codes = Vec::with_capacity(w.len());
    for (n, (scale, w)) in scales.iter().zip(w.chunks_exact(span)).enumerate() {
        let levels = grid.levels_at(n * span % cols);
        codes.extend(w.iter().map(|w| levels.nearest(*w, *scale)));
    }
    Codes { params, codes }
}

/// What scales under feedback are fitted for; none of these is best for all weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// Errors count by the mean squares of their inputs.
    Importance,
    /// By [`Feedback::variances`]: what the other columns cannot make good.
    Variances,
    /// All alike, and where the format has a rule of its own the largest weight is not cut: what columns take on widens them.
    Plain,
}

pub const FITS: [Fit; 3] = [Fit::Importance, Fit::Variances, Fit::Plain];

/// Codes under which every column makes good the errors of those before it, on scales fitted to the weights as they are.
pub fn solve(
    grid: &dyn Grid,
    w: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    how: Fit,
    feedback: &Feedback,
) -> Codes {
    let (params, scales) = match how {
        Fit::Importance => fit(grid, w, cols, importance),
        Fit::Variances => fit(grid, w, cols, Some(&feedback.variances)),
        Fit::Plain => fit(&Unsearched(grid), w, cols, None),
    };
    let span = grid.span(cols);
    let levels: Vec<Levels> = (0..cols).step_by(span.max(1)).map(|column| grid.levels_at(column)).collect();
    let mut codes = vec![0; w.len()];
    cpu::round_columns(w, cols, cpu::Scales { levels: &levels, span, all: &scales }, feedback, &mut codes);
    Codes { params, codes }
}

fn fit(grid: &dyn Grid, w: &[f32], cols: usize, importance: Option<&[f32]>) -> (Vec<u8>, Vec<Scale>) {
    let groups = w.len().checked_div(grid.group(cols)).unwrap_or(0);
    let mut params = vec![0; groups * grid.param_bytes()];
    if groups > 0 {
        grid.fit(w, cols, importance, &mut params);
    }
    let scales = grid::scales(grid, cols, w.len(), &params);
    (params, scales)
}

/// What codes of whole rows stand for.
pub fn values(grid: &dyn Grid, cols: usize, found: &Codes) -> Vec<f32> {
    let (span, scales) = (grid.span(cols), grid::scales(grid, cols, found.codes.len(), &found.params));
    let value = |(i, code): (usize, &u8)| scales[i / span].value(grid.levels_at(i % cols).level(*code));
    found.codes.iter().enumerate().map(value).collect()
}

/// `w - value` of every weight.
pub fn errors(grid: &dyn Grid, w: &[f32], cols: usize, found: &Codes) -> Vec<f32> {
    let mut out = values(grid, cols, found);
    out.iter_mut().zip(w).for_each(|(value, w)| *value = w - *value);
    out
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::calibrate::stats::Gram;
    use crate::codec::all;

    /// Inputs that are mixtures of a few others: a Gram matrix far from diagonal.
    pub fn correlated(n: usize) -> Gram<'static> {
        let mut state = 5u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let mix: Vec<f32> = (0..n * 24).map(|_| next()).collect();
        let own: Vec<f32> = (0..n).map(|_| 0.02 + 0.3 * next().abs()).collect();
        let mut upper = Vec::new();
        for i in 0..n {
            for j in i..n {
                let shared: f32 = (0..24).map(|k| mix[i * 24 + k] * mix[j * 24 + k]).sum();
                upper.push(shared + if i == j { own[i] } else { 0.0 });
            }
        }
        Gram::new(n, upper.into()).unwrap()
    }

    /// The law of the table: on correlated inputs feedback loses less than rounding, in every grid.
    #[test]
    fn feedback_beats_rounding_on_every_grid() {
        let mut seen = 0;
        for codec in all() {
            let Some(grid) = codec.grid() else { continue };
            seen += 1;
            let cols = grid.group(512).max(512);
            let gram = correlated(cols);
            let w: Vec<f32> = (0..8 * cols).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect();
            let importance: Vec<f32> = (0..cols).map(|i| gram.get(i, i)).collect();
            let (feedback, _) = gptq::feedback(&ops::OnCpu, &&gram).unwrap().unwrap();
            let plain = nearest(grid, &w, cols, Some(&importance));
            let solved = solve(grid, &w, cols, Some(&importance), Fit::Importance, &feedback);
            assert_eq!(plain.params, solved.params, "{}: scales are chosen before", codec.name());
            let h = gram.dense();
            let loss = |s: &Codes| cpu::quadratic(&errors(grid, &w, cols, s), h.view());
            let (plain, solved) = (loss(&plain), loss(&solved));
            assert!(solved < 0.7 * plain, "{}: {solved} is not below {plain}", codec.name());
        }
        assert!(seen >= 14);
    }

    /// Grids that are made for one matrix, with columns of unlike widths in another order.
    #[test]
    fn feedback_beats_rounding_on_sorted_columns() {
        for name in ["exl2-4b10+3b-g32", "exl2-8b5g32+4b-g128", "exl2-3b50+2b-g64"] {
            let codec = crate::codec::find(name).unwrap();
            let cols = 512;
            let gram = correlated(cols);
            let w: Vec<f32> = (0..8 * cols).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect();
            let importance: Vec<f32> = (0..cols).map(|i| gram.get(i, i)).collect();
            let joint = codec.joint().unwrap();
            let grid = joint.grid(cols, Some(&importance), &joint.wishes(&w, cols, Some(&importance)));
            let grid = grid.as_ref();
            let (feedback, _) = gptq::feedback(&ops::OnCpu, &&gram).unwrap().unwrap();
            let h = gram.dense();
            let loss = |s: &Codes| cpu::quadratic(&errors(grid, &w, cols, s), h.view());
            let plain = nearest(grid, &w, cols, Some(&importance));
            let solved = solve(grid, &w, cols, Some(&importance), Fit::Importance, &feedback);
            assert_eq!(plain.params, solved.params, "{name}: scales are chosen before");
            assert!(loss(&solved) < 0.7 * loss(&plain), "{name}: {} is not below {}", loss(&solved), loss(&plain));
        }
    }
}

//! On a card: whole matrices, one after the other, which stay there from scales to codes. Scales of grids without a kernel are fitted
//! by the CPU. Where the card is to be exact, factors and what judges them are the CPU's: all codes are too.

use std::sync::OnceLock;

use ndarray::Array2;
use rayon::prelude::*;

use super::Ops;
use crate::calibrate::method::{Fit, clip, clipped, fit, gptq};
use crate::calibrate::stats::Gram;
use crate::codec::grid::{self, Codes, Grid, Levels, Unsearched};
use crate::device::Precision;
use crate::device::cpu;
use crate::device::cuda::ops::codes::{self, Feedback, Fitter, Scales};
use crate::device::cuda::{Buffer, Runner};
use crate::error::Result;

/// Rows that one thread of the CPU takes.
const ROWS: usize = 64;
/// Weights that are handled together, the most.
const WEIGHTS: usize = 64 << 20;
/// Bytes of a weight that are held at once: itself, its errors, what is made of them, its scales and codes, two of either.
const BYTES: usize = 32;
/// Bytes of a pair of columns: the triangle, the matrix that judges, shares of three feedbacks, and some to spare. Where there is not
/// that much, the CPU factors and judges.
const SITE: usize = 24;

pub struct OnCard<'r> {
    runner: &'r dyn Runner,
}

impl<'r> OnCard<'r> {
    pub fn new(runner: &'r dyn Runner) -> OnCard<'r> {
        OnCard { runner }
    }

    fn is_exact(&self) -> bool {
        self.runner.precision() == Precision::Exact
    }
}

pub struct Rows<'r> {
    /// For the CPU.
    w: Vec<f32>,
    there: Buffer<'r>,
    cols: usize,
}

pub struct Found<'r> {
    /// What is stored for the scales, if the CPU fitted them.
    params: Option<Vec<u8>>,
    scales: Scales<'r>,
    codes: Buffer<'r>,
}

pub struct CardGram<'g, 'r> {
    gram: &'g Gram<'g>,
    /// The upper triangle; not where the CPU does what there is to do.
    upper: Option<Buffer<'r>>,
    /// Made when it is first asked for.
    judge: OnceLock<codes::Judge<'r>>,
}

pub enum Judge<'r> {
    Cpu(Array2<f32>),
    Card(codes::Judge<'r>),
}

impl<'r> Ops for OnCard<'r> {
    type Rows = Rows<'r>;
    type Found = Found<'r>;
    type Gram<'g> = CardGram<'g, 'r>;
    type Judge = Judge<'r>;
    type Feedback = Feedback<'r>;

    fn each<T: Sync, R: Send>(&self, items: &[T], run: impl Fn(&T) -> Result<R> + Sync + Send) -> Result<Vec<R>> {
        items.iter().map(run).collect()
    }

    fn rows_at_once(&self, cols: usize) -> Result<usize> {
        let most = (self.runner.room()? / 2 / BYTES).min(WEIGHTS);
        Ok((most / cols.max(1)).max(1).next_multiple_of(ROWS))
    }

    fn put(&self, w: Vec<f32>, cols: usize) -> Result<Rows<'r>> {
        Ok(Rows { there: Buffer::of(self.runner, &w)?, w, cols })
    }

    fn gram<'g>(&self, gram: &'g Gram<'g>) -> Result<CardGram<'g, 'r>> {
        let n = gram.columns();
        let there = !self.is_exact() && n.saturating_mul(n).saturating_mul(SITE) < self.runner.room()?;
        let upper = there.then(|| Buffer::of(self.runner, gram.upper())).transpose()?;
        Ok(CardGram { gram, upper, judge: OnceLock::new() })
    }

    fn judge(&self, of: &CardGram<'_, 'r>) -> Result<Judge<'r>> {
        Ok(match &of.upper {
            None => Judge::Cpu(of.gram.dense()),
            Some(upper) => Judge::Card(codes::Judge::new(upper, of.gram.columns())?),
        })
    }

    fn feedback(&self, of: &CardGram<'_, 'r>, damping: f64) -> Result<Result<Feedback<'r>>> {
        let there = of.upper.as_ref().filter(|_| self.runner.factors());
        match there {
            Some(upper) if Feedback::bytes(of.gram.columns()) < self.runner.room()? => {
                let order = match gptq::order(of.gram) {
                    Ok(order) => order,
                    Err(e) => return Ok(Err(e)),
                };
                let found = Feedback::factored(upper, order, 1.0 + damping)?;
                Ok(found.map_err(|_| gptq::no_factor(damping)))
            }
            _ => match gptq::damped(of.gram, damping) {
                Ok(feedback) => Feedback::upload(self.runner, &feedback).map(Ok),
                Err(e) => Ok(Err(e)),
            },
        }
    }

    fn scaled(&self, feedback: &Feedback<'r>, scale: &[f32]) -> Result<Feedback<'r>> {
        feedback.scaled(scale)
    }

    fn nearest(&self, grid: &dyn Grid, w: &Rows<'r>, importance: Option<&[f32]>) -> Result<Found<'r>> {
        let (params, scales) = self.fit(grid, w, importance)?;
        Ok(Found { codes: scales.nearest(&w.there)?, params, scales })
    }

    fn clipped(
        &self,
        grid: &dyn Grid,
        w: &Rows<'r>,
        importance: Option<&[f32]>,
        of: &CardGram<'_, 'r>,
        scale: Option<&[f32]>,
    ) -> Result<Found<'r>> {
        let facts = grid.facts();
        let fitter = facts.as_ref().and_then(|f| Fitter::new(f, w.cols)).filter(Fitter::cuts);
        let (Some(fitter), Some(upper)) = (fitter, &of.upper) else {
            let found = clipped(grid, &w.w, w.cols, importance, of.gram, scale);
            let (params, scales) = self.uploaded(grid, w, found.params)?;
            return Ok(Found { params, scales, codes: Buffer::of(self.runner, &found.codes)? });
        };
        let judge = match of.judge.get() {
            Some(judge) => judge,
            None => {
                let made = codes::Judge::new(upper, of.gram.columns())?;
                of.judge.get_or_init(|| made)
            }
        };
        let scale = scale.map(|s| Buffer::of(self.runner, s)).transpose()?;
        let losses = |scales: &Scales<'r>, codes: &Buffer<'r>| {
            let errors = scales.errors(&w.there, codes, scale.as_deref())?;
            judge.groups(&errors, grid.group(w.cols))
        };
        let mut best = self.nearest(grid, w, importance)?;
        let least = losses(&best.scales, &best.codes)?;
        for cut in clip::CUTS {
            let scales = fitter.largest(&w.there, cut)?;
            let codes = scales.nearest(&w.there)?;
            let loss = losses(&scales, &codes)?;
            best.scales.keep(&best.codes, &scales, &codes, [&least, &loss])?;
        }
        best.params = None;
        Ok(best)
    }

    fn solve(
        &self,
        grid: &dyn Grid,
        w: &Rows<'r>,
        importance: Option<&[f32]>,
        how: Fit,
        feedback: &Feedback<'r>,
    ) -> Result<Found<'r>> {
        let (params, scales) = match how {
            Fit::Importance => self.fit(grid, w, importance)?,
            Fit::Variances => self.fit(grid, w, Some(&feedback.variances))?,
            Fit::Plain => self.largest(grid, w)?,
        };
        Ok(Found { codes: scales.round_columns(&w.there, feedback)?, params, scales })
    }

    fn loss(
        &self,
        _: &dyn Grid,
        w: &Rows<'r>,
        found: &Found<'r>,
        scale: Option<&[f32]>,
        judge: &Judge<'r>,
    ) -> Result<f64> {
        let scale = scale.map(|s| Buffer::of(self.runner, s)).transpose()?;
        let errors = found.scales.errors(&w.there, &found.codes, scale.as_deref())?;
        match judge {
            Judge::Card(judge) => judge.quadratic(&errors),
            Judge::Cpu(judge) => Ok(cpu::quadratic(&errors.read(w.w.len())?, judge.view())),
        }
    }

    fn codes(&self, grid: &dyn Grid, found: Found<'r>) -> Result<Codes> {
        let known = found.params.map_or_else(|| found.scales.stored(), |params| Ok(Some(params)))?;
        let params = match known {
            Some(params) => params,
            None => {
                let (scales, bytes) = (found.scales.read()?, grid.param_bytes());
                let mut params = vec![0; scales.len() * bytes];
                params.par_chunks_exact_mut(bytes.max(1)).zip(&scales).for_each(|(params, scale)| {
                    grid.adopt(&[*scale], params);
                });
                params
            }
        };
        Ok(Codes { params, codes: found.codes.read(found.codes.bytes())? })
    }
}

/// What is stored for scales, where that is known, and the scales.
type Fitted<'r> = (Option<Vec<u8>>, Scales<'r>);

impl<'r> OnCard<'r> {
    fn fit(&self, grid: &dyn Grid, w: &Rows<'r>, importance: Option<&[f32]>) -> Result<Fitted<'r>> {
        let facts = grid.facts();
        match facts.as_ref().and_then(|f| Fitter::new(f, w.cols)) {
            Some(fitter) => {
                let importance = importance.map(|i| Buffer::of(self.runner, i)).transpose()?;
                Ok((None, fitter.searched(&w.there, importance.as_deref())?))
            }
            None => self.uploaded(grid, w, fitted(grid, w, importance)),
        }
    }

    fn largest(&self, grid: &dyn Grid, w: &Rows<'r>) -> Result<Fitted<'r>> {
        let facts = grid.facts();
        match facts.as_ref().and_then(|f| Fitter::new(f, w.cols)) {
            Some(fitter) => Ok((None, fitter.largest(&w.there, 1.0)?)),
            None => self.uploaded(grid, w, fitted(&Unsearched(grid), w, None)),
        }
    }

    fn uploaded(&self, grid: &dyn Grid, w: &Rows<'r>, params: Vec<u8>) -> Result<Fitted<'r>> {
        let span = grid.span(w.cols);
        let levels: Vec<Levels> = (0..w.cols).step_by(span.max(1)).map(|column| grid.levels_at(column)).collect();
        let all = grid::scales(grid, w.cols, w.w.len(), &params);
        let scales = Scales::upload(self.runner, w.cols, cpu::Scales { levels: &levels, span, all: &all })?;
        Ok((Some(params), scales))
    }
}

/// By all threads of the CPU.
fn fitted(grid: &dyn Grid, w: &Rows<'_>, importance: Option<&[f32]>) -> Vec<u8> {
    let step = ROWS.next_multiple_of(grid.rows()) * w.cols;
    let parts = w.w.par_chunks(step.max(1)).map(|part| fit(grid, part, w.cols, importance).0);
    parts.collect::<Vec<_>>().concat()
}

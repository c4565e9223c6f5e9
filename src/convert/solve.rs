//! Weights whose codes are solved for: site by site, because all readers of a site share one factor of its Gram matrix.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::fold::Folded;
use super::scale::place;
use super::{Factor, Job, Listener, Planned, matrix_rows};
use crate::calibrate::method::{self, FITS, Fit, awq, gptq};
use crate::calibrate::stats::{Gram, STARVED};
use crate::codec::grid::{Codes, MatrixGrid};
use crate::container::{Sink, Tensor, Weight};
use crate::device::cpu::{self, Feedback};
use crate::device::{Columns, Worker};
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// Rows that one job solves.
const ROWS: usize = 64;
/// Rows, spread over the matrix, on which a method is judged before it is used.
const SAMPLE: usize = 64;

/// How one matrix was solved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Solution {
    pub name: String,
    /// Of a stack of experts.
    pub plane: usize,
    /// A row of [`method::METHODS`].
    pub method: Cow<'static, str>,
    /// Mean square error of the output over that of rounding the plain weights; `None`: not tried.
    pub error_ratio: Option<f64>,
    /// On text that was held out; else on the text that it was solved for.
    #[serde(default)]
    pub held_out: bool,
    /// Why feedback was given up, if so.
    pub because: Option<String>,
}

/// One matrix of one output.
struct Target {
    plan: usize,
    output: usize,
    plane: usize,
}

/// Solves and writes what the plans left to it; what was done for each plan, with what was `kept` of a run that was killed.
pub(super) fn run(job: &Job<'_>, kept: Vec<Vec<(usize, Solution)>>, event: Listener<'_>) -> Result<Vec<Vec<Solution>>> {
    let mut out = kept;
    let is_open = |t: &&Target| !job.ledger.is_done(t.plan, t.output, t.plane);
    for ((key, expert), targets) in sites(job) {
        if !targets.iter().any(|t| is_open(&t)) {
            continue;
        }
        let first = &job.plans[targets[0].plan].tensors[targets[0].output];
        let id = &job.request.source.tensors()[first.source].id;
        let stats = job.request.statistics.and_then(|s| s.site(id.layer, &id.role, expert));
        let gram = stats.as_ref().and_then(|s| s.gram.as_ref());
        let starved = stats.as_ref().filter(|s| s.is_starved()).and_then(|s| s.share);
        // What was not seen while solving tells whether it helps.
        let held_out = stats.as_ref().and_then(|s| s.held_out.as_ref());
        let judge = held_out.or(gram).map(Gram::dense);
        let tokens = stats.as_ref().map_or(0, |s| s.tokens);
        let feedback = match (gram, starved) {
            (None, _) => Err(Error::input("no token of the calibration text came here")),
            (Some(_), _) if !job.request.feedback => Ok(None),
            (Some(gram), _) if held_out.is_none() && tokens < gram.columns() as u64 => Err(Error::input(format!(
                "{tokens} tokens of calibration text do not tell {} inputs apart, and none were held out",
                gram.columns()
            ))),
            (Some(_), Some(share)) => Err(Error::input(format!(
                "only {:.2} % of the calibration text's tokens came here, less than {:.1} %",
                share * 100.0,
                STARVED * 100.0
            ))),
            (Some(gram), None) => damped(job, &targets[0], gram, judge.as_ref().filter(|_| held_out.is_some()))
                .at(|| format!("the site {key}"))?
                .map(Some),
        };
        for target in targets.iter().filter(is_open) {
            let judge = (judge.as_ref(), held_out.is_some());
            let solution = solve(job, target, &feedback, gram, judge).at(|| format!("the site {key}"))?;
            job.solved((target.plan, target.output), event);
            out[target.plan].push((target.output, solution));
        }
    }
    Ok(out
        .into_iter()
        .map(|mut plan| {
            plan.sort_by_key(|(output, s)| (*output, s.plane));
            plan.into_iter().map(|(_, s)| s).collect()
        })
        .collect())
}

/// The matrices that are solved for, by site: its name and the expert. Those of a run that was killed are among them, because
/// the first reader of a site decides for all.
fn sites(job: &Job<'_>) -> BTreeMap<(String, Option<u32>), Vec<Target>> {
    let mut out: BTreeMap<_, Vec<Target>> = BTreeMap::new();
    for (p, plan) in job.plans.iter().enumerate() {
        for (output, planned) in plan.tensors.iter().enumerate().filter(|(_, t)| t.solve) {
            let t = &job.request.source.tensors()[planned.source];
            let layer = t.id.layer.map_or_else(String::new, |l| format!("blk.{l:05}."));
            let key = format!("{layer}{}", t.id.role.site().as_ref().unwrap_or(&t.id.role).stem());
            for plane in 0..t.planes() {
                let expert = (t.shape.len() > 2).then_some(plane as u32);
                out.entry((key.clone(), expert)).or_default().push(Target { plan: p, output, plane });
            }
        }
    }
    out
}

/// The feedback of a site, damped as leaves the first of its readers the least error on held-out text. The inner error: no
/// damping gives one.
fn damped(job: &Job<'_>, at: &Target, gram: &Gram<'_>, held_out: Option<&Array2<f32>>) -> Result<Result<Feedback>> {
    let (first, on) = (Matrix::open(job, at)?, job.request.worker);
    let Some(judge) = held_out.filter(|judge| judge.nrows() == first.cols() && gram.columns() == first.cols()) else {
        return Ok(gptq::feedback(gram, on)?.map(|(f, _)| f));
    };
    let (mut best, mut failed): (Option<(f64, Feedback)>, _) = (None, None);
    for damping in gptq::DAMPING {
        match gptq::damped(gram, damping, on)? {
            Err(e) => failed = Some(e),
            Ok(feedback) => {
                let Losses { fed, .. } = first.losses(Some(&on.columns(&first.folded(&feedback))?), judge)?;
                let loss = fed.map_or(f64::INFINITY, |(_, loss)| loss);
                if best.as_ref().is_some_and(|(least, _)| *least <= loss) {
                    break;
                }
                best = Some((loss, feedback));
            }
        }
    }
    Ok(best.map(|(_, f)| f).ok_or_else(|| failed.unwrap_or_else(|| Error::input("it has no factor"))))
}

fn solve(
    job: &Job<'_>,
    at: &Target,
    feedback: &Result<Option<Feedback>>,
    gram: Option<&Gram<'_>>,
    (judge, held_out): (Option<&Array2<f32>>, bool),
) -> Result<Solution> {
    let matrix = Matrix::open(job, at)?;
    // Feedback makes good more than a cut does.
    let clip = gram.filter(|g| matches!(feedback, Ok(None)) && g.columns() == matrix.cols());
    let matrix = Matrix { clip, ..matrix };
    let (t, dims) = (matrix.tensor, matrix.weight.packed.dims);
    let place = || place(t);
    let scaled = matrix.columns().is_some();
    let mut solution = Solution {
        name: t.name.clone(),
        plane: at.plane,
        method: if scaled { "awq" } else { "imatrix" }.into(),
        error_ratio: None,
        held_out,
        because: None,
    };
    let scaled_feedback = feedback.as_ref().ok().and_then(Option::as_ref).map(|f| matrix.folded(f));
    let used = scaled_feedback.as_deref().filter(|f| judge.is_some() && f.order.len() == dims.cols);
    let columns = used.map(|f| job.request.worker.columns(f)).transpose().at(place)?;
    let mut chosen = None;
    match (feedback, judge) {
        (Err(e), _) => solution.because = Some(e.message().to_owned()),
        (Ok(_), Some(judge)) if judge.nrows() != dims.cols => {
            solution.because = Some(format!("it was measured with {} inputs", judge.nrows()));
        }
        (Ok(_), Some(judge)) => {
            let Losses { plain, rounded, fed } = matrix.losses(columns.as_ref(), judge).at(place)?;
            let best = match fed {
                Some((how, fed)) if fed < rounded => {
                    solution.method = if scaled { "awq+gptq" } else { "gptq" }.into();
                    chosen = columns.as_ref().map(|columns| (how, columns));
                    fed
                }
                Some((_, fed)) => {
                    let times = fed / rounded.max(f64::MIN_POSITIVE);
                    let text = if held_out { "held-out text" } else { "the calibration text itself" };
                    solution.because = Some(format!("feedback leaves {times:.2} times the error on {text}"));
                    rounded
                }
                None => rounded,
            };
            solution.error_ratio = Some(best / plain.max(f64::MIN_POSITIVE));
        }
        _ => {}
    }
    matrix.write(&job.sinks[at.plan], at.plane, chosen).at(place)?;
    job.wrote((at.plan, at.output), at.plane, dims.rows, Some(&solution)).at(place)?;
    Ok(solution)
}

/// The grid of a matrix.
fn grid(
    weight: &Weight<'_>,
    planned: &Planned,
    folded: Option<&Folded>,
    factor: Factor,
    importance: Option<&[f32]>,
) -> Result<MatrixGrid> {
    let (codec, Dims { rows, cols }) = (planned.spec.codec, weight.packed.dims);
    if let Some(joint) = codec.joint() {
        let wishes = parts(rows, ROWS).map(|rows| {
            let mut w = vec![0.0; rows.len() * cols];
            matrix_rows(weight, planned, folded, factor, rows, &mut w)?;
            Ok(joint.wishes(&w, cols, importance))
        });
        let wishes: Vec<Vec<f32>> = wishes.collect::<Result<_>>()?;
        return Ok(MatrixGrid::Made(joint.grid(cols, importance, &wishes.concat())));
    }
    let grid = codec.grid().map(MatrixGrid::Format);
    grid.ok_or_else(|| Error::unsupported(format!("{} is no grid", codec.name())))
}

/// `rows`, `step` at a time.
fn parts(rows: usize, step: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    (0..rows.div_ceil(step)).into_par_iter().map(move |i| i * step..rows.min((i + 1) * step))
}

/// The output's error: by rounding the plain weights, by rounding, by feedback on the best scales.
struct Losses {
    plain: f64,
    rounded: f64,
    fed: Option<(Fit, f64)>,
}

/// A matrix, its grid, and what is known of its inputs.
struct Matrix<'a> {
    tensor: &'a Tensor,
    weight: Weight<'a>,
    planned: &'a Planned,
    fold: Option<&'a Folded>,
    factor: Factor,
    grid: MatrixGrid,
    /// Behind the fold.
    importance: Option<Cow<'a, [f32]>>,
    /// Ranges are cut where these inputs gain by it.
    clip: Option<&'a Gram<'a>>,
    on: Worker<'a>,
}

impl<'a> Matrix<'a> {
    fn open(job: &'a Job<'_>, at: &Target) -> Result<Matrix<'a>> {
        let planned = &job.plans[at.plan].tensors[at.output];
        let tensor = &job.request.source.tensors()[planned.source];
        let place = || place(tensor);
        let weight = job.request.source.read(planned.source, at.plane).at(place)?;
        let importance = job.importance((at.plan, at.output), tensor, at.plane)?;
        let fold = job.folds[at.plan].get(&at.output);
        let factor = job.factor((at.plan, at.output), &weight, at.plane);
        let grid = grid(&weight, planned, fold, factor, importance.as_deref()).at(place)?;
        Ok(Matrix { tensor, weight, planned, fold, factor, grid, importance, clip: None, on: job.request.worker })
    }

    fn cols(&self) -> usize {
        self.weight.packed.dims.cols
    }

    /// What its columns are multiplied with.
    fn columns(&self) -> Option<&'a [f32]> {
        self.fold.and_then(|f| f.columns.as_ref()).map(|columns| columns.as_slice())
    }

    /// The feedback that stands behind the fold.
    fn folded<'f>(&self, feedback: &'f Feedback) -> Cow<'f, Feedback> {
        self.columns().map_or(Cow::Borrowed(feedback), |scale| Cow::Owned(feedback.scaled(scale)))
    }

    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let mut w = vec![0.0; rows.len() * self.cols()];
        matrix_rows(&self.weight, self.planned, self.fold, self.factor, rows, &mut w)?;
        Ok(w)
    }

    /// On a sample of rows.
    fn losses(&self, feedback: Option<&Columns<'_>>, judge: &Array2<f32>) -> Result<Losses> {
        let (rows, cols) = (self.weight.packed.dims.rows, self.cols());
        let sample: Vec<usize> = (0..rows.min(SAMPLE)).map(|i| i * rows / rows.min(SAMPLE)).collect();
        let mut w = Vec::with_capacity(sample.len() * cols);
        for row in sample {
            w.extend(self.rows(row..row + 1)?);
        }
        let columns = self.columns();
        let loss = |w: &[f32], found: Codes, scale: Option<&[f32]>| {
            let mut errors = method::errors(self.grid.get(), w, cols, &found);
            if let Some(scale) = scale {
                awq::columns_back(&mut errors, scale);
            }
            cpu::quadratic(&errors, judge.view())
        };
        let plain = || {
            let scale = columns?;
            let inverse: Vec<f32> = scale.iter().map(|s| 1.0 / s).collect();
            let mut w = w.clone();
            awq::columns_back(&mut w, scale);
            let importance = self.importance.as_deref().map(|i| awq::importance(i, Some(&inverse)));
            let solved = method::nearest(self.grid.get(), &w, cols, importance.as_deref());
            Some(loss(&w, solved, None))
        };
        let rounded = || loss(&w, self.rounded(&w), columns);
        let fed = || {
            let loss = |how| {
                let solved = feedback.map(|f| self.solved(&w, how, f)).transpose()?;
                Ok(solved.map(|codes| (how, loss(&w, codes, columns))))
            };
            let all: Vec<Option<(Fit, f64)>> = FITS.into_par_iter().map(loss).collect::<Result<_>>()?;
            Ok::<_, Error>(all.into_iter().flatten().min_by(|a, b| a.1.total_cmp(&b.1)))
        };
        let (plain, (rounded, fed)) = rayon::join(plain, || rayon::join(rounded, fed));
        Ok(Losses { plain: plain.unwrap_or(rounded), rounded, fed: fed? })
    }

    /// Chooses all codes and writes them: row by row, or at once where words span rows.
    fn write(&self, sink: &Sink, plane: usize, feedback: Option<(Fit, &Columns<'_>)>) -> Result<()> {
        let (Dims { rows, cols }, codec) = (self.weight.packed.dims, self.planned.spec.codec);
        let parts = parts(rows, ROWS.next_multiple_of(self.grid.get().rows()));
        if self.planned.whole() {
            let parts: Vec<Codes> = parts.map(|rows| self.codes(&self.rows(rows)?, feedback)).collect::<Result<_>>()?;
            let mut all = Codes::default();
            for part in parts {
                all.params.extend(part.params);
                all.codes.extend(part.codes);
            }
            for (part, bytes) in
                self.grid.get().pack(self.weight.packed.dims, &all.params, &all.codes).iter().enumerate()
            {
                self.planned.write(sink, plane, part, 0, bytes)?;
            }
            return Ok(());
        }
        let row_bytes = codec.bytes(Dims::new(1, cols))?;
        parts.try_for_each(|rows| {
            let w = self.rows(rows.clone())?;
            let dims = Dims::new(rows.len(), cols);
            let own = codec.block().and_then(|b| b.encode).filter(|_| !self.planned.on_grid() && self.clip.is_none());
            let bytes = match (feedback, own) {
                // Without feedback the format's own encoder does the same, faster.
                (None, Some(encode)) => {
                    let mut out = vec![0; row_bytes * rows.len()];
                    self.on.encode(codec, encode, &w, cols, self.importance.as_deref(), &mut out)?;
                    out
                }
                _ => {
                    let found = self.codes(&w, feedback)?;
                    self.grid.get().pack(dims, &found.params, &found.codes).concat()
                }
            };
            self.planned.write(sink, plane, 0, rows.start * row_bytes, &bytes)
        })
    }

    fn codes(&self, w: &[f32], feedback: Option<(Fit, &Columns<'_>)>) -> Result<Codes> {
        match feedback {
            Some((how, columns)) => self.solved(w, how, columns),
            None => Ok(self.rounded(w)),
        }
    }

    /// Every weight by itself.
    fn rounded(&self, w: &[f32]) -> Codes {
        let (grid, cols, importance) = (self.grid.get(), self.cols(), self.importance.as_deref());
        match self.clip {
            Some(gram) => method::clipped(grid, w, cols, importance, gram, self.columns()),
            None => method::nearest(grid, w, cols, importance),
        }
    }

    fn solved(&self, w: &[f32], how: Fit, columns: &Columns<'_>) -> Result<Codes> {
        method::solve_on(columns, self.grid.get(), w, self.cols(), self.importance.as_deref(), how)
    }
}

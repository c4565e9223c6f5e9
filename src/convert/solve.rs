//! Weights whose codes are solved for: site by site, because all readers of a site share one factor of its Gram matrix.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::fold::Folded;
use super::rows::{check_held, decoded_rows, has_large};
use super::scale::place;
use super::{Factor, Job, Listener, Planned, matrix_rows, steps};
use crate::calibrate::method::ops::Ops;
use crate::calibrate::method::{FITS, Fit, awq, gptq, values};
use crate::calibrate::stats::{STARVED, SiteStats};
use crate::codec::grid::{Codes, MatrixGrid};
use crate::container::{Sink, Tensor, Weight};
use crate::device::Worker;
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// Rows that one thread decodes, and packs.
const ROWS: usize = 64;
/// Rows, spread over the matrix, on which a method is judged before it is used.
const SAMPLE: usize = 64;

/// How one matrix was solved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Solution {
    pub name: String,
    /// Of a stack of experts.
    pub plane: usize,
    /// A row of [`METHODS`](crate::calibrate::method::METHODS).
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
pub(super) fn run<O: Ops>(
    job: &Job<'_>,
    on: &O,
    kept: Vec<Vec<(usize, Solution)>>,
    event: Listener<'_>,
) -> Result<Vec<Vec<Solution>>> {
    let mut out = kept;
    let is_open = |t: &&Target| !job.ledger.is_done(t.plan, t.output, t.plane);
    for ((key, expert), targets) in sites(job) {
        if !targets.iter().any(|t| is_open(&t)) {
            continue;
        }
        let first = &job.plans[targets[0].plan].tensors[targets[0].output];
        let id = &job.request.source.tensors()[first.source].id;
        let stats = job.request.statistics.and_then(|s| s.site(id.layer, &id.role, expert));
        let site = Site::new(job, on, stats.as_ref(), &targets[0]).at(|| format!("the site {key}"))?;
        for target in targets.iter().filter(is_open) {
            let solution = site.solve(job, target).at(|| format!("the site {key}"))?;
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

/// What all matrices that read one activation share.
struct Site<'a, O: Ops> {
    on: &'a O,
    columns: usize,
    gram: Option<O::Gram<'a>>,
    /// What was not seen while solving tells whether it helps.
    held_out: bool,
    judge: Option<O::Judge>,
    /// Why there is none; `None`: none is asked for.
    feedback: Result<Option<O::Feedback>>,
}

impl<'a, O: Ops> Site<'a, O> {
    /// `first` of its readers decides for all.
    fn new(job: &Job<'_>, on: &'a O, stats: Option<&'a SiteStats<'a>>, first: &Target) -> Result<Site<'a, O>> {
        let Some((stats, seen)) = stats.and_then(|s| Some((s, s.gram.as_ref()?))) else {
            let feedback = Err(Error::input("no token of the calibration text came here"));
            return Ok(Site { on, columns: 0, gram: None, held_out: false, judge: None, feedback });
        };
        let (columns, gram) = (seen.columns(), on.gram(seen)?);
        let judge = match &stats.held_out {
            Some(held_out) => on.judge(&on.gram(held_out)?)?,
            None => on.judge(&gram)?,
        };
        let held_out = stats.held_out.is_some();
        let feedback = if !job.request.feedback {
            Ok(None)
        } else if !held_out && stats.tokens < columns as u64 {
            Err(Error::input(format!(
                "{} tokens of calibration text do not tell {columns} inputs apart, and none were held out",
                stats.tokens
            )))
        } else if let Some(share) = stats.share.filter(|_| stats.is_starved()) {
            Err(Error::input(format!(
                "only {:.2} % of the calibration text's tokens came here, less than {:.1} %",
                share * 100.0,
                STARVED * 100.0
            )))
        } else {
            let first = Matrix::open(job, first)?;
            let judge = Some(&judge).filter(|_| held_out && columns == first.cols());
            damped(on, &gram, judge, &first)?.map(Some)
        };
        Ok(Site { on, columns, gram: Some(gram), held_out, judge: Some(judge), feedback })
    }

    fn solve(&self, job: &Job<'_>, at: &Target) -> Result<Solution> {
        let (on, matrix) = (self.on, Matrix::open(job, at)?);
        let (t, dims) = (matrix.tensor, matrix.weight.packed.dims);
        let place = || place(t);
        let scaled = matrix.columns().is_some();
        let mut solution = Solution {
            name: t.name.clone(),
            plane: at.plane,
            method: if scaled { "awq" } else { "imatrix" }.into(),
            error_ratio: None,
            held_out: self.held_out,
            because: None,
        };
        let fits = self.columns == dims.cols;
        // Feedback makes good more than a cut does.
        let clip = self.gram.as_ref().filter(|_| fits && matches!(self.feedback, Ok(None)));
        let plain = self.feedback.as_ref().ok().and_then(Option::as_ref).filter(|_| fits);
        let folded = plain.zip(matrix.columns()).map(|(f, scale)| on.scaled(f, scale)).transpose().at(place)?;
        let feedback = folded.as_ref().or(plain);
        let mut chosen = None;
        match (&self.feedback, &self.judge) {
            (Err(e), _) => solution.because = Some(e.message().to_owned()),
            (Ok(_), Some(_)) if !fits => {
                solution.because = Some(format!("it was measured with {} inputs", self.columns));
            }
            (Ok(_), Some(judge)) => {
                let Losses { plain, rounded, fed } = matrix.losses(on, feedback, clip, judge).at(place)?;
                let best = match fed {
                    Some((how, fed)) if fed < rounded => {
                        solution.method = if scaled { "awq+gptq" } else { "gptq" }.into();
                        chosen = feedback.map(|feedback| (how, feedback));
                        fed
                    }
                    Some((_, fed)) => {
                        let times = fed / rounded.max(f64::MIN_POSITIVE);
                        let text = if self.held_out { "held-out text" } else { "the calibration text itself" };
                        solution.because = Some(format!("feedback leaves {times:.2} times the error on {text}"));
                        rounded
                    }
                    None => rounded,
                };
                solution.error_ratio = Some(best / plain.max(f64::MIN_POSITIVE));
            }
            _ => {}
        }
        let choice = Choice { feedback: chosen, clip };
        matrix.write(on, &job.sinks[at.plan], at.plane, &choice).at(place)?;
        job.wrote((at.plan, at.output), at.plane, dims.rows, Some(&solution)).at(place)?;
        Ok(solution)
    }
}

/// The feedback of a site, damped as leaves the first of its readers the least error on held-out text. The inner error: no
/// damping gives one.
fn damped<O: Ops>(
    on: &O,
    gram: &O::Gram<'_>,
    judge: Option<&O::Judge>,
    first: &Matrix<'_>,
) -> Result<Result<O::Feedback>> {
    let Some(judge) = judge else { return Ok(gptq::feedback(on, gram)?.map(|(f, _)| f)) };
    let sample = on.put(first.sample()?, first.cols())?;
    let (mut best, mut failed): (Option<(f64, O::Feedback)>, _) = (None, None);
    for damping in gptq::DAMPING {
        match on.feedback(gram, damping)? {
            Err(e) => failed = Some(e),
            Ok(feedback) => {
                let scaled = first.columns().map(|scale| on.scaled(&feedback, scale)).transpose()?;
                let (_, loss) = first.fed(on, &sample, scaled.as_ref().unwrap_or(&feedback), judge)?;
                if best.as_ref().is_some_and(|(least, _)| *least <= loss) {
                    break;
                }
                best = Some((loss, feedback));
            }
        }
    }
    Ok(best.map(|(_, f)| f).ok_or_else(|| failed.unwrap_or_else(|| Error::input("it has no factor"))))
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
        let wishes = parts_of(0..rows, ROWS).map(|rows| {
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
fn parts_of(rows: Range<usize>, step: usize) -> impl IndexedParallelIterator<Item = Range<usize>> {
    let parts = rows.len().div_ceil(step);
    (0..parts).into_par_iter().map(move |i| rows.start + i * step..rows.end.min(rows.start + (i + 1) * step))
}

/// The output's error: by rounding the plain weights, by rounding, by feedback on the best scales.
struct Losses {
    plain: f64,
    rounded: f64,
    fed: Option<(Fit, f64)>,
}

/// How codes are to be chosen.
struct Choice<'c, 'g, O: Ops> {
    /// On which scales; `None`: every weight by itself.
    feedback: Option<(Fit, &'c O::Feedback)>,
    /// Ranges are cut where these inputs gain by it.
    clip: Option<&'c O::Gram<'g>>,
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
    worker: Worker<'a>,
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
        Ok(Matrix { tensor, weight, planned, fold, factor, grid, importance, worker: job.request.worker })
    }

    fn cols(&self) -> usize {
        self.weight.packed.dims.cols
    }

    /// What its columns are multiplied with.
    fn columns(&self) -> Option<&'a [f32]> {
        self.fold.and_then(|f| f.columns.as_ref()).map(|columns| columns.as_slice())
    }

    fn rows(&self, rows: Range<usize>) -> Result<Vec<f32>> {
        let cols = self.cols();
        let mut w = vec![0.0; rows.len() * cols];
        w.par_chunks_mut(ROWS * cols.max(1)).enumerate().try_for_each(|(i, w)| {
            let from = rows.start + i * ROWS;
            matrix_rows(&self.weight, self.planned, self.fold, self.factor, from..from + w.len() / cols.max(1), w)
        })?;
        Ok(w)
    }

    /// Rows on which it is judged.
    fn sample(&self) -> Result<Vec<f32>> {
        let rows = self.weight.packed.dims.rows;
        let count = rows.min(SAMPLE);
        let mut w = Vec::with_capacity(count * self.cols());
        for row in (0..count).map(|i| i * rows / count) {
            w.extend(self.rows(row..row + 1)?);
        }
        Ok(w)
    }

    fn losses<O: Ops>(
        &self,
        on: &O,
        feedback: Option<&O::Feedback>,
        clip: Option<&O::Gram<'_>>,
        judge: &O::Judge,
    ) -> Result<Losses> {
        let (grid, cols, columns) = (self.grid.get(), self.cols(), self.columns());
        let sample = self.sample()?;
        let w = on.put(sample.clone(), cols)?;
        let found = self.found(on, &w, &Choice { feedback: None, clip })?;
        let rounded = on.loss(grid, &w, &found, columns, judge)?;
        let plain = match columns {
            None => rounded,
            Some(scale) => {
                let inverse: Vec<f32> = scale.iter().map(|s| 1.0 / s).collect();
                let importance = self.importance.as_deref().map(|i| awq::importance(i, Some(&inverse)));
                let mut w = sample;
                awq::columns_back(&mut w, scale);
                let w = on.put(w, cols)?;
                on.loss(grid, &w, &on.nearest(grid, &w, importance.as_deref())?, None, judge)?
            }
        };
        let fed = feedback.map(|f| self.fed(on, &w, f, judge)).transpose()?;
        Ok(Losses { plain, rounded, fed })
    }

    /// The fit that leaves the least error under feedback, and the error.
    fn fed<O: Ops>(&self, on: &O, w: &O::Rows, feedback: &O::Feedback, judge: &O::Judge) -> Result<(Fit, f64)> {
        let (grid, importance) = (self.grid.get(), self.importance.as_deref());
        let all = on.each(&FITS, |how| {
            let found = on.solve(grid, w, importance, *how, feedback)?;
            Ok((*how, on.loss(grid, w, &found, self.columns(), judge)?))
        })?;
        let best = all.into_iter().min_by(|a, b| a.1.total_cmp(&b.1));
        best.ok_or_else(|| Error::unsupported("there is no fit of scales"))
    }

    fn found<O: Ops>(&self, on: &O, w: &O::Rows, choice: &Choice<'_, '_, O>) -> Result<O::Found> {
        let (grid, importance) = (self.grid.get(), self.importance.as_deref());
        match (choice.feedback, choice.clip) {
            (Some((how, feedback)), _) => on.solve(grid, w, importance, how, feedback),
            (None, Some(gram)) => on.clipped(grid, w, importance, gram, self.columns()),
            (None, None) => on.nearest(grid, w, importance),
        }
    }

    /// Chooses all codes and writes them: rows after rows, or at once where words span rows.
    fn write<O: Ops>(&self, on: &O, sink: &Sink, plane: usize, choice: &Choice<'_, '_, O>) -> Result<()> {
        let (Dims { rows, cols }, codec, grid) = (self.weight.packed.dims, self.planned.spec.codec, self.grid.get());
        let step = on.rows_at_once(cols)?.next_multiple_of(grid.rows());
        let parts: Vec<Range<usize>> = steps(0..rows, step).collect();
        let codes = |rows: &Range<usize>| {
            let w = self.rows(rows.clone())?;
            let large = has_large(&w).then(|| w.clone());
            let w = on.put(w, cols)?;
            let found = on.codes(grid, self.found(on, &w, choice)?)?;
            check_held(codec, &large.unwrap_or_default(), cols, rows.start, || values(grid, cols, &found))?;
            Ok(found)
        };
        if self.planned.whole() {
            let all = Codes::joined(on.each(&parts, codes)?);
            for (part, bytes) in grid.pack(self.weight.packed.dims, &all.params, &all.codes).iter().enumerate() {
                self.planned.write(sink, plane, part, 0, bytes)?;
            }
            return Ok(());
        }
        let row_bytes = codec.bytes(Dims::new(1, cols))?;
        let own = codec
            .block()
            .and_then(|b| b.encode)
            .filter(|_| !self.planned.on_grid() && choice.feedback.is_none() && choice.clip.is_none());
        let written = on.each(&parts, |part| {
            let write =
                |rows: Range<usize>, bytes: &[u8]| self.planned.write(sink, plane, 0, rows.start * row_bytes, bytes);
            // Without feedback the format's own encoder does the same, faster.
            if let Some(encode) = own {
                let (w, mut out) = (self.rows(part.clone())?, vec![0; row_bytes * part.len()]);
                self.worker.encode(codec, encode, &w, cols, self.importance.as_deref(), &mut out)?;
                check_held(codec, &w, cols, part.start, || decoded_rows(codec, &out, cols))?;
                return write(part.clone(), &out);
            }
            let found = codes(part)?;
            let params = found.params.len() / part.len().max(1);
            parts_of(part.clone(), ROWS.next_multiple_of(grid.rows())).try_for_each(|rows| {
                let from = rows.start - part.start..rows.end - part.start;
                let own = &found.params[from.start * params..from.end * params];
                let codes = &found.codes[from.start * cols..from.end * cols];
                write(rows.clone(), &grid.pack(Dims::new(rows.len(), cols), own, codes).concat())
            })
        });
        written.map(drop)
    }
}

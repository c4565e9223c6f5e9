//! Weights whose codes are solved for: site by site, because all readers of a site share one factor of its Gram matrix.

use std::collections::BTreeMap;
use std::ops::Range;

use rayon::prelude::*;

use super::{Job, Progress, check_finite, moved};
use crate::calibrate::method::{self, gptq};
use crate::calibrate::stats::Gram;
use crate::codec::{Codec, Grid};
use crate::container::Weight;
use crate::device::cpu::Feedback;
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// Rows that one job solves.
const ROWS: usize = 64;
/// Rows, spread over the matrix, on which a method is judged before it is used.
const SAMPLE: usize = 64;

/// How one matrix was solved.
#[derive(Clone, Debug, PartialEq, serde::Serialize)]
pub struct Solution {
    pub name: String,
    /// Of a stack of experts.
    pub plane: usize,
    /// A row of [`method::METHODS`].
    pub method: &'static str,
    /// Mean square error of the output, by the method over by `imatrix`, on rows of the held-out split; `None`: not tried.
    pub error_ratio: Option<f64>,
    /// Why it fell back, if so.
    pub because: Option<String>,
}

/// One matrix of one output.
struct Target {
    plan: usize,
    output: usize,
    plane: usize,
}

/// Solves and writes what the plans left to it; what was done, for each plan.
pub(super) fn run(job: &Job<'_>, progress: Progress<'_>) -> Result<Vec<Vec<Solution>>> {
    let mut out: Vec<Vec<(usize, Solution)>> = vec![Vec::new(); job.plans.len()];
    for ((key, expert), targets) in sites(job) {
        let first = &job.plans[targets[0].plan].tensors[targets[0].output];
        let id = &job.request.source.tensors()[first.source].id;
        let stats = job.request.statistics.and_then(|s| s.site(id.layer, &id.role, expert));
        let gram = stats.as_ref().and_then(|s| s.gram.as_ref());
        let feedback = match gram {
            Some(gram) => gptq::feedback(gram).map(|(f, _)| f),
            None => Err(Error::input("no token of the calibration text came here")),
        };
        // What was not seen while solving tells whether it helps.
        let judge = stats.as_ref().and_then(|s| s.held_out.as_ref()).or(gram);
        for target in targets {
            let solution = solve(job, &target, &feedback, judge).at(|| format!("the site {key}"))?;
            let t = &job.request.source.tensors()[job.plans[target.plan].tensors[target.output].source];
            progress((t.bytes / t.planes().max(1)) as u64);
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

/// The matrices to be solved for, by site: its name and the expert.
fn sites(job: &Job<'_>) -> BTreeMap<(String, Option<u32>), Vec<Target>> {
    let mut out: BTreeMap<_, Vec<Target>> = BTreeMap::new();
    for (plan, p) in job.plans.iter().enumerate() {
        for (output, planned) in p.tensors.iter().enumerate().filter(|(_, t)| t.solve) {
            let t = &job.request.source.tensors()[planned.source];
            let layer = t.id.layer.map_or_else(String::new, |l| format!("blk.{l:05}."));
            let key = format!("{layer}{}", t.id.role.site().as_ref().unwrap_or(&t.id.role).stem());
            for plane in 0..t.planes() {
                let expert = (t.shape.len() > 2).then_some(plane as u32);
                out.entry((key.clone(), expert)).or_default().push(Target { plan, output, plane });
            }
        }
    }
    out
}

fn solve(job: &Job<'_>, at: &Target, feedback: &Result<Feedback>, judge: Option<&Gram<'_>>) -> Result<Solution> {
    let planned = &job.plans[at.plan].tensors[at.output];
    let t = &job.request.source.tensors()[planned.source];
    let place = || format!("{} ({} in {})", t.name, t.source, t.file);
    let weight = job.request.source.read(planned.source, at.plane).at(place)?;
    let codec = planned.spec.codec;
    let importance = job.importance(planned, t, at.plane)?;
    let grid = codec.grid().ok_or_else(|| Error::unsupported(format!("{} is no grid", codec.name())).at(place()))?;
    let cols = weight.packed.dims.cols;
    let matrix = Matrix { weight: &weight, planned, grid, cols, importance };

    let (mut chosen, mut ratio, mut because) = (None, None, None);
    match (feedback, judge) {
        (Ok(feedback), Some(judge)) if feedback.order.len() == cols => {
            let found = matrix.ratio(feedback, judge);
            ratio = Some(found);
            match found < 1.0 {
                true => chosen = Some(feedback),
                false => because = Some(format!("the error on held-out text is {found:.2} times that of imatrix")),
            }
        }
        (Err(e), _) => because = Some(e.message().to_owned()),
        _ => because = Some("it was measured with another number of inputs".to_owned()),
    }
    let rows = weight.packed.dims.rows;
    let row_bytes = planned.bytes / (t.planes() * rows).max(1);
    (0..rows.div_ceil(ROWS)).into_par_iter().try_for_each(|i| {
        let rows = i * ROWS..rows.min((i + 1) * ROWS);
        let packed = matrix.encode(rows.clone(), chosen, codec).at(place)?;
        job.writers[at.plan].write_at(at.output, ((at.plane * t.dims().rows + rows.start) * row_bytes) as u64, &packed)
    })?;
    let method = if chosen.is_some() { "gptq" } else { "imatrix" };
    Ok(Solution { name: t.name.clone(), plane: at.plane, method, error_ratio: ratio, because })
}

/// A matrix, its grid, and what is known of its inputs.
struct Matrix<'a> {
    weight: &'a Weight<'a>,
    planned: &'a super::Planned,
    grid: &'a dyn Grid,
    cols: usize,
    importance: Option<&'a [f32]>,
}

impl Matrix<'_> {
    fn rows(&self, rows: Range<usize>) -> Vec<f32> {
        let mut w = vec![0.0; rows.len() * self.cols];
        moved(self.weight, self.planned, rows, &mut w);
        w
    }

    /// The output's error by feedback over that by rounding, on a sample of rows.
    fn ratio(&self, feedback: &Feedback, judge: &Gram<'_>) -> f64 {
        let rows = self.weight.packed.dims.rows;
        let sample: Vec<usize> = (0..rows.min(SAMPLE)).map(|i| i * rows / rows.min(SAMPLE)).collect();
        let w: Vec<f32> = sample.iter().flat_map(|r| self.rows(*r..r + 1)).collect();
        let errors: Vec<f64> = [None, Some(feedback)]
            .into_par_iter()
            .map(|feedback| {
                let solved = self.solve(&w, feedback);
                method::output_error(&solved.errors(self.grid, &w), judge)
            })
            .collect();
        errors[1] / errors[0].max(f64::MIN_POSITIVE)
    }

    fn solve(&self, w: &[f32], feedback: Option<&Feedback>) -> method::Solved {
        match feedback {
            Some(feedback) => method::solve(self.grid, w, self.cols, self.importance, feedback),
            None => method::nearest(self.grid, w, self.cols, self.importance),
        }
    }

    fn encode(&self, rows: Range<usize>, feedback: Option<&Feedback>, codec: &dyn Codec) -> Result<Vec<u8>> {
        let dims = Dims::new(rows.len(), self.cols);
        let w = self.rows(rows.clone());
        check_finite(&w, self.cols, rows.start)?;
        // Without feedback the format's own encoder does the same, faster.
        if let (None, Some(encode)) = (feedback, codec.block().and_then(|b| b.encode)) {
            let mut out = vec![0; codec.bytes(dims)?];
            (encode.run)(&w, self.cols, self.importance, &mut out);
            return Ok(out);
        }
        let solved = self.solve(&w, feedback);
        Ok(self.grid.pack(dims, &solved.params, &solved.codes).concat())
    }
}

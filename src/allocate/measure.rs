//! What each weight would cost in each format. The error of its outputs is computed for every format from a sample of its rows;
//! what an error does to the model's answers is measured by running the model with that weight rounded, of models of many layers
//! for some of them: between two layers that were run it changes little.

use std::collections::{BTreeMap, HashMap};

use ndarray::Array2;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::choices::{Choices, Combination, Format, Group};
use super::damage::{Variant, damages};
use super::overlay::Patch;
use crate::arch::Role;
use crate::calibrate::imatrix::Imatrix;
use crate::calibrate::method::ops::OnCpu;
use crate::calibrate::method::{self, Fit, gptq};
use crate::calibrate::stats::Statistics;
use crate::codec::{self, Codec, Grid, Importance, float};
use crate::container::{Checkpoint, Tensor, Weight};
use crate::device::cpu::{self, Feedback};
use crate::error::{At, Error, Result};
use crate::eval::protocol::Window;

/// A format on offer for a weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Offer {
    pub codec: String,
    pub bytes: u64,
    /// Mean KL divergence that it is predicted to cause, nats a token.
    pub kld: f64,
}

/// One weight.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measured {
    pub name: String,
    /// The format that it was run with, and the divergence that this caused.
    pub rounded_to: String,
    pub kld: f64,
    /// It was not run: that is what its neighbours of the same role tell.
    #[serde(default)]
    pub inferred: bool,
    pub offers: Vec<Offer>,
}

/// All weights of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    /// See [`crate::calibrate::fingerprint`].
    pub model_hash: String,
    /// Tokens that were scored.
    pub tokens: usize,
    pub weights: Vec<Measured>,
}

/// What is measured.
pub struct Job<'a> {
    pub source: &'a dyn Checkpoint,
    pub statistics: Option<&'a Statistics>,
    pub ladder: &'a [&'static dyn Codec],
    /// Weights whose format is to be chosen, by index.
    pub open: &'a [usize],
    /// Bits a weight at which weights are run.
    pub bits: f64,
    /// Whether codes will be chosen against each other's errors.
    pub feedback: bool,
    pub windows: &'a [Window],
}

/// Rows, spread over a matrix, from which errors are computed.
const SAMPLE: usize = 48;
/// Matrices of a stack that stand for all of them.
const PLANES: usize = 4;

/// Weights that are run, at the most, and of each role at the least.
const RUNS: usize = 64;
const OF_A_ROLE: usize = 4;

/// Measures; `progress` is called twice with every weight. Runs in the caller's rayon pool.
pub fn measure(job: &Job<'_>, model_hash: String, progress: &dyn Fn(u64)) -> Result<Measurement> {
    let imatrix = job.statistics.map(Statistics::imatrix);
    let weigher = Weigher { job, imatrix: imatrix.as_ref() };
    let costs = weigher.costs(progress)?;
    let tensors = job.source.tensors();
    let mut roles: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    (0..costs.len()).for_each(|i| roles.entry(tensors[costs[i].tensor].id.role.stem()).or_default().push(i));
    let of_a_role = (RUNS / roles.len().max(1)).max(OF_A_ROLE);
    let run: Vec<usize> = roles.values().flat_map(|all| spread(all, of_a_role)).collect();
    progress((costs.len() - run.len()) as u64);
    let variants: Vec<Variant> = run
        .iter()
        .map(|i| costs[*i].tensor)
        .map(|t| Variant { name: tensors[t].name.clone(), layer: tensors[t].id.layer, tensors: vec![t] })
        .collect();
    let make = |v: usize| Ok(HashMap::from([(costs[run[v]].tensor, weigher.rounded(&costs[run[v]])?)]));
    let klds = damages(job.source, job.windows, &variants, &make, progress)?;
    let found: HashMap<usize, f64> = run.iter().copied().zip(klds).collect();
    // Second order: the divergence grows with the square of the change, as the error does.
    let slope = |i: usize| found.get(&i).map(|kld| kld.max(0.0) / costs[i].run_error).filter(|s| s.is_finite());
    let mut slopes = vec![0.0; costs.len()];
    for all in roles.values() {
        let known: Vec<Option<f64>> = all.iter().map(|i| slope(*i)).collect();
        all.iter().zip(between(&known)).for_each(|(i, slope)| slopes[*i] = slope);
    }
    let measured = |(i, c): (usize, &Cost)| {
        let offer = |o: &(&'static dyn Codec, u64, f64)| Offer {
            codec: o.0.name().to_owned(),
            bytes: o.1,
            kld: slopes[i] * o.2,
        };
        Measured {
            name: tensors[c.tensor].name.clone(),
            rounded_to: c.run_with.name().to_owned(),
            kld: found.get(&i).copied().unwrap_or(slopes[i] * c.run_error),
            inferred: !found.contains_key(&i),
            offers: c.offers.iter().map(offer).collect(),
        }
    };
    let tokens = job.windows.iter().map(|w| w.scored.len()).sum();
    let weights = costs.iter().enumerate().map(measured).collect();
    Ok(Measurement { model_hash, tokens, weights })
}

/// At most `most` of them, at least two, the first and the last among them and the rest evenly between.
fn spread(all: &[usize], most: usize) -> Vec<usize> {
    let n = most.max(2).min(all.len());
    (0..n).map(|i| all[i * (all.len() - 1) / (n - 1).max(1)]).collect()
}

/// What is known, and between it what lies between: of positive numbers on a scale of ratios. Beyond the last that is known it goes on as
/// it is there.
fn between(known: &[Option<f64>]) -> Vec<f64> {
    let places: Vec<(usize, f64)> = known.iter().enumerate().filter_map(|(i, x)| Some((i, (*x)?))).collect();
    let at = |i: usize| {
        let before = places.iter().rev().find(|(p, _)| *p <= i);
        let after = places.iter().find(|(p, _)| *p >= i);
        match (before, after) {
            (Some((p, a)), Some((q, b))) if q > p => {
                let part = (i - p) as f64 / (q - p) as f64;
                let ratios = *a > 0.0 && *b > 0.0;
                if ratios { a * (b / a).powf(part) } else { a + (b - a) * part }
            }
            (Some((_, x)), _) | (_, Some((_, x))) => *x,
            _ => 0.0,
        }
    };
    (0..known.len()).map(at).collect()
}

impl Measurement {
    /// Keeps these weights, and offers of these formats.
    ///
    /// Errors: a weight that was not measured, or with none of the formats.
    pub fn only(&mut self, names: &[&str], ladder: &[&'static dyn Codec]) -> Result<()> {
        self.weights.retain(|w| names.contains(&w.name.as_str()));
        for weight in &mut self.weights {
            weight.offers.retain(|o| ladder.iter().any(|c| c.name() == o.codec));
        }
        let measured = |name: &str| self.weights.iter().any(|w| w.name == name && !w.offers.is_empty());
        match names.iter().find(|name| !measured(name)) {
            None => Ok(()),
            Some(name) => Err(Error::request("it was not measured with the formats of this recipe").at(*name)),
        }
    }

    /// What there is to choose from. `alike`: weights that must have one format, by name.
    pub fn choices(&self, alike: &dyn Fn(&str) -> String) -> Choices {
        let mut together: BTreeMap<String, Vec<&Measured>> = BTreeMap::new();
        self.weights.iter().for_each(|w| together.entry(alike(&w.name)).or_default().push(w));
        let group = |(name, members): (String, Vec<&Measured>)| {
            let combination = |offer: &Offer| {
                let same = members.iter().map(|m| Some((m, m.offers.iter().find(|o| o.codec == offer.codec)?)));
                let same: Vec<(&&Measured, &Offer)> = same.collect::<Option<_>>()?;
                let format = |(m, o): &(&&Measured, &Offer)| Format {
                    weight: m.name.clone(),
                    codec: o.codec.clone(),
                    bytes: o.bytes,
                };
                let loss = same.iter().map(|(_, o)| o.kld).sum();
                Some(Combination { formats: same.iter().map(format).collect(), loss })
            };
            Group { name, combinations: members[0].offers.iter().filter_map(combination).collect() }
        };
        let groups = together.into_iter().map(group).collect();
        Choices { groups, by: format!("measuring {} scored tokens", self.tokens), divergences: true }
    }
}

/// One weight: errors of its outputs, in units of its own.
struct Cost {
    tensor: usize,
    offers: Vec<(&'static dyn Codec, u64, f64)>,
    run_with: &'static dyn Codec,
    run_error: f64,
}

/// By what errors are judged.
enum Judge {
    /// See [`Gram::dense`].
    Gram(Array2<f32>),
    MeanSquares(Vec<f32>),
    Nothing,
}

impl Judge {
    fn error(&self, errors: &[f32], cols: usize) -> f64 {
        let square = |(e, weight): (&f32, f32)| f64::from(*e) * f64::from(*e) * f64::from(weight);
        match self {
            Judge::Gram(gram) => cpu::quadratic(errors, gram.view()),
            Judge::MeanSquares(weights) => errors
                .chunks_exact(cols)
                .map(|row| row.iter().zip(weights.iter().copied()).map(square).sum::<f64>())
                .sum(),
            Judge::Nothing => errors.iter().map(|e| square((e, 1.0))).sum(),
        }
    }
}

struct Weigher<'a> {
    job: &'a Job<'a>,
    imatrix: Option<&'a Imatrix>,
}

impl Weigher<'_> {
    /// Site by site: its readers share a factor.
    fn costs(&self, progress: &dyn Fn(u64)) -> Result<Vec<Cost>> {
        let mut sites: BTreeMap<(Option<u32>, String), Vec<usize>> = BTreeMap::new();
        for i in self.job.open {
            let id = &self.job.source.tensors()[*i].id;
            let stem = id.role.site().as_ref().unwrap_or(&id.role).stem().to_owned();
            sites.entry((id.layer, stem)).or_default().push(*i);
        }
        let mut out = Vec::new();
        for readers in sites.into_values() {
            let t = &self.job.source.tensors()[readers[0]];
            let planes = self.planes(t);
            let mut sums: Vec<Option<Cost>> = readers.iter().map(|_| None).collect();
            for plane in &planes {
                let feedback = self.feedback(t, *plane);
                for (reader, sum) in readers.iter().zip(&mut sums) {
                    let cost = self.cost(*reader, *plane, feedback.as_ref())?;
                    match sum {
                        None => *sum = Some(cost),
                        Some(sum) => {
                            sum.run_error += cost.run_error;
                            sum.offers.iter_mut().zip(cost.offers).for_each(|(a, b)| a.2 += b.2);
                        }
                    }
                }
            }
            let mean = |mut cost: Cost| {
                cost.run_error /= planes.len() as f64;
                cost.offers.iter_mut().for_each(|offer| offer.2 /= planes.len() as f64);
                cost
            };
            out.extend(sums.into_iter().flatten().map(mean));
            progress(readers.len() as u64);
        }
        Ok(out)
    }

    /// Matrices of a stack that stand for all: of those whose inputs were seen, if any were, for errors of others are in other units.
    fn planes(&self, t: &Tensor) -> Vec<usize> {
        let seen = |p: &usize| {
            let site = self.job.statistics.and_then(|s| s.site(t.id.layer, &t.id.role, Some(*p as u32)));
            t.planes() == 1 || site.is_some_and(|s| s.tokens > 0)
        };
        let mut all: Vec<usize> = (0..t.planes()).filter(seen).collect();
        if all.is_empty() {
            all = (0..t.planes()).collect();
        }
        spread(&all, PLANES)
    }

    fn feedback(&self, t: &Tensor, plane: usize) -> Option<Feedback> {
        let expert = (t.shape.len() > 2).then_some(plane as u32);
        let stats = self.job.statistics.filter(|_| self.job.feedback)?.site(t.id.layer, &t.id.role, expert)?;
        gptq::feedback(&OnCpu, &stats.gram.as_ref()?).ok()?.ok().map(|(f, _)| f)
    }

    fn judge(&self, t: &Tensor, plane: usize) -> Judge {
        let expert = (t.shape.len() > 2).then_some(plane as u32);
        // A tied embedding is the output too, and that is where its errors count.
        let role = if t.id.role == Role::TokenEmbd && self.tied() { &Role::Output } else { &t.id.role };
        let Some(stats) = self.job.statistics.and_then(|s| s.site(t.id.layer, role, expert)) else {
            return Judge::Nothing;
        };
        if stats.columns != t.dims().cols || stats.tokens == 0 {
            return Judge::Nothing;
        }
        let squares = stats.mean_square.to_vec();
        stats.held_out.or(stats.gram).map_or(Judge::MeanSquares(squares), |gram| Judge::Gram(gram.dense()))
    }

    fn tied(&self) -> bool {
        self.job.source.find("output.weight").is_none()
    }

    fn importance(&self, t: &Tensor, plane: usize) -> Result<Option<&[f32]>> {
        let entry = self.imatrix.and_then(|m| m.get(&t.name)).filter(|_| t.id.role != Role::TokenEmbd);
        entry.map(|e| e.plane(plane, t.planes(), t.dims().cols)).transpose().at(|| t.name.clone())
    }

    fn cost(&self, tensor: usize, plane: usize, feedback: Option<&Feedback>) -> Result<Cost> {
        let t = &self.job.source.tensors()[tensor];
        let place = || format!("{} ({} in {})", t.name, t.source, t.file);
        let dims = t.dims();
        let importance = self.importance(t, plane)?;
        let fits = |c: &&&'static dyn Codec| c.layout(dims).is_ok() && (importance.is_some() || !needs_importance(**c));
        let ladder: Vec<&'static dyn Codec> = self.job.ladder.iter().filter(fits).copied().collect();
        let distance = |c: &&&'static dyn Codec| (codec::bits_per_weight(**c).unwrap_or(0.0) - self.job.bits).abs();
        let run_with = ladder.iter().min_by(|a, b| distance(a).total_cmp(&distance(b))).copied();
        let run_with = run_with.ok_or_else(|| Error::request("no format on offer takes it").at(place()))?;

        let weight = self.job.source.read(tensor, plane).at(place)?;
        // Rows that share parameters stay together.
        let run = ladder.iter().filter_map(|c| c.grid()).map(|g| g.rows()).max().unwrap_or(1);
        let runs = dims.rows.div_ceil(run).min(SAMPLE.div_ceil(run));
        let starts = (0..runs).map(|i| i * dims.rows.div_ceil(run) / runs * run);
        let mut w = Vec::with_capacity(runs * run * dims.cols);
        for rows in starts.map(|from| from..dims.rows.min(from + run)) {
            w.extend(decoded(&weight, rows));
        }
        let share = dims.len() as f64 / w.len().max(1) as f64;
        let judge = self.judge(t, plane);
        let loss = |codec: &'static dyn Codec, feedback: Option<&Feedback>| {
            let errors = errors(codec, &w, dims.cols, importance, feedback).at(place)?;
            Ok::<f64, Error>(judge.error(&errors, dims.cols) * share)
        };
        let offers = ladder.par_iter().map(|codec| {
            let rounded = loss(*codec, None)?;
            let fed = match feedback.filter(|f| f.order.len() == dims.cols && takes_feedback(*codec)) {
                Some(f) => loss(*codec, Some(f))?,
                None => rounded,
            };
            let bytes = codec.bytes(dims).at(place)? * t.planes();
            Ok((*codec, bytes as u64, rounded.min(fed)))
        });
        let run_error = loss(run_with, feedback.filter(|_| takes_feedback(run_with)))?;
        Ok(Cost { tensor, offers: offers.collect::<Result<_>>()?, run_with, run_error })
    }

    /// The weight as it is run, with feedback where there is some: what that leaves is spread otherwise than what rounding leaves.
    fn rounded(&self, cost: &Cost) -> Result<Patch> {
        let t = &self.job.source.tensors()[cost.tensor];
        let (dims, codec) = (t.dims(), cost.run_with);
        let mut values = Vec::with_capacity(t.planes());
        for p in 0..t.planes() {
            let weight = self.job.source.read(cost.tensor, p).at(|| t.name.clone())?;
            let mut w = decoded(&weight, 0..dims.rows);
            let feedback = self.feedback(t, p).filter(|f| f.order.len() == dims.cols && takes_feedback(codec));
            let importance = self.importance(t, p)?;
            // Rows are fitted alone, or in the runs that share parameters; what a whole matrix shares, so does each piece here.
            let piece = codec.grid().map_or(1, |g| g.rows()) * PIECE * dims.cols;
            w.par_chunks_mut(piece).try_for_each(|w| {
                let errors = errors(codec, w, dims.cols, importance, feedback.as_ref())?;
                w.iter_mut().zip(errors).for_each(|(w, e)| *w -= e);
                Ok::<(), Error>(())
            })?;
            values.push(vec![w.iter().flat_map(|w| w.to_le_bytes()).collect()]);
        }
        Ok(Patch { codec: &float::F32, dims, planes: values, scale: 1.0 })
    }
}

/// Rows of a matrix that are rounded at a time.
const PIECE: usize = 64;

fn decoded(weight: &Weight<'_>, rows: std::ops::Range<usize>) -> Vec<f32> {
    let mut w = vec![0.0; rows.len() * weight.packed.dims.cols];
    weight.codec.decode(&weight.packed, rows, &mut w);
    w.iter_mut().for_each(|w| *w *= weight.scale);
    w
}

fn takes_feedback(codec: &dyn Codec) -> bool {
    codec.grid().is_some() || codec.joint().is_some()
}

fn needs_importance(codec: &dyn Codec) -> bool {
    codec.block().and_then(|b| b.encode).is_some_and(|e| e.importance == Importance::Required)
}

/// `w - value` of every weight.
fn errors(
    codec: &'static dyn Codec,
    w: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    feedback: Option<&Feedback>,
) -> Result<Vec<f32>> {
    if let Some(kind) = codec.tensor_scale() {
        let scale = kind.of(w.iter().fold(0.0, |max, w| w.abs().max(max)), true)?;
        let scaled: Vec<f32> = w.iter().map(|w| w / scale).collect();
        let grid = codec.grid().ok_or_else(|| Error::unsupported(format!("{} is no grid", codec.name())))?;
        return Ok(on_grid(grid, &scaled, cols, importance, feedback).iter().map(|e| e * scale).collect());
    }
    if let Some(joint) = codec.joint() {
        let grid = joint.grid(cols, importance, &joint.wishes(w, cols, importance));
        return Ok(on_grid(grid.as_ref(), w, cols, importance, feedback));
    }
    if let Some(grid) = codec.grid() {
        return Ok(on_grid(grid, w, cols, importance, feedback));
    }
    let block = codec.block().and_then(|b| Some((b, b.encode?)));
    let (block, encode) = block.ok_or_else(|| Error::unsupported(format!("{} cannot be written", codec.name())))?;
    let mut bytes = vec![0; w.len() / cols.max(1) * block.row_bytes(cols)];
    (encode.run)(w, cols, importance, &mut bytes);
    let mut values = vec![0.0; w.len()];
    (block.decode)(&bytes, &mut values);
    Ok(w.iter().zip(values).map(|(w, value)| w - value).collect())
}

fn on_grid(
    grid: &dyn Grid,
    w: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    feedback: Option<&Feedback>,
) -> Vec<f32> {
    let found = match feedback {
        Some(feedback) => method::solve(grid, w, cols, importance, Fit::Importance, feedback),
        None => method::nearest(grid, w, cols, importance),
    };
    method::errors(grid, w, cols, &found)
}

#[cfg(test)]
mod tests {
    use super::{between, spread};

    #[test]
    fn runs_are_spread_and_the_rest_lies_between() {
        assert_eq!(spread(&[3, 5, 8], 8), [3, 5, 8]);
        assert_eq!(spread(&(10..34).collect::<Vec<_>>(), 4), [10, 17, 25, 33]);
        assert_eq!((spread(&[7], 1), spread(&[], 4)), (vec![7], vec![]));
        let close = |found: Vec<f64>, expected: &[f64]| {
            assert!(found.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-12), "{found:?}");
            assert_eq!(found.len(), expected.len());
        };
        close(between(&[Some(1.0), None, Some(4.0), None, None]), &[1.0, 2.0, 4.0, 4.0, 4.0]);
        close(between(&[None, Some(0.0), None, Some(2.0)]), &[0.0, 0.0, 1.0, 2.0]);
        close(between(&[None, None]), &[0.0, 0.0]);
    }
}

//! From a checkpoint to files: every weight is read once, decoded in row chunks, encoded for each target and written in place.

mod fold;
pub mod plan;
mod solve;
pub mod verify;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::calibrate::method::awq;
use crate::container::gguf::GgufWriter;
use crate::container::{self, Checkpoint, Tensor, Weight};
use crate::device::cpu;
use crate::error::{At, Error, Result};
pub use plan::{Plan, Planned, Request};
pub use solve::Solution;

/// Weights decoded at a time by one thread: 512 KiB of f32, which stays in a core's second-level cache.
pub const CHUNK_WEIGHTS: usize = 128 << 10;

/// What a finished conversion left on disk.
#[derive(Debug)]
pub struct Output {
    pub paths: Vec<PathBuf>,
    pub bytes: u64,
    pub seconds: f64,
    /// Weights whose codes were solved for, in the order of the file.
    pub solved: Vec<Solution>,
}

/// Reports `bytes` of source read since the last call. Called from any thread.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Rows of one plane of one source tensor, and the output tensors made from them.
struct Unit {
    tensor: usize,
    plane: usize,
    rows: std::ops::Range<usize>,
}

/// Writes every plan. All of them are made from `request.source`; each weight is read and decoded once.
pub fn run(request: &Request<'_>, plans: &[Plan], threads: usize, progress: Progress<'_>) -> Result<Vec<Output>> {
    let start = Instant::now();
    let inputs: Vec<PathBuf> = request.source.files().into_iter().map(|(path, _)| path).collect();
    let writers = plans
        .iter()
        .map(|p| {
            let specs: Vec<_> = p.tensors.iter().map(|t| t.spec.clone()).collect();
            GgufWriter::create(&p.path, &p.metadata, &specs, request.split_max_bytes, &inputs)
        })
        .collect::<Result<Vec<_>>>()?;

    let pool = cpu::pool(threads)?;
    let folds = pool.install(|| plans.iter().map(|p| fold::search(request, p)).collect::<Result<Vec<_>>>())?;
    let outputs = outputs_by_source(request.source, plans);
    let job = Job { request, plans, writers: &writers, folds, outputs };
    each_unit(&units(request.source), threads, |unit, scratch| {
        job.convert(unit, scratch)?;
        let t = &request.source.tensors()[unit.tensor];
        progress((t.bytes / (t.planes() * t.dims().rows).max(1) * unit.rows.len()) as u64);
        Ok(())
    })?;
    let mut solutions = pool.install(|| solve::run(&job, progress))?;

    let mut done = Vec::new();
    for (number, (writer, plan)) in writers.into_iter().zip(plans).enumerate() {
        let paths = writer.finish()?;
        let artifact = container::open(&paths[0]).at(|| "reading the finished file back")?;
        verify::structure(artifact.as_ref(), plan)?;
        let bytes = artifact.files().iter().map(|(_, size)| size).sum();
        let solved = std::mem::take(&mut solutions[number]);
        done.push(Output { paths, bytes, seconds: start.elapsed().as_secs_f64(), solved });
    }
    Ok(done)
}

/// For every source tensor the (plan, output tensor) pairs that need it.
fn outputs_by_source(source: &dyn Checkpoint, plans: &[Plan]) -> Vec<Vec<(usize, usize)>> {
    let mut outputs = vec![Vec::new(); source.tensors().len()];
    for (p, plan) in plans.iter().enumerate() {
        for (t, planned) in plan.tensors.iter().enumerate() {
            outputs[planned.source].push((p, t));
        }
    }
    outputs
}

fn units(source: &dyn Checkpoint) -> Vec<Unit> {
    let mut units = Vec::new();
    for (tensor, t) in source.tensors().iter().enumerate() {
        let dims = t.dims();
        let step = (CHUNK_WEIGHTS / dims.cols.max(1)).max(1);
        for plane in 0..t.planes() {
            units.extend((0..dims.rows).step_by(step).map(|r| Unit {
                tensor,
                plane,
                rows: r..(r + step).min(dims.rows),
            }));
        }
    }
    units
}

/// Buffers that one thread keeps from unit to unit.
#[derive(Default)]
struct Scratch {
    source: Vec<f32>,
    moved: Vec<f32>,
    encoded: Vec<u8>,
}

/// Runs `work` over all units on `threads` threads. The first error stops the others and is returned.
fn each_unit(units: &[Unit], threads: usize, work: impl Fn(&Unit, &mut Scratch) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let stop = AtomicBool::new(false);
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..threads.clamp(1, units.len().max(1)) {
            scope.spawn(|| {
                let mut scratch = Scratch::default();
                while !stop.load(Ordering::Relaxed) {
                    let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                    if let Err(e) = work(unit, &mut scratch) {
                        stop.store(true, Ordering::Relaxed);
                        failed.lock().unwrap_or_else(|p| p.into_inner()).get_or_insert(e);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(|p| p.into_inner()).map_or(Ok(()), Err)
}

/// What all parts of a conversion work on.
struct Job<'a> {
    request: &'a Request<'a>,
    plans: &'a [Plan],
    writers: &'a [GgufWriter],
    /// For each plan.
    folds: Vec<fold::Folds>,
    outputs: Vec<Vec<(usize, usize)>>,
}

impl Job<'_> {
    /// All outputs of these rows but those that are solved for.
    fn convert(&self, unit: &Unit, scratch: &mut Scratch) -> Result<()> {
        let source = self.request.source;
        let t = &source.tensors()[unit.tensor];
        let place = || format!("{} ({} in {})", t.name, t.source, t.file);
        let weight = source.read(unit.tensor, unit.plane).at(place)?;
        let dims = weight.packed.dims;

        // A weight's own `scale` is not applied: it is a tensor too, goes over as such, and multiplies what is written here.
        scratch.source.resize(unit.rows.len() * dims.cols, 0.0);
        weight.codec.decode(&weight.packed, unit.rows.clone(), &mut scratch.source);
        check_finite(&scratch.source, dims.cols, unit.rows.start).at(place)?;

        for &(p, o) in &self.outputs[unit.tensor] {
            let planned = &self.plans[p].tensors[o];
            if planned.solve {
                continue;
            }
            let row_bytes = planned.bytes / (t.planes() * dims.rows).max(1);
            let offset = ((unit.plane * dims.rows + unit.rows.start) * row_bytes) as u64;
            let folded = self.folds[p].get(&o);
            if planned.copied && folded.is_none() {
                let row = unit.rows.start * row_bytes..unit.rows.end * row_bytes;
                self.writers[p].write_at(o, offset, &weight.packed.parts[0][row])?;
                continue;
            }
            let vector = t.shape.len() == 1;
            let weights = if planned.transform.is_identity() && folded.is_none() {
                &scratch.source
            } else {
                scratch.moved.resize(scratch.source.len(), 0.0);
                if vector {
                    // Biases follow the rows of their weights.
                    let moved = scratch.moved.iter_mut().enumerate();
                    moved.for_each(|(i, out)| *out = scratch.source[planned.transform.source_row(i)]);
                    scratch.moved.iter_mut().for_each(|w| *w += planned.transform.add);
                } else {
                    moved(&weight, planned, unit.rows.clone(), &mut scratch.moved);
                }
                if let Some(folded) = folded {
                    folded.apply(&mut scratch.moved, dims.cols, unit.rows.start, vector);
                }
                &scratch.moved
            };
            scratch.encoded.resize(row_bytes * unit.rows.len(), 0);
            let importance = self.importance((p, o), t, unit.plane)?;
            encode(planned, weights, dims.cols, importance.as_deref(), &mut scratch.encoded).at(place)?;
            self.writers[p].write_at(o, offset, &scratch.encoded)?;
        }
        Ok(())
    }

    /// Mean squares of the inputs of tensor `at` (plan and output), as they are behind its fold.
    fn importance(&self, at: (usize, usize), t: &Tensor, plane: usize) -> Result<Option<Cow<'_, [f32]>>> {
        let planned = &self.plans[at.0].tensors[at.1];
        let entry = self.request.imatrix.filter(|_| planned.weighted).and_then(|(imatrix, _)| imatrix.get(&t.name));
        let Some(entry) = entry else { return Ok(None) };
        let values = entry.plane(plane, t.planes(), t.dims().cols)?;
        Ok(Some(match self.folds[at.0].get(&at.1).and_then(|f| f.columns.as_ref()) {
            Some(scale) => awq::importance(values, Some(scale)).into(),
            None => values.into(),
        }))
    }
}

/// Rows of a matrix as the output has them.
fn moved(weight: &Weight<'_>, planned: &Planned, rows: std::ops::Range<usize>, out: &mut [f32]) {
    for (row, out) in rows.zip(out.chunks_exact_mut(weight.packed.dims.cols)) {
        let from = planned.transform.source_row(row);
        weight.codec.decode(&weight.packed, from..from + 1, out);
    }
    out.iter_mut().for_each(|w| *w += planned.transform.add);
}

fn encode(planned: &Planned, w: &[f32], cols: usize, importance: Option<&[f32]>, out: &mut [u8]) -> Result<()> {
    let codec = planned.spec.codec;
    let encode = codec.block().and_then(|b| b.encode);
    let encode = encode.ok_or_else(|| Error::unsupported(format!("{} cannot be written", codec.name())))?;
    (encode.run)(w, cols, importance, out);
    Ok(())
}

/// Names the first weight that is not a number: a damaged download or an overflowed training run.
fn check_finite(w: &[f32], cols: usize, first_row: usize) -> Result<()> {
    // The exponent of the largest magnitude tells for all of them, without a branch a weight.
    if w.iter().fold(0, |max, x| (x.to_bits() & 0x7fff_ffff).max(max)) < f32::INFINITY.to_bits() {
        return Ok(());
    }
    let at = w.iter().position(|x| !x.is_finite()).unwrap_or(0);
    let (row, col) = (first_row + at / cols, at % cols);
    Err(Error::input(format!("the weight at row {row}, column {col} is {}", w[at]))
        .help("the checkpoint is damaged or was trained to overflow: download it again or repair that tensor"))
}

//! From a checkpoint to files: every weight is read once, decoded in row chunks, encoded for each target and written in place.

pub mod fold;
mod folder;
mod job;
pub mod plan;
mod resume;
mod rows;
mod scale;
mod solve;
pub mod verify;

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use crate::calibrate::method::ops::{OnCard, OnCpu};
use crate::container::{self, Checkpoint, Tensor};
use crate::device::{Worker, cpu};
use crate::error::{At, Result};
use fold::Folds;
use job::Job;
pub use plan::{Layout, Plan, Planned, Request};
use resume::Ledger;
use rows::{Factor, matrix_rows};
pub use solve::Solution;

/// Weights decoded at a time by one thread of the CPU: 512 KiB of f32, which stays in a core's second-level cache.
pub const CHUNK_WEIGHTS: usize = 128 << 10;

/// What a finished conversion left on disk.
#[derive(Debug)]
pub struct Output {
    pub paths: Vec<PathBuf>,
    pub bytes: u64,
    pub seconds: f64,
    pub counts: Counts,
    /// Weights whose codes were solved for, in the order of the file.
    pub solved: Vec<Solution>,
}

/// Weights of an output that are quantized.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// They were before, and went over as they were.
    pub carried: usize,
    /// They were before, and are again.
    pub requantized: usize,
    /// They were not.
    pub rounded: usize,
}

/// Where a run stands.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// So many bytes of source were read since the last.
    Bytes(u64),
    /// So many of all weights (each of a stack, in each output) were there, from a run of the same job that was killed.
    Resumed { weights: usize, of: usize },
}

/// Called from any thread.
pub type Listener<'a> = &'a (dyn Fn(Event) + Sync);

/// Reports `bytes` of source read since the last call. Called from any thread.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// Rows of one plane of one source tensor, and the output tensors made from them.
struct Unit {
    tensor: usize,
    plane: usize,
    rows: Range<usize>,
}

/// Writes every plan. All of them are made from `request.source`; each weight is read and decoded once. A run that was killed
/// goes on where it stopped, if the job is the same.
pub fn run(request: &Request<'_>, plans: &[Plan], threads: usize, event: Listener<'_>) -> Result<Vec<Output>> {
    let job = |plan: &Plan| resume::job(request, plan).map(Some);
    let folds = |plan: &Plan| match request.worker {
        Worker::Cpu => fold::search(request, &OnCpu, plan),
        Worker::Card(card) => fold::search(request, &OnCard::new(card), plan),
    };
    write(request, plans, &job, &folds, threads, event)
}

/// [`run`] with scales of columns from elsewhere. It does not go on from another.
pub fn run_folded(
    request: &Request<'_>,
    plans: &[Plan],
    folds: &(dyn Fn(&Plan) -> Result<Folds> + Sync),
    threads: usize,
    event: Listener<'_>,
) -> Result<Vec<Output>> {
    write(request, plans, &|_| Ok(None), folds, threads, event)
}

fn write(
    request: &Request<'_>,
    plans: &[Plan],
    job: &dyn Fn(&Plan) -> Result<Option<String>>,
    folds: &(dyn Fn(&Plan) -> Result<Folds> + Sync),
    threads: usize,
    event: Listener<'_>,
) -> Result<Vec<Output>> {
    let start = Instant::now();
    let inputs: Vec<PathBuf> = request.source.files().into_iter().map(|(path, _)| path).collect();
    let create = |p: &Plan| p.create(request.split_max_bytes, &inputs, job(p)?.as_deref());
    let sinks = plans.iter().map(create).collect::<Result<Vec<_>>>()?;
    let pool = cpu::pool(threads)?;
    let folds = pool.install(|| plans.iter().map(folds).collect::<Result<Vec<_>>>())?;
    let outputs = outputs_by_source(request.source, plans);
    let again = plans.iter().map(|p| p.tensors.iter().map(|_| AtomicBool::new(false)).collect()).collect();
    let scales = pool
        .install(|| plans.iter().zip(&folds).map(|(p, f)| scale::choose(request, p, f)).collect::<Result<Vec<_>>>())?;
    let ledger = Ledger::new(request.source, plans);
    let chunk = chunk(request.worker, threads)?;
    let job = Job { request, plans, sinks: &sinks, folds, scales, outputs, again, ledger, chunk };
    job.write_beside()?;
    job.write_scales()?;
    let kept = pool.install(|| job.resume(event))?;
    each_unit(&job.units(), threads, |unit, scratch| {
        job.convert(unit, scratch)?;
        let t = &request.source.tensors()[unit.tensor];
        if !job.all_solved(unit.tensor) {
            event(Event::Bytes((t.bytes / (t.planes() * t.dims().rows).max(1) * unit.rows.len()) as u64));
        }
        Ok(())
    })?;
    let solutions = pool.install(|| match request.worker {
        Worker::Cpu => solve::run(&job, &OnCpu, kept, event),
        Worker::Card(card) => solve::run(&job, &OnCard::new(card), kept, event),
    })?;
    let counts: Vec<_> = (0..plans.len()).map(|p| job.counts(p)).collect();

    let mut done = Vec::new();
    for (((sink, plan), counts), solved) in sinks.into_iter().zip(plans).zip(counts).zip(solutions) {
        let paths = sink.finish()?;
        let artifact = container::open(&paths[0]).at(|| "reading the finished file back")?;
        verify::structure(artifact.as_ref(), plan)?;
        let files = paths.iter().filter_map(|p| std::fs::metadata(p).ok()).filter(|m| m.is_file());
        let bytes = files.map(|m| m.len()).sum();
        done.push(Output { paths, bytes, seconds: start.elapsed().as_secs_f64(), counts, solved });
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

fn units_of(source: &dyn Checkpoint, chunk: impl Fn(usize) -> usize) -> Vec<Unit> {
    let mut units = Vec::new();
    for (tensor, t) in source.tensors().iter().enumerate() {
        let rows = t.dims().rows;
        // Of stacks there are enough to do: a matrix that must be gathered is gathered once.
        let step = if t.planes() > 1 { rows } else { step(t, chunk(tensor)) };
        for plane in 0..t.planes() {
            units.extend((0..rows).step_by(step).map(|r| Unit { tensor, plane, rows: r..(r + step).min(rows) }));
        }
    }
    units
}

/// `rows`, `step` at a time.
fn steps(rows: Range<usize>, step: usize) -> impl Iterator<Item = Range<usize>> + Clone {
    rows.clone().step_by(step).map(move |first| first..(first + step).min(rows.end))
}

/// Rows decoded at a time.
fn step(t: &Tensor, chunk: usize) -> usize {
    (chunk / t.dims().cols.max(1)).max(1)
}

/// Weights that one of the threads handles at a time. On a card so many that there is work for all of it.
///
/// Errors: the card cannot say what room it has.
pub fn chunk(worker: Worker<'_>, threads: usize) -> Result<usize> {
    const MOST: usize = 16 << 20;
    // Of the host's memory, for all threads; and of a weight: itself, and what is made of it.
    const TOGETHER: usize = 1 << 30;
    const BYTES: usize = 12;
    let Worker::Card(card) = worker else { return Ok(CHUNK_WEIGHTS) };
    Ok((card.room()?.min(TOGETHER) / BYTES / threads.max(1)).clamp(CHUNK_WEIGHTS, MOST))
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

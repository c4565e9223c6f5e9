//! From a checkpoint to files: every weight is read once, decoded in row chunks, encoded for each target and written in place.

pub mod fold;
mod folder;
pub mod plan;
mod resume;
mod scale;
mod solve;
pub mod verify;

use std::borrow::Cow;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use half::f16;

use crate::arch::RowOrder;
use crate::calibrate::method::{self, awq};
use crate::codec::grid::{Codes, Grid, MatrixGrid, Unsearched};
use crate::codec::{float, transcode};
use crate::container::{self, Checkpoint, Sink, Tensor, Weight};
use crate::device::{Worker, cpu};
use crate::error::{At, Error, Result};
use crate::tensor::Dims;
use fold::{Folded, Folds};
pub use plan::{Layout, Plan, Planned, Request};
use resume::Ledger;
pub use solve::Solution;

/// Weights decoded at a time by one thread: 512 KiB of f32, which stays in a core's second-level cache.
pub const CHUNK_WEIGHTS: usize = 128 << 10;

/// What a finished conversion left on disk.
#[derive(Debug)]
pub struct Output {
    pub paths: Vec<PathBuf>,
    pub bytes: u64,
    pub seconds: f64,
    /// Of the source's quantized weights: how many went over as they were, and how many were quantized again.
    pub carried: usize,
    pub requantized: usize,
    /// Weights whose codes were solved for, in the order of the file.
    pub solved: Vec<Solution>,
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
    write(request, plans, &job, &|plan| fold::search(request, plan), threads, event)
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
    let job = Job { request, plans, sinks: &sinks, folds, scales, outputs, again, ledger };
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
    let solutions = pool.install(|| solve::run(&job, kept, event))?;
    let counts: Vec<_> = (0..plans.len()).map(|p| job.counts(p)).collect();

    let mut done = Vec::new();
    for (((sink, plan), (carried, requantized)), solved) in sinks.into_iter().zip(plans).zip(counts).zip(solutions) {
        let paths = sink.finish()?;
        let artifact = container::open(&paths[0]).at(|| "reading the finished file back")?;
        verify::structure(artifact.as_ref(), plan)?;
        let files = paths.iter().filter_map(|p| std::fs::metadata(p).ok()).filter(|m| m.is_file());
        let bytes = files.map(|m| m.len()).sum();
        done.push(Output { paths, bytes, seconds: start.elapsed().as_secs_f64(), carried, requantized, solved });
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

fn units_of(source: &dyn Checkpoint) -> Vec<Unit> {
    let mut units = Vec::new();
    for (tensor, t) in source.tensors().iter().enumerate() {
        let (rows, step) = (t.dims().rows, step(t));
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
fn step(t: &Tensor) -> usize {
    (CHUNK_WEIGHTS / t.dims().cols.max(1)).max(1)
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

struct Job<'a> {
    request: &'a Request<'a>,
    plans: &'a [Plan],
    sinks: &'a [Sink],
    /// For each plan.
    folds: Vec<Folds>,
    scales: Vec<scale::All>,
    /// For every source tensor the (plan, output tensor) pairs made from it.
    outputs: Vec<Vec<(usize, usize)>>,
    /// For every output tensor whether codes that should have gone over as they are had to be chosen anew.
    again: Vec<Vec<AtomicBool>>,
    ledger: Ledger,
}

impl Job<'_> {
    /// Writes the scales that lie beside matrices.
    fn write_scales(&self) -> Result<()> {
        for (p, plan) in self.plans.iter().enumerate() {
            for (output, scales) in &self.scales[p] {
                let planned = &plan.tensors[*output];
                let Some(kind) = planned.spec.codec.tensor_scale() else { continue };
                for (n, values) in [&scales.weights, &scales.inputs].into_iter().enumerate() {
                    for (plane, value) in values.iter().enumerate() {
                        let (slot, offset) = planned.slot_beside(plane, n);
                        self.sinks[p].write_at(slot, offset, &kind.turned(*value).to_le_bytes())?;
                    }
                }
            }
        }
        Ok(())
    }

    /// From values of the source to those that an output's grid sees.
    fn factor(&self, at: (usize, usize), weight: &Weight<'_>, plane: usize) -> Factor {
        let planned = &self.plans[at.0].tensors[at.1];
        let over = self.scales[at.0].get(&at.1).map_or(1.0, |s| s.weights[plane]);
        Factor { over, ..Factor::source(self.request.source, planned, weight) }
    }

    /// Codes that are nearest to the weights.
    fn chosen(&self, grid: &dyn Grid, w: &[f32], cols: usize, importance: Option<&[f32]>) -> Codes {
        match self.request.search {
            true => method::nearest(grid, w, cols, importance),
            false => method::nearest(&Unsearched(grid), w, cols, None),
        }
    }

    /// Rows that one thread takes: whole matrices where an output needs them.
    fn units(&self) -> Vec<Unit> {
        let whole = |tensor: usize| self.outputs[tensor].iter().any(|(p, o)| self.plans[*p].tensors[*o].whole());
        let mut units = Vec::new();
        for unit in units_of(self.request.source) {
            match units.last_mut() {
                Some(Unit { tensor, plane, rows })
                    if (*tensor, *plane) == (unit.tensor, unit.plane) && whole(*tensor) =>
                {
                    rows.end = unit.rows.end;
                }
                _ => units.push(unit),
            }
        }
        units
    }

    /// Whether nothing is made of a source tensor but what is solved for.
    fn all_solved(&self, tensor: usize) -> bool {
        self.outputs[tensor].iter().all(|(p, o)| self.plans[*p].tensors[*o].solve)
    }

    /// Tells that a matrix was solved for, if its source is not needed again.
    fn solved(&self, at: (usize, usize), event: Listener<'_>) {
        let source = self.plans[at.0].tensors[at.1].source;
        let t = &self.request.source.tensors()[source];
        if self.all_solved(source) && self.outputs[source].last() == Some(&at) {
            event(Event::Bytes((t.bytes / t.planes().max(1)) as u64));
        }
    }

    /// All outputs of a unit but those that are solved for, or were made by a run that was killed.
    fn convert(&self, unit: &Unit, scratch: &mut Scratch) -> Result<()> {
        let open = |(p, o): (usize, usize)| !self.plans[p].tensors[o].solve && !self.ledger.is_done(p, o, unit.plane);
        let outputs: Vec<_> = self.outputs[unit.tensor].iter().copied().filter(|at| open(*at)).collect();
        if outputs.is_empty() {
            return Ok(());
        }
        let source = self.request.source;
        let t = &source.tensors()[unit.tensor];
        let place = || format!("{} ({} in {})", t.name, t.source, t.file);
        let weight = source.read(unit.tensor, unit.plane).at(place)?;
        let mut rolling = Vec::new();
        for (p, o) in outputs {
            let (planned, folded) = (&self.plans[p].tensors[o], self.folds[p].get(&o));
            let target = Target { sink: &self.sinks[p], planned, folded, unit, t, p, o };
            if !target.planned.whole() || !self.whole(&target, &weight, scratch).at(place)? {
                rolling.push(target);
            }
        }
        let step = step(t);
        for first in unit.rows.clone().step_by(step) {
            let rows = first..(first + step).min(unit.rows.end);
            if !rolling.is_empty() {
                self.rows(&rolling, &weight, rows, scratch).at(place)?;
            }
        }
        Ok(())
    }

    /// Writes a whole matrix. False if it must go row by row after all.
    fn whole(&self, target: &Target<'_>, weight: &Weight<'_>, scratch: &mut Scratch) -> Result<bool> {
        let (planned, dims) = (target.planned, weight.packed.dims);
        let mut codes = None;
        let Some(grid) = self.grid(target, weight, scratch)? else { return Ok(false) };
        let grid = grid.get();
        if planned.carried && target.folded.is_none() {
            codes = carried(planned, weight, grid);
            if codes.is_none() {
                let (from, to) = (weight.codec.name(), planned.spec.codec.name());
                if !self.request.allow_requantize {
                    return Err(Error::request(format!(
                        "{from} cannot become {to} without loss: not all of its values are there"
                    ))
                    .help("a target with more bits may have them; else start from the original model, or pass --allow-requantize and accept the added loss"));
                }
                self.again[target.p][target.o].store(true, Ordering::Relaxed);
                if !planned.spec.codec.packed() {
                    return Ok(false);
                }
            }
        }
        let codes = match codes {
            Some(codes) => codes,
            None => self.solve(target, weight, grid, scratch)?,
        };
        for (part, bytes) in grid.pack(dims, &codes.params, &codes.codes).iter().enumerate() {
            let (slot, offset) = planned.slot(target.unit.plane, part);
            target.sink.write_at(slot, offset, bytes)?;
        }
        self.wrote((target.p, target.o), target.unit.plane, target.unit.rows.len(), None)?;
        Ok(true)
    }

    /// The grid of a matrix.
    fn grid(&self, target: &Target<'_>, weight: &Weight<'_>, scratch: &mut Scratch) -> Result<Option<MatrixGrid>> {
        let (codec, cols) = (target.planned.spec.codec, weight.packed.dims.cols);
        let Some(joint) = codec.joint() else { return Ok(codec.grid().map(MatrixGrid::Format)) };
        let importance = self.importance((target.p, target.o), target.t, target.unit.plane)?;
        let factor = self.factor((target.p, target.o), weight, target.unit.plane);
        let mut wishes = Vec::new();
        for rows in steps(target.unit.rows.clone(), step(target.t)) {
            wishes.extend(joint.wishes(
                decoded(target, weight, factor, rows, &mut scratch.source)?,
                cols,
                importance.as_deref(),
            ));
        }
        Ok(Some(MatrixGrid::Made(joint.grid(cols, importance.as_deref(), &wishes))))
    }

    /// Chooses the codes of a matrix.
    fn solve(&self, target: &Target<'_>, weight: &Weight<'_>, grid: &dyn Grid, scratch: &mut Scratch) -> Result<Codes> {
        let (rows, cols) = (target.unit.rows.clone(), weight.packed.dims.cols);
        let importance = self.importance((target.p, target.o), target.t, target.unit.plane)?;
        let mut all = Codes::default();
        for rows in steps(rows, step(target.t).next_multiple_of(grid.rows())) {
            let factor = self.factor((target.p, target.o), weight, target.unit.plane);
            let w = decoded(target, weight, factor, rows, &mut scratch.source)?;
            let Codes { params, codes } = self.chosen(grid, w, cols, importance.as_deref());
            all.params.extend(params);
            all.codes.extend(codes);
        }
        Ok(all)
    }

    /// Writes rows of a matrix, whose blocks do not depend on other rows.
    fn rows(
        &self,
        targets: &[Target<'_>],
        weight: &Weight<'_>,
        rows: Range<usize>,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let dims = weight.packed.dims;
        let decode = |rows: Range<usize>, out: &mut [f32]| weight.codec.decode(&weight.packed, rows, out);
        scratch.source.resize(rows.len() * dims.cols, 0.0);
        decode(rows.clone(), &mut scratch.source);
        check_finite(&scratch.source, dims.cols, rows.start)?;
        let wrote = |target: &Target<'_>| self.wrote((target.p, target.o), target.unit.plane, rows.len(), None);
        for target in targets {
            let (t, planned) = (target.t, target.planned);
            let row_bytes = planned.bytes / (t.planes() * dims.rows).max(1);
            let (slot, start) = planned.slot(target.unit.plane, 0);
            let offset = start + (rows.start * row_bytes) as u64;
            if planned.copied && target.folded.is_none() {
                let bytes = &weight.packed.parts[0][rows.start * row_bytes..rows.end * row_bytes];
                target.sink.write_at(slot, offset, bytes)?;
                wrote(target)?;
                continue;
            }
            let factor = self.factor((target.p, target.o), weight, target.unit.plane);
            let same = planned.transform.is_identity() && target.folded.is_none() && factor == Factor::ONE;
            let weights = if same {
                &scratch.source
            } else {
                moved(target, weight, factor, rows.clone(), &scratch.source, &mut scratch.moved)?;
                &scratch.moved
            };
            let importance = self.importance((target.p, target.o), t, target.unit.plane)?;
            match planned.spec.codec.grid().filter(|_| planned.on_grid()) {
                Some(grid) => {
                    let found = self.chosen(grid, weights, dims.cols, importance.as_deref());
                    let dims = Dims::new(rows.len(), dims.cols);
                    scratch.encoded = grid.pack(dims, &found.params, &found.codes).concat();
                }
                None => {
                    scratch.encoded.resize(row_bytes * rows.len(), 0);
                    encode(
                        self.request.worker,
                        planned,
                        weights,
                        dims.cols,
                        importance.as_deref(),
                        &mut scratch.encoded,
                    )?;
                }
            }
            if matches!(self.plans[target.p].layout, Layout::Folder(_)) {
                check_halves(planned, weights, dims.cols, rows.start)?;
            }
            target.sink.write_at(slot, offset, &scratch.encoded)?;
            wrote(target)?;
        }
        Ok(())
    }

    /// Mean squares of the inputs of tensor `at` (plan and output), as they are behind its fold.
    fn importance(&self, at: (usize, usize), t: &Tensor, plane: usize) -> Result<Option<Cow<'_, [f32]>>> {
        let planned = &self.plans[at.0].tensors[at.1];
        let entry = self.request.imatrix.filter(|_| planned.weighted).and_then(|(imatrix, _)| imatrix.get(&t.name));
        let Some(entry) = entry else {
            // llama.cpp's matrices leave out the head, whose columns may have to be sorted.
            let statistics = self.request.statistics.filter(|_| planned.spec.codec.joint().is_some());
            let site = statistics.and_then(|s| s.site(t.id.layer, &t.id.role, None));
            return Ok(site.map(|site| site.mean_square));
        };
        let values = entry.plane(plane, t.planes(), t.dims().cols)?;
        Ok(Some(match self.folds[at.0].get(&at.1).and_then(|f| f.columns.as_ref()) {
            Some(scale) => awq::importance(values, Some(scale)).into(),
            None => values.into(),
        }))
    }

    /// Of a plan's tensors that were quantized before and are still.
    fn counts(&self, p: usize) -> (usize, usize) {
        let quantized = |t: &Planned| {
            let from = self.request.source.tensors()[t.source].codec;
            let was = from.packed() || from.block().is_some_and(|b| b.weights > 1);
            was && float::dtype(t.spec.codec).is_none()
        };
        let all = self.plans[p].tensors.iter().zip(&self.again[p]).filter(|(t, _)| quantized(t));
        let same = |(t, again): &(&Planned, &AtomicBool)| (t.carried || t.copied) && !again.load(Ordering::Relaxed);
        let (same, other): (Vec<_>, Vec<_>) = all.partition(same);
        (same.len(), other.len())
    }
}

/// What a unit of the source becomes in one output.
struct Target<'a> {
    sink: &'a Sink,
    planned: &'a Planned,
    folded: Option<&'a Folded>,
    unit: &'a Unit,
    t: &'a Tensor,
    p: usize,
    o: usize,
}

/// The weight's own codes and scales, its rows in the output's order, if the grid can say all of them.
fn carried(planned: &Planned, weight: &Weight<'_>, grid: &dyn Grid) -> Option<Codes> {
    let from = weight.codec.grid().filter(|_| planned.transform.add == 0.0)?;
    let mut own = weight.codec.unpack(&weight.packed)?;
    let Dims { rows, cols } = weight.packed.dims;
    if planned.transform.rows != RowOrder::Same {
        let per_row = own.params.len() / rows.max(1);
        let order = || (0..rows).map(|row| planned.transform.source_row(row));
        own = Codes {
            params: order().flat_map(|r| own.params[r * per_row..][..per_row].iter().copied()).collect(),
            codes: order().flat_map(|r| own.codes[r * cols..][..cols].iter().copied()).collect(),
        };
    }
    transcode::exact(from, &own, cols, grid)
}

/// Rows of the output before they are quantized.
fn decoded<'a>(
    target: &Target<'_>,
    weight: &Weight<'_>,
    factor: Factor,
    rows: Range<usize>,
    out: &'a mut Vec<f32>,
) -> Result<&'a [f32]> {
    out.resize(rows.len() * weight.packed.dims.cols, 0.0);
    matrix_rows(weight, target.planned, target.folded, factor, rows, out)?;
    Ok(out)
}

/// What a weight's decoded values are multiplied with, and divided by.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Factor {
    by: f32,
    over: f32,
}

impl Factor {
    const ONE: Factor = Factor { by: 1.0, over: 1.0 };

    /// To the values of the source. The scale of a GGUF weight is a tensor too, goes over as such, and multiplies what is written.
    fn source(source: &dyn Checkpoint, planned: &Planned, weight: &Weight<'_>) -> Factor {
        let apart = || plan::own_scale(source, &source.tensors()[planned.source]).is_some();
        Factor { by: if weight.scale == 1.0 || apart() { 1.0 } else { weight.scale }, over: 1.0 }
    }
}

/// Rows of a matrix as the output's grid sees them.
fn matrix_rows(
    weight: &Weight<'_>,
    planned: &Planned,
    folded: Option<&Folded>,
    factor: Factor,
    rows: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    let (cols, transform) = (weight.packed.dims.cols, planned.transform);
    if transform.rows == RowOrder::Same {
        weight.codec.decode(&weight.packed, rows.clone(), out);
    } else {
        for (row, out) in rows.clone().zip(out.chunks_exact_mut(cols)) {
            let from = transform.source_row(row);
            weight.codec.decode(&weight.packed, from..from + 1, out);
        }
    }
    check_finite(out, cols, rows.start)?;
    if factor.by != 1.0 {
        out.iter_mut().for_each(|w| *w *= factor.by);
    }
    if transform.add != 0.0 {
        out.iter_mut().for_each(|w| *w += transform.add);
    }
    if let Some(folded) = folded {
        folded.matrix(out, cols, rows.start);
    }
    if factor.over != 1.0 {
        out.iter_mut().for_each(|w| *w /= factor.over);
    }
    Ok(())
}

/// Rows of the output: of a matrix from their places in the source, of a vector its elements.
fn moved(
    target: &Target<'_>,
    weight: &Weight<'_>,
    factor: Factor,
    rows: Range<usize>,
    source: &[f32],
    out: &mut Vec<f32>,
) -> Result<()> {
    out.resize(source.len(), 0.0);
    let transform = target.planned.transform;
    if target.t.shape.len() > 1 {
        return matrix_rows(weight, target.planned, target.folded, factor, rows, out);
    }
    // Biases follow the rows of their weights.
    out.iter_mut().enumerate().for_each(|(i, out)| *out = source[transform.source_row(i)] + transform.add);
    if let Some(folded) = target.folded {
        folded.vector(out);
    }
    Ok(())
}

fn encode(
    worker: Worker<'_>,
    planned: &Planned,
    w: &[f32],
    cols: usize,
    importance: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    let codec = planned.spec.codec;
    let encode = codec.block().and_then(|b| b.encode);
    let encode = encode.ok_or_else(|| Error::unsupported(format!("{} cannot be written", codec.name())))?;
    worker.encode(codec, encode, w, cols, importance, out)
}

/// Names the first weight that is too large for half precision: it would become infinite.
fn check_halves(planned: &Planned, w: &[f32], cols: usize, first_row: usize) -> Result<()> {
    let half = float::dtype(planned.spec.codec) == Some(safetensors::Dtype::F16);
    match w.iter().position(|x| half && f16::from_f32(*x).is_infinite()) {
        None => Ok(()),
        Some(at) => {
            let (row, col) = (first_row + at / cols.max(1), at % cols.max(1));
            Err(Error::request(format!(
                "the weight at row {row}, column {col} is {:e}, too large for half precision",
                w[at]
            ))
            .help("use a target that keeps the model's own type, such as w4a16"))
        }
    }
}

/// Names the first weight that is not a number: a damaged download or an overflowed training run.
fn check_finite(w: &[f32], cols: usize, first_row: usize) -> Result<()> {
    // The exponent of the largest magnitude tells for all of them, without a branch a weight.
    if w.iter().fold(0, |max, x| (x.to_bits() & 0x7fff_ffff).max(max)) < f32::INFINITY.to_bits() {
        return Ok(());
    }
    let at = w.iter().position(|x| !x.is_finite()).unwrap_or(0);
    let (row, col) = (first_row + at / cols.max(1), at % cols.max(1));
    Err(Error::input(format!("the weight at row {row}, column {col} is {}", w[at]))
        .help("the checkpoint is damaged or was trained to overflow: download it again or repair that tensor"))
}

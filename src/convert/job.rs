//! What one unit of a source becomes in every output that is made of it.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::fold::{Folded, Folds};
use super::resume::Ledger;
use super::rows::{Factor, check_finite, check_held, decoded, decoded_rows, encode, moved};
use super::{
    CHUNK_WEIGHTS, Counts, Event, Layout, Listener, Plan, Planned, Request, Scratch, Unit, scale, step, steps, units_of,
};
use crate::arch::RowOrder;
use crate::calibrate::method::{self, awq};
use crate::codec::grid::{Codes, Grid, MatrixGrid, Unsearched};
use crate::codec::{float, transcode};
use crate::container::{Sink, Tensor, Weight};
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// Plans, and what the work on them knows.
pub(super) struct Job<'a> {
    pub request: &'a Request<'a>,
    pub plans: &'a [Plan],
    pub sinks: &'a [Sink],
    /// For each plan.
    pub folds: Vec<Folds>,
    pub scales: Vec<scale::All>,
    /// For every source tensor the (plan, output tensor) pairs made from it.
    pub outputs: Vec<Vec<(usize, usize)>>,
    /// For every output tensor whether codes that should have gone over as they are had to be chosen anew.
    pub again: Vec<Vec<AtomicBool>>,
    pub ledger: Ledger,
    /// Weights that are handled at a time, see [`chunk`](super::chunk).
    pub chunk: usize,
}

impl Job<'_> {
    /// Writes what goes into a folder as it is, behind the weights.
    pub fn write_beside(&self) -> Result<()> {
        for (plan, sink) in self.plans.iter().zip(self.sinks) {
            let Layout::Folder(folder) = &plan.layout else { continue };
            let beside = self.request.source.beside();
            for (n, raw) in beside.iter().enumerate() {
                sink.write_at(folder.slots.len() - folder.known.len() - beside.len() + n, 0, raw.bytes)
                    .at(|| raw.name)?;
            }
        }
        Ok(())
    }

    /// Writes the scales that lie beside matrices.
    pub fn write_scales(&self) -> Result<()> {
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
    pub fn factor(&self, at: (usize, usize), weight: &Weight<'_>, plane: usize) -> Factor {
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
    pub fn units(&self) -> Vec<Unit> {
        let whole = |tensor: usize| self.outputs[tensor].iter().any(|(p, o)| self.plans[*p].tensors[*o].whole());
        let mut units = Vec::new();
        for unit in units_of(self.request.source, |tensor| self.chunk_of(tensor)) {
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

    /// Weights of a source tensor that are handled at a time: as many as a card likes where it encodes them.
    fn chunk_of(&self, tensor: usize) -> usize {
        let there = |(p, o): &(usize, usize)| {
            let t = &self.plans[*p].tensors[*o];
            !t.copied && !t.on_grid() && self.request.worker.encodes(t.spec.codec)
        };
        if self.outputs[tensor].iter().any(there) { self.chunk } else { CHUNK_WEIGHTS }
    }

    /// Whether nothing is made of a source tensor but what is solved for.
    pub fn all_solved(&self, tensor: usize) -> bool {
        self.outputs[tensor].iter().all(|(p, o)| self.plans[*p].tensors[*o].solve)
    }

    /// Tells that a matrix was solved for, if its source is not needed again.
    pub fn solved(&self, at: (usize, usize), event: Listener<'_>) {
        let source = self.plans[at.0].tensors[at.1].source;
        let t = &self.request.source.tensors()[source];
        if self.all_solved(source) && self.outputs[source].last() == Some(&at) {
            event(Event::Bytes((t.bytes / t.planes().max(1)) as u64));
        }
    }

    /// All outputs of a unit but those that are solved for, or were made by a run that was killed.
    pub fn convert(&self, unit: &Unit, scratch: &mut Scratch) -> Result<()> {
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
        let step = step(t, self.chunk_of(unit.tensor));
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
            planned.write(target.sink, target.unit.plane, part, 0, bytes)?;
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
        for rows in steps(target.unit.rows.clone(), step(target.t, self.chunk_of(target.unit.tensor))) {
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
        for rows in steps(rows, step(target.t, self.chunk_of(target.unit.tensor)).next_multiple_of(grid.rows())) {
            let factor = self.factor((target.p, target.o), weight, target.unit.plane);
            let w = decoded(target, weight, factor, rows.clone(), &mut scratch.source)?;
            let found = self.chosen(grid, w, cols, importance.as_deref());
            check_held(target.planned.spec.codec, w, cols, rows.start, || method::values(grid, cols, &found))?;
            let Codes { params, codes } = found;
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
            let offset = rows.start * row_bytes;
            let write = |bytes: &[u8]| planned.write(target.sink, target.unit.plane, 0, offset, bytes);
            if planned.copied && target.folded.is_none() {
                let bytes = &weight.packed.parts[0][rows.start * row_bytes..rows.end * row_bytes];
                write(bytes)?;
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
            let codec = planned.spec.codec;
            match codec.grid().filter(|_| planned.on_grid()) {
                Some(grid) => {
                    let found = self.chosen(grid, weights, dims.cols, importance.as_deref());
                    check_held(codec, weights, dims.cols, rows.start, || method::values(grid, dims.cols, &found))?;
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
                    let encoded = &scratch.encoded;
                    check_held(codec, weights, dims.cols, rows.start, || decoded_rows(codec, encoded, dims.cols))?;
                }
            }
            write(&scratch.encoded)?;
            wrote(target)?;
        }
        Ok(())
    }

    /// Mean squares of the inputs of tensor `at` (plan and output), as they are behind its fold.
    pub fn importance(&self, at: (usize, usize), t: &Tensor, plane: usize) -> Result<Option<Cow<'_, [f32]>>> {
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

    /// What became of a plan's tensors that are quantized.
    pub fn counts(&self, p: usize) -> Counts {
        let mut counts = Counts::default();
        let now = self.plans[p].tensors.iter().zip(&self.again[p]);
        for (t, again) in now.filter(|(t, _)| float::dtype(t.spec.codec).is_none()) {
            let from = self.request.source.tensors()[t.source].codec;
            let was = from.packed() || from.block().is_some_and(|b| b.weights > 1);
            match was {
                true if (t.carried || t.copied) && !again.load(Ordering::Relaxed) => counts.carried += 1,
                true => counts.requantized += 1,
                false => counts.rounded += 1,
            }
        }
        counts
    }
}

/// What a unit of the source becomes in one output.
pub(super) struct Target<'a> {
    pub sink: &'a Sink,
    pub planned: &'a Planned,
    pub folded: Option<&'a Folded>,
    pub unit: &'a Unit,
    pub t: &'a Tensor,
    pub p: usize,
    pub o: usize,
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

//! Weights against their source: what is stored as floats exactly, what is quantized as far as rounding goes.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

use rayon::prelude::*;

use crate::arch::{Arch, Fold, ModelSpec, Role, Transform};
use crate::calibrate::method::awq;
use crate::container::{Checkpoint, Convention, Tensor, Weight};
use crate::convert::fold::{self, Folded, Folds};
use crate::convert::folder::FLOATS;
use crate::convert::{CHUNK_WEIGHTS, Progress, each_unit, units_of};
use crate::device::cpu;
use crate::error::{At, Error, Result};
use crate::tensor::{Dims, Packed, same_shape};

/// Error of one weight against its source: `|w - w'| / |w|` over all its values. Of weights that AWQ scaled, the source's are
/// scaled alike.
#[derive(Debug, serde::Serialize)]
pub struct WeightError {
    pub name: String,
    pub codec: &'static str,
    pub relative: f64,
    /// What no rounding explains.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// Even one bit per weight keeps most of the energy; more loss than this is another matrix.
const MOST: f64 = 0.95;
/// Of a row. What is lost entirely has 1, another row the square root of 2.
const MOST_OF_ROW: f64 = 1.2;
/// A scale of its block alone may be off by so much.
const BLOCK_SCALE: f64 = 0.25;
/// Scales that are none but rounding turn readers from their source, true ones at least this far towards it.
const NEARER: f64 = 0.999;
/// Rows of each reader, spread over it, that say whether scales hold.
const SAMPLE: usize = 64;

/// Compares every weight with its source, in the artifact's row order.
///
/// Errors: weights of other shapes; scales of columns that cannot be.
pub fn weight_errors(
    artifact: &dyn Checkpoint,
    source: &dyn Checkpoint,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Vec<WeightError>> {
    let models = Models { artifact, source };
    let folds = cpu::pool(threads)?.install(|| models.folds())?;
    let tensors = artifact.tensors();
    let sums: Vec<Mutex<Sums>> = tensors.iter().map(|_| Mutex::default()).collect();
    each_unit(&units_of(artifact, |_| CHUNK_WEIGHTS), threads, |unit, _| {
        let t = &tensors[unit.tensor];
        let Some(pair) = models.pair(unit.tensor, unit.plane, folds.get(&unit.tensor))? else { return Ok(()) };
        let part = pair.compare(unit.rows.clone());
        sums[unit.tensor].lock().unwrap_or_else(|p| p.into_inner()).add(part);
        progress((t.bytes / (t.planes() * t.dims().rows).max(1) * unit.rows.len()) as u64);
        Ok(())
    })?;
    let sums = sums.into_iter().map(|s| s.into_inner().unwrap_or_else(|p| p.into_inner()));
    Ok(tensors.iter().zip(sums).map(|(t, sums)| sums.error(t)).collect())
}

pub fn shaped_alike(t: &Tensor, source: &Tensor) -> Result<()> {
    match same_shape(&t.shape, &source.shape) {
        true => Ok(()),
        false => Err(Error::input(format!("{} is {:?}, its source {:?}", t.name, t.shape, source.shape))),
    }
}

/// Sums over the values `w` of a channel and what became of them, `w'`.
#[derive(Clone, Copy, Default)]
struct Channel {
    ww: f64,
    wf: f64,
    ff: f64,
}

impl Channel {
    fn of(w: &[f32], found: &[f32]) -> Channel {
        let mut out = Channel::default();
        w.iter().zip(found).for_each(|(w, f)| out.add(*w, *f));
        out
    }

    fn add(&mut self, w: f32, found: f32) {
        let (w, f) = (f64::from(w), f64::from(found));
        (self.ww, self.wf, self.ff) = (self.ww + w * w, self.wf + w * f, self.ff + f * f);
    }

    fn plus(&mut self, other: &Channel) {
        (self.ww, self.wf, self.ff) = (self.ww + other.ww, self.wf + other.wf, self.ff + other.ff);
    }

    /// `|w - w'| / |w|`
    fn relative(&self) -> f64 {
        let error = (self.ww - 2.0 * self.wf + self.ff).max(0.0);
        if self.ww > 0.0 { (error / self.ww).sqrt() } else { error.sqrt() }
    }

    /// The factor by which `w'` is longer than `w`, and how far from it the values are: the tangent of the angle between them.
    fn factor(&self) -> (f64, f64) {
        let tangent = (self.ww * self.ff / (self.wf * self.wf) - 1.0).max(0.0).sqrt();
        (self.wf / self.ww, if self.wf > 0.0 { tangent } else { f64::INFINITY })
    }

    /// Whether it is at another scale. Rounding shortens no channel by more than it turns it.
    fn is_scaled(&self) -> bool {
        let (factor, noise) = self.factor();
        (factor - 1.0).abs() > 2.0 * noise + BLOCK_SCALE
    }

    fn is_another(&self) -> bool {
        self.relative() > MOST_OF_ROW
    }
}

/// Of channels so much smaller than the others rounding need not leave anything.
fn large(channels: &[Channel], least: f64) -> impl Iterator<Item = (usize, &Channel)> {
    let mean = channels.iter().map(|c| c.ww).sum::<f64>() / channels.len().max(1) as f64;
    channels.iter().enumerate().filter(move |(_, c)| c.ww > least * mean)
}

/// The places of what is wrong.
#[derive(Clone, Copy, Default)]
struct Wrong {
    count: usize,
    first: Option<(usize, usize)>,
}

impl Wrong {
    fn add(&mut self, place: (usize, usize)) {
        self.plus(Wrong { count: 1, first: Some(place) });
    }

    fn plus(&mut self, other: Wrong) {
        self.count += other.count;
        self.first = self.first.into_iter().chain(other.first).min();
    }
}

/// What rows of one tensor, or all of them, have become.
#[derive(Default)]
struct Sums {
    all: Channel,
    values: Wrong,
    rows: Wrong,
    /// Of a matrix whose columns are scaled.
    columns: Vec<Channel>,
}

impl Sums {
    fn add(&mut self, part: Sums) {
        self.all.plus(&part.all);
        self.values.plus(part.values);
        self.rows.plus(part.rows);
        self.columns.resize(self.columns.len().max(part.columns.len()), Channel::default());
        self.columns.iter_mut().zip(&part.columns).for_each(|(sum, part)| sum.plus(part));
    }

    fn error(&self, t: &Tensor) -> WeightError {
        let relative = self.all.relative();
        WeightError { name: t.name.clone(), codec: t.codec.name(), relative, fault: self.fault(t, relative) }
    }

    fn fault(&self, t: &Tensor, relative: f64) -> Option<String> {
        // Feedback may leave any error in a column, but at its scale.
        let column = large(&self.columns, 0.01).find(|(_, c)| c.is_scaled()).map(|(i, _)| i);
        match (self.values.first, self.rows.first, column) {
            (Some((row, col)), ..) => Some(format!(
                "{} of {} values are not the source's, rounded to {}; the first is at row {row}, column {col}",
                self.values.count,
                t.len(),
                t.codec.name()
            )),
            (_, Some((row, _)), _) => {
                Some(format!("{} of its rows are not the source's, the first is row {row}", self.rows.count))
            }
            (.., Some(column)) => {
                Some(format!("column {column} is not scaled as what writes this channel takes it back"))
            }
            // A sum that is no number is no pass.
            _ if relative < MOST => None,
            _ => Some(format!("its relative error is {relative:.4}")),
        }
    }
}

#[derive(Clone, Copy)]
struct Models<'a> {
    artifact: &'a dyn Checkpoint,
    source: &'a dyn Checkpoint,
}

/// A matrix and its source.
struct Pair<'a> {
    tensor: &'a Tensor,
    found: Weight<'a>,
    source: Weight<'a>,
    transform: Transform,
    folded: Option<&'a Folded>,
}

impl<'a> Models<'a> {
    /// `None`: the source has no such tensor.
    fn pair(self, tensor: usize, plane: usize, folded: Option<&'a Folded>) -> Result<Option<Pair<'a>>> {
        let t = &self.artifact.tensors()[tensor];
        let Some(original) = self.source.find(&t.name) else { return Ok(None) };
        shaped_alike(t, &self.source.tensors()[original])?;
        let transform = self.source.transform(&t.name, self.artifact.convention());
        transform.check(if t.shape.len() > 1 { t.dims().rows } else { t.len() }).at(|| &t.name)?;
        let (found, source) = (self.artifact.read(tensor, plane)?, self.source.read(original, plane)?);
        Ok(Some(Pair { tensor: t, found, source, transform, folded }))
    }

    /// The scales of columns that AWQ left in the artifact, as those weights tell it that took the inverse.
    fn folds(self) -> Result<Folds> {
        let Some((arch, spec)) = self.source.family() else { return Ok(Folds::new()) };
        let tensors = self.artifact.tensors();
        let index: HashMap<&str, usize> = tensors.iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let layers: Vec<Folds> =
            (0..spec.layers).into_par_iter().map(|l| self.layer(l, &index, arch, spec)).collect::<Result<_>>()?;
        Ok(layers.into_iter().flatten().collect())
    }

    fn layer(self, layer: u32, index: &HashMap<&str, usize>, arch: &Arch, spec: &ModelSpec) -> Result<Folds> {
        let mut folds = Folds::new();
        // Norms first: what they scale writes channels itself.
        for fold in fold::places(spec) {
            if let Some(scale) = self.scale(layer, fold, index, &folds, arch)? {
                fold::put(&mut folds, index, (layer, fold), scale, |i| self.added(arch, i));
            }
        }
        Ok(folds)
    }

    fn added(self, arch: &Arch, tensor: usize) -> f32 {
        let t = &self.artifact.tensors()[tensor];
        if self.artifact.convention() == Convention::HuggingFace { fold::offset(arch, &t.name, &t.shape) } else { 0.0 }
    }

    /// What the writer of one place was divided by, if it was.
    fn scale(
        self,
        layer: u32,
        fold: &Fold,
        index: &HashMap<&str, usize>,
        folds: &Folds,
        arch: &Arch,
    ) -> Result<Option<Vec<f32>>> {
        let find = |role: &Role| index.get(fold::name(layer, role, "weight").as_str()).copied();
        let Some(writer) = find(&fold.writer) else { return Ok(None) };
        let t = &self.artifact.tensors()[writer];
        let written = t.shape.first().copied().unwrap_or(0);
        let readers: Vec<usize> = fold.readers.iter().filter_map(find).collect();
        let read = |i: &usize| self.artifact.tensors()[*i].dims().cols == written;
        if t.planes() > 1 || written == 0 || !readers.iter().all(read) {
            return Ok(None);
        }
        let Some(pair) = self.pair(writer, 0, folds.get(&writer))? else { return Ok(None) };
        let scale =
            if t.shape.len() > 1 { pair.scale_of_rows() } else { pair.scale_of_elements(self.added(arch, writer)) };
        let mut turned = [0.0; 2];
        for reader in readers {
            let Some(pair) = self.pair(reader, 0, None)? else { continue };
            turned.iter_mut().zip(pair.turned(&scale)).for_each(|(sum, of)| *sum += of);
        }
        let [without, with] = turned;
        match scale.iter().position(|s| *s < 0.0) {
            _ if with >= NEARER * without => Ok(None),
            Some(i) => Err(Error::input(format!("channel {i} has another sign than in the source")).at(&t.name)),
            None => Ok(Some(scale)),
        }
    }
}

impl Pair<'_> {
    fn is_float(&self) -> bool {
        FLOATS.contains(&self.tensor.codec)
    }

    /// A row of the artifact, and what it was made from.
    fn row(&self, row: usize, found: &mut [f32], source: &mut Vec<f32>) {
        self.found.codec.decode(&self.found.packed, row..row + 1, found);
        let from = if self.tensor.shape.len() > 1 { self.transform.source_row(row) } else { row };
        source.resize(found.len(), 0.0);
        self.source.codec.decode(&self.source.packed, from..from + 1, source);
        if self.tensor.shape.len() == 1 {
            *source = (0..source.len()).map(|i| source[self.transform.source_row(i)]).collect();
        }
        // A scale that both have is not a part of what is stored.
        if self.found.scale != self.source.scale {
            found.iter_mut().for_each(|w| *w *= self.found.scale);
            source.iter_mut().for_each(|w| *w *= self.source.scale);
        }
        source.iter_mut().for_each(|w| *w += self.transform.add);
        match (self.folded, self.tensor.shape.len()) {
            (Some(folded), 1) => folded.vector(source),
            (Some(folded), _) => folded.matrix(source, found.len(), row),
            _ => {}
        }
    }

    /// Values as the artifact's type of floats stores them.
    fn rounded(&self, w: &mut [f32]) {
        let codec = self.tensor.codec;
        let dims = Dims::new(1, w.len());
        if let (Some(encode), Ok(bytes)) = (codec.block().and_then(|b| b.encode), codec.bytes(dims)) {
            let mut stored = vec![0; bytes];
            (encode.run)(w, w.len(), None, &mut stored);
            codec.decode(&Packed::one(dims, stored), 0..1, w);
        }
    }

    /// From a norm's gain: it is exact.
    fn scale_of_elements(&self, added: f32) -> Vec<f32> {
        let (mut found, mut source) = (vec![0.0; self.tensor.len()], Vec::new());
        self.row(0, &mut found, &mut source);
        source.iter().zip(&found).map(|(w, f)| ratio(w + added, f + added)).collect()
    }

    /// From the rows of a matrix, by least squares.
    fn scale_of_rows(&self) -> Vec<f32> {
        let (mut found, mut source) = (vec![0.0; self.tensor.dims().cols], Vec::new());
        let scale = (0..self.tensor.dims().rows).map(|row| {
            self.row(row, &mut found, &mut source);
            let (factor, noise) = Channel::of(&source, &found).factor();
            // What points elsewhere says nothing of its length.
            if noise < 2.0 { factor.recip() as f32 } else { 1.0 }
        });
        scale.collect()
    }

    /// How far some rows are turned away from the source's, as it is and with scaled columns. Their own scales do not count.
    fn turned(&self, scale: &[f32]) -> [f64; 2] {
        let dims = self.tensor.dims();
        let (mut found, mut source, mut out) = (vec![0.0; dims.cols], Vec::new(), [0.0; 2]);
        for i in 0..dims.rows.min(SAMPLE) {
            self.row(i * dims.rows / dims.rows.min(SAMPLE), &mut found, &mut source);
            for out in &mut out {
                let noise = Channel::of(&source, &found).factor().1;
                *out += if noise.is_nan() { 0.0 } else { noise.min(1.0) };
                awq::columns(&mut source, scale);
            }
        }
        out
    }

    fn compare(&self, rows: Range<usize>) -> Sums {
        let cols = self.found.packed.dims.cols;
        let (mut found, mut source) = (vec![0.0; cols], Vec::new());
        let mut out = Sums::default();
        if self.folded.is_some_and(|f| f.columns.is_some()) {
            out.columns = vec![Channel::default(); cols];
        }
        let mut channels = Vec::with_capacity(rows.len());
        for row in rows.clone() {
            self.row(row, &mut found, &mut source);
            if self.is_float() {
                self.rounded(&mut source);
            }
            let channel = Channel::of(&source, &found);
            source.iter().zip(&found).zip(&mut out.columns).for_each(|((w, f), column)| column.add(*w, *f));
            out.all.plus(&channel);
            channels.push(channel);
            if self.is_float() {
                let other = source.iter().zip(&found).enumerate().filter(|(_, (w, f))| !self.is_copy(**w, **f));
                other.for_each(|(col, _)| out.values.add((row, col)));
            }
        }
        if self.tensor.shape.len() > 1 && !self.is_float() {
            let wrong = large(&channels, 1e-4).filter(|(_, c)| c.is_another() || c.is_scaled());
            wrong.for_each(|(i, _)| out.rows.add((rows.start + i, 0)));
        }
        out
    }

    /// Whether a float is its source's. Scales are known from weights that were rounded themselves.
    fn is_copy(&self, w: f32, found: f32) -> bool {
        match self.folded {
            None => w == found,
            Some(folded) => (w - found).abs() <= 0.5 * (w.abs() + folded.added) + 1e-7,
        }
    }
}

/// Zeros tell nothing of a scale.
fn ratio(w: f32, found: f32) -> f32 {
    if w == 0.0 || found == 0.0 { 1.0 } else { w / found }
}

//! Scales of columns, found by AWQ and taken back by what wrote the channel: the model's function stays as it is.

use std::collections::HashMap;
use std::sync::Arc;

use half::{bf16, f16};
use safetensors::Dtype;

use super::{Factor, Layout, Plan, Planned, Request, matrix_rows, scale as tensor_scale};
use crate::arch::{Arch, FOLDS, Fold, ModelSpec, Role};
use crate::calibrate::method::awq::{self, Reader};
use crate::calibrate::method::gptq;
use crate::calibrate::method::ops::Ops;
use crate::codec::float;
use crate::container::Checkpoint;
use crate::error::Result;

/// Rows of each reader, spread over it, on which scales are judged.
const SAMPLE: usize = 64;

/// What becomes of one tensor.
#[derive(Clone, Debug, Default)]
pub struct Folded {
    /// Its columns are multiplied.
    pub columns: Option<Arc<Vec<f32>>>,
    /// Its rows (its elements, if it is a vector) are divided.
    pub rows: Option<Arc<Vec<f32>>>,
    /// What the model adds to each stored element before it is used: 1 for the gains of some families' folders.
    pub added: f32,
}

impl Folded {
    /// Applies it to rows `from..` of a matrix.
    pub fn matrix(&self, w: &mut [f32], cols: usize, from: usize) {
        if let Some(rows) = &self.rows {
            for (row, s) in w.chunks_exact_mut(cols).zip(&rows[from..]) {
                row.iter_mut().for_each(|w| *w /= s);
            }
        }
        if let Some(columns) = &self.columns {
            awq::columns(w, columns);
        }
    }

    /// Applies it to a norm's gain or a bias.
    pub fn vector(&self, w: &mut [f32]) {
        if let Some(rows) = &self.rows {
            w.iter_mut().zip(rows.iter()).for_each(|(w, s)| *w = (*w + self.added) / s - self.added);
        }
    }
}

/// By output tensor of one plan.
pub type Folds = HashMap<usize, Folded>;

/// Searches every place of a model where a scale can hide. Runs in the caller's rayon pool.
pub fn search<O: Ops>(request: &Request<'_>, on: &O, plan: &Plan) -> Result<Folds> {
    let mut out = Folds::new();
    let Some((arch, spec)) = request.source.family().filter(|_| request.fold && request.statistics.is_some()) else {
        return Ok(out);
    };
    let index: HashMap<&str, usize> = plan.tensors.iter().enumerate().map(|(i, t)| (t.spec.name.as_str(), i)).collect();
    let places: Vec<(u32, &Fold)> = (0..spec.layers).flat_map(|l| places(spec).map(move |f| (l, f))).collect();
    let found = on.each(&places, |(layer, fold)| scale(request, on, plan, &index, (*layer, fold), arch))?;
    for ((layer, fold), scale) in places.into_iter().zip(found) {
        let added = |i: usize| added(arch, plan, &plan.tensors[i]);
        scale.into_iter().for_each(|scale| put(&mut out, &index, (layer, fold), scale, added));
    }
    Ok(out)
}

/// Those of each layer of a model.
pub fn places(spec: &ModelSpec) -> impl Iterator<Item = &'static Fold> {
    FOLDS.iter().filter(|f| (f.holds)(spec))
}

/// What the scale of one place does to tensors, which `index` has by name.
pub fn put(
    folds: &mut Folds,
    index: &HashMap<&str, usize>,
    (layer, fold): (u32, &Fold),
    scale: Vec<f32>,
    added: impl Fn(usize) -> f32,
) {
    let scale = Arc::new(scale);
    for i in ["weight", "bias"].iter().filter_map(|suffix| index.get(name(layer, &fold.writer, suffix).as_str())) {
        let folded = folds.entry(*i).or_default();
        (folded.rows, folded.added) = (Some(scale.clone()), added(*i));
    }
    for i in fold.readers.iter().filter_map(|reader| index.get(name(layer, reader, "weight").as_str())) {
        folds.entry(*i).or_default().columns = Some(scale.clone());
    }
}

pub fn name(layer: u32, role: &Role, suffix: &str) -> String {
    format!("blk.{layer}.{}.{suffix}", role.stem())
}

/// The scale of one place, if there is anything to gain.
fn scale<O: Ops>(
    request: &Request<'_>,
    on: &O,
    plan: &Plan,
    index: &HashMap<&str, usize>,
    (layer, fold): (u32, &Fold),
    arch: &Arch,
) -> Result<Option<Vec<f32>>> {
    let find = |role: &Role| index.get(name(layer, role, "weight").as_str()).map(|i| &plan.tensors[*i]);
    let Some(writer) = find(&fold.writer) else { return Ok(None) };
    let stats = fold.readers.iter().find_map(|r| request.statistics?.site(Some(layer), r, None));
    let Some((stats, gram)) = stats.as_ref().and_then(|s| Some((s, s.gram.as_ref()?))) else { return Ok(None) };
    let mut readers = Vec::new();
    for planned in fold.readers.iter().filter_map(find) {
        // A stack of experts has a site for each; what they all share is not measured.
        let t = &request.source.tensors()[planned.source];
        if t.planes() > 1 || t.dims().cols != stats.columns || planned.spec.shape.len() != 2 {
            return Ok(None);
        }
        if let Some(grid) = planned.spec.codec.grid().filter(|_| planned.solve) {
            readers.push(Reader { grid, rows: sample(request.source, planned)? });
        }
    }
    let writes = writer.spec.shape.first().copied().unwrap_or(0);
    if readers.is_empty() || writes != stats.columns {
        return Ok(None);
    }
    let mut kinds =
        fold.readers.iter().filter_map(find).filter_map(|p| p.spec.codec.tensor_scale().filter(|_| p.scaled));
    if let Some(kind) = kinds.next() {
        let rows: Vec<&[f32]> = readers.iter().map(|r| r.rows.as_slice()).collect();
        let over = tensor_scale::roomy(kind, &rows);
        readers.iter_mut().flat_map(|r| &mut r.rows).for_each(|w| *w /= over);
    }
    let gram = on.gram(gram)?;
    let feedback = request.feedback.then(|| gptq::feedback(on, &gram)).transpose()?.and_then(Result::ok);
    let found = awq::search(on, &readers, stats, &gram, feedback.as_ref().map(|f| &f.0))?;
    let Some(scale) = found else { return Ok(None) };
    storable(request.source, writer, scale, added(arch, plan, writer)).map(Some)
}

/// What a norm's gain is stored less.
fn added(arch: &Arch, plan: &Plan, planned: &Planned) -> f32 {
    let folder = matches!(plan.layout, Layout::Folder(_));
    if folder { offset(arch, &planned.spec.name, &planned.spec.shape) } else { 0.0 }
}

/// The same, of a tensor of a folder.
pub fn offset(arch: &Arch, name: &str, shape: &[usize]) -> f32 {
    if shape.len() == 1 && name.ends_with("norm.weight") { arch.norm_offset } else { 0.0 }
}

/// The scale that a gain of half precision takes back without rounding: what it becomes decides.
fn storable(source: &dyn Checkpoint, writer: &Planned, scale: Vec<f32>, added: f32) -> Result<Vec<f32>> {
    let round: fn(f32) -> f32 = match float::dtype(writer.spec.codec) {
        Some(Dtype::F16) => |x| f16::from_f32(x).to_f32(),
        Some(Dtype::BF16) => |x| bf16::from_f32(x).to_f32(),
        _ => return Ok(scale),
    };
    if writer.spec.shape.len() != 1 {
        return Ok(scale);
    }
    let weight = source.read(writer.source, 0)?;
    let mut gain = vec![0.0; scale.len()];
    weight.codec.decode(&weight.packed, 0..1, &mut gain);
    let exact = |(s, stored): (f32, f32)| {
        let gain = stored + writer.transform.add + added;
        let taken = round(gain / s - added) + added;
        if taken == 0.0 || gain == 0.0 { 1.0 } else { gain / taken }
    };
    Ok(scale.into_iter().zip(gain).map(exact).collect())
}

fn sample(source: &dyn Checkpoint, planned: &Planned) -> Result<Vec<f32>> {
    let weight = source.read(planned.source, 0)?;
    let dims = weight.packed.dims;
    let count = dims.rows.min(SAMPLE);
    let mut out = vec![0.0; count * dims.cols];
    for (i, row) in out.chunks_exact_mut(dims.cols.max(1)).enumerate() {
        let from = i * dims.rows / count;
        let factor = Factor::source(source, planned, &weight);
        matrix_rows(&weight, planned, None, factor, from..from + 1, row)?;
    }
    Ok(out)
}

//! Scales of whole matrices, chosen before any of their codes: one for all weights that read the same activation, because
//! runtimes fuse them into one matrix.

use std::collections::HashMap;

use rayon::prelude::*;

use super::fold::Folds;
use super::{CHUNK_WEIGHTS, Factor, Plan, Planned, Request, matrix_rows};
use crate::arch::Role;
use crate::calibrate::method::awq;
use crate::codec::TensorScale;
use crate::container::{Checkpoint, Tensor};
use crate::error::{At, Error, Result};

/// Of one tensor, for each of its matrices.
#[derive(Clone, Debug, Default)]
pub struct Scales {
    pub weights: Vec<f32>,
    /// Empty unless they are stored.
    pub inputs: Vec<f32>,
}

/// By output tensor of one plan.
pub type All = HashMap<usize, Scales>;

/// Matrices that share a scale: layer, the first reader of what they read, matrix of the stack, format.
type Site = (Option<u32>, Role, usize, &'static str);

/// Chooses all scales of a plan. Runs in the caller's rayon pool.
pub fn choose(request: &Request<'_>, plan: &Plan, folds: &Folds) -> Result<All> {
    let scaled: Vec<(usize, &Planned)> = plan.tensors.iter().enumerate().filter(|(_, p)| p.scaled).collect();
    let chosen = |(output, planned): &(usize, &Planned)| of(request, planned, *output, folds).map(|s| (*output, s));
    let mut all: All = scaled.par_iter().map(chosen).collect::<Result<_>>()?;
    let mut shared: HashMap<Site, f32> = HashMap::new();
    let fresh = || scaled.iter().filter(|(output, planned)| !carried(planned, *output, folds));
    for (output, planned) in fresh() {
        for (plane, largest) in all[output].weights.iter().enumerate() {
            let most = shared.entry(site(request, planned, plane)).or_default();
            *most = most.max(*largest);
        }
    }
    for (output, planned) in fresh() {
        let t = &request.source.tensors()[planned.source];
        let Some(kind) = planned.spec.codec.tensor_scale() else { continue };
        let Some(scales) = all.get_mut(output) else { continue };
        for (plane, scale) in scales.weights.iter_mut().enumerate() {
            let largest = shared.get(&site(request, planned, plane)).copied().unwrap_or(*scale);
            *scale = kind.of(largest, request.search).at(|| place(t))?;
        }
    }
    Ok(all)
}

/// What inputs of a tensor are divided by, known before anything is read but headers and statistics.
///
/// Errors: nothing is known of them.
pub fn inputs(request: &Request<'_>, planned: &Planned, plane: usize, columns: Option<&[f32]>) -> Result<f32> {
    let t = &request.source.tensors()[planned.source];
    let own = request.source.read(planned.source, plane)?.inputs.filter(|_| planned.carried && columns.is_none());
    if let Some(own) = own {
        return Ok(own);
    }
    let kind = planned.spec.codec.tensor_scale().ok_or_else(|| Error::unsupported("it has no scale of its inputs"))?;
    let Some(statistics) = request.statistics else {
        return Err(Error::request("the format stores how large inputs become, and no statistics say it").help(
            "make them with `quant calibrate MODEL --data text.txt -o STATS` and pass --stats STATS, or take a format that leaves the inputs as they are, such as nvfp4a16",
        ));
    };
    let expert = (t.shape.len() > 2).then_some(plane as u32);
    let site = statistics.site(t.id.layer, &t.id.role, expert).filter(|s| s.columns == t.dims().cols);
    let mut seen = site.map(|s| s.absmax.to_vec()).unwrap_or_default();
    if let Some(columns) = columns {
        awq::columns_back(&mut seen, columns);
    }
    match seen.into_iter().fold(0f32, f32::max) {
        0.0 => Err(Error::request(match expert {
            Some(expert) => {
                format!("expert {expert} met no token of the calibration text, so its inputs have no scale")
            }
            None => "the calibration text says nothing of its inputs".to_owned(),
        })
        .help("calibrate on more text, or take a format that leaves the inputs as they are, such as nvfp4a16")),
        largest => kind.of_inputs(largest),
    }
}

/// Its largest weights, or the scales that it has already.
fn of(request: &Request<'_>, planned: &Planned, output: usize, folds: &Folds) -> Result<Scales> {
    let t = &request.source.tensors()[planned.source];
    let columns = folds.get(&output).and_then(|f| f.columns.as_ref());
    let mut scales = Scales::default();
    for plane in 0..t.planes() {
        let own = || request.source.read(planned.source, plane);
        scales.weights.push(match carried(planned, output, folds) {
            true => own()?.scale,
            false => largest(request.source, planned, plane, output, folds).at(|| place(t))?,
        });
        if planned.inputs {
            scales.inputs.push(inputs(request, planned, plane, columns.map(|c| c.as_slice())).at(|| place(t))?);
        }
    }
    Ok(scales)
}

/// Whether the source's own codes and scales go over.
fn carried(planned: &Planned, output: usize, folds: &Folds) -> bool {
    planned.carried && !folds.contains_key(&output)
}

fn largest(source: &dyn Checkpoint, planned: &Planned, plane: usize, output: usize, folds: &Folds) -> Result<f32> {
    let weight = source.read(planned.source, plane)?;
    let (dims, folded) = (weight.packed.dims, folds.get(&output));
    let step = (CHUNK_WEIGHTS / dims.cols.max(1)).max(1);
    let starts: Vec<usize> = (0..dims.rows).step_by(step).collect();
    let of_rows = |start: &usize| {
        let rows = *start..(start + step).min(dims.rows);
        let mut w = vec![0.0; rows.len() * dims.cols];
        matrix_rows(&weight, planned, folded, Factor::source(source, planned, &weight), rows, &mut w)?;
        Ok(w.iter().fold(0f32, |max, w| max.max(w.abs())))
    };
    starts.par_iter().map(of_rows).try_reduce(|| 0.0, |a, b| Ok(a.max(b)))
}

fn site(request: &Request<'_>, planned: &Planned, plane: usize) -> Site {
    let t = &request.source.tensors()[planned.source];
    let first = t.id.role.site().unwrap_or_else(|| t.id.role.clone());
    (t.id.layer, first, plane, planned.spec.codec.name())
}

pub fn place(t: &Tensor) -> String {
    format!("{} ({} in {})", t.name, t.source, t.file)
}

/// For rows that only samples are taken of: a scale that leaves room for columns that grow.
pub fn roomy(kind: &TensorScale, rows: &[&[f32]]) -> f32 {
    let largest = rows.iter().flat_map(|w| w.iter()).fold(0f32, |max, w| max.max(w.abs()));
    kind.of(4.0 * largest, true).unwrap_or(1.0)
}

//! Which weights of an artifact cost what: each is put into the model that it was made from, alone.

use std::collections::{BTreeMap, HashMap};

use super::damage::Variant;
use super::overlay::Patch;
use crate::arch::{Role, RowOrder};
use crate::codec::float;
use crate::container::{Checkpoint, Tensor};
use crate::error::{At, Error, Result};
use crate::tensor::same_shape;

/// An artifact beside its model.
pub struct Pair<'a> {
    pub reference: &'a dyn Checkpoint,
    pub artifact: &'a dyn Checkpoint,
    /// Tensors of the reference, and those of the artifact.
    matches: Vec<(usize, usize)>,
}

/// A gain that differs by more than rounding does has taken back a scale of columns.
const ROUNDING: f32 = 0.01;

impl<'a> Pair<'a> {
    /// Errors: not the same family; a tensor that is missing or has another shape.
    pub fn new(reference: &'a dyn Checkpoint, artifact: &'a dyn Checkpoint) -> Result<Pair<'a>> {
        let own: HashMap<&str, usize> =
            artifact.tensors().iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let mut matches = Vec::new();
        for (i, t) in reference.tensors().iter().enumerate() {
            // What is computed from the configuration need not be stored, and a tied head may be.
            let Some(other) = own.get(t.name.as_str()) else { continue };
            let shape = &artifact.tensors()[*other].shape;
            if !same_shape(&t.shape, shape) {
                return Err(Error::input(format!("it has shape {shape:?}, in the reference {:?}", t.shape))
                    .at(&t.name)
                    .help("compare artifacts with the model that they were made from"));
            }
            matches.push((i, *other));
        }
        match matches.iter().any(|(i, _)| reference.tensors()[*i].shape.len() > 1) {
            true => Ok(Pair { reference, artifact, matches }),
            false => Err(Error::input("it has no matrix in common with the reference")
                .help("compare artifacts with the model that they were made from")),
        }
    }

    /// Its weights one by one. Where scales of columns were folded away, a weight alone means nothing: then the halves of layers
    /// between which nothing is folded.
    pub fn parts(&self) -> Result<Vec<Variant>> {
        let folded = self.folded()?;
        let mut parts: BTreeMap<(Option<u32>, String), Variant> = BTreeMap::new();
        for (i, other) in &self.matches {
            let (t, stored) = (&self.reference.tensors()[*i], &self.artifact.tensors()[*other]);
            let matrix = t.shape.len() > 1;
            if !folded && (!matrix || (stored.codec == t.codec && float::dtype(t.codec).is_some())) {
                continue;
            }
            let (key, name) = match (folded, t.id.layer) {
                (true, Some(layer)) => {
                    let half = half(&t.id.role);
                    (half.to_owned(), format!("blk.{layer}: {half}"))
                }
                _ => (t.name.clone(), t.name.clone()),
            };
            let new = || Variant { name, layer: t.id.layer, tensors: Vec::new() };
            parts.entry((t.id.layer, key)).or_insert_with(new).tensors.push(*i);
        }
        let is_matrix = |v: &Variant| v.tensors.iter().any(|t| self.reference.tensors()[*t].shape.len() > 1);
        Ok(parts.into_values().filter(is_matrix).collect())
    }

    /// Whether gains of norms were changed on purpose.
    pub fn folded(&self) -> Result<bool> {
        for (i, other) in &self.matches {
            let t = &self.reference.tensors()[*i];
            if t.shape.len() > 1 || !t.name.ends_with("norm.weight") {
                continue;
            }
            let (a, b) = (values(self.reference, *i, t)?, self.moved(*i, *other)?);
            let differs = |(a, b): (&f32, &f32)| (a - b).abs() > ROUNDING * (a.abs() + b.abs()) + 1e-6;
            if a.iter().zip(&b).any(differs) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The artifact's tensors of a variant, as the reference would store them.
    pub fn patches(&self, variant: &Variant) -> Result<HashMap<usize, Patch>> {
        let index: HashMap<usize, usize> = self.matches.iter().copied().collect();
        let patch = |i: &usize| {
            let t = &self.reference.tensors()[*i];
            let other = index.get(i).copied().ok_or_else(|| Error::input("it is missing").at(&t.name))?;
            let planes = t.len() / t.dims().len().max(1);
            let values = self.moved(*i, other)?;
            let of = |values: &[f32]| vec![values.iter().flat_map(|w| w.to_le_bytes()).collect::<Vec<u8>>()];
            let planes = values.chunks_exact(values.len() / planes.max(1)).map(of).collect();
            Ok((*i, Patch { codec: &float::F32, dims: t.dims(), planes, scale: 1.0 }))
        };
        variant.tensors.iter().map(patch).collect()
    }

    /// Bytes of a variant's tensors in the artifact, and their formats.
    pub fn stored(&self, variant: &Variant) -> (u64, Vec<&'static str>) {
        let of = |(i, _): &&(usize, usize)| variant.tensors.contains(i);
        let tensors: Vec<&Tensor> =
            self.matches.iter().filter(of).map(|(_, other)| &self.artifact.tensors()[*other]).collect();
        let mut codecs: Vec<&'static str> =
            tensors.iter().filter(|t| t.shape.len() > 1).map(|t| t.codec.name()).collect();
        codecs.sort_unstable();
        codecs.dedup();
        (tensors.iter().map(|t| t.bytes as u64).sum(), codecs)
    }

    /// Values of the artifact's tensor in the reference's order.
    fn moved(&self, i: usize, other: usize) -> Result<Vec<f32>> {
        let t = &self.artifact.tensors()[other];
        let transform = self.artifact.transform(&t.name, self.reference.convention());
        let mut out = values(self.artifact, other, t)?;
        let dims = self.reference.tensors()[i].dims();
        let (rows, width) = if t.shape.len() > 1 { (dims.rows, dims.cols) } else { (out.len(), 1) };
        transform.check(rows).at(|| t.name.clone())?;
        if transform.rows != RowOrder::Same {
            let from = out.clone();
            for (row, out) in out.chunks_exact_mut(width).enumerate() {
                let (plane, row) = (row / rows, row % rows);
                out.copy_from_slice(&from[(plane * rows + transform.source_row(row)) * width..][..width]);
            }
        }
        out.iter_mut().for_each(|w| *w += transform.add);
        Ok(out)
    }
}

/// What scales are folded within.
fn half(role: &Role) -> &'static str {
    if role.stem().starts_with("attn") || *role == Role::PostAttentionNorm { "attention" } else { "feed-forward" }
}

/// All values of a tensor.
fn values(checkpoint: &dyn Checkpoint, i: usize, t: &Tensor) -> Result<Vec<f32>> {
    let mut out = vec![0.0; t.len()];
    let each = t.dims().len().max(1);
    for (plane, out) in out.chunks_exact_mut(each).enumerate() {
        let weight = checkpoint.read(i, plane).at(|| t.name.clone())?;
        weight.codec.decode(&weight.packed, 0..t.dims().rows, out);
        out.iter_mut().for_each(|w| *w *= weight.scale);
    }
    Ok(out)
}

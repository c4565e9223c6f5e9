//! Compares models on text: hidden states of the reference and of every artifact, then their logits side by side.

mod card;

use rayon::prelude::*;

use crate::container::Weight;
use crate::device::Worker;
use crate::device::cpu::{self, Panels, Scores, TokenScore};
use crate::engine::Head;
use crate::error::{Error, Result};

/// Hidden states `[positions][hidden]` and the matrix that makes logits of them.
pub struct Side<'a> {
    /// What errors call it.
    pub name: &'a str,
    pub head: &'a Head<'a>,
    pub hidden: &'a [f32],
}

/// Parts of the vocabulary that are summed on their own and joined in order, so that threads change nothing.
const RANGES: usize = 64;
/// Rows of the heads that are decoded at a time.
const ROWS: usize = 128;
/// Positions whose logits over [`ROWS`] are held at a time.
const POSITIONS: usize = 128;

/// What every position says of every model: `[model][position]`. `targets` are the tokens that came next.
///
/// Errors: heads of different vocabularies; logits that are not finite.
pub fn compare(reference: &Side<'_>, models: &[Side<'_>], targets: &[u32]) -> Result<Vec<Vec<TokenScore>>> {
    let vocab = reference.head.weight.packed.dims.rows;
    if let Some(other) = models.iter().find(|m| m.head.weight.packed.dims.rows != vocab) {
        let rows = other.head.weight.packed.dims.rows;
        return Err(Error::input(format!("the reference has {vocab} tokens, the artifact {rows}"))
            .at(other.name)
            .help("compare artifacts with the model that they were made from"));
    }
    let all = gather(reference, models, targets)?;
    let rows: Vec<Vec<TokenScore>> = (0..models.len()).map(|m| all.finish(m).collect()).collect();
    let finite = |t: &TokenScore| t.nll.is_finite() && t.nll_ref.is_finite() && t.kld.is_finite();
    match rows.iter().position(|row| !row.iter().all(finite)) {
        Some(model) => Err(not_finite("its logits, or those of the reference, are not finite", models[model].name)),
        None => Ok(rows),
    }
}

/// -log p of `targets`, the tokens that came next, by one model.
///
/// Errors: logits that are not finite.
pub fn likelihoods(model: &Side<'_>, targets: &[u32]) -> Result<Vec<f64>> {
    let all: Vec<f64> = gather(model, &[], targets)?.reference().collect();
    match all.iter().all(|nll| nll.is_finite()) {
        true => Ok(all),
        false => Err(not_finite("its logits are not finite", model.name)),
    }
}

/// -log p of each of `targets`, and whether it is what the model finds most likely; of equally likely tokens the first.
///
/// Errors: logits that are not finite.
pub fn predictions(model: &Side<'_>, targets: &[u32]) -> Result<Vec<(f64, bool)>> {
    let all = gather(model, &[], targets)?;
    match all.reference().all(f64::is_finite) {
        true => Ok(all.reference().zip(all.top().zip(targets).map(|(top, target)| top == *target)).collect()),
        false => Err(not_finite("its logits are not finite", model.name)),
    }
}

fn not_finite(what: &str, name: &str) -> Error {
    let error = Error::input(what).at("the output matrix").at(name);
    error.help("run `quant verify` on the file: it names weights that are not numbers")
}

fn gather(reference: &Side<'_>, models: &[Side<'_>], targets: &[u32]) -> Result<Scores> {
    let vocab = reference.head.weight.packed.dims.rows;
    if let Some(bad) = targets.iter().find(|t| **t as usize >= vocab) {
        return Err(Error::input(format!("token {bad} is not among the {vocab} of the model")));
    }
    let card = [reference].into_iter().chain(models).find_map(|side| match side.head.worker {
        Worker::Card(runner) => Some(runner),
        Worker::Cpu => None,
    });
    if let Some(runner) = card {
        return card::gather(runner, reference, models, targets);
    }
    let step = vocab.div_ceil(RANGES).next_multiple_of(ROWS);
    let parts: Vec<Scores> = (0..vocab.div_ceil(step))
        .into_par_iter()
        .map(|i| range(reference, models, targets, i * step..vocab.min((i + 1) * step)))
        .collect();
    let mut all = Scores::new(targets.len(), models.len());
    parts.iter().for_each(|part| all.merge(part));
    Ok(all)
}

fn range(reference: &Side<'_>, models: &[Side<'_>], targets: &[u32], rows: std::ops::Range<usize>) -> Scores {
    let mut scores = Scores::new(targets.len(), models.len());
    let mut reference = Block::new(reference);
    let mut models: Vec<Block<'_>> = models.iter().map(Block::new).collect();
    for first in rows.clone().step_by(ROWS) {
        let columns = first..rows.end.min(first + ROWS);
        let n = columns.len();
        reference.load(columns.clone());
        models.iter_mut().for_each(|m| m.load(columns.clone()));
        for from in (0..targets.len()).step_by(POSITIONS) {
            let count = POSITIONS.min(targets.len() - from);
            reference.multiply(from, count);
            models.iter_mut().for_each(|m| m.multiply(from, count));
            let mut logits: Vec<&[f32]> = Vec::with_capacity(models.len());
            for i in 0..count {
                logits.clear();
                logits.extend(models.iter().map(|m| m.row(i, n)));
                scores.add(from + i, first, targets[from + i], reference.row(i, n), &logits);
            }
        }
    }
    scores
}

/// One side's logits over a block of the vocabulary.
struct Block<'a> {
    weight: &'a Weight<'a>,
    softcap: Option<f32>,
    hidden: &'a [f32],
    panels: Panels,
    logits: Vec<f32>,
}

impl<'a> Block<'a> {
    fn new(side: &Side<'a>) -> Self {
        let Side { head, hidden, .. } = side;
        let logits = vec![0.0; POSITIONS * ROWS];
        Block { weight: &head.weight, softcap: head.softcap, hidden, panels: Panels::default(), logits }
    }

    fn load(&mut self, rows: std::ops::Range<usize>) {
        self.panels.load(self.weight, rows);
    }

    fn multiply(&mut self, from: usize, count: usize) {
        let cols = self.weight.packed.dims.cols;
        self.panels.multiply(&self.hidden[from * cols..(from + count) * cols], count, &mut self.logits, ROWS);
        if let Some(cap) = self.softcap {
            cpu::softcap(&mut self.logits[..count * ROWS], cap);
        }
    }

    fn row(&self, i: usize, n: usize) -> &[f32] {
        &self.logits[i * ROWS..][..n]
    }
}

//! What a killed conversion can go on from: every matrix that was complete, as long as its bytes are still the same.

use std::collections::HashMap;
use std::io::Write;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::UNIX_EPOCH;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{Event, Job, Listener, Plan, Request, Solution};
use crate::calibrate::fingerprint;
use crate::container::Checkpoint;
use crate::error::{Error, Result};

/// All that the bytes of an output depend on beside its layout, as one line.
pub fn job(request: &Request<'_>, plan: &Plan) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    // No `..`: a new field must have its say here.
    let Request {
        source,
        imatrix,
        statistics,
        fold,
        feedback,
        search,
        exact_llama,
        allow_requantize,
        split_max_bytes,
        worker: _,
    } = request;
    for (path, bytes) in source.files() {
        let changed = std::fs::metadata(&path).and_then(|m| m.modified()).ok();
        let changed = changed.and_then(|t| t.duration_since(UNIX_EPOCH).ok());
        writeln!(hash, "{path:?} {bytes} {changed:?}")?;
    }
    for (name, entry) in imatrix.iter().flat_map(|(imatrix, _)| imatrix.iter()) {
        writeln!(hash, "{name} {}", entry.planes)?;
        entry.values.iter().try_for_each(|x| hash.write_all(&x.to_le_bytes()))?;
    }
    writeln!(hash, "{:?}", statistics.map(|s| &s.about().hash))?;
    writeln!(
        hash,
        "{fold} {feedback} {search} {exact_llama} {allow_requantize} {split_max_bytes:?} {:?}",
        plan.tensors
    )?;
    let model = fingerprint::of(*source)?;
    Ok(format!("quant {} {} {model} {}", env!("CARGO_PKG_VERSION"), plan.target, hash.finalize().to_hex()))
}

/// What the report tells of a matrix beside its bytes.
#[derive(Default, Serialize, Deserialize)]
struct Note {
    /// Its codes had to be chosen anew.
    again: bool,
    solution: Option<Solution>,
}

/// Rows that are still to be written of every matrix: `[plan][output tensor][plane]`.
pub struct Ledger(Vec<Vec<Vec<AtomicUsize>>>);

impl Ledger {
    pub fn new(source: &dyn Checkpoint, plans: &[Plan]) -> Ledger {
        let of = |source: usize, all: &dyn Checkpoint| {
            let t = &all.tensors()[source];
            (0..t.planes()).map(|_| AtomicUsize::new(t.dims().rows)).collect()
        };
        Ledger(plans.iter().map(|p| p.tensors.iter().map(|t| of(t.source, source)).collect()).collect())
    }

    pub fn is_done(&self, plan: usize, output: usize, plane: usize) -> bool {
        self.0[plan][output][plane].load(Ordering::Acquire) == 0
    }

    fn len(&self) -> usize {
        self.0.iter().flatten().map(Vec::len).sum()
    }
}

impl Job<'_> {
    /// Counts rows as written. With the last of a matrix, a later run need not write it again.
    pub fn wrote(
        &self,
        (plan, output): (usize, usize),
        plane: usize,
        rows: usize,
        solution: Option<&Solution>,
    ) -> Result<()> {
        if self.ledger.0[plan][output][plane].fetch_sub(rows, Ordering::AcqRel) > rows {
            return Ok(());
        }
        let again = self.again[plan][output].load(Ordering::Relaxed);
        let note = serde_json::to_value(Note { again, solution: solution.cloned() });
        let note = note.map_err(|e| Error::input(e.to_string()))?;
        let planned = &self.plans[plan].tensors[output];
        self.sinks[plan].done(name(&planned.spec.name, plane), &planned.places(plane), note)
    }

    /// Finds what a killed run finished; how it was solved, for each plan. Runs in the caller's rayon pool.
    pub fn resume(&self, event: Listener<'_>) -> Result<Vec<Vec<(usize, Solution)>>> {
        let mut solutions = Vec::new();
        let mut weights = 0;
        for (p, (plan, sink)) in self.plans.iter().zip(self.sinks).enumerate() {
            // A later line is of a later run.
            let found: HashMap<&str, _> = sink.found().iter().map(|done| (done.name.as_str(), done)).collect();
            let matrices = plan.tensors.iter().enumerate().flat_map(|(o, t)| {
                (0..self.ledger.0[p][o].len()).filter_map({
                    let found = &found;
                    move |plane| found.get(name(&t.spec.name, plane).as_str()).map(|done| (o, t, plane, *done))
                })
            });
            let kept = matrices.collect::<Vec<_>>().into_par_iter().filter_map(|(o, t, plane, done)| {
                let note: Note = serde_json::from_value(done.note.clone()).ok()?;
                match sink.keep(done, &t.places(plane)) {
                    Ok(kept) => kept.then_some(Ok((o, plane, note))),
                    Err(e) => Some(Err(e)),
                }
            });
            let kept: Vec<(usize, usize, Note)> = kept.collect::<Result<_>>()?;
            weights += kept.len();
            solutions.push(Vec::new());
            for (o, plane, Note { again, solution }) in kept {
                self.ledger.0[p][o][plane].store(0, Ordering::Release);
                self.again[p][o].fetch_or(again, Ordering::Relaxed);
                if plan.tensors[o].solve {
                    self.solved((p, o), event);
                }
                solutions[p].extend(solution.map(|s| (o, s)));
            }
        }
        if weights > 0 {
            event(Event::Resumed { weights, of: self.ledger.len() });
        }
        Ok(solutions)
    }
}

fn name(tensor: &str, plane: usize) -> String {
    format!("{tensor} {plane}")
}

//! What a killed run can go on from: a line for every finished layer, and the hidden states behind it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::states::States;
use crate::container::journal;
use crate::container::output::Output;
use crate::error::Result;

/// A finished layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub layer: usize,
    /// BLAKE3 of the hidden states behind it; empty where they were not written down.
    pub states: String,
    /// BLAKE3 of its statistics as written.
    pub parts: String,
}

/// Temporary files beside the output; removed in the end, however it comes, unless the process is killed.
pub struct Journal {
    lines: journal::Journal,
    files: [PathBuf; 2],
    /// Two, which take turns: a layer reads one and writes the other.
    states: [States; 2],
}

impl Journal {
    /// The caller holds the lock on the output. `job`: what must be equal for a run to go on. Returns the layers that a killed
    /// run of the same job finished.
    pub fn open(output: &Path, job: &str, tokens: usize, hidden: usize) -> Result<(Journal, Vec<Done>)> {
        let [path, a, b] = ["journal", "states-0", "states-1"].map(|what| Output::beside(output, what));
        let states = [States::open(&a, tokens, hidden)?, States::open(&b, tokens, hidden)?];
        let (lines, done) = journal::Journal::open(path, job)?;
        Ok((Journal { lines, files: [a, b], states }, done))
    }

    /// Forgets all layers.
    pub fn start(&mut self, job: &str) -> Result<()> {
        self.lines.start(job)
    }

    pub fn add(&mut self, done: &Done) -> Result<()> {
        self.lines.add(done)
    }

    /// The states in front of `layer`.
    pub fn before(&mut self, layer: usize) -> &mut States {
        &mut self.states[layer % 2]
    }

    /// The states in front of `layer` and those behind it.
    pub fn around(&mut self, layer: usize) -> (&States, &mut States) {
        let [a, b] = &mut self.states;
        if layer.is_multiple_of(2) { (a, b) } else { (b, a) }
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        for file in &self.files {
            // The next run overwrites what cannot be removed.
            let _ = fs::remove_file(file);
        }
    }
}

//! What a killed run can go on from: a line for every finished layer, and the hidden states behind it.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::states::States;
use crate::container::journal;
use crate::container::output::Output;
use crate::error::Result;

/// Layers that were finished since the line before, mostly one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    /// The last of them.
    pub layer: usize,
    /// BLAKE3 of the hidden states behind it.
    pub states: String,
    /// BLAKE3 of their statistics as written.
    pub parts: String,
}

/// Temporary files beside the output; removed in the end, however it comes, unless the process is killed.
pub struct Journal {
    lines: journal::Journal,
    files: [PathBuf; 2],
    /// Two, which take turns: from one line to the next, one is read and the other written.
    states: [States; 2],
    count: usize,
}

impl Journal {
    /// The caller holds the lock on the output. `job`: what must be equal for a run to go on. Returns the layers that a killed
    /// run of the same job finished.
    pub fn open(output: &Path, job: &str, tokens: usize, hidden: usize) -> Result<(Journal, Vec<Done>)> {
        let [path, a, b] = ["journal", "states-0", "states-1"].map(|what| Output::beside(output, what));
        let states = [States::open(&a, tokens, hidden)?, States::open(&b, tokens, hidden)?];
        let (lines, done) = journal::Journal::open(path, job)?;
        Ok((Journal { lines, files: [a, b], states, count: done.len() }, done))
    }

    /// Forgets all layers.
    pub fn start(&mut self, job: &str) -> Result<()> {
        self.count = 0;
        self.lines.start(job)
    }

    /// What was written last is read from now on.
    pub fn add(&mut self, done: &Done) -> Result<()> {
        self.count += 1;
        self.lines.add(done)
    }

    /// The states behind the last line.
    pub fn states(&mut self) -> &mut States {
        &mut self.states[self.count % 2]
    }

    /// The same, and those behind the next line.
    pub fn around(&mut self) -> (&States, &mut States) {
        let [a, b] = &mut self.states;
        if self.count.is_multiple_of(2) { (a, b) } else { (b, a) }
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

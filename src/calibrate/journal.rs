//! What a killed run can go on from: a line for every finished layer, and the hidden states behind it.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::states::States;
use crate::container::output::{Output, open_private};
use crate::error::{At, Error, Result};

/// A finished layer. Hashes instead of fsync: what was lost when the machine went down is seen, and costs a new start.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Done {
    pub layer: usize,
    /// BLAKE3 of the hidden states behind it.
    pub states: String,
    /// BLAKE3 of its statistics as written.
    pub parts: String,
}

/// Temporary files beside the output; removed in the end, however it comes, unless the process is killed.
pub struct Journal {
    path: PathBuf,
    files: Vec<PathBuf>,
    file: File,
    /// Two, which take turns: a layer reads one and writes the other.
    states: [States; 2],
}

impl Journal {
    /// The caller holds the lock on the output. `job`: what must be equal for a run to go on. Returns the layers that a killed
    /// run of the same job finished.
    pub fn open(output: &Path, job: &str, tokens: usize, hidden: usize) -> Result<(Journal, Vec<Done>)> {
        let [path, a, b] = ["journal", "states-0", "states-1"].map(|what| Output::beside(output, what));
        let states = [States::open(&a, tokens, hidden)?, States::open(&b, tokens, hidden)?];
        let mut file = open_private(&path).at(|| path.display().to_string())?;
        let mut text = String::new();
        // What is not text is no journal.
        let _ = file.read_to_string(&mut text);
        let mut lines = text.lines();
        let done = match lines.next() == Some(job) {
            true => lines.map_while(|l| serde_json::from_str(l).ok()).collect(),
            false => Vec::new(),
        };
        let mut journal = Journal { files: vec![path.clone(), a, b], path, file, states };
        journal.start(job)?;
        done.iter().try_for_each(|d| journal.add(d))?;
        Ok((journal, done))
    }

    /// Forgets all layers.
    pub fn start(&mut self, job: &str) -> Result<()> {
        use std::io::Seek;
        let at = || self.path.display().to_string();
        self.file.set_len(0).at(at)?;
        self.file.rewind().at(at)?;
        writeln!(self.file, "{job}").at(at)
    }

    pub fn add(&mut self, done: &Done) -> Result<()> {
        let line = serde_json::to_string(done).map_err(|e| Error::input(e.to_string()))?;
        writeln!(self.file, "{line}").at(|| self.path.display().to_string())
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

//! What a killed run leaves for the next one: which job it did, and a line for everything that it finished.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::output::open_private;
use crate::error::{At, Error, Result};

/// A temporary file; removed in the end, however it comes, unless the process is killed. Lines have hashes of what was finished
/// in place of an fsync: what was lost when the machine went down is seen, and made again.
pub struct Journal {
    path: PathBuf,
    file: Mutex<File>,
}

impl Journal {
    /// The caller holds the lock on the output. `job`: one line, which must be equal for a run to go on. Returns what a killed
    /// run of the same job finished, up to a line that it could not complete.
    pub fn open<T: DeserializeOwned>(path: PathBuf, job: &str) -> Result<(Journal, Vec<T>)> {
        let mut file = open_private(&path).at(|| path.display().to_string())?;
        let mut text = String::new();
        // What is not text is no journal.
        let _ = file.read_to_string(&mut text);
        let mut lines = text.split_inclusive('\n').filter(|l| l.ends_with('\n'));
        let same = lines.next().is_some_and(|first| first.trim_end() == job);
        let mut whole = job.len() as u64 + 1;
        let mut done = Vec::new();
        for line in lines.filter(|_| same) {
            let Ok(value) = serde_json::from_str(line) else { break };
            whole += line.len() as u64;
            done.push(value);
        }
        let journal = Journal { path, file: Mutex::new(file) };
        match same {
            true => journal.cut(whole)?,
            false => journal.start(job)?,
        }
        Ok((journal, done))
    }

    /// Forgets all lines.
    pub fn start(&self, job: &str) -> Result<()> {
        self.cut(0)?;
        self.line(job.to_owned())
    }

    pub fn add(&self, done: &impl Serialize) -> Result<()> {
        self.line(serde_json::to_string(done).map_err(|e| Error::input(e.to_string()))?)
    }

    fn cut(&self, length: u64) -> Result<()> {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let cut = file.set_len(length).and_then(|()| file.seek(SeekFrom::Start(length)));
        cut.map(|_| ()).at(|| self.path.display().to_string())
    }

    fn line(&self, mut line: String) -> Result<()> {
        line.push('\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(line.as_bytes()).at(|| self.path.display().to_string())
    }
}

impl Drop for Journal {
    fn drop(&mut self) {
        // The next run overwrites what cannot be removed.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_of_the_same_job_are_found_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let open = |job: &str| Journal::open::<u32>(path.clone(), job).unwrap();
        let killed = |text: &str| fs::write(&path, text).unwrap();
        let (journal, done) = open("job");
        assert!(done.is_empty());
        [1, 2, 3].iter().for_each(|n| journal.add(n).unwrap());
        let text = fs::read_to_string(&path).unwrap();
        drop(journal);
        assert!(!path.exists());
        killed(&format!("{text}4"));
        let (journal, done) = open("job");
        assert_eq!(done, [1, 2, 3]);
        // The line that was not complete is no part of the next.
        journal.add(&5).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{text}5\n"));
        drop(journal);
        for other in [text.replace("job", "jobs"), text.replace('\n', ""), "\u{fffd}".to_owned(), String::new()] {
            killed(&other);
            assert!(open("job").1.is_empty(), "{other:?}");
        }
        fs::write(&path, b"job\n1\n\xff\xff\n").unwrap();
        assert!(open("job").1.is_empty());
    }
}

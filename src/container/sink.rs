//! Files being written whose every byte has its place: any part of any tensor, in any order, from any thread.

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::journal::Journal;
use super::output::{self, Output};
use crate::error::{At, Error, Result};

/// The place of one stored tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot {
    pub shard: usize,
    /// From the start of the shard's file.
    pub offset: u64,
    pub bytes: u64,
}

/// Bytes of a tensor, by its number in the sink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub tensor: usize,
    pub offset: u64,
    pub bytes: u64,
}

/// A part of the output that is complete.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Done {
    /// What its writer calls it.
    pub name: String,
    /// BLAKE3 of its bytes, place after place.
    digest: String,
    /// What its writer must know to go on without it.
    pub note: serde_json::Value,
}

/// A file to be written: its first bytes, or all of them.
#[derive(Clone, Debug)]
pub struct NewFile {
    pub path: PathBuf,
    pub start: Start,
    /// Of the whole file.
    pub bytes: u64,
}

#[derive(Clone, Debug)]
pub enum Start {
    Bytes(Vec<u8>),
    /// The whole of another file.
    Copy(PathBuf),
}

/// Files under temporary names until [`Sink::finish`]; dropped before, it leaves nothing behind.
pub struct Sink {
    // Before the folder that they lie in: fields are dropped in this order.
    outputs: Vec<Output>,
    tensors: Vec<Progress>,
    journal: Option<Journal>,
    /// Of a run that was killed.
    done: Vec<Done>,
    folder: Option<Folder>,
}

struct Progress {
    name: String,
    slot: Slot,
    written: AtomicU64,
}

impl Sink {
    /// Reserves the space of all files and writes what is known of them. `tensors` are the names and places of what is still
    /// missing. `inputs` are files that must not be overwritten. With a `job`, one line that tells all that the bytes
    /// depend on, the run can be killed, and one with an equal line finds what was [`Sink::done`].
    pub fn create(
        files: &[NewFile],
        tensors: Vec<(String, Slot)>,
        inputs: &[PathBuf],
        job: Option<&str>,
    ) -> Result<Sink> {
        let paths: Vec<PathBuf> = files.iter().map(|f| f.path.clone()).collect();
        output::refuse_inputs(&paths, inputs)?;
        let outputs = paths.iter().map(|path| Output::resume(path)).collect::<Result<Vec<_>>>()?;
        let (journal, mut done) = match (job, paths.first()) {
            // The lock on the first file guards it too.
            (Some(job), Some(first)) => {
                Journal::open(Output::beside(first, "journal"), job).map(|(j, d)| (Some(j), d))?
            }
            _ => (None, Vec::new()),
        };
        let sizes = outputs.iter().map(Output::size).collect::<Result<Vec<_>>>()?;
        let reserved = sizes.iter().zip(files).all(|((length, _), file)| *length == file.bytes);
        if done.is_empty() || !reserved {
            done.clear();
            outputs.iter().try_for_each(Output::clear)?;
        }
        if let Some(first) = paths.first() {
            let taken: u64 = if done.is_empty() { 0 } else { sizes.iter().map(|(_, space)| space).sum() };
            output::check_space(first, files.iter().map(|f| f.bytes).sum::<u64>().saturating_sub(taken))?;
        }
        for (output, file) in outputs.iter().zip(files) {
            output.reserve(file.bytes)?;
        }
        for (output, file) in outputs.iter().zip(files) {
            match &file.start {
                Start::Bytes(bytes) => output.write_at(0, bytes)?,
                Start::Copy(from) => copy(from, output, file.bytes).at(|| from.display().to_string())?,
            }
        }
        let progress = |(name, slot)| Progress { name, slot, written: AtomicU64::new(0) };
        let tensors = tensors.into_iter().map(progress).collect();
        Ok(Sink { outputs, tensors, journal, done, folder: None })
    }

    /// [`Sink::create`] for a folder of files, named relative to it, which appears when all of them are complete. A folder of
    /// this name is replaced if it holds nothing but files that `own` recognises.
    pub fn create_folder(
        path: &Path,
        files: &[NewFile],
        tensors: Vec<(String, Slot)>,
        inputs: &[PathBuf],
        job: Option<&str>,
        own: impl Fn(&str) -> bool,
    ) -> Result<Sink> {
        let is_own = |name: &str| own(name) || files.iter().any(|f| f.path.as_os_str() == name);
        replaceable(path, &is_own)?;
        let finals: Vec<PathBuf> = files.iter().map(|f| path.join(&f.path)).collect();
        output::refuse_inputs(&finals, inputs)?;
        let folder = Folder::create(path)?;
        let inside = |f: &NewFile| NewFile { path: folder.temporary.join(&f.path), ..f.clone() };
        let mut sink = Sink::create(&files.iter().map(inside).collect::<Vec<_>>(), tensors, inputs, job)?;
        sink.folder = Some(folder);
        Ok(sink)
    }

    /// Writes bytes of tensor `tensor`, `offset` counted from its first. Each byte must be written once.
    pub fn write_at(&self, tensor: usize, offset: u64, bytes: &[u8]) -> Result<()> {
        let place = Place { tensor, offset, bytes: bytes.len() as u64 };
        let (progress, output, start) = self.find(place)?;
        output.write_at(start, bytes)?;
        progress.written.fetch_add(place.bytes, Ordering::Relaxed);
        Ok(())
    }

    /// The tensor, its file, and where in the file a place begins.
    fn find(&self, place: Place) -> Result<(&Progress, &Output, u64)> {
        let Place { tensor, offset, bytes } = place;
        let progress =
            self.tensors.get(tensor).ok_or_else(|| Error::request(format!("no tensor {tensor} in the layout")))?;
        let Slot { shard, offset: start, bytes: size } = progress.slot;
        if offset.checked_add(bytes).is_none_or(|end| end > size) {
            let message = format!("{bytes} bytes at {offset} reach beyond the tensor's {size}");
            return Err(Error::request(message).at(&progress.name));
        }
        Ok((progress, &self.outputs[shard], start + offset))
    }

    /// Tells a later run, should this one be killed, that all bytes of `places` are written.
    pub fn done(&self, name: String, places: &[Place], note: serde_json::Value) -> Result<()> {
        match &self.journal {
            Some(journal) => journal.add(&Done { name, digest: self.digest(places)?, note }),
            None => Ok(()),
        }
    }

    /// What a killed run was done with.
    pub fn found(&self) -> &[Done] {
        &self.done
    }

    /// Takes the bytes of `places` for written, if they are as they were when they were [`Sink::found`] done.
    pub fn keep(&self, done: &Done, places: &[Place]) -> Result<bool> {
        if self.digest(places)? != done.digest {
            return Ok(false);
        }
        for place in places {
            self.find(*place)?.0.written.fetch_add(place.bytes, Ordering::Relaxed);
        }
        Ok(true)
    }

    fn digest(&self, places: &[Place]) -> Result<String> {
        let mut hasher = blake3::Hasher::new();
        let mut buffer = vec![0; places.iter().map(|p| p.bytes).max().unwrap_or(0).min(1 << 20) as usize];
        for place in places {
            let (_, output, start) = self.find(*place)?;
            for from in (0..place.bytes).step_by(buffer.len().max(1)) {
                let piece = &mut buffer[..(place.bytes - from).min(1 << 20) as usize];
                output.read_at(start + from, piece)?;
                hasher.update(piece);
            }
        }
        Ok(hasher.finalize().to_hex().to_string())
    }

    /// Makes the files durable and gives them their final names, which it returns; of a folder, its own name first. Refuses if a
    /// tensor is not complete.
    pub fn finish(self) -> Result<Vec<PathBuf>> {
        for tensor in &self.tensors {
            let (written, size) = (tensor.written.load(Ordering::Acquire), tensor.slot.bytes);
            if written != size {
                return Err(Error::request(format!("{written} of {size} bytes were written")).at(&tensor.name));
            }
        }
        let paths = output::publish(self.outputs)?;
        match self.folder {
            Some(folder) => folder.publish(&paths),
            None => Ok(paths),
        }
    }
}

fn copy(from: &Path, output: &Output, bytes: u64) -> Result<()> {
    let mut file = fs::File::open(from)?;
    let (mut chunk, mut offset) = (vec![0; 1 << 20], 0);
    loop {
        match file.read(&mut chunk)? {
            0 if offset == bytes => return Ok(()),
            n if n > 0 && offset + n as u64 <= bytes => {
                output.write_at(offset, &chunk[..n])?;
                offset += n as u64;
            }
            _ => return Err(Error::input("the file changed while it was copied").help("try again")),
        }
    }
}

/// Refuses early to replace what is not an artifact alone.
fn replaceable(path: &Path, own: &dyn Fn(&str) -> bool) -> Result<()> {
    let at = || path.display().to_string();
    match fs::symlink_metadata(path) {
        Err(_) => return Ok(()),
        Ok(m) if !m.is_dir() => return Err(Error::request("the output exists and is not a folder").at(at())),
        Ok(_) => {}
    }
    for entry in fs::read_dir(path).at(at)? {
        let name = entry.at(at)?.file_name();
        if !name.to_str().is_some_and(own) {
            let name = name.to_string_lossy();
            return Err(Error::request(format!("the output folder exists and holds other files, such as {name}"))
                .at(at())
                .help("write to another name with -o, or remove the folder"));
        }
    }
    Ok(())
}

/// A folder under a temporary name beside its final one.
struct Folder {
    path: PathBuf,
    temporary: PathBuf,
}

impl Folder {
    /// `.<name>.partial`; what a killed run left in it is reused or removed.
    fn create(path: &Path) -> Result<Folder> {
        let name =
            path.file_name().ok_or_else(|| Error::request("the output needs a name").at(path.display().to_string()))?;
        let mut partial = std::ffi::OsString::from(".");
        partial.push(name);
        partial.push(".partial");
        let temporary = path.with_file_name(partial);
        match fs::create_dir(&temporary) {
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(&temporary)?.is_dir() {
                    return Err(
                        Error::request("this name is needed for unfinished files").at(temporary.display().to_string())
                    );
                }
            }
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::request("the output's folder does not exist")
                    .at(path.display().to_string())
                    .help("create it first"));
            }
            other => other.at(|| temporary.display().to_string())?,
        }
        Ok(Folder { path: path.to_owned(), temporary })
    }

    /// Renames the folder, whose files are complete. A folder in its place is moved out of the way first.
    fn publish(&self, files: &[PathBuf]) -> Result<Vec<PathBuf>> {
        let at = || self.temporary.display().to_string();
        for entry in fs::read_dir(&self.temporary).at(at)? {
            let path = entry.at(at)?.path();
            if !files.contains(&path) {
                fs::remove_file(&path).at(|| path.display().to_string())?;
            }
        }
        let old = self.temporary.with_extension("old");
        let replaced = fs::symlink_metadata(&self.path).is_ok();
        if replaced {
            // Of a run that was killed right here.
            let _ = fs::remove_dir_all(&old);
            fs::rename(&self.path, &old).at(|| self.path.display().to_string())?;
        }
        if let Err(e) = fs::rename(&self.temporary, &self.path) {
            if replaced {
                // Back to what was there.
                let _ = fs::rename(&old, &self.path);
            }
            return Err(e).at(|| self.path.display().to_string());
        }
        output::sync_parent(&self.path);
        if replaced {
            fs::remove_dir_all(&old).at(|| old.display().to_string())?;
        }
        let named = files.iter().filter_map(|f| Some(self.path.join(f.file_name()?)));
        Ok(std::iter::once(self.path.clone()).chain(named).collect())
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Succeeds only if it is empty: after an error, when its files are gone.
        let _ = fs::remove_dir(&self.temporary);
    }
}

//! Files that appear under their final names only when they are complete.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{At, Error, Result};

/// How much may lie unwritten in memory before the kernel is told to start: keeps the last fsync short.
const WRITEBACK: u64 = 64 << 20;

/// A file being written under a temporary name beside its final one. Dropped before [`publish`], it is removed.
pub struct Output {
    path: PathBuf,
    temporary: PathBuf,
    file: File,
    written: AtomicU64,
    published: bool,
}

impl Output {
    /// Claims `.<name>.partial` beside `path`, empty; left-overs of a killed run are reused.
    pub fn create(path: &Path) -> Result<Output> {
        let output = Output::resume(path)?;
        output.clear()?;
        Ok(output)
    }

    /// The same with what a killed run left in it.
    pub fn resume(path: &Path) -> Result<Output> {
        Output::open(path, open_to_write)
    }

    /// The same for a file that only its owner may read.
    pub fn resume_private(path: &Path) -> Result<Output> {
        Output::open(path, open_private)
    }

    /// A name beside the output's for what a run needs only while it works: `.<name>.<what>`.
    pub fn beside(path: &Path, what: &str) -> PathBuf {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".");
        name.push(what);
        path.with_file_name(name)
    }

    fn open(path: &Path, open: fn(&Path) -> std::io::Result<File>) -> Result<Output> {
        let at = || path.display().to_string();
        if path.file_name().is_none() {
            return Err(Error::request("the output needs a file name").at(at()));
        }
        if fs::metadata(path).is_ok_and(|m| !m.is_file()) {
            return Err(Error::request("the output exists and is not a regular file").at(at()));
        }
        if !folder(path).is_dir() {
            return Err(Error::request("the output's folder does not exist").at(at()).help("create it first"));
        }
        let temporary = Output::beside(path, "partial");
        let file = claim(&temporary, open).at(at)?;
        Ok(Output { path: path.to_owned(), temporary, file, written: AtomicU64::new(0), published: false })
    }

    /// Forgets what a killed run left.
    pub fn clear(&self) -> Result<()> {
        self.file.set_len(0).at(|| self.temporary.display().to_string())
    }

    /// Its length, and the disk space that it takes already.
    pub fn size(&self) -> Result<(u64, u64)> {
        let metadata = self.file.metadata().at(|| self.temporary.display().to_string())?;
        Ok((metadata.len(), space(&metadata)))
    }

    /// Bytes that were written before, from `offset`.
    ///
    /// Errors: fewer than `bytes`.
    pub fn read_at(&self, offset: u64, bytes: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, offset, bytes).at(|| self.temporary.display().to_string())
    }

    /// Gives the file its final length, of zeros, and reserves the disk space where the file system can.
    pub fn reserve(&self, bytes: u64) -> Result<()> {
        allocate(&self.file, bytes).at(|| self.temporary.display().to_string())
    }

    /// Writes at `offset`, from any thread.
    pub fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<()> {
        write_all_at(&self.file, offset, bytes).at(|| self.temporary.display().to_string())?;
        let before = self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if before / WRITEBACK != (before + bytes.len() as u64) / WRITEBACK {
            start_writeback(&self.file);
        }
        Ok(())
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        if !self.published {
            // Nothing can be done about a file that cannot be removed; the next run reuses it.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Gives complete files their final names. The first of several appears last, and its predecessor goes first: readers
/// start from it, so after a crash in between they see that a file is missing instead of a mixture of old and new.
pub fn publish(mut outputs: Vec<Output>) -> Result<Vec<PathBuf>> {
    for output in &outputs {
        output.file.sync_all().at(|| output.temporary.display().to_string())?;
    }
    if outputs.len() > 1 {
        let first = &outputs[0].path;
        match fs::remove_file(first) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e).at(|| first.display().to_string()),
            _ => {}
        }
    }
    for output in outputs.iter_mut().rev() {
        fs::rename(&output.temporary, &output.path).at(|| output.path.display().to_string())?;
        output.published = true;
    }
    let mut folders: Vec<&Path> = outputs.iter().map(|o| folder(&o.path)).collect();
    folders.dedup();
    folders.into_iter().for_each(sync_folder);
    Ok(outputs.iter().map(|o| o.path.clone()).collect())
}

/// Refuses to replace a file that is being read.
pub fn refuse_inputs(outputs: &[PathBuf], inputs: &[PathBuf]) -> Result<()> {
    match outputs.iter().find(|output| inputs.iter().any(|input| same_file(input, output))) {
        Some(path) => Err(Error::request("the output is one of the inputs")
            .at(path.display().to_string())
            .help("write to another name with -o")),
        None => Ok(()),
    }
}

/// Refuses, before work that takes long, files that could not be written in the end: in a folder that does not exist, or two of one name.
pub fn check_outputs(outputs: &[PathBuf]) -> Result<()> {
    for (n, path) in outputs.iter().enumerate() {
        let at = || path.display().to_string();
        if !folder(path).is_dir() {
            return Err(Error::request("the output's folder does not exist").at(at()).help("create it first"));
        }
        if outputs[..n].contains(path) {
            return Err(Error::request("two outputs have this name").at(at()));
        }
    }
    Ok(())
}

/// Whether two paths lead to one existing file.
pub fn same_file(a: &Path, b: &Path) -> bool {
    match (identity(a), identity(b)) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

/// Refuses early, with both figures, what would not fit on the disk.
pub fn check_space(path: &Path, needed: u64) -> Result<()> {
    match free_space(folder(path)) {
        Some(free) if free < needed => {
            let (needed, free) = (size(needed), size(free));
            Err(Error::limits(format!("the output needs {needed} of disk space, {free} are free"))
                .at(path.display().to_string())
                .help("free disk space or write elsewhere with -o"))
        }
        _ => Ok(()),
    }
}

/// `13.4 GB`
fn size(bytes: u64) -> String {
    let units = [(1e9, "GB"), (1e6, "MB"), (1e3, "kB")];
    match units.iter().find(|(unit, _)| bytes as f64 >= *unit) {
        Some((unit, name)) => format!("{:.1} {name}", bytes as f64 / unit),
        None => format!("{bytes} bytes"),
    }
}

/// Makes a new name in the folder of `path` durable.
pub fn sync_parent(path: &Path) {
    sync_folder(folder(path));
}

fn folder(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Opens and locks a file. Between opening and locking, the run that held the lock may have given the file its
/// final name or removed it; then there is another to open.
fn claim(temporary: &Path, open: fn(&Path) -> std::io::Result<File>) -> Result<File> {
    loop {
        let file = open(temporary)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(
                    Error::request("another run is writing this file").help("wait for it or choose another name")
                );
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(_)) => {}
        }
        if still_named(&file, temporary) {
            return Ok(file);
        }
    }
}

#[cfg(unix)]
fn open_to_write(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt;
    // Not through a link: in a folder that others can write, it could lead anywhere.
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW).open(path)
}

#[cfg(not(unix))]
fn open_to_write(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Opens or makes a file that only its owner can read and write; what it holds stays.
#[cfg(unix)]
pub fn open_private(path: &Path) -> std::io::Result<File> {
    use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).create(true).truncate(false);
    let file = options.mode(0o600).custom_flags(libc::O_NOFOLLOW).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    Ok(file)
}

#[cfg(not(unix))]
pub fn open_private(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut bytes: &mut [u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            n => (offset, bytes) = (offset + n as u64, &mut bytes[n..]),
        }
    }
    Ok(())
}

#[cfg(unix)]
fn still_named(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let inode = |m: fs::Metadata| (m.dev(), m.ino());
    matches!((file.metadata(), fs::symlink_metadata(path)), (Ok(a), Ok(b)) if inode(a.clone()) == inode(b.clone()))
}

#[cfg(not(unix))]
fn still_named(_: &File, path: &Path) -> bool {
    path.exists()
}

#[cfg(unix)]
fn identity(path: &Path) -> std::io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(path).map(|m| (m.dev(), m.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path) -> std::io::Result<PathBuf> {
    path.canonicalize()
}

#[cfg(unix)]
fn write_all_at(file: &File, offset: u64, bytes: &[u8]) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut offset: u64, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match std::os::windows::fs::FileExt::seek_write(file, bytes, offset)? {
            0 => return Err(std::io::ErrorKind::WriteZero.into()),
            n => (offset, bytes) = (offset + n as u64, &bytes[n..]),
        }
    }
    Ok(())
}

/// Reserves disk space for a file of so many bytes; what it holds stays.
///
/// Errors: there is not so much.
#[cfg(target_os = "linux")]
pub fn allocate(file: &File, bytes: u64) -> Result<()> {
    use std::os::fd::AsRawFd;
    let length = libc::off_t::try_from(bytes).map_err(|_| Error::limits(format!("a file of {bytes} bytes")))?;
    if length == 0 {
        return Ok(());
    }
    // SAFETY: the descriptor is open, and the call takes no pointers.
    while unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) } != 0 {
        let error = std::io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            Some(libc::EOPNOTSUPP | libc::ENOSYS | libc::EINVAL) => return Ok(file.set_len(bytes)?),
            _ => return Err(error.into()),
        }
    }
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub fn allocate(file: &File, bytes: u64) -> Result<()> {
    Ok(file.set_len(bytes)?)
}

#[cfg(target_os = "linux")]
fn start_writeback(file: &File) {
    use std::os::fd::AsRawFd;
    // SAFETY: the descriptor is open, and the call takes no pointers. It is only a hint, so its result does not matter.
    let _ = unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

#[cfg(not(target_os = "linux"))]
fn start_writeback(_: &File) {}

#[cfg(unix)]
fn space(metadata: &fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::blocks(metadata).saturating_mul(512)
}

#[cfg(not(unix))]
fn space(metadata: &fs::Metadata) -> u64 {
    metadata.len()
}

#[cfg(unix)]
fn free_space(folder: &Path) -> Option<u64> {
    use std::os::unix::ffi::OsStrExt;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is a C string, and `stat` is large enough for the result.
    if unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: the call succeeded, so it has filled `stat`.
    let stat = unsafe { stat.assume_init() };
    #[allow(clippy::unnecessary_cast)] // narrower on some systems
    (stat.f_bavail as u64).checked_mul(stat.f_frsize as u64)
}

#[cfg(not(unix))]
fn free_space(_: &Path) -> Option<u64> {
    None
}

#[cfg(unix)]
fn sync_folder(folder: &Path) {
    // Not every file system can; the files themselves are safe already.
    let _ = File::open(folder).and_then(|f| f.sync_all());
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) {}

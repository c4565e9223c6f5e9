//! One file after the other into the cache, resumed and checked.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiRepo;

use super::failure::Failure;
use super::http::{self, About};
use super::{Event, Hub, Reference};
use crate::error::{At, Error, Kind, Result};

/// Attempts at one file that bring no new bytes.
const ATTEMPTS: u32 = 4;

/// Downloads from one commit of one repository.
pub struct Session<'a> {
    hub: &'a Hub,
    model: &'a Reference,
    progress: &'a dyn Fn(Event<'_>),
    repo: ApiRepo,
    /// Contents by etag; `snapshot` links to them.
    blobs: PathBuf,
    snapshot: PathBuf,
    locks: PathBuf,
}

impl<'a> Session<'a> {
    pub fn new(hub: &'a Hub, model: &'a Reference, commit: &str, progress: &'a dyn Fn(Event<'_>)) -> Result<Self> {
        if commit.len() < 7 || !commit.bytes().all(|b| b.is_ascii_hexdigit()) {
            let commit: String = commit.chars().take(80).collect();
            return Err(Error::input(format!("the hub names {commit:?} as the commit")).at(&hub.settings.endpoint));
        }
        let named = model.at(&model.revision);
        let locks = hub.settings.cache.join(".locks").join(named.folder_name());
        let cached = hub.cache.repo(named);
        let (snapshot, blobs) = (cached.pointer_path(commit), cached.blob_path(""));
        for folder in [&snapshot, &blobs, &locks] {
            fs::create_dir_all(folder).at(|| folder.display().to_string())?;
        }
        // Lets a later run without network, and other programs, find the commit under the branch's name.
        if model.revision != commit {
            cached.create_ref(commit).at(|| snapshot.display().to_string())?;
        }
        Ok(Session { hub, model, progress, repo: hub.repo(model, commit), blobs, snapshot, locks })
    }

    /// Downloads those of `files` that are not here, and returns the folder that holds them all.
    pub fn all(&self, files: &[String]) -> Result<PathBuf> {
        let missing: Vec<_> = files.iter().filter(|f| !self.snapshot.join(f).exists()).collect();
        (self.progress)(Event::Plan { files: files.len(), cached: files.len() - missing.len() });
        for file in missing {
            self.file(file).at(|| file.as_str())?;
        }
        Ok(self.snapshot.clone())
    }

    fn file(&self, name: &str) -> Result<()> {
        let url = self.repo.url(name);
        let about = self.patiently(name, || Ok(Some(self.hub.http.about(&url)?)))?;
        let blob = self.blobs.join(&about.etag);
        let _lock = self.lock(&about.etag)?;
        if !blob.exists() {
            let part = self.blobs.join(format!("{}.incomplete", about.etag));
            self.patiently(name, || self.attempt(name, &url, &about, &part))?;
            fs::rename(&part, &blob).at(|| part.display().to_string())?;
        }
        link(&blob, &self.snapshot.join(name), name).at(|| self.snapshot.display().to_string())
    }

    /// Repeats `attempt` while it fails for passing reasons; `None` says that it got on without finishing.
    fn patiently<T>(&self, name: &str, mut attempt: impl FnMut() -> Result<Option<T>, Failure>) -> Result<T> {
        let mut failures = 0;
        loop {
            let failure = match attempt() {
                Ok(Some(done)) => return Ok(done),
                // Slow progress is progress: only fruitless attempts count.
                Ok(None) => {
                    failures = 0;
                    (self.progress)(Event::Retry { name, reason: "the connection broke" });
                    continue;
                }
                Err(failure) => failure,
            };
            failures += 1;
            let transient = failure.is_transient();
            let error = failure.explain(self.model, &self.hub.settings);
            if !transient || failures >= ATTEMPTS {
                return Err(error);
            }
            (self.progress)(Event::Retry { name, reason: error.message() });
            std::thread::sleep(self.hub.settings.pause * 2u32.pow(failures - 1));
        }
    }

    /// Downloads what `part` lacks.
    fn attempt(&self, name: &str, url: &str, about: &About, part: &Path) -> Result<Option<()>, Failure> {
        let mut file = OpenOptions::new().append(true).create(true).open(part).map_err(Failure::Io)?;
        let mut have = file.metadata().map_err(Failure::Io)?.len();
        if have > about.size {
            file.set_len(0).map_err(Failure::Io)?;
            have = 0;
        }
        if have == about.size {
            return Ok(Some(()));
        }
        let (start, body) = self.hub.http.bytes(url, have)?;
        if start < have {
            file.set_len(start).map_err(Failure::Io)?;
        }
        let report = |done| (self.progress)(Event::File { name, done: start + done, total: about.size });
        let copied = http::copy(body, &mut file, about.size - start, report);
        let now = file.metadata().map_err(Failure::Io)?.len();
        if now > about.size {
            fs::remove_file(part).map_err(Failure::Io)?;
            return Err(Failure::Malformed(format!("{now} bytes or more of a file of {}", about.size)));
        }
        match copied {
            Ok(_) if now == about.size => file.sync_all().map(Some).map_err(Failure::Io),
            Err(e) if !Failure::Io(std::io::Error::from(e.kind())).is_transient() => Err(Failure::Io(e)),
            _ if now > have => Ok(None),
            Ok(_) => Err(Failure::Io(std::io::ErrorKind::UnexpectedEof.into())),
            Err(e) => Err(Failure::Io(e)),
        }
    }

    /// One process at a time downloads a file; Python's library uses the same locks.
    fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let file = File::create(&path).at(|| path.display().to_string())?;
        match file.try_lock() {
            Ok(()) => Ok(file),
            Err(TryLockError::WouldBlock) => Err(Error::new(Kind::Io, "another process is downloading this file")
                .at(path.display().to_string())
                .help("wait for it and run again")),
            Err(TryLockError::Error(e)) => Err(e).at(|| path.display().to_string()),
        }
    }
}

/// Makes `pointer`, which lies `name` below the snapshot, show the contents of `blob`.
fn link(blob: &Path, pointer: &Path, name: &str) -> std::io::Result<()> {
    if let Some(folder) = pointer.parent() {
        fs::create_dir_all(folder)?;
    }
    // A link whose blob somebody has deleted.
    if pointer.symlink_metadata().is_ok() {
        fs::remove_file(pointer)?;
    }
    #[cfg(unix)]
    {
        // From snapshots/COMMIT/NAME up to the repository's folder.
        let up = "../".repeat(2 + name.matches('/').count());
        let etag = blob.file_name().unwrap_or_default();
        std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(etag), pointer)
    }
    #[cfg(not(unix))]
    {
        let _ = name;
        fs::rename(blob, pointer)
    }
}

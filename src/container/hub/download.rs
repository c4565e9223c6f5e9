//! One file after the other into the cache, resumed and checked.

use std::cell::Cell;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use hf_hub::api::Progress;
use hf_hub::api::sync::{ApiError, ApiRepo, Metadata};
use hf_hub::{Cache, Repo, RepoType};

use super::{Event, Hub, Reference};
use crate::error::{At, Error, Kind, Result};

/// Why a request failed. `hf-hub` panics on a few malformed answers; that is caught here.
pub enum Failure {
    Api(ApiError),
    Panicked,
}

/// Attempts at one file that bring no new bytes.
const ATTEMPTS: u32 = 4;

impl Hub {
    pub(super) fn guard<T>(&self, ask: impl FnOnce() -> Result<T, ApiError>) -> Result<T, Failure> {
        catch_unwind(AssertUnwindSafe(ask)).map_err(|_| Failure::Panicked)?.map_err(Failure::Api)
    }

    pub(super) fn explain(&self, model: &Reference, failure: Failure) -> Error {
        let Hub { settings, .. } = self;
        let page = format!("{}/{}", settings.endpoint, model.repo);
        let error = match failure {
            Failure::Panicked => return Error::input("the hub's answer is malformed").at(settings.endpoint.clone()),
            Failure::Api(e) => e,
        };
        match (status(&error), &settings.token) {
            (Some(401), None) => Error::request("the hub does not show this model without a token")
                .help(format!("check the name; if it is private or gated, ask for access at {page} and set HF_TOKEN")),
            (Some(401), Some(_)) => Error::request("the hub refuses the token, or there is no such model")
                .help("check the name and HF_TOKEN (huggingface.co/settings/tokens)"),
            (Some(403), _) => Error::request("the token gives no access to this model")
                .help(format!("accept its conditions at {page}, and use a token that may read gated models")),
            (Some(404), _) => {
                Error::request(format!("the hub has no model {} with revision {}", model.repo, model.revision))
                    .help(format!("check the name at {page}"))
            }
            (Some(429), _) => {
                Error::new(Kind::Io, "the hub limits our requests").help("wait some minutes, or set HF_TOKEN")
            }
            (Some(code), _) => {
                Error::new(Kind::Io, format!("the hub answers with status {code}")).help("try again later")
            }
            (None, _) => match error {
                ApiError::IoError(e) => Error::from(e),
                ApiError::RequestError(e) => match *e {
                    ureq::Error::Io(e) if e.kind() == io::ErrorKind::StorageFull => Error::from(e),
                    e => Error::new(Kind::Io, format!("the hub cannot be reached: {e}")).help(format!(
                        "check the network and HF_ENDPOINT ({}), or pass a local folder",
                        settings.endpoint
                    )),
                },
                ApiError::LockAcquisition(path) => Error::new(Kind::Io, "another process is downloading this file")
                    .at(path.display().to_string())
                    .help("wait for it and run again"),
                e => Error::input(format!("the hub's answer is malformed: {e}")).at(settings.endpoint.clone()),
            },
        }
    }
}

fn status(error: &ApiError) -> Option<u16> {
    match error {
        ApiError::RequestError(e) => match **e {
            ureq::Error::StatusCode(code) => Some(code),
            _ => None,
        },
        _ => None,
    }
}

/// The request got no answer at all.
pub fn unreachable(failure: &Failure) -> bool {
    use ureq::Error::{ConnectionFailed, HostNotFound, Io, Timeout};
    let Failure::Api(ApiError::RequestError(e)) = failure else { return false };
    matches!(**e, Io(_) | HostNotFound | ConnectionFailed | Timeout(_))
}

/// Worth another try: the connection broke, or the server is overloaded.
fn transient(failure: &Failure) -> bool {
    match failure {
        Failure::Api(ApiError::IoError(e)) => !matches!(
            e.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
        ),
        Failure::Api(e) => unreachable(failure) || status(e).is_some_and(|code| code >= 500 || code == 408),
        Failure::Panicked => false,
    }
}

/// Downloads from one commit of one repository.
pub struct Session<'a> {
    hub: &'a Hub,
    model: &'a Reference,
    progress: &'a dyn Fn(Event<'_>),
    repo: ApiRepo,
    blobs: PathBuf,
    snapshot: PathBuf,
}

impl<'a> Session<'a> {
    pub fn new(hub: &'a Hub, model: &'a Reference, commit: String, progress: &'a dyn Fn(Event<'_>)) -> Result<Self> {
        if !is_hex(&commit) {
            return Err(Error::input(format!("the hub names {commit:?} as the commit")).at(&hub.settings.endpoint));
        }
        let cache: &Cache = &hub.cache;
        let named = cache.repo(Repo::with_revision(model.repo.clone(), RepoType::Model, model.revision.clone()));
        let snapshot = named.pointer_path(&commit);
        // Lets a later run without network, and other programs, find the commit under the branch's name.
        if model.revision != commit {
            named.create_ref(&commit).at(|| snapshot.display().to_string())?;
        }
        let (repo, blobs) = (hub.repo(model, &commit), named.blob_path(""));
        Ok(Session { hub, model, progress, repo, blobs, snapshot })
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
        let (mut failures, mut before) = (0, 0);
        loop {
            let done = Cell::new(0);
            let failure = match self.attempt(name, &done) {
                Ok(()) => return Ok(()),
                Err(Attempt::Failed(f)) if transient(&f) => f,
                Err(Attempt::Failed(f)) => return Err(self.hub.explain(self.model, f)),
                Err(Attempt::Wrong(e)) => return Err(e),
            };
            // Slow progress is progress: only fruitless attempts count.
            failures = if done.get() > before { 1 } else { failures + 1 };
            before = before.max(done.get());
            if failures >= ATTEMPTS {
                let error = self.hub.explain(self.model, failure);
                return Err(error.help("run the same command again: the download goes on where it stopped"));
            }
            let reason = self.hub.explain(self.model, failure);
            (self.progress)(Event::Retry { name, reason: reason.message() });
            std::thread::sleep(self.hub.settings.pause * 2u32.pow(failures - 1));
        }
    }

    fn attempt(&self, name: &str, done: &Cell<u64>) -> Result<(), Attempt> {
        let url = self.repo.url(name);
        let meta = self.hub.guard(|| self.hub.api.metadata(&url)).map_err(Attempt::Failed)?;
        self.sound(&meta)?;
        let (size, blob) = (meta.size() as u64, self.blobs.join(meta.etag()));
        self.shorten(&blob, size)?;
        let report = Report { name, total: size, done, progress: self.progress };
        let pointer = self.hub.guard(|| self.repo.download_with_progress(name, report)).map_err(Attempt::Failed)?;
        let length = std::fs::metadata(&pointer)?.len();
        match length.cmp(&size) {
            std::cmp::Ordering::Equal => Ok(()),
            std::cmp::Ordering::Less => {
                // The server closed early without an error: keep what came, as a part.
                std::fs::remove_file(&pointer)?;
                std::fs::rename(&blob, blob.with_extension("part"))?;
                let message = format!("{} of {size} bytes missing", size - length);
                Err(Attempt::Failed(Failure::Api(io::Error::new(io::ErrorKind::UnexpectedEof, message).into())))
            }
            std::cmp::Ordering::Greater => {
                std::fs::remove_file(&pointer)?;
                std::fs::remove_file(&blob)?;
                let message = format!("the hub sent {length} bytes of a file of {size}");
                Err(Attempt::Wrong(
                    Error::input(message).help("run the same command again, or try another HF_ENDPOINT"),
                ))
            }
        }
    }

    /// Both become file names in the cache.
    fn sound(&self, meta: &Metadata) -> Result<(), Attempt> {
        let commit = self.snapshot.ends_with(meta.commit_hash());
        if commit && is_hex(meta.commit_hash()) && !meta.etag().is_empty() && meta.etag().chars().all(super::plain) {
            return Ok(());
        }
        let message = format!("the hub's answer has etag {:?} and commit {:?}", meta.etag(), meta.commit_hash());
        Err(Attempt::Wrong(Error::input(message).at(&self.hub.settings.endpoint)))
    }

    /// A complete part, left by a run that died before renaming it, would ask for the bytes after the end, which servers
    /// refuse: its last byte is downloaded again. A longer one is not ours.
    fn shorten(&self, blob: &Path, size: u64) -> Result<(), Attempt> {
        let part = blob.with_extension("part");
        let length = std::fs::metadata(&part).map_or(0, |m| m.len());
        if length > size {
            std::fs::remove_file(&part)?;
        } else if length == size && size > 0 {
            std::fs::OpenOptions::new().write(true).open(&part)?.set_len(size - 1)?;
        }
        Ok(())
    }
}

fn is_hex(s: &str) -> bool {
    s.len() >= 7 && s.bytes().all(|b| b.is_ascii_hexdigit())
}

enum Attempt {
    Failed(Failure),
    Wrong(Error),
}

impl From<io::Error> for Attempt {
    fn from(e: io::Error) -> Self {
        Attempt::Wrong(Error::from(e))
    }
}

/// Turns hf-hub's increments into totals.
struct Report<'a> {
    name: &'a str,
    total: u64,
    done: &'a Cell<u64>,
    progress: &'a dyn Fn(Event<'_>),
}

impl Progress for Report<'_> {
    fn init(&mut self, _: usize, _: &str) {
        self.done.set(0);
    }
    fn update(&mut self, bytes: usize) {
        self.done.set(self.done.get() + bytes as u64);
        (self.progress)(Event::File { name: self.name, done: self.done.get(), total: self.total });
    }
    fn finish(&mut self) {}
}

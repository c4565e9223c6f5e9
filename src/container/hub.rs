//! Models from the Hugging Face Hub: `hf:org/name`, `hf:org/name@revision`, `hf:org/name/file.gguf`; and files of its data sets.
//! Files land in the cache that Python's `huggingface_hub` uses, so what one has downloaded the other finds.
//! Variables as there: `HF_TOKEN`, `HF_TOKEN_PATH`, `HF_ENDPOINT`, `HF_HOME`, `HF_HUB_CACHE`, `HF_HUB_OFFLINE`.

mod download;
mod env;
mod failure;
mod http;
mod select;

use std::fmt;
use std::path::PathBuf;

use hf_hub::api::sync::{Api, ApiBuilder};
use hf_hub::{Cache, Repo, RepoType};

use crate::error::{At, Error, Result};
pub use env::Settings;
use failure::Failure;

/// What happens during [`Hub::fetch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The newest snapshot in the cache is used: the hub cannot be reached, or is not `asked`, as `HF_HUB_OFFLINE` is set.
    Offline { asked: bool },
    /// `files` belong to what was asked for, of which `cached` are here already.
    Plan { files: usize, cached: usize },
    /// `done` of `total` bytes of a file are here.
    File { name: &'a str, done: u64, total: u64 },
    /// The connection broke; the download goes on where it stopped.
    Retry { name: &'a str, reason: &'a str },
}

/// What a repository holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holds {
    Model,
    Data,
}

impl Holds {
    fn name(self) -> &'static str {
        match self {
            Holds::Model => "model",
            Holds::Data => "data set",
        }
    }

    fn repo_type(self) -> RepoType {
        match self {
            Holds::Model => RepoType::Model,
            Holds::Data => RepoType::Dataset,
        }
    }

    /// Whether a file can be asked for by its name.
    fn is_file(self, name: &str) -> bool {
        match self {
            Holds::Model => name.ends_with(".gguf"),
            Holds::Data => select::is_rows(name),
        }
    }
}

/// A model on the hub, or a file of a data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    pub holds: Holds,
    /// `org/name`
    pub repo: String,
    /// A branch, tag or commit.
    pub revision: String,
    /// A file in the repository: GGUF, or rows of data.
    pub file: Option<String>,
}

impl Reference {
    /// Parses `hf:org/name[/file.gguf][@revision]`; `None` if it does not start with `hf:`.
    pub fn parse(text: &str) -> Option<Result<Reference>> {
        Self::of(Holds::Model, text, "hf:org/name, hf:org/name@revision or hf:org/name/file.gguf")
    }

    /// The same of a data set: `hf:org/name[/folder/file.parquet][@revision]`.
    pub fn data(text: &str) -> Option<Result<Reference>> {
        Self::of(Holds::Data, text, "hf:org/name/file.parquet or hf:org/name/file.parquet@revision (.jsonl, .json)")
    }

    fn of(holds: Holds, text: &str, forms: &str) -> Option<Result<Reference>> {
        let rest = text.strip_prefix("hf:")?;
        Some(Self::parts(holds, rest).ok_or_else(|| {
            Error::request(format!("{text:?} is not a {} on the hub", holds.name())).help(format!("write {forms}"))
        }))
    }

    /// The same with the file of `other`, where it has none itself and is of the same repository.
    pub fn or_file_of(mut self, other: &Reference) -> Reference {
        if self.file.is_none() && self.repo == other.repo {
            self.file.clone_from(&other.file);
        }
        self
    }

    /// Where people read about it.
    fn page(&self, endpoint: &str) -> String {
        let folder = if self.holds == Holds::Data { "datasets/" } else { "" };
        format!("{endpoint}/{folder}{}", self.repo)
    }

    fn at(&self, revision: &str) -> Repo {
        Repo::with_revision(self.repo.clone(), self.holds.repo_type(), revision.to_owned())
    }

    fn parts(holds: Holds, text: &str) -> Option<Reference> {
        let (path, revision) = text.split_once('@').unwrap_or((text, "main"));
        let end = path.match_indices('/').nth(1).map_or(path.len(), |(i, _)| i);
        let (repo, file) = (&path[..end], path.get(end + 1..));
        let file_is_sound = file.is_none_or(|f| sound(f) && holds.is_file(f));
        (sound(repo) && sound(revision) && file_is_sound).then(|| Reference {
            holds,
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

/// Whether it may become folders of the cache.
fn sound(path: &str) -> bool {
    path.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.chars().all(plain))
}

fn plain(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+')
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(file) = &self.file {
            write!(f, "/{file}")?;
        }
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

/// A client of the hub.
pub struct Hub {
    api: Api,
    http: http::Http,
    cache: Cache,
    settings: Settings,
}

impl Hub {
    pub fn new(settings: Settings) -> Result<Hub> {
        let cache = Cache::new(settings.cache.clone());
        let api = ApiBuilder::from_cache(cache.clone())
            .with_progress(false)
            .with_endpoint(settings.endpoint.clone())
            .with_token(settings.token.clone())
            .with_user_agent("quant", env!("CARGO_PKG_VERSION"))
            .build()
            .map_err(|e| Error::request(e.to_string()).at(settings.endpoint.clone()))?;
        let http = http::Http::new(settings.token.as_deref());
        Ok(Hub { api, http, cache, settings })
    }

    /// Downloads what is missing and returns the folder of the model, its GGUF file, or the file of the data set.
    /// An interrupted download goes on where it stopped.
    pub fn fetch(&self, model: &Reference, progress: &dyn Fn(Event<'_>)) -> Result<PathBuf> {
        self.fetch_inner(model, progress).at(|| model.to_string())
    }

    fn fetch_inner(&self, model: &Reference, progress: &dyn Fn(Event<'_>)) -> Result<PathBuf> {
        if self.settings.offline {
            return self.cached(model, progress, None);
        }
        let info = match self.repo(model, &model.revision).info().map_err(Failure::from) {
            Ok(info) => info,
            Err(e) if e.is_unreachable() => return self.cached(model, progress, Some(e)),
            Err(e) => return Err(e.explain(model, &self.settings)),
        };
        let names: Vec<_> = info.siblings.into_iter().map(|s| s.rfilename).collect();
        let file = match model.holds {
            Holds::Data if model.file.is_none() => Some(select::rows(model, &names)?),
            _ => model.file.clone(),
        };
        let model = &Reference { file, ..model.clone() };
        let session = download::Session::new(self, model, &info.sha, progress)?;
        let first = session.all(&select::first(model, &names)?)?;
        match &model.file {
            Some(file) => Ok(first.join(file)),
            None => {
                select::check(&first)?;
                session.all(&select::weights(&first, &names)?)
            }
        }
    }

    /// The snapshot that an earlier run has left; whether it is complete, opening it will tell.
    fn cached(&self, model: &Reference, progress: &dyn Fn(Event<'_>), cause: Option<Failure>) -> Result<PathBuf> {
        let repo = self.cache.repo(model.at(&model.revision));
        let wanted = model.file.as_deref().or((model.holds == Holds::Model).then_some("config.json"));
        // The cache knows branches by name and commits by their folder.
        let by_commit = |file: &str| Some(repo.pointer_path(&model.revision).join(file)).filter(|path| path.exists());
        let found = wanted.and_then(|file| repo.get(file).or_else(|| by_commit(file)));
        match (found, cause) {
            (Some(path), cause) => {
                progress(Event::Offline { asked: cause.is_some() });
                let folder = || path.parent().map(PathBuf::from);
                Ok(if model.file.is_some() { None } else { folder() }.unwrap_or(path))
            }
            (None, Some(cause)) => Err(cause.explain(model, &self.settings)),
            (None, None) => Err(Error::request("not in the cache, and HF_HUB_OFFLINE is set")
                .at(self.settings.cache.display().to_string())
                .help(match wanted {
                    Some(_) => "unset HF_HUB_OFFLINE to download it".to_owned(),
                    None => format!("name its file ({model}/FILE), or unset HF_HUB_OFFLINE"),
                })),
        }
    }

    fn repo(&self, model: &Reference, revision: &str) -> hf_hub::api::sync::ApiRepo {
        self.api.repo(model.at(revision))
    }
}

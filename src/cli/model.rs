//! A MODEL argument: a Hugging Face folder, a GGUF file or `hf:org/name[@revision]`.

use std::path::{Path, PathBuf};
#[cfg(feature = "hub")]
use std::sync::Mutex;

#[cfg(feature = "hub")]
use super::report::Progress;
use super::report::Reporter;
#[cfg(feature = "hub")]
use crate::container::hub::{Event, Hub, Reference, Settings};
use crate::container::{self, Checkpoint, OpenOptions};
use crate::error::{Error, Result};

pub struct Model {
    pub checkpoint: Box<dyn Checkpoint>,
    /// What its artifacts are called: the folder's or the file's name without its suffix.
    pub name: String,
    /// Where its artifacts go by default: beside it; downloaded models leave theirs in the current folder.
    pub beside: PathBuf,
}

impl Model {
    /// Every file that it was read from.
    pub fn files(&self) -> Vec<PathBuf> {
        self.checkpoint.files().into_iter().map(|(path, _)| path).collect()
    }
}

pub fn open(argument: &str, options: &OpenOptions, reporter: &Reporter) -> Result<Model> {
    if let Some(id) = argument.strip_prefix("hf:") {
        let path = download(argument, reporter)?;
        let name = id.split('@').next().unwrap_or(id).rsplit('/').next().unwrap_or(id);
        let name = name.strip_suffix(".gguf").unwrap_or(name).to_owned();
        return Ok(Model { checkpoint: container::open_with(&path, options)?, name, beside: PathBuf::new() });
    }
    let path = &snapshot(Path::new(argument)).unwrap_or_else(|| argument.into());
    let checkpoint = container::open_with(path, options).map_err(|e| match path.exists() {
        true => e,
        false => e.help(elsewhere(argument)),
    })?;
    // `.` and `..` have no name of their own
    let full = std::path::absolute(path)?;
    let full = if full.file_name().is_none() { full.canonicalize()? } else { full };
    if let Some(name) = cached(&full) {
        return Ok(Model { checkpoint, name, beside: PathBuf::new() });
    }
    let stem = if full.is_dir() { full.file_name() } else { full.file_stem() };
    let name = stem.map_or_else(|| "model".to_owned(), |s| s.to_string_lossy().into_owned());
    Ok(Model { checkpoint, name: strip_shard(&name).to_owned(), beside: full.parent().unwrap_or(&full).to_owned() })
}

/// The name of a model in the hub's cache, `models--ORG--NAME/snapshots/COMMIT`, beside which nothing of ours belongs.
fn cached(folder: &Path) -> Option<String> {
    let snapshots = folder.parent().filter(|p| p.ends_with("snapshots"))?;
    let repository = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?;
    Some(repository.rsplit("--").next().unwrap_or(repository).to_owned())
}

/// Where the model is if `folder` is its whole place in the hub's cache: the snapshot that is `main`, else the only one.
fn snapshot(folder: &Path) -> Option<PathBuf> {
    let snapshots = folder.join("snapshots");
    let commit = std::fs::read_to_string(folder.join("refs/main")).ok();
    let commit =
        commit.map(|c| c.trim().to_owned()).filter(|c| !c.is_empty() && c.bytes().all(|b| b.is_ascii_hexdigit()));
    if let Some(main) = commit.map(|c| snapshots.join(c)).filter(|main| main.is_dir()) {
        return Some(main);
    }
    let mut all = std::fs::read_dir(snapshots).ok()?.flatten().map(|entry| entry.path());
    let only = all.next()?;
    all.next().is_none().then_some(only)
}

/// Where a model may be that is not on this path.
fn elsewhere(argument: &str) -> String {
    match argument.split('/').collect::<Vec<_>>()[..] {
        [org, name] if !org.is_empty() && !org.starts_with('.') && !name.is_empty() => {
            format!("for the model of this name on the Hugging Face Hub write hf:{argument}")
        }
        _ => "pass a folder as Hugging Face publishes it, a GGUF file or hf:org/name".to_owned(),
    }
}

/// `model-00001-of-00004` -> `model`
fn strip_shard(name: &str) -> &str {
    let digits = |s: &str| s.len() == 5 && s.bytes().all(|b| b.is_ascii_digit());
    let parts: Vec<&str> = name.rsplitn(4, '-').collect();
    match parts[..] {
        [count, "of", number, base] if digits(count) && digits(number) => base,
        _ => name,
    }
}

#[cfg(feature = "hub")]
fn download(id: &str, reporter: &Reporter) -> Result<PathBuf> {
    let reference = Reference::parse(id).transpose()?;
    fetch(&reference.ok_or_else(|| Error::request(format!("{id:?} is not a model on the hub")))?, reporter)
}

/// A file of a data set on the hub, `hf:org/name[/FILE][@revision]`; which one, `usual` says where that is of the same set.
#[cfg(feature = "hub")]
pub fn download_rows(id: &str, usual: Option<&str>, reporter: &Reporter) -> Result<PathBuf> {
    let parse = |id: &str| Reference::data(id).transpose();
    let reference = parse(id)?.ok_or_else(|| Error::request(format!("{id:?} is not a data set on the hub")))?;
    let usual = usual.map(parse).transpose()?.flatten();
    let reference = usual.into_iter().fold(reference, |asked, usual| asked.or_file_of(&usual));
    fetch(&reference, reporter)
}

/// Files of text; those of data sets on the hub (`hf:org/name/FILE[@revision]`) are brought here.
pub fn texts(paths: &[PathBuf], reporter: &Reporter) -> Result<Vec<PathBuf>> {
    let here = |path: &PathBuf| match path.to_str().filter(|p| p.starts_with("hf:")) {
        Some(id) => download_rows(id, None, reporter),
        None => Ok(path.clone()),
    };
    paths.iter().map(here).collect()
}

#[cfg(feature = "hub")]
fn fetch(reference: &Reference, reporter: &Reporter) -> Result<PathBuf> {
    let bars = Mutex::new(None::<(String, Progress)>);
    Hub::new(Settings::from_env()?)?.fetch(reference, &|event| {
        let mut bars = bars.lock().unwrap_or_else(|p| p.into_inner());
        match event {
            Event::Offline { asked } => {
                let why = if asked { "the hub is out of reach" } else { "HF_HUB_OFFLINE is set" };
                reporter.note(&format!("{why}: using what was downloaded before"));
            }
            Event::Plan { files, cached } => {
                reporter.note(&format!("{reference}: {files} files, {cached} here already"))
            }
            Event::Retry { name, reason } => reporter.note(&format!("{name}: {reason}; going on where it stopped")),
            Event::File { name, done, total } => {
                if bars.as_ref().is_none_or(|(current, _)| current != name) {
                    *bars = Some((name.to_owned(), reporter.progress(name, total)));
                }
                if let Some((_, bar)) = bars.as_ref() {
                    bar.set(done);
                }
            }
        }
    })
}

#[cfg(not(feature = "hub"))]
fn download(id: &str, _: &Reporter) -> Result<PathBuf> {
    Err(no_hub(id, "the model yourself and pass its folder"))
}

#[cfg(not(feature = "hub"))]
pub fn download_rows(id: &str, _: Option<&str>, _: &Reporter) -> Result<PathBuf> {
    Err(no_hub(id, "the rows yourself and pass their file"))
}

#[cfg(not(feature = "hub"))]
fn no_hub(id: &str, what: &str) -> Error {
    Error::unsupported(format!("cannot download {id}: this build has no hub support"))
        .help(format!("build with `--features hub`, or download {what}"))
}

#[cfg(test)]
mod tests {
    #[test]
    fn models_of_the_cache_have_the_name_of_their_repository() {
        let of = |path: &str| super::cached(std::path::Path::new(path));
        assert_eq!(of("/c/hub/models--org--Some-Model/snapshots/0a1b").as_deref(), Some("Some-Model"));
        assert_eq!(of("/c/models--gpt2/snapshots/0a1b").as_deref(), Some("gpt2"));
        assert_eq!((of("/c/models--org--m"), of("/snapshots/x"), of("/")), (None, None, None));
    }

    #[test]
    fn places_in_the_cache_stand_for_their_snapshots() {
        let cache = tempfile::tempdir().unwrap();
        let place = cache.path().join("models--org--m");
        let at = |path: &str| place.join(path);
        assert_eq!(super::snapshot(&place), None);
        std::fs::create_dir_all(at("snapshots/0a")).unwrap();
        assert_eq!(super::snapshot(&place), Some(at("snapshots/0a")), "the only one");
        std::fs::create_dir_all(at("snapshots/0b")).unwrap();
        assert_eq!(super::snapshot(&place), None, "which one?");
        std::fs::create_dir_all(at("refs")).unwrap();
        for (commit, found) in [("0b\n", Some(at("snapshots/0b"))), ("0c", None), ("..", None), ("", None)] {
            std::fs::write(at("refs/main"), commit).unwrap();
            assert_eq!(super::snapshot(&place), found, "{commit:?}");
        }
    }

    #[test]
    fn a_name_of_the_hub_is_recognised() {
        assert!(super::elsewhere("org/name").contains("hf:org/name"));
        for path in ["name", "./name", "../name", "/org/name", "a/b/c", "org/"] {
            assert!(super::elsewhere(path).starts_with("pass a folder"), "{path}");
        }
    }

    #[test]
    fn shard_suffixes_are_no_part_of_a_name() {
        for (file, name) in
            [("m-00001-of-00004", "m"), ("a-b-00002-of-00002", "a-b"), ("m-1-of-2", "m-1-of-2"), ("m", "m")]
        {
            assert_eq!(super::strip_shard(file), name);
        }
    }
}

//! Shared libraries that may or may not be there. A missing one, a damaged one and one without a function are errors, never panics.

use std::ffi::OsStr;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

pub struct Library {
    /// Never closed: threads that used it may still end in it.
    inner: ManuallyDrop<libloading::Library>,
    pub path: PathBuf,
}

impl Library {
    /// Errors: it does not load, and why the loader says so.
    pub fn open(path: impl AsRef<OsStr>) -> Result<Library> {
        let path = PathBuf::from(path.as_ref());
        match load(&path) {
            Ok(inner) => Ok(Library { inner: ManuallyDrop::new(inner), path }),
            Err(e) => {
                // What the loader said lies one deeper.
                let said = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
                Err(Error::new(Kind::Device, said))
            }
        }
    }

    /// A function of this library.
    ///
    /// # Safety
    /// `T` is the type of a pointer to that function, and is not called after the library is gone.
    pub unsafe fn function<T: Copy>(&self, name: &str) -> Result<T> {
        // SAFETY: the caller's word.
        let found = unsafe { self.inner.get::<T>(format!("{name}\0").as_bytes()) };
        found.map(|symbol| *symbol).map_err(|_| {
            Error::new(Kind::Device, format!("{} has no {name}", self.path.display()))
                .help("it is damaged, or of a version before CUDA 12: install it anew")
        })
    }
}

/// Its symbols are there for libraries that are loaded later: NVRTC's looks for its built-ins so.
#[cfg(unix)]
fn load(path: &Path) -> Result<libloading::Library, libloading::Error> {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: the libraries named here are NVIDIA's, whose initializers ask for nothing.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) }.map(Into::into)
}

#[cfg(not(unix))]
fn load(path: &Path) -> Result<libloading::Library, libloading::Error> {
    // SAFETY: as above.
    unsafe { libloading::Library::new(path) }
}

/// Folders where CUDA's libraries lie beside the loader's own: what the environment names, toolkits, conda, Python's wheels.
pub fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).collect();
    toolkits.extend(children(Path::new("/usr/local"), "cuda"));
    let mut out: Vec<PathBuf> = toolkits.iter().flat_map(|t| [t.join("lib64"), t.join("lib"), t.join("bin")]).collect();
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
    out.extend(prefixes.iter().map(|p| p.join("lib")));
    prefixes.extend(variable("HOME").map(|home| home.join(".local")));
    // A Python on the path brings its packages, activated or not.
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pythons = std::env::split_paths(&path).filter(|p| p.join("python3").exists());
    prefixes.extend(pythons.filter_map(|p| p.parent().map(Path::to_owned)));
    let mut packages: Vec<PathBuf> =
        std::env::split_paths(&std::env::var_os("PYTHONPATH").unwrap_or_default()).collect();
    for python in prefixes.iter().flat_map(|p| children(&p.join("lib"), "python3")) {
        packages.extend(["site-packages", "dist-packages"].map(|p| python.join(p)));
    }
    out.extend(packages.iter().flat_map(|p| children(&p.join("nvidia"), "")).map(|p| p.join("lib")));
    let mut seen = std::collections::HashSet::new();
    out.retain(|p| p.is_dir() && seen.insert(p.clone()));
    out
}

/// Where a library may be: what `variable` names, else under each of `names`, the best first, as the loader looks them up and in
/// [`folders`].
pub fn candidates(variable: &str, names: impl Iterator<Item = String>) -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os(variable).filter(|v| !v.is_empty()) {
        return vec![named.into()];
    }
    let folders = folders();
    let mut out = Vec::new();
    for name in names {
        out.push(PathBuf::from(&name));
        out.extend(folders.iter().map(|f| f.join(&name)).filter(|p| p.exists()));
    }
    out
}

/// The first that opens.
///
/// Errors: why the first of those that are there does not; of names that the loader does not find there is nothing to tell.
pub fn first<T>(paths: Vec<PathBuf>, open: impl Fn(&Path) -> Result<T>) -> Result<T, Option<String>> {
    let mut refused = None;
    for path in paths {
        match open(&path) {
            Ok(found) => return Ok(found),
            Err(e) if path.is_absolute() && refused.is_none() => {
                refused = Some(format!("{}: {}", path.display(), e.message()));
            }
            Err(_) => {}
        }
    }
    Err(refused)
}

/// A library that another in the same folder needs: loaded first, it is found.
pub fn beside(path: &Path, prefix: &str) -> Option<Library> {
    let folder = path.parent().filter(|p| p.is_absolute())?;
    let fits = |p: &PathBuf| !p.to_string_lossy().contains(".alt.");
    children(folder, prefix).into_iter().filter(fits).find_map(|p| Library::open(p).ok())
}

/// What lies in a folder and begins so, the last first: of several versions the newest.
pub fn children(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let named = |p: &PathBuf| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(prefix));
    let mut out: Vec<PathBuf> = entries.flatten().map(|e| e.path()).filter(named).collect();
    out.sort_by(|a, b| b.cmp(a));
    out
}

//! Compiled kernels on disk. A file's name is a digest of all that decides its bytes, so none is ever out of date.

use std::io::Write;
use std::path::PathBuf;

use super::nvrtc::Nvrtc;
use super::source::Unit;
use crate::error::Result;

/// `$QUANT_CACHE`, else `quant` in the user's cache folder; kernels lie in `cubin` there. `None`: there is neither.
pub fn folder() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = variable("QUANT_CACHE")
        .or_else(|| variable("XDG_CACHE_HOME").map(|p| p.join("quant")))
        .or_else(|| variable("HOME").map(|p| p.join(".cache/quant")))
        .or_else(|| variable("LOCALAPPDATA").map(|p| p.join("quant")))?;
    Some(base.join("cubin"))
}

/// The CUBIN of `unit`, compiled if it is not there. A folder that cannot be written is no reason to fail.
pub fn cubin(nvrtc: &Nvrtc, unit: &Unit, arch: &str) -> Result<Vec<u8>> {
    let said = format!("{:?}\n{:?}\n{}", nvrtc.version, unit.options(arch), unit.source());
    let digest = blake3::hash(said.as_bytes()).to_hex();
    let folder = folder();
    let path = folder.as_ref().map(|f| f.join(format!("{}-{arch}-{}.cubin", unit.name(), &digest[..24])));
    if let Some(found) = path.as_ref().and_then(|p| std::fs::read(p).ok()).filter(|b| b.starts_with(b"\x7fELF")) {
        return Ok(found);
    }
    let made = nvrtc.cubin(unit, arch)?;
    if let (Some(folder), Some(path)) = (folder, path) {
        let write = || {
            std::fs::create_dir_all(&folder)?;
            let mut file = tempfile::NamedTempFile::new_in(&folder)?;
            file.write_all(&made)?;
            file.persist(&path).map_err(|e| e.error)
        };
        // It will be compiled again.
        let _: std::io::Result<_> = write();
    }
    Ok(made)
}

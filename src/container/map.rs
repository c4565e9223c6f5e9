//! Files as memory.

use std::fs::File;
use std::path::Path;

use memmap2::Mmap;

use crate::error::{Error, Result};

/// Maps a whole file to read it. The error lacks the path.
pub fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(Error::request("not a regular file"));
    }
    // SAFETY: the map is only read. A writer that changes the file meanwhile is outside any reader's control; our own
    // writers never change a file in place.
    Ok(unsafe { Mmap::map(&file)? })
}

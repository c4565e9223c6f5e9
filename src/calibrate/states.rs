//! Hidden states of all tokens between two layers, in a mapped file: the system keeps in memory what fits, and a killed run finds
//! them again.

use std::ops::Range;
use std::path::Path;

use memmap2::MmapMut;

use crate::container::output::{allocate, check_space, open_private};
use crate::error::{At, Error, Result};

/// `[tokens][hidden]`, f32 as this machine stores it.
pub struct States {
    map: MmapMut,
    hidden: usize,
}

impl States {
    /// Opens or makes the file; what it held stays if its size is right.
    pub fn open(path: &Path, tokens: usize, hidden: usize) -> Result<States> {
        let bytes = tokens.checked_mul(hidden).and_then(|n| n.checked_mul(4)).map(|n| n as u64);
        let bytes = bytes.ok_or_else(|| Error::limits(format!("{tokens} tokens are too many")).help("lower --rows"))?;
        let there = std::fs::metadata(path).map_or(0, |m| m.len());
        check_space(path, bytes.saturating_sub(there))?;
        let open = || -> Result<MmapMut> {
            let file = open_private(path)?;
            file.set_len(bytes)?;
            // A mapped page that the disk has no room for is a signal, not an error.
            allocate(&file, bytes)?;
            // SAFETY: the file is ours: under a name that only a run with this output uses, and such runs exclude each other.
            Ok(unsafe { MmapMut::map_mut(&file)? })
        };
        Ok(States { map: open().at(|| path.display().to_string())?, hidden })
    }

    pub fn read(&self, tokens: Range<usize>) -> &[f32] {
        &bytemuck::cast_slice(&self.map)[tokens.start * self.hidden..tokens.end * self.hidden]
    }

    pub fn of(&mut self, tokens: Range<usize>) -> &mut [f32] {
        let all: &mut [f32] = bytemuck::cast_slice_mut(&mut self.map);
        &mut all[tokens.start * self.hidden..tokens.end * self.hidden]
    }

    /// BLAKE3 of all of them, by all threads of the pool.
    pub fn hash(&self) -> String {
        blake3::Hasher::new().update_rayon(&self.map).finalize().to_hex().to_string()
    }
}

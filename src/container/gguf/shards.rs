//! Split files: `<prefix>-00001-of-00003.gguf`, numbered by `split.*` keys. Source: llama.cpp `tools/gguf-split`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::metadata::Metadata;

/// u16, from 0.
pub const KEY_NO: &str = "split.no";
/// u16.
pub const KEY_COUNT: &str = "split.count";
/// i32, of all shards together.
pub const KEY_TENSORS: &str = "split.tensors.count";
pub const KEYS: [&str; 3] = [KEY_NO, KEY_COUNT, KEY_TENSORS];

/// File name of shard `no` (from 0).
pub fn name(prefix: &str, no: usize, count: usize) -> String {
    format!("{prefix}-{:05}-of-{count:05}.gguf", no + 1)
}

/// Where shard `no` of `count` (or a file that is not split) is written, when the user asks for `path`.
pub fn output(path: &Path, no: usize, count: Option<usize>) -> PathBuf {
    match count {
        None => path.to_owned(),
        Some(count) => {
            let file = path.file_name().unwrap_or_default().to_string_lossy();
            path.with_file_name(name(file.strip_suffix(".gguf").unwrap_or(&file), no, count))
        }
    }
}

/// The paths of all shards, given the first and its metadata; `None` if the file is not split.
pub fn siblings(first: &Path, metadata: &Metadata) -> Result<Option<Vec<PathBuf>>> {
    // gguf-split leaves a count of 0 behind in merged files.
    let count = metadata.u64(KEY_COUNT).unwrap_or(0);
    if count <= 1 {
        return Ok(None);
    }
    let count = u16::try_from(count).map_err(|_| Error::input(format!("{KEY_COUNT} is {count}")))?.into();
    let file = first.file_name().unwrap_or_default().to_string_lossy();
    let no =
        metadata.u64(KEY_NO).ok_or_else(|| Error::input(format!("{KEY_COUNT} is {count} but {KEY_NO} is missing")))?;
    if no != 0 {
        let error = Error::request(format!("this is shard {} of {count}, without the model's metadata", no + 1));
        return Err(match prefix(&file, no as usize, count) {
            Some(prefix) => error.help(format!("open {}", name(prefix, 0, count))),
            None => error.help("open the first shard"),
        });
    }
    let prefix = prefix(&file, 0, count).ok_or_else(|| {
        Error::input(format!("this is the first of {count} shards, so its name must end in {}", name("", 0, count)))
            .help("give all shards the names they were made with")
    })?;
    Ok(Some((0..count).map(|no| first.with_file_name(name(prefix, no, count))).collect()))
}

fn prefix(file: &str, no: usize, count: usize) -> Option<&str> {
    file.strip_suffix(&name("", no, count))
}

/// Checks what shard `no` says of itself.
pub fn check(metadata: &Metadata, no: usize, count: usize, tensors: usize) -> Result<()> {
    let expected = [(KEY_NO, no), (KEY_COUNT, count), (KEY_TENSORS, tensors)];
    for (key, expected) in expected {
        match metadata.get(key) {
            Some(value) if value.as_u64() == Some(expected as u64) => {}
            // Nothing but this check depends on it.
            None if key == KEY_TENSORS => {}
            Some(value) => {
                return Err(Error::input(format!("{key} is {value}, expected {expected}"))
                    .help("the shards do not belong together: download the whole set again"));
            }
            None => return Err(Error::input(format!("{key} is missing in a shard of a split model"))),
        }
    }
    Ok(())
}

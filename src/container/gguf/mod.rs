//! GGUF: one header of typed metadata and tensor places, then the tensors. Source: ggml `docs/gguf.md`.
//!
//! [`parse`] is the whole reader of untrusted bytes; [`Gguf`] maps the file (or all shards of a split one) and serves
//! weights from it; [`layout`] predicts every byte's place in a file to be written and what [`create`] returns fills it in.

mod encode;
mod header;
mod layout;
mod read;
mod shards;
#[cfg(test)]
mod tests;
mod write;

pub use header::{Header, TensorInfo, parse};
pub use layout::{Layout, Shard, TensorSpec, layout};
pub use read::Gguf;
pub use write::create;

pub use super::sink::Slot;

use super::{Container, sniff};

/// The row of [`crate::container::CONTAINERS`].
pub const CONTAINER: Container = Container {
    name: "gguf",
    about: "llama.cpp's single file (ggml docs/gguf.md); of a split one, the first shard",
    detect: |path| path.is_file() && sniff::first_bytes(path).is_ok_and(|b| b.starts_with(MAGIC)),
    open: |path, _| Ok(Box::new(Gguf::open(path)?)),
};

pub const MAGIC: &[u8; 4] = b"GGUF";
/// Written; 2 is read too (the two differ only in that 3 allows big-endian files).
pub const VERSION: u32 = 3;
/// Of the data section and of every tensor in it, where `general.alignment` does not say otherwise.
pub const ALIGNMENT: usize = 32;
pub const KEY_ALIGNMENT: &str = "general.alignment";
/// ggml keeps names in 64 bytes, the final NUL included.
pub const MAX_NAME: usize = 63;
pub const MAX_DIMS: usize = 4;

const TYPE_STRING: u32 = 8;
const TYPE_ARRAY: u32 = 9;

fn padded(n: usize, alignment: usize) -> Option<usize> {
    n.checked_next_multiple_of(alignment)
}

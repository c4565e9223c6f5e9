//! Architectures: which weights a family has, what they are called, and what a runtime must be told about them.
//! The canonical name of a weight is its GGUF name (`blk.3.attn_q.weight`), experts stacked.

mod id;

pub use id::{Role, WeightId};

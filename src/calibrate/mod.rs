//! What the inputs of a model's weights look like on real text.

mod collect;
pub mod data;
mod export;
pub mod fingerprint;
pub mod imatrix;
mod journal;
pub mod layout;
pub mod merge;
pub mod method;
mod random;
pub mod run;
mod states;
pub mod stats;
mod write;

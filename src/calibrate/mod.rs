//! What the inputs of a model's weights look like on real text.

pub mod budget;
pub mod calibration;
mod collect;
pub mod coverage;
pub mod data;
mod export;
pub mod fingerprint;
pub mod imatrix;
mod journal;
pub mod layout;
pub mod merge;
pub mod method;
pub mod mix;
pub mod overlap;
mod random;
pub mod run;
mod spectrum;
mod states;
pub mod stats;
mod write;
mod writing;

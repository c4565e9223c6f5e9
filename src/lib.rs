//! `quant` turns a trained language model into smaller files that other runtimes load, and proves what each file lost.
//!
//! A model on disk is a [`container::Checkpoint`] whose weights each lie in some [`codec::Codec`]; a [`recipe`] chooses new
//! codecs; [`convert`] writes them, [`allocate`] finds the best mix of them. Each module uses only those before it in this list:

pub mod error;
pub mod metadata;
mod nearest;
pub mod tensor;
mod widest;

pub mod codec;

pub mod arch;

pub mod container;

pub mod recipe;

pub mod device;

pub mod engine;

pub mod calibrate;

pub mod eval;

pub mod convert;

pub mod allocate;

pub mod cli;

//! Models on disk. [`open`] turns any of them into a [`Checkpoint`]: source models and artifacts are one type.

pub mod tokenizer;

use std::path::Path;

use crate::arch::WeightId;
use crate::codec::Codec;
use crate::error::Result;
use crate::metadata::Metadata;
use crate::tensor::{Dims, Packed};

/// How a container orders rows and offsets norms. Hugging Face and GGUF disagree for some families
/// (`arch` knows which); everything else is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    HuggingFace,
    Gguf,
}

/// One tensor of a checkpoint under its canonical (GGUF) name, experts stacked. Known from headers alone.
#[derive(Clone, Debug)]
pub struct Tensor {
    /// `blk.3.ffn_down_exps.weight`
    pub name: String,
    pub id: WeightId,
    /// Outermost first (the reverse of GGUF's `ne`): `[experts, rows, cols]`, `[rows, cols]` or `[n]`.
    pub shape: Vec<usize>,
    pub codec: &'static dyn Codec,
    /// The name in its own file, for messages: `model.layers.3.mlp.down_proj.weight`.
    pub source: String,
    /// File name of the shard that holds it (the first, if several do).
    pub file: String,
    pub bytes: usize,
}

impl Tensor {
    /// Matrices in the stack: experts, or 1. Every dimension before the last two counts.
    pub fn planes(&self) -> usize {
        self.shape.iter().rev().skip(2).product()
    }
    /// One matrix of the stack; vectors are one row.
    pub fn dims(&self) -> Dims {
        let mut inner = self.shape.iter().rev();
        let cols = inner.next().copied().unwrap_or(1);
        Dims { rows: inner.next().copied().unwrap_or(1), cols }
    }
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One matrix as it lies in the file.
#[derive(Clone, Debug)]
pub struct Weight<'a> {
    pub codec: &'static dyn Codec,
    pub packed: Packed<'a>,
    /// Multiplies every decoded value: NVFP4's tensor scale (`.scale` in GGUF); 1 elsewhere.
    pub scale: f32,
}

/// A source tensor that has no counterpart in a converted file, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub source: String,
    pub reason: &'static str,
}

/// Any model on disk. Everything is checked when it is opened; `read` borrows the memory map.
pub trait Checkpoint: Send + Sync {
    /// `gguf`, `safetensors`
    fn container(&self) -> &'static str;
    fn convention(&self) -> Convention;
    /// GGUF's name of the architecture: `llama`.
    fn arch(&self) -> &str;
    fn tensors(&self) -> &[Tensor];
    /// Source tensors that `tensors` leaves out.
    fn dropped(&self) -> &[Dropped];
    /// Plane `plane` of `tensors()[tensor]`.
    fn read(&self, tensor: usize, plane: usize) -> Result<Weight<'_>>;
    /// Metadata as a GGUF file of this model would carry it, tokenizer included, without `general.file_type`.
    fn metadata(&self) -> Result<Metadata>;
    /// Every file that was opened, and its size.
    fn files(&self) -> Vec<(std::path::PathBuf, u64)>;
}

impl dyn Checkpoint + '_ {
    pub fn find(&self, name: &str) -> Option<usize> {
        self.tensors().iter().position(|t| t.name == name)
    }
}

/// Opens a Hugging Face folder or a GGUF file (the first shard, if split).
pub fn open(path: &Path) -> Result<Box<dyn Checkpoint>> {
    let _ = path;
    Err(crate::error::Error::unsupported("no container opens this"))
}

//! Models on disk. [`open`] turns any of them into a [`Checkpoint`]: source models and artifacts are one type.

pub mod gguf;
pub mod hf;
#[cfg(feature = "hub")]
pub mod hub;
pub mod journal;
pub mod map;
pub mod output;
pub mod sink;
pub mod sniff;
pub mod tokenizer;

use std::path::Path;

pub use crate::arch::Convention;
use crate::arch::{Arch, ModelSpec, Transform, WeightId};
use crate::codec::{Activations, Codec};
use crate::error::{At, Result};
use crate::metadata::Metadata;
use crate::tensor::{Dims, Packed};
pub use sink::Sink;

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
    /// Multiplies every decoded value: see [`crate::codec::TensorScale`]; 1 elsewhere.
    pub scale: f32,
    /// What runtimes divide its inputs by before they round them, where the file says so.
    pub inputs: Option<f32>,
}

/// A source tensor that has no counterpart in a converted file, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dropped {
    pub source: String,
    pub reason: &'static str,
    pub bytes: u64,
}

/// Source tensors that are left out for one reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub reason: &'static str,
    pub tensors: usize,
    pub bytes: u64,
    /// The first of them.
    pub example: String,
}

impl LeftOut {
    /// All of `dropped` by reason, in order.
    pub fn of<'a>(dropped: impl IntoIterator<Item = &'a Dropped>) -> Vec<LeftOut> {
        let mut out: Vec<LeftOut> = Vec::new();
        for d in dropped {
            match out.iter_mut().find(|l| l.reason == d.reason) {
                Some(l) => (l.tensors, l.bytes) = (l.tensors + 1, l.bytes + d.bytes),
                None => out.push(LeftOut { reason: d.reason, tensors: 1, bytes: d.bytes, example: d.source.clone() }),
            }
        }
        out
    }
}

impl std::fmt::Display for LeftOut {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.tensors {
            1 => write!(f, "{} ({})", self.example, self.reason),
            n => write!(f, "{} and {} more, {} bytes ({})", self.example, n - 1, self.bytes, self.reason),
        }
    }
}

/// A tensor of a Hugging Face folder as it lies there.
#[derive(Clone, Copy, Debug)]
pub struct Raw<'a> {
    pub name: &'a str,
    pub dtype: safetensors::Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// Any model on disk. Everything is checked when it is opened; `read` borrows the memory map.
pub trait Checkpoint: Send + Sync {
    /// `gguf`, `safetensors`
    fn container(&self) -> &'static str;
    fn convention(&self) -> Convention;
    /// GGUF's name of the architecture: `llama`.
    fn arch(&self) -> &str;
    /// The family and this model's facts. `None`: a GGUF file of a family that `quant` does not know, which can still be
    /// requantized.
    fn family(&self) -> Option<(&'static Arch, &ModelSpec)>;
    fn tensors(&self) -> &[Tensor];
    /// Source tensors that `tensors` leaves out.
    fn dropped(&self) -> &[Dropped];
    /// Those of `dropped` that stay in a folder of this model, as they are.
    fn beside(&self) -> Vec<Raw<'_>> {
        Vec::new()
    }
    /// Plane `plane` of `tensors()[tensor]`.
    fn read(&self, tensor: usize, plane: usize) -> Result<Weight<'_>>;
    /// Metadata as a GGUF file of this model carries it, tokenizer included; `general.file_type` only if it is one. A
    /// folder's lacks llama.cpp's name of the pre-tokenizer, which [`Checkpoint::tokenizer`] does without.
    fn metadata(&self) -> Result<Metadata>;
    /// The same, whole: to be written to a GGUF file.
    ///
    /// Errors: also a pre-tokenizer that llama.cpp lacks.
    fn gguf_metadata(&self) -> Result<Metadata> {
        self.metadata()
    }
    /// The tokenizer, from the files as they are.
    fn tokenizer(&self) -> Result<tokenizer::Tokenizer>;
    /// What the files tell runtimes to do with the inputs of quantized weights.
    fn activations(&self) -> Activations {
        Activations::Plain
    }
    /// For each layer what runtimes divide keys and values by before a cache of 8-bit floats rounds them. `None`: the files do
    /// not say.
    ///
    /// Errors: a scale that is not one positive number.
    fn cache_scales(&self) -> Result<Option<Vec<[f32; 2]>>> {
        Ok(None)
    }
    /// What is wrong with the files though they can be read: other loaders may see another model.
    fn faults(&self) -> Vec<String> {
        Vec::new()
    }
    /// The folder that a Hugging Face model is.
    fn folder(&self) -> Option<&Path> {
        None
    }
    /// Every file of the model, and its size.
    fn files(&self) -> Vec<(std::path::PathBuf, u64)>;
}

impl dyn Checkpoint + '_ {
    pub fn find(&self, name: &str) -> Option<usize> {
        self.tensors().iter().position(|t| t.name == name)
    }

    /// Bytes that its files take.
    pub fn size(&self) -> u64 {
        self.files().iter().map(|(_, bytes)| bytes).sum()
    }

    /// How the values of tensor `name` change on the way to `convention`.
    pub fn transform(&self, name: &str, convention: Convention) -> Transform {
        match self.family() {
            Some((arch, spec)) => arch.transform(name, self.convention(), convention, spec),
            None => Transform::IDENTITY,
        }
    }
}

/// What a user may have to say about a model that its files do not.
#[derive(Clone, Debug, Default)]
pub struct OpenOptions {
    /// llama.cpp's name of the pre-tokenizer.
    pub pre: Option<String>,
}

/// A row of the table of containers.
pub struct Container {
    pub name: &'static str,
    /// One line for `quant list`, with the source of the format.
    pub about: &'static str,
    /// Whether an existing path looks like one; reads no more than its first bytes.
    pub detect: fn(&Path) -> bool,
    pub open: fn(&Path, &OpenOptions) -> Result<Box<dyn Checkpoint>>,
}

/// Every container that `quant` opens.
pub static CONTAINERS: &[Container] = &[gguf::CONTAINER, hf::CONTAINER];

/// Opens a Hugging Face folder or a GGUF file (the first shard, if split).
pub fn open(path: &Path) -> Result<Box<dyn Checkpoint>> {
    open_with(path, &OpenOptions::default())
}

/// [`open`] with what the user says about the model.
pub fn open_with(path: &Path, options: &OpenOptions) -> Result<Box<dyn Checkpoint>> {
    std::fs::metadata(path).at(|| path.display().to_string())?;
    match CONTAINERS.iter().find(|c| (c.detect)(path)) {
        Some(container) => (container.open)(path, options),
        None => Err(sniff::explain(path).at(path.display().to_string())),
    }
}

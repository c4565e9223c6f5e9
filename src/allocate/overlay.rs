//! A checkpoint in which some tensors are replaced.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;

use crate::arch::{Arch, Convention, ModelSpec};
use crate::codec::Codec;
use crate::container::tokenizer::Tokenizer;
use crate::container::{Checkpoint, Dropped, Raw, Tensor, Weight};
use crate::error::Result;
use crate::metadata::Metadata;
use crate::tensor::{Dims, Packed};

/// A tensor in another format: the matrices of its stack.
#[derive(Clone, Debug)]
pub struct Patch {
    pub codec: &'static dyn Codec,
    pub dims: Dims,
    /// `[plane][part]`
    pub planes: Vec<Vec<Vec<u8>>>,
    /// Multiplies every decoded value.
    pub scale: f32,
}

/// A model with other bytes in some of its tensors. What it says of them is what the model says: name, shape, and the codec that
/// they no longer have.
pub struct Overlay<'a> {
    pub base: &'a dyn Checkpoint,
    /// By index among its tensors.
    pub patches: HashMap<usize, Patch>,
}

impl Checkpoint for Overlay<'_> {
    fn container(&self) -> &'static str {
        self.base.container()
    }

    fn convention(&self) -> Convention {
        self.base.convention()
    }

    fn arch(&self) -> &str {
        self.base.arch()
    }

    fn family(&self) -> Option<(&'static Arch, &ModelSpec)> {
        self.base.family()
    }

    fn tensors(&self) -> &[Tensor] {
        self.base.tensors()
    }

    fn dropped(&self) -> &[Dropped] {
        self.base.dropped()
    }

    fn beside(&self) -> Vec<Raw<'_>> {
        self.base.beside()
    }

    fn read(&self, tensor: usize, plane: usize) -> Result<Weight<'_>> {
        match self.patches.get(&tensor).and_then(|p| Some((p, p.planes.get(plane)?))) {
            None => self.base.read(tensor, plane),
            Some((patch, parts)) => {
                let parts = parts.iter().map(|part| Cow::Borrowed(part.as_slice())).collect();
                Ok(Weight {
                    codec: patch.codec,
                    packed: Packed { dims: patch.dims, parts },
                    scale: patch.scale,
                    inputs: None,
                })
            }
        }
    }

    fn metadata(&self) -> Result<Metadata> {
        self.base.metadata()
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        self.base.tokenizer()
    }

    fn files(&self) -> Vec<(PathBuf, u64)> {
        self.base.files()
    }
}

//! Architectures: which weights a family has, what they are called, and what a runtime must be told about them.
//! The canonical name of a weight is its GGUF name (`blk.3.attn_q.weight`), experts stacked.
//!
//! A family is a file of constants in `family/` and one row of [`ARCHES`]. The contract is llama.cpp's converter
//! (`convert_hf_to_gguf.py`, `conversion/*.py`, `gguf-py/gguf/tensor_mapping.py`).

mod config;
mod family;
mod fold;
mod general;
mod id;
mod keys;
mod names;
mod rope;
mod runtime;
mod spec;
mod transform;

pub use config::Config;
pub use fold::{FOLDS, Fold};
pub use general::{Folder, Size, general};
pub use id::{Role, SITES, WeightId};
pub use keys::Key;
pub use names::{
    FURTHER_TOKENS, Name, OTHER_TOWER, Owner, Part, Place, Placement, STAYING, Split, alone, inside, tower,
};
pub use rope::{Llama3, RopeTensors};
pub use runtime::{Activation, Runtime};
pub use spec::ModelSpec;
pub use transform::{RowOrder, Transform, always_f32, scale_is_read};

use crate::error::{Error, Result};
use crate::metadata::Metadata;

/// How a container orders rows and offsets norms. Hugging Face and GGUF disagree for some families;
/// everything else is the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Convention {
    HuggingFace,
    Gguf,
}

/// Which rows of a head rotary embedding turns together in GGUF. Hugging Face always pairs halves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rope {
    /// Neighbours `(2i, 2i+1)`: q and k rows are reordered on the way from Hugging Face.
    Norm,
    /// Halves `(i, i + d/2)`.
    Neox,
}

/// One family of models.
pub struct Arch {
    /// GGUF's name: `llama`. Several families may share it.
    pub name: &'static str,
    /// Class names in `architectures` of config.json.
    pub classes: &'static [&'static str],
    /// What the family's configuration class in transformers assumes for keys that config.json leaves out (JSON).
    pub defaults: &'static str,
    /// Its weights.
    pub names: &'static [&'static [Name]],
    pub rope: Rope,
    pub rope_tensors: RopeTensors,
    /// GGUF stores this much more than Hugging Face in every `*norm.weight` (gemma's files keep the gain minus one).
    pub norm_offset: f32,
    pub runtime: Runtime,
    /// Layer `l` attends to everything when `(l + 1) % period == 0`, and to the sliding window otherwise.
    pub sliding_period: Option<u32>,
    /// Metadata after `general.*`, in the converter's order.
    pub keys: &'static [&'static [Key]],
    /// What tables cannot say: facts the family derives, values it refuses.
    pub finish: fn(&Config<'_>, &mut ModelSpec) -> Result<()>,
}

/// Every family. Among those that share a GGUF name, the most common comes first.
pub static ARCHES: &[&Arch] = family::ALL;

impl PartialEq for Arch {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl std::fmt::Debug for Arch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arch").field("name", &self.name).field("classes", &self.classes).finish_non_exhaustive()
    }
}

/// The family of a Hugging Face class (`LlamaForCausalLM`).
pub fn for_class(class: &str) -> Result<&'static Arch> {
    ARCHES.iter().copied().find(|a| a.classes.contains(&class)).ok_or_else(|| {
        let known: Vec<_> = ARCHES.iter().flat_map(|a| a.classes.iter().copied()).collect();
        Error::unsupported(format!("unknown architecture {class:?}")).help(format!(
            "supported in Hugging Face layout: {}; of any other, make a GGUF file with llama.cpp's \
                 convert_hf_to_gguf.py (--outtype bf16) and quantize that",
            known.join(", ")
        ))
    })
}

/// The first family with this `general.architecture`. `None` is no error: GGUF files of unknown families can still be
/// requantized.
pub fn for_gguf(name: &str) -> Option<&'static Arch> {
    ARCHES.iter().copied().find(|a| a.name == name)
}

impl Arch {
    /// `general.architecture`, then `{arch}.*` as llama.cpp's converter writes them. No other `general.*`.
    pub fn metadata(&self, spec: &ModelSpec) -> Metadata {
        let mut out = Metadata::default();
        out.set("general.architecture", self.name);
        let mut spec = spec.clone();
        for key in self.keys.iter().copied().flatten() {
            if let Some(value) = (key.field)(&mut spec).value() {
                out.set(key.name(self), value);
            }
        }
        out
    }

    /// All metadata of a GGUF file except the tokenizer and `general.file_type`, in the converter's order, where
    /// `general` comes from [`general()`].
    pub fn describe(&self, spec: &ModelSpec, general: &Metadata) -> Metadata {
        let own = self.metadata(spec);
        let mut out = Metadata::default();
        // The converter finds the attention factor while it makes the factor tensors, before it writes anything else.
        let early = ["general.architecture".to_owned(), keys::ROPE_ATTN_FACTOR.name(self)];
        let first = own.iter().filter(|(k, _)| early.iter().any(|e| e == k));
        out.extend(first.chain(general.iter()).chain(own.iter()).map(|(k, v)| (k, v.clone())));
        out.set("general.quantization_version", 2u32);
        out
    }
}

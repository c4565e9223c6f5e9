//! Recipes: TOML files that say which codec every weight gets. The presets in `recipes/` reproduce the mixes of llama.cpp's
//! `llama-quantize`; `recipes/README.md` describes the language.
//!
//! [`Recipe::load`] reads one, [`choose`] applies it to the tensors of a model, [`Size`] says what the result weighs.

mod budget;
mod choose;
mod facts;
mod file;
mod kind;
mod layers;
mod load;
mod presets;
mod rule;
mod size;

pub use choose::{Choice, Fallback, Source, choose, select};
pub use facts::ModelFacts;
pub use kind::{KINDS, order};
pub use load::{Preset, list};
pub use size::Size;

use crate::codec::{Activations, Codec};
use budget::Budget;
use rule::{Pattern, Rule, Target};

/// A recipe with all its bases resolved.
#[derive(Clone, Debug)]
pub struct Recipe {
    /// `Q4_K_M`; a file without `name` is called by its file name.
    pub name: String,
    pub aliases: Vec<String>,
    pub about: String,
    /// `gguf` or `hf`
    pub container: String,
    /// What weights that stay floats become in a Hugging Face folder; `None`: as they are.
    pub floats: Option<&'static dyn Codec>,
    /// What runtimes are told to do with the inputs of quantized weights.
    pub activations: Activations,
    /// Runtimes are given scales for a KV cache of 8-bit floats.
    pub fp8_cache: bool,
    /// GGUF's `general.file_type`; `None` leaves the source's.
    pub file_type: Option<u32>,
    default: Target,
    /// No rules: the default everywhere.
    pure: bool,
    output: Option<Target>,
    token_embd: Option<Target>,
    /// First match wins, before the rules.
    named: Vec<Named>,
    /// Last match wins.
    rules: Vec<Rule>,
    keep: Vec<Keep>,
    fallback: Vec<(&'static dyn Codec, Target)>,
    /// Codecs that need an importance matrix.
    importance: Vec<&'static dyn Codec>,
    /// What the default is widened to.
    budget: Budget,
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            name: String::new(),
            aliases: Vec::new(),
            about: String::new(),
            container: "gguf".to_owned(),
            floats: None,
            activations: Activations::Plain,
            fp8_cache: false,
            file_type: None,
            default: Target::Keep,
            pure: false,
            output: None,
            token_embd: None,
            named: Vec::new(),
            rules: Vec::new(),
            keep: Vec::new(),
            fallback: Vec::new(),
            importance: Vec::new(),
            budget: Budget::default(),
        }
    }
}

/// An override by name, from `[tensors]` or `--set`.
#[derive(Clone, Debug)]
struct Named {
    pattern: Pattern,
    target: Target,
    /// As typed, if it was.
    set: Option<String>,
}

/// Tensors that stay as they are.
#[derive(Clone, Debug)]
struct Keep {
    pattern: Pattern,
    arch: Vec<String>,
    why: String,
}

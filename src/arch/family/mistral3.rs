//! Mistral Small 3.1 and later: Mistral as the language model of the multimodal class.

use super::{llama, mistral};
use crate::arch::config::Config;
use crate::arch::{Arch, ModelSpec};
use crate::error::{Error, Result};

pub static MISTRAL3: Arch =
    Arch { name: "mistral3", classes: &["Mistral3ForConditionalGeneration"], finish, ..mistral::BASE };

/// Its later language models scale attention by the position.
fn finish(config: &Config<'_>, spec: &mut ModelSpec) -> Result<()> {
    match config.text("model_type")? {
        Some("mistral" | "mistral3") | None => llama::rope_over_whole_head(config, spec),
        Some(other) => Err(Error::unsupported(format!("Mistral3ForConditionalGeneration around a {other} model"))),
    }
}

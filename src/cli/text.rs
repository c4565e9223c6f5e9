//! The text that models are run on, as options of several commands.

use std::path::PathBuf;

use clap::Args;

use super::model;
use super::report::Reporter;
use crate::container::Checkpoint;
use crate::engine::chat;
use crate::error::{At, Error, Result};
use crate::eval;
use crate::eval::protocol::{PROTOCOLS, Protocol, Window};
use crate::eval::reference::Conditions;
use crate::eval::text::Corpus;

#[derive(Args)]
pub struct TextArgs {
    /// Text to evaluate on: .jsonl, .parquet, or any plain text; on the hub hf:org/name/FILE[@revision] [default: the bundled corpus]
    #[arg(long, value_name = "FILE")]
    pub data: Vec<PathBuf>,
    /// Which windows of the text are run and what of them is scored
    #[arg(long, value_name = "NAME", value_parser = PROTOCOLS.iter().map(|p| p.name).collect::<Vec<_>>(), default_value = PROTOCOLS[0].name)]
    protocol: String,
    /// Tokens of a window, if not the protocol's own
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// At most so many windows
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
}

impl TextArgs {
    pub fn is_default(&self) -> bool {
        self.data.is_empty() && self.context.is_none() && self.chunks.is_none() && self.protocol == PROTOCOLS[0].name
    }

    /// [`TextArgs::prepare`], with so many windows unless the user says otherwise.
    pub fn prepare_at_most(
        &self,
        checkpoint: &dyn Checkpoint,
        chunks: usize,
        reporter: &Reporter,
    ) -> Result<(Vec<Window>, Conditions)> {
        self.windows(checkpoint, self.chunks.or(Some(chunks)), reporter)
    }

    /// Windows of the text under a model's tokenizer, and what the figures will depend on.
    pub fn prepare(&self, checkpoint: &dyn Checkpoint, reporter: &Reporter) -> Result<(Vec<Window>, Conditions)> {
        self.windows(checkpoint, self.chunks, reporter)
    }

    fn windows(
        &self,
        checkpoint: &dyn Checkpoint,
        chunks: Option<usize>,
        reporter: &Reporter,
    ) -> Result<(Vec<Window>, Conditions)> {
        let protocol = Protocol::find(&self.protocol)?;
        let context = self.context.unwrap_or(protocol.context);
        let most = checkpoint.family().and_then(|(_, spec)| spec.context).map_or(usize::MAX, |n| n as usize);
        if context > most {
            let over = context - most;
            return Err(Error::request(format!(
                "windows of {context} tokens are {over} more than the model's context of {most}"
            ))
            .help(format!("pass --context {most}")));
        }
        let metadata = checkpoint.metadata()?;
        let corpus = match self.data.is_empty() {
            true => Corpus::bundled(),
            false => {
                let tokenizer = checkpoint.tokenizer()?;
                Corpus::load(&model::texts(&self.data, reporter)?, &|row| chat::render(&metadata, &tokenizer, row))?
            }
        };
        let text = eval::tokenize(checkpoint, &protocol.text(&corpus.documents))?;
        let windows = protocol.windows(&text.tokens, text.bos, self.context, chunks).at(|| corpus.name.clone())?;
        let conditions = Conditions {
            protocol: protocol.name.to_owned(),
            context,
            corpus: corpus.name,
            corpus_hash: corpus.hash,
            tokenizer_hash: eval::tokenizer_hash(&metadata)?,
            bos: text.bos,
            activations: None,
        };
        Ok((windows, conditions))
    }
}

//! A calibration from model and text to statistics.

use std::path::Path;

use super::data::{self, Amount, Draw, Tokens};
use super::layout::{self, Split};
use super::run::{self, Event, Job};
use super::stats::{About, Run, Statistics};
use super::{budget, fingerprint};
use crate::container::Checkpoint;
use crate::engine::Engine;
use crate::error::Result;
use crate::eval;

pub struct Calibration<'a> {
    pub checkpoint: &'a dyn Checkpoint,
    /// What the file calls the model.
    pub model: &'a str,
    pub tokens: &'a Tokens,
    pub amount: Amount,
    pub draw: &'a Draw,
    pub gram: bool,
    pub keep_tokens: bool,
    /// See [`budget::batch`].
    pub memory: Option<u64>,
    /// What the file calls the card that it is made on.
    pub card: Option<&'a str>,
    pub output: &'a Path,
}

impl<'a> Calibration<'a> {
    /// Tokens times the steps that each goes through: what [`Event::Tokens`] add up to.
    pub fn steps(&self) -> u64 {
        let layers = self.checkpoint.family().map_or(0, |(_, spec)| u64::from(spec.layers));
        self.count(None) * (layers + 1)
    }

    /// What runs it, on the CPU.
    pub fn engine(&self) -> Result<Engine<'a>> {
        Engine::new(self.checkpoint, self.longest())
    }

    /// Runs in the caller's rayon pool, see [`Job::run`]. The engine is [`Calibration::engine`], on any device.
    pub fn run(&self, engine: &Engine<'_>, event: &dyn Fn(Event)) -> Result<Statistics> {
        let about = self.about(engine)?;
        let memory = self.memory.map(|m| m.saturating_sub(budget::used()));
        let longest = self.longest();
        let all = self.count(None) as usize;
        let batch = budget::batch(&about.sites, self.gram, engine, [all, longest], memory)?;
        Job { engine, sequences: &self.draw.sequences, about, batch, output: self.output }.run(event)
    }

    fn longest(&self) -> usize {
        self.draw.sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0)
    }

    fn count(&self, split: Option<Split>) -> u64 {
        let of = self.draw.sequences.iter().filter(|s| split.is_none_or(|split| s.split == split));
        of.map(|s| s.tokens.len() as u64).sum()
    }

    fn about(&self, engine: &Engine<'_>) -> Result<About> {
        let Calibration { checkpoint, amount, draw, .. } = self;
        let (weights, sites) = run::sites(*checkpoint, engine);
        let run = Run {
            corpora: draw.corpora.clone(),
            rows: amount.rows,
            length: amount.length,
            sequences: draw.sequences.len(),
            tokens: self.count(None),
            held_out_tokens: self.count(Some(Split::HeldOut)),
            seed: amount.seed,
            packed: amount.pack,
            shard: amount.shard,
            special_tokens: self.tokens.policy(amount.pack),
            tokens_hash: data::hash(&draw.sequences),
            device: self.card.map(str::to_owned),
            kept: self.keep_tokens.then(|| draw.sequences.iter().map(|s| s.tokens.clone()).collect()),
        };
        Ok(About {
            version: layout::VERSION,
            quant: env!("CARGO_PKG_VERSION").to_owned(),
            model: self.model.to_owned(),
            arch: checkpoint.arch().to_owned(),
            model_hash: fingerprint::of(*checkpoint)?,
            tokenizer_hash: eval::tokenizer_hash(&checkpoint.metadata()?)?,
            gram: self.gram,
            weights,
            sites,
            runs: vec![run],
            hash: String::new(),
        })
    }
}

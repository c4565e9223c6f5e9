//! `quant reference`

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use super::device::DeviceArgs;
use super::quality::facts;
use super::report::Reporter;
use super::size::Size;
use super::text::TextArgs;
use super::{Common, model};
use crate::container::OpenOptions;
use crate::container::output::refuse_inputs;
use crate::device::cpu;
use crate::engine::Engine;
use crate::error::{Error, Result};
use crate::eval::{self, reference};

#[derive(Args)]
pub struct Reference {
    /// The model that artifacts will be compared with
    model: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE.ref")]
    output: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Reference {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let model = model::open(&self.model, &OpenOptions::default(), reporter)?;
        let inputs: Vec<PathBuf> = model.files().into_iter().chain(self.text.data.iter().cloned()).collect();
        refuse_inputs(std::slice::from_ref(&self.output), &inputs)?;
        let (windows, conditions) = self.text.prepare(model.checkpoint.as_ref(), reporter)?;
        let facts = facts(&model.name, model.checkpoint.as_ref());
        let scored: usize = windows.iter().map(|w| w.scored.len()).sum();
        let place = self.device.open(None)?;
        let (bytes, device) = cpu::pool(common.threads())?.install(|| {
            let engine = |worker| Engine::new(model.checkpoint.as_ref(), eval::longest(&windows))?.on(worker);
            let (engine, device) = place.choose(engine)?;
            let bar = reporter.tokens("reference", windows.iter().map(|w| w.tokens.len() as u64).sum());
            let written = reference::write(&self.output, &engine, &windows, &conditions, &facts, &|n| bar.advance(n))?;
            bar.finish();
            Ok::<_, Error>((written, device))
        })?;
        let states = scored as u64 * model.checkpoint.family().map_or(0, |(_, s)| u64::from(s.hidden)) * 4;
        let per_token = states as f64 / scored.max(1) as f64;
        if reporter.json {
            let value = json!({"path": self.output, "bytes": bytes, "scored": scored, "bytes_per_token": per_token,
                "conditions": conditions, "reference": facts, "device": device});
            return reporter.value(&value).map(|()| true);
        }
        let line = format!(
            "{}: {} for {scored} scored tokens, {per_token:.0} bytes a token and {} of output matrix",
            self.output.display(),
            Size(bytes),
            Size(bytes - states)
        );
        reporter.text(&line).map(|()| true)
    }
}

//! `quant verify`: is this file whole, and is it the model it was made from?

use clap::Args;

use super::report::{Reporter, table};
use super::{Common, model};
use crate::container::OpenOptions;
use crate::convert::verify::{Status, verify};
use crate::error::Result;

#[derive(Args)]
pub struct Verify {
    /// The artifact: a GGUF file, a Hugging Face folder or hf:org/name[@revision]
    model: String,
    /// The model it was made from: compares every weight, the metadata, the tokenizer and what was left out
    #[arg(long, value_name = "MODEL")]
    source: Option<String>,
}

impl Verify {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let options = OpenOptions::default();
        let artifact = model::open(&self.model, &options, reporter)?;
        let source = self.source.as_ref().map(|s| model::open(s, &options, reporter)).transpose()?;
        let passes = if source.is_some() { 2 } else { 1 };
        let bytes: u64 = artifact.checkpoint.tensors().iter().map(|t| t.bytes as u64).sum();
        let bar = reporter.progress("verify", bytes * passes);
        let source = source.as_ref().map(|s| s.checkpoint.as_ref());
        let report = verify(artifact.checkpoint.as_ref(), source, common.threads(), &|n| bar.advance(n));
        bar.finish();
        if reporter.json {
            reporter.value(
                &serde_json::json!({"passed": report.passed(), "checks": report.checks, "weights": report.weights}),
            )?;
            return Ok(report.passed());
        }
        if !report.weights.is_empty() {
            let mut worst: Vec<_> = report.weights.iter().collect();
            worst.sort_by(|a, b| b.relative.total_cmp(&a.relative));
            let rows =
                worst.iter().take(10).map(|w| vec![w.name.clone(), w.codec.to_owned(), format!("{:.5}", w.relative)]);
            reporter.text(&table(&["largest errors", "format", "relative"], &[2], rows))?;
            reporter.text("")?;
        }
        let rows = report.checks.iter().map(|c| {
            let status = match c.status {
                Status::Passed => "passed",
                Status::Failed => "FAILED",
                Status::Skipped => "skipped",
            };
            vec![c.name.to_owned(), status.to_owned(), c.detail.clone()]
        });
        reporter.text(&table(&["check", "", ""], &[], rows))?;
        Ok(report.passed())
    }
}

//! `quant inspect`: what a model or artifact holds.

use std::collections::BTreeMap;

use clap::Args;
use serde_json::json;

use super::report::{Reporter, table};
use super::size::Size;
use super::{Common, model};
use crate::container::{LeftOut, OpenOptions};
use crate::error::Result;
use crate::metadata::Value;

#[derive(Args)]
pub struct Inspect {
    /// A Hugging Face folder, a GGUF file or hf:org/name[@revision]
    model: String,
    /// List every tensor
    #[arg(long, short)]
    tensors: bool,
}

impl Inspect {
    pub fn run(&self, _: &Common, reporter: &Reporter) -> Result<bool> {
        let model = model::open(&self.model, &OpenOptions::default(), reporter)?;
        let m = model.checkpoint.as_ref();
        let weights: usize = m.tensors().iter().map(|t| t.len()).sum();
        let bytes: usize = m.tensors().iter().map(|t| t.bytes).sum();
        let bpw = bytes as f64 * 8.0 / weights.max(1) as f64;
        // A model whose tokenizer is missing or unknown can still be looked at.
        let metadata = m.gguf_metadata().or_else(|_| m.metadata());
        if reporter.json {
            let tensors: Vec<_> = m
                .tensors()
                .iter()
                .map(|t| {
                    json!({"name": t.name, "source": t.source, "file": t.file, "shape": t.shape,
                        "codec": t.codec.name(), "bytes": t.bytes})
                })
                .collect();
            let files: Vec<_> =
                m.files().into_iter().map(|(path, bytes)| json!({"path": path, "bytes": bytes})).collect();
            let metadata: serde_json::Map<_, _> =
                metadata.iter().flat_map(|m| m.iter()).map(|(k, v)| (k.to_owned(), value_json(v))).collect();
            reporter.value(&json!({"container": m.container(), "arch": m.arch(), "weights": weights, "bytes": m.size(),
                "bpw": bpw, "files": files, "metadata": metadata, "tensors": tensors,
                "dropped": m.dropped().iter().map(|d| json!({"source": d.source, "reason": d.reason, "bytes": d.bytes})).collect::<Vec<_>>()}))?;
            return Ok(true);
        }
        match &metadata {
            Ok(metadata) => {
                let rows = metadata.iter().map(|(k, v)| vec![k.to_owned(), shorten(&v.to_string())]);
                reporter.text(&table(&["key", "value"], &[], rows))?;
            }
            Err(e) => reporter.error(e),
        }
        reporter.text("")?;
        if self.tensors {
            let rows = m.tensors().iter().map(|t| {
                vec![
                    t.name.clone(),
                    format!("{:?}", t.shape),
                    t.codec.name().to_owned(),
                    Size(t.bytes as u64).to_string(),
                    if t.source == t.name { String::new() } else { t.source.clone() },
                ]
            });
            reporter.text(&table(&["tensor", "shape", "format", "size", "in its file"], &[3], rows))?;
            reporter.text("")?;
        }
        let mut formats: BTreeMap<&str, (usize, usize, usize)> = BTreeMap::new();
        for t in m.tensors() {
            let sum = formats.entry(t.codec.name()).or_default();
            *sum = (sum.0 + 1, sum.1 + t.len(), sum.2 + t.bytes);
        }
        let rows = formats.iter().map(|(name, (tensors, weights, bytes))| {
            vec![(*name).to_owned(), tensors.to_string(), weights.to_string(), Size(*bytes as u64).to_string()]
        });
        reporter.text(&table(&["format", "tensors", "weights", "size"], &[1, 2, 3], rows))?;
        for l in LeftOut::of(m.dropped()) {
            reporter.text(&format!("left out: {l}"))?;
        }
        reporter.text(&format!(
            "\n{} ({}): {} tensors, {weights} weights, {bpw:.2} bits per weight, {} in {} file(s)",
            m.arch(),
            m.container(),
            m.tensors().len(),
            Size(m.size()),
            m.files().len()
        ))?;
        Ok(true)
    }
}

/// One line of a table; templates and licences are long.
fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((end, _)) => format!("{} ...", &text[..end]),
        None => text.to_owned(),
    }
}

/// Arrays are summarised: a vocabulary is no reading matter.
fn value_json(value: &Value) -> serde_json::Value {
    match value {
        Value::Array(a) => json!({ "length": a.len() }),
        Value::Str(s) => json!(s),
        Value::Bool(b) => json!(b),
        Value::F32(v) => json!(v),
        Value::F64(v) => json!(v),
        other => other.as_u64().map_or_else(|| json!(other.to_string()), |v| json!(v)),
    }
}

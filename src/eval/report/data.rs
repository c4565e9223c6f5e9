//! What `quant eval --json` prints, as far as a report shows it. Parts that an evaluation did not measure are absent; keys of
//! no interest here are skipped.

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};

#[derive(Clone, Debug, Deserialize)]
pub struct Evaluation {
    /// Empty where no text was read.
    #[serde(default)]
    pub protocol: String,
    pub tokens: Option<u64>,
    #[serde(default)]
    pub conditions: Conditions,
    pub noise: Option<Noise>,
    pub reference: Option<Reference>,
    #[serde(default)]
    pub tasks: Vec<Task>,
    pub artifacts: Vec<Artifact>,
    #[serde(default)]
    pub kv: Vec<KvRow>,
    #[serde(default)]
    pub stress: Vec<Stress>,
    pub gate: Option<Gate>,
    pub quant: Option<Program>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Conditions {
    pub context: u64,
    pub corpus: String,
    pub corpus_hash: String,
    pub tokenizer_hash: String,
    pub bos: Option<u32>,
    pub activations: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Noise {
    pub batch_kld: f64,
    pub bf16_kld: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Reference {
    pub path: Option<String>,
    pub name: String,
    pub bytes: u64,
    pub bpw: Option<f64>,
    pub perplexity: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Program {
    pub version: String,
}

/// A number, alone or with its 95 % interval; written as `1.5`, `{"value": 1.5, "low": ..}` or `{"mean": 1.5, ..}`.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
#[serde(from = "Written")]
pub struct Figure {
    pub value: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "a number, or an object with `value` (or `mean`), `low` and `high`")]
enum Written {
    Number(f64),
    Object {
        #[serde(alias = "mean")]
        value: f64,
        low: Option<f64>,
        high: Option<f64>,
    },
}

impl From<Written> for Figure {
    fn from(written: Written) -> Figure {
        match written {
            Written::Number(value) => Figure { value, low: None, high: None },
            Written::Object { value, low, high } => Figure { value, low, high },
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
pub struct Artifact {
    pub path: String,
    pub format: Option<String>,
    #[serde(default)]
    pub bytes: u64,
    pub bpw: Option<f64>,
    pub perplexity: Option<Figure>,
    pub ln_ppl_ratio: Option<Figure>,
    pub kld: Option<Divergence>,
    pub same_top: Option<Figure>,
    pub rms_delta_p: Option<Figure>,
    pub weights: Option<Vec<WeightError>>,
    #[serde(default)]
    pub positions: Vec<Position>,
    #[serde(default)]
    pub tasks: Vec<TaskResult>,
    #[serde(default)]
    pub blame: Vec<LayerCost>,
    #[serde(default)]
    pub kv: Vec<KvRow>,
    /// What its caches were compared with, if not the evaluation's reference: the same weights.
    pub reference: Option<OwnCache>,
    #[serde(default)]
    pub warnings: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct OwnCache {
    pub kv: String,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
pub struct Divergence {
    pub mean: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub p99: Option<f64>,
    pub max: Option<f64>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct WeightError {
    pub name: String,
    pub codec: String,
    pub relative: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Position {
    pub from: u64,
    pub to: u64,
    pub kld: Figure,
}

#[derive(Clone, Debug, Deserialize)]
pub struct LayerCost {
    pub layer: u32,
    pub kld: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct KvRow {
    #[serde(rename = "type", alias = "kv")]
    pub name: String,
    pub bytes_per_token: f64,
    pub perplexity: Option<Figure>,
    pub kld: Option<Figure>,
    pub same_top: Option<Figure>,
    #[serde(default)]
    pub buckets: Vec<KvBucket>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct KvBucket {
    pub from: u64,
    pub to: u64,
    pub kld: Figure,
}

/// What was asked, and how the reference did: shares in `reference` by metric.
#[derive(Clone, Debug, Deserialize)]
pub struct Task {
    pub name: String,
    #[serde(default)]
    pub about: String,
    #[serde(default)]
    pub kind: String,
    pub items: Option<u64>,
    pub hash: Option<String>,
    pub reference: Option<serde_json::Map<String, Value>>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct TaskResult {
    pub name: String,
    /// By name, in the order of the file.
    pub metrics: serde_json::Map<String, Value>,
    #[serde(default)]
    pub flips: Vec<Flip>,
}

/// Right answers of all, with the share's 95 % interval.
#[derive(Clone, Debug, Deserialize)]
pub struct Share {
    pub right: f64,
    pub of: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub against: Option<Against>,
}

/// The paired comparison with the reference; shares, not percent.
#[derive(Clone, Debug, Deserialize)]
pub struct Against {
    pub lost: u64,
    pub gained: u64,
    pub difference: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    pub p: Option<f64>,
    pub holm: Option<f64>,
    pub detectable: Option<f64>,
    #[serde(default)]
    pub verdict: String,
}

/// An item that one of both answered rightly.
#[derive(Clone, Debug, Deserialize)]
pub struct Flip {
    pub id: Option<Value>,
    #[serde(default)]
    pub prompt: String,
    #[serde(default)]
    pub expected: Value,
    #[serde(default)]
    pub reference: Value,
    #[serde(default)]
    pub artifact: Value,
    #[serde(default)]
    pub lost: bool,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Stress {
    pub path: String,
    pub prompts: Option<u64>,
    /// Shares.
    pub identical: Option<f64>,
    /// Quartiles, tokens.
    pub first_divergence: Option<[f64; 3]>,
    pub repetition: Option<Both>,
    pub no_end: Option<Both>,
    pub length_ratio: Option<f64>,
    pub drift: Option<f64>,
    #[serde(default)]
    pub examples: Vec<Example>,
}

/// Shares.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Both {
    pub reference: f64,
    pub artifact: f64,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Example {
    pub prompt: String,
    pub reference: String,
    pub artifact: String,
}

#[derive(Clone, Debug, Deserialize)]
pub struct Gate {
    pub verdict: String,
    #[serde(default)]
    pub rows: Vec<GateRow>,
}

#[derive(Clone, Debug, Deserialize)]
pub struct GateRow {
    pub artifact: Option<String>,
    pub metric: String,
    pub limit: Option<String>,
    pub value: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    #[serde(default)]
    pub unit: String,
    pub verdict: String,
    pub note: Option<String>,
}

/// Reads one object. Errors name the key.
pub fn parse<T: for<'a> Deserialize<'a>>(value: &Value) -> Result<T> {
    serde_path_to_error::deserialize(value).map_err(|e| {
        let key = e.path().to_string();
        let whole = key == ".";
        let error = Error::input(format!("no result of `quant eval`: {}", e.into_inner()))
            .help("pass what `quant eval ... --json` printed");
        if whole { error } else { error.at(format!("key {key}")) }
    })
}

/// Characters that no page can show (controls, except line ends and tabs) become U+FFFD.
pub fn clean(value: &mut Value) {
    match value {
        Value::String(text) => {
            let bad = |c: char| (c.is_control() && !matches!(c, '\n' | '\t')) || matches!(c, '\u{fffe}' | '\u{ffff}');
            if text.contains(bad) {
                *text = text.replace("\r\n", "\n").replace(bad, "\u{fffd}");
            }
        }
        Value::Array(items) => items.iter_mut().for_each(clean),
        Value::Object(entries) => {
            *entries = std::mem::take(entries)
                .into_iter()
                .map(|(key, mut item)| {
                    let mut key = Value::String(key);
                    clean(&mut key);
                    clean(&mut item);
                    (key.as_str().unwrap_or_default().to_owned(), item)
                })
                .collect();
        }
        _ => {}
    }
}

//! The quality table: what artifacts lost, a row each.

use serde::Serialize;
use serde_json::{Value, json};

use super::report::table;
use super::size::Size;
use crate::container::Checkpoint;
use crate::convert::verify::WeightError;
use crate::eval::Noise;
use crate::eval::long::Long;
use crate::eval::position::{Position, safe_context};
use crate::eval::reference::{Conditions, Facts};
use crate::eval::stats::{Chunk, Likelihood, Summary};

/// One artifact's results.
pub struct Row<Figures> {
    pub path: String,
    pub format: String,
    pub facts: Facts,
    pub figures: Figures,
    /// Window by window, for `quant gate`.
    pub chunks: Vec<Chunk>,
    pub positions: Vec<Position>,
    pub long: Option<Long>,
    pub weights: Option<Vec<WeightError>>,
}

/// A model file as tables show it.
pub fn facts(name: &str, checkpoint: &dyn Checkpoint) -> Facts {
    let tensors = checkpoint.tensors();
    Facts {
        name: name.to_owned(),
        arch: checkpoint.arch().to_owned(),
        bytes: tensors.iter().map(|t| t.bytes as u64).sum(),
        weights: tensors.iter().map(|t| t.len() as u64).sum(),
        files: checkpoint.size(),
    }
}

pub const HEADER: &[&str] =
    &["model", "size", "bits/weight", "perplexity", "change", "KLD mean", "95 %", "p99", "max", "same top", "rms dp"];
pub const HEADER_ALONE: &[&str] = &["model", "size", "bits/weight", "perplexity", "95 %"];

fn bpw(facts: &Facts) -> f64 {
    facts.bytes as f64 * 8.0 / facts.weights.max(1) as f64
}

/// The baseline first, then the artifacts, closest first.
pub fn cells(rows: &[Row<Summary>], reference: &Facts) -> Vec<Vec<String>> {
    let size = |facts: &Facts| [Size(facts.size()).to_string(), format!("{:.2}", bpw(facts))];
    let mut out = Vec::new();
    if let Some(first) = rows.first() {
        let mut cells = vec![format!("{} (reference)", reference.name)];
        cells.extend(size(reference));
        cells.push(format!("{:.4}", first.figures.reference_perplexity));
        cells.extend(["", "", "", "", "", "", ""].map(str::to_owned));
        out.push(cells);
    }
    for row in rows {
        let s = &row.figures;
        let mut cells = vec![row.path.clone()];
        cells.extend(size(&row.facts));
        cells.extend([
            format!("{:.4}", s.perplexity.value),
            format!("{:+.2} %", s.ln_ppl_ratio.value.exp_m1() * 100.0),
            digits(s.kld.mean),
            interval(s.kld.low, s.kld.high),
            digits(s.kld.p99),
            digits(s.kld.max),
            format!("{:.2} %", s.same_top.value * 100.0),
            format!("{:.2} %", s.rms_delta_p.value * 100.0),
        ]);
        out.push(cells);
    }
    out
}

/// The same without a reference: likeliest text first.
pub fn cells_alone(rows: &[Row<Likelihood>]) -> Vec<Vec<String>> {
    let cells = |row: &Row<Likelihood>| {
        let p = row.figures.perplexity;
        let bits = format!("{:.2}", bpw(&row.facts));
        let size = Size(row.facts.size()).to_string();
        vec![row.path.clone(), size, bits, format!("{:.4}", p.value), interval(p.low, p.high)]
    };
    rows.iter().map(cells).collect()
}

pub const HEADER_SIZES: &[&str] = &["model", "format", "size", "bits/weight"];

/// Path, format and size of each artifact.
pub fn cells_sizes(rows: &[(String, String, Facts)]) -> Vec<Vec<String>> {
    let cells = |(path, format, facts): &(String, String, Facts)| {
        vec![path.clone(), format.clone(), Size(facts.size()).to_string(), format!("{:.2}", bpw(facts))]
    };
    rows.iter().map(cells).collect()
}

/// The ten weights of each artifact that differ most from the reference's, as tables.
pub fn worst_weights(rows: &[Row<Summary>]) -> Vec<String> {
    let worst = |row: &Row<Summary>| {
        let mut errors: Vec<&WeightError> = row.weights.as_ref()?.iter().collect();
        errors.sort_by(|a, b| b.relative.total_cmp(&a.relative));
        let line = |e: &WeightError| vec![e.name.clone(), e.codec.to_owned(), format!("{:.5}", e.relative)];
        let title = format!("largest errors of {}", row.path);
        Some(table(&[&title, "format", "relative"], &[2], errors.into_iter().take(10).map(line)))
    };
    rows.iter().filter_map(worst).collect()
}

/// Three significant digits.
pub fn digits(x: f64) -> String {
    match x {
        0.0 => "0".to_owned(),
        x if x.abs() < 1e-3 => format!("{x:.2e}"),
        x => {
            let places = (2.0 - x.abs().log10().floor()).clamp(0.0, 6.0) as usize;
            format!("{x:.places$}")
        }
    }
}

pub fn interval(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{} - {}", digits(low), digits(high)),
        _ => "one window".to_owned(),
    }
}

/// What the figures mean and depend on; `scored`: tokens and windows.
pub fn notes(scored: Option<(usize, usize)>, conditions: &Conditions, noise: Option<Noise>) -> Vec<String> {
    let c = conditions;
    let (tokens, chunks) = scored.unwrap_or_default();
    let bos = c.bos.map_or_else(|| "no BOS".to_owned(), |id| format!("BOS {id}"));
    let mut out = vec![format!(
        "{} with windows of {}: {tokens} tokens scored in {chunks} windows of {} ({}), tokenizer {}, {bos}",
        c.protocol,
        c.context,
        c.corpus,
        c.corpus_hash.get(..16).unwrap_or(&c.corpus_hash),
        c.tokenizer_hash
    )];
    if let Some(activations) = &c.activations {
        out.push(format!("activations {activations}: rounded as runtimes do where the artifact says so"));
    }
    if let Some(noise) = noise {
        out.push(format!(
            "noise floor: {} between batch shapes (largest), {} for hidden states rounded to BF16 (mean KLD)",
            digits(noise.batch_kld),
            digits(noise.bf16_kld)
        ));
    }
    out
}

pub fn to_json(
    rows: &[Row<Summary>],
    conditions: &Conditions,
    path: &str,
    reference: &Facts,
    noise: Option<Noise>,
) -> Value {
    let artifact = |row: &Row<Summary>| {
        let mut value = artifact(row);
        if let Some(weights) = &row.weights {
            value["weights"] = json!(weights);
        }
        value
    };
    let perplexity = rows.first().map(|r| r.figures.reference_perplexity);
    let tokens = rows.first().map(|r| r.figures.tokens);
    json!({"protocol": conditions.protocol, "tokens": tokens, "conditions": conditions, "noise": noise,
        "reference": to_json_reference(path, reference, perplexity),
        "artifacts": rows.iter().map(artifact).collect::<Vec<_>>()})
}

pub fn to_json_reference(path: &str, facts: &Facts, perplexity: Option<f64>) -> Value {
    let mut out = json!({"path": path, "name": facts.name, "bytes": facts.size(), "bpw": bpw(facts)});
    if let Some(perplexity) = perplexity {
        out["perplexity"] = json!(perplexity);
    }
    out
}

pub fn to_json_size(path: &str, format: &str, facts: &Facts) -> Value {
    json!({"path": path, "format": format, "bytes": facts.size(), "bpw": bpw(facts)})
}

/// Figures of an artifact beside its size. The reference's own perplexity is the reference's to tell.
pub fn put_figures(artifact: &mut Value, figures: &impl Serialize) {
    if let (Value::Object(out), Ok(Value::Object(mut figures))) = (artifact, serde_json::to_value(figures)) {
        figures.remove("reference_perplexity");
        out.extend(figures);
    }
}

pub fn to_json_alone(rows: &[Row<Likelihood>], conditions: &Conditions) -> Value {
    let tokens = rows.first().map(|r| r.figures.tokens);
    json!({"protocol": conditions.protocol, "tokens": tokens, "conditions": conditions, "reference": null,
        "artifacts": rows.iter().map(artifact).collect::<Vec<_>>()})
}

/// Divergence by position, for files that were read in windows long enough to tell, and up to where it stays below `margin`.
pub fn by_position(rows: &[Row<Summary>], margin: f64) -> Option<String> {
    let ranges: Vec<String> = rows.first()?.positions.iter().map(|p| format!("{}-{}", p.from, p.to)).collect();
    if ranges.len() < 2 {
        return None;
    }
    let safe = format!("below {margin} to");
    let names = ranges.iter().map(String::as_str).chain([safe.as_str()]);
    let header: Vec<&str> = std::iter::once("KLD by position").chain(names).collect();
    let cells = |row: &Row<Summary>| {
        let klds = row.positions.iter().map(|p| digits(p.kld.value));
        let safe = safe_context(&row.positions, margin).to_string();
        std::iter::once(row.path.clone()).chain(klds).chain([safe]).collect::<Vec<_>>()
    };
    Some(table(&header, &(1..header.len()).collect::<Vec<_>>(), rows.iter().map(cells)))
}

/// The same tokens with long and with short context.
pub fn long(rows: &[Row<Summary>]) -> Option<String> {
    let first = rows.first()?.long.as_ref()?;
    let short = format!("to {}", first.short);
    let header =
        ["context", "key tokens", "LongPPL", "reference", "change", "95 %", "KLD all", &short, "ratio", "95 % of it"];
    let cells = |row: &Row<Summary>| {
        let long = row.long.as_ref()?;
        let mut cells = vec![row.path.clone()];
        match &long.key {
            None => cells.extend(["0", "-", "-", "-", "-"].map(str::to_owned)),
            Some(key) => cells.extend([
                key.tokens.to_string(),
                format!("{:.4}", key.perplexity.value),
                format!("{:.4}", key.reference),
                format!("{:+.2} %", key.ln_ratio.value.exp_m1() * 100.0),
                percents(key.ln_ratio.low, key.ln_ratio.high),
            ]),
        }
        let r = &long.kld_ratio;
        cells.extend([
            digits(long.kld_long.value),
            digits(long.kld_short.value),
            digits(r.value),
            interval(r.low, r.high),
        ]);
        Some(cells)
    };
    Some(table(&header, &(1..header.len()).collect::<Vec<_>>(), rows.iter().filter_map(cells)))
}

fn percents(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{:+.2} - {:+.2}", low.exp_m1() * 100.0, high.exp_m1() * 100.0),
        _ => "one window".to_owned(),
    }
}

/// What is known without reading a text.
pub fn to_json_sizes(rows: &[(String, String, Facts)], reference: Option<&Facts>, path: &str) -> Value {
    let artifact = |(path, format, facts): &(String, String, Facts)| to_json_size(path, format, facts);
    let reference = reference.map(|r| to_json_reference(path, r, None));
    json!({"reference": reference, "artifacts": rows.iter().map(artifact).collect::<Vec<_>>()})
}

fn artifact<Figures: Serialize>(row: &Row<Figures>) -> Value {
    let mut value = to_json_size(&row.path, &row.format, &row.facts);
    put_figures(&mut value, &row.figures);
    value["positions"] = json!(row.positions);
    value["chunks"] = json!(row.chunks);
    if let Some(long) = &row.long {
        value["long"] = json!(long);
    }
    value
}

/// The format that most weights of a checkpoint are in.
pub fn format(checkpoint: &dyn Checkpoint) -> String {
    let mut sums = std::collections::BTreeMap::<&str, usize>::new();
    for t in checkpoint.tensors() {
        *sums.entry(t.codec.name()).or_default() += t.len();
    }
    sums.into_iter().max_by_key(|(_, n)| *n).map_or_else(String::new, |(name, _)| name.to_owned())
}

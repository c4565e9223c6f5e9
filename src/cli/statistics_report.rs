//! What `quant calibrate` says about a statistics file.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::json;

use super::report::{Reporter, table};
use super::size::Size;
use crate::calibrate::coverage::Site;
use crate::calibrate::stats::STARVED;
use crate::calibrate::stats::{Run, Statistics};
use crate::error::Result;

/// Prints it. `overlap`: part of the evaluation text that was calibrated on, where it was looked for.
pub fn print(
    statistics: &Statistics,
    sites: &[Site],
    path: &Path,
    overlap: Option<f64>,
    reporter: &Reporter,
) -> Result<bool> {
    let about = statistics.about();
    let bytes = std::fs::metadata(path).map_or(0, |m| m.len());
    if reporter.json {
        let runs = about.runs.iter().map(|r| Run { kept: None, ..r.clone() }).collect::<Vec<_>>();
        let value = json!({
            "path": path, "bytes": bytes, "model": about.model, "arch": about.arch, "model_hash": about.model_hash,
            "tokenizer_hash": about.tokenizer_hash, "gram": about.gram, "tokens": about.tokens(), "runs": runs,
            "overlap": overlap, "sites": sites,
            "starved": sites.iter().filter(|s| s.starved).map(|s| &s.key).collect::<Vec<_>>() });
        return reporter.value(&value).map(|()| true);
    }
    let what = if about.gram { "statistics and Gram matrices" } else { "statistics" };
    reporter.text(&format!("{}: {}, {what} of {} sites\n", path.display(), Size(bytes), sites.len()))?;
    reporter.text(&text_table(&about.runs))?;
    for run in &about.runs {
        reporter.text(&in_words(run))?;
    }
    reporter.text("")?;
    reporter.text(&site_table(sites, about.gram))?;
    for line in experts(sites) {
        reporter.text(&line)?;
    }
    if let Some(overlap) = overlap {
        reporter.text(&format!("{:.2} % of the evaluation text is among it", overlap * 100.0))?;
    }
    Ok(true)
}

fn text_table(runs: &[Run]) -> String {
    let all: u64 = runs.iter().map(|r| r.tokens).sum();
    let weights: f64 = runs.iter().flat_map(|r| &r.corpora).map(|c| c.weight).sum();
    let rows = runs.iter().flat_map(|r| &r.corpora).map(|c| {
        let share = c.tokens as f64 * 100.0 / all.max(1) as f64;
        let asked = c.weight * 100.0 / weights;
        vec![
            c.name.clone(),
            c.documents.to_string(),
            c.tokens.to_string(),
            format!("{share:.1} %"),
            format!("{asked:.1} %"),
        ]
    });
    table(&["text", "documents", "tokens", "share", "asked for"], &[1, 2, 3, 4], rows)
}

fn in_words(run: &Run) -> String {
    let Run { sequences, tokens, held_out_tokens, rows, length, seed, .. } = run;
    let missing = (run.rows as u64 * run.length as u64).saturating_sub(run.tokens);
    let shard = match run.shard {
        (_, 1) => String::new(),
        (k, n) => format!(", part {k} of {n}"),
    };
    let short = match run.shard.1 == 1 && missing > 0 {
        true => format!("; the text had {missing} tokens less than {rows} rows of {length}"),
        false => String::new(),
    };
    let card = run.device.as_ref().map_or_else(String::new, |card| format!(", computed on {card}"));
    format!(
        "{tokens} tokens in {sequences} sequences of at most {length}{shard}, {held_out_tokens} of them held out, seed {seed}{short}{card}\n{}",
        run.special_tokens
    )
}

/// One line for each kind of site: its worst layer.
fn site_table(sites: &[Site], gram: bool) -> String {
    let mut kinds: BTreeMap<usize, (&str, Vec<&Site>)> = BTreeMap::new();
    for (i, site) in sites.iter().enumerate() {
        match kinds.values_mut().find(|(kind, _)| *kind == site.kind()) {
            Some((_, found)) => found.push(site),
            None => drop(kinds.insert(i, (site.kind(), vec![site]))),
        }
    }
    let rows = kinds.values().map(|(kind, sites)| {
        let tokens = |f: fn(u64, u64) -> u64| sites.iter().map(|s| s.tokens).reduce(f).unwrap_or(0);
        let (least, most) = (tokens(u64::min), tokens(u64::max));
        let seen = if least == most { most.to_string() } else { format!("{least} to {most}") };
        let dead: usize = sites.iter().map(|s| s.dead).sum();
        let columns = sites.first().map_or(0, |s| s.columns);
        let mut row = vec![(*kind).to_owned(), sites.len().to_string(), columns.to_string(), seen, dead.to_string()];
        if gram {
            let spectra = || sites.iter().filter_map(|s| s.spectrum);
            let rank = spectra().map(|s| s.effective_rank).fold(f64::INFINITY, f64::min);
            let condition = spectra().map(|s| s.condition).reduce(f64::max);
            row.push(if rank.is_finite() { format!("{rank:.1}") } else { "-".into() });
            row.push(match condition {
                None => "-".into(),
                Some(c) if c.is_finite() => format!("{c:.1e}"),
                Some(_) => "singular".into(),
            });
        }
        row
    });
    let header =
        ["input of", "sites", "inputs", "tokens", "dead inputs", "least effective rank", "worst condition, at least"];
    let width = if gram { 7 } else { 5 };
    table(&header[..width], &(1..width).collect::<Vec<_>>(), rows)
}

/// Starved experts are listed; more than this are counted.
const MOST: usize = 12;

fn experts(sites: &[Site]) -> Vec<String> {
    let starved: Vec<&Site> = sites.iter().filter(|s| s.starved).collect();
    if starved.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![format!(
        "{} inputs of experts saw less than {} % of the tokens; methods fall back for them:",
        starved.len(),
        STARVED * 100.0
    )];
    let line = |s: &&Site| format!("  {}: {} tokens", s.key, s.tokens + s.held_out_tokens);
    lines.extend(starved.iter().take(MOST).map(line));
    if starved.len() > MOST {
        lines.push(format!("  and {} more (--json lists all)", starved.len() - MOST));
    }
    lines
}

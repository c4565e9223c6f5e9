//! `quant eval --kv`: cache types against the same weights with a cache in single precision, or against another model with one.

use serde_json::{Value, json};

use super::quality::{self, digits, facts};
use super::report::table;
use super::size::Size;
use crate::codec::kv::KvPolicy;
use crate::container::Checkpoint;
use crate::device::cpu;
use crate::engine::Engine;
use crate::error::{At, Result};
use crate::eval::kv::{self, Keys, Row};
use crate::eval::protocol::Window;
use crate::eval::reference::{Conditions, Facts, Reference};
use crate::eval::{self, Candidate};

/// Of one model.
pub struct Matrix {
    pub rows: Vec<Row>,
    keys: Vec<Keys>,
    /// What it is compared with, if not with itself.
    against: Option<Facts>,
    /// Bytes a token of single precision.
    full: f64,
    /// [`kv::decode_gap`] of each row, where asked for.
    gaps: Option<Vec<f64>>,
    /// Whether a type is stored under scales, and the checkpoint's own of each layer's keys and values.
    scaled: bool,
    scales: Option<Vec<[f32; 2]>>,
}

impl Matrix {
    /// `engine` makes one with a cache in single precision, which is what the others are compared with where there is no
    /// `reference`; `progress` is called with tokens as they are run.
    pub fn measure<'a>(
        engine: &dyn Fn() -> Result<Engine<'a>>,
        reference: Option<(Reference<'_>, Facts)>,
        policies: &[KvPolicy],
        windows: &[Window],
        check_decode: bool,
        threads: usize,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Matrix> {
        let candidate = |policy: &KvPolicy| {
            let name = format!("cache type {policy}");
            let engine = engine()?.with_kv(policy.clone()).at(|| name.clone())?;
            Ok(Candidate { name, engine })
        };
        let (full, candidates) = (engine()?, policies.iter().map(candidate).collect::<Result<Vec<_>>>()?);
        let shape = full.kv_shape();
        let scaled = policies.iter().any(KvPolicy::has_scales);
        let scales = if scaled { full.cache_scales()? } else { None };
        cpu::pool(threads)?.install(|| {
            let keys = windows.first().map(|w| kv::keys(&full, w)).transpose()?.unwrap_or_default();
            let gaps = match check_decode {
                true => {
                    let gap = |c: &Candidate<'_>| kv::decode_gap(&c.engine, &windows[0]).at(|| c.name.clone());
                    Some(candidates.iter().map(gap).collect::<Result<Vec<_>>>()?)
                }
                false => None,
            };
            let (mut reference, against) = match reference {
                Some((reference, facts)) => (reference, Some(facts)),
                None => (Reference::Live(Box::new(full)), None),
            };
            let scores = eval::run(&mut reference, &candidates, windows, progress)?;
            let rows = kv::rows(policies, &shape, windows, &scores)?;
            let full = KvPolicy::default().bytes_per_token(&shape);
            Ok(Matrix { rows, keys, against, full, gaps, scaled, scales })
        })
    }

    pub fn header(&self) -> Vec<String> {
        let mut out = ["cache", "bytes/token", "perplexity", "change", "KLD mean", "95 %", "same top"]
            .map(str::to_owned)
            .to_vec();
        out.extend(self.spans());
        if self.gaps.is_some() {
            out.push("decode".to_owned());
        }
        out
    }

    fn spans(&self) -> Vec<String> {
        let span = |b: &kv::Bucket| format!("{}-{}", short(b.from), short(b.to));
        self.rows.first().map_or_else(Vec::new, |row| row.buckets.iter().map(span).collect())
    }

    /// The reference first, then in the order asked for; a column of KLD and same top for each range of positions.
    pub fn cells(&self) -> Vec<Vec<String>> {
        let width = self.header().len();
        let row = |(i, row): (usize, &Row)| {
            let s = &row.whole;
            let mut cells = vec![
                row.kv.clone(),
                bytes(row.bytes_per_token),
                format!("{:.4}", s.perplexity.value),
                format!("{:+.2} %", s.ln_ppl_ratio.value.exp_m1() * 100.0),
                digits(s.kld.mean),
                quality::interval(s.kld.low, s.kld.high),
                percent(s.same_top.value),
            ];
            cells.extend(
                row.buckets
                    .iter()
                    .map(|b| format!("{} {}", digits(b.figures.kld.mean), percent(b.figures.same_top.value))),
            );
            cells.extend(self.gaps.iter().map(|gaps| digits(gaps[i])));
            cells
        };
        let reference = self.rows.first().map(|first| {
            let (name, size) = match &self.against {
                Some(facts) => (facts.name.as_str(), String::new()),
                None => (KvPolicy::FULL, bytes(self.full)),
            };
            let mut cells =
                vec![format!("{name} (reference)"), size, format!("{:.4}", first.whole.reference_perplexity)];
            cells.resize(width, String::new());
            cells
        });
        reference.into_iter().chain(self.rows.iter().enumerate().map(row)).collect()
    }

    /// What the caches of the whole model take.
    pub fn sizes(&self) -> String {
        let ends =
            self.rows.first().map(|row| row.buckets.iter().map(|b| format!("at {}", short(b.to))).collect::<Vec<_>>());
        let ends = ends.unwrap_or_default();
        let header: Vec<&str> = std::iter::once("size of the cache").chain(ends.iter().map(String::as_str)).collect();
        let right: Vec<usize> = (1..header.len()).collect();
        let row = |row: &Row| {
            std::iter::once(row.kv.clone()).chain(row.buckets.iter().map(|b| Size(b.bytes).to_string())).collect()
        };
        table(&header, &right, self.rows.iter().map(row))
    }

    /// What is hard about the model, and what helps.
    pub fn warnings(&self) -> Vec<String> {
        let warning = |of: fn(&Keys) -> f64, from: f64, to: f64, what: &str, help: &str| {
            let hard: Vec<&Keys> = self.keys.iter().filter(|k| (from..to).contains(&of(k))).collect();
            let worst = hard.iter().map(|k| of(k)).fold(0.0, f64::max);
            let layers = ranges(hard.iter().map(|k| k.layer));
            let warn = || format!("warning: layers {layers}: {} {what}; {help}", digits(worst));
            (!hard.is_empty()).then(warn)
        };
        let outliers = "times what tells keys apart is lost by 4 bits for each token at worst (normal keys: 0.008)";
        let all = [
            warning(
                |k| k.outliers,
                kv::MASSIVE,
                f64::INFINITY,
                outliers,
                "the keys have massive biases, which rotation spreads: keep keys in 8 bits (q8_0/q4h), by channel (kivi4) or \
                 less their means (q4hc)",
            ),
            warning(
                |k| k.outliers,
                kv::OUTLIERS,
                kv::MASSIVE,
                outliers,
                "the keys have outliers: rotate them (q4h), or the same",
            ),
            warning(
                |k| k.sink,
                kv::SINK,
                f64::INFINITY,
                "standard deviations are between the first token's key and the others at worst",
                "it draws attention: keep it (+sink4)",
            ),
        ];
        all.into_iter().flatten().collect()
    }

    /// Of weights that are compared with a reference's, the figures are those of their f32 cache.
    pub fn json(&self, path: &str, name: &str, checkpoint: &dyn Checkpoint) -> Value {
        let mut out = quality::to_json_size(path, &quality::format(checkpoint), &facts(name, checkpoint));
        match &self.against {
            None => {
                let perplexity = self.rows.first().map(|r| r.whole.reference_perplexity);
                out["reference"] =
                    json!({"kv": KvPolicy::FULL, "bytes_per_token": self.full, "perplexity": perplexity});
            }
            Some(_) => {
                if let Some(row) = self.rows.iter().find(|row| row.kv == KvPolicy::FULL) {
                    quality::put_figures(&mut out, &row.whole);
                }
            }
        }
        out["kv"] = json!(self.rows);
        out["keys"] = json!(self.keys);
        out["warnings"] = json!(self.warnings());
        out["decode_gaps"] = json!(self.gaps);
        out["cache_scales"] = json!(self.scales);
        out
    }

    /// What 8-bit floats were stored under.
    pub fn scales(&self) -> Option<String> {
        let own = |scales: &Vec<[f32; 2]>| {
            let all = || scales.as_flattened().iter().copied().map(f64::from);
            let (least, most) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
            format!("fp8: under its own scales of keys and values, {} to {}", digits(least), digits(most))
        };
        let none = || {
            "fp8: under a scale of 1, as it has none of its own (`quant convert --set kv_cache=fp8 --stats STATS` writes them)"
                .to_owned()
        };
        self.scaled.then(|| self.scales.as_ref().map_or_else(none, own))
    }

    pub fn notes(&self, conditions: &Conditions) -> Vec<String> {
        let scored = self.rows.first().map(|r| (r.whole.tokens, r.whole.chunks));
        let mut out = quality::notes(scored, conditions, None);
        let against = match &self.against {
            None => "the same weights with an f32 cache".to_owned(),
            Some(facts) => format!("{} with an f32 cache; f32: what the weights lose without their cache", facts.name),
        };
        out.push(format!(
            "columns of positions: mean KLD and same top token of what is predicted there, against {against}"
        ));
        out
    }
}

fn bytes(per_token: f64) -> String {
    format!("{per_token:.0}")
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

/// 2048 -> 2k
fn short(positions: usize) -> String {
    match positions % 1024 {
        0 if positions > 0 => format!("{}k", positions / 1024),
        _ => positions.to_string(),
    }
}

/// 0, 1, 2, 5 -> 0-2,5
fn ranges(numbers: impl Iterator<Item = usize>) -> String {
    let mut runs: Vec<(usize, usize)> = Vec::new();
    for n in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == n => *last = n,
            _ => runs.push((n, n)),
        }
    }
    let run = |(from, to): &(usize, usize)| if from == to { from.to_string() } else { format!("{from}-{to}") };
    runs.iter().map(run).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    #[test]
    fn runs_of_layers_are_ranges() {
        assert_eq!(super::ranges([0, 1, 2, 5, 7, 8].into_iter()), "0-2,5,7-8");
        assert_eq!(super::ranges([3].into_iter()), "3");
    }
}

//! `quant blame`

use std::collections::BTreeMap;

use clap::Args;
use serde_json::{Value, json};

use super::quality::{self, digits};
use super::report::{Reporter, table};
use super::size::Size;
use super::text::TextArgs;
use super::{Common, model};
use crate::allocate::{Pair, Variant, damages};
use crate::container::OpenOptions;
use crate::device::cpu;
use crate::error::{Error, Result};
use crate::eval;

#[derive(Args)]
pub struct Blame {
    /// The file whose weights are judged: GGUF or a Hugging Face folder
    artifact: String,
    /// The model that it was made from
    #[arg(long, value_name = "MODEL")]
    reference: String,
    /// Show so many weights, the costliest first
    #[arg(long, value_name = "N", default_value_t = 20)]
    top: usize,
    #[command(flatten)]
    text: TextArgs,
}

/// Windows that suffice to rank weights.
const CHUNKS: usize = 4;

impl Blame {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let options = OpenOptions::default();
        let reference = model::open(&self.reference, &options, reporter)?;
        let artifact = model::open(&self.artifact, &options, reporter)?;
        let (windows, conditions) = self.text.prepare_at_most(reference.checkpoint.as_ref(), CHUNKS, reporter)?;
        let pair = Pair::new(reference.checkpoint.as_ref(), artifact.checkpoint.as_ref())?;
        let (parts, folded) = (pair.parts()?, pair.folded()?);
        if parts.is_empty() {
            return Err(Error::request("its weights are those of the reference: there is nothing to blame"));
        }
        let bar = reporter.steps("blame", parts.len() as u64);
        let (damage, whole) = cpu::pool(common.threads())?.install(|| {
            let make = |i: usize| pair.patches(&parts[i]);
            let damage = damages(reference.checkpoint.as_ref(), &windows, &parts, &make, &|n| bar.advance(n))?;
            Ok::<_, Error>((
                damage,
                eval::divergence(reference.checkpoint.as_ref(), artifact.checkpoint.as_ref(), &windows)?,
            ))
        })?;
        bar.finish();
        let mut ranked: Vec<(&Variant, f64)> = parts.iter().zip(&damage).map(|(p, kld)| (p, *kld)).collect();
        ranked.sort_by(|a, b| b.1.total_cmp(&a.1));
        let sum: f64 = ranked.iter().map(|r| r.1).sum();
        let scored: usize = windows.iter().map(|w| w.scored.len()).sum();
        if reporter.json {
            let weights: Vec<_> = ranked
                .iter()
                .map(|(v, kld)| {
                    let (bytes, codecs) = pair.stored(v);
                    json!({"name": v.name, "codecs": codecs, "bytes": bytes, "kld": kld})
                })
                .collect();
            // As `quant eval` says it, for `quant report`.
            let facts = quality::facts(&artifact.name, artifact.checkpoint.as_ref());
            let own = (self.artifact.clone(), quality::format(artifact.checkpoint.as_ref()), facts);
            let model = quality::facts(&reference.name, reference.checkpoint.as_ref());
            let mut value = quality::to_json_sizes(&[own], Some(&model), &self.reference);
            value["protocol"] = json!(conditions.protocol);
            value["tokens"] = json!(scored);
            value["conditions"] = json!(conditions);
            value["artifacts"][0]["blame"] = by_layer(&ranked);
            value["folded"] = json!(folded);
            value["kld"] = json!(whole);
            value["sum"] = json!(sum);
            value["weights"] = json!(weights);
            return reporter.value(&value).map(|()| true);
        }
        let rows = ranked.iter().take(self.top).map(|(v, kld)| {
            let (bytes, codecs) = pair.stored(v);
            let share = format!("{:.1} %", kld / sum.max(f64::MIN_POSITIVE) * 100.0);
            let per_mib = digits(kld / (bytes as f64 / f64::from(1 << 20)));
            vec![v.name.clone(), codecs.join(", "), Size(bytes).to_string(), digits(*kld), share, per_mib]
        });
        let header = ["weights", "format", "size", "KLD alone", "share", "KLD per MiB"];
        reporter.text(&table(&header, &[2, 3, 4, 5], rows))?;
        if ranked.len() > self.top {
            reporter.text(&format!("{} more; --top shows them", ranked.len() - self.top))?;
        }
        reporter.text(&format!(
            "\nall together: KLD {} ({} is the sum of the parts), {scored} tokens of {}, {}{}",
            digits(whole),
            digits(sum),
            conditions.corpus,
            conditions.protocol,
            if folded { "; scales are folded between weights, so halves of layers are judged whole" } else { "" },
        ))?;
        Ok(true)
    }
}

/// What the weights of each layer cost, one after the other.
fn by_layer(ranked: &[(&Variant, f64)]) -> Value {
    let mut sums = BTreeMap::<u32, f64>::new();
    for (variant, kld) in ranked {
        if let Some(layer) = variant.layer {
            *sums.entry(layer).or_default() += kld;
        }
    }
    sums.into_iter().map(|(layer, kld)| json!({"layer": layer, "kld": kld})).collect()
}

//! exllamav2's `measurement.json`, read and written. Source: exllamav2 `conversion/{measure,optimize,qparams}.py`.
//!
//! `"measurement"` has a list for each half of a layer, `"model.layers.0.self_attn"`: of `{"accuracy", "total_bits", "q_proj": BANDS, ..}`, where
//! `BANDS` is `{"group_size": {"4": 128}, "bits": [4], "bits_prop": [1.0], "scale_bits": 4}`. `1 - accuracy` is the error of the half's
//! output relative to its size, and exllamav2 looks for the mix with the least sum of a power of it, from 1.5 to 3.5. Divergences grow
//! with its square, so it stands for a root of one here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::choices::{Choices, Combination, Format, Group};
use super::knapsack::{self, Budget};
use super::measure::{Measured, Measurement};
use crate::arch::WeightId;
use crate::codec::{Codec, exl2};
use crate::container::Tensor;
use crate::error::{At, Error, Result};

/// What a file of exllamav2's has, and one of ours beside its own, if its weights are halves of layers.
pub const KEY: &str = "measurement";

/// Halves of a layer, and their weights: exllamav2's names and GGUF's.
const HALVES: [(&str, &[(&str, &str)]); 3] = [
    ("self_attn", &[("q_proj", "attn_q"), ("k_proj", "attn_k"), ("v_proj", "attn_v"), ("o_proj", "attn_output")]),
    ("mlp", &[("gate_proj", "ffn_gate"), ("up_proj", "ffn_up"), ("down_proj", "ffn_down")]),
    ("block_sparse_moe", &[("w1", "ffn_gate_exps"), ("w3", "ffn_up_exps"), ("w2", "ffn_down_exps")]),
];

/// Mixes that are written for each half, from the smallest to the largest.
const MIXES: u64 = 20;
/// exllamav2 takes the logarithm of errors.
const LEAST_ERROR: f64 = 1e-6;
/// By how much sizes may differ of what is the same model: biases are counted there.
const SAME_SIZE: f64 = 0.05;

#[derive(Serialize, Deserialize)]
struct Bands {
    /// By width, which JSON has as a text.
    group_size: BTreeMap<String, usize>,
    bits: Vec<usize>,
    bits_prop: Vec<f64>,
    scale_bits: usize,
}

#[derive(Serialize, Deserialize)]
struct Mix {
    accuracy: f64,
    total_bits: u64,
    #[serde(flatten)]
    weights: BTreeMap<String, Bands>,
}

impl Bands {
    fn of(codec: &str) -> Option<Bands> {
        let shares = exl2::shares(codec)?;
        Some(Bands {
            group_size: shares.iter().map(|s| (s.bits.to_string(), s.group)).collect(),
            bits: shares.iter().map(|s| s.bits).collect(),
            bits_prop: shares.iter().map(|s| s.percent as f64 / 100.0).collect(),
            scale_bits: 4,
        })
    }

    fn codec(&self) -> Result<&'static dyn Codec> {
        let share = |(bits, share): (&usize, &f64)| {
            let percent = (share * 100.0).round() as usize;
            Some(exl2::Share { bits: *bits, percent, group: *self.group_size.get(&bits.to_string())? })
        };
        let shares: Option<Vec<_>> = self.bits.iter().zip(&self.bits_prop).map(share).collect();
        shares.and_then(|shares| exl2::with_shares(&shares)).ok_or_else(|| {
            let (bits, shares) = (&self.bits, &self.bits_prop);
            Error::unsupported(format!(
                "bands of {bits:?} bits with shares {shares:?} in groups of {:?}",
                self.group_size
            ))
            .help("`quant list formats` has the bands that are written")
        })
    }
}

/// The half of a layer that a weight is in: its name, and the weight's in it.
fn half(name: &str) -> Option<(String, &'static str)> {
    let id = WeightId::parse(name);
    let found = HALVES.iter().find_map(|(half, weights)| {
        weights.iter().find(|(_, stem)| *stem == id.role.stem()).map(|(own, _)| (*half, *own))
    });
    found.zip(id.layer).map(|((half, own), layer)| (format!("model.layers.{layer}.{half}"), own))
}

/// What exllamav2 measured, for these weights.
///
/// Errors: a weight that exllamav2 does not measure, or did not; bands that there are not; sizes of another model.
pub fn read(file: &Value, weights: &[&Tensor]) -> Result<Choices> {
    let mut halves = BTreeMap::<String, Vec<(&str, &Tensor)>>::new();
    for t in weights {
        let (half, own) = half(&t.name)
            .ok_or_else(|| Error::unsupported("exllamav2 measures no weights of this kind").at(t.name.clone()))?;
        halves.entry(half).or_default().push((own, t));
    }
    let group = |(name, members): (String, Vec<(&str, &Tensor)>)| {
        let measured = file[KEY].get(&name).ok_or_else(|| Error::input("it is not measured").at(name.clone()))?;
        let mixes = Vec::<Mix>::deserialize(measured);
        let mixes = mixes.map_err(|e| Error::input(format!("no list of mixes: {e}")).at(name.clone()))?;
        let combinations = mixes.iter().map(|mix| mix.combination(&members)).collect::<Result<_>>();
        Ok(Group { combinations: combinations.at(|| name.clone())?, name })
    };
    let groups = halves.into_iter().map(group).collect::<Result<_>>()?;
    Ok(Choices { groups, by: "a measurement of exllamav2".to_owned(), divergences: false })
}

impl Mix {
    fn combination(&self, members: &[(&str, &Tensor)]) -> Result<Combination> {
        let format = |(own, t): &(&str, &Tensor)| {
            let bands = self.weights.get(*own);
            let codec = bands.ok_or_else(|| Error::input("a mix says nothing of it")).and_then(Bands::codec);
            let codec = codec.at(|| (*own).to_owned())?;
            let bytes = codec.bytes(t.dims()).at(|| t.name.clone())? as u64 * t.planes() as u64;
            Ok(Format { weight: t.name.clone(), codec: codec.name().to_owned(), bytes })
        };
        let formats: Vec<Format> = members.iter().map(format).collect::<Result<_>>()?;
        let bits = 8 * formats.iter().map(|f| f.bytes).sum::<u64>();
        if (bits as f64 / self.total_bits as f64 - 1.0).abs() > SAME_SIZE {
            let message = format!("its mixes take {} bits, these weights would take {bits}", self.total_bits);
            return Err(Error::input(message).help("this measurement was made for another model"));
        }
        let error = 1.0 - self.accuracy;
        match (error * error).is_finite() {
            true => Ok(Combination { formats, loss: error * error }),
            false => Err(Error::input(format!("an accuracy of {}", self.accuracy))),
        }
    }
}

/// The same for exllamav2 (`convert.py -m`). `None` if it could not use it: weights in formats that are not EXL2, or of other layers
/// than it knows.
pub fn write(measurement: &Measurement) -> Option<Value> {
    let mut halves = BTreeMap::<String, Vec<(&str, &Measured)>>::new();
    for weight in &measurement.weights {
        let (half, own) = half(&weight.name)?;
        halves.entry(half).or_default().push((own, weight));
    }
    let last = halves.len() + 2; // the embedding comes before them, the norm and the head behind
    let mixes = |(half, members): (String, Vec<(&str, &Measured)>)| Some((half, json!(mixes(&members)?)));
    let measured: serde_json::Map<String, Value> = halves.into_iter().map(mixes).collect::<Option<_>>()?;
    Some(json!({KEY: measured, "last_module_idx": last}))
}

/// The best mixes of a half at sizes from the smallest to the largest.
fn mixes(members: &[(&str, &Measured)]) -> Option<Vec<Mix>> {
    let item = |(own, m): &(&str, &Measured)| knapsack::Item {
        name: (*own).to_owned(),
        options: m.offers.iter().map(|o| (o.bytes, o.kld)).collect(),
    };
    let items: Vec<_> = members.iter().map(item).collect();
    let sizes = |i: &knapsack::Item| (i.options.iter().map(|o| o.0).min(), i.options.iter().map(|o| o.0).max());
    let (least, most): (Vec<_>, Vec<_>) = items.iter().map(sizes).unzip();
    let (least, most) = (least.into_iter().sum::<Option<u64>>()?, most.into_iter().sum::<Option<u64>>()?);
    let mut out: Vec<Mix> = Vec::new();
    for step in 0..MIXES {
        let budget = Budget::Bytes(least + (most - least) * step / (MIXES - 1));
        let found = knapsack::choose(&items, budget).ok()?;
        let bands =
            |((own, m), n): (&(&str, &Measured), &usize)| Some(((*own).to_owned(), Bands::of(&m.offers[*n].codec)?));
        let weights = members.iter().zip(&found.chosen).map(bands).collect::<Option<_>>()?;
        let error = found.loss.sqrt().clamp(LEAST_ERROR, 1.0 - LEAST_ERROR);
        let mix = Mix { accuracy: 1.0 - error, total_bits: 8 * found.bytes, weights };
        if out.last().is_none_or(|last| last.total_bits < mix.total_bits) {
            out.push(mix);
        }
    }
    Some(out)
}

//! The statistics file: which tensors it has and where they lie. A safetensors file, so that other tools can read it;
//! everything about it is known before the first token is run, so every part is written in its place.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use safetensors::Dtype;
use serde::{Deserialize, Serialize};

use super::stats::About;
use crate::arch::Role;
use crate::error::{Error, Result};

/// Metadata key of the description.
pub const KEY: &str = "quant.statistics";
pub const VERSION: u32 = 1;

/// One activation, by the canonical name of its first reader without `.weight`: `blk.3.ffn_gate_exps.7`.
pub fn key(layer: Option<u32>, reader: &Role, expert: Option<u32>) -> String {
    let layer = layer.map_or_else(String::new, |l| format!("blk.{l}."));
    let expert = expert.map_or_else(String::new, |e| format!(".{e}"));
    format!("{layer}{}{expert}", reader.stem())
}

/// What a layer keeps of its tokens: `blk.3.cache_k`, `blk.3.cache_v`. No weight reads it.
pub fn cache_keys(layer: u32) -> [String; 2] {
    ["k", "v"].map(|half| format!("blk.{layer}.cache_{half}"))
}

/// A site, as the file must know it beforehand.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    pub key: String,
    pub columns: usize,
    /// One of many experts: its tokens have weights.
    pub expert: bool,
    /// Keys or values: no Gram matrix.
    #[serde(default)]
    pub cache: bool,
}

/// Two disjoint parts of the rows: what methods fit on, and what they are judged by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Split {
    Fit,
    HeldOut,
}

impl Split {
    pub const ALL: [Split; 2] = [Split::Fit, Split::HeldOut];

    fn prefix(self) -> &'static str {
        match self {
            Split::Fit => "",
            Split::HeldOut => "held_out.",
        }
    }
}

/// What is kept of a site.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Quantity {
    /// I64: tokens seen.
    Tokens,
    /// F64: sum over the tokens of the square of the router's weight. Experts only.
    Weight,
    /// F32 per column.
    MeanSquare,
    Mean,
    AbsMax,
    /// As `MeanSquare`, each token weighted with the square of its router's weight. Experts only.
    WeightedMeanSquare,
    /// F32: mean of x x^T, upper triangle, row after row. Weighted as above for experts.
    Gram,
}

pub type Part = (Split, Quantity);

impl Quantity {
    pub const ALL: [Quantity; 7] = [
        Quantity::Tokens,
        Quantity::Weight,
        Quantity::MeanSquare,
        Quantity::Mean,
        Quantity::AbsMax,
        Quantity::WeightedMeanSquare,
        Quantity::Gram,
    ];

    fn name(self) -> &'static str {
        match self {
            Quantity::Tokens => "tokens",
            Quantity::Weight => "weight",
            Quantity::MeanSquare => "mean_square",
            Quantity::Mean => "mean",
            Quantity::AbsMax => "absmax",
            Quantity::WeightedMeanSquare => "weighted_mean_square",
            Quantity::Gram => "gram",
        }
    }

    fn dtype(self) -> Dtype {
        match self {
            Quantity::Tokens => Dtype::I64,
            Quantity::Weight => Dtype::F64,
            _ => Dtype::F32,
        }
    }

    /// Elements; `None`: more than can be counted.
    fn len(self, columns: usize) -> Option<usize> {
        match self {
            Quantity::Tokens | Quantity::Weight => Some(1),
            Quantity::Gram => triangle(columns),
            _ => Some(columns),
        }
    }
}

/// Elements of the upper triangle of a square.
pub fn triangle(columns: usize) -> Option<usize> {
    columns.checked_mul(columns.checked_add(1)?).map(|n| n / 2)
}

/// What a file with or without Gram matrices keeps of a site.
fn parts(shape: &Shape, gram: bool) -> impl Iterator<Item = Part> + '_ {
    let kept = move |(split, quantity): &Part| match quantity {
        Quantity::Gram => gram && !shape.cache,
        Quantity::Weight | Quantity::WeightedMeanSquare => shape.expert,
        Quantity::Mean | Quantity::AbsMax => *split == Split::Fit,
        Quantity::Tokens | Quantity::MeanSquare => true,
    };
    Split::ALL.into_iter().flat_map(|s| Quantity::ALL.map(|q| (s, q))).filter(kept)
}

/// One tensor of the file. Its bytes are counted from the end of the header.
#[derive(Clone, Debug, PartialEq)]
pub struct Section {
    pub site: usize,
    pub part: Part,
    pub name: String,
    pub dtype: Dtype,
    pub len: usize,
    pub bytes: Range<usize>,
}

/// All tensors in the file's order: the scalars of 8 bytes first, so that all lie aligned; then site after site.
pub fn sections(sites: &[Shape], gram: bool) -> Result<Vec<Section>> {
    let mut all: Vec<(usize, Part)> =
        sites.iter().enumerate().flat_map(|(i, s)| parts(s, gram).map(move |p| (i, p))).collect();
    all.sort_by_key(|(_, (_, quantity))| quantity.dtype() == Dtype::F32);
    let mut at = 0usize;
    let mut out = Vec::with_capacity(all.len());
    for (site, part) in all {
        let Shape { key, columns, .. } = &sites[site];
        let (split, quantity) = part;
        let too_large = || Error::limits(format!("statistics of {columns} columns do not fit in a file")).at(key);
        let len = quantity.len(*columns).ok_or_else(too_large)?;
        let bytes = len.checked_mul(quantity.dtype().bitsize() / 8).ok_or_else(too_large)?;
        let end = at.checked_add(bytes).ok_or_else(too_large)?;
        let name = format!("{key}.{}{}", split.prefix(), quantity.name());
        out.push(Section { site, part, name, dtype: quantity.dtype(), len, bytes: at..end });
        at = end;
    }
    Ok(out)
}

/// The description as it is written.
pub fn description(about: &About) -> Result<String> {
    serde_json::to_string(about).map_err(|e| Error::input(e.to_string()))
}

/// What of a description its hash covers: all that stands before it.
pub fn covered(description: &str) -> &str {
    description.rfind("\"hash\"").map_or(description, |at| &description[..at])
}

/// The start of the file. Its length does not depend on the hash in `about`, which is known only at the end.
pub fn header(about: &About, sections: &[Section]) -> Result<Vec<u8>> {
    let mut json = serde_json::Map::new();
    json.insert("__metadata__".into(), serde_json::json!(HashMap::from([(KEY, description(about)?)])));
    for s in sections {
        let entry = serde_json::json!({"dtype": s.dtype.to_string(), "shape": [s.len], "data_offsets": [s.bytes.start, s.bytes.end]});
        json.insert(s.name.clone(), entry);
    }
    let mut text = serde_json::Value::Object(json).to_string();
    // The data begin at a multiple of 8.
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut out = (text.len() as u64).to_le_bytes().to_vec();
    out.extend(text.as_bytes());
    Ok(out)
}

/// Where the parts of every site are: `[site][part]`, from the start of the data.
pub fn index(sites: usize, sections: &[Section]) -> Vec<BTreeMap<Part, Range<usize>>> {
    let mut out = vec![BTreeMap::new(); sites];
    for s in sections {
        out[s.site].insert(s.part, s.bytes.clone());
    }
    out
}

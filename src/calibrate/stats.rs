//! Statistics of activations, read from the file that `quant calibrate` writes.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::path::Path;

use memmap2::Mmap;
use ndarray::{Array2, ArrayView1, s};
use safetensors::SafeTensors;
use serde::{Deserialize, Serialize};

use super::fingerprint;
use super::imatrix::{Entry, Imatrix};
use super::layout::{self, Part, Quantity, Shape, Split};
use crate::arch::{Role, WeightId};
use crate::container::hf::header;
use crate::container::{Checkpoint, map};
use crate::device::cpu;
use crate::error::{At, Error, Result};

/// Statistics of one activation; they hold for all weights that read it.
#[derive(Clone, Debug)]
pub struct SiteStats<'a> {
    /// Rows of the activation that were seen, the held-out ones not counted. 0 for an expert that no token visited: then
    /// all else is zero, and there are no Gram matrices.
    pub tokens: u64,
    pub columns: usize,
    /// Of an expert: the part of all tokens, held-out ones included, that came to it.
    pub share: Option<f64>,
    /// What the Gram matrix is the mean over: `tokens`, and for an expert the sum of the squared weights of the router.
    pub weight: f64,
    /// Mean of x^2, per column.
    pub mean_square: Cow<'a, [f32]>,
    pub mean: Cow<'a, [f32]>,
    pub absmax: Cow<'a, [f32]>,
    /// For an expert: mean of x^2, each token weighted with the square of the router's weight, as it counts in the output.
    pub weighted_mean_square: Option<Cow<'a, [f32]>>,
    pub gram: Option<Gram<'a>>,
    pub held_out_tokens: u64,
    pub held_out_weight: f64,
    pub held_out_mean_square: Cow<'a, [f32]>,
    /// Of rows that `gram` has not seen.
    pub held_out: Option<Gram<'a>>,
}

impl SiteStats<'_> {
    pub fn is_starved(&self) -> bool {
        self.share.is_some_and(|s| s < STARVED)
    }
}

/// Mean of x x^T over the tokens: symmetric, of which the upper triangle is kept, row after row.
#[derive(Clone, Debug)]
pub struct Gram<'a> {
    columns: usize,
    upper: Cow<'a, [f32]>,
}

impl<'a> Gram<'a> {
    /// `None`: not `columns * (columns + 1) / 2` values.
    pub fn new(columns: usize, upper: Cow<'a, [f32]>) -> Option<Gram<'a>> {
        (layout::triangle(columns) == Some(upper.len())).then_some(Gram { columns, upper })
    }

    pub fn columns(&self) -> usize {
        self.columns
    }

    /// The upper triangle, row after row.
    pub fn upper(&self) -> &[f32] {
        &self.upper
    }

    /// What is on its diagonal.
    pub fn diagonal(&self) -> Vec<f32> {
        (0..self.columns).map(|i| self.get(i, i)).collect()
    }

    /// Row `i` from its diagonal on.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.upper[row(self.columns, i)]
    }

    pub fn get(&self, i: usize, j: usize) -> f32 {
        self.row(i.min(j))[i.abs_diff(j)]
    }

    /// The whole matrix, its rows filled up with zeros to whole panels ([`cpu::padded`]).
    pub fn dense(&self) -> Array2<f32> {
        const SIDE: usize = 64;
        let n = self.columns;
        let mut out = Array2::zeros((n, cpu::padded(n)));
        for (i, mut row) in out.rows_mut().into_iter().enumerate() {
            row.slice_mut(s![i..n]).assign(&ArrayView1::from(self.row(i)));
        }
        // In squares, so that both sides stay in the cache.
        for from in (0..n).step_by(SIDE) {
            for across in (0..=from).step_by(SIDE) {
                for i in from..n.min(from + SIDE) {
                    for j in across..i.min(across + SIDE) {
                        out[[i, j]] = out[[j, i]];
                    }
                }
            }
        }
        out
    }
}

/// Where row `i` of a packed upper triangle lies.
pub fn row(columns: usize, i: usize) -> Range<usize> {
    let start = i * (2 * columns + 1 - i) / 2;
    start..start + columns - i
}

/// What the statistics are of.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct About {
    pub version: u32,
    /// Version of this program.
    pub quant: String,
    /// What the model was called; it plays no part in telling models apart.
    pub model: String,
    pub arch: String,
    /// See [`super::fingerprint`].
    pub model_hash: String,
    pub tokenizer_hash: String,
    pub gram: bool,
    /// Weights that read a site, and the matrices stacked in each.
    pub weights: Vec<(String, usize)>,
    pub sites: Vec<Shape>,
    /// More than one if files were merged.
    pub runs: Vec<Run>,
    /// BLAKE3 of what stands before it and of all tensors but the Gram matrices, in the file's order. The last field.
    pub hash: String,
}

/// Experts that see a smaller part of the tokens are starved: what they saw says little of what they will see.
pub const STARVED: f64 = 0.005;

/// One run over text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Run {
    pub corpora: Vec<Corpus>,
    /// Rows and their greatest length, as asked for.
    pub rows: usize,
    pub length: usize,
    /// Sequences and tokens that were run, held-out ones included.
    pub sequences: usize,
    pub tokens: u64,
    pub held_out_tokens: u64,
    pub seed: u64,
    /// Whether sequences go on across the ends of documents.
    pub packed: bool,
    /// Which part of how many of the sequences.
    pub shard: (usize, usize),
    /// What was done about special tokens.
    pub special_tokens: String,
    /// BLAKE3 of the sequences.
    pub tokens_hash: String,
    /// The card that ran them, if it was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// The sequences themselves, if they were to be kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kept: Option<Vec<Vec<u32>>>,
}

/// One source of text.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Corpus {
    pub name: String,
    pub hash: String,
    /// Of the tokens, as asked for, before normalizing.
    pub weight: f64,
    /// Drawn.
    pub documents: usize,
    pub tokens: u64,
}

impl About {
    pub fn tokens(&self) -> u64 {
        self.runs.iter().map(|r| r.tokens).sum()
    }
}

/// A statistics file, checked when opened.
#[derive(Debug)]
pub struct Statistics {
    map: Mmap,
    about: About,
    /// Site by key.
    index: HashMap<String, usize>,
    /// Bytes in the file: `[site][part]`.
    parts: Vec<BTreeMap<Part, Range<usize>>>,
}

const AGAIN: &str = "make it again with `quant calibrate`";

impl Statistics {
    /// Opens a file of `quant calibrate`.
    ///
    /// Errors: another file; sizes that are not those of its description; values that cannot be; a hash that differs.
    pub fn open(path: &Path) -> Result<Statistics> {
        map::map(path).and_then(Self::parse).at(|| path.display().to_string())
    }

    fn parse(map: Mmap) -> Result<Statistics> {
        let (about, description) = describe(&map)?;
        let damaged = |what: String| Error::input(what).help(AGAIN);
        let entries = header::parse(&map)?;
        let start = entries.first().map_or(map.len(), |e| e.bytes.start);
        let sections = layout::sections(&about.sites, about.gram)?;
        if sections.len() != entries.len() {
            return Err(damaged(format!("{} tensors instead of {}", entries.len(), sections.len())));
        }
        for (s, e) in sections.iter().zip(&entries) {
            let bytes = e.bytes.start - start..e.bytes.end - start;
            if (&s.name, s.dtype, &s.bytes) != (&e.name, e.dtype, &bytes) {
                return Err(damaged("another tensor than its description says".into()).at(&e.name));
            }
        }
        let mut parts = layout::index(about.sites.len(), &sections);
        parts.iter_mut().flat_map(|p| p.values_mut()).for_each(|r| *r = r.start + start..r.end + start);
        let index = about.sites.iter().enumerate().map(|(i, s)| (s.key.clone(), i)).collect();
        let out = Statistics { map, about, index, parts };
        out.check(&description)?;
        Ok(out)
    }

    fn check(&self, description: &str) -> Result<()> {
        let wrong = |what: &str, key: &str| Err(Error::input(what.to_owned()).at(key).help(AGAIN));
        if self.index.len() != self.about.sites.len() {
            return Err(Error::input("a site occurs twice").help(AGAIN));
        }
        for (site, shape) in self.about.sites.iter().enumerate() {
            for split in Split::ALL {
                let (tokens, weight) = (self.scalar(site, (split, Quantity::Tokens)), self.weight(site, split));
                if i64::from_le_bytes(tokens) < 0 || !weight.is_finite() || weight < 0.0 {
                    return wrong("a number of tokens that cannot be", &shape.key);
                }
            }
            for (part, range) in &self.parts[site] {
                let least = if part.1 == Quantity::Mean { f32::MIN } else { 0.0 };
                let vector = !matches!(part.1, Quantity::Tokens | Quantity::Weight | Quantity::Gram);
                if vector && floats(&self.map[range.clone()]).iter().any(|x| !x.is_finite() || *x < least) {
                    return wrong("a value that is not finite, or negative where none can be", &shape.key);
                }
            }
        }
        match self.hash(description) == self.about.hash {
            true => Ok(()),
            false => {
                Err(Error::input("the statistics are not those that were written: their hash differs").help(AGAIN))
            }
        }
    }

    /// See [`About::hash`].
    fn hash(&self, description: &str) -> String {
        let mut small: Vec<_> = self.parts.iter().flatten().filter(|(p, _)| p.1 != Quantity::Gram).collect();
        small.sort_by_key(|(_, range)| range.start);
        let mut hasher = blake3::Hasher::new();
        hasher.update(layout::covered(description).as_bytes());
        for (_, range) in small {
            hasher.update(&self.map[range.clone()]);
        }
        hasher.finalize().to_hex().to_string()
    }

    pub fn about(&self) -> &About {
        &self.about
    }

    /// Refuses a model that the statistics were not made of.
    pub fn check_model(&self, checkpoint: &dyn Checkpoint) -> Result<()> {
        let hash = fingerprint::of(checkpoint)?;
        match hash == self.about.model_hash {
            true => Ok(()),
            false => Err(Error::input(format!(
                "the statistics were made of another model ({}, {}; hash {} instead of {hash})",
                self.about.model, self.about.arch, self.about.model_hash
            ))
            .help("make them of this model with `quant calibrate`")),
        }
    }

    /// Statistics of what a weight reads. `role`: any reader of the site; `expert`: for the weights of experts.
    pub fn site(&self, layer: Option<u32>, role: &Role, expert: Option<u32>) -> Option<SiteStats<'_>> {
        self.find(&layout::key(layer, &role.site()?, expert))
    }

    /// The largest magnitudes among a layer's keys (after rotary embedding) and values; `None`: of an older file, or no token.
    pub fn cache_absmax(&self, layer: u32) -> Option<[f32; 2]> {
        let [k, v] = layout::cache_keys(layer).map(|key| {
            let site = self.find(&key).filter(|s| s.tokens > 0)?;
            Some(site.absmax.iter().fold(0f32, |most, x| most.max(*x)))
        });
        k.zip(v).map(|(k, v)| [k, v])
    }

    /// By key: `blk.3.attn_q`.
    pub fn find(&self, key: &str) -> Option<SiteStats<'_>> {
        self.index.get(key).map(|i| self.nth(*i))
    }

    /// Site `i` of `about().sites`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn nth(&self, i: usize) -> SiteStats<'_> {
        let part = |split, quantity| self.parts[i].get(&(split, quantity)).map(|r| floats(&self.map[r.clone()]));
        let vector = |split, quantity| part(split, quantity).unwrap_or_default();
        let columns = self.about.sites[i].columns;
        let gram = |split| {
            let upper = part(split, Quantity::Gram).filter(|_| self.weight(i, split) > 0.0)?;
            Gram::new(columns, upper)
        };
        let seen = self.tokens(i, Split::Fit) + self.tokens(i, Split::HeldOut);
        let share = || seen as f64 / (self.about.tokens() as f64).max(1.0);
        SiteStats {
            tokens: self.tokens(i, Split::Fit),
            columns,
            share: self.about.sites[i].expert.then(share),
            weight: self.weight(i, Split::Fit),
            mean_square: vector(Split::Fit, Quantity::MeanSquare),
            mean: vector(Split::Fit, Quantity::Mean),
            absmax: vector(Split::Fit, Quantity::AbsMax),
            weighted_mean_square: part(Split::Fit, Quantity::WeightedMeanSquare),
            gram: gram(Split::Fit),
            held_out_tokens: self.tokens(i, Split::HeldOut),
            held_out_weight: self.weight(i, Split::HeldOut),
            held_out_mean_square: vector(Split::HeldOut, Quantity::MeanSquare),
            held_out: gram(Split::HeldOut),
        }
    }

    /// The values of a part of site `i`, if the file has it.
    pub(super) fn part(&self, i: usize, part: Part) -> Option<Cow<'_, [f32]>> {
        self.parts[i].get(&part).map(|r| floats(&self.map[r.clone()]))
    }

    pub(super) fn tokens(&self, i: usize, split: Split) -> u64 {
        u64::from_le_bytes(self.scalar(i, (split, Quantity::Tokens)))
    }

    /// What weighted means are taken over.
    pub(super) fn weight(&self, i: usize, split: Split) -> f64 {
        match self.about.sites[i].expert {
            true => f64::from_le_bytes(self.scalar(i, (split, Quantity::Weight))),
            false => self.tokens(i, split) as f64,
        }
    }

    fn scalar(&self, i: usize, part: Part) -> [u8; 8] {
        let bytes = self.parts[i].get(&part).and_then(|r| self.map[r.clone()].first_chunk());
        bytes.copied().unwrap_or_default()
    }

    /// As llama.cpp's tool would have collected it on the same tokens, the held-out ones too: an entry for every weight of
    /// the layers, experts stacked.
    pub fn imatrix(&self) -> Imatrix {
        self.imatrix_of(|name| name.starts_with("blk."))
    }

    /// [`Statistics::imatrix`] of the weights that `wanted` names.
    pub fn imatrix_of(&self, wanted: impl Fn(&str) -> bool) -> Imatrix {
        let mut out = Imatrix::default();
        for (name, planes) in self.about.weights.iter().filter(|(name, _)| wanted(name)) {
            let id = WeightId::parse(name);
            let Some(site) = id.role.site() else { continue };
            let count = if is_expert(&site) { *planes } else { 1 };
            let expert = |i: usize| is_expert(&site).then_some(i as u32);
            let importance = |i| Some(self.importance(*self.index.get(&layout::key(id.layer, &site, expert(i)))?));
            let planes: Option<Vec<(u64, Vec<f32>)>> = (0..count).map(importance).collect();
            if let Some(planes) = planes {
                out.add(name.clone(), Entry::counted(planes));
            }
        }
        let runs = &self.about.runs;
        out.datasets = runs.iter().flat_map(|r| r.corpora.iter().map(|c| c.name.clone())).collect();
        out.chunk_size = runs.iter().map(|r| r.length).max().unwrap_or(0).min(i32::MAX as usize) as u32;
        out.chunk_count =
            self.about.tokens().checked_div(u64::from(out.chunk_size)).unwrap_or(0).min(i32::MAX as u64) as u32;
        out
    }

    /// Tokens and mean squares over all rows.
    fn importance(&self, i: usize) -> (u64, Vec<f32>) {
        let s = self.nth(i);
        let all = s.tokens + s.held_out_tokens;
        let share = if all == 0 { 0.0 } else { s.held_out_tokens as f64 / all as f64 };
        let both = s.mean_square.iter().zip(s.held_out_mean_square.iter());
        (all, both.map(|(a, b)| ((1.0 - share) * f64::from(*a) + share * f64::from(*b)) as f32).collect())
    }
}

/// Whether a site exists once for every expert.
pub fn is_expert(site: &Role) -> bool {
    matches!(site, Role::FfnGateExps | Role::FfnDownExps)
}

/// Whether a file is meant to be one.
pub fn detect(file: &[u8]) -> bool {
    describe(file).is_ok()
}

fn describe(file: &[u8]) -> Result<(About, String)> {
    let not_ours = || Error::input("this is not a statistics file of quant").help(AGAIN);
    let unreadable = |_| header::cut_short(file).map_or_else(not_ours, |cut| cut.help(AGAIN));
    let (_, header) = SafeTensors::read_metadata(file).map_err(unreadable)?;
    let text = header.metadata().as_ref().and_then(|m| m.get(layout::KEY)).ok_or_else(not_ours)?;
    let json: serde_json::Value = serde_json::from_str(text).map_err(|_| not_ours())?;
    let version = json["version"].as_u64().unwrap_or(0);
    if version != u64::from(layout::VERSION) {
        return Err(Error::unsupported(format!("a statistics file of version {version}")).help(AGAIN));
    }
    let about = serde_json::from_value(json).map_err(|e| Error::input(format!("its description: {e}")).help(AGAIN))?;
    Ok((about, text.clone()))
}

/// Borrowed where the bytes lie as this machine would store them.
fn floats(bytes: &[u8]) -> Cow<'_, [f32]> {
    match bytemuck::try_cast_slice(bytes) {
        Ok(values) if cfg!(target_endian = "little") => Cow::Borrowed(values),
        _ => bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn experts_starve_below_half_a_percent() {
        let none = || Cow::Borrowed(&[][..]);
        let site = |share| SiteStats {
            tokens: 3,
            columns: 0,
            share,
            weight: 1.0,
            mean_square: none(),
            mean: none(),
            absmax: none(),
            weighted_mean_square: None,
            gram: None,
            held_out_tokens: 0,
            held_out_weight: 0.0,
            held_out_mean_square: none(),
            held_out: None,
        };
        assert!(site(Some(0.0049)).is_starved());
        assert!(!site(Some(0.0051)).is_starved() && !site(None).is_starved());
    }
}

//! An average of bits a weight, kept by choosing among formats of a ladder: all weights take the same rung, and what is left lifts
//! those that are known to gain most to the next one. What a weight costs on each rung is [`Codec::bytes`].

use super::choose::{Choice, Source, planes, size};
use super::kind::Kind;
use super::{Recipe, Size};
use crate::codec::{self, Codec};
use crate::error::{Error, Result};

/// What a recipe may spend, and on what.
#[derive(Clone, Debug, Default)]
pub struct Budget {
    /// Bits a weight, scales and all, over all weights in packed formats.
    pub bits: Option<f64>,
    /// Narrowest first.
    pub ladder: Vec<&'static dyn Codec>,
    /// What a measurement chooses among instead of the ladder, where it is not empty.
    pub offers: Vec<&'static dyn Codec>,
    /// Weights that runtimes fuse into one must have one format.
    pub fused: bool,
}

impl Budget {
    /// All formats whose names match.
    pub fn ladder(pattern: &str) -> Result<Vec<&'static dyn Codec>> {
        let pattern = super::rule::Pattern::parse(pattern)?;
        let bits = |c: &&'static dyn Codec| codec::bits_per_weight(*c);
        let mut ladder: Vec<_> = codec::all().filter(|c| pattern.matches(c.name()) && bits(c).is_some()).collect();
        ladder.sort_by(|a, b| bits(a).partial_cmp(&bits(b)).unwrap_or(std::cmp::Ordering::Equal));
        match ladder.is_empty() {
            true => Err(Error::request(format!("no format is called {:?}", pattern.text()))),
            false => Ok(ladder),
        }
    }

    /// Reads a number of bits.
    pub fn parse(text: &str) -> Result<f64> {
        let bits = text.parse().ok().filter(|bits: &f64| bits.is_finite() && *bits > 0.0);
        bits.ok_or_else(|| Error::request(format!("{text:?} is no number of bits a weight")))
    }
}

/// Kinds that gain most by more bits, the neediest first; then the others: gate and up of the feed-forward layer.
const NEEDY: &[Kind] = &[Kind::AttnV, Kind::FfnDown, Kind::AttnOutput, Kind::AttnK, Kind::AttnQ];

/// Gives the weights that the recipe left to its budget their formats. `sources` are in the order of `choices`.
///
/// Errors: a budget below what the narrowest formats take, or above the widest.
pub fn spend(recipe: &Recipe, sources: &[&Source<'_>], choices: &mut [Choice]) -> Result<()> {
    let Budget { bits: Some(bits), ladder, .. } = &recipe.budget else { return Ok(()) };
    let open: Vec<usize> = (0..choices.len()).filter(|i| choices[*i].open).collect();
    if open.is_empty() {
        return Err(Error::request(format!(
            "of {bits} bits a weight none are to be given: no weight has a format of the ladder"
        ))
        .help("make the ladder's narrowest format the default, or drop bpw"));
    }
    let total = Size::total(choices.iter().filter(|c| c.codec.packed()));
    let fixed = total.bytes - Size::total(open.iter().map(|i| &choices[*i])).bytes;
    let most = bits * total.weights as f64 / 8.0;
    // What each open weight takes on each rung.
    let mut costs = Vec::with_capacity(open.len());
    for i in &open {
        let (planes, dims) = planes(sources[*i])?;
        let on = |codec: &&'static dyn Codec| size(*codec, planes, dims).map_err(|e| e.at(sources[*i].name));
        costs.push(ladder.iter().map(on).collect::<Result<Vec<Size>>>()?);
    }
    let sum = |rung: usize| fixed + costs.iter().map(|c| c[rung].bytes).sum::<u64>();
    let per_weight = |bytes: u64| bytes as f64 * 8.0 / total.weights as f64;
    let rung = (0..ladder.len()).rev().find(|rung| sum(*rung) as f64 <= most).ok_or_else(|| {
        let least = per_weight((0..ladder.len()).map(sum).min().unwrap_or(0));
        Error::request(format!("{bits} bits a weight are too few: {least:.2} is the least"))
            .help("ask for more, or give single weights other formats with --set, such as output=FORMAT")
    })?;
    if rung + 1 == ladder.len() && per_weight(sum(rung)) < bits - 0.1 {
        let most = per_weight(sum(rung));
        return Err(Error::request(format!("{bits} bits a weight are too many: {most:.2} is the most")));
    }
    let mut order: Vec<usize> = (0..open.len()).collect();
    let need = |n: usize| {
        let kind = Kind::of(sources[open[n]].name);
        NEEDY.iter().position(|needy| *needy == kind).unwrap_or(NEEDY.len())
    };
    order.sort_by_key(|n| need(*n));
    let mut spent = sum(rung);
    for n in order {
        let up = |to: usize| spent - costs[n][rung].bytes + costs[n][to].bytes;
        let to = if rung + 1 < ladder.len() && up(rung + 1) as f64 <= most { rung + 1 } else { rung };
        spent = up(to);
        let choice = &mut choices[open[n]];
        (choice.codec, choice.size) = (ladder[to], costs[n][to]);
        choice.reason = format!("{bits} bits a weight");
    }
    Ok(())
}

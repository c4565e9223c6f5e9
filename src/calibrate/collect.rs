//! Adds up what passes by: the tap of calibration.

use std::borrow::Cow;
use std::collections::HashMap;

use super::layout::{self, Quantity, Shape};
use super::write::Out;
use crate::engine::ops::{Ops, Totals, Triangle, Wanted};
use crate::engine::{Site, Tap};
use crate::error::{At, Error, Result};

/// Sums over the tokens of one site.
pub struct Sums {
    pub tokens: u64,
    /// What weighted sums are divided by.
    pub weight: f64,
    totals: Totals,
}

/// The same while they grow, wherever the activations are.
struct Growing<S> {
    columns: usize,
    tokens: u64,
    weight: f64,
    sums: S,
}

/// Listens at all sites and keeps their sums until they are taken.
pub struct Collector<'a, O: Ops> {
    on: &'a O,
    shapes: &'a [Shape],
    gram: bool,
    keys: HashMap<&'a str, usize>,
    /// Site and its sums, in the order in which they were first seen.
    found: Vec<(usize, Growing<O::Sums>)>,
    index: HashMap<String, usize>,
}

impl<'a, O: Ops> Collector<'a, O> {
    pub fn new(on: &'a O, shapes: &'a [Shape], gram: bool) -> Self {
        let keys = shapes.iter().enumerate().map(|(i, s)| (s.key.as_str(), i)).collect();
        Collector { on, shapes, gram, keys, found: Vec::new(), index: HashMap::new() }
    }

    /// The sums, by number of the site, in the order in which sites were heard. `each` receives one site's at a time.
    ///
    /// Errors: an activation that is not finite, with its site; those of the device and of `each`.
    pub fn finish(self, each: &mut dyn FnMut(usize, Sums) -> Result<()>) -> Result<()> {
        for (site, Growing { tokens, weight, sums, .. }) in self.found {
            let key = || format!("the input of {}", self.shapes[site].key);
            let totals = self.on.totals(sums, weight).at(key)?;
            if let Some(column) = totals.squares.iter().position(|x| !x.is_finite()) {
                return Err(Error::input(format!("an activation is not finite (column {column})"))
                    .at(key())
                    .help("run `quant verify` on the model: it names weights that are not numbers"));
            }
            each(site, Sums { tokens, weight, totals })?;
        }
        Ok(())
    }

    /// The sums of a site, which begin here if it was not heard before.
    fn sums(&mut self, key: String) -> Result<&mut Growing<O::Sums>> {
        let at = match self.index.get(&key) {
            Some(at) => *at,
            None => {
                let number = self.keys.get(key.as_str()).copied();
                let number = number.ok_or_else(|| Error::unsupported("no weight is known to read it").at(&key))?;
                let shape = &self.shapes[number];
                let gram = self.gram && !shape.cache;
                let sums =
                    self.on.sums(Wanted { columns: shape.columns, weighted: shape.expert, gram }).map_err(|e| {
                        let e = e.at(&key);
                        if gram { e.help("drop --gram, or use a machine with more memory") } else { e }
                    })?;
                self.found.push((number, Growing { columns: shape.columns, tokens: 0, weight: 0.0, sums }));
                self.index.insert(key, self.found.len() - 1);
                self.found.len() - 1
            }
        };
        Ok(&mut self.found[at].1)
    }

    fn hear(&mut self, key: String, x: &O::Rows, weights: Option<&[f32]>) -> Result<()> {
        let on = self.on;
        let sums = self.sums(key)?;
        sums.tokens += (on.len(x) / sums.columns.max(1)) as u64;
        match weights {
            Some(weights) => sums.weight += weights.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>(),
            None => sums.weight = sums.tokens as f64,
        }
        on.add_up(&mut sums.sums, x, weights)
    }
}

impl<O: Ops> Tap<O> for Collector<'_, O> {
    fn input(&mut self, _: &O, site: Site, x: &O::Rows, weights: Option<&[f32]>) -> Result<()> {
        self.hear(layout::key(site.layer, &site.reader, site.expert), x, weights)
    }

    fn cached(&mut self, _: &O, layer: u32, keys: &O::Rows, values: &O::Rows) -> Result<()> {
        let [of_keys, of_values] = layout::cache_keys(layer);
        self.hear(of_keys, keys, None)?;
        self.hear(of_values, values, None)
    }
}

impl Sums {
    /// The bytes of a part of the file, a piece at a time.
    pub fn write(&self, quantity: Quantity, out: Out<'_>) -> Result<()> {
        let (tokens, all) = (self.tokens as f64, &self.totals);
        match quantity {
            Quantity::Tokens => out(&self.tokens.to_le_bytes()),
            Quantity::Weight => out(&self.weight.to_le_bytes()),
            Quantity::MeanSquare => means(&all.squares, tokens, out),
            Quantity::Mean => means(&all.sums, tokens, out),
            Quantity::AbsMax => out(&all.most.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()),
            Quantity::WeightedMeanSquare => means(&all.weighted, self.weight, out),
            Quantity::Gram => match &all.gram {
                Triangle::Sums(sums) => means(sums, self.weight, out),
                Triangle::Means(means) => means.chunks(PIECE).try_for_each(|part| out(&stored(part))),
            },
        }
    }
}

/// As the file has them.
fn stored(values: &[f32]) -> Cow<'_, [u8]> {
    match cfg!(target_endian = "little") {
        true => Cow::Borrowed(bytemuck::cast_slice(values)),
        false => values.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}

/// Values written at a time.
const PIECE: usize = 1 << 18;

pub fn means(sums: &[f64], count: f64, out: Out<'_>) -> Result<()> {
    let mean = |sum: &f64| if count > 0.0 { (sum / count) as f32 } else { 0.0 };
    sums.chunks(PIECE).try_for_each(|part| out(&part.iter().flat_map(|s| mean(s).to_le_bytes()).collect::<Vec<_>>()))
}

//! Adds up what passes by: the tap of calibration.

use std::collections::HashMap;

use super::layout::{self, Quantity, Shape};
use super::write::Out;
use crate::device::cpu::{self, GramScratch};
use crate::engine::{Site, Tap};
use crate::error::{Error, Result};

/// Sums over the tokens of one site.
pub struct Sums {
    pub tokens: u64,
    /// What weighted sums are divided by.
    pub weight: f64,
    squares: Vec<f64>,
    sums: Vec<f64>,
    most: Vec<f32>,
    weighted: Vec<f64>,
    gram: Option<cpu::Gram>,
}

/// Listens at all sites and keeps their sums until they are taken.
pub struct Collector<'a> {
    shapes: &'a [Shape],
    gram: bool,
    keys: HashMap<&'a str, usize>,
    /// Site and its sums, in the order in which they were first seen.
    found: Vec<(usize, Sums)>,
    index: HashMap<String, usize>,
    scratch: GramScratch,
    failed: Option<Error>,
}

impl<'a> Collector<'a> {
    pub fn new(shapes: &'a [Shape], gram: bool) -> Self {
        let keys = shapes.iter().enumerate().map(|(i, s)| (s.key.as_str(), i)).collect();
        let (found, index, scratch) = (Vec::new(), HashMap::new(), GramScratch::default());
        Collector { shapes, gram, keys, found, index, scratch, failed: None }
    }

    /// The sums, by number of the site, and forgets them.
    ///
    /// Errors: an activation that is not finite, with its site; sums that do not fit into memory.
    pub fn take(&mut self) -> Result<Vec<(usize, Sums)>> {
        self.check()?;
        self.index.clear();
        Ok(std::mem::take(&mut self.found))
    }

    /// The errors of [`Collector::take`].
    pub fn check(&mut self) -> Result<()> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        for (site, sums) in &self.found {
            if let Some(column) = sums.squares.iter().position(|x| !x.is_finite()) {
                return Err(Error::input(format!("an activation is not finite (column {column})"))
                    .at(format!("the input of {}", self.shapes[*site].key))
                    .help("run `quant verify` on the model: it names weights that are not numbers"));
            }
        }
        Ok(())
    }

    fn add(&mut self, key: String, x: &[f32], weights: Option<&[f32]>) -> Result<()> {
        let at = match self.index.get(&key) {
            Some(at) => *at,
            None => {
                let number = self.keys.get(key.as_str()).copied();
                let number = number.ok_or_else(|| Error::unsupported("no weight is known to read it").at(&key))?;
                self.found.push((number, Sums::new(&self.shapes[number], self.gram)?));
                self.index.insert(key, self.found.len() - 1);
                self.found.len() - 1
            }
        };
        self.found[at].1.add(x, weights, &mut self.scratch);
        Ok(())
    }

    fn hear(&mut self, key: String, x: &[f32], weights: Option<&[f32]>) {
        if self.failed.is_none() {
            self.failed = self.add(key, x, weights).err();
        }
    }
}

impl Tap for Collector<'_> {
    fn input(&mut self, site: Site, x: &[f32], weights: Option<&[f32]>) {
        self.hear(layout::key(site.layer, &site.reader, site.expert), x, weights);
    }

    fn cached(&mut self, layer: u32, keys: &[f32], values: &[f32]) {
        for (key, x) in layout::cache_keys(layer).into_iter().zip([keys, values]) {
            self.hear(key, x, None);
        }
    }
}

impl Sums {
    fn new(shape: &Shape, gram: bool) -> Result<Sums> {
        let n = shape.columns;
        let too_large = || {
            Error::limits(format!("the Gram matrix of {n} inputs does not fit into memory"))
                .at(&shape.key)
                .help("drop --gram, or use a machine with more memory")
        };
        Ok(Sums {
            tokens: 0,
            weight: 0.0,
            squares: vec![0.0; n],
            sums: vec![0.0; n],
            most: vec![0.0; n],
            weighted: if shape.expert { vec![0.0; n] } else { Vec::new() },
            gram: if gram && !shape.cache { Some(cpu::Gram::new(n).ok_or_else(too_large)?) } else { None },
        })
    }

    fn add(&mut self, x: &[f32], weights: Option<&[f32]>, scratch: &mut GramScratch) {
        let tokens = x.len() / self.squares.len().max(1);
        self.tokens += tokens as u64;
        cpu::moments(x, &mut self.squares, &mut self.sums, &mut self.most);
        match weights {
            Some(weights) => {
                self.weight += weights.iter().map(|w| f64::from(*w) * f64::from(*w)).sum::<f64>();
                cpu::weighted_squares(x, weights, &mut self.weighted);
            }
            None => self.weight = self.tokens as f64,
        }
        if let Some(gram) = &mut self.gram {
            gram.add(x, weights, scratch);
        }
    }

    /// The bytes of a part of the file, a piece at a time.
    pub fn write(&self, quantity: Quantity, out: Out<'_>) -> Result<()> {
        let tokens = self.tokens as f64;
        match quantity {
            Quantity::Tokens => out(&self.tokens.to_le_bytes()),
            Quantity::Weight => out(&self.weight.to_le_bytes()),
            Quantity::MeanSquare => means(&self.squares, tokens, out),
            Quantity::Mean => means(&self.sums, tokens, out),
            Quantity::AbsMax => out(&self.most.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>()),
            Quantity::WeightedMeanSquare => means(&self.weighted, self.weight, out),
            Quantity::Gram => means(self.gram.as_ref().map_or(&[], |g| g.upper()), self.weight, out),
        }
    }
}

/// Values written at a time.
const PIECE: usize = 1 << 18;

pub fn means(sums: &[f64], count: f64, out: Out<'_>) -> Result<()> {
    let mean = |sum: &f64| if count > 0.0 { (sum / count) as f32 } else { 0.0 };
    sums.chunks(PIECE).try_for_each(|part| out(&part.iter().flat_map(|s| mean(s).to_le_bytes()).collect::<Vec<_>>()))
}

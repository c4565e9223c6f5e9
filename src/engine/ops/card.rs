//! On a card. Weights come packed and are decoded in front of their product, activations stay; only what decides where tokens go,
//! the scores of a router, is read in between.

use std::borrow::Cow;
use std::ops::Range;

use super::{Heads, Ops, Totals, Triangle, Wanted};
use crate::arch::Activation;
use crate::container::Weight;
use crate::device::cuda::{Buffer, Runner, View, ops};
use crate::engine::Sequence;
use crate::engine::rope::Pairing;
use crate::error::{Error, Result};

pub struct OnCard<'r> {
    runner: &'r dyn Runner,
    /// Bytes of a weight that are decoded at a time.
    part: usize,
}

impl<'r> OnCard<'r> {
    pub fn new(runner: &'r dyn Runner) -> Result<OnCard<'r>> {
        Ok(OnCard { runner, part: ops::weight::part(runner.room()?) })
    }
}

impl<'r> Ops for OnCard<'r> {
    type Rows = Buffer<'r>;
    type Sums = Sums<'r>;

    fn put(&self, x: &[f32]) -> Result<Buffer<'r>> {
        Buffer::of(self.runner, x)
    }

    fn get<'x>(&self, x: &'x Buffer<'r>) -> Result<Cow<'x, [f32]>> {
        x.read(x.singles()).map(Cow::Owned)
    }

    fn get_into(&self, x: &Buffer<'r>, out: &mut [f32]) -> Result<()> {
        x.read_into(out)
    }

    fn len(&self, x: &Buffer<'r>) -> usize {
        x.singles()
    }

    fn zeros(&self, n: usize) -> Result<Buffer<'r>> {
        let out = Buffer::singles(self.runner, n)?;
        ops::fill(&out, 0.0)?;
        Ok(out)
    }

    fn is_finite(&self, x: &Buffer<'r>) -> Result<bool> {
        ops::is_finite(x)
    }

    fn product(
        &self,
        weight: &Weight<'_>,
        rows: Range<usize>,
        bias: Option<&[f32]>,
        x: &Buffer<'r>,
    ) -> Result<Buffer<'r>> {
        ops::weight::product(weight, rows, bias, x, self.part)
    }

    fn norm(&self, x: &Buffer<'r>, gain: &[f32], eps: f32) -> Result<Buffer<'r>> {
        let (gain, out) = (self.put(gain)?, Buffer::singles(self.runner, x.singles())?);
        ops::rms_norm(x, &gain, eps, &out)?;
        Ok(out)
    }

    fn add(&self, x: &mut Buffer<'r>, y: &Buffer<'r>) -> Result<()> {
        ops::add(x, y)
    }

    fn gate(&self, activation: Activation, gate: &mut Buffer<'r>, up: &Buffer<'r>) -> Result<()> {
        ops::gate(activation, gate, up)
    }

    fn attend(
        &self,
        heads: &Heads<'_>,
        sequences: &mut [Sequence<'_>],
        q: &mut Buffer<'r>,
        k: &mut Buffer<'r>,
        v: &Buffer<'r>,
    ) -> Result<Buffer<'r>> {
        let (a, out) = (heads.attention, Buffer::singles(self.runner, q.singles())?);
        if sequences.iter().any(|s| !s.cache.is_empty()) {
            return Err(Error::unsupported("a card runs whole sequences, and none that were begun before"));
        }
        let longest = sequences.iter().map(|s| s.tokens.len()).max().unwrap_or(0);
        let (wide, narrow) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let turns = heads.angles.map(|(angles, pairing)| {
            let turns = self.put(angles.first(longest).as_flattened())?;
            Ok::<_, Error>((turns, 2 * angles.pairs(), pairing == Pairing::Halves))
        });
        let turns = turns.transpose()?;
        let mut from = 0;
        for s in sequences {
            let (n, rows) = (s.tokens.len(), from..from + s.tokens.len());
            let (q, k, v) = (q.rows(rows.clone(), wide), k.rows(rows.clone(), narrow), v.rows(rows.clone(), narrow));
            if let Some((turns, row, halves)) = &turns {
                let turns = turns.rows(0..n, *row);
                ops::rope(&q, &turns, n, a.head_dim, *halves)?;
                ops::rope(&k, &turns, n, a.head_dim, *halves)?;
            }
            ops::attention(a, 0, &ops::Heads { q, k, v }, &out.rows(rows, wide))?;
            from += n;
        }
        Ok(out)
    }

    fn pick(&self, x: &Buffer<'r>, columns: usize, tokens: &[u32]) -> Result<Buffer<'r>> {
        let out = Buffer::singles(self.runner, tokens.len() * columns)?;
        ops::pick(x, tokens, columns, &out)?;
        Ok(out)
    }

    fn scatter(
        &self,
        out: &mut Buffer<'r>,
        columns: usize,
        tokens: &[u32],
        weights: &[f32],
        y: &Buffer<'r>,
    ) -> Result<()> {
        ops::scatter(y, tokens, weights, columns, out)
    }

    fn dots(&self, x: &Buffer<'r>, w: &[f32]) -> Result<Vec<f32>> {
        let rows = x.singles() / w.len().max(1);
        let (w, out) = (self.put(w)?, Buffer::singles(self.runner, rows)?);
        ops::dots(x, &w, &out)?;
        out.read(rows)
    }

    fn sums(&self, wanted: Wanted) -> Result<Sums<'r>> {
        let Wanted { columns, weighted, gram } = wanted;
        Ok(Sums {
            columns,
            plain: ops::Moments::new(self.runner, columns)?,
            weighted: weighted.then(|| ops::Moments::new(self.runner, columns)).transpose()?,
            gram: gram.then(|| ops::Gram::new(self.runner, columns)).transpose()?,
        })
    }

    fn add_up(&self, sums: &mut Sums<'r>, x: &Buffer<'r>, weights: Option<&[f32]>) -> Result<()> {
        let rows = x.singles() / sums.columns.max(1);
        let weights = weights.map(|w| self.put(w)).transpose()?;
        let weights: Option<&View<'_>> = weights.as_deref();
        sums.plain.add::<f32>(x, rows, None)?;
        if let (Some(sums), Some(_)) = (&sums.weighted, weights) {
            sums.add::<f32>(x, rows, weights)?;
        }
        match &sums.gram {
            Some(gram) => gram.add(x, rows, weights),
            None => Ok(()),
        }
    }

    fn totals(&self, sums: Sums<'r>, count: f64) -> Result<Totals> {
        let ops::Totals { squares, sums: values, most } = sums.plain.totals()?;
        Ok(Totals {
            squares,
            sums: values,
            most,
            weighted: sums.weighted.map_or(Ok(Vec::new()), |w| w.totals().map(|t| t.squares))?,
            gram: sums.gram.map_or(Ok(Triangle::default()), |gram| gram.means(count).map(Triangle::Means))?,
        })
    }
}

/// Added up so far, on the card.
pub struct Sums<'r> {
    columns: usize,
    plain: ops::Moments<'r>,
    weighted: Option<ops::Moments<'r>>,
    gram: Option<ops::Gram<'r>>,
}

//! One pass through the layers: what all of them are handed.

use super::tap::{Site, Tap};
use super::{Engine, Sequence};
use crate::arch::Role;
use crate::error::{At, Error, Result};

/// Steps of a forward pass. Each may be taken for other sequences than the one before: a layer at a time over more text than
/// fits into memory at once.
pub struct Pass<'a, 'e> {
    pub(super) engine: &'a Engine<'e>,
    pub(super) tap: &'a mut dyn Tap,
    spare: Vec<Vec<f32>>,
}

impl<'a, 'e> Pass<'a, 'e> {
    pub(super) fn new(engine: &'a Engine<'e>, tap: &'a mut dyn Tap) -> Self {
        Pass { engine, tap, spare: Vec::new() }
    }

    /// Hidden states in front of the first layer, `[tokens][hidden]`, of the tokens of all sequences.
    ///
    /// Errors: a token outside the vocabulary; more tokens than the cache has room for; an embedding that is not finite.
    pub fn embed(&mut self, sequences: &[Sequence<'_>]) -> Result<Vec<f32>> {
        self.check_room(sequences)?;
        self.engine.embed(&tokens(sequences))
    }

    /// Runs `x` through a layer. The caches take its keys and values, but do not advance: that is up to the caller, when
    /// all layers have been run.
    ///
    /// Errors: more tokens than the cache has room for; an activation that is not finite.
    ///
    /// # Panics
    /// If there is no such layer, or `x` is not `[tokens][hidden]`.
    pub fn layer(&mut self, layer: usize, sequences: &mut [Sequence<'_>], x: &mut [f32]) -> Result<()> {
        self.check_room(sequences)?;
        let tokens = tokens(sequences);
        assert_eq!(x.len(), tokens.len() * self.engine.hidden());
        let engine = self.engine;
        let layer = &engine.layers[layer];
        let number = layer.number;
        layer.run(self, sequences, x).at(|| format!("layer {number}"))?;
        engine.check(x, &tokens, || format!("the output of layer {number}"))
    }

    /// Final hidden states, normed, from those behind the last layer.
    ///
    /// Errors: one that is not finite.
    pub fn finish(&mut self, sequences: &[Sequence<'_>], x: &[f32]) -> Result<Vec<f32>> {
        let mut out = self.take(x.len());
        self.engine.norm_rows(x, &self.engine.output_norm, &mut out);
        self.tap.input(Site { layer: None, reader: Role::Output, expert: None }, &out, None);
        self.engine.check(&out, &tokens(sequences), || "the final norm".to_owned())?;
        Ok(out)
    }

    fn check_room(&self, sequences: &[Sequence<'_>]) -> Result<()> {
        for s in sequences {
            let (have, want) = (s.cache.capacity().min(self.engine.positions), s.cache.len() + s.tokens.len());
            if want > have {
                let over = want - have;
                return Err(Error::limits(format!("{want} tokens are {over} more than the context of {have}")));
            }
            if !s.cache.is_empty() && !s.cache.keeps(self.engine.layers()) {
                return Err(Error::request("a transient cache cannot be continued"));
            }
        }
        Ok(())
    }

    /// `n` values that mean nothing: all of them must be written. What a layer gave back serves the next: a large vector that
    /// is new costs the system as much as some of what is computed in it.
    pub fn take(&mut self, n: usize) -> Vec<f32> {
        let capacity = |i: &usize| self.spare[*i].capacity();
        let fits = (0..self.spare.len()).filter(|i| capacity(i) >= n).min_by_key(capacity);
        let mut out = fits.map_or_else(Vec::new, |i| self.spare.swap_remove(i));
        out.resize(n, 0.0);
        out
    }

    /// Hands a vector that [`Pass::take`] gave back.
    pub fn give(&mut self, used: Vec<f32>) {
        self.spare.push(used);
    }
}

fn tokens(sequences: &[Sequence<'_>]) -> Vec<u32> {
    sequences.iter().flat_map(|s| s.tokens.iter().copied()).collect()
}

//! One pass through the layers: what all of them are handed.

use std::ops::Range;

use super::ops::Ops;
use super::tap::{Site, Tap};
use super::{Engine, Sequence};
use crate::arch::Role;
use crate::codec::{Activations, served};
use crate::container::Weight;
use crate::error::{At, Error, Result};

/// Steps of a forward pass. Each may be taken for other sequences than the one before: a layer at a time over more text than
/// fits into memory at once.
pub struct Pass<'a, 'e, O: Ops> {
    pub(super) engine: &'a Engine<'e>,
    /// Where it is computed.
    pub on: &'a O,
    tap: &'a mut dyn Tap<O>,
}

impl<'a, 'e, O: Ops> Pass<'a, 'e, O> {
    pub(super) fn new(engine: &'a Engine<'e>, on: &'a O, tap: &'a mut dyn Tap<O>) -> Self {
        Pass { engine, on, tap }
    }

    /// Hidden states in front of the first layer, `[tokens][hidden]`, of the tokens of all sequences.
    ///
    /// Errors: a token outside the vocabulary; more tokens than the cache has room for; an embedding that is not finite.
    pub fn embed(&mut self, sequences: &[Sequence<'_>]) -> Result<O::Rows> {
        self.check_room(sequences)?;
        let tokens = tokens(sequences);
        let x = self.on.put(&self.engine.embed(&tokens)?)?;
        self.check(&x, &tokens, || "the embedding".to_owned())?;
        Ok(x)
    }

    /// Runs `x` through a layer. The caches take its keys and values, but do not advance: that is up to the caller, when
    /// all layers have been run.
    ///
    /// Errors: more tokens than the cache has room for; an activation that is not finite.
    ///
    /// # Panics
    /// If there is no such layer, or `x` is not `[tokens][hidden]`.
    pub fn layer(&mut self, layer: usize, sequences: &mut [Sequence<'_>], x: &mut O::Rows) -> Result<()> {
        self.check_room(sequences)?;
        let tokens = tokens(sequences);
        assert_eq!(self.on.len(x), tokens.len() * self.engine.hidden());
        let engine = self.engine;
        let layer = &engine.layers[layer];
        let number = layer.number;
        layer.run(self, sequences, x).at(|| format!("layer {number}"))?;
        self.check(x, &tokens, || format!("the output of layer {number}"))
    }

    /// Final hidden states, normed, from those behind the last layer.
    ///
    /// Errors: one that is not finite.
    pub fn finish(&mut self, sequences: &[Sequence<'_>], x: &O::Rows) -> Result<O::Rows> {
        let out = self.norm(x, &self.engine.output_norm)?;
        self.hear(Site { layer: None, reader: Role::Output, expert: None }, &out, None)?;
        self.check(&out, &tokens(sequences), || "the final norm".to_owned())?;
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

    fn check(&self, x: &O::Rows, tokens: &[u32], place: impl Fn() -> String) -> Result<()> {
        if self.on.is_finite(x)? {
            return Ok(());
        }
        let x = self.on.get(x)?;
        let at = x.iter().position(|x| !x.is_finite()).unwrap_or(0) / self.engine.hidden().max(1);
        let token = tokens.get(at).copied().unwrap_or_default();
        Err(Error::input(format!("{} is not finite at position {at} of the batch (token {token})", place()))
            .help("run `quant verify` on the file: it names weights that are not numbers"))
    }

    pub(super) fn hear(&mut self, site: Site, x: &O::Rows, weights: Option<&[f32]>) -> Result<()> {
        self.tap.input(self.on, site, x, weights)
    }

    pub(super) fn hear_cached(&mut self, layer: u32, keys: &O::Rows, values: &O::Rows) -> Result<()> {
        self.tap.cached(self.on, layer, keys, values)
    }

    /// `x` times rows of a weight, `[tokens][rows]`.
    pub(super) fn product(
        &self,
        weight: &Weight<'_>,
        rows: Range<usize>,
        bias: Option<&[f32]>,
        x: &O::Rows,
    ) -> Result<O::Rows> {
        let (on, activations) = (self.on, self.engine.activations);
        if activations != Activations::Plain {
            let mut rounded = on.get(x)?.into_owned();
            let cols = weight.packed.dims.cols;
            if served::round_inputs(weight.codec, activations, weight.inputs, cols, &mut rounded) {
                return on.product(weight, rows, bias, &on.put(&rounded)?);
            }
        }
        on.product(weight, rows, bias, x)
    }

    pub(super) fn norm(&self, x: &O::Rows, gain: &[f32]) -> Result<O::Rows> {
        self.on.norm(x, gain, self.engine.spec.rms_eps)
    }

    /// `x += norm(out)`, or without a norm `x += out`.
    pub(super) fn join(&self, x: &mut O::Rows, gain: Option<&[f32]>, out: O::Rows) -> Result<()> {
        match gain {
            Some(gain) => self.on.add(x, &self.norm(&out, gain)?),
            None => self.on.add(x, &out),
        }
    }
}

fn tokens(sequences: &[Sequence<'_>]) -> Vec<u32> {
    sequences.iter().flat_map(|s| s.tokens.iter().copied()).collect()
}

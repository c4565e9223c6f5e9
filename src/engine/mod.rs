//! One transformer that runs every checkpoint as it lies on disk: packed weights are decoded in front of each product, so two
//! files differ in their weights alone, never in how they are computed.

pub mod chat;
mod experts;
pub mod generate;
mod layer;
mod load;
pub mod ops;
mod pass;
mod room;
mod rope;
pub mod sample;
mod tap;
pub mod utf8;

use std::collections::HashMap;

use rayon::prelude::*;

use crate::arch::{Arch, ModelSpec};
use crate::codec::Activations;
use crate::codec::kv::{KvPolicy, KvShape};
use crate::container::{Checkpoint, Weight};
pub use crate::device::cpu::KvCache;
use crate::device::{Worker, cpu};
use crate::error::{Error, Result};
use layer::Layer;
use load::Loader;
use ops::{OnCard, OnCpu, Ops};
pub use pass::Pass;
use rope::{Angles, Pairing};
pub use tap::{NoTap, Site, Tap};

/// A checkpoint, ready to run on up to `positions` positions.
pub struct Engine<'a> {
    checkpoint: &'a dyn Checkpoint,
    arch: &'static Arch,
    spec: ModelSpec,
    layers: Vec<Layer>,
    output_norm: Vec<f32>,
    pairing: Pairing,
    /// Of all layers, and of those with a sliding window where they have their own.
    angles: Angles,
    window_angles: Option<Angles>,
    embedding: usize,
    head: usize,
    positions: usize,
    /// What becomes of inputs in front of quantized weights.
    activations: Activations,
    /// How its caches keep keys and values.
    kv: KvPolicy,
    worker: Worker<'a>,
}

/// New tokens of one sequence, and what came before them.
pub struct Sequence<'a> {
    pub tokens: &'a [u32],
    pub cache: &'a mut KvCache,
}

/// The matrix from hidden states to logits.
pub struct Head<'a> {
    pub weight: Weight<'a>,
    /// Logits are bounded by its tanh.
    pub softcap: Option<f32>,
    /// Where logits are compared.
    pub worker: Worker<'a>,
}

impl<'a> Engine<'a> {
    /// Finds every weight that the family's layers need. `positions`: the longest sequence, cached tokens included.
    ///
    /// Errors: a family that the engine does not know; a weight that is missing or has the wrong shape.
    pub fn new(checkpoint: &'a dyn Checkpoint, positions: usize) -> Result<Engine<'a>> {
        let Some((arch, spec)) = checkpoint.family() else {
            let known: Vec<_> = crate::arch::ARCHES.iter().map(|a| a.name).collect();
            return Err(Error::unsupported(format!("{} models cannot be run", checkpoint.arch()))
                .help(format!("families that can: {}", known.join(", "))));
        };
        let index: HashMap<&str, usize> =
            checkpoint.tensors().iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
        let loader = Loader { checkpoint, arch, spec, index };
        let (angles, window_angles) = loader.angles(positions)?;
        let layers = (0..spec.layers).map(|l| loader.layer(l)).collect::<Result<_>>()?;
        let embedding = loader.matrix("token_embd.weight", spec.hidden as usize)?;
        Ok(Engine {
            checkpoint,
            arch,
            spec: spec.clone(),
            layers,
            output_norm: loader.norm("output_norm", spec.hidden as usize)?,
            pairing: loader.pairing(),
            angles,
            window_angles,
            embedding,
            head: if loader.has("output.weight") {
                loader.matrix("output.weight", spec.hidden as usize)?
            } else {
                embedding
            },
            positions,
            activations: Activations::Plain,
            kv: KvPolicy::default(),
            worker: Worker::Cpu,
        })
    }

    /// The same, with caches of another kind than single precision, under the scales that the checkpoint has for them.
    ///
    /// Errors: heads that its types cannot store; layers that do not exist; scales that are none.
    pub fn with_kv(mut self, policy: KvPolicy) -> Result<Engine<'a>> {
        let shape = self.kv_shape();
        policy.check(shape.layers, shape.head_dim)?;
        let scales = policy.has_scales().then(|| self.cache_scales()).transpose()?.flatten();
        self.kv = match scales {
            Some(scales) => policy.scaled(scales),
            None => policy,
        };
        Ok(self)
    }

    /// Those of the checkpoint, which caches of 8-bit floats are stored under.
    pub fn cache_scales(&self) -> Result<Option<Vec<[f32; 2]>>> {
        self.checkpoint.cache_scales()
    }

    /// What the size of its caches follows from.
    pub fn kv_shape(&self) -> KvShape {
        KvShape { layers: self.layers(), heads: self.spec.kv_heads(), head_dim: self.spec.head_dim() }
    }

    /// The same, with the inputs of quantized weights rounded as the checkpoint tells runtimes to.
    pub fn as_served(mut self) -> Engine<'a> {
        self.activations = self.checkpoint.activations();
        self
    }

    /// Where it runs.
    pub fn worker(&self) -> Worker<'a> {
        self.worker
    }

    pub fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    /// Rows of the embedding, which can be more than the tokenizer's tokens.
    pub fn vocab(&self) -> usize {
        self.checkpoint.tensors()[self.embedding].dims().rows
    }

    pub fn hidden(&self) -> usize {
        self.spec.hidden as usize
    }

    /// A cache that every layer keeps its keys and values in.
    pub fn cache(&self, positions: usize) -> Result<KvCache> {
        self.new_cache(self.layers.len(), positions)
    }

    /// A cache for one [`Engine::forward`] over whole sequences: layers overwrite each other's.
    pub fn transient(&self, positions: usize) -> Result<KvCache> {
        self.new_cache(1, positions)
    }

    fn new_cache(&self, slots: usize, positions: usize) -> Result<KvCache> {
        if positions > self.positions {
            let (most, over) = (self.positions, positions - self.positions);
            return Err(Error::limits(format!("{positions} positions are {over} more than the {most} asked for")));
        }
        KvCache::new(&self.kv, self.kv_shape(), slots, positions)
    }

    pub fn head(&self) -> Result<Head<'a>> {
        let weight = self.checkpoint.read(self.head, 0)?;
        Ok(Head { weight, softcap: self.spec.final_softcap.filter(|c| *c > 0.0), worker: self.worker })
    }

    /// Transformer layers.
    pub fn layers(&self) -> usize {
        self.layers.len()
    }

    /// Runs new tokens of several sequences and returns their final hidden states, normed: `[tokens][hidden]`, in order.
    /// Runs in the caller's rayon pool.
    ///
    /// Errors: a token outside the vocabulary; more tokens than the cache has room for; an activation that is not finite, with
    /// the layer where it first appears; those of the device.
    pub fn forward(&self, sequences: &mut [Sequence<'_>]) -> Result<Vec<f32>> {
        match self.worker {
            Worker::Cpu => self.states(&OnCpu::default(), sequences),
            Worker::Card(runner) => self.states(&OnCard::new(runner)?, sequences),
        }
    }

    fn states<O: Ops>(&self, on: &O, sequences: &mut [Sequence<'_>]) -> Result<Vec<f32>> {
        let states = self.forward_on(on, sequences, &mut NoTap)?;
        Ok(on.get(&states)?.into_owned())
    }

    /// The same where `on` computes, and leaves them; `tap` sees the input of every weight.
    pub fn forward_on<O: Ops>(&self, on: &O, sequences: &mut [Sequence<'_>], tap: &mut dyn Tap<O>) -> Result<O::Rows> {
        let mut pass = self.pass(on, tap);
        let mut x = pass.embed(sequences)?;
        for layer in 0..self.layers() {
            pass.layer(layer, sequences, &mut x)?;
        }
        for s in sequences.iter_mut() {
            s.cache.advance(s.tokens.len());
        }
        pass.finish(sequences, &x)
    }

    /// [`Engine::forward_on`] in steps, for those who stop between layers.
    pub fn pass<'p, O: Ops>(&'p self, on: &'p O, tap: &'p mut dyn Tap<O>) -> Pass<'p, 'a, O> {
        Pass::new(self, on, tap)
    }

    fn embed(&self, tokens: &[u32]) -> Result<Vec<f32>> {
        let (hidden, vocab) = (self.hidden(), self.vocab());
        if let Some(bad) = tokens.iter().find(|t| **t as usize >= vocab) {
            return Err(Error::input(format!("token {bad} is not among the {vocab} of the embedding"))
                .help("the tokenizer belongs to another model"));
        }
        let weight = self.checkpoint.read(self.embedding, 0)?;
        let mut scale = weight.scale;
        if self.arch.runtime.scaled_embeddings {
            scale *= (hidden as f32).sqrt();
        }
        let mut x = vec![0.0; tokens.len() * hidden];
        x.par_chunks_exact_mut(hidden).zip(tokens).for_each(|(row, token)| {
            let at = *token as usize;
            weight.codec.decode(&weight.packed, at..at + 1, row);
            row.iter_mut().for_each(|x| *x *= scale);
        });
        Ok(x)
    }
}

impl Head<'_> {
    /// Logits of hidden states `[tokens][hidden]`: `[tokens][vocabulary]`.
    pub fn logits(&self, hidden: &[f32]) -> Vec<f32> {
        let dims = self.weight.packed.dims;
        let mut out = vec![0.0; hidden.len() / dims.cols.max(1) * dims.rows];
        cpu::linear(&self.weight, 0..dims.rows, None, hidden, &mut out);
        if let Some(cap) = self.softcap {
            out.par_chunks_mut(1 << 14).for_each(|x| cpu::softcap(x, cap));
        }
        out
    }
}

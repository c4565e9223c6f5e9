//! Keys and values of one sequence, in single precision or as a [`KvPolicy`] says.

use rayon::prelude::*;

use super::attention::{Attention, Memory};
use super::encoded::Encoded;
use super::span::{Kind, Span};
use crate::codec::kv::{KvPolicy, KvShape};
use crate::error::Result;

/// What attention remembers of a sequence.
#[derive(Clone, Debug)]
pub struct KvCache {
    shape: KvShape,
    capacity: usize,
    kept: Kept,
    len: usize,
}

#[derive(Clone, Debug)]
enum Kept {
    /// A span for every layer.
    Full(Vec<Span>),
    Encoded(Box<Encoded>),
}

/// Turns keys `[tokens][head_dim]`, the first of which stands at a position.
pub type Turn<'a> = &'a (dyn Fn(usize, &mut [f32]) + Sync);

impl KvCache {
    /// Room for `positions`. With fewer `slots` than layers, layers share them in turn: enough for a forward pass over whole
    /// sequences that keeps nothing.
    ///
    /// Errors: more than memory holds; heads that the policy's types cannot store, layers that do not exist.
    pub fn new(policy: &KvPolicy, shape: KvShape, slots: usize, positions: usize) -> Result<KvCache> {
        policy.check(shape.layers, shape.head_dim)?;
        let slots = slots.max(1);
        let span = || Span::new(shape.heads, shape.head_dim, 0, positions);
        let kept = match policy.is_full() {
            true => Kept::Full((0..slots).map(|_| span()).collect::<Result<_>>()?),
            false => Kept::Encoded(Box::new(Encoded::new(policy, shape, slots, span()?))),
        };
        let mut cache = KvCache { shape, capacity: 0, kept, len: 0 };
        cache.capacity = match &cache.kept {
            Kept::Full(spans) => spans[0].room,
            Kept::Encoded(encoded) => encoded.room(),
        };
        Ok(cache)
    }

    /// Positions that every layer holds.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Whether every layer keeps its own keys and values.
    pub fn keeps(&self, layers: usize) -> bool {
        self.slots() >= layers
    }

    fn slots(&self) -> usize {
        match &self.kept {
            Kept::Full(spans) => spans.len(),
            Kept::Encoded(encoded) => encoded.slots(),
        }
    }

    /// Forgets all positions from `len` on. What was encoded before it stays encoded.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// All layers have stored `n` more positions.
    pub fn advance(&mut self, n: usize) {
        self.len = (self.len + n).min(self.capacity);
    }

    /// Bytes that keys and values take, working space aside.
    pub fn bytes(&self) -> usize {
        match &self.kept {
            Kept::Full(spans) => spans.len() * 2 * self.shape.heads * self.shape.head_dim * self.len * size_of::<f32>(),
            Kept::Encoded(encoded) => encoded.bytes(),
        }
    }

    /// Whether a layer's keys are to be handed over as they are before they are turned by their position.
    pub fn before_rope(&self, layer: usize) -> bool {
        match &self.kept {
            Kept::Full(_) => false,
            Kept::Encoded(encoded) => encoded.before_rope(layer),
        }
    }

    /// Keys of the stored positions of a head as attention sees them in single precision: `key(position, channel)`.
    /// `None` where the cache is encoded.
    pub fn full_key(&self, layer: usize, head: usize) -> Option<impl Fn(usize, usize) -> f32 + '_> {
        let Kept::Full(spans) = &self.kept else { return None };
        let span = &spans[layer % spans.len()];
        let (keys, room) = (span.head(Kind::Keys, head), span.room);
        Some(move |position: usize, channel: usize| keys[channel * room + position])
    }

    /// Stores keys and values `[tokens][kv_heads * head_dim]` behind the positions so far, then attends to all of them:
    /// `q` and `out` are `[tokens][heads * head_dim]`, the first query stands at position `len()`. `turn` is for keys from
    /// before RoPE, where [`KvCache::before_rope`] wants them.
    #[expect(clippy::too_many_arguments)]
    pub fn attend(
        &mut self,
        a: &Attention,
        layer: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        turn: Turn<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let (row, slot) = (self.shape.heads * self.shape.head_dim, layer % self.slots());
        assert!(self.len + k.len() / row.max(1) <= self.capacity && v.len() == k.len());
        match &mut self.kept {
            Kept::Full(spans) => {
                for (kind, x) in [(Kind::Keys, k), (Kind::Values, v)] {
                    let mut heads: Vec<_> = spans[slot].heads_mut(kind).collect();
                    heads.par_iter_mut().enumerate().for_each(|(h, panel)| {
                        panel.put(self.len, x.chunks_exact(row).map(|token| &token[h * self.shape.head_dim..]));
                    });
                }
                a.run(&Memory { settled: &spans[slot], recent: None }, self.len, q, out);
                Ok(())
            }
            Kept::Encoded(encoded) => encoded.attend(a, layer, self.len, q, [k, v], turn, out),
        }
    }
}

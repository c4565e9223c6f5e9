//! A cache that holds bytes. A layer's are decoded once for all queries of a call, whose own tokens are stored first: a query
//! sees every position, its own too, as a runtime would that generates one token after the other.

use half::f16;
use half::slice::HalfFloatSliceExt;
use rayon::prelude::*;

use super::attention::{Attention, Memory, Recent, Settled};
use super::cache::Turn;
use super::kernel::WIDTH;
use super::span::{Kind, Panel, Span};
use crate::codec::kv::{Held, KvPolicy, KvShape};
use crate::error::Result;

/// Tokens that are decoded at a time.
const CHUNK: usize = 256;

#[derive(Clone, Debug)]
pub struct Encoded {
    policy: KvPolicy,
    shape: KvShape,
    /// Keys and values of each head.
    slots: Vec<[Vec<Head>; 2]>,
    /// The layer at hand, decoded.
    settled: Span,
}

/// One head's keys, or values.
#[derive(Clone, Debug, Default)]
struct Head {
    sinks: Vec<f16>,
    shared: Vec<u8>,
    encoded: Vec<u8>,
    /// The positions behind those.
    waiting: Vec<f16>,
    /// Positions in `sinks` and `encoded`.
    settled: usize,
}

impl Encoded {
    pub fn new(policy: &KvPolicy, shape: KvShape, slots: usize, settled: Span) -> Encoded {
        let side = || vec![Head::default(); shape.heads];
        let slots = (0..slots).map(|_| [side(), side()]).collect();
        Encoded { policy: policy.clone(), shape, slots, settled }
    }

    pub fn room(&self) -> usize {
        self.settled.room
    }

    pub fn slots(&self) -> usize {
        self.slots.len()
    }

    pub fn before_rope(&self, layer: usize) -> bool {
        self.policy.layer(layer)[0].before_rope
    }

    pub fn bytes(&self) -> usize {
        self.slots.iter().flatten().flatten().map(Head::bytes).sum()
    }

    /// As `KvCache::attend`, behind `len` positions.
    #[expect(clippy::too_many_arguments)]
    pub fn attend(
        &mut self,
        a: &Attention,
        layer: usize,
        len: usize,
        q: &[f32],
        kv: [&[f32]; 2],
        turn: Turn<'_>,
        out: &mut [f32],
    ) -> Result<()> {
        let (d, row) = (self.shape.head_dim, self.shape.heads * self.shape.head_dim);
        let held = self.policy.layer(layer);
        let count = self.slots.len();
        let heads = &mut self.slots[layer % count];
        let end = len + kv[0].len() / row.max(1);
        let mut settled = [Settled { held: held[0], least: 0 }, Settled { held: held[1], least: 0 }];
        for (heads, settled) in heads.iter_mut().zip(&mut settled) {
            heads.iter_mut().for_each(|head| head.truncate(&settled.held, len, d));
            settled.least = heads.first().map_or(0, |head| head.settled);
        }
        let from = settled.iter().map(|s| s.of(len + 1)).min().unwrap_or(end) / WIDTH * WIDTH;
        let waits = settled.iter().any(|s| !s.held.at_once());
        let mut recent = waits.then(|| Span::new(self.shape.heads, d, from, end - from)).transpose()?;
        for (kind, x) in [(Kind::Keys, kv[0]), (Kind::Values, kv[1])] {
            let settled = settled[kind as usize];
            let turn = Some(turn).filter(|_| settled.held.before_rope && kind == Kind::Keys);
            let mut fresh: Vec<Option<Panel<'_>>> = match &mut recent {
                Some(recent) => recent.heads_mut(kind).map(Some).collect(),
                None => heads[kind as usize].iter().map(|_| None).collect(),
            };
            let mut panels: Vec<Panel<'_>> = self.settled.heads_mut(kind).collect();
            let heads = heads[kind as usize].par_iter_mut().zip(&mut panels).zip(&mut fresh).enumerate();
            heads.for_each(|(h, ((head, panel), fresh))| {
                let new: Vec<f32> = x.chunks_exact(row).flat_map(|token| &token[h * d..][..d]).copied().collect();
                let waiting = head.waiting(new, &settled.held, d);
                if let Some(fresh) = fresh {
                    let skip = from.saturating_sub(head.settled) * d;
                    put(fresh, head.settled + skip / d, waiting[skip..].to_vec(), d, turn);
                }
                head.settle(&waiting, &settled, end, d);
                head.decode(&settled.held, d, turn, panel);
            });
        }
        let recent = recent.as_ref().map(|span| Recent { span, settled });
        a.run(&Memory { settled: &self.settled, recent }, len, q, out);
        Ok(())
    }
}

fn put(panel: &mut Panel<'_>, position: usize, mut rows: Vec<f32>, d: usize, turn: Option<Turn<'_>>) {
    if let Some(turn) = turn {
        turn(position, &mut rows);
    }
    panel.put(position, rows.chunks_exact(d));
}

impl Head {
    fn bytes(&self) -> usize {
        (self.sinks.len() + self.waiting.len()) * size_of::<f16>() + self.shared.len() + self.encoded.len()
    }

    /// Forgets positions from `len` on. Groups that lose a token wait again, as they were decoded.
    fn truncate(&mut self, held: &Held, len: usize, d: usize) {
        if len >= self.settled {
            self.waiting.truncate((len - self.settled) * d);
            return;
        }
        let (vectors, tokens) = (held.vectors, held.vectors.tokens());
        let groups = len.saturating_sub(held.sink) / tokens;
        let kept = groups * vectors.bytes(d);
        let settled = len.min(held.sink) + groups * tokens;
        let mut rest = vec![0.0; if len > settled { tokens * d } else { 0 }];
        if len > settled {
            vectors.decode(&self.encoded[kept..][..vectors.bytes(d)], d, &self.shared, &mut rest);
            rest.truncate((len - settled) * d);
        }
        self.sinks.truncate(len.min(held.sink) * d);
        self.encoded.truncate(kept);
        if groups == 0 {
            self.shared.clear();
        }
        self.waiting = halves(&rest);
        self.settled = settled;
    }

    /// All that is not settled, the new tokens too, as it will be encoded.
    fn waiting(&self, mut new: Vec<f32>, held: &Held, d: usize) -> Vec<f32> {
        let halved = match held.at_once() {
            true => new.len().min(held.sink.saturating_sub(self.settled) * d),
            false => new.len(),
        };
        let rounded = halves(&new[..halved]);
        rounded.convert_to_f32_slice(&mut new[..halved]);
        let mut all = vec![0.0; self.waiting.len()];
        self.waiting.convert_to_f32_slice(&mut all);
        all.extend(new);
        all
    }

    /// Encodes what need not wait when there are `end` positions.
    fn settle(&mut self, waiting: &[f32], settled: &Settled, end: usize, d: usize) {
        let (held, until) = (&settled.held, settled.of(end));
        let (done, rest) = waiting.split_at((until - self.settled) * d);
        let (sinks, behind) = done.split_at(done.len().min(held.sink.saturating_sub(self.settled) * d));
        self.sinks.extend(halves(sinks));
        if !behind.is_empty() {
            let vectors = held.vectors;
            if self.shared.is_empty() && vectors.calibration() > 0 {
                // Nothing is encoded before there are so many.
                self.shared = vectors.shared(&waiting[sinks.len()..][..vectors.calibration() * d], d);
            }
            let from = self.encoded.len();
            self.encoded.resize(from + behind.len() / (vectors.tokens() * d) * vectors.bytes(d), 0);
            vectors.encode(behind, d, &self.shared, &mut self.encoded[from..]);
        }
        self.waiting = halves(rest);
        self.settled = until;
    }

    fn decode(&self, held: &Held, d: usize, turn: Option<Turn<'_>>, panel: &mut Panel<'_>) {
        let mut position = self.sinks.len() / d;
        let mut rows = vec![0.0; self.sinks.len()];
        self.sinks.convert_to_f32_slice(&mut rows);
        put(panel, 0, rows, d, turn);
        let (tokens, bytes) = (held.vectors.tokens(), held.vectors.bytes(d));
        for chunk in self.encoded.chunks(CHUNK / tokens * bytes) {
            let mut rows = vec![0.0; chunk.len() / bytes * tokens * d];
            held.vectors.decode(chunk, d, &self.shared, &mut rows);
            let n = rows.len() / d;
            put(panel, position, rows, d, turn);
            position += n;
        }
        panel.clear_from(self.settled);
    }
}

fn halves(x: &[f32]) -> Vec<f16> {
    let mut out = vec![f16::ZERO; x.len()];
    out.convert_from_f32_slice(x);
    out
}

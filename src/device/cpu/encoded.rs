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
        // Never empty: there is a panel for each head.
        let mut recent = waits.then(|| Span::new(self.shape.heads, d, from, (end - from).max(1))).transpose()?;
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
        let (size, tokens) = (held.vectors.bytes(d), held.vectors.tokens());
        let groups = len.saturating_sub(held.sink) / tokens;
        let kept = groups * size;
        let settled = len.min(held.sink) + groups * tokens;
        let mut rest = vec![0.0; if len > settled { tokens * d } else { 0 }];
        if len > settled {
            held.decode(&self.encoded[kept..][..size], d, &self.shared, &mut rest);
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
            held.encode(behind, d, &self.shared, &mut self.encoded[from..]);
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
            held.decode(chunk, d, &self.shared, &mut rows);
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

#[cfg(test)]
mod tests {
    use super::super::KvCache;
    use super::*;

    const SHAPE: KvShape = KvShape { layers: 1, heads: 2, head_dim: 64 };
    const N: usize = 300;

    fn noise(n: usize, seed: usize) -> Vec<f32> {
        (0..n).map(|i| (((i + seed) * 7919 + i * i) % 2003) as f32 / 1001.0 - 1.0).collect()
    }

    /// Some rotation that depends on the position.
    fn turn(position: usize, x: &mut [f32]) {
        for (t, key) in x.chunks_exact_mut(SHAPE.head_dim).enumerate() {
            let (sin, cos) = ((position + t) as f32 * 0.1).sin_cos();
            (key[0], key[1]) = (key[0] * cos - key[1] * sin, key[0] * sin + key[1] * cos);
        }
    }

    /// What a query at the end of `n` positions sees of a head: `[n][head_dim]`.
    fn seen(x: &[f32], head: usize, n: usize, held: &Held, keys: bool) -> Vec<f32> {
        let (d, row) = (SHAPE.head_dim, SHAPE.heads * SHAPE.head_dim);
        let exact: Vec<f32> = x.chunks_exact(row).flat_map(|t| t[head * d..][..d].to_vec()).collect();
        let round = |x: &[f32]| -> Vec<f32> { x.iter().map(|x| f16::from_f32(*x).to_f32()).collect() };
        let sink = held.sink.min(n);
        let until = held.settled(n);
        let source = if held.at_once() { exact.clone() } else { round(&exact) };
        let source: Vec<f32> = source[sink * d..].iter().map(|x| x / held.scale).collect();
        let shared = match held.vectors.calibration() {
            0 => Vec::new(),
            c => held.vectors.shared(&source[..c * d], d),
        };
        let count = until - sink;
        let mut bytes = vec![0; count / held.vectors.tokens() * held.vectors.bytes(d)];
        held.vectors.encode(&source[..count * d], d, &shared, &mut bytes);
        let mut back = vec![0.0; count * d];
        held.vectors.decode(&bytes, d, &shared, &mut back);
        back.iter_mut().for_each(|x| *x *= held.scale);
        let mut all = [round(&exact[..sink * d]), back, round(&exact[until * d..n * d])].concat();
        if keys && held.before_rope {
            turn(0, &mut all);
        }
        all
    }

    #[test]
    fn a_query_sees_what_a_runtime_would_have_stored_and_parts_change_nothing() {
        let (d, heads) = (SHAPE.head_dim, 4);
        for text in [
            "q8_0",
            "q4_0/q8_0+sink5+window40",
            "kivi4+window50",
            "kivi2+window0+sink3",
            "kvquant4/q3h+window9",
            "kvquant4",
            "q4h+window1000",
            "fp8+sink2",
        ] {
            for window in [None, Some(50)] {
                // Only types that have scales heed them.
                let policy = text.parse::<KvPolicy>().unwrap().scaled(vec![[0.03, 1e-4]]);
                let held = policy.layer(0);
                assert_eq!(held.map(|h| h.scale), if policy.has_scales() { [0.03, 1e-4] } else { [1.0; 2] });
                let a = Attention { heads, kv_heads: 2, head_dim: d, scale: 0.3, softcap: None, window, sinks: None };
                let (q, k, v) = (noise(N * heads * d, 1), noise(N * 2 * d, 2), noise(N * 2 * d, 3));
                let mut cache = KvCache::new(&policy, SHAPE, 1, N).unwrap();
                let mut whole = vec![f32::NAN; q.len()];
                cache.attend(&a, 0, &q, &k, &v, &turn, &mut whole).unwrap();
                for (t, head) in [(0, 0), (3, 1), (49, 2), (128, 0), (170, 3), (N - 1, 1)] {
                    let [keys, values] = [(&k, 0), (&v, 1)].map(|(x, i)| seen(x, head / 2, t + 1, &held[i], i == 0));
                    let from = window.map_or(0, |w| (t + 1).saturating_sub(w));
                    let query = &q[(t * heads + head) * d..][..d];
                    let dot = |s: usize| (0..d).map(|i| f64::from(query[i]) * f64::from(keys[s * d + i])).sum::<f64>();
                    let weights: Vec<f64> = (from..=t).map(|s| (dot(s) * f64::from(a.scale)).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..d {
                        let exact: f64 =
                            weights.iter().zip(from..).map(|(w, s)| w / total * f64::from(values[s * d + i])).sum();
                        let got = f64::from(whole[(t * heads + head) * d + i]);
                        assert!((got - exact).abs() < 5e-6, "{text} {window:?}: {got} {exact} at {t}");
                    }
                }
                let mut cache = KvCache::new(&policy, SHAPE, 1, N).unwrap();
                let run = |cache: &mut KvCache, from: usize, n: usize| {
                    let part = |x: &[f32], heads: usize| x[from * heads * d..(from + n) * heads * d].to_vec();
                    let mut out = vec![f32::NAN; n * heads * d];
                    cache.attend(&a, 0, &part(&q, 4), &part(&k, 2), &part(&v, 2), &turn, &mut out).unwrap();
                    assert!(out == part(&whole, 4), "{text} {window:?} from {from}");
                    cache.advance(n);
                    let bytes: usize = held.iter().map(|h| 2 * h.bytes(from + n, d)).sum();
                    assert_eq!(cache.bytes(), bytes, "{text} at {}", from + n);
                };
                let mut from = 0;
                for n in [1, 1, 2, 28, 97, 30, 1, 1, 139] {
                    run(&mut cache, from, n);
                    from += n;
                }
                assert_eq!(from, N);
                // From the start again, and from where nothing was encoded that would not be.
                cache.truncate(0);
                run(&mut cache, 0, 200);
                if held.iter().all(Held::at_once) {
                    cache.truncate(77);
                    run(&mut cache, 77, 100);
                }
            }
        }
    }

    /// What was encoded stays so, and groups that were cut wait again.
    #[test]
    fn a_cache_can_be_shortened_anywhere() {
        let (d, a) = (
            SHAPE.head_dim,
            Attention { heads: 2, kv_heads: 2, head_dim: 64, scale: 0.3, softcap: None, window: None, sinks: None },
        );
        let x = noise(N * 2 * d, 4);
        for text in ["kivi4+window7+sink2", "kvquant3+window0", "q4h+window30"] {
            let policy: KvPolicy = text.parse().unwrap();
            for len in [0, 1, 2, 3, 40, 129, 199, 200] {
                let mut cache = KvCache::new(&policy, SHAPE, 1, N).unwrap();
                let mut run = |from: usize, n: usize, cut: Option<usize>| {
                    let part = &x[from * 2 * d..(from + n) * 2 * d];
                    let mut out = vec![f32::NAN; part.len()];
                    cache.attend(&a, 0, part, part, part, &turn, &mut out).unwrap();
                    cache.advance(n);
                    cache.truncate(cut.unwrap_or(N));
                    out
                };
                run(0, 200, Some(len));
                let again = run(len, N - len, None);
                let mut whole = vec![0.0; x.len()];
                let mut fresh = KvCache::new(&policy, SHAPE, 1, N).unwrap();
                fresh.attend(&a, 0, &x, &x, &x, &turn, &mut whole).unwrap();
                let square = |x: &[f32]| x.iter().map(|x| x * x).sum::<f32>();
                let gap: Vec<f32> = again.iter().zip(&whole[len * 2 * d..]).map(|(a, b)| a - b).collect();
                assert!(
                    square(&gap) < 0.02 * square(&again),
                    "{text} at {len}: {} of {}",
                    square(&gap),
                    square(&again)
                );
            }
        }
    }
}

//! What single changes to a model do to its answers: all variants run side by side, a layer at a time, each from the layer where
//! it departs from the model.

use std::collections::HashMap;

use super::overlay::{Overlay, Patch};
use crate::container::Checkpoint;
use crate::device::cpu::TokenScore;
use crate::engine::ops::{Lent, OnCpu, Ops};
use crate::engine::{Engine, KvCache, NoTap, Sequence};
use crate::error::{At, Result};
use crate::eval::protocol::Window;
use crate::eval::score::{Side, compare};
use crate::eval::{BATCH, longest};

/// Tensors, by index, that change together: of one layer, or of none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    pub name: String,
    /// Of all its tensors.
    pub layer: Option<u32>,
    pub tensors: Vec<usize>,
}

/// Hidden states that are held at a time, in bytes; more variants take another pass over the model.
const STATES: usize = 1 << 29;
/// Variants whose logits are computed side by side.
const SIDES: usize = 8;

/// A variant on its way: where it is, and its own final norm and head if it has any.
struct Running {
    /// `[tokens][hidden]`
    x: Lent,
    /// Of the embedding, the final norm and the head, which are needed at the end.
    late: HashMap<usize, Patch>,
}

/// The mean KL divergence of each variant's answers from the model's on `windows`, nats a token; `make` gives a variant's tensors, one variant at a time. `progress` is called with the number
/// of variants that departed. Runs in the caller's rayon pool.
pub fn damages(
    base: &dyn Checkpoint,
    windows: &[Window],
    variants: &[Variant],
    make: &dyn Fn(usize) -> Result<HashMap<usize, Patch>>,
    progress: &dyn Fn(u64),
) -> Result<Vec<f64>> {
    let engine = Engine::new(base, longest(windows))?;
    let run = Run { base, engine: &engine, windows, make };
    // Those that depart late have least to run: together.
    let mut order: Vec<usize> = (0..variants.len()).collect();
    order.sort_by_key(|v| run.departs(&variants[*v]));
    let tokens: usize = windows.iter().map(|w| w.tokens.len()).sum();
    let each = (tokens * engine.hidden() * 4).max(1);
    let mut out = vec![0.0; variants.len()];
    for some in order.chunks((STATES / each).max(1)) {
        let found = run.pass(variants, some, progress)?;
        some.iter().zip(found).for_each(|(v, kld)| out[*v] = kld);
    }
    Ok(out)
}

struct Run<'a> {
    base: &'a dyn Checkpoint,
    engine: &'a Engine<'a>,
    windows: &'a [Window],
    make: &'a dyn Fn(usize) -> Result<HashMap<usize, Patch>>,
}

/// Where a variant's hidden states first differ from the model's.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Embedding,
    Layer(usize),
    End,
}

impl Run<'_> {
    fn departs(&self, variant: &Variant) -> Stage {
        let stage = |t: &usize| {
            let tensor = &self.base.tensors()[*t];
            match tensor.id.layer {
                Some(layer) => Stage::Layer(layer as usize),
                None if tensor.name.starts_with("token_embd") => Stage::Embedding,
                None => Stage::End,
            }
        };
        variant.tensors.iter().map(stage).min().unwrap_or(Stage::End)
    }

    /// Runs some variants, given in the order in which they depart.
    fn pass(&self, variants: &[Variant], some: &[usize], progress: &dyn Fn(u64)) -> Result<Vec<f64>> {
        let (on, mut caches) = (OnCpu::default(), self.caches(1)?);
        let mut x = self.engine.pass(&on, &mut NoTap).embed(&self.sequences(&mut caches))?;
        let mut running: Vec<Running> = Vec::new();
        let starts = |stage: Stage| some.iter().copied().filter(move |v| self.departs(&variants[*v]) == stage);
        for v in starts(Stage::Embedding) {
            running.push(self.start(v, &on, &x, None).at(|| variants[v].name.clone())?);
            progress(1);
        }
        for layer in 0..self.engine.layers() {
            self.layer(layer, &on, &mut running)?;
            for v in starts(Stage::Layer(layer)) {
                running.push(self.start(v, &on, &x, Some(layer)).at(|| variants[v].name.clone())?);
                progress(1);
            }
            self.engine.pass(&on, &mut NoTap).layer(layer, &mut self.sequences(&mut caches), &mut x)?;
        }
        for v in starts(Stage::End) {
            let late = (self.make)(v).at(|| variants[v].name.clone())?;
            running.push(Running { x: on.put(&x)?, late });
            progress(1);
        }
        self.compare(&on, &x, running)
    }

    /// A variant behind the step in which it departs.
    fn start(&self, variant: usize, on: &OnCpu, before: &[f32], layer: Option<usize>) -> Result<Running> {
        let mut caches = self.caches(1)?;
        let mut overlay = Overlay { base: self.base, patches: (self.make)(variant)? };
        let x = {
            let engine = Engine::new(&overlay, longest(self.windows))?;
            let mut none = NoTap;
            let mut pass = engine.pass(on, &mut none);
            match layer {
                None => pass.embed(&self.sequences(&mut caches))?,
                Some(layer) => {
                    let mut x = on.put(before)?;
                    pass.layer(layer, &mut self.sequences(&mut caches), &mut x)?;
                    x
                }
            }
        };
        overlay.patches.retain(|t, _| self.base.tensors()[*t].id.layer.is_none());
        Ok(Running { x, late: overlay.patches })
    }

    /// The model's own layer, for variants that departed before it.
    fn layer(&self, layer: usize, on: &OnCpu, running: &mut [Running]) -> Result<()> {
        let tokens: usize = self.windows.iter().map(|w| w.tokens.len()).sum();
        let together = (BATCH / tokens.max(1)).max(1).min(running.len().max(1));
        let mut caches = self.caches(together)?;
        let mut none = NoTap;
        let mut pass = self.engine.pass(on, &mut none);
        for some in running.chunks_mut(together) {
            let mut x = on.put(&some.iter().flat_map(|r| r.x.iter().copied()).collect::<Vec<f32>>())?;
            let mut sequences = self.sequences(&mut caches);
            sequences.truncate(some.len() * self.windows.len());
            pass.layer(layer, &mut sequences, &mut x)?;
            let each = x.len() / some.len().max(1);
            some.iter_mut().zip(x.chunks_exact(each.max(1))).for_each(|(r, x)| r.x.copy_from_slice(x));
        }
        Ok(())
    }

    /// Divergences, in the order given.
    fn compare(&self, on: &OnCpu, base: &Lent, mut running: Vec<Running>) -> Result<Vec<f64>> {
        let late: Vec<HashMap<usize, Patch>> = running.iter_mut().map(|r| std::mem::take(&mut r.late)).collect();
        let overlays: Vec<Overlay<'_>> = late.into_iter().map(|patches| Overlay { base: self.base, patches }).collect();
        let targets = crate::eval::targets(self.windows);
        let head = self.engine.head()?;
        let expected = self.scored(self.engine, on, base)?;
        let reference = Side { name: "the reference", head: &head, hidden: &expected };
        let mut out = Vec::with_capacity(running.len());
        for (some, overlays) in running.chunks(SIDES).zip(overlays.chunks(SIDES)) {
            let engines = overlays.iter().map(|o| Engine::new(o, longest(self.windows))).collect::<Result<Vec<_>>>()?;
            let heads = engines.iter().map(Engine::head).collect::<Result<Vec<_>>>()?;
            let hidden: Vec<Vec<f32>> =
                some.iter().zip(&engines).map(|(r, e)| self.scored(e, on, &r.x)).collect::<Result<_>>()?;
            let sides: Vec<Side<'_>> =
                heads.iter().zip(&hidden).map(|(head, hidden)| Side { name: "a variant", head, hidden }).collect();
            let mean = |scores: Vec<TokenScore>| scores.iter().map(|s| s.kld).sum::<f64>() / scores.len().max(1) as f64;
            out.extend(compare(&reference, &sides, &targets)?.into_iter().map(mean));
        }
        Ok(out)
    }

    /// Final hidden states of the scored positions.
    fn scored(&self, engine: &Engine<'_>, on: &OnCpu, x: &Lent) -> Result<Vec<f32>> {
        let mut caches = self.caches(1)?;
        let all = engine.pass(on, &mut NoTap).finish(&self.sequences(&mut caches), x)?;
        Ok(crate::eval::scored(self.windows, &all, engine.hidden()))
    }

    fn caches(&self, times: usize) -> Result<Vec<KvCache>> {
        (0..times).flat_map(|_| self.windows).map(|w| self.engine.transient(w.tokens.len())).collect()
    }

    fn sequences<'c>(&'c self, caches: &'c mut [KvCache]) -> Vec<Sequence<'c>> {
        let windows = self.windows.iter().cycle();
        windows.zip(caches).map(|(w, cache)| Sequence { tokens: &w.tokens, cache }).collect()
    }
}

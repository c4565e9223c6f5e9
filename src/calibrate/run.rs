//! One pass over all text, a layer at a time: only one layer's sums are ever in memory.

use std::collections::HashSet;
use std::ops::{Range, RangeInclusive};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use super::collect::Collector;
use super::data::Sequence;
use super::journal::{Done, Journal};
use super::layout::{self, Shape, Split};
use super::states::States;
use super::stats::{About, Statistics, is_expert};
use super::write::Writer;
use super::writing::Writing;
use crate::arch::Role;
use crate::container::Checkpoint;
use crate::device::Worker;
use crate::engine::ops::{OnCard, OnCpu, Ops};
use crate::engine::{Engine, KvCache, NoTap, Pass, Sequence as Running, Tap};
use crate::error::Result;

pub struct Job<'a> {
    pub engine: &'a Engine<'a>,
    /// All of one split, then all of the other; none longer than the engine's positions.
    pub sequences: &'a [Sequence],
    /// Its hash is computed.
    pub about: About,
    /// See [`super::budget`]. Gram matrices depend on it, in their last bits.
    pub batch: super::budget::Batch,
    pub output: &'a Path,
}

/// Where a run stands.
pub enum Event {
    /// These layers are done since before.
    Resumed { layers: usize },
    /// So many tokens went through one layer.
    Tokens(u64),
}

/// What a batch goes through: a pass, its sequences, and which batch of all it is.
type Step<'s, O> = &'s mut dyn FnMut(&mut Pass<'_, '_, O>, &mut [Running<'_>], usize) -> Result<()>;

/// Hidden states that a device holds are written down when so many times as long went by as that takes, at so many bytes a second.
const SHARE: f64 = 20.0;
const WRITTEN: f64 = 1e9;

/// Sequences that run together.
struct Batch {
    sequences: Range<usize>,
    /// Among all.
    tokens: Range<usize>,
    split: Split,
}

/// Weights that read a site, with the number of matrices stacked in each, and the sites, layer after layer.
pub fn sites(checkpoint: &dyn Checkpoint, engine: &Engine<'_>) -> (Vec<(String, usize)>, Vec<Shape>) {
    let (mut weights, mut sites) = (Vec::new(), Vec::new());
    let mut known = HashSet::new();
    let mut add = |key: String, columns: usize, expert: bool| {
        if known.insert(key.clone()) {
            sites.push(Shape { key, columns, expert, cache: false });
        }
    };
    for t in checkpoint.tensors() {
        let Some(site) = t.id.role.site().filter(|_| t.name.ends_with(".weight") && t.shape.len() > 1) else {
            continue;
        };
        if t.id.layer.is_some_and(|l| l as usize >= engine.layers()) {
            continue;
        }
        weights.push((t.name.clone(), t.planes()));
        match is_expert(&site) {
            true => {
                (0..t.planes() as u32).for_each(|e| add(layout::key(t.id.layer, &site, Some(e)), t.dims().cols, true))
            }
            false => add(layout::key(t.id.layer, &site, None), t.dims().cols, false),
        }
    }
    // The embedding may be the output too.
    add(layout::key(None, &Role::Output, None), engine.hidden(), false);
    let cache = engine.kv_shape();
    for key in (0..engine.layers() as u32).flat_map(layout::cache_keys) {
        sites.push(Shape { key, columns: cache.heads * cache.head_dim, expert: false, cache: true });
    }
    let layer =
        |s: &Shape| s.key.strip_prefix("blk.").and_then(|r| r.split('.').next()?.parse().ok()).unwrap_or(u32::MAX);
    sites.sort_by_key(layer);
    (weights, sites)
}

impl Job<'_> {
    /// Runs in the caller's rayon pool. A run that was killed goes on where it stopped, if the job is the same.
    ///
    /// Errors: an activation that is not finite, with its site; what memory or disk cannot hold.
    pub fn run(&self, event: &dyn Fn(Event)) -> Result<Statistics> {
        match self.engine.worker() {
            Worker::Cpu => self.run_on(&OnCpu::default(), event),
            Worker::Card(runner) => self.run_on(&OnCard::new(runner)?, event),
        }
    }

    fn run_on<O: Ops>(&self, on: &O, event: &dyn Fn(Event)) -> Result<Statistics> {
        let writer = Writer::open(self.output, self.about.clone())?;
        let job = format!("{} {}", self.batch.tokens, layout::description(&self.about)?);
        let tokens: usize = self.sequences.iter().map(|s| s.tokens.len()).sum();
        let (mut journal, done) = Journal::open(self.output, &job, tokens, self.engine.hidden())?;
        let batches = self.batches();
        let first = match self.intact(&writer, &mut journal, &done)? {
            true => done.last().map_or(0, |last| last.layer + 1),
            false => {
                journal.start(&job)?;
                writer.clear(self.output)?;
                0
            }
        };
        let mut held = self.begin(on, &batches, first, journal.states())?;
        let pause = Duration::from_secs_f64(SHARE * (tokens * self.engine.hidden() * 4) as f64 / WRITTEN);
        let (mut written, mut at) = (first, Instant::now());
        if first > 0 {
            event(Event::Resumed { layers: first });
            event(Event::Tokens((tokens * first) as u64));
        }
        thread::scope(|scope| {
            let mut writing = Writing::start(scope, &writer, &self.about)?;
            for layer in first..self.engine.layers() {
                let (before, after) = journal.around();
                self.step(on, &batches, &mut writing, event, &mut |pass, running, batch| {
                    if let Some(Some(x)) = held.get_mut(batch) {
                        return pass.layer(layer, running, x);
                    }
                    let tokens = batches[batch].tokens.clone();
                    let mut x = on.put(before.read(tokens.clone()))?;
                    pass.layer(layer, running, &mut x)?;
                    on.get_into(&x, after.of(tokens))
                })?;
                // What is not written down is gathered again.
                if self.batch.resident {
                    if at.elapsed() < pause || layer + 1 == self.engine.layers() {
                        continue;
                    }
                    let mut held = held.iter().flatten().zip(&batches);
                    held.try_for_each(|(x, b)| on.get_into(x, after.of(b.tokens.clone())))?;
                    at = Instant::now();
                }
                writing.settle()?;
                let (states, parts) = (after.hash(), self.digest(&writer, written..=layer)?);
                journal.add(&Done { layer, states, parts })?;
                written = layer + 1;
            }
            let (last, _) = journal.around();
            self.step(on, &batches, &mut writing, event, &mut |pass, running, batch| {
                let x = match held.get_mut(batch).and_then(Option::take) {
                    Some(x) => x,
                    None => on.put(last.read(batches[batch].tokens.clone()))?,
                };
                pass.finish(running, &x).map(drop)
            })?;
            writing.settle()
        })?;
        writer.finish()?;
        drop(journal);
        Statistics::open(self.output)
    }

    /// Whether everything that a killed run finished is still as it left it.
    fn intact(&self, writer: &Writer, journal: &mut Journal, done: &[Done]) -> Result<bool> {
        let Some(last) = done.last() else { return Ok(false) };
        if last.layer >= self.engine.layers() || done.windows(2).any(|d| d[0].layer >= d[1].layer) {
            return Ok(false);
        }
        if journal.states().hash() != last.states {
            return Ok(false);
        }
        let mut from = 0;
        // A file that is too short has lost them too.
        Ok(done.iter().all(|d| {
            let layers = std::mem::replace(&mut from, d.layer + 1)..=d.layer;
            self.digest(writer, layers).is_ok_and(|hash| hash == d.parts)
        }))
    }

    /// Of what was written for some layers.
    fn digest(&self, writer: &Writer, layers: RangeInclusive<usize>) -> Result<String> {
        let of = |key: &str| key.strip_prefix("blk.")?.split('.').next()?.parse().ok();
        writer.digest("", |s| of(&self.about.sites[s.site].key).is_some_and(|layer| layers.contains(&layer)))
    }

    /// Hidden states in front of a layer: those of each batch where they stay on the device, else none, and they are in `states`.
    fn begin<O: Ops>(
        &self,
        on: &O,
        batches: &[Batch],
        layer: usize,
        states: &mut States,
    ) -> Result<Vec<Option<O::Rows>>> {
        let mut held = Vec::new();
        for batch in batches {
            match (layer, self.batch.resident) {
                (0, true) => held.push(Some(self.embed(on, batch)?)),
                (0, false) => on.get_into(&self.embed(on, batch)?, states.of(batch.tokens.clone()))?,
                (_, true) => held.push(Some(on.put(states.read(batch.tokens.clone()))?)),
                (_, false) => {}
            }
        }
        Ok(held)
    }

    fn embed<O: Ops>(&self, on: &O, batch: &Batch) -> Result<O::Rows> {
        let (mut none, mut caches) = (NoTap, self.caches(batch)?);
        self.engine.pass(on, &mut none).embed(&self.running(batch, &mut caches))
    }

    /// Sends all batches through `run` and writes what is heard meanwhile, one split after the other.
    fn step<O: Ops>(
        &self,
        on: &O,
        batches: &[Batch],
        writing: &mut Writing<'_>,
        event: &dyn Fn(Event),
        run: Step<'_, O>,
    ) -> Result<()> {
        for split in Split::ALL {
            let mut collector = Collector::new(on, &self.about.sites, self.about.gram);
            let of_split = batches.iter().enumerate().filter(|(_, b)| b.split == split);
            let outcome = self.pass(on, of_split, &mut collector, event, run);
            // Of what is not finite it knows the site, the pass only the layer.
            collector.finish(&mut |site, sums| match outcome {
                Ok(()) => writing.put(site, split, sums),
                Err(_) => Ok(()),
            })?;
            outcome?;
        }
        Ok(())
    }

    fn pass<'b, O: Ops>(
        &self,
        on: &O,
        batches: impl Iterator<Item = (usize, &'b Batch)>,
        tap: &mut dyn Tap<O>,
        event: &dyn Fn(Event),
        run: Step<'_, O>,
    ) -> Result<()> {
        let mut pass = self.engine.pass(on, tap);
        for (number, batch) in batches {
            let mut caches = self.caches(batch)?;
            run(&mut pass, &mut self.running(batch, &mut caches), number)?;
            event(Event::Tokens(batch.tokens.len() as u64));
        }
        Ok(())
    }

    fn caches(&self, batch: &Batch) -> Result<Vec<KvCache>> {
        let sequences = &self.sequences[batch.sequences.clone()];
        sequences.iter().map(|s| self.engine.transient(s.tokens.len())).collect()
    }

    fn running<'c>(&'c self, batch: &Batch, caches: &'c mut [KvCache]) -> Vec<Running<'c>> {
        let sequences = &self.sequences[batch.sequences.clone()];
        sequences.iter().zip(caches).map(|(s, cache)| Running { tokens: &s.tokens, cache }).collect()
    }

    fn batches(&self) -> Vec<Batch> {
        let (mut out, mut tokens): (Vec<Batch>, usize) = (Vec::new(), 0);
        for (i, s) in self.sequences.iter().enumerate() {
            let end = tokens + s.tokens.len();
            match out.last_mut().filter(|b| b.split == s.split && end - b.tokens.start <= self.batch.tokens) {
                Some(batch) => (batch.sequences.end, batch.tokens.end) = (i + 1, end),
                None => out.push(Batch { sequences: i..i + 1, tokens: tokens..end, split: s.split }),
            }
            tokens = end;
        }
        out
    }
}

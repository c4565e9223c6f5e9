//! One layer: attention and feed-forward, each behind a norm and added to what passes by.

use std::ops::Range;

use rayon::prelude::*;

use super::experts::Experts;
use super::pass::Pass;
use super::tap::Site;
use super::{Engine, Sequence};
use crate::arch::{Activation, Role};
use crate::device::cpu::{self, Attention};
use crate::error::Result;

/// Rows of a matrix, with their bias.
pub struct Linear {
    pub tensor: usize,
    pub plane: usize,
    pub rows: Range<usize>,
    pub bias: Option<Vec<f32>>,
}

pub enum Feed {
    Gated { gate: Linear, up: Linear, down: Linear },
    Experts(Experts),
}

/// What of the full layer is `None` the family does not have.
pub struct Layer {
    pub number: u32,
    pub attn_norm: Option<Vec<f32>>,
    pub q: Linear,
    pub k: Linear,
    pub v: Linear,
    pub o: Linear,
    /// Of one head or of all together; their length tells.
    pub q_norm: Option<Vec<f32>>,
    pub k_norm: Option<Vec<f32>>,
    pub post_attention: Option<Vec<f32>>,
    pub ffn_norm: Option<Vec<f32>>,
    pub feed: Feed,
    pub post_ffn: Option<Vec<f32>>,
    pub attention: Attention,
    pub sliding: bool,
    /// Positions are told by rotary embedding.
    pub rope: bool,
}

impl Layer {
    /// `x += attention(norm(x)); x += feed(norm(x))`, `[tokens][hidden]`, for the tokens of all sequences.
    pub fn run(&self, pass: &mut Pass<'_, '_>, sequences: &mut [Sequence<'_>], x: &mut [f32]) -> Result<()> {
        let mut normed = pass.take(x.len());
        self.normed(pass.engine, &self.attn_norm, x, &mut normed);
        let attended = self.attend(pass, sequences, &normed)?;
        let mut out = normed;
        pass.tap.input(self.site(Role::AttnOutput), &attended, None);
        self.o.run(pass.engine, &attended, &mut out)?;
        pass.give(attended);
        self.join(pass.engine, &self.post_attention, &mut out, x);

        self.normed(pass.engine, &self.ffn_norm, x, &mut out);
        let mut fed = self.feed.run(pass, self.number, &out)?;
        self.join(pass.engine, &self.post_ffn, &mut fed, x);
        pass.give(out);
        pass.give(fed);
        Ok(())
    }

    fn site(&self, reader: Role) -> Site {
        Site { layer: Some(self.number), reader, expert: None }
    }

    /// A copy of `x` for layers without this norm.
    fn normed(&self, engine: &Engine<'_>, gain: &Option<Vec<f32>>, x: &[f32], out: &mut [f32]) {
        match gain {
            Some(gain) => engine.norm_rows(x, gain, out),
            None => out.copy_from_slice(x),
        }
    }

    /// `x += norm(out)`
    fn join(&self, engine: &Engine<'_>, gain: &Option<Vec<f32>>, out: &mut [f32], x: &mut [f32]) {
        let n = engine.hidden();
        let eps = engine.spec.rms_eps;
        x.par_chunks_exact_mut(n).zip(out.par_chunks_exact_mut(n)).for_each(|(x, out)| match gain {
            Some(gain) => {
                let mut normed = vec![0.0; n];
                cpu::rms_norm(out, gain, eps, &mut normed);
                cpu::add(x, &normed);
            }
            None => cpu::add(x, out),
        });
    }

    fn attend(&self, pass: &mut Pass<'_, '_>, sequences: &mut [Sequence<'_>], x: &[f32]) -> Result<Vec<f32>> {
        let (a, tokens) = (&self.attention, x.len() / pass.engine.hidden());
        let (wide, narrow) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        pass.tap.input(self.site(Role::AttnQ), x, None);
        let mut q = self.q.product(pass, x)?;
        let mut k = self.k.product(pass, x)?;
        let v = self.v.product(pass, x)?;
        self.norm_heads(pass.engine, &self.q_norm, &mut q);
        self.norm_heads(pass.engine, &self.k_norm, &mut k);
        let angles = pass.engine.window_angles.as_ref().filter(|_| self.sliding).unwrap_or(&pass.engine.angles);
        let mut out = pass.take(tokens * wide);
        let mut from = 0;
        for s in sequences {
            let n = s.tokens.len();
            let (q, k) = (&mut q[from * wide..][..n * wide], &mut k[from * narrow..][..n * narrow]);
            let (number, pairing) = (self.number as usize, pass.engine.pairing);
            if self.rope {
                angles.turn(pairing, a.head_dim, wide, s.cache.len(), q);
                if !s.cache.before_rope(number) {
                    angles.turn(pairing, a.head_dim, narrow, s.cache.len(), k);
                }
            }
            let turn = |position: usize, x: &mut [f32]| {
                if self.rope {
                    angles.turn(pairing, a.head_dim, a.head_dim, position, x);
                }
            };
            let v = &v[from * narrow..][..n * narrow];
            s.cache.attend(a, number, q, k, v, &turn, &mut out[from * wide..][..n * wide])?;
            from += n;
        }
        pass.tap.cached(self.number, &k, &v);
        [q, k, v].into_iter().for_each(|used| pass.give(used));
        Ok(out)
    }

    fn norm_heads(&self, engine: &Engine<'_>, gain: &Option<Vec<f32>>, x: &mut [f32]) {
        let Some(gain) = gain else { return };
        let eps = engine.spec.rms_eps;
        x.par_chunks_exact_mut(gain.len()).for_each(|head| {
            let before = head.to_vec();
            cpu::rms_norm(&before, gain, eps, head);
        });
    }
}

impl Linear {
    /// `x W^T + bias` into `out`, `[tokens][rows]`.
    pub fn run(&self, engine: &Engine<'_>, x: &[f32], out: &mut [f32]) -> Result<()> {
        let weight = engine.checkpoint.read(self.tensor, self.plane)?;
        engine.product(&weight, self.rows.clone(), self.bias.as_deref(), x, out);
        Ok(())
    }

    pub fn product(&self, pass: &mut Pass<'_, '_>, x: &[f32]) -> Result<Vec<f32>> {
        let cols = pass.engine.checkpoint.tensors()[self.tensor].dims().cols;
        let mut out = pass.take(x.len() / cols * self.rows.len());
        self.run(pass.engine, x, &mut out)?;
        Ok(out)
    }
}

impl Feed {
    pub fn run(&self, pass: &mut Pass<'_, '_>, layer: u32, x: &[f32]) -> Result<Vec<f32>> {
        match self {
            Feed::Gated { gate, up, down } => {
                let site = |reader| Site { layer: Some(layer), reader, expert: None };
                pass.tap.input(site(Role::FfnGate), x, None);
                let mut inner = gate.product(pass, x)?;
                let up = up.product(pass, x)?;
                activate(pass.engine.arch.runtime.activation, &mut inner, &up);
                pass.give(up);
                pass.tap.input(site(Role::FfnDown), &inner, None);
                let out = down.product(pass, &inner)?;
                pass.give(inner);
                Ok(out)
            }
            Feed::Experts(experts) => experts.run(pass, layer, x),
        }
    }
}

/// `gate = activation(gate) * up`
pub fn activate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    const STEP: usize = 1 << 13;
    gate.par_chunks_mut(STEP).zip(up.par_chunks(STEP)).for_each(|(gate, up)| cpu::gate(activation, gate, up));
}

//! One layer: attention and feed-forward, each behind a norm and added to what passes by.

use std::ops::Range;

use super::Sequence;
use super::experts::Experts;
use super::ops::{Heads, Ops};
use super::pass::Pass;
use super::tap::Site;
use crate::arch::Role;
use crate::device::cpu::Attention;
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
    pub fn run<O: Ops>(
        &self,
        pass: &mut Pass<'_, '_, O>,
        sequences: &mut [Sequence<'_>],
        x: &mut O::Rows,
    ) -> Result<()> {
        let normed = self.attn_norm.as_ref().map(|gain| pass.norm(x, gain)).transpose()?;
        let attended = self.attend(pass, sequences, normed.as_ref().unwrap_or(x))?;
        drop(normed);
        pass.hear(self.site(Role::AttnOutput), &attended, None)?;
        let out = self.o.product(pass, &attended)?;
        drop(attended);
        pass.join(x, self.post_attention.as_deref(), out)?;

        let normed = self.ffn_norm.as_ref().map(|gain| pass.norm(x, gain)).transpose()?;
        let out = self.feed.run(pass, self.number, normed.as_ref().unwrap_or(x))?;
        drop(normed);
        pass.join(x, self.post_ffn.as_deref(), out)
    }

    fn site(&self, reader: Role) -> Site {
        Site { layer: Some(self.number), reader, expert: None }
    }

    fn attend<O: Ops>(
        &self,
        pass: &mut Pass<'_, '_, O>,
        sequences: &mut [Sequence<'_>],
        x: &O::Rows,
    ) -> Result<O::Rows> {
        pass.hear(self.site(Role::AttnQ), x, None)?;
        let mut q = self.normed_heads(pass, &self.q, self.q_norm.as_deref(), x)?;
        let mut k = self.normed_heads(pass, &self.k, self.k_norm.as_deref(), x)?;
        let v = self.v.product(pass, x)?;
        let engine = pass.engine;
        let angles = engine.window_angles.as_ref().filter(|_| self.sliding).unwrap_or(&engine.angles);
        let heads = Heads {
            layer: self.number as usize,
            attention: &self.attention,
            angles: self.rope.then_some((angles, engine.pairing)),
        };
        let out = pass.on.attend(&heads, sequences, &mut q, &mut k, &v)?;
        pass.hear_cached(self.number, &k, &v)?;
        Ok(out)
    }

    /// Queries or keys.
    fn normed_heads<O: Ops>(
        &self,
        pass: &Pass<'_, '_, O>,
        of: &Linear,
        gain: Option<&[f32]>,
        x: &O::Rows,
    ) -> Result<O::Rows> {
        let heads = of.product(pass, x)?;
        match gain {
            Some(gain) => pass.norm(&heads, gain),
            None => Ok(heads),
        }
    }
}

impl Linear {
    /// `x W^T + bias`, `[tokens][rows]`.
    pub fn product<O: Ops>(&self, pass: &Pass<'_, '_, O>, x: &O::Rows) -> Result<O::Rows> {
        let weight = pass.engine.checkpoint.read(self.tensor, self.plane)?;
        pass.product(&weight, self.rows.clone(), self.bias.as_deref(), x)
    }
}

impl Feed {
    pub fn run<O: Ops>(&self, pass: &mut Pass<'_, '_, O>, layer: u32, x: &O::Rows) -> Result<O::Rows> {
        match self {
            Feed::Gated { gate, up, down } => {
                let site = |reader| Site { layer: Some(layer), reader, expert: None };
                pass.hear(site(Role::FfnGate), x, None)?;
                let mut inner = gate.product(pass, x)?;
                pass.on.gate(pass.engine.arch.runtime.activation, &mut inner, &up.product(pass, x)?)?;
                pass.hear(site(Role::FfnDown), &inner, None)?;
                down.product(pass, &inner)
            }
            Feed::Experts(experts) => experts.run(pass, layer, x),
        }
    }
}

//! Where calibration listens.

use super::ops::Ops;
use crate::arch::Role;
use crate::error::Result;

/// Which weights read an activation: one site for all that share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    pub layer: Option<u32>,
    /// The first of its readers: `AttnQ` stands for q, k and v, `FfnGate` for gate and up.
    pub reader: Role,
    pub expert: Option<u32>,
}

pub trait Tap<O: Ops> {
    /// `x` is `[tokens][columns]`: what the readers of `site` are about to be multiplied with. For an expert, `weights` has
    /// the router's weight of each token.
    fn input(&mut self, on: &O, site: Site, x: &O::Rows, weights: Option<&[f32]>) -> Result<()>;

    /// What a layer keeps of its tokens, `[tokens][kv_heads * head_dim]` each: keys as queries meet them, after rotary embedding
    /// unless the cache does that itself.
    fn cached(&mut self, _on: &O, _layer: u32, _keys: &O::Rows, _values: &O::Rows) -> Result<()> {
        Ok(())
    }
}

/// Does not listen.
pub struct NoTap;

impl<O: Ops> Tap<O> for NoTap {
    fn input(&mut self, _: &O, _: Site, _: &O::Rows, _: Option<&[f32]>) -> Result<()> {
        Ok(())
    }
}

//! Where calibration listens.

use crate::arch::Role;

/// Which weights read an activation: one site for all that share it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Site {
    pub layer: Option<u32>,
    /// The first of its readers: `AttnQ` stands for q, k and v, `FfnGate` for gate and up.
    pub reader: Role,
    pub expert: Option<u32>,
}

pub trait Tap {
    /// `x` is `[tokens][columns]`: what the readers of `site` are about to be multiplied with. For an expert, `weights` has
    /// the router's weight of each token.
    fn input(&mut self, site: Site, x: &[f32], weights: Option<&[f32]>);

    /// What a layer keeps of its tokens, `[tokens][kv_heads * head_dim]` each: keys as queries meet them, after rotary embedding
    /// unless the cache does that itself.
    fn cached(&mut self, _layer: u32, _keys: &[f32], _values: &[f32]) {}
}

/// Does not listen.
pub struct NoTap;

impl Tap for NoTap {
    fn input(&mut self, _: Site, _: &[f32], _: Option<&[f32]>) {}
}

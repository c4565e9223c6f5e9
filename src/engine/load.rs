//! From a checkpoint's tensors to layers.

use std::collections::HashMap;
use std::ops::Range;

use super::layer::{Feed, Layer, Linear};
use super::rope::{Angles, Frequencies, Pairing};
use crate::arch::{Arch, Convention, ModelSpec, Rope, RopeTensors};
use crate::container::Checkpoint;
use crate::device::cpu::Attention;
use crate::engine::experts::{Experts, Shared, Stack};
use crate::error::{At, Error, Result};

pub struct Loader<'a> {
    pub checkpoint: &'a dyn Checkpoint,
    pub arch: &'static Arch,
    pub spec: &'a ModelSpec,
    pub index: HashMap<&'a str, usize>,
}

impl Loader<'_> {
    pub fn has(&self, name: &str) -> bool {
        self.index.contains_key(name)
    }

    fn find(&self, name: &str) -> Result<usize> {
        self.index.get(name).copied().ok_or_else(|| {
            Error::input(format!("there is no {name}"))
                .help("the file is incomplete, or of another family than it says")
        })
    }

    /// A matrix with `cols` columns.
    pub fn matrix(&self, name: &str, cols: usize) -> Result<usize> {
        let i = self.find(name)?;
        let t = &self.checkpoint.tensors()[i];
        if t.dims().cols != cols {
            return Err(Error::input(format!("it has {} columns instead of {cols}", t.dims().cols)).at(name));
        }
        Ok(i)
    }

    /// A vector of `len` elements, decoded.
    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        let i = self.find(name)?;
        let t = &self.checkpoint.tensors()[i];
        if t.len() != len {
            return Err(Error::input(format!("it has {} elements instead of {len}", t.len())).at(name));
        }
        let weight = self.checkpoint.read(i, 0)?;
        let mut out = vec![0.0; len];
        weight.codec.decode(&weight.packed, 0..weight.packed.dims.rows, &mut out);
        out.iter_mut().for_each(|x| *x *= weight.scale);
        Ok(out)
    }

    fn maybe_vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        self.has(name).then(|| self.vector(name, len)).transpose()
    }

    /// The gain of a norm, whichever way the container stores it.
    pub fn norm(&self, stem: &str, len: usize) -> Result<Vec<f32>> {
        let mut gain = self.vector(&format!("{stem}.weight"), len)?;
        if self.checkpoint.convention() == Convention::HuggingFace {
            gain.iter_mut().for_each(|g| *g += self.arch.norm_offset);
        }
        Ok(gain)
    }

    fn maybe_norm(&self, stem: &str, len: usize) -> Result<Option<Vec<f32>>> {
        self.has(&format!("{stem}.weight")).then(|| self.norm(stem, len)).transpose()
    }

    /// Of each head, or of all heads together.
    fn head_norm(&self, stem: &str, heads: usize) -> Result<Option<Vec<f32>>> {
        let name = format!("{stem}.weight");
        let Some(i) = self.index.get(name.as_str()) else { return Ok(None) };
        let (len, head) = (self.checkpoint.tensors()[*i].len(), self.spec.head_dim());
        if len != head && len != head * heads {
            return Err(Error::input(format!("it has {len} elements instead of {head}")).at(name));
        }
        self.norm(stem, len).map(Some)
    }

    /// Hugging Face always pairs halves.
    pub fn pairing(&self) -> Pairing {
        match (self.checkpoint.convention(), self.arch.rope) {
            (Convention::Gguf, Rope::Norm) => Pairing::Neighbours,
            _ => Pairing::Halves,
        }
    }

    pub fn angles(&self, positions: usize) -> Result<(Angles, Option<Angles>)> {
        let spec = self.spec;
        let name = match self.arch.rope_tensors {
            RopeTensors::Long if positions > spec.rope_original_context.unwrap_or(u32::MAX) as usize => {
                "rope_factors_long.weight"
            }
            RopeTensors::Long => "rope_factors_short.weight",
            _ => "rope_freqs.weight",
        };
        let divisors = match self.index.get(name) {
            Some(&i) => self.vector(name, self.checkpoint.tensors()[i].len())?,
            None => Vec::new(),
        };
        let base = f64::from(spec.rope_base.unwrap_or(10_000.0));
        let all = Angles::new(spec, &Frequencies { base, divisors: &divisors, scaled: true }, positions)?;
        let local = self.arch.window_rope_base(spec).map(|base| {
            let frequencies = Frequencies { base: f64::from(base), divisors: &[], scaled: false };
            Angles::new(spec, &frequencies, positions)
        });
        Ok((all, local.transpose()?))
    }

    pub fn layer(&self, layer: u32) -> Result<Layer> {
        let p = |stem: &str| format!("blk.{layer}.{stem}");
        let (spec, hidden) = (self.spec, self.spec.hidden as usize);
        let (d, heads, kv_heads) = (spec.head_dim(), spec.heads as usize, spec.kv_heads());
        let [q, k, v] = self.qkv(&p, heads * d, kv_heads * d, hidden)?;
        let post_attention = self.maybe_norm(&p("post_attention_norm"), hidden)?;
        let attn_norm = self.maybe_norm(&p("attn_norm"), hidden)?;
        let ffn_norm = self.maybe_norm(&p("ffn_norm"), hidden)?;
        let post_ffn = self.maybe_norm(&p("post_ffw_norm"), hidden)?;
        // Seed-OSS calls the norm before the feed-forward layer after what precedes it.
        let renamed = attn_norm.is_some() && ffn_norm.is_none() && post_ffn.is_none();
        let (post_attention, ffn_norm) = if renamed { (None, post_attention) } else { (post_attention, ffn_norm) };
        let sliding = spec.is_sliding(layer);
        let skips = self.arch.runtime.rope_skip_period;
        Ok(Layer {
            number: layer,
            attn_norm,
            q,
            k,
            v,
            o: self.linear(&p("attn_output"), 0..hidden, hidden, heads * d)?,
            q_norm: self.head_norm(&p("attn_q_norm"), heads)?,
            k_norm: self.head_norm(&p("attn_k_norm"), kv_heads)?,
            post_attention,
            ffn_norm,
            feed: self.feed(&p, hidden)?,
            post_ffn,
            attention: Attention {
                heads,
                kv_heads,
                head_dim: d,
                scale: (1.0 / (self.arch.runtime.query_scalar)(spec).sqrt()) as f32,
                softcap: spec.attn_softcap.filter(|c| *c > 0.0),
                window: spec.sliding_window.filter(|_| sliding).map(|w| w as usize),
                sinks: self.maybe_vector(&p("attn_sinks.weight"), heads)?,
            },
            sliding,
            rope: skips.is_none_or(|n| !(layer + 1).is_multiple_of(n)),
        })
    }

    /// `rows` of the matrix `stem`, which has `all` of them, and the same part of its bias.
    fn linear(&self, stem: &str, rows: Range<usize>, all: usize, cols: usize) -> Result<Linear> {
        let name = format!("{stem}.weight");
        let tensor = self.matrix(&name, cols)?;
        let dims = self.checkpoint.tensors()[tensor].dims();
        if dims.rows != all {
            return Err(Error::input(format!("it has {} rows instead of {all}", dims.rows)).at(name));
        }
        let bias = self.maybe_vector(&format!("{stem}.bias"), all)?;
        Ok(Linear { tensor, plane: 0, bias: bias.map(|b| b[rows.clone()].to_vec()), rows })
    }

    /// Three matrices, or parts of one.
    fn qkv(&self, p: &impl Fn(&str) -> String, q: usize, kv: usize, hidden: usize) -> Result<[Linear; 3]> {
        let fused = p("attn_qkv");
        if self.has(&format!("{fused}.weight")) {
            let part = |from: usize, n: usize| self.linear(&fused, from..from + n, q + 2 * kv, hidden);
            return Ok([part(0, q)?, part(q, kv)?, part(q + kv, kv)?]);
        }
        let one = |stem: &str, n: usize| self.linear(&p(stem), 0..n, n, hidden);
        Ok([one("attn_q", q)?, one("attn_k", kv)?, one("attn_v", kv)?])
    }

    fn feed(&self, p: &impl Fn(&str) -> String, hidden: usize) -> Result<Feed> {
        let spec = self.spec;
        if self.has(&p("ffn_gate_inp.weight")) {
            return self.experts(p, hidden).map(Feed::Experts);
        }
        let n = spec.ffn as usize;
        if self.has(&p("ffn_gate.weight")) {
            return self.gated(p, "", n, hidden);
        }
        // Gate above up.
        let part = |from: usize| self.linear(&p("ffn_up"), from..from + n, 2 * n, hidden);
        Ok(Feed::Gated { gate: part(0)?, up: part(n)?, down: self.linear(&p("ffn_down"), 0..hidden, hidden, n)? })
    }

    fn gated(&self, p: &impl Fn(&str) -> String, suffix: &str, n: usize, hidden: usize) -> Result<Feed> {
        let wide = |stem: &str| self.linear(&p(&format!("{stem}{suffix}")), 0..n, n, hidden);
        let down = self.linear(&p(&format!("ffn_down{suffix}")), 0..hidden, hidden, n)?;
        Ok(Feed::Gated { gate: wide("ffn_gate")?, up: wide("ffn_up")?, down })
    }

    fn experts(&self, p: &impl Fn(&str) -> String, hidden: usize) -> Result<Experts> {
        let (spec, n) = (self.spec, self.spec.experts() as usize);
        let used = spec.experts_used.unwrap_or(0) as usize;
        if used == 0 || used > n {
            return Err(Error::input(format!("{used} of {n} experts are used for a token")));
        }
        if spec.expert_gating.is_some_and(|g| g > 1) {
            return Err(Error::unsupported("experts chosen by a sigmoid cannot be run"));
        }
        let stack = |stem: &str, rows: usize, cols: usize| -> Result<Stack> {
            let name = p(stem) + ".weight";
            let tensor = self.matrix(&name, cols)?;
            let t = &self.checkpoint.tensors()[tensor];
            if t.planes() != n || t.dims().rows != rows {
                return Err(
                    Error::input(format!("its shape is {:?} instead of {:?}", t.shape, [n, rows, cols])).at(name)
                );
            }
            Ok(Stack { tensor, bias: self.maybe_vector(&(p(stem) + ".bias"), n * rows)? })
        };
        let width = spec.expert_ffn();
        let shared = self.has(&p("ffn_gate_shexp.weight")).then(|| -> Result<Shared> {
            let width = spec.shared_expert_ffn.unwrap_or(spec.ffn) as usize;
            Ok(Shared {
                feed: Box::new(self.gated(p, "_shexp", width, hidden)?),
                weigh: self.maybe_vector(&p("ffn_gate_inp_shexp.weight"), hidden)?,
            })
        });
        Ok(Experts {
            router: self.linear(&p("ffn_gate_inp"), 0..n, n, hidden)?,
            gate: stack("ffn_gate_exps", width, hidden)?,
            up: stack("ffn_up_exps", width, hidden)?,
            down: stack("ffn_down_exps", hidden, width)?,
            used,
            normalized: self.arch.runtime.normalized_experts,
            shared: shared.transpose().at(|| "the shared expert")?,
        })
    }
}

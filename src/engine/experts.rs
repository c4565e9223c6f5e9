//! A feed-forward layer of experts: a router chooses a few for every token.

use super::layer::{Feed, Linear, activate};
use super::pass::Pass;
use super::tap::Site;
use crate::arch::Role;
use crate::device::cpu;
use crate::error::Result;

pub struct Experts {
    pub router: Linear,
    pub gate: Stack,
    pub up: Stack,
    pub down: Stack,
    /// Experts that a token visits.
    pub used: usize,
    /// Their weights are made to add up to 1.
    pub normalized: bool,
    pub shared: Option<Shared>,
}

/// A stacked tensor, a plane an expert, and the experts' biases in turn.
pub struct Stack {
    pub tensor: usize,
    pub bias: Option<Vec<f32>>,
}

/// The expert that every token visits.
pub struct Shared {
    pub feed: Box<Feed>,
    /// A token's weight is the logistic function of its product with this vector.
    pub weigh: Option<Vec<f32>>,
}

/// A token's place in an expert's batch, and the router's weight.
type Visit = (usize, f32);

impl Experts {
    pub fn run(&self, pass: &mut Pass<'_, '_>, layer: u32, x: &[f32]) -> Result<Vec<f32>> {
        let hidden = pass.engine.hidden();
        pass.tap.input(Site { layer: Some(layer), reader: Role::FfnGateInp, expert: None }, x, None);
        let mut scores = self.router.product(pass, x)?;
        let experts = self.router.rows.len();
        let mut visits: Vec<Vec<Visit>> = vec![Vec::new(); experts];
        for (token, scores) in scores.chunks_exact_mut(experts).enumerate() {
            for (expert, weight) in self.choose(scores) {
                visits[expert].push((token, weight));
            }
        }
        pass.give(std::mem::take(&mut scores));
        let mut out = pass.take(x.len());
        out.fill(0.0);
        for (expert, visits) in visits.iter().enumerate().filter(|(_, v)| !v.is_empty()) {
            let result = self.expert(pass, layer, expert, visits, x)?;
            for ((token, weight), y) in visits.iter().zip(result.chunks_exact(hidden)) {
                for (o, y) in out[token * hidden..][..hidden].iter_mut().zip(y) {
                    *o += y * weight;
                }
            }
            pass.give(result);
        }
        if let Some(shared) = &self.shared {
            shared.add(pass, layer, x, &mut out)?;
        }
        Ok(out)
    }

    /// The experts of a token and their weights, from the router's scores; ties go to the lower number.
    fn choose(&self, scores: &mut [f32]) -> Vec<Visit> {
        let sum = cpu::softmax(scores);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order.truncate(self.used);
        let kept: f32 = order.iter().map(|e| scores[*e]).sum();
        let total = if self.normalized { kept } else { sum };
        order.into_iter().map(|e| (e, scores[e] / total)).collect()
    }

    fn expert(
        &self,
        pass: &mut Pass<'_, '_>,
        layer: u32,
        expert: usize,
        visits: &[Visit],
        x: &[f32],
    ) -> Result<Vec<f32>> {
        let hidden = pass.engine.hidden();
        let mut inputs = pass.take(visits.len() * hidden);
        for ((t, _), input) in visits.iter().zip(inputs.chunks_exact_mut(hidden)) {
            input.copy_from_slice(&x[t * hidden..][..hidden]);
        }
        let weights: Vec<f32> = visits.iter().map(|(_, w)| *w).collect();
        let site = |reader| Site { layer: Some(layer), reader, expert: Some(expert as u32) };
        let product = |stack: &Stack, x: &[f32], pass: &mut Pass<'_, '_>| -> Result<Vec<f32>> {
            let weight = pass.engine.checkpoint.read(stack.tensor, expert)?;
            let rows = weight.packed.dims.rows;
            let bias = stack.bias.as_ref().map(|all| &all[expert * rows..][..rows]);
            let mut out = pass.take(visits.len() * rows);
            pass.engine.product(&weight, 0..rows, bias, x, &mut out);
            Ok(out)
        };
        pass.tap.input(site(Role::FfnGateExps), &inputs, Some(&weights));
        let mut inner = product(&self.gate, &inputs, pass)?;
        let up = product(&self.up, &inputs, pass)?;
        activate(pass.engine.arch.runtime.activation, &mut inner, &up);
        pass.tap.input(site(Role::FfnDownExps), &inner, Some(&weights));
        let out = product(&self.down, &inner, pass)?;
        [inputs, inner, up].into_iter().for_each(|used| pass.give(used));
        Ok(out)
    }
}

impl Shared {
    fn add(&self, pass: &mut Pass<'_, '_>, layer: u32, x: &[f32], out: &mut [f32]) -> Result<()> {
        let hidden = pass.engine.hidden();
        let shared = self.feed.run(pass, layer, x)?;
        for ((out, y), x) in out.chunks_exact_mut(hidden).zip(shared.chunks_exact(hidden)).zip(x.chunks_exact(hidden)) {
            let weight = self.weigh.as_ref().map_or(1.0, |w| {
                let score: f32 = w.iter().zip(x).map(|(w, x)| w * x).sum();
                1.0 / (1.0 + (-score).exp())
            });
            out.iter_mut().zip(y).for_each(|(o, y)| *o += y * weight);
        }
        pass.give(shared);
        Ok(())
    }
}

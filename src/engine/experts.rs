//! A feed-forward layer of experts: a router chooses a few for every token.

use rayon::prelude::*;

use super::layer::{Feed, Linear};
use super::ops::Ops;
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

/// The tokens that come to an expert, and the router's weight of each.
#[derive(Clone, Default)]
struct Visits {
    tokens: Vec<u32>,
    weights: Vec<f32>,
}

impl Experts {
    pub fn run<O: Ops>(&self, pass: &mut Pass<'_, '_, O>, layer: u32, x: &O::Rows) -> Result<O::Rows> {
        let hidden = pass.engine.hidden();
        pass.hear(Site { layer: Some(layer), reader: Role::FfnGateInp, expert: None }, x, None)?;
        let visits = self.route(pass, x)?;
        let mut out = pass.on.zeros(pass.on.len(x))?;
        for (expert, Visits { tokens, weights }) in visits.iter().enumerate().filter(|(_, v)| !v.tokens.is_empty()) {
            let inputs = pass.on.pick(x, hidden, tokens)?;
            let result = self.expert(pass, layer, expert, weights, &inputs)?;
            pass.on.scatter(&mut out, hidden, tokens, weights, &result)?;
        }
        if let Some(shared) = &self.shared {
            shared.add(pass, layer, x, &mut out)?;
        }
        Ok(out)
    }

    /// Of each expert.
    fn route<O: Ops>(&self, pass: &Pass<'_, '_, O>, x: &O::Rows) -> Result<Vec<Visits>> {
        let scores = self.router.product(pass, x)?;
        let mut scores = pass.on.get(&scores)?.into_owned();
        let experts = self.router.rows.len();
        let chosen: Vec<_> = scores.par_chunks_exact_mut(experts).with_min_len(64).map(|s| self.choose(s)).collect();
        let mut visits = vec![Visits::default(); experts];
        for (token, chosen) in (0..).zip(chosen) {
            for (expert, weight) in chosen {
                visits[expert].tokens.push(token);
                visits[expert].weights.push(weight);
            }
        }
        Ok(visits)
    }

    /// The experts of a token and their weights, from the router's scores; ties go to the lower number.
    fn choose(&self, scores: &mut [f32]) -> Vec<(usize, f32)> {
        let sum = cpu::softmax(scores);
        let mut order: Vec<usize> = (0..scores.len()).collect();
        let better = |a: &usize, b: &usize| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b));
        if self.used < order.len() {
            order.select_nth_unstable_by(self.used, better);
            order.truncate(self.used);
        }
        order.sort_unstable_by(better);
        let kept: f32 = order.iter().map(|e| scores[*e]).sum();
        let total = if self.normalized { kept } else { sum };
        order.into_iter().map(|e| (e, scores[e] / total)).collect()
    }

    fn expert<O: Ops>(
        &self,
        pass: &mut Pass<'_, '_, O>,
        layer: u32,
        expert: usize,
        weights: &[f32],
        inputs: &O::Rows,
    ) -> Result<O::Rows> {
        let site = |reader| Site { layer: Some(layer), reader, expert: Some(expert as u32) };
        pass.hear(site(Role::FfnGateExps), inputs, Some(weights))?;
        let mut inner = self.gate.product(pass, expert, inputs)?;
        pass.on.gate(pass.engine.arch.runtime.activation, &mut inner, &self.up.product(pass, expert, inputs)?)?;
        pass.hear(site(Role::FfnDownExps), &inner, Some(weights))?;
        self.down.product(pass, expert, &inner)
    }
}

impl Stack {
    fn product<O: Ops>(&self, pass: &Pass<'_, '_, O>, expert: usize, x: &O::Rows) -> Result<O::Rows> {
        let weight = pass.engine.checkpoint.read(self.tensor, expert)?;
        let rows = weight.packed.dims.rows;
        let bias = self.bias.as_ref().map(|all| &all[expert * rows..][..rows]);
        pass.product(&weight, 0..rows, bias, x)
    }
}

impl Shared {
    fn add<O: Ops>(&self, pass: &mut Pass<'_, '_, O>, layer: u32, x: &O::Rows, out: &mut O::Rows) -> Result<()> {
        let hidden = pass.engine.hidden();
        let y = self.feed.run(pass, layer, x)?;
        let tokens: Vec<u32> = (0..(pass.on.len(x) / hidden) as u32).collect();
        let weights = match &self.weigh {
            Some(weigh) => pass.on.dots(x, weigh)?.into_iter().map(|score| 1.0 / (1.0 + (-score).exp())).collect(),
            None => vec![1.0; tokens.len()],
        };
        pass.on.scatter(out, hidden, &tokens, &weights, &y)
    }
}

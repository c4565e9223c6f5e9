//! From a measurement and a budget to a recipe.

use std::collections::{HashMap, HashSet};

use super::knapsack::{self, Budget};
use super::measure::Measurement;
use crate::arch::WeightId;
use crate::convert::Plan;
use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// What an artifact may cost.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Goal {
    /// Bits a weight at the most, over all tensors.
    Bits(f64),
    /// Bytes of all files at the most.
    Size(u64),
    /// Mean KL divergence at the most, as it is predicted.
    Divergence(f64),
}

/// A recipe that names the format of every weight that was open.
#[derive(Clone, Debug)]
pub struct Mixed {
    pub recipe: Recipe,
    /// The recipe's file.
    pub text: String,
    /// Sum of the divergences of its weights.
    pub predicted: f64,
}

/// `narrowest`: the plan of [`Recipe::narrowest`]. `base`: what the recipe is called.
///
/// Errors: a goal out of reach, with what is the least.
pub fn mix(
    measurement: &Measurement,
    narrowest: &Plan,
    recipe: &Recipe,
    (base, name): (&str, &str),
    goal: Goal,
) -> Result<Mixed> {
    let alike = |name: &str| match recipe.fused() {
        true => fused(name),
        false => name.to_owned(),
    };
    let (items, codecs) = measurement.items(&alike);
    let measured: HashSet<&str> = measurement.weights.iter().map(|w| w.name.as_str()).collect();
    let open: u64 =
        narrowest.tensors.iter().filter(|t| measured.contains(t.spec.name.as_str())).map(|t| t.bytes as u64).sum();
    let least = |total: u64, rest: u64| {
        total.checked_sub(rest).ok_or_else(|| {
            Error::request(format!("what stays as it is takes {} KiB, more than all may take", rest.div_ceil(1 << 10)))
                .help("ask for more")
        })
    };
    let budget = match goal {
        Goal::Divergence(kld) => Budget::Loss(kld),
        Goal::Size(bytes) => Budget::Bytes(least(bytes, narrowest.layout.bytes() - open)?),
        Goal::Bits(bits) => {
            let bytes = bits * narrowest.weights() as f64 / 8.0;
            Budget::Bytes(least(bytes as u64, narrowest.bytes() - open)?)
        }
    };
    let chosen = knapsack::choose(&items, budget)?;
    let format: HashMap<&str, &str> =
        items.iter().zip(&chosen.chosen).zip(&codecs).map(|((i, c), codecs)| (i.name.as_str(), codecs[*c])).collect();
    let named: Vec<(&str, &str)> = narrowest
        .tensors
        .iter()
        .map(|t| t.spec.name.as_str())
        .filter(|name| measured.contains(name))
        .filter_map(|name| Some((name, *format.get(alike(name).as_str())?)))
        .collect();
    let mut text = format!(
        "# Chosen by measuring {} scored tokens: a mean divergence of {:.2e} is predicted.\nextends = {}\nname = \"{name}\"\n\n[tensors]\n",
        measurement.tokens,
        chosen.loss,
        toml::Value::from(base)
    );
    named.iter().for_each(|(tensor, codec)| text += &format!("'^{}$' = \"{codec}\"\n", regex::escape(tensor)));
    Ok(Mixed { recipe: recipe.with_formats(name, named.into_iter())?, text, predicted: chosen.loss })
}

/// One name for all that runtimes fuse: the weights that read one activation.
fn fused(name: &str) -> String {
    let id = WeightId::parse(name);
    format!("{:?} {}", id.layer, id.role.site().unwrap_or(id.role).stem())
}

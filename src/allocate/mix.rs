//! From a measurement and a budget to a recipe.

use std::collections::{HashMap, HashSet};

use super::choices::Choices;
use super::knapsack::{self, Budget};
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
    /// Sum of the divergences of its weights, where they were measured.
    pub predicted: Option<f64>,
}

/// `narrowest`: the plan of [`Recipe::narrowest`]. `base`: what the recipe is called.
///
/// Errors: a goal out of reach, with what is the least; a divergence, where none was measured.
pub fn mix(
    choices: &Choices,
    narrowest: &Plan,
    recipe: &Recipe,
    (base, name): (&str, &str),
    goal: Goal,
) -> Result<Mixed> {
    let items = choices.items();
    let measured: HashSet<&str> = choices
        .groups
        .iter()
        .flat_map(|g| g.combinations.first())
        .flat_map(|c| &c.formats)
        .map(|f| f.weight.as_str())
        .collect();
    let open: u64 =
        narrowest.tensors.iter().filter(|t| measured.contains(t.spec.name.as_str())).map(|t| t.bytes as u64).sum();
    let least = |total: u64, rest: u64| {
        total.checked_sub(rest).ok_or_else(|| {
            Error::request(format!("what stays as it is takes {} KiB, more than all may take", rest.div_ceil(1 << 10)))
                .help("ask for more")
        })
    };
    let budget = match goal {
        Goal::Divergence(_) if !choices.divergences => {
            return Err(Error::request("this measurement tells errors of layers, and no divergences")
                .help("ask for a size with --target-bpw or --target-size, or measure anew without --measurement"));
        }
        Goal::Divergence(kld) => Budget::Loss(kld),
        Goal::Size(bytes) => Budget::Bytes(least(bytes, narrowest.layout.bytes() - open)?),
        Goal::Bits(bits) => {
            let bytes = bits * narrowest.weights() as f64 / 8.0;
            Budget::Bytes(least(bytes as u64, narrowest.bytes() - open)?)
        }
    };
    let chosen = knapsack::choose(&items, budget)?;
    let taken = choices.groups.iter().zip(&chosen.chosen).flat_map(|(g, n)| &g.combinations[*n].formats);
    let format: HashMap<&str, &str> = taken.map(|f| (f.weight.as_str(), f.codec.as_str())).collect();
    // In the order of the file.
    let names = narrowest.tensors.iter().map(|t| t.spec.name.as_str());
    let named: Vec<(&str, &str)> = names.filter_map(|name| Some((name, *format.get(name)?))).collect();
    let predicted = choices.divergences.then_some(chosen.loss);
    let promise = predicted.map_or_else(String::new, |kld| format!(": a mean divergence of {kld:.2e} is predicted"));
    let mut text = format!(
        "# Chosen by {}{promise}.\nextends = {}\nname = {}\n\n[tensors]\n",
        choices.by,
        toml::Value::from(base),
        toml::Value::from(name)
    );
    for (tensor, codec) in &named {
        let pattern = toml::Value::from(format!("^{}$", regex::escape(tensor)));
        text += &format!("{pattern} = \"{codec}\"\n");
    }
    Ok(Mixed { recipe: recipe.with_formats(name, named.into_iter())?, text, predicted })
}

/// One name for all weights that get one format: where runtimes fuse them, those that read one activation.
pub fn together(recipe: &Recipe, name: &str) -> String {
    if !recipe.fused() {
        return name.to_owned();
    }
    let id = WeightId::parse(name);
    format!("{:?} {}", id.layer, id.role.site().unwrap_or(id.role).stem())
}

//! The mix of formats that loses least within a size: a multiple-choice knapsack, solved exactly by dynamic programming over
//! sizes (Dudzinski and Walukiewicz 1987).

use crate::error::{Error, Result};

/// Weights that take one format together, and what each format costs them: `(bytes, loss)`.
#[derive(Clone, Debug)]
pub struct Item {
    pub name: String,
    pub options: Vec<(u64, f64)>,
}

/// What may be spent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Budget {
    /// Bytes of all items together, at the most.
    Bytes(u64),
    /// The sum of losses, at the most.
    Loss(f64),
}

/// One option for each item.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    pub chosen: Vec<usize>,
    pub bytes: u64,
    pub loss: f64,
}

/// Sizes are told apart up to so many steps between the smallest mix and the largest.
const STEPS: u64 = 1 << 16;

/// The least loss within a size, or the least size within a loss. Exact if all sizes are multiples of a common divisor that
/// leaves at most [`STEPS`] steps; else sizes are rounded up to steps, and the mix stays within the budget all the same.
///
/// Errors: a budget that no mix keeps, with what is the least.
pub fn choose(items: &[Item], budget: Budget) -> Result<Mix> {
    if let Some(item) = items.iter().find(|i| i.options.is_empty()) {
        return Err(Error::request("no format on offer fits it").at(&item.name));
    }
    let worst: f64 = items.iter().map(|i| i.options.iter().map(|o| o.1.abs()).fold(0.0, f64::max)).sum();
    if !worst.is_finite() {
        return Err(Error::input("what is said to be lost adds up to more than a number holds"));
    }
    let least: Vec<u64> = items.iter().map(|i| i.options.iter().map(|o| o.0).min().unwrap_or(0)).collect();
    let most: u64 = items.iter().map(|i| i.options.iter().map(|o| o.0).max().unwrap_or(0)).sum();
    let floor: u64 = least.iter().sum();
    let room = match budget {
        Budget::Bytes(bytes) => bytes.min(most).checked_sub(floor).ok_or_else(|| {
            let kib = |n: u64| n.div_ceil(1 << 10);
            Error::request(format!("{} KiB are too few for the weights: {} KiB is the least", kib(bytes), kib(floor)))
                .help("ask for more, or give the recipe narrower formats")
        })?,
        Budget::Loss(_) => most - floor,
    };
    let extras = items.iter().zip(&least).flat_map(|(i, least)| i.options.iter().map(move |o| o.0 - least));
    let divisor = extras.fold(0, gcd).max(1);
    let step = divisor * (room / divisor).div_ceil(STEPS).max(1);
    let steps = (room / step) as usize;
    let table = Table::new(items, &least, step, steps);
    let at = match budget {
        Budget::Bytes(_) => steps,
        Budget::Loss(limit) => table.best.iter().position(|loss| *loss <= limit).ok_or_else(|| {
            let least = table.best.last().copied().unwrap_or(0.0);
            Error::request(format!(
                "a divergence of {limit} is out of reach: {least:.2e} is the least that is predicted"
            ))
            .help("allow more, or give the recipe wider formats")
        })?,
    };
    let chosen = table.trace(at);
    let taken = || items.iter().zip(&chosen).map(|(i, c)| i.options[*c]);
    Ok(Mix { bytes: taken().map(|o| o.0).sum(), loss: taken().map(|o| o.1).sum(), chosen })
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// `best[s]`: the least loss of all items with at most `s` steps more than the least size.
struct Table {
    best: Vec<f64>,
    /// `[item][steps]`: the option taken, and how many steps that costs.
    taken: Vec<Vec<u16>>,
    costs: Vec<Vec<usize>>,
}

impl Table {
    fn new(items: &[Item], least: &[u64], step: u64, steps: usize) -> Table {
        let mut best = vec![0.0; steps + 1];
        let (mut taken, mut costs) = (Vec::with_capacity(items.len()), Vec::with_capacity(items.len()));
        for (item, least) in items.iter().zip(least) {
            let cost: Vec<usize> = item.options.iter().map(|o| (o.0 - least).div_ceil(step) as usize).collect();
            let mut next = vec![f64::INFINITY; steps + 1];
            let mut choice = vec![0u16; steps + 1];
            for (n, (cost, (_, loss))) in cost.iter().zip(&item.options).enumerate() {
                for s in *cost..=steps {
                    let sum = best[s - cost] + loss;
                    if sum < next[s] {
                        (next[s], choice[s]) = (sum, n as u16);
                    }
                }
            }
            best = next;
            taken.push(choice);
            costs.push(cost);
        }
        Table { best, taken, costs }
    }

    fn trace(&self, mut at: usize) -> Vec<usize> {
        let mut chosen = vec![0; self.taken.len()];
        for (i, (taken, costs)) in self.taken.iter().zip(&self.costs).enumerate().rev() {
            chosen[i] = usize::from(taken[at]);
            at -= costs[chosen[i]];
        }
        chosen
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(items: &[Item]) -> Vec<Mix> {
        let mut mixes = vec![Mix { chosen: vec![], bytes: 0, loss: 0.0 }];
        for item in items {
            let with = |m: &Mix, n: usize| Mix {
                chosen: m.chosen.iter().copied().chain([n]).collect(),
                bytes: m.bytes + item.options[n].0,
                loss: m.loss + item.options[n].1,
            };
            mixes = mixes.iter().flat_map(|m| (0..item.options.len()).map(move |n| with(m, n))).collect();
        }
        mixes
    }

    proptest! {
        #[test]
        fn no_mix_is_better(
            options in prop::collection::vec(prop::collection::vec((1u64..40, 0.0f64..1.0), 1..4), 1..6),
            share in 0.0f64..1.0,
        ) {
            let items: Vec<Item> =
                options.into_iter().map(|options| Item { name: "w".into(), options }).collect();
            let mixes = all(&items);
            let sizes = || mixes.iter().map(|m| m.bytes);
            let (least, most) = (sizes().min().unwrap(), sizes().max().unwrap());
            let bytes = least + ((most - least) as f64 * share) as u64;
            let best = mixes.iter().filter(|m| m.bytes <= bytes).map(|m| m.loss).fold(f64::INFINITY, f64::min);
            let mix = choose(&items, Budget::Bytes(bytes)).unwrap();
            prop_assert!(mix.bytes <= bytes && (mix.loss - best).abs() < 1e-9, "{} {best}", mix.loss);
            let losses = || mixes.iter().map(|m| m.loss);
            let low = losses().fold(f64::INFINITY, f64::min);
            let limit = low + (losses().fold(0.0, f64::max) - low) * share;
            let mix = choose(&items, Budget::Loss(limit + 1e-9)).unwrap();
            let best = mixes.iter().filter(|m| m.loss <= limit + 1e-9).map(|m| m.bytes).min().unwrap();
            prop_assert!(mix.loss <= limit + 2e-9 && mix.bytes == best, "{} {best}", mix.bytes);
        }
    }

    #[test]
    fn budgets_that_cannot_be_kept() {
        let items = [Item { name: "w".into(), options: vec![(2048, 0.5), (4096, 0.1)] }];
        let error = choose(&items, Budget::Bytes(1000)).unwrap_err();
        assert!(error.message().contains("2 KiB is the least"), "{error}");
        assert!(choose(&items, Budget::Loss(0.01)).unwrap_err().message().contains("1.00e-1"));
        assert_eq!(choose(&items, Budget::Bytes(u64::MAX)).unwrap().chosen, [1]);
        assert_eq!(choose(&[], Budget::Bytes(0)).unwrap().bytes, 0);
        let huge = |name: &str| Item { name: name.into(), options: vec![(4096, 1.5e308), (2048, 1.5e308)] };
        let error = choose(&[huge("a"), huge("b")], Budget::Bytes(5000)).unwrap_err();
        assert!(error.message().contains("more than a number holds"), "{error}");
    }
}

//! What a mix is chosen from, whoever measured it.

use std::collections::HashMap;

use super::knapsack::Item;

/// The format of one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Format {
    pub weight: String,
    pub codec: String,
    pub bytes: u64,
}

/// Formats of weights that are chosen together, and what they lose.
#[derive(Clone, Debug, PartialEq)]
pub struct Combination {
    pub formats: Vec<Format>,
    pub loss: f64,
}

impl Combination {
    fn bytes(&self) -> u64 {
        self.formats.iter().map(|f| f.bytes).sum()
    }
}

/// Weights that are chosen together: every combination has a format for each.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub name: String,
    pub combinations: Vec<Combination>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Choices {
    pub groups: Vec<Group>,
    /// How it was measured: `measuring 1530 scored tokens`.
    pub by: String,
    /// Losses are mean KL divergences, nats a token; else only their order means something.
    pub divergences: bool,
}

impl Choices {
    /// Withdraws formats of fewer bytes than a weight has already, by name.
    pub fn at_least(&mut self, bytes: &HashMap<String, u64>) {
        for group in &mut self.groups {
            let mut widest = HashMap::<String, u64>::new();
            for f in group.combinations.iter().flat_map(|c| &c.formats) {
                let most = widest.entry(f.weight.clone()).or_default();
                *most = f.bytes.max(*most);
            }
            let enough = |f: &Format| bytes.get(&f.weight).is_none_or(|least| f.bytes >= widest[&f.weight].min(*least));
            group.combinations.retain(|c| c.formats.iter().all(enough));
        }
    }

    pub fn items(&self) -> Vec<Item> {
        let options = |g: &Group| g.combinations.iter().map(|c| (c.bytes(), c.loss)).collect();
        self.groups.iter().map(|g| Item { name: g.name.clone(), options: options(g) }).collect()
    }
}

//! `quant probe`: generated questions and texts, as JSON lines.

use clap::Args;
use serde_json::json;

use super::report::Reporter;
use crate::error::{Error, Result};
use crate::eval::probe::{self, SKILLS, Skill, Split};

#[derive(Args)]
pub struct Probe {
    /// What to make items of, in turns [default: everything that the bundled model learned]
    #[arg(long, value_delimiter = ',', value_name = "NAME", value_parser = probe::all().map(|s| s.name).collect::<Vec<_>>())]
    skill: Vec<String>,
    /// No item of one split is in another
    #[arg(long, value_name = "NAME", default_value = Split::Test.name(), value_parser = Split::ALL.map(Split::name))]
    split: String,
    /// Items of each skill
    #[arg(long, value_name = "N", default_value_t = 10)]
    count: usize,
    /// About so many characters an item, of skills that can be of any length
    #[arg(long, value_name = "CHARS")]
    length: Option<usize>,
    /// The same seed makes the same items
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Plain text, question and answer together, in place of JSON lines
    #[arg(long, conflicts_with = "json")]
    text: bool,
}

impl Probe {
    pub fn run(&self, reporter: &Reporter) -> Result<bool> {
        let split = Split::find(&self.split)?;
        let skills: Vec<&Skill> = match self.skill.is_empty() {
            true => SKILLS.iter().filter(|s| self.length.is_none() || s.stretches).collect(),
            false => self.skill.iter().map(|name| Skill::find(name)).collect::<Result<_>>()?,
        };
        let items = (0..self.count as u64).flat_map(|index| skills.iter().map(move |skill| (index, *skill)));
        let items = items.map(|(index, skill)| skill.item(split, self.seed, index, self.length));
        if reporter.json {
            let items = items.collect::<Result<Vec<_>>>()?;
            return reporter.value(&json!({ "items": items })).map(|()| true);
        }
        for item in items {
            let item = item?;
            let line = match self.text {
                true => item.text(),
                false => serde_json::to_string(&item).map_err(|e| Error::input(e.to_string()))? + "\n",
            };
            if !reporter.stream(&line)? {
                break;
            }
        }
        Ok(true)
    }
}

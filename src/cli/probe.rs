//! `quant probe`: generated questions and texts, one JSON object a line.

use clap::Args;

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
    /// Plain text, question and answer together, in place of JSON
    #[arg(long)]
    text: bool,
}

impl Probe {
    pub fn run(&self, reporter: &Reporter) -> Result<bool> {
        let split = Split::find(&self.split)?;
        let skills: Vec<&Skill> = match self.skill.is_empty() {
            true => SKILLS.iter().filter(|s| self.length.is_none() || s.stretches).collect(),
            false => self.skill.iter().map(|name| Skill::find(name)).collect::<Result<_>>()?,
        };
        for index in 0..self.count as u64 {
            for skill in &skills {
                let item = skill.item(split, self.seed, index, self.length)?;
                let line = match self.text {
                    true => item.text(),
                    false => serde_json::to_string(&item).map_err(|e| Error::input(e.to_string()))? + "\n",
                };
                if !reporter.stream(&line)? {
                    return Ok(true);
                }
            }
        }
        Ok(true)
    }
}

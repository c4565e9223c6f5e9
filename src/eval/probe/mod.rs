//! Texts with a known answer and a known entropy, made from a seed: what small differences between models are measured
//! with, at any length, without a download. `quant probe` prints them; the model in `evals/probe` is trained on them.

mod arithmetic;
mod choices;
mod copy;
mod frequent;
mod function;
mod json;
mod language;
mod latent;
pub mod model;
mod recall;
mod sort;
mod story;
mod variables;
mod words;

use serde::Serialize;

use crate::error::{Error, Result};
use choices::Choices;

/// Parts that share no item, and no invented word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Split {
    Train,
    Calibration,
    Test,
}

impl Split {
    pub const ALL: [Split; 3] = [Split::Train, Split::Calibration, Split::Test];

    pub fn name(self) -> &'static str {
        match self {
            Split::Train => "train",
            Split::Calibration => "calibration",
            Split::Test => "test",
        }
    }

    pub fn find(name: &str) -> Result<Split> {
        let known = || Split::ALL.map(Split::name).join(", ");
        let found = Split::ALL.into_iter().find(|s| s.name() == name);
        found.ok_or_else(|| Error::request(format!("there is no split {name:?}")).help(format!("one of: {}", known())))
    }

    /// A text's own hash says where it belongs, whatever the seed: eight tenths train, one calibration, one test.
    fn holds(self, text: &str) -> bool {
        let hash = blake3::hash(text.as_bytes());
        let tenth = hash.as_bytes().iter().take(4).fold(0, |n, b| n << 8 | u32::from(*b)) % 10;
        self == [Split::Test, Split::Calibration].get(tenth as usize).copied().unwrap_or(Split::Train)
    }
}

/// A question and the one right answer; without a question, a text to be predicted.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Item {
    pub skill: &'static str,
    /// Empty, or ends with a line break.
    pub prompt: String,
    /// Does not end with a line break.
    pub answer: String,
    /// Logarithm of the number of equally likely texts this is one of: the least that a model can lose on it.
    pub nats: f64,
}

impl Item {
    /// As models are trained on it.
    pub fn text(&self) -> String {
        format!("{}{}\n", self.prompt, self.answer)
    }
}

/// A kind of item.
pub struct Skill {
    pub name: &'static str,
    pub about: &'static str,
    /// Whether items can be made of any length.
    pub stretches: bool,
    /// Whether there is a question: the answer is then determined by it.
    pub asks: bool,
    /// Prompt and answer of about so many characters, or of the skill's own length.
    draw: fn(&mut Choices, Option<usize>) -> (String, String),
}

pub static SKILLS: &[Skill] = &[
    story::SKILL,
    language::SKILL,
    arithmetic::SKILL,
    json::SKILL,
    recall::ONE,
    recall::SEVERAL,
    variables::SKILL,
    copy::SKILL,
    sort::SKILL,
    function::SKILL,
];

/// For models that follow instructions; the bundled model did not learn them.
pub static INSTRUCTED: &[Skill] = &[frequent::SKILL, latent::SKILL];

/// Both lists.
pub fn all() -> impl Iterator<Item = &'static Skill> {
    SKILLS.iter().chain(INSTRUCTED)
}

/// The longest item that can be asked for, in characters.
pub const LONGEST: usize = 8 << 20;

impl Skill {
    pub fn find(name: &str) -> Result<&'static Skill> {
        all().find(|s| s.name == name).ok_or_else(|| {
            let known: Vec<_> = all().map(|s| s.name).collect();
            Error::request(format!("there is no skill {name:?}")).help(format!("one of: {}", known.join(", ")))
        })
    }

    /// The item with this number, the same whatever else is made.
    ///
    /// Errors: a length for a skill that has its own; one beyond [`LONGEST`].
    pub fn item(&self, split: Split, seed: u64, index: u64, length: Option<usize>) -> Result<Item> {
        if length.is_some() && !self.stretches {
            let stretch: Vec<_> = all().filter(|s| s.stretches).map(|s| s.name).collect();
            return Err(Error::request(format!("items of {:?} have a length of their own", self.name))
                .help(format!("skills that can be of any length: {}", stretch.join(", "))));
        }
        if let Some(length) = length.filter(|l| *l > LONGEST) {
            return Err(Error::request(format!("{length} characters are more than {LONGEST}")));
        }
        let mut hash = blake3::Hasher::new();
        hash.update(self.name.as_bytes()).update(&seed.to_le_bytes()).update(&index.to_le_bytes());
        hash.update(split.name().as_bytes());
        let start = hash.finalize().as_bytes().iter().take(8).fold(0, |n, b| n << 8 | u64::from(*b));
        let mut choices = Choices::new(start, split);
        let (prompt, answer) =
            choices.until(|c| (self.draw)(c, length), |(p, a)| split.holds(if p.is_empty() { a } else { p }));
        Ok(Item { skill: self.name, prompt, answer, nats: choices.nats() })
    }

    /// Items 0, 1, 2 ...
    pub fn items(&self, split: Split, seed: u64, count: usize, length: Option<usize>) -> Result<Vec<Item>> {
        (0..count as u64).map(|index| self.item(split, seed, index, length)).collect()
    }
}

#[cfg(test)]
mod tests;

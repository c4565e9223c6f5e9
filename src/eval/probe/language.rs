//! An invented language with letters beyond ASCII: verbs agree with their subjects, adjectives with their nouns.

use super::choices::Choices;
use super::{Skill, words};

const TEXT: &str = include_str!("../../../evals/probe/language.txt");

pub const SKILL: Skill = Skill {
    name: "language",
    about: "an invented language with letters beyond ASCII (perplexity)",
    stretches: false,
    asks: false,
    draw: |choices, _| (String::new(), [(); 4].map(|()| sentence(choices)).join(" ")),
};

/// `Þu ælda áli bærë ek hüleš întuš vår.`
fn sentence(choices: &mut Choices) -> String {
    let plural = choices.below(2) == 1;
    let subject = noun(choices, plural);
    let verb = choices.pick(&words::list(TEXT, "verb")).to_string() + if plural { "më" } else { "" };
    let many = choices.below(2) == 1;
    let object = noun(choices, many);
    let end = match choices.below(3) {
        0 => format!(" {}", choices.pick(&words::list(TEXT, "adverb"))),
        1 => format!(" ân {}", choices.pick(&words::list(TEXT, "place"))),
        _ => String::new(),
    };
    format!("{} {subject} {verb} {} {object}{end}.", ["Þu", "Þi"][usize::from(plural)], ["øk", "øš"][usize::from(many)])
}

/// A noun and its adjective.
fn noun(choices: &mut Choices, plural: bool) -> String {
    let ending = if plural { "š" } else { "" };
    let (noun, adjective) = (words::list(TEXT, "noun"), words::list(TEXT, "adjective"));
    format!("{}{ending} {}{ending}", choices.pick(&noun), choices.pick(&adjective))
}

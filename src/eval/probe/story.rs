//! Stories of five sentences whose people, things and places stay the same.

use super::choices::Choices;
use super::{Skill, words};

const TEXT: &str = include_str!("../../../evals/probe/story.txt");
const STAGES: [&str; 5] = ["open", "want", "trouble", "act", "end"];

pub const SKILL: Skill = Skill {
    name: "story",
    about: "short stories with consistent names, things and places (perplexity)",
    stretches: false,
    asks: false,
    draw: |choices, _| (String::new(), story(choices)),
};

pub(super) fn story(choices: &mut Choices) -> String {
    let mut cast = Cast::default();
    let sentence = |stage: &str| {
        let frames: Vec<_> = words::lines(TEXT, stage).collect();
        let frame = choices.pick(&frames);
        // `text {role} text {role} text`
        let mut parts = frame.split(['{', '}']);
        let mut out = parts.next().unwrap_or_default().to_owned();
        while let (Some(role), Some(text)) = (parts.next(), parts.next()) {
            out += cast.role(choices, role);
            out += text;
        }
        out
    };
    STAGES.map(sentence).join(" ")
}

/// Who and what a story is about; each is chosen when it is first spoken of.
#[derive(Default)]
struct Cast(Vec<(&'static str, &'static str)>);

impl Cast {
    fn role(&mut self, choices: &mut Choices, role: &'static str) -> &'static str {
        let girls = words::list(TEXT, "girls");
        let known = self.0.iter().find(|(r, _)| *r == role).map(|(_, word)| *word);
        known.unwrap_or_else(|| match role {
            "He" | "he" => {
                let girl = girls.contains(&self.role(choices, "name"));
                [["He", "She"], ["he", "she"]][usize::from(role == "he")][usize::from(girl)]
            }
            "name" | "friend" => {
                let taken: Vec<_> = self.0.iter().map(|(_, word)| *word).collect();
                let people = [girls, words::list(TEXT, "boys")].concat();
                self.cast(choices, role, people.into_iter().filter(|p| !taken.contains(p)).collect())
            }
            _ => self.cast(choices, role, words::list(TEXT, role)),
        })
    }

    fn cast(&mut self, choices: &mut Choices, role: &'static str, list: Vec<&'static str>) -> &'static str {
        let word = *choices.pick(&list);
        self.0.push((role, word));
        word
    }
}

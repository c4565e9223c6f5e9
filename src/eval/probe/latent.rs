//! A fact in a long text, and a question that shares no word with it: to find the one from the other, a model must know what they
//! have to do with each other. Source of the idea: NoLiMa, Modarressi et al. 2025 (arXiv 2502.05167).

use super::choices::Choices;
use super::{Skill, story, words};

const TEXT: &str = include_str!("../../../evals/probe/latent.txt");

pub const SKILL: Skill = Skill {
    name: "latent",
    about: "whom a fact in a long text is about, asked in other words",
    stretches: true,
    asks: true,
    draw: latent,
};

/// Facts about other people, so that names alone do not tell.
const OTHERS: usize = 2;
/// Stories around the facts, unless a length is asked for.
const STORIES: (usize, usize) = (3, 12);

/// Characters of one.
const STORY: usize = 220;

/// Fact, with {} for the name, and question.
fn facts() -> Vec<(&'static str, &'static str)> {
    words::lines(TEXT, "fact").filter_map(|line| line.split_once(" | ")).collect()
}

fn latent(choices: &mut Choices, length: Option<usize>) -> (String, String) {
    let people = choices.distinct(&words::list(TEXT, "names"), OTHERS + 1);
    let facts = choices.distinct(&facts(), OTHERS + 1);
    let mut lines = Vec::new();
    let stories = length.is_none().then(|| choices.between(STORIES.0, STORIES.1));
    let mut characters = facts.iter().map(|(fact, question)| fact.len() + question.len()).sum::<usize>() + STORY / 2;
    while stories.map_or(length.is_some_and(|l| characters < l), |n| lines.len() < n) {
        let line = story::story(choices);
        characters += line.len() + 1;
        lines.push(line);
    }
    for ((fact, _), name) in facts.iter().zip(&people) {
        let place = choices.below(lines.len() + 1);
        lines.insert(place, fact.replace("{}", name));
    }
    let question = facts.first().map_or("", |(_, question)| question);
    (format!("{}\n\n{question} Answer with one name.\n", lines.join("\n")), people.first().map_or("", |n| n).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    fn parts(text: &str) -> BTreeSet<String> {
        text.split(|c: char| !c.is_alphanumeric()).filter(|w| !w.is_empty()).map(str::to_lowercase).collect()
    }

    #[test]
    fn questions_share_no_word_with_their_facts() {
        let all = facts();
        assert!(all.len() >= 24);
        for (fact, question) in &all {
            assert!(fact.contains("{}") && question.ends_with('?'), "{fact} | {question}");
            assert!(parts(fact).is_disjoint(&parts(question)), "{fact} | {question}");
        }
        let questions: BTreeSet<_> = all.iter().map(|(_, question)| question).collect();
        assert_eq!(questions.len(), all.len(), "two facts would answer one question");
    }

    #[test]
    fn names_are_of_nobody_else() {
        let names = words::list(TEXT, "names");
        let stories = include_str!("../../../evals/probe/story.txt");
        assert!(names.iter().all(|n| !parts(stories).contains(&n.to_lowercase())), "{names:?}");
        let inside = |a: &&str| names.iter().filter(|b| b.contains(*a)).count() > 1;
        assert!(!names.iter().any(inside), "one name within another");
    }
}

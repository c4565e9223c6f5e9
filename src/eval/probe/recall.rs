//! Facts without any pattern, and then questions about some of them: the only way to answer is to look back.

use std::collections::HashSet;

use super::Skill;
use super::choices::Choices;

pub const ONE: Skill = Skill {
    name: "recall",
    about: "one of many facts in a long context",
    stretches: true,
    asks: true,
    draw: |choices, length| recall(choices, length, 1),
};

pub const SEVERAL: Skill = Skill {
    name: "multirecall",
    about: "three of many facts in a long context",
    stretches: true,
    asks: true,
    draw: |choices, length| recall(choices, length, 3),
};

/// Characters of one fact.
const FACT: usize = "The code of barote is 1234.\n".len();

fn recall(choices: &mut Choices, length: Option<usize>, questions: usize) -> (String, String) {
    let count = length.map_or_else(|| choices.between(questions, 24), |l| (l / FACT).max(questions));
    // Far more words than facts, else a new one would be hard to find.
    let syllables = if count <= 1000 { 3 } else { 4 };
    let mut known = HashSet::new();
    let facts: Vec<(String, String)> = (0..count)
        .map(|_| {
            let key = choices.until(|c| c.word(syllables), |word| !known.contains(word));
            known.insert(key.clone());
            let fact = format!("The code of {key} is {:04}.", choices.below(10_000));
            (key, fact)
        })
        .collect();
    let (keys, answers): (Vec<String>, Vec<String>) = choices.distinct(&facts, questions).into_iter().unzip();
    let context: String = facts.iter().map(|(_, fact)| format!("{fact}\n")).collect();
    let asked = match keys.split_last() {
        Some((last, [])) => format!("What is the code of {last}?\n"),
        Some((last, first)) => format!("What are the codes of {} and {last}?\n", first.join(", ")),
        None => String::new(),
    };
    (context + &asked, answers.join("\n"))
}

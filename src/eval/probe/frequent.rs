//! Words by how often they occur: the whole context is needed, no single place in it tells. Source of the idea: the aggregation
//! tasks of RULER, Hsieh et al. 2024 (arXiv 2404.06654).

use std::collections::HashSet;

use super::Skill;
use super::choices::Choices;

pub const SKILL: Skill = Skill {
    name: "frequent",
    about: "the three most frequent of many words",
    stretches: true,
    asks: true,
    draw: frequent,
};

/// Characters of a word and the space behind it.
const WORD: usize = "barote ".len();
/// Of so many occurrences of the frequent words there is one of each other.
const SELDOM: usize = 5;

fn frequent(choices: &mut Choices, length: Option<usize>) -> (String, String) {
    let count = length.map_or_else(|| choices.between(40, 120), |l| l / WORD).max(4 * SELDOM);
    // A quarter of the text is one of the three.
    let often = (count / 12).max(SELDOM);
    let seldom = often / SELDOM;
    let others = count.saturating_sub(3 * often).div_ceil(seldom);
    // Far more words than are drawn, else a new one would be hard to find.
    let syllables = if others <= 1000 { 3 } else { 4 };
    let mut known = HashSet::new();
    let mut words: Vec<String> = (0..others + 3)
        .map(|_| {
            let word = choices.until(|c| c.word(syllables), |word| !known.contains(word));
            known.insert(word.clone());
            word
        })
        .collect();
    let seldom: Vec<String> = words.split_off(3).iter().flat_map(|word| vec![word.clone(); seldom]).collect();
    let all = [words.iter().flat_map(|word| vec![word.clone(); often]).collect(), seldom].concat();
    let shuffled = choices.distinct(&all, all.len());
    let asked = "Which three words occur most often in this list? Answer with these three words alone.";
    (format!("{}\n\n{asked}\n", shuffled.join(" ")), words.join(", "))
}

//! Word lists: lines `name: word, word` or, for whole sentences, several lines `name: sentence`.

use std::sync::OnceLock;

/// The words of one name, in order.
pub fn list(text: &'static str, name: &str) -> Vec<&'static str> {
    lines(text, name).flat_map(|line| line.split(", ")).collect()
}

/// The lines of one name, in order.
pub fn lines(text: &'static str, name: &str) -> impl Iterator<Item = &'static str> {
    text.lines().filter_map(|line| line.split_once(": ")).filter(move |(n, _)| *n == name).map(|(_, rest)| rest)
}

/// What invented words are made of.
pub fn syllables() -> &'static [&'static str] {
    static LIST: OnceLock<Vec<&str>> = OnceLock::new();
    LIST.get_or_init(|| {
        let text = include_str!("../../../evals/probe/words.txt");
        lines(text, "syllables").flat_map(str::split_whitespace).collect()
    })
}

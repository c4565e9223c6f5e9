//! Instructions that a program can check. Source: IFEval (Zhou et al. 2023), whose names and arguments these are; the `strict`
//! reading: the text as it was written.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::Value;

use super::{Check, Judge};
use crate::error::{At, Error, Result};
use crate::eval::script;
use crate::eval::task::rows::Row;

pub const CHECK: Check = Check {
    name: "instruction",
    about: "all of `instructions` are followed, by their `arguments`, as IFEval names them (strict)",
    needs: &["instructions", "arguments"],
    takes: &[],
    executes: false,
    prepare,
};

/// A row of the table of instructions.
struct Instruction {
    name: &'static str,
    follows: fn(&Arguments<'_>, &str) -> Result<bool>,
}

/// Arguments of one instruction; those that are null are not there.
struct Arguments<'a>(&'a Row);

impl Arguments<'_> {
    fn text(&self, name: &str) -> Result<&str> {
        let found = self.0.get(name).and_then(Value::as_str);
        found.ok_or_else(|| Error::input(format!("no text `{name}`")))
    }

    fn count(&self, name: &str) -> Result<usize> {
        let found = self.0.get(name).and_then(|v| v.as_u64().or_else(|| v.as_f64().map(|x| x as u64)));
        found.map(|n| n as usize).ok_or_else(|| Error::input(format!("no number `{name}`")))
    }

    fn texts(&self, name: &str) -> Result<Vec<String>> {
        let list = self.0.get(name).and_then(Value::as_array);
        let list = list.ok_or_else(|| Error::input(format!("no list `{name}`")))?;
        Ok(list.iter().filter_map(Value::as_str).map(str::to_lowercase).collect())
    }

    /// Whether a count is `at least`, or `less than`, the one asked for.
    fn holds(&self, relation: &str, wanted: &str, found: usize) -> Result<bool> {
        let wanted = self.count(wanted)?;
        match self.text(relation)? {
            "at least" => Ok(found >= wanted),
            "less than" => Ok(found < wanted),
            other => Err(Error::input(format!("`{relation}` is {other:?}, neither \"at least\" nor \"less than\""))),
        }
    }
}

fn prepare(values: &Row) -> Result<Judge> {
    let list = |name: &str| {
        values.get(name).and_then(Value::as_array).cloned().ok_or_else(|| Error::input(format!("`{name}` is no list")))
    };
    let (names, arguments) = (list("instructions")?, list("arguments")?);
    if names.len() != arguments.len() || names.is_empty() {
        return Err(Error::input(format!("{} instructions and arguments for {}", names.len(), arguments.len())));
    }
    let one = |(name, arguments): (&Value, Value)| {
        let name = name.as_str().unwrap_or_default();
        let row = INSTRUCTIONS.iter().find(|i| i.name == name).ok_or_else(|| {
            let known: Vec<_> = INSTRUCTIONS.iter().map(|i| i.name).collect();
            Error::unsupported(format!("the instruction {name:?} is not known"))
                .help(format!("known: {}", known.join(", ")))
        })?;
        let arguments = match arguments {
            Value::Object(map) => map,
            _ => Row::new(),
        };
        // What it lacks is found now, not when a model has been run.
        (row.follows)(&Arguments(&arguments), "a").at(|| name.to_owned())?;
        Ok((row, arguments))
    };
    let all: Vec<(&Instruction, Row)> = names.iter().zip(arguments).map(one).collect::<Result<_>>()?;
    Ok(Box::new(move |said| {
        if said.trim().is_empty() {
            return Ok(false);
        }
        all.iter().try_fold(true, |so_far, (row, arguments)| Ok(so_far && (row.follows)(&Arguments(arguments), said)?))
    }))
}

static INSTRUCTIONS: &[Instruction] = &[
    Instruction {
        name: "change_case:capital_word_frequency",
        follows: |a, s| {
            let capitals =
                words(s).filter(|w| w.chars().any(char::is_alphabetic) && !w.chars().any(char::is_lowercase));
            a.holds("capital_relation", "capital_frequency", capitals.count())
        },
    },
    Instruction {
        name: "change_case:english_capital",
        follows: |_, s| Ok(cased(s) && !s.chars().any(char::is_lowercase)),
    },
    Instruction {
        name: "change_case:english_lowercase",
        follows: |_, s| Ok(cased(s) && !s.chars().any(char::is_uppercase)),
    },
    Instruction {
        name: "combination:repeat_prompt",
        follows: |a, s| {
            let prompt = a.text("prompt_to_repeat")?.trim().to_lowercase();
            Ok(s.trim().to_lowercase().starts_with(&prompt))
        },
    },
    Instruction {
        name: "combination:two_responses",
        follows: |_, s| {
            let parts: Vec<&str> = s.split("******").map(str::trim).collect();
            let inner = parts.len() > 2 && parts[1..parts.len() - 1].iter().any(|p| p.is_empty());
            let full: Vec<&&str> = parts.iter().filter(|p| !p.is_empty()).collect();
            Ok(!inner && full.len() == 2 && full[0] != full[1])
        },
    },
    Instruction {
        name: "detectable_content:number_placeholders",
        follows: |a, s| {
            static PLACE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\[.*?\]").ok());
            Ok(matches(&PLACE, s) >= a.count("num_placeholders")?)
        },
    },
    Instruction {
        name: "detectable_content:postscript",
        follows: |a, s| {
            // "P.S." is also found as "p. s." and "ps".
            let plain =
                |t: &str| t.to_lowercase().chars().filter(|c| !c.is_whitespace() && *c != '.').collect::<String>();
            let marker = plain(a.text("postscript_marker")?);
            Ok(s.lines().any(|line| plain(line).contains(&marker)))
        },
    },
    Instruction {
        name: "detectable_format:constrained_response",
        follows: |_, s| {
            Ok(["My answer is yes.", "My answer is no.", "My answer is maybe."].iter().any(|answer| s.contains(answer)))
        },
    },
    Instruction {
        name: "detectable_format:json_format",
        follows: |_, s| {
            let inner = ["```json", "```Json", "```JSON", "```"]
                .iter()
                .fold(s.trim(), |s, fence| s.strip_prefix(fence).unwrap_or(s));
            Ok(serde_json::from_str::<Value>(inner.trim().trim_end_matches("```").trim()).is_ok())
        },
    },
    Instruction {
        name: "detectable_format:multiple_sections",
        follows: |a, s| {
            let source = format!(r"\s?{}\s?\d+\s?", regex::escape(a.text("section_spliter")?.trim()));
            let sections = Regex::new(&source).map_err(|e| Error::input(e.to_string()))?;
            Ok(sections.find_iter(s).count() >= a.count("num_sections")?)
        },
    },
    Instruction {
        name: "detectable_format:number_bullet_lists",
        follows: |a, s| {
            static STAR: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?m)^\s*\*[^\*].*$").ok());
            static DASH: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"(?m)^\s*-.*$").ok());
            Ok(matches(&STAR, s) + matches(&DASH, s) == a.count("num_bullets")?)
        },
    },
    Instruction {
        name: "detectable_format:number_highlighted_sections",
        follows: |a, s| {
            static ONE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\*[^\n\*]*\*").ok());
            static TWO: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\*\*[^\n\*]*\*\*").ok());
            let full = |pattern: &LazyLock<Option<Regex>>| {
                let found = pattern.as_ref().map(|p| p.find_iter(s)).into_iter().flatten();
                found.filter(|m| !m.as_str().trim_matches('*').trim().is_empty()).count()
            };
            Ok(full(&ONE) + full(&TWO) >= a.count("num_highlights")?)
        },
    },
    Instruction {
        name: "detectable_format:title",
        follows: |_, s| {
            static TITLE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"<<[^\n]+>>").ok());
            let mut titles = TITLE.as_ref().map(|t| t.find_iter(s)).into_iter().flatten();
            Ok(titles.any(|t| !t.as_str().trim_matches(['<', '>']).trim().is_empty()))
        },
    },
    Instruction {
        name: "keywords:existence",
        follows: |a, s| {
            let s = s.to_lowercase();
            Ok(a.texts("keywords")?.iter().all(|k| s.contains(k.as_str())))
        },
    },
    Instruction {
        name: "keywords:forbidden_words",
        follows: |a, s| {
            let s = s.to_lowercase();
            Ok(a.texts("forbidden_words")?.iter().all(|k| whole_words(&s, k) == 0))
        },
    },
    Instruction {
        name: "keywords:frequency",
        follows: |a, s| {
            let keyword = a.text("keyword")?.trim().to_lowercase();
            a.holds("relation", "frequency", s.to_lowercase().matches(&keyword).count())
        },
    },
    Instruction {
        name: "keywords:letter_frequency",
        follows: |a, s| {
            let letter = a.text("letter")?.to_lowercase();
            a.holds("let_relation", "let_frequency", s.to_lowercase().matches(&letter).count())
        },
    },
    Instruction { name: "language:response_language", follows: |a, s| Ok(script_fits(a.text("language")?, s)) },
    Instruction {
        name: "length_constraints:nth_paragraph_first_word",
        follows: |a, s| {
            let paragraphs: Vec<&str> = s.split("\n\n").collect();
            let full = paragraphs.iter().filter(|p| !p.trim().is_empty()).count();
            let nth = a.count("nth_paragraph")?;
            let first = a.text("first_word")?.to_lowercase();
            let Some(paragraph) = nth.checked_sub(1).and_then(|n| paragraphs.get(n)).filter(|_| nth <= full) else {
                return Ok(false);
            };
            let word = paragraph.split_whitespace().next().unwrap_or_default().trim_start_matches(['\'', '"']);
            let word: String = word.chars().take_while(|c| !".,?!'\"".contains(*c)).collect();
            Ok(full == a.count("num_paragraphs")? && word.to_lowercase() == first)
        },
    },
    Instruction {
        name: "length_constraints:number_paragraphs",
        follows: |a, s| {
            static RULE: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\s?\*\*\*\s?").ok());
            let parts: Vec<&str> = RULE.as_ref().map(|r| r.split(s).collect()).unwrap_or_default();
            let inner = parts.len() > 2 && parts[1..parts.len() - 1].iter().any(|p| p.trim().is_empty());
            Ok(!inner && parts.iter().filter(|p| !p.trim().is_empty()).count() == a.count("num_paragraphs")?)
        },
    },
    Instruction {
        name: "length_constraints:number_sentences",
        follows: |a, s| a.holds("relation", "num_sentences", sentences(s)),
    },
    Instruction {
        name: "length_constraints:number_words",
        follows: |a, s| {
            static WORD: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(r"\w+").ok());
            a.holds("relation", "num_words", matches(&WORD, s))
        },
    },
    Instruction { name: "punctuation:no_comma", follows: |_, s| Ok(!s.contains(',')) },
    Instruction {
        name: "startend:end_checker",
        follows: |a, s| {
            Ok(s.trim().trim_matches('"').to_lowercase().ends_with(&a.text("end_phrase")?.trim().to_lowercase()))
        },
    },
    Instruction {
        name: "startend:quotation",
        follows: |_, s| {
            let s = s.trim();
            Ok(s.len() > 1 && s.starts_with('"') && s.ends_with('"'))
        },
    },
];

fn cased(text: &str) -> bool {
    text.chars().any(char::is_alphabetic)
}

fn matches(pattern: &LazyLock<Option<Regex>>, text: &str) -> usize {
    pattern.as_ref().map_or(0, |p| p.find_iter(text).count())
}

/// Words as tokens of a text: punctuation stands alone.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| c.is_whitespace() || (c.is_ascii_punctuation() && c != '\'' && c != '-'))
        .filter(|w| !w.is_empty())
}

/// Occurrences of `word` that no letter or digit touches.
fn whole_words(text: &str, word: &str) -> usize {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let alone = |(at, found): (usize, &str)| {
        !part(text[..at].chars().next_back()) && !part(text[at + found.len()..].chars().next())
    };
    if word.is_empty() { 0 } else { text.match_indices(word).filter(|m| alone(*m)).count() }
}

/// Sentences end with a mark that a space or the end follows; titles and initials do not end one.
fn sentences(text: &str) -> usize {
    const TITLES: [&str; 10] = ["mr", "mrs", "ms", "dr", "prof", "st", "vs", "etc", "e.g", "i.e"];
    let mut count = 0;
    let mut open = false;
    let mut words = text.split_whitespace().peekable();
    while let Some(word) = words.next() {
        open = true;
        let bare = word.trim_end_matches(['"', '\'', ')', ']', '\u{201d}', '\u{2019}']);
        let Some(stem) = bare.strip_suffix(['.', '!', '?']) else { continue };
        let title =
            bare.ends_with('.') && (TITLES.contains(&stem.to_lowercase().as_str()) || stem.chars().count() == 1);
        if !title || words.peek().is_none() {
            count += 1;
            open = false;
        }
    }
    count + usize::from(open)
}

/// Whether most letters are of the script that a language is written in. Languages of one script are not told apart, so an
/// answer in the wrong one of two Latin languages passes: less than IFEval's own check, which guesses the language.
fn script_fits(language: &str, text: &str) -> bool {
    let scripts: &[&str] = match language {
        "ru" | "uk" | "bg" | "mk" | "sr" | "kk" => &["cyrillic"],
        "el" => &["greek"],
        "he" => &["hebrew"],
        "ar" | "fa" | "ur" => &["arabic"],
        "hi" | "mr" | "ne" => &["devanagari"],
        "bn" => &["bengali"],
        "pa" => &["gurmukhi"],
        "gu" => &["gujarati"],
        "ta" => &["tamil"],
        "te" => &["telugu"],
        "kn" => &["kannada"],
        "ml" => &["malayalam"],
        "th" => &["thai"],
        "ja" => &["kana", "han"],
        "zh" => &["han"],
        "ko" => &["hangul"],
        _ => &["latin"],
    };
    let letters = || text.chars().filter(|c| c.is_alphabetic());
    let fitting = letters().filter(|c| scripts.contains(&script::of(*c))).count();
    fitting > 0 && 2 * fitting >= letters().count()
}

#[cfg(test)]
mod tests {
    use super::super::tests::judge;
    use serde_json::json;

    #[test]
    fn instructions_as_examples() {
        for (name, arguments, right, wrong) in [
            (
                "change_case:capital_word_frequency",
                json!({"capital_relation": "at least", "capital_frequency": 2}),
                "GO NOW, she said",
                "Go NOW",
            ),
            ("change_case:english_capital", json!({}), "ALL OF IT: 3", "ALL of it"),
            ("change_case:english_lowercase", json!({}), "all of it", "All of it"),
            ("combination:repeat_prompt", json!({"prompt_to_repeat": "Say hi."}), "say hi. Hi!", "Hi!"),
            ("combination:two_responses", json!({}), "one\n******\ntwo", "one\n******\none"),
            ("detectable_content:number_placeholders", json!({"num_placeholders": 2}), "[name] at [place]", "[name]"),
            ("detectable_content:postscript", json!({"postscript_marker": "P.S."}), "Bye\nP. S. more", "Bye"),
            ("detectable_format:constrained_response", json!({}), "My answer is no.", "No."),
            ("detectable_format:json_format", json!({}), "```json\n{\"a\": 1}\n```", "a: 1"),
            (
                "detectable_format:multiple_sections",
                json!({"section_spliter": "Section", "num_sections": 2}),
                "Section 1\nSection 2",
                "Section 1",
            ),
            ("detectable_format:number_bullet_lists", json!({"num_bullets": 2}), "* a\n- b", "* a\n* b\n* c"),
            ("detectable_format:number_highlighted_sections", json!({"num_highlights": 1}), "*this*", "**  **"),
            ("detectable_format:title", json!({}), "<<On Cats>>\n...", "<< >>"),
            ("keywords:existence", json!({"keywords": ["Cat", "dog"]}), "a cat, a DOG", "a cat"),
            ("keywords:forbidden_words", json!({"forbidden_words": ["cat"]}), "concatenate", "a cat."),
            (
                "keywords:frequency",
                json!({"relation": "less than", "keyword": "cat", "frequency": 2}),
                "cat",
                "cat cat",
            ),
            (
                "keywords:letter_frequency",
                json!({"let_relation": "at least", "letter": "q", "let_frequency": 2}),
                "Qq",
                "q",
            ),
            (
                "language:response_language",
                json!({"language": "hi"}),
                "\u{928}\u{92e}\u{938}\u{94d}\u{924}\u{947}",
                "hello",
            ),
            (
                "length_constraints:nth_paragraph_first_word",
                json!({"num_paragraphs": 2, "nth_paragraph": 2, "first_word": "Then"}),
                "a\n\nthen, b",
                "then\n\na",
            ),
            ("length_constraints:number_paragraphs", json!({"num_paragraphs": 2}), "a\n***\nb", "a\n\nb"),
            (
                "length_constraints:number_sentences",
                json!({"relation": "less than", "num_sentences": 3}),
                "Dr. A came. He sat.",
                "A. came. He sat. Why?",
            ),
            (
                "length_constraints:number_words",
                json!({"relation": "at least", "num_words": 3}),
                "one two three",
                "one two",
            ),
            ("punctuation:no_comma", json!({}), "a b", "a, b"),
            ("startend:end_checker", json!({"end_phrase": "The end."}), "... the end.", "The end. Or not"),
            ("startend:quotation", json!({}), "\"so\"", "so"),
        ] {
            let ok = |said: &str| judge("instruction", json!({"instructions": [name], "arguments": [arguments]}), said);
            assert!(ok(right), "{name}: {right:?}");
            assert!(!ok(wrong), "{name}: {wrong:?}");
        }
        assert!(super::INSTRUCTIONS.len() >= 25);
    }

    #[test]
    fn all_must_be_followed() {
        let both = json!({"instructions": ["punctuation:no_comma", "startend:quotation"], "arguments": [{}, null]});
        assert!(judge("instruction", both.clone(), "\"so\""));
        assert!(!judge("instruction", both, "\"so, yes\""));
    }
}

//! Answers that are a text or a number.

use std::sync::LazyLock;

use regex::Regex;

use super::{Check, Judge, flag, string, strings};
use crate::error::{Error, Result};
use crate::eval::task::rows::Row;

pub const EXACT: Check = Check {
    name: "exact",
    about: "the answer and nothing else, but for spaces around it; `ignore_case`, `ignore_punctuation`",
    needs: &["answer"],
    takes: &["ignore_case", "ignore_punctuation"],
    executes: false,
    prepare: exact,
};

pub const CONTAINS: Check = Check {
    name: "contains",
    about: "the answer stands somewhere in the text; of several answers, all",
    needs: &["answer"],
    takes: &["ignore_case"],
    executes: false,
    prepare: contains,
};

pub const REGEX: Check = Check {
    name: "regex",
    about: "the text matches `pattern`; with `answer`, the last match's first group is the answer",
    needs: &["pattern"],
    takes: &["answer"],
    executes: false,
    prepare: regex,
};

pub const NUMBER: Check = Check {
    name: "number",
    about: "the number behind the last `after`, else the last one in the text, is the answer's (GSM8K)",
    needs: &["answer"],
    takes: &["after"],
    executes: false,
    prepare: number,
};

fn exact(values: &Row) -> Result<Judge> {
    let (case, punctuation) = (flag(values, "ignore_case")?, flag(values, "ignore_punctuation")?);
    let plain = move |text: &str| {
        let kept = text.trim().chars().filter(|c| !(punctuation && c.is_ascii_punctuation()));
        let kept: String = kept.collect();
        if case { kept.to_lowercase() } else { kept }
    };
    let answers: Vec<String> = strings(values, "answer")?.iter().map(|a| plain(a)).collect();
    Ok(Box::new(move |said| Ok(answers.contains(&plain(said)))))
}

fn contains(values: &Row) -> Result<Judge> {
    let case = flag(values, "ignore_case")?;
    let plain = move |text: &str| if case { text.to_lowercase() } else { text.to_owned() };
    let answers: Vec<String> = strings(values, "answer")?.iter().map(|a| plain(a)).collect();
    if answers.iter().any(String::is_empty) {
        return Err(Error::input("`answer` is empty: every text has it"));
    }
    Ok(Box::new(move |said| {
        let said = plain(said);
        Ok(answers.iter().all(|a| said.contains(a)))
    }))
}

fn regex(values: &Row) -> Result<Judge> {
    let source = string(values, "pattern")?;
    let pattern = Regex::new(&source).map_err(|e| Error::input(format!("`pattern` does not compile: {e}")))?;
    let answer = values.contains_key("answer").then(|| string(values, "answer")).transpose()?;
    if answer.is_some() && pattern.captures_len() < 2 {
        return Err(Error::input("`pattern` has no group to compare with `answer`"));
    }
    Ok(Box::new(move |said| {
        Ok(match &answer {
            None => pattern.is_match(said),
            Some(answer) => {
                let last = pattern.captures_iter(said).last().and_then(|c| c.get(1));
                last.is_some_and(|found| found.as_str().trim() == answer.trim())
            }
        })
    }))
}

fn number(values: &Row) -> Result<Judge> {
    let answer = string(values, "answer")?;
    let expected = last_number(&answer).ok_or_else(|| Error::input(format!("`answer` {answer:?} is no number")))?;
    let after = string(values, "after")?;
    Ok(Box::new(move |said| {
        let marked = (!after.is_empty()).then(|| said.rsplit_once(&after)).flatten();
        let found = marked.and_then(|(_, rest)| numbers(rest).next()).or_else(|| last_number(said));
        Ok(found.is_some_and(|found| (found - expected).abs() <= 1e-6 * expected.abs().max(1e-3)))
    }))
}

/// Numbers as people write them: `-1,234.50`.
fn numbers(text: &str) -> impl Iterator<Item = f64> + '_ {
    static NUMBER: LazyLock<Option<Regex>> =
        LazyLock::new(|| Regex::new(r"-?\d{1,3}(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?|-?\.\d+").ok());
    let found = NUMBER.as_ref().map(|n| n.find_iter(text)).into_iter().flatten();
    found.filter_map(|m| m.as_str().replace(',', "").parse().ok())
}

fn last_number(text: &str) -> Option<f64> {
    numbers(text).last()
}

#[cfg(test)]
mod tests {
    use super::super::tests::judge;
    use serde_json::json;

    #[test]
    fn texts() {
        assert!(judge("exact", json!({"answer": "Oslo"}), " Oslo\n"));
        assert!(!judge("exact", json!({"answer": "Oslo"}), "oslo."));
        assert!(judge(
            "exact",
            json!({"answer": ["Oslo", "Rome"], "ignore_case": true, "ignore_punctuation": true}),
            "ROME."
        ));
        assert!(judge("contains", json!({"answer": ["7", "x"]}), "x is 7"));
        assert!(!judge("contains", json!({"answer": ["7", "y"]}), "x is 7"));
        assert!(judge("regex", json!({"pattern": r"^\d+$"}), "12"));
        assert!(judge(
            "regex",
            json!({"pattern": r"answer is (\w+)", "answer": "B"}),
            "The answer is A. No, the answer is B."
        ));
    }

    #[test]
    fn numbers_as_people_write_them() {
        for said in ["so it is $1,234.50.", "#### 1234.5", "first 3, then 1234.50", "#### 1,234.5 and not 7"] {
            assert!(judge("number", json!({"answer": "1234.5", "after": "####"}), said), "{said}");
        }
        assert!(!judge("number", json!({"answer": "-5"}), "5"));
        assert!(!judge("number", json!({"answer": "5"}), "five"));
        assert!(judge("number", json!({"answer": "0"}), "it is 0."));
    }
}

//! What the name of a model tells: `org/Qwen2.5-Coder-7B-Instruct-v2` has a basename, a size, a finetune and a version.
//! Source: llama.cpp `gguf-py/gguf/metadata.py` (get_model_id_components, id_to_title).

use std::sync::LazyLock;

use regex::Regex;

/// Parts of a model's id, each as GGUF's `general.*` wants it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ModelId {
    /// Without the organization.
    pub name: Option<String>,
    pub organization: Option<String>,
    pub basename: Option<String>,
    pub finetune: Option<String>,
    pub version: Option<String>,
    pub size_label: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Unknown,
    Version,
    /// An encoding, such as `q4_k`; not part of any field.
    Encoding,
    Size,
    Finetune,
}

struct Part {
    text: String,
    kind: Kind,
    /// Part of the basename, besides its kind.
    base: bool,
}

fn pattern(p: &'static str) -> Regex {
    Regex::new(&format!("(?i)^(?:{p})$")).expect("constant pattern")
}

static VERSION: LazyLock<Regex> = LazyLock::new(|| pattern(r"(v|iter)?\d+([.]\d+)*"));
static ENCODING: LazyLock<Regex> = LazyLock::new(|| pattern(r"i?q\d(_\w)*|b?fp?(16|32)"));
static SIZE: LazyLock<Regex> =
    LazyLock::new(|| pattern(r"(a|\d+x)?\d+([._]\d+)?[kmbt]\d?|small|mini|medium|large|x?xl"));
static FINETUNE: LazyLock<Regex> = LazyLock::new(|| pattern("chat|instruct|vision|lora"));

/// Splits `id`. A size in it that is far from `parameters` (0: unknown) is taken for a context length.
pub fn parse(id: &str, parameters: u64) -> ModelId {
    if id.contains(' ') {
        return ModelId { name: Some(id.to_owned()), ..ModelId::default() };
    }
    let (organization, name) = match id.split_once('/') {
        Some((org, name)) => ((!org.starts_with('.')).then(|| org.to_owned()), name),
        None => (None, id),
    };
    let texts = name.split('-').filter(|p| !p.is_empty()).enumerate();
    let mut parts: Vec<_> = texts.map(|(i, text)| classify(text, i == 0, parameters)).collect();
    ignore_words_beside_numbers(&mut parts);
    mark_basename(&mut parts);

    let join = |wanted: &dyn Fn(&Part) -> bool| {
        let texts: Vec<_> = parts.iter().filter(|p| wanted(p)).map(|p| p.text.as_str()).collect();
        (!texts.is_empty()).then(|| texts.join("-"))
    };
    let mut sizes: Vec<&str> = Vec::new();
    for part in parts.iter().filter(|p| p.kind == Kind::Size) {
        if !sizes.contains(&part.text.as_str()) {
            sizes.push(&part.text);
        }
    }
    let size_label = (!sizes.is_empty()).then(|| sizes.join("-"));
    let finetune = join(&|p| p.kind == Kind::Finetune);
    let version = join(&|p| p.kind == Kind::Version && !p.base);
    // A basename alone is too ambiguous to state.
    let told = size_label.is_some() || finetune.is_some() || version.is_some();
    let basename = join(&|p| p.base).filter(|_| told);
    ModelId { name: Some(name.to_owned()), organization, basename, finetune, version, size_label }
}

fn classify(text: &str, first: bool, parameters: u64) -> Part {
    let part = |text: String, kind| Part { text, kind, base: false };
    if VERSION.is_match(text) {
        part(text.to_owned(), Kind::Version)
    } else if ENCODING.is_match(text) {
        part(text.to_uppercase(), Kind::Encoding)
    } else if !first && SIZE.is_match(text) {
        size(text, parameters)
    } else if !first && FINETUNE.is_match(text) {
        part(text.to_owned(), Kind::Finetune)
    } else {
        part(text.to_owned(), Kind::Unknown)
    }
}

/// Writes a size one way: `7b1` and `7_1b` are `7.1B`.
fn size(text: &str, parameters: u64) -> Part {
    let mut chars: Vec<char> = text.replace('_', ".").chars().collect();
    if let [.., unit, digit] = chars[..]
        && digit.is_ascii_digit()
    {
        chars.truncate(chars.len() - 2);
        chars.extend(['.', digit, unit]);
    }
    if let [.., digit, unit] = &mut chars[..]
        && digit.is_ascii_digit()
    {
        unit.make_ascii_uppercase();
    }
    let unit = chars.pop().unwrap_or_default();
    let number: String = chars.iter().collect();
    let thousands = [' ', 'K', 'M', 'B', 'T'].iter().position(|u| *u == unit).map_or(-1, |i| i as i32);
    let far = number.parse::<f64>().is_ok_and(|n| {
        let label = n * 1000f64.powi(thousands);
        (label - parameters as f64).abs() > (u128::from(parameters) * 7 / 8) as f64
    });
    if parameters > 0 && far {
        return Part { text: number + &unit.to_lowercase().to_string(), kind: Kind::Finetune, base: false };
    }
    Part { text: format!("{number}{unit}"), kind: Kind::Size, base: false }
}

/// `mini` says nothing where `3.8B` stands.
fn ignore_words_beside_numbers(parts: &mut [Part]) {
    let numbered = |p: &Part| p.kind == Kind::Size && p.text.contains(|c: char| c.is_ascii_digit());
    if parts.iter().any(numbered) {
        for p in parts.iter_mut().filter(|p| p.kind == Kind::Size && p.text.chars().all(char::is_alphabetic)) {
            p.kind = Kind::Unknown;
        }
    }
}

/// The basename is the words and versions at the start, without versions at its end; other unknown words are a finetune.
fn mark_basename(parts: &mut [Part]) {
    let mut start = true;
    for p in parts.iter_mut() {
        let word = p.kind == Kind::Unknown && p.text.starts_with(char::is_alphabetic);
        start &= word || p.kind == Kind::Version;
        p.base = start;
        if !start && p.kind == Kind::Unknown {
            p.kind = Kind::Finetune;
        }
    }
    for p in parts.iter_mut().rev().take_while(|p| p.base && p.kind == Kind::Version) {
        p.base = false;
    }
}

static NUMBERED: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"^(v\d+(?:\.\d+)*|\d.*)$").expect("constant pattern"));

/// `qwen2.5-coder-7B-v2.1` -> `Qwen2.5 Coder 7B v2.1`
pub fn title(id: &str) -> String {
    let lower = |w: &str| w.chars().any(char::is_lowercase) && !w.chars().any(char::is_uppercase);
    let word = |w: &str| if lower(w) && !NUMBERED.is_match(w) { capitals(w) } else { w.to_owned() };
    let spaced = id.replace('-', " ");
    spaced.split_whitespace().map(word).collect::<Vec<_>>().join(" ")
}

/// Every letter after a non-letter becomes a capital.
fn capitals(word: &str) -> String {
    let mut after_letter = false;
    let mut out = String::with_capacity(word.len());
    for c in word.chars() {
        match after_letter {
            true => out.push(c),
            false => out.extend(c.to_uppercase()),
        }
        after_letter = c.is_alphabetic();
    }
    out
}

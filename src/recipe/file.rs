//! The text of one recipe file. `extends` and `use` are followed in `load`.

use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{MapAccess, Visitor};
use toml::Spanned;

use super::kind::{KINDS, Kind};
use super::layers::Layers;
use super::rule::{Count, Pattern, Rule, Target, When};
use crate::codec::{self, Activations, Codec};
use crate::error::{Error, Result};

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub extends: Option<Spanned<String>>,
    pub name: Option<String>,
    pub aliases: Vec<String>,
    pub about: Option<String>,
    pub container: Option<String>,
    pub floats: Option<Spanned<String>>,
    pub activations: Option<Spanned<String>>,
    pub kv_cache: Option<Spanned<String>>,
    pub file_type: Option<u32>,
    pub default: Option<Spanned<String>>,
    pub pure: Option<bool>,
    pub output: Option<Spanned<String>>,
    pub token_embd: Option<Spanned<String>>,
    pub importance: Vec<Spanned<String>>,
    pub bpw: Option<f64>,
    pub ladder: Option<Spanned<String>>,
    pub offers: Option<Spanned<String>>,
    pub fused: Option<bool>,
    pub rule: Vec<Spanned<RuleText>>,
    pub keep: Vec<KeepText>,
    pub tensors: Pairs,
    pub fallback: Pairs,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeepText {
    pub names: Spanned<String>,
    #[serde(default)]
    pub arch: Words,
    pub why: String,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct RuleText {
    pub r#use: Option<Spanned<String>>,
    pub codec: Option<Spanned<String>>,
    weights: Option<Spanned<Words>>,
    names: Option<Spanned<String>>,
    layers: Option<Spanned<Words>>,
    nth: Option<Spanned<Words>>,
    arch: Option<Words>,
    gqa: Option<Spanned<Number>>,
    experts: Option<Spanned<Number>>,
    layer_count: Option<Spanned<Number>>,
    stacked: Option<bool>,
    tied: Option<bool>,
    importance: Option<bool>,
    row_fits: Option<bool>,
    instead_of: Option<Spanned<Words>>,
}

/// A word, or several.
#[derive(Deserialize, Clone)]
#[serde(untagged, expecting = "expected a string or a list of strings")]
pub(super) enum Words {
    One(String),
    Many(Vec<String>),
}

impl Default for Words {
    fn default() -> Self {
        Words::Many(Vec::new())
    }
}

impl Words {
    pub fn list(&self) -> &[String] {
        match self {
            Words::One(word) => std::slice::from_ref(word),
            Words::Many(words) => words,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a number, or a comparison such as \">= 4\"")]
enum Number {
    Exactly(u32),
    Compared(String),
}

/// A table of strings in the order of the file.
#[derive(Default)]
pub(super) struct Pairs(pub Vec<(Spanned<String>, Spanned<String>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Table;
        impl<'de> Visitor<'de> for Table {
            type Value = Pairs;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of strings")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Table)
    }
}

/// The text of a file and its name, to say where something is wrong.
#[derive(Clone, Copy)]
pub(super) struct Text<'a> {
    pub label: &'a str,
    pub text: &'a str,
}

impl<'a> Text<'a> {
    pub fn parse(self) -> Result<File> {
        toml::from_str(self.text).map_err(|e| {
            let error = Error::request(e.message().trim_end());
            error.at(e.span().map_or_else(|| self.label.to_owned(), |span| self.place(span)))
        })
    }

    /// `q4_k_m.toml:9`
    pub fn place(self, span: Range<usize>) -> String {
        let before = self.text.as_bytes().get(..span.start).unwrap_or_default();
        format!("{}:{}", self.label, 1 + before.iter().filter(|b| **b == b'\n').count())
    }

    /// Reads a value, naming its line if that fails.
    pub fn read<T, U>(self, value: &Spanned<T>, read: impl FnOnce(&T) -> Result<U>) -> Result<U> {
        read(value.get_ref()).map_err(|e| e.at(self.place(value.span())))
    }

    /// Conditions and target of a rule that does not `use` another file.
    pub fn rule(self, spanned: &Spanned<RuleText>) -> Result<Rule> {
        let place = self.place(spanned.span());
        let raw = spanned.get_ref();
        let codec = raw.codec.as_ref().ok_or_else(|| {
            Error::request("this rule names no codec")
                .at(place.clone())
                .help("add codec = \"q6_k\", \"default\" or \"keep\"")
        })?;
        Ok(Rule { when: self.when(raw)?, target: self.read(codec, |c| target(c))?, text: raw.text(&place) })
    }

    fn when(self, raw: &RuleText) -> Result<When> {
        Ok(When {
            weights: self.each(&raw.weights, kind)?,
            names: raw.names.as_ref().map(|names| self.read(names, |n| Pattern::parse(n))).transpose()?,
            layers: self.each(&raw.layers, Layers::parse)?,
            nth: self.each(&raw.nth, Layers::parse)?,
            arch: raw.arch.as_ref().map(|a| a.list().to_vec()).unwrap_or_default(),
            gqa: self.count(&raw.gqa)?,
            experts: self.count(&raw.experts)?,
            layer_count: self.count(&raw.layer_count)?,
            stacked: raw.stacked,
            tied: raw.tied,
            importance: raw.importance,
            row_fits: raw.row_fits,
            instead_of: self.each(&raw.instead_of, find)?,
        })
    }

    fn each<T>(self, words: &Option<Spanned<Words>>, read: impl Fn(&str) -> Result<T>) -> Result<Option<Vec<T>>> {
        let list = |w: &Spanned<Words>| self.read(w, |w| w.list().iter().map(|word| read(word)).collect());
        words.as_ref().map(list).transpose()
    }

    fn count(self, number: &Option<Spanned<Number>>) -> Result<Option<Count>> {
        let read = |n: &Number| match n {
            Number::Exactly(n) => Count::parse(&n.to_string()),
            Number::Compared(text) => Count::parse(text),
        };
        number.as_ref().map(|n| self.read(n, read)).transpose()
    }
}

impl RuleText {
    /// Whether only `use` is given.
    pub fn only_uses(&self) -> bool {
        self.codec.is_none() && self.conditions().is_empty()
    }

    fn text(&self, place: &str) -> String {
        let mut pieces = self.conditions();
        if pieces.is_empty() {
            pieces.push("every weight".to_owned());
        }
        format!("{} ({place})", pieces.join(", "))
    }

    fn conditions(&self) -> Vec<String> {
        let words =
            |key: &str, w: &Option<Spanned<Words>>| w.as_ref().map(|w| key.to_owned() + &w.get_ref().list().join("|"));
        let count = |key: &str, n: &Option<Spanned<Number>>| {
            n.as_ref().map(|n| match n.get_ref() {
                Number::Exactly(n) => format!("{key} {n}"),
                Number::Compared(text) => format!("{key} {text}"),
            })
        };
        let flag = |key: &str, f: Option<bool>| f.map(|f| if f { key.to_owned() } else { format!("not {key}") });
        let pieces = [
            words("", &self.weights),
            self.names.as_ref().map(|n| format!("names {}", n.get_ref())),
            words("layers ", &self.layers),
            words("nth ", &self.nth),
            self.arch.as_ref().map(|a| format!("arch {}", a.list().join("|"))),
            count("gqa", &self.gqa),
            count("experts", &self.experts),
            count("layer_count", &self.layer_count),
            flag("stacked", self.stacked),
            flag("tied", self.tied),
            flag("importance", self.importance),
            flag("row_fits", self.row_fits),
            words("instead of ", &self.instead_of),
        ];
        pieces.into_iter().flatten().collect()
    }
}

fn kind(name: &str) -> Result<Kind> {
    Kind::named(name).ok_or_else(|| {
        let known: Vec<_> = KINDS.iter().map(|(name, _)| *name).collect();
        Error::request(format!("unknown kind of weight {name:?}"))
            .help(format!("known kinds: {}; or match tensor names with names = 'regex'", known.join(", ")))
    })
}

/// A codec's name in any case.
pub(super) fn find(name: &str) -> Result<&'static dyn Codec> {
    codec::find(&name.to_ascii_lowercase())
}

pub(super) fn activations(name: &str) -> Result<Activations> {
    match name {
        "plain" => Ok(Activations::Plain),
        "dynamic" => Ok(Activations::Dynamic),
        "static" => Ok(Activations::Static),
        "measured" => Ok(Activations::Measured),
        _ => {
            Err(Error::request(format!("unknown activations {name:?}")).help("known: plain, dynamic, static, measured"))
        }
    }
}

/// Whether the KV cache gets scales.
pub(super) fn fp8_cache(name: &str) -> Result<bool> {
    match name {
        "fp8" => Ok(true),
        "plain" => Ok(false),
        _ => Err(Error::request(format!("unknown KV cache {name:?}")).help("known: plain, fp8")),
    }
}

pub(super) fn target(name: &str) -> Result<Target> {
    match name {
        "default" => Ok(Target::Default),
        "keep" => Ok(Target::Keep),
        codec => find(codec).map(Target::Codec),
    }
}

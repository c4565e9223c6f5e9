//! One line of a mix: conditions and the codec they lead to.

use std::fmt;

use regex::{Regex, RegexBuilder};

use super::ModelFacts;
use super::kind::{self, Kind};
use super::layers::Layers;
use crate::codec::Codec;
use crate::error::{Error, Result};

/// What a rule or an override asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Target {
    Codec(&'static dyn Codec),
    /// The recipe's default: takes back what earlier rules chose.
    Default,
    /// As in the source.
    Keep,
}

/// A regular expression, searched for anywhere in a tensor's name, ignoring case.
#[derive(Clone, Debug)]
pub struct Pattern(Regex);

impl Pattern {
    pub fn parse(text: &str) -> Result<Pattern> {
        // Recipes may come from strangers: a pattern may cost a bounded amount of memory.
        let regex = RegexBuilder::new(text).case_insensitive(true).size_limit(1 << 18).dfa_size_limit(1 << 18).build();
        regex.map(Pattern).map_err(|e| {
            let cause = e.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            Error::request(format!("{text:?} is no regular expression: {cause}"))
        })
    }
    pub fn matches(&self, name: &str) -> bool {
        self.0.is_match(name)
    }
    pub fn text(&self) -> &str {
        self.0.as_str()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Compare {
    Equal,
    NotEqual,
    AtLeast,
    Below,
}

/// `8`, `!= 8`, `>= 4` or `< 4`
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count(pub Compare, pub u32);

const COMPARES: [(&str, Compare); 4] =
    [("!=", Compare::NotEqual), (">=", Compare::AtLeast), ("<", Compare::Below), ("", Compare::Equal)];

impl Count {
    pub fn parse(text: &str) -> Result<Count> {
        let text = text.trim();
        let count = COMPARES
            .iter()
            .find_map(|&(sign, compare)| Some(Count(compare, text.strip_prefix(sign)?.trim().parse().ok()?)));
        count
            .ok_or_else(|| Error::request(format!("cannot read the count {text:?}")).help("write 8, != 8, >= 4 or < 4"))
    }
    fn holds(self, x: u32) -> bool {
        let Count(compare, n) = self;
        match compare {
            Compare::Equal => x == n,
            Compare::NotEqual => x != n,
            Compare::AtLeast => x >= n,
            Compare::Below => x < n,
        }
    }
}

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = COMPARES.iter().find(|(_, c)| *c == self.0).map_or("", |(sign, _)| sign);
        write!(f, "{sign}{}", self.1)
    }
}

/// Conditions of a rule; all must hold, absent ones do.
#[derive(Clone, Debug, Default)]
pub struct When {
    pub weights: Option<Vec<Kind>>,
    pub names: Option<Pattern>,
    pub layers: Option<Vec<Layers>>,
    pub nth: Option<Vec<Layers>>,
    /// Names that may start with `!`.
    pub arch: Vec<String>,
    pub gqa: Option<Count>,
    pub experts: Option<Count>,
    pub layer_count: Option<Count>,
    pub stacked: Option<bool>,
    pub tied: Option<bool>,
    pub importance: Option<bool>,
    pub row_fits: Option<bool>,
    pub instead_of: Option<Vec<&'static dyn Codec>>,
}

/// What conditions look at.
pub(super) struct Seen<'a> {
    pub facts: &'a ModelFacts,
    pub name: &'a str,
    /// `Output` for a tied `token_embd`.
    pub kind: Kind,
    pub stacked: bool,
    pub tied: bool,
    pub row_fits: bool,
    /// Weights of this kind before this one.
    pub nth: usize,
    /// Weights that hold values, in the whole model.
    pub attn_v_count: usize,
}

impl Seen<'_> {
    fn count(&self) -> usize {
        if self.kind == Kind::AttnV { self.attn_v_count } else { self.facts.layers as usize }
    }

    /// Where this weight stands among the layers. Models do not agree on what a layer holds, so weights that every
    /// layer of a dense model has once are counted; where experts make this impossible the name is read.
    fn layer(&self) -> Result<Option<usize>> {
        let counted = self.kind == Kind::AttnV || (self.kind.is_ffn() && self.facts.experts <= 1);
        if counted {
            return Ok(Some(self.nth));
        }
        match kind::layer(self.name) {
            Some(layer) if layer >= self.facts.layers as usize => {
                let message = format!("the model has {} layers, this tensor claims another", self.facts.layers);
                Err(Error::input(message).at(self.name))
            }
            layer => Ok(layer),
        }
    }
}

pub fn arch_is(list: &[String], arch: &str) -> bool {
    let mut any = list.iter().filter(|a| !a.starts_with('!')).peekable();
    let none = list.iter().all(|a| a.strip_prefix('!') != Some(arch));
    none && (any.peek().is_none() || any.any(|a| a == arch))
}

impl When {
    pub(super) fn holds(&self, seen: &Seen<'_>, chosen: Option<&'static dyn Codec>) -> Result<bool> {
        let facts = seen.facts;
        let count = |want: Option<Count>, x| want.is_none_or(|c| c.holds(x));
        let flag = |want: Option<bool>, x| want.is_none_or(|f| f == x);
        let plain = self.weights.as_ref().is_none_or(|kinds| kinds.contains(&seen.kind))
            && arch_is(&self.arch, &facts.arch)
            && count(self.gqa, facts.gqa())
            && count(self.experts, facts.experts)
            && count(self.layer_count, facts.layers)
            && flag(self.stacked, seen.stacked)
            && flag(self.tied, seen.tied)
            && flag(self.importance, facts.has_importance)
            && flag(self.row_fits, seen.row_fits)
            && self.instead_of.as_ref().is_none_or(|list| list.iter().any(|&c| chosen == Some(c)))
            && self.names.as_ref().is_none_or(|p| p.matches(seen.name));
        if !plain {
            return Ok(false);
        }
        let within = |list: &[Layers], i| list.iter().any(|l| l.contains(i, seen.count()));
        let nth = self.nth.as_ref().is_none_or(|list| within(list, seen.nth));
        let layer = match &self.layers {
            Some(list) => seen.layer()?.is_some_and(|i| within(list, i)),
            None => true,
        };
        Ok(nth && layer)
    }
}

/// One line of a mix.
#[derive(Clone, Debug)]
pub struct Rule {
    pub when: When,
    pub target: Target,
    /// Conditions and place, for people: `attn_v, layers more_bits (q4_k_m:6)`.
    pub text: String,
}

//! Budgets: a metric and its limit, as people write them.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde_json::Map;

use super::measure;
use crate::error::{At, Error, Result};

/// What an evaluation must keep.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Budgets {
    pub budgets: Vec<(String, Limit)>,
    /// Against an earlier report.
    pub since: Vec<(String, Limit)>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    budgets: Map<String, serde_json::Value>,
    #[serde(default)]
    since: Map<String, serde_json::Value>,
}

impl Budgets {
    /// Errors: no budgets; a metric that is not known; a limit that cannot be read, or is kept by getting worse.
    pub fn parse(text: &str) -> Result<Budgets> {
        Budgets::read(text).map_err(Error::in_request)
    }

    fn read(text: &str) -> Result<Budgets> {
        let file: File = toml::from_str(text).map_err(|e| {
            Error::input(e.to_string().trim_end().to_owned())
                .help("[budgets] and [since] hold lines such as \"kld.mean\" = \"<= 0.02\"")
        })?;
        let read = |map: Map<String, serde_json::Value>, since: bool| -> Result<Vec<(String, Limit)>> {
            let one = |(metric, limit): (String, serde_json::Value)| {
                let text = limit.as_str().ok_or_else(|| Error::input("a limit is a text such as \"<= 0.02\""));
                let limit = text.and_then(str::parse);
                let limit = limit.and_then(|l| measure::meant(&metric, l, since));
                Ok((metric.clone(), limit.at(|| metric)?))
            };
            map.into_iter().map(one).collect()
        };
        let budgets = Budgets { budgets: read(file.budgets, false)?, since: read(file.since, true)? };
        match budgets.is_empty() {
            true => Err(Error::input("there are no budgets")
                .help("write lines such as \"kld.mean\" = \"<= 0.02\" under [budgets]")),
            false => Ok(budgets),
        }
    }

    /// `METRIC=NUMBER` for each: at most so much.
    pub fn at_most(arguments: &[String]) -> Result<Budgets> {
        let one = |argument: &String| {
            let (metric, number) = argument.split_once('=').ok_or_else(|| {
                Error::request(format!("--max {argument:?} is not METRIC=NUMBER")).help("as in --max kld=0.02")
            })?;
            let metric = if metric == "kld" { "kld.mean" } else { metric };
            let limit = format!("<= {number}").parse::<Limit>();
            let limit = limit.and_then(|l| measure::meant(metric, l, false));
            Ok((metric.to_owned(), limit.at(|| format!("--max {argument}"))?))
        };
        let budgets: Result<_> = arguments.iter().map(one).collect();
        Ok(Budgets { budgets: budgets.map_err(Error::in_request)?, since: Vec::new() })
    }

    pub fn is_empty(&self) -> bool {
        self.budgets.is_empty() && self.since.is_empty()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Of the metric itself.
    Own,
    /// A change, in hundredths of what it is compared with.
    Percent,
    /// The share itself, in hundredths.
    Share,
    /// A change, in hundredths of all items.
    Points,
}

impl Unit {
    pub fn name(self) -> &'static str {
        match self {
            Unit::Own => "",
            Unit::Percent | Unit::Share => "%",
            Unit::Points => "pt",
        }
    }

    /// Changes have a sign.
    pub fn is_change(self) -> bool {
        matches!(self, Unit::Percent | Unit::Points)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Limit {
    /// Else at least.
    pub at_most: bool,
    /// In [`Limit::unit`].
    pub number: f64,
    pub unit: Unit,
}

impl Limit {
    /// What shares are multiplied with to be in its unit.
    pub fn scale(&self) -> f64 {
        if self.unit == Unit::Own { 1.0 } else { 100.0 }
    }

    /// Whether a figure, a share or a change of one, is within it.
    pub fn keeps(&self, x: f64) -> bool {
        let bound = self.number / self.scale();
        if self.at_most { x <= bound } else { x >= bound }
    }
}

impl FromStr for Limit {
    type Err = Error;

    fn from_str(text: &str) -> Result<Limit> {
        let wrong = || {
            Error::input(format!("{text:?} is no limit"))
                .help("\"<= 0.02\", \">= 0.95\", \"<= +1 %\" (a change) or \">= -1 pt\" (a change of a share)")
        };
        let rest = text.trim();
        let (at_most, rest) = match (rest.strip_prefix("<="), rest.strip_prefix(">=")) {
            (Some(rest), _) => (true, rest),
            (_, Some(rest)) => (false, rest),
            _ => return Err(wrong()),
        };
        let rest = rest.trim();
        let (number, unit) = match (rest.strip_suffix('%'), rest.strip_suffix("pt")) {
            (Some(number), _) => (number, Unit::Percent),
            (_, Some(number)) => (number, Unit::Points),
            _ => (rest, Unit::Own),
        };
        let number: f64 = number.trim().parse().map_err(|_| wrong())?;
        if !number.is_finite() {
            return Err(wrong());
        }
        Ok(Limit { at_most, number, unit })
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = if self.at_most { "<=" } else { ">=" };
        match self.unit {
            Unit::Own => write!(f, "{sign} {}", self.number),
            unit if unit.is_change() => write!(f, "{sign} {:+} {}", self.number, unit.name()),
            unit => write!(f, "{sign} {} {}", self.number, unit.name()),
        }
    }
}

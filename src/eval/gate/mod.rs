//! A gate: budgets that an evaluation must keep, and the evidence that it does. It reads the JSON of `quant eval`, so that old
//! reports can be judged too, and be what new ones are compared with.

mod budget;
mod early;
mod measure;

pub use budget::{Budgets, Limit};
pub use early::Early;

use serde::Serialize;
use serde_json::Value;

use super::report::svg::escape;
use crate::error::Result;
use measure::Measure;

/// From the best to the worst; a gate's verdict is its worst row's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Verdict {
    /// The whole 95 % interval keeps the limit.
    Pass,
    /// The limit lies within the interval: more text or items would tell.
    Inconclusive,
    /// The whole interval misses the limit.
    Regression,
    /// There is nothing to judge, or it cannot be compared.
    Invalid,
}

impl Verdict {
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Pass => "PASS",
            Verdict::Inconclusive => "INCONCLUSIVE",
            Verdict::Regression => "REGRESSION",
            Verdict::Invalid => "INVALID",
        }
    }
}

/// One budget of one artifact.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    pub artifact: String,
    pub metric: String,
    /// As it was written; "since" budgets say so.
    pub limit: String,
    pub value: Option<f64>,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// What value, low and high are shown in: "", "%" or "pt".
    pub unit: &'static str,
    /// They are changes, not the figure itself.
    pub change: bool,
    pub verdict: Verdict,
    pub note: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Judgement {
    pub verdict: Verdict,
    pub rows: Vec<Row>,
}

/// Judges every artifact of a report; `baseline` is an earlier report, which "since" budgets need.
pub fn judge(report: &Value, baseline: Option<&Value>, budgets: &Budgets) -> Judgement {
    let artifacts = report["artifacts"].as_array().map_or(&[][..], Vec::as_slice);
    let mut rows = Vec::new();
    for artifact in artifacts {
        for (metric, limit) in &budgets.budgets {
            rows.push(row(artifact, metric, limit, "", measure::own(artifact, metric, limit)));
        }
        for (metric, limit) in &budgets.since {
            let found = match baseline {
                None => Err("there is no baseline: pass --baseline REPORT.json".to_owned()),
                Some(baseline) => measure::since(report, artifact, baseline, metric, limit),
            };
            rows.push(row(artifact, metric, limit, "since the baseline ", found));
        }
    }
    let worst = rows.iter().map(|r| r.verdict).max();
    Judgement { verdict: worst.unwrap_or(Verdict::Invalid), rows }
}

fn row(artifact: &Value, metric: &str, limit: &Limit, since: &str, found: Result<Measure, String>) -> Row {
    let (measure, verdict, note) = match found {
        Err(why) => (None, Verdict::Invalid, why),
        Ok(m) => match m.verdict(limit) {
            Some(verdict) => {
                let note = if verdict == Verdict::Inconclusive { m.more() } else { m.note.clone() };
                (Some(m), verdict, note)
            }
            None => (Some(m), Verdict::Invalid, "it is not a number".to_owned()),
        },
    };
    let shown = |x: fn(&Measure) -> Option<f64>| {
        measure.as_ref().and_then(x).filter(|x| x.is_finite()).map(|x| x * limit.scale())
    };
    Row {
        artifact: artifact["path"].as_str().unwrap_or_default().to_owned(),
        metric: metric.to_owned(),
        limit: format!("{since}{limit}"),
        value: shown(|m| Some(m.value)),
        low: shown(|m| m.low),
        high: shown(|m| m.high),
        unit: limit.unit.name(),
        change: limit.unit.is_change(),
        verdict,
        note,
    }
}

impl Judgement {
    /// For machines that know tests. Source: the JUnit XML format as CI systems read it.
    pub fn junit(&self) -> String {
        let failed = |v: Verdict| self.rows.iter().filter(|r| r.verdict == v).count();
        let mut out = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<testsuite name=\"quant gate\" tests=\"{}\" failures=\"{}\" errors=\"{}\" skipped=\"{}\">\n",
            self.rows.len(),
            failed(Verdict::Regression),
            failed(Verdict::Invalid),
            failed(Verdict::Inconclusive)
        );
        for r in &self.rows {
            let said = xml(&format!("{} {}: {}. {}", r.metric, r.limit, r.figures(), r.note));
            let tag = match r.verdict {
                Verdict::Pass => String::new(),
                Verdict::Inconclusive => format!("<skipped message=\"{said}\"/>"),
                Verdict::Regression => format!("<failure message=\"{said}\"/>"),
                Verdict::Invalid => format!("<error message=\"{said}\"/>"),
            };
            let (class, name) = (xml(&r.artifact), xml(&format!("{} {}", r.metric, r.limit)));
            out.push_str(&format!("  <testcase classname=\"{class}\" name=\"{name}\">{tag}</testcase>\n"));
        }
        out.push_str("</testsuite>\n");
        out
    }
}

impl Row {
    /// Value and interval, for people.
    pub fn figures(&self) -> String {
        let number = |x: f64| match self.unit {
            "" => format!("{}", (x * 1e6).round() / 1e6),
            unit if self.change => format!("{x:+.2} {unit}"),
            unit => format!("{x:.2} {unit}"),
        };
        match (self.value, self.low, self.high) {
            (Some(value), Some(low), Some(high)) => format!("{} ({} - {})", number(value), number(low), number(high)),
            (Some(value), ..) => number(value),
            _ => "-".to_owned(),
        }
    }
}

/// Text inside an attribute, on one line; what XML cannot say at all is dropped.
fn xml(text: &str) -> String {
    let plain = text.replace(['\n', '\t'], " ").replace(|c: char| c < ' ' || matches!(c, '\u{fffe}' | '\u{ffff}'), "");
    escape(&plain)
}

#[cfg(test)]
mod tests;

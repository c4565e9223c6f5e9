//! Figures of a report, with their intervals.

use serde_json::Value;

use super::Verdict;
use super::budget::{Limit, Unit};
use crate::error::{Error, Result};
use crate::eval::interval::resampled;
use crate::eval::paired::Paired;

/// A figure; a share, or a change of one, where the limit is in hundredths.
#[derive(Clone, Debug, PartialEq)]
pub struct Measure {
    pub value: f64,
    pub low: Option<f64>,
    pub high: Option<f64>,
    /// Judged by its value alone: it is no sample, or nobody knows its interval.
    pub exact: bool,
    pub note: String,
}

/// A kind of metric. `NAME` in a pattern stands for what the user called it.
struct Metric {
    pattern: &'static str,
    better: Better,
    own: fn(&Value, &[&str], &Limit) -> Found,
    /// What a limit can be in beside the figure's own unit.
    units: &'static [Unit],
    /// Against another report's artifact; the reports are known to be of the same text.
    since: Option<(Since, &'static [Unit])>,
}

type Found = std::result::Result<Measure, String>;
type Since = fn(&Value, &Value, &[&str], &Limit) -> Found;

/// Which way a figure goes where less is lost.
#[derive(Clone, Copy, PartialEq)]
enum Better {
    Lower,
    Higher,
}

use Better::{Higher, Lower};

const OWN: &[Unit] = &[];
const PERCENT: &[Unit] = &[Unit::Percent];
const SHARE: &[Unit] = &[Unit::Share];
const POINTS: &[Unit] = &[Unit::Points];

const fn metric(
    pattern: &'static str,
    better: Better,
    units: &'static [Unit],
    own: fn(&Value, &[&str], &Limit) -> Found,
    since: Option<(Since, &'static [Unit])>,
) -> Metric {
    Metric { pattern, better, own, units, since }
}

static METRICS: &[Metric] = &[
    metric("kld.mean", Lower, OWN, |a, _, _| divergence(a), Some((divergence_since, PERCENT))),
    metric("kld.NAME", Lower, OWN, |a, n, _| quantile(&a["kld"], n[0]), None),
    metric("perplexity", Lower, PERCENT, |a, _, limit| perplexity(a, limit), Some((perplexity_since, PERCENT))),
    metric("same_top", Higher, SHARE, |a, _, _| estimate(&a["same_top"]), None),
    metric("rms_delta_p", Lower, SHARE, |a, _, _| estimate(&a["rms_delta_p"]), None),
    metric("bytes", Lower, OWN, |a, _, _| point(&a["bytes"], ""), Some((bytes_since, PERCENT))),
    metric("bpw", Lower, OWN, |a, _, _| point(&a["bpw"], ""), None),
    metric("tasks.NAME.NAME", Higher, POINTS, task, Some((task_since, POINTS))),
    metric("positions.NAME.kld", Lower, OWN, |a, n, _| estimate(&position(a, n[0])["kld"]), None),
    metric("positions.NAME.same_top", Higher, SHARE, |a, n, _| estimate(&position(a, n[0])["same_top"]), None),
    metric("kv.NAME.kld", Lower, OWN, |a, n, _| divergence(find(&a["kv"], "kv", n[0])), None),
];

/// The limit of a metric as it was meant: of the figure, or of what has become of it `since` a baseline.
///
/// Errors: a metric that no report has; a unit that it has no limits in; a limit that is kept by getting worse.
pub fn meant(metric: &str, limit: Limit, since: bool) -> Result<Limit> {
    let found = row(metric).filter(|(row, names)| row.pattern != "kld.NAME" || QUANTILES.contains(&names[0]));
    let Some((row, _)) = found else {
        let known: Vec<_> = METRICS.iter().map(|m| m.pattern).collect();
        return Err(
            Error::input(format!("there is no metric {metric:?}")).help(format!("one of: {}", known.join(", ")))
        );
    };
    let limit = row.in_unit(metric, limit, since)?;
    row.directed(metric, &limit)?;
    Ok(limit)
}

impl Metric {
    /// `%` is a change or a share, as the metric has it.
    fn in_unit(&self, metric: &str, limit: Limit, since: bool) -> Result<Limit> {
        let units = match (since, self.since) {
            // It says so when it is to be compared.
            (true, None) => return Ok(limit),
            (true, Some((_, units))) => units,
            (false, _) => self.units,
        };
        if limit.unit == Unit::Own {
            return Ok(limit);
        }
        if let Some(unit) = units.iter().find(|u| u.name() == limit.unit.name()) {
            return Ok(Limit { unit: *unit, ..limit });
        }
        let forms: Vec<&str> = units.iter().map(|u| u.name()).collect();
        let also = if forms.is_empty() { String::new() } else { format!(", or one in {}", forms.join(" or ")) };
        Err(Error::input(format!("{metric} has no limits in {}", limit.unit.name()))
            .help(format!("write a number of its own{also}")))
    }

    /// Errors: a limit that is kept by getting worse.
    fn directed(&self, metric: &str, limit: &Limit) -> Result<()> {
        let (better, sign) = match self.better {
            Lower => ("lower", "<="),
            Higher => ("higher", ">="),
        };
        if limit.at_most == (self.better == Lower) {
            return Ok(());
        }
        let right = Limit { at_most: !limit.at_most, ..*limit };
        Err(Error::input(format!("{metric} is better when it is {better}: \"{limit}\" is kept by getting worse"))
            .help(format!("write its limit with {sign}: \"{metric}\" = \"{right}\"")))
    }
}

/// What `kld.NAME` can be.
const QUANTILES: [&str; 6] = ["median", "p90", "p95", "p99", "p999", "max"];

/// The row, and what `NAME` stands for.
fn row(metric: &str) -> Option<(&'static Metric, Vec<&str>)> {
    METRICS.iter().find_map(|row| {
        let (parts, pattern): (Vec<&str>, Vec<&str>) = (metric.split('.').collect(), row.pattern.split('.').collect());
        // Names of cache types and tasks may have points in them: the last pattern parts are matched from the end.
        let extra = parts.len().checked_sub(pattern.len())?;
        let mut names = Vec::new();
        let at = pattern.iter().position(|p| *p == "NAME").unwrap_or(pattern.len());
        for (i, want) in pattern.iter().enumerate() {
            let given = if i > at { parts[i + extra] } else { parts[i] };
            match *want {
                "NAME" if i == at && extra > 0 => {
                    let from: usize = parts[..i].iter().map(|p| p.len() + 1).sum();
                    let len: usize = parts[i..=i + extra].iter().map(|p| p.len() + 1).sum::<usize>() - 1;
                    names.push(&metric[from..from + len]);
                }
                "NAME" => names.push(given),
                want if want == given && (extra == 0 || at < pattern.len()) => {}
                _ => return None,
            }
        }
        Some((row, names))
    })
}

/// The figure of one artifact.
pub fn own(artifact: &Value, metric: &str, limit: &Limit) -> Found {
    let (row, names) = row(metric).ok_or("there is no such metric")?;
    (row.own)(artifact, &names, limit)
}

/// The figure against an earlier report of the same text and tasks.
pub fn since(report: &Value, artifact: &Value, baseline: &Value, metric: &str, limit: &Limit) -> Found {
    let (row, names) = row(metric).ok_or("there is no such metric")?;
    let (since, _) = row.since.ok_or("this metric cannot be compared with a baseline")?;
    let earlier = counterpart(report, artifact, baseline)?;
    if !metric.starts_with("tasks.") && metric != "bytes" {
        for (key, must) in [
            ("protocol", true),
            ("context", true),
            ("corpus_hash", true),
            ("tokenizer_hash", true),
            ("activations", false),
        ] {
            let (now, then) = (&report["conditions"][key], &baseline["conditions"][key]);
            if now.is_null() && must || now != then {
                return Err(format!("the baseline's {key} is {then}, this one's {now}: they cannot be compared"));
            }
        }
    }
    if let Some(name) = names.first().filter(|_| metric.starts_with("tasks.")) {
        let hash = |report: &Value| find(&report["tasks"], "name", name)["hash"].clone();
        if hash(report).is_null() || hash(report) != hash(baseline) {
            return Err(format!(
                "the baseline asked other items of {name} ({} against {})",
                hash(baseline),
                hash(report)
            ));
        }
    }
    since(artifact, earlier, &names, limit)
}

/// The baseline's artifact of the same name; of one artifact each, that one.
fn counterpart<'a>(report: &Value, artifact: &Value, baseline: &'a Value) -> std::result::Result<&'a Value, String> {
    let count = |report: &Value| report["artifacts"].as_array().map_or(0, Vec::len);
    if count(report) == 1 && count(baseline) == 1 {
        return Ok(&baseline["artifacts"][0]);
    }
    let name = |artifact: &Value| {
        let path = artifact["path"].as_str().unwrap_or_default();
        path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_owned()
    };
    let found = baseline["artifacts"].as_array().and_then(|list| list.iter().find(|a| name(a) == name(artifact)));
    found.ok_or_else(|| format!("the baseline has no {}", name(artifact)))
}

impl Measure {
    /// `None`: not a number.
    pub fn verdict(&self, limit: &Limit) -> Option<Verdict> {
        let all = [Some(self.value), self.low, self.high];
        if !all.iter().flatten().all(|x| x.is_finite()) {
            return None;
        }
        let (Some(low), Some(high)) = (self.low, self.high) else {
            return Some(match (limit.keeps(self.value), self.exact) {
                (true, true) => Verdict::Pass,
                (false, true) => Verdict::Regression,
                (_, false) => Verdict::Inconclusive,
            });
        };
        Some(match (limit.keeps(low), limit.keeps(high)) {
            (true, true) => Verdict::Pass,
            (false, false) => Verdict::Regression,
            _ => Verdict::Inconclusive,
        })
    }

    /// What would decide it.
    pub fn more(&self) -> String {
        let note = if self.note.is_empty() { String::new() } else { format!("; {}", self.note) };
        match self.low {
            Some(_) => format!("the limit lies within the interval: evaluate more{note}"),
            None if self.note.is_empty() => "one window has no interval: evaluate more".to_owned(),
            None => self.note.clone(),
        }
    }
}

/// A number that is judged by itself.
fn point(value: &Value, note: &str) -> Found {
    let value = value.as_f64().ok_or("it was not measured")?;
    Ok(Measure { value, low: None, high: None, exact: true, note: note.to_owned() })
}

/// `{value, low, high}`
fn estimate(e: &Value) -> Found {
    let value = e["value"].as_f64().ok_or("it was not measured")?;
    Ok(Measure { value, low: e["low"].as_f64(), high: e["high"].as_f64(), exact: false, note: String::new() })
}

fn divergence(of: &Value) -> Found {
    let kld = &of["kld"];
    let value = kld["mean"].as_f64().ok_or("it was not measured: pass --reference")?;
    Ok(Measure { value, low: kld["low"].as_f64(), high: kld["high"].as_f64(), exact: false, note: String::new() })
}

/// Of the largest divergence, and in reports of earlier versions, nothing but its value is known.
fn quantile(kld: &Value, name: &str) -> Found {
    let known = kld.get("intervals").filter(|_| name != "max");
    let Some(intervals) = known else { return point(&kld[name], "no interval is known of it") };
    let value = kld[name].as_f64().ok_or("it was not measured")?;
    let [low, high] = [0, 1].map(|end| intervals[name][end].as_f64());
    Ok(Measure { value, low, high, exact: false, note: String::new() })
}

/// In percent the change against the reference, else the perplexity itself.
fn perplexity(a: &Value, limit: &Limit) -> Found {
    if limit.unit == Unit::Own {
        return estimate(&a["perplexity"]);
    }
    let ratio = estimate(&a["ln_ppl_ratio"]).map_err(|_| "it was not measured: pass --reference")?;
    Ok(Measure {
        value: ratio.value.exp_m1(),
        low: ratio.low.map(f64::exp_m1),
        high: ratio.high.map(f64::exp_m1),
        ..ratio
    })
}

fn find<'a>(list: &'a Value, key: &str, name: &str) -> &'a Value {
    let found = list.as_array().and_then(|list| list.iter().find(|x| x[key] == name));
    found.unwrap_or(&Value::Null)
}

/// `FROM-TO`
fn position<'a>(a: &'a Value, name: &str) -> &'a Value {
    let fits = |p: &&Value| format!("{}-{}", p["from"], p["to"]) == name;
    a["positions"].as_array().and_then(|list| list.iter().find(fits)).unwrap_or(&Value::Null)
}

/// In points the change against the reference, else the share itself.
fn task(a: &Value, names: &[&str], limit: &Limit) -> Found {
    let metric = &find(&a["tasks"], "name", names[0])["metrics"][names[1]];
    let (Some(right), Some(of)) = (metric["right"].as_f64(), metric["of"].as_f64()) else {
        return Err(format!("it was not measured: pass --suite {}", names[0]));
    };
    if of < 1.0 {
        return Err("no item was asked".to_owned());
    }
    match limit.unit {
        Unit::Own => {
            let (low, high) = (metric["low"].as_f64(), metric["high"].as_f64());
            Ok(Measure { value: right / of, low, high, exact: false, note: String::new() })
        }
        _ => {
            let pair = &metric["against"];
            let value = pair["difference"].as_f64().ok_or("it was not compared: pass --reference MODEL")?;
            let flips = |name: &str| pair[name].as_f64().unwrap_or(0.0);
            if right + flips("lost") - flips("gained") <= 0.0 {
                let note = "the reference has none right: no loss could be seen".to_owned();
                return Ok(Measure { value, low: None, high: None, exact: false, note });
            }
            let note = pair["detectable"]
                .as_f64()
                .map_or_else(String::new, |d| format!("this many items can show a change of {:.1} pt", d * 100.0));
            Ok(Measure { value, low: pair["low"].as_f64(), high: pair["high"].as_f64(), exact: false, note })
        }
    }
}

fn task_since(a: &Value, b: &Value, names: &[&str], limit: &Limit) -> Found {
    if limit.unit != Unit::Points {
        return Err("against a baseline the limit is in pt".to_owned());
    }
    let marks = |a: &Value| -> Option<Vec<bool>> {
        Some(find(&a["tasks"], "name", names[0])["marks"][names[1]].as_str()?.bytes().map(|b| b == b'1').collect())
    };
    let (Some(now), Some(then)) = (marks(a), marks(b)) else {
        return Err("both reports must have its marks".to_owned());
    };
    if now.len() != then.len() {
        return Err(format!("{} items against {}", now.len(), then.len()));
    }
    let p = Paired::of(&then, &now).ok_or("no item was asked")?;
    let note = format!("this many items can show a change of {:.1} pt", p.detectable * 100.0);
    Ok(Measure { value: p.difference, low: Some(p.low), high: Some(p.high), exact: false, note })
}

/// Of each window: the sum of a figure over its tokens, and their number.
fn chunks(a: &Value, key: &str) -> Option<Vec<(f64, f64)>> {
    a["chunks"].as_array()?.iter().map(|c| Some((c[key].as_f64()?, c["tokens"].as_f64()?))).collect()
}

/// Of nothing to nothing there is none.
fn growth(now: f64, then: f64) -> f64 {
    if now == then { 0.0 } else { now / then - 1.0 }
}

/// In percent the change, else the difference.
fn divergence_since(a: &Value, b: &Value, _: &[&str], limit: &Limit) -> Found {
    // What the reference says of every window tells whether it is the same.
    let said = |a: &Value| chunks(a, "nll_ref").unwrap_or_default();
    let same = |(now, then): (&(f64, f64), &(f64, f64))| (now.0 - then.0).abs() <= 1e-4 * now.0.abs();
    let (now, then) = (said(a), said(b));
    if now.len() == then.len() && !now.iter().zip(&then).all(same) {
        return Err("the baseline was measured against another reference".to_owned());
    }
    windows_since(a, b, "kld", limit, |now, then, relative| if relative { growth(now, then) } else { now - then })
}

/// In percent the change of the perplexity.
fn perplexity_since(a: &Value, b: &Value, _: &[&str], limit: &Limit) -> Found {
    windows_since(
        a,
        b,
        "nll",
        limit,
        |now, then, relative| if relative { (now - then).exp_m1() } else { now.exp() - then.exp() },
    )
}

fn windows_since(a: &Value, b: &Value, key: &str, limit: &Limit, change: fn(f64, f64, bool) -> f64) -> Found {
    let (Some(now), Some(then)) = (chunks(a, key), chunks(b, key)) else {
        return Err("both reports must have their windows".to_owned());
    };
    if now.len() != then.len() || now.iter().zip(&then).any(|(n, t)| n.1 != t.1) || now.is_empty() {
        return Err(format!("{} windows against {}: they are not the same text", now.len(), then.len()));
    }
    let relative = limit.unit != Unit::Own;
    let sums: Vec<[f64; 3]> = now.iter().zip(&then).map(|(n, t)| [n.0, t.0, n.1]).collect();
    let [value, low, high] = resampled(&sums, |[now, then, tokens]| change(now / tokens, then / tokens, relative));
    let interval = now.len() > 1;
    Ok(Measure {
        value,
        low: interval.then_some(low),
        high: interval.then_some(high),
        exact: false,
        note: String::new(),
    })
}

fn bytes_since(a: &Value, b: &Value, _: &[&str], limit: &Limit) -> Found {
    grown(&a["bytes"], &b["bytes"], limit)
}

/// In percent the growth, else the number of more.
fn grown(now: &Value, then: &Value, limit: &Limit) -> Found {
    let (Some(now), Some(then)) = (now.as_f64(), then.as_f64()) else { return Err("it is not known".to_owned()) };
    let value = if limit.unit == Unit::Own { now - then } else { growth(now, then) };
    Ok(Measure { value, low: None, high: None, exact: true, note: String::new() })
}

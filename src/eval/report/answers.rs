//! Tasks, flips and generated text: what people see of a loss.

use serde::Serialize;
use serde_json::Value;

use super::data::{self, Against, Artifact, Both, Evaluation, Flip, Share, Stress};
use super::number::{fixed, interval, percent, signed, thousands};
use super::table::Table;
use crate::error::{At, Result};

/// Characters shown before the rest is folded away.
const SHOWN: usize = 320;
/// Lines likewise.
const LINES: usize = 8;
/// Flips of one task and artifact that are open.
const OPEN: usize = 3;

/// A text, the larger part of which may be folded away.
#[derive(Serialize)]
pub struct Text {
    head: String,
    rest: Option<String>,
    more: String,
}

impl Text {
    fn new(text: &str) -> Text {
        let cut = text.char_indices().nth(SHOWN).map_or(text.len(), |(at, _)| at);
        let line = text.match_indices('\n').nth(LINES - 1).map_or(text.len(), |(at, _)| at);
        let cut = cut.min(line);
        // A few characters are not worth folding.
        if text[cut..].chars().count() < 40 {
            return Text { head: text.to_owned(), rest: None, more: String::new() };
        }
        let rest = text[cut..].trim_start_matches('\n').to_owned();
        let more = format!("{} more characters", thousands(rest.chars().count() as u64));
        Text { head: text[..cut].to_owned(), rest: Some(rest), more }
    }

    /// The end is what matters: the question behind the examples.
    fn ending(text: &str) -> Text {
        let count = text.chars().count();
        if count < SHOWN + 40 {
            return Text { head: text.to_owned(), rest: None, more: String::new() };
        }
        let cut = text.char_indices().nth(count - SHOWN).map_or(0, |(at, _)| at);
        let more = format!("{} characters before", thousands((count - SHOWN) as u64));
        Text { head: text[cut..].to_owned(), rest: Some(text[..cut].to_owned()), more }
    }

    fn of(value: &Value) -> Text {
        match value {
            Value::Null => Text::new(""),
            Value::String(text) => Text::new(text),
            Value::Array(items) => {
                let one = |v: &Value| v.as_str().map_or_else(|| v.to_string(), str::to_owned);
                Text::new(&items.iter().map(one).collect::<Vec<_>>().join(" | "))
            }
            other => Text::new(&other.to_string()),
        }
    }
}

#[derive(Serialize)]
pub struct Flips {
    task: String,
    artifact: String,
    lost: usize,
    gained: usize,
    open: Vec<Item>,
    folded: Vec<Item>,
}

#[derive(Serialize)]
struct Item {
    id: String,
    lost: bool,
    prompt: Text,
    expected: Text,
    reference: Text,
    artifact: Text,
}

impl Item {
    fn new(flip: &Flip) -> Item {
        let id =
            flip.id.as_ref().map_or_else(String::new, |id| id.as_str().map_or_else(|| id.to_string(), str::to_owned));
        Item {
            id,
            lost: flip.lost,
            prompt: Text::ending(&flip.prompt),
            expected: Text::of(&flip.expected),
            reference: Text::of(&flip.reference),
            artifact: Text::of(&flip.artifact),
        }
    }
}

/// Lost answers first.
pub fn flips(artifacts: &[(&Artifact, String)]) -> Vec<Flips> {
    let all = artifacts.iter().flat_map(|(a, name)| a.tasks.iter().map(move |t| (t, name)));
    let one = |(task, name): (&data::TaskResult, &String)| {
        let (lost, gained): (Vec<&Flip>, Vec<&Flip>) = task.flips.iter().partition(|f| f.lost);
        let mut items: Vec<Item> = lost.iter().chain(&gained).map(|f| Item::new(f)).collect();
        let folded = items.split_off(items.len().min(OPEN));
        (!task.flips.is_empty()).then(|| Flips {
            task: task.name.clone(),
            artifact: name.clone(),
            lost: lost.len(),
            gained: gained.len(),
            open: items,
            folded,
        })
    };
    all.filter_map(one).collect()
}

/// One comparison of an artifact with the reference in a metric of a task.
struct Line {
    task: String,
    metric: String,
    model: String,
    share: Share,
}

/// Errors: a metric that has another shape.
fn lines(evaluation: &Evaluation, artifacts: &[(&Artifact, String)]) -> Result<Vec<Line>> {
    let mut out = Vec::new();
    let mut names: Vec<&str> = evaluation.tasks.iter().map(|t| t.name.as_str()).collect();
    for (artifact, _) in artifacts {
        names.extend(artifact.tasks.iter().map(|t| t.name.as_str()));
    }
    let mut seen = std::collections::HashSet::new();
    for name in names.into_iter().filter(|name| seen.insert(*name)) {
        let mut found: Vec<(String, String, Share)> = Vec::new();
        let mut add = |model: &str, metrics: &serde_json::Map<String, Value>| {
            for (metric, value) in metrics.iter().filter(|(_, v)| !v.is_null()) {
                let share = data::parse(value).at(|| format!("metric {metric} of task {name} of {model}"))?;
                found.push((metric.clone(), model.to_owned(), share));
            }
            Ok::<_, crate::error::Error>(())
        };
        for task in evaluation.tasks.iter().filter(|t| t.name == name) {
            task.reference.iter().try_for_each(|metrics| add("reference", metrics))?;
        }
        for (artifact, label) in artifacts {
            artifact.tasks.iter().filter(|t| t.name == name).try_for_each(|t| add(label, &t.metrics))?;
        }
        let mut metrics: Vec<&String> = Vec::new();
        for (metric, ..) in &found {
            if !metrics.contains(&metric) {
                metrics.push(metric);
            }
        }
        for metric in metrics {
            let own = found.iter().filter(|(m, ..)| m == metric);
            out.extend(own.map(|(_, model, share)| Line {
                task: name.to_owned(),
                metric: metric.clone(),
                model: model.clone(),
                share: share.clone(),
            }));
        }
    }
    Ok(out)
}

fn lost(against: &Against) -> bool {
    against.holm.or(against.p).is_some_and(|p| p < 0.05) && against.difference < 0.0
}

/// None: no tasks.
pub fn tasks(evaluation: &Evaluation, artifacts: &[(&Artifact, String)]) -> Result<Option<Table>> {
    let lines = lines(evaluation, artifacts)?;
    if lines.is_empty() {
        return Ok(None);
    }
    let names = lines.iter().map(|l| l.model.clone()).collect();
    let caption = "Accuracy of tasks, and the paired comparison of each file with the reference on the same items.";
    let mut table = Table::new("tasks", caption, "model", names);
    for (i, line) in lines.iter().enumerate() {
        if i == 0 || (&lines[i - 1].task, &lines[i - 1].metric) != (&line.task, &line.metric) {
            let about = evaluation.tasks.iter().find(|t| t.name == line.task);
            let about = about.map_or_else(String::new, |t| {
                let parts =
                    [t.about.clone(), t.kind.clone(), t.items.map_or_else(String::new, |n| format!("{n} items"))];
                parts.into_iter().filter(|p| !p.is_empty()).map(|p| format!(" · {p}")).collect()
            });
            table.block(i, format!("{} · {}{about}", line.task, line.metric));
        }
    }
    let every = |show: &dyn Fn(&Share) -> String| lines.iter().map(|l| show(&l.share)).collect::<Vec<_>>();
    let against = |show: &dyn Fn(&Against) -> String| every(&|s| s.against.as_ref().map_or_else(String::new, show));
    let points = |x: f64| signed(x * 100.0, 1);
    table.numbers("right", None, every(&|s| format!("{}/{}", s.right, s.of)));
    table.numbers(
        "accuracy",
        Some("accuracy"),
        every(&|s| if s.of > 0.0 { percent(s.right / s.of, 1) } else { String::new() }),
    );
    table.numbers("95 %", Some("interval"), every(&|s| interval(s.low, s.high, |x| fixed(x * 100.0, 1))));
    table.numbers("difference (pt)", Some("difference"), against(&|a| points(a.difference)));
    table.classes(
        lines
            .iter()
            .map(|l| if l.share.against.as_ref().is_some_and(lost) { "worse".to_owned() } else { String::new() }),
    );
    table.numbers("95 %", Some("interval"), against(&|a| interval(a.low, a.high, points)));
    table.numbers("lost/gained", Some("difference"), against(&|a| format!("{}/{}", a.lost, a.gained)));
    table.words("p (Holm)", Some("p"), against(&chance));
    table.numbers(
        "detectable (pt)",
        Some("detectable"),
        against(&|a| a.detectable.map_or_else(String::new, |d| fixed(d * 100.0, 1))),
    );
    table.words("verdict", Some("detectable"), against(&|a| a.verdict.clone()));
    Ok(Some(table))
}

fn chance(a: &Against) -> String {
    let p = |p: f64| if p < 0.001 { "<0.001".to_owned() } else { fixed(p, 3) };
    match (a.p, a.holm) {
        (Some(raw), Some(holm)) => format!("{} ({})", p(raw), p(holm)),
        (Some(one), None) => p(one),
        (None, Some(holm)) => format!("({})", p(holm)),
        (None, None) => String::new(),
    }
}

/// Whether tasks show losses, in a sentence.
pub fn headline(evaluation: &Evaluation, artifacts: &[(&Artifact, String)]) -> Result<Option<String>> {
    let lines = lines(evaluation, artifacts)?;
    let compared: Vec<(&Line, &Against)> = lines.iter().filter_map(|l| Some((l, l.share.against.as_ref()?))).collect();
    if compared.is_empty() {
        return Ok(None);
    }
    let mut worse: Vec<&(&Line, &Against)> = compared.iter().filter(|(_, a)| lost(a)).collect();
    worse.sort_by(|a, b| a.1.difference.total_cmp(&b.1.difference));
    let n = compared.len();
    let comparisons = if n == 1 { "task comparison".to_owned() } else { format!("{n} task comparisons") };
    Ok(Some(match worse.first() {
        Some((line, against)) => format!(
            "{} of {comparisons} {} a loss beyond chance; the largest: {} on {}, {} points.",
            worse.len(),
            if worse.len() == 1 { "shows" } else { "show" },
            line.model,
            line.task,
            signed(against.difference * 100.0, 1)
        ),
        None => {
            let seen = compared
                .iter()
                .filter_map(|(_, a)| a.detectable)
                .fold(None, |most: Option<f64>, d| Some(most.map_or(d, |m| m.max(d))));
            let seen = seen.map_or_else(String::new, |d| {
                format!("; losses of up to {} points could have gone unseen", fixed(d * 100.0, 1))
            });
            format!("No loss beyond chance in {comparisons}{seen}.")
        }
    }))
}

/// None: nothing was generated.
pub fn stress(rows: &[Stress], name: &dyn Fn(&str) -> String) -> Option<Table> {
    if rows.is_empty() {
        return None;
    }
    let names = rows.iter().map(|s| name(&s.path)).collect();
    let mut table = Table::new("stress", "Greedy continuations beside the reference's.", "file", names);
    let every =
        |show: &dyn Fn(&Stress) -> Option<String>| rows.iter().map(|s| show(s).unwrap_or_default()).collect::<Vec<_>>();
    table.numbers("prompts", None, every(&|s| s.prompts.map(thousands)));
    let quartiles = |s: &Stress| {
        let [low, median, high] = s.first_divergence?.map(|token| fixed(token, 0));
        Some(format!("{median} ({low} to {high})"))
    };
    let both = |b: Option<Both>| b.map(|b| format!("{} ({})", percent(b.artifact, 0), percent(b.reference, 0)));
    table.numbers("the same", Some("stress"), every(&|s| s.identical.map(|share| percent(share, 0))));
    table.numbers("first difference (token)", Some("stress"), every(&quartiles));
    table.numbers("loops (reference)", Some("stress"), every(&|s| both(s.repetition)));
    table.numbers("no end (reference)", Some("stress"), every(&|s| both(s.no_end)));
    table.numbers("length ratio", Some("stress"), every(&|s| s.length_ratio.map(|x| fixed(x, 2))));
    table.numbers("other script", Some("stress"), every(&|s| s.drift.map(|share| percent(share, 0))));
    Some(table)
}

/// Two continuations of one prompt.
#[derive(Serialize)]
pub struct Pair {
    name: String,
    prompt: Text,
    /// What both begin with.
    same: String,
    reference: Text,
    artifact: Text,
}

/// Examples of one artifact that are shown.
const EXAMPLES: usize = 4;

pub fn pairs(rows: &[Stress], name: &dyn Fn(&str) -> String) -> Vec<Pair> {
    let all = rows.iter().flat_map(|s| s.examples.iter().take(EXAMPLES).map(move |e| (name(&s.path), e)));
    let pair = |(name, e): (String, &data::Example)| {
        let equal = e.reference.chars().zip(e.artifact.chars()).take_while(|(a, b)| a == b);
        let at = equal.map(|(c, _)| c.len_utf8()).sum();
        Pair {
            name,
            prompt: Text::ending(&e.prompt),
            same: e.reference[..at].to_owned(),
            reference: Text::new(&e.reference[at..]),
            artifact: Text::new(&e.artifact[at..]),
        }
    };
    all.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_texts_fold_without_losing_a_character() {
        for text in
            ["short", &"é".repeat(400), &"line\n".repeat(30), &format!("{}\n\n\n{}", "a".repeat(400), "b".repeat(99))]
        {
            let folded = Text::new(text);
            let whole = folded.head.clone() + folded.rest.as_deref().unwrap_or("");
            assert_eq!(whole.replace('\n', ""), text.replace('\n', ""));
            let ending = Text::ending(text);
            assert_eq!(ending.rest.unwrap_or_default() + &ending.head, *text);
        }
        assert!(Text::new(&"line\n".repeat(30)).rest.is_some() && Text::new("short").rest.is_none());
    }
}

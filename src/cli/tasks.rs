//! `quant eval --suite`: tasks, put to the reference and to all artifacts, and compared item by item.

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::report::{Reporter, table};
use crate::container::Checkpoint;
use crate::device::cpu;
use crate::engine::Engine;
use crate::error::{At, Result};
use crate::eval::Candidate;
use crate::eval::paired::{Paired, holm};
use crate::eval::skills::Accuracy;
use crate::eval::task::{self, Exam, Outcome, Overlong, Subject, Task, Wishes, Words};

#[derive(Args)]
pub struct TaskArgs {
    /// A task that models are asked, besides the text: one of `quant list tasks`, a task file (.toml), rows of data whose fields
    /// tell the task (.jsonl, .json, .parquet, also .gz), or NAME=ROWS
    #[arg(long, value_name = "TASK")]
    suite: Vec<String>,
    /// At most so many items of each task, spread over its rows
    #[arg(long, value_name = "N", requires = "suite", value_parser = clap::value_parser!(u32).range(1..))]
    items: Option<u32>,
    /// What becomes of items that are longer than the model's context
    #[arg(long, value_name = "HOW", value_enum, default_value = "error")]
    overlong: How,
    /// Run the programs that models write, where a task asks for them: without network, 10 s and 1 GiB each
    #[arg(long)]
    allow_exec: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum How {
    Error,
    Skip,
    LeftTruncate,
}

/// Of one model, task by task.
type Answers = Vec<Vec<Outcome>>;

/// Tasks, and how every model did.
pub struct Results<'a> {
    exams: Vec<Exam<'a>>,
    reference: Option<Answers>,
    artifacts: Vec<(String, Answers)>,
}

impl TaskArgs {
    pub fn wanted(&self) -> bool {
        !self.suite.is_empty()
    }

    /// Errors: as [`task::load`]; all before any model is run.
    pub fn load(&self) -> Result<Vec<Task>> {
        let wishes = Wishes { items: self.items.map(|n| n as usize), allow_exec: self.allow_exec };
        self.suite.iter().map(|name| task::load(name, &wishes)).collect()
    }

    /// Asks all models, which have one tokenizer; artifacts `as_served`, or by their weights alone.
    pub fn ask<'t>(
        &self,
        tasks: &'t [Task],
        reference: Option<&dyn Checkpoint>,
        artifacts: &[(&str, &dyn Checkpoint)],
        as_served: bool,
        threads: usize,
        reporter: &Reporter,
    ) -> Result<Results<'t>> {
        let overlong = match self.overlong {
            How::Error => Overlong::Error,
            How::Skip => Overlong::Skip,
            How::LeftTruncate => Overlong::LeftTruncate,
        };
        let first = reference.map(|r| ("the reference", r, false));
        let all: Vec<_> = first.into_iter().chain(artifacts.iter().map(|(name, a)| (*name, *a, as_served))).collect();
        let words = Words::of(all[0].1)?;
        let exams = tasks.iter().map(|t| Exam::new(t, &words, overlong)).collect::<Result<Vec<_>>>()?;
        let positions = exams.iter().map(|e| e.positions).max().unwrap_or(0);
        let bar = reporter.tokens("tasks", exams.iter().map(|e| e.tokens).sum::<u64>() * all.len() as u64);
        let answers = |(name, checkpoint, served): &(&str, &dyn Checkpoint, bool)| {
            let engine = Engine::new(*checkpoint, positions).at(|| (*name).to_owned())?;
            let engine = if *served { engine.as_served() } else { engine };
            let candidate = Candidate { name: (*name).to_owned(), engine };
            let subject = Subject { candidate: &candidate, words: &words };
            let ask = |exam: &Exam<'_>| exam.ask(&subject, &|n| bar.advance(n)).at(|| exam.task.name.clone());
            Ok((candidate.name.clone(), exams.iter().map(ask).collect::<Result<Answers>>()?))
        };
        let mut found = cpu::pool(threads)?.install(|| all.iter().map(answers).collect::<Result<Vec<_>>>())?;
        bar.finish();
        let reference = reference.map(|_| found.remove(0).1);
        Ok(Results { exams, reference, artifacts: found })
    }
}

/// The marks of one metric, in the order of the items.
fn marks(outcomes: &[Outcome], metric: usize) -> Vec<bool> {
    outcomes.iter().map(|o| o.marks.get(metric).copied().unwrap_or(false)).collect()
}

/// Examples of changed answers that are kept for people.
const FLIPS: usize = 12;

impl Results<'_> {
    /// Each metric of each task: names and places.
    fn metrics(&self) -> Vec<(usize, usize)> {
        let places = |(t, exam): (usize, &Exam<'_>)| (0..exam.task.kind.metrics.len()).map(move |m| (t, m));
        self.exams.iter().enumerate().flat_map(places).collect()
    }

    /// An artifact against the reference, metric by metric.
    fn paired(&self, answers: &Answers) -> Vec<Option<Paired>> {
        let Some(reference) = &self.reference else { return vec![None; self.metrics().len()] };
        let pair = |(t, m): &(usize, usize)| Paired::of(&marks(&reference[*t], *m), &marks(&answers[*t], *m));
        let mut all: Vec<Option<Paired>> = self.metrics().iter().map(pair).collect();
        holm(&mut all.iter_mut().flatten().collect::<Vec<_>>());
        all
    }

    /// Accuracies, then what changed.
    pub fn tables(&self) -> Vec<String> {
        let name = |(t, m): &(usize, usize)| {
            let exam = &self.exams[*t];
            match exam.task.kind.metrics.len() {
                1 => exam.task.name.clone(),
                _ => format!("{} {}", exam.task.name, exam.task.kind.metrics[*m]),
            }
        };
        let metrics = self.metrics();
        let names: Vec<String> = metrics.iter().map(name).collect();
        let header: Vec<&str> = std::iter::once("right answers").chain(names.iter().map(String::as_str)).collect();
        let share = |answers: &Answers, (t, m): &(usize, usize)| {
            let a = Accuracy::of(&marks(&answers[*t], *m));
            format!("{:.1} % ({:.1} - {:.1})", a.share() * 100.0, a.low * 100.0, a.high * 100.0)
        };
        let row = |name: &str, answers: &Answers| {
            std::iter::once(name.to_owned()).chain(metrics.iter().map(|m| share(answers, m))).collect::<Vec<_>>()
        };
        let reference = self.reference.iter().map(|a| row("reference", a));
        let rows = reference.chain(self.artifacts.iter().map(|(name, a)| row(name, a)));
        let right: Vec<usize> = (1..header.len()).collect();
        let mut out = vec![table(&header, &right, rows)];
        if self.reference.is_some() {
            let header = ["artifact", "task", "change", "95 %", "lost", "gained", "p (Holm)", "verdict"];
            let mut rows = Vec::new();
            for (path, answers) in &self.artifacts {
                for (name, paired) in names.iter().zip(self.paired(answers)) {
                    let Some(p) = paired else { continue };
                    rows.push(vec![
                        path.clone(),
                        name.clone(),
                        format!("{:+.1} pt", p.difference * 100.0),
                        format!("{:+.1} - {:+.1}", p.low * 100.0, p.high * 100.0),
                        p.lost.to_string(),
                        p.gained.to_string(),
                        format!("{:.3}", p.holm),
                        p.says(),
                    ]);
                }
            }
            out.push(table(&header, &[2, 3, 4, 5, 6], rows));
        }
        out
    }

    pub fn notes(&self) -> Vec<String> {
        let note = |exam: &Exam<'_>| {
            let left = match (exam.skipped, exam.truncated) {
                (0, 0) => String::new(),
                (0, n) => format!(", {n} of them cut to the context"),
                (n, _) => format!(", {n} longer than the context left out"),
            };
            format!("{}: {} items ({}){left}; {}", exam.task.name, exam.items().count(), exam.hash, exam.task.about)
        };
        self.exams.iter().map(note).collect()
    }

    /// Adds `tasks` to what `eval` says of the whole, and of every artifact.
    pub fn join(&self, value: &mut Value) {
        value["tasks"] = self.exams.iter().enumerate().map(|(t, exam)| self.about(t, exam)).collect();
        for (path, answers) in &self.artifacts {
            let tasks = self.of(answers);
            let list = value["artifacts"].as_array_mut().map(|list| list.iter_mut()).into_iter().flatten();
            for artifact in list.filter(|a| a["path"] == json!(path)) {
                artifact["tasks"] = tasks.clone();
            }
        }
    }

    fn about(&self, t: usize, exam: &Exam<'_>) -> Value {
        let of = |answers: &Answers| -> Value {
            let metrics = exam.task.kind.metrics.iter().enumerate();
            metrics
                .map(|(m, name)| ((*name).to_owned(), json!(Accuracy::of(&marks(&answers[t], m)))))
                .collect::<Map<_, _>>()
                .into()
        };
        json!({"name": exam.task.name, "about": exam.task.about, "kind": exam.task.kind.name, "check": exam.task.check,
            "items": exam.items().count(), "hash": exam.hash, "skipped": exam.skipped, "truncated": exam.truncated,
            "metrics": exam.task.kind.metrics, "reference": self.reference.as_ref().map(of)})
    }

    fn of(&self, answers: &Answers) -> Value {
        let mut paired = self.paired(answers).into_iter();
        let task = |(t, exam): (usize, &Exam<'_>)| {
            let mut metrics = Map::new();
            let mut bits = Map::new();
            for (m, name) in exam.task.kind.metrics.iter().enumerate() {
                let marks = marks(&answers[t], m);
                let mut value = json!(Accuracy::of(&marks));
                value["against"] = json!(paired.next().flatten());
                metrics.insert((*name).to_owned(), value);
                let text: String = marks.iter().map(|right| if *right { '1' } else { '0' }).collect();
                bits.insert((*name).to_owned(), text.into());
            }
            json!({"name": exam.task.name, "metrics": metrics, "marks": bits, "flips": self.flips(t, exam, answers)})
        };
        self.exams.iter().enumerate().map(task).collect()
    }

    /// Items whose first mark changed, losses first.
    fn flips(&self, t: usize, exam: &Exam<'_>, answers: &Answers) -> Vec<Value> {
        let Some(reference) = &self.reference else { return Vec::new() };
        let triples = || exam.items().zip(&reference[t]).zip(&answers[t]);
        let changed =
            |lost: bool| triples().filter(move |((_, before), now)| before.marks[0] == lost && now.marks[0] != lost);
        let value = |((item, before), now): ((&task::Item, &Outcome), &Outcome)| {
            json!({"id": item.id, "prompt": item.question.asked(), "expected": item.question.expected(),
                "reference": before.said, "artifact": now.said, "lost": before.marks[0]})
        };
        changed(true).chain(changed(false)).take(FLIPS).map(value).collect()
    }
}

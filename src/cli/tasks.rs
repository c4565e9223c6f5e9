//! `quant eval --suite`: tasks, put to the reference and to all artifacts, and compared item by item.

use std::borrow::Cow;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use serde_json::{Map, Value, json};

use super::model;
use super::report::{Reporter, table};
use crate::container::Checkpoint;
use crate::device::cpu;
use crate::engine::Engine;
use crate::error::{At, Error, Result};
use crate::eval::Candidate;
use crate::eval::gate::{Budgets, Early};
use crate::eval::paired::{Paired, holm};
use crate::eval::skills::Accuracy;
use crate::eval::task::{self, Exam, File, Found, Outcome, Overlong, Question, Subject, Task, Wishes, Words};

#[derive(Args)]
pub struct TaskArgs {
    /// A task that models are asked, besides the text: one of `quant list tasks`, a task file (.toml), rows of data whose fields
    /// tell the task (.jsonl, .json, .parquet, also .gz), or NAME=ROWS. Rows can be on the hub: hf:org/name[/FILE][@revision], or
    /// `hf` for a bundled task's usual ones
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
    /// Ask items in random order and stop as soon as it is known whether an artifact loses more than so many points of right answers,
    /// or whether it keeps the gate's budgets on changes of tasks, with 95 % confidence however often that is looked at
    #[arg(long, value_name = "POINTS", requires = "suite", requires = "reference", num_args = 0..=1, require_equals = true)]
    until_decided: Option<Option<f64>>,
    /// Also write what every model made of every item, a line of JSON each: prompt, what is right, what it said, log-likelihoods or
    /// tokens, marks
    #[arg(long, value_name = "FILE.jsonl", requires = "suite")]
    pub answers: Option<PathBuf>,
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
    /// Items of each that there were, where asking could stop before.
    planned: Option<Vec<usize>>,
    reference: Option<Answers>,
    artifacts: Vec<(String, Answers)>,
}

impl TaskArgs {
    pub fn wanted(&self) -> bool {
        !self.suite.is_empty()
    }

    /// Errors: as [`task::load`], and those of the hub; all before any model is run.
    pub fn load(&self, reporter: &Reporter) -> Result<Vec<Task>> {
        let wishes = Wishes { items: self.items.map(|n| n as usize), allow_exec: self.allow_exec };
        let load = |argument: &String| task::load(&local(argument, reporter)?, &wishes);
        let tasks = self.suite.iter().map(load).collect::<Result<Vec<Task>>>()?;
        if let Some(n) = (1..tasks.len()).find(|n| tasks[..*n].iter().any(|t| t.name == tasks[*n].name)) {
            return Err(Error::request(format!("two tasks are called {:?}", tasks[n].name))
                .help("give one of them another file name, or a task file of its own"));
        }
        Ok(tasks)
    }

    /// Asks all models, which have one tokenizer; artifacts `as_served`, or by their weights alone.
    #[expect(clippy::too_many_arguments)]
    pub fn ask<'t, 'c>(
        &self,
        tasks: &'t [Task],
        reference: Option<&'c dyn Checkpoint>,
        artifacts: &[(&str, &'c dyn Checkpoint)],
        as_served: bool,
        early: Option<&Early>,
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
        let mut exams = tasks.iter().map(|t| Exam::new(t, &words, overlong)).collect::<Result<Vec<_>>>()?;
        let planned = early.map(|_| exams.iter().map(Exam::len).collect::<Vec<_>>());
        let positions = exams.iter().map(|e| e.positions).max().unwrap_or(0);
        let candidate = |(name, checkpoint, served): &(&str, &'c dyn Checkpoint, bool)| {
            let engine = Engine::new(*checkpoint, positions).at(|| (*name).to_owned())?;
            Ok(Candidate { name: (*name).to_owned(), engine: if *served { engine.as_served() } else { engine } })
        };
        let bar = reporter.tokens("tasks", exams.iter().map(|e| e.tokens).sum::<u64>() * all.len() as u64);
        let answers = cpu::pool(threads)?.install(|| {
            let candidates = all.iter().map(candidate).collect::<Result<Vec<_>>>()?;
            let ask = |exam: &mut Exam<'t>| answers(exam, &candidates, &words, early, &|n| bar.advance(n));
            exams.iter_mut().map(ask).collect::<Result<Vec<_>>>()
        })?;
        bar.finish();
        let mut of_models: Vec<Answers> = vec![Vec::new(); all.len()];
        for exam in answers {
            of_models.iter_mut().zip(exam).for_each(|(model, outcomes)| model.push(outcomes));
        }
        let reference = reference.map(|_| of_models.remove(0));
        let names = artifacts.iter().map(|(name, _)| (*name).to_owned());
        Ok(Results { exams, planned, reference, artifacts: names.zip(of_models).collect() })
    }

    /// When asking may stop; `None`: when there is no item left. Errors: as [`Early::new`].
    pub fn early(&self, budgets: Option<&Budgets>, tasks: &[Task]) -> Result<Option<Early>> {
        let Some(points) = self.until_decided else { return Ok(None) };
        if points.is_some_and(|p| !(0.0..100.0).contains(&p)) {
            return Err(Error::request("--until-decided is a loss in points, from 0 to less than 100"));
        }
        Early::new(points, budgets, tasks).map(Some)
    }
}

/// Items that the reference has right.
fn reference_right(reference: &Option<Answers>, task: usize, metric: usize) -> usize {
    reference.as_ref().map_or(0, |answers| marks(&answers[task], metric).iter().filter(|right| **right).count())
}

/// The same argument with the rows here, if they are on the hub.
fn local<'a>(argument: &'a str, reporter: &Reporter) -> Result<Cow<'a, str>> {
    let (name, rows) = argument.split_once('=').map_or((None, argument), |(name, rows)| (Some(name), rows));
    if rows != "hf" && !rows.starts_with("hf:") {
        return Ok(argument.into());
    }
    let usual = name.map(File::preset).transpose()?.and_then(|task| task.hub);
    let rows = match (rows, &usual) {
        ("hf", Some(usual)) => usual,
        ("hf", None) => {
            return Err(Error::request(format!("where on the hub are the rows of {argument:?}?"))
                .help("tasks that know have `=hf` in `quant list tasks`; else pass NAME=hf:org/name/FILE"));
        }
        _ => rows,
    };
    let path = model::download_rows(rows, usual.as_deref(), reporter)?;
    Ok(name.map_or_else(|| path.display().to_string(), |name| format!("{name}={}", path.display())).into())
}

/// Items between two looks at whether enough is known.
const LOOK: usize = 32;

/// Outcomes of one task: `[model][item]`. Where asking may stop `early`, the first model is the reference, items are in random
/// order, and those that were not needed are gone.
fn answers(
    exam: &mut Exam<'_>,
    candidates: &[Candidate<'_>],
    words: &Words,
    early: Option<&Early>,
    progress: &dyn Fn(u64),
) -> Result<Answers> {
    let planned = exam.len();
    if early.is_some() {
        exam.shuffle();
    }
    let mut out: Answers = vec![Vec::new(); candidates.len()];
    let step = if early.is_some() { LOOK } else { planned.max(1) };
    for from in (0..planned).step_by(step) {
        let items = from..planned.min(from + step);
        for (candidate, outcomes) in candidates.iter().zip(&mut out) {
            let subject = Subject { candidate, words };
            outcomes.extend(exam.ask(&subject, items.clone(), progress).at(|| exam.task.name.clone())?);
        }
        let decided = |early: &Early| {
            let Some((reference, artifacts)) = out.split_first() else { return true };
            let change =
                |now: &Vec<Outcome>, metric| Paired::so_far(&marks(reference, metric), &marks(now, metric), planned);
            artifacts.iter().all(|now| early.decided(exam.task, |metric| change(now, metric)))
        };
        if early.is_some_and(decided) {
            exam.truncate(items.end);
            break;
        }
    }
    Ok(out)
}

/// The marks of one metric, in the order of the items.
fn marks(outcomes: &[Outcome], metric: usize) -> Vec<bool> {
    outcomes.iter().map(|o| o.marks.get(metric).copied().unwrap_or(false)).collect()
}

/// Groups of items by the order of their first: right answers by the first metric, and items.
type Groups = Vec<(String, (usize, usize))>;

/// Groups that are shown in the terminal.
const GROUPS: usize = 60;

fn groups(exam: &Exam<'_>, outcomes: &[Outcome]) -> Groups {
    let mut out = Groups::new();
    for (item, right) in exam.items().zip(marks(outcomes, 0)) {
        let Some(group) = &item.group else { continue };
        let place = out.iter().position(|(name, _)| name == group).unwrap_or_else(|| {
            out.push((group.clone(), (0, 0)));
            out.len() - 1
        });
        let (count, of) = &mut out[place].1;
        (*count, *of) = (*count + usize::from(right), *of + 1);
    }
    out.sort_by(|a, b| natural(&a.0).cmp(&natural(&b.0)));
    out
}

/// Numbers in names stand in the order of their values.
fn natural(name: &str) -> Vec<(u64, &str)> {
    let parts = name.split_inclusive(|c: char| !c.is_ascii_digit());
    parts.map(|p| (p.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or(0), p)).collect()
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
        let pair = |(t, m): &(usize, usize)| {
            let (before, now) = (marks(&reference[*t], *m), marks(&answers[*t], *m));
            match &self.planned {
                None => Paired::of(&before, &now),
                Some(planned) => Paired::so_far(&before, &now, planned[*t]),
            }
        };
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
        out.extend((0..self.exams.len()).filter_map(|t| self.grouped(t)));
        if self.reference.is_some() {
            let header = ["artifact", "task", "change", "95 %", "lost", "gained", "p (Holm)", "verdict"];
            let mut rows = Vec::new();
            for (path, answers) in &self.artifacts {
                let right = metrics.iter().map(|(t, m)| reference_right(&self.reference, *t, *m));
                let paired = self.paired(answers).into_iter().zip(right).map(|(p, right)| Some((p?, right)));
                for (name, paired) in names.iter().zip(paired) {
                    let Some((p, right)) = paired else { continue };
                    rows.push(vec![
                        path.clone(),
                        name.clone(),
                        format!("{:+.1} pt", p.difference * 100.0),
                        format!("{:+.1} - {:+.1}", p.low * 100.0, p.high * 100.0),
                        p.lost.to_string(),
                        p.gained.to_string(),
                        format!("{:.3}", p.holm),
                        if right == 0 { "the reference has none right: nothing to lose".to_owned() } else { p.says() },
                    ]);
                }
            }
            out.push(table(&header, &[2, 3, 4, 5, 6], rows));
        }
        out
    }

    /// Right answers by group, where the task has some, but not so many that a terminal cannot show them.
    fn grouped(&self, t: usize) -> Option<String> {
        let exam = &self.exams[t];
        let reference = self.reference.iter().map(|a| ("reference", a));
        let models = reference.chain(self.artifacts.iter().map(|(path, a)| (path.as_str(), a)));
        let rows: Vec<_> = models.map(|(name, answers)| (name, groups(exam, &answers[t]))).collect();
        let names: Vec<&String> = rows.first()?.1.iter().map(|(name, _)| name).collect();
        if names.is_empty() || names.len() > GROUPS {
            return None;
        }
        // Groups are the rows: their names are long.
        let title = format!("right of {}", exam.task.name);
        let header: Vec<&str> = std::iter::once(title.as_str()).chain(rows.iter().map(|(name, _)| *name)).collect();
        let row = |(i, name): (usize, &&String)| {
            let share = |(_, groups): &(&str, Groups)| {
                let (right, of) = groups[i].1;
                format!("{right} / {of}")
            };
            std::iter::once((*name).clone()).chain(rows.iter().map(share)).collect::<Vec<_>>()
        };
        let right: Vec<usize> = (1..header.len()).collect();
        Some(table(&header, &right, names.iter().enumerate().map(row)))
    }

    pub fn notes(&self) -> Vec<String> {
        let note = |(t, exam): (usize, &Exam<'_>)| {
            let of = match self.planned.as_ref().map(|all| all[t]) {
                None => String::new(),
                Some(all) if exam.len() < all => format!(" of {all} until it was decided"),
                Some(all) => format!(" of {all}, not decided before the last"),
            };
            let left = match (exam.skipped, exam.truncated) {
                (0, 0) => String::new(),
                (0, n) => format!(", {n} of them cut to the context"),
                (n, _) => format!(", {n} longer than the context left out"),
            };
            format!("{}: {} items{of} ({}){left}; {}", exam.task.name, exam.len(), exam.hash(), exam.task.about)
        };
        self.exams.iter().enumerate().map(note).collect()
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
            "items": exam.len(), "planned": self.planned.as_ref().map(|all| all[t]), "hash": exam.hash(), "skipped": exam.skipped, "truncated": exam.truncated,
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
            let group =
                |(name, (right, of)): (String, (usize, usize))| json!({"group": name, "right": right, "of": of});
            let groups: Vec<Value> = groups(exam, &answers[t]).into_iter().map(group).collect();
            json!({"name": exam.task.name, "metrics": metrics, "marks": bits, "groups": groups,
                "flips": self.flips(t, exam, answers)})
        };
        self.exams.iter().enumerate().map(task).collect()
    }

    /// Every answer of every model, a JSON object a line.
    pub fn lines(&self) -> String {
        let reference = self.reference.iter().map(|a| ("reference", a));
        let all = reference.chain(self.artifacts.iter().map(|(path, a)| (path.as_str(), a)));
        let mut out = String::new();
        for (model, answers) in all {
            for (exam, outcomes) in self.exams.iter().zip(answers) {
                for (item, outcome) in exam.items().zip(outcomes) {
                    out.push_str(&format!("{}\n", line(model, exam, item, outcome)));
                }
            }
        }
        out
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

fn line(model: &str, exam: &Exam<'_>, item: &task::Item, outcome: &Outcome) -> Value {
    let metrics = exam.task.kind.metrics.iter().zip(&outcome.marks);
    let marks: Map<String, Value> = metrics.map(|(name, mark)| ((*name).to_owned(), json!(mark))).collect();
    let mut line = json!({"model": model, "task": exam.task.name, "id": item.id, "prompt": item.question.asked(),
        "expected": item.question.expected(), "said": outcome.said, "marks": marks, "group": item.group});
    if let Question::Choice { prompts, choices, gold } = &item.question {
        (line["choices"], line["gold"]) = (json!(choices), json!(gold));
        // Each choice has its own.
        if prompts.windows(2).any(|pair| pair[0] != pair[1]) {
            line["prompts"] = json!(prompts);
        }
    }
    match &outcome.found {
        Found::Likelihoods(sums) => line["log_likelihoods"] = json!(sums),
        Found::Tokens(tokens) => line["tokens"] = json!(tokens),
    }
    line
}

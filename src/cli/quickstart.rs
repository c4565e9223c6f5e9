//! `quant quickstart`: everything once, offline, on the model that comes with the program.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Common;
use super::model::{self, Model};
use super::quality::{self, Row, facts};
use super::report::{Reporter, table};
use crate::calibrate::calibration::Calibration;
use crate::calibrate::data::{self, Amount, Source, Tokens};
use crate::calibrate::method::{self, Method, Needs};
use crate::calibrate::run::Event;
use crate::calibrate::stats::Statistics;
use crate::container::tokenizer::leading_bos;
use crate::container::{Checkpoint, OpenOptions};
use crate::convert::{self, Plan, Request};
use crate::device::Worker;
use crate::device::cpu;
use crate::engine::Engine;
use crate::error::{At, Error, Result};
use crate::eval::probe::{self, Item, SKILLS, Skill, Split};
use crate::eval::protocol::Window;
use crate::eval::reference::{Conditions, Reference};
use crate::eval::skills::{self, Accuracy, Scored};
use crate::eval::stats::{Summary, summarize};
use crate::eval::text::Corpus;
use crate::eval::{self, Candidate, Noise};
use crate::recipe::Recipe;

#[derive(Args)]
pub struct Quickstart {
    /// Keep the model and what was made of it in this folder
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Texts of each kind that are compared with the original
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    texts: Option<u16>,
    /// Questions of each kind
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    questions: Option<u16>,
    /// About so many characters a question, of kinds that can be of any length
    #[arg(long, value_name = "CHARS")]
    length: Option<usize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Suite {
    rounded: Vec<String>,
    calibrated: Vec<String>,
    calibration: u16,
    texts: u16,
    questions: u16,
}

const SUITE: &str = include_str!("../../evals/quickstart.toml");
/// What the folder of the model is called.
const NAME: &str = "probe";

impl Quickstart {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let suite: Suite =
            toml::from_str(SUITE).map_err(|e| Error::input(e.to_string()).at("evals/quickstart.toml"))?;
        let temporary = tempfile::tempdir()?;
        let folder = self.output.as_deref().unwrap_or(temporary.path());
        let source = folder.join(NAME);
        std::fs::create_dir_all(&source).at(|| source.display().to_string())?;
        probe::model::write(&source)?;

        let open = |path: &Path| model::open(&path.to_string_lossy(), &OpenOptions::default(), reporter);
        let original = open(&source)?;
        let statistics = calibrate(&original, suite.calibration, folder, common.threads(), reporter)?;
        let (rounding, best) = (method::best(Needs::Nothing), method::best(Needs::Gram));
        let mut paths = convert(&original, &suite.rounded, rounding, None, folder, common.threads())?;
        paths.extend(convert(&original, &suite.calibrated, best, Some(&statistics), folder, common.threads())?);
        let artifacts = paths.iter().map(|p| open(p)).collect::<Result<Vec<Model>>>()?;

        let texts = items(SKILLS.iter(), Split::Test, self.texts.unwrap_or(suite.texts), None)?;
        let asking = SKILLS.iter().filter(|s| s.asks);
        let questions = items(asking, Split::Test, self.questions.unwrap_or(suite.questions), self.length)?;
        let exam = Exam::new(original.checkpoint.as_ref(), &texts, &questions)?;
        let found = cpu::pool(common.threads())?.install(|| exam.hold(&original, &artifacts, reporter))?;
        self.print(&found, &original, folder, reporter).map(|()| true)
    }

    fn print(&self, found: &Found, original: &Model, folder: &Path, reporter: &Reporter) -> Result<()> {
        let reference = facts(&original.name, original.checkpoint.as_ref());
        let scored = found.rows.first().map(|r| (r.figures.tokens, r.figures.chunks));
        if reporter.json {
            let mut value = quality::to_json(&found.rows, &found.conditions, NAME, &reference, Some(found.noise));
            value["skills"] = found.skills.iter().map(Skills::json).collect();
            return reporter.value(&value);
        }
        let right = |header: &[&str]| (1..header.len()).collect::<Vec<_>>();
        let cells = quality::cells(&found.rows, &reference);
        reporter.text(&table(quality::HEADER, &right(quality::HEADER), cells))?;
        let names = SKILLS.iter().filter(|s| s.asks).map(|s| s.name);
        let header: Vec<&str> = std::iter::once("exact answers").chain(names).collect();
        reporter.text("")?;
        reporter.text(&table(&header, &right(&header), found.skills.iter().map(Skills::cells)))?;
        reporter.text("")?;
        quality::notes(scored, &found.conditions, Some(found.noise)).iter().try_for_each(|note| reporter.text(note))?;
        match &self.output {
            Some(_) => reporter.text(&format!("the files are in {}", folder.display())),
            None => reporter.text("the files are gone again: `quant quickstart -o DIR` keeps them"),
        }
    }
}

/// Statistics of texts that are not asked about.
fn calibrate(model: &Model, items_each: u16, folder: &Path, threads: usize, reporter: &Reporter) -> Result<Statistics> {
    let checkpoint = model.checkpoint.as_ref();
    let documents = items(SKILLS.iter(), Split::Calibration, items_each, None)?.iter().map(Item::text).collect();
    let corpus = Corpus::new("quant probe".into(), documents);
    let (hash, documents) = (corpus.hash, corpus.documents);
    let source = Source { name: corpus.name, hash, weight: 1.0, documents, chat: false };
    let tokens = Tokens::of(checkpoint)?;
    let amount = Amount { rows: 256, length: 512, seed: 0, held_out: 0.1, pack: false, shard: (1, 1) };
    let draw = data::draw(&[source], &tokens, &amount)?;
    let calibration = Calibration {
        checkpoint,
        model: NAME,
        tokens: &tokens,
        amount,
        draw: &draw,
        gram: true,
        keep_tokens: false,
        memory: None,
        card: None,
        output: &folder.join("statistics.safetensors"),
    };
    let bar = reporter.tokens("calibrate", calibration.steps());
    let statistics = cpu::pool(threads)?.install(|| {
        calibration.run(&calibration.engine()?, &|event| {
            if let Event::Tokens(n) = event {
                bar.advance(n);
            }
        })
    })?;
    bar.finish();
    Ok(statistics)
}

/// Everything from one pass over the weights. What was calibrated is called so.
fn convert(
    model: &Model,
    targets: &[String],
    method: &Method,
    statistics: Option<&Statistics>,
    folder: &Path,
    threads: usize,
) -> Result<Vec<PathBuf>> {
    let imatrix = statistics.map(Statistics::imatrix);
    let request = Request {
        source: model.checkpoint.as_ref(),
        imatrix: imatrix.as_ref().map(|m| (m, "statistics.safetensors")),
        statistics,
        fold: method.folds,
        feedback: method.feedback,
        search: true,
        exact_llama: false,
        allow_requantize: false,
        split_max_bytes: None,
        worker: Worker::Cpu,
    };
    let suffix = if statistics.is_some() { "-calibrated" } else { "" };
    let plan = |target: &String| {
        let recipe = Recipe::load(target)?;
        let ending = if recipe.container == "gguf" { ".gguf" } else { "" };
        Plan::new(&request, &recipe, &folder.join(format!("{NAME}-{target}{suffix}{ending}")))
    };
    let plans = targets.iter().map(plan).collect::<Result<Vec<Plan>>>()?;
    convert::run(&request, &plans, threads, &|_| {})?;
    Ok(plans.into_iter().map(|plan| plan.path).collect())
}

/// Items that the model was not trained on, skill by skill.
fn items<'a>(
    skills: impl Iterator<Item = &'a Skill>,
    split: Split,
    count: u16,
    length: Option<usize>,
) -> Result<Vec<Item>> {
    let length = |skill: &Skill| length.filter(|_| skill.stretches);
    let items = skills.map(|skill| skill.items(split, 0, usize::from(count), length(skill)));
    Ok(items.collect::<Result<Vec<_>>>()?.concat())
}

/// What all models are asked.
struct Exam {
    texts: Vec<Window>,
    questions: Vec<Window>,
    /// The skill of each question.
    skills: Vec<&'static str>,
    conditions: Conditions,
}

struct Found {
    rows: Vec<Row<Summary>>,
    skills: Vec<Skills>,
    conditions: Conditions,
    noise: Noise,
}

impl Exam {
    fn new(original: &dyn Checkpoint, texts: &[Item], questions: &[Item]) -> Result<Exam> {
        let metadata = original.metadata()?;
        let corpus = Corpus::new("quant probe".into(), texts.iter().map(Item::text).collect());
        let texts = skills::windows(original, texts, Scored::Text)?;
        let conditions = Conditions {
            protocol: "items".into(),
            context: eval::longest(&texts),
            corpus: corpus.name,
            corpus_hash: corpus.hash,
            tokenizer_hash: eval::tokenizer_hash(&metadata)?,
            bos: leading_bos(&metadata, &original.tokenizer()?)?,
            activations: None,
        };
        let skills = questions.iter().map(|q| q.skill).collect();
        Ok(Exam { texts, questions: skills::windows(original, questions, Scored::Answer)?, skills, conditions })
    }

    /// Runs in the caller's rayon pool.
    fn hold(self, original: &Model, artifacts: &[Model], reporter: &Reporter) -> Result<Found> {
        let positions = eval::longest(&self.texts).max(eval::longest(&self.questions));
        let tokens: usize = self.texts.iter().chain(&self.questions).map(|w| w.tokens.len()).sum();
        let bar = reporter.tokens("evaluate", (tokens * (artifacts.len() + 1)) as u64);
        let progress = |n| bar.advance(n);

        let candidates = artifacts.iter().map(|m| candidate(m, positions)).collect::<Result<Vec<_>>>()?;
        let original = candidate(original, positions)?;
        let mut skills = Vec::new();
        for model in std::iter::once(&original).chain(&candidates) {
            let right = skills::right(model, &self.questions, &progress).at(|| model.name.clone())?;
            skills.push(Skills::of(&model.name, &self.skills, &right));
        }
        let noise = eval::noise(&original.engine, &self.texts)?;
        let scores = eval::run(&mut Reference::Live(Box::new(original.engine)), &candidates, &self.texts, &progress)?;
        bar.finish();
        let row = |(model, scores): (&Model, Vec<_>)| {
            let checkpoint = model.checkpoint.as_ref();
            let figures = summarize(&scores).at(|| model.name.clone())?;
            let (path, format) = (model.name.clone(), quality::format(checkpoint));
            let facts = facts(&model.name, checkpoint);
            let (chunks, positions) = Default::default();
            Ok(Row { path, format, facts, figures, chunks, positions, long: None, weights: None })
        };
        let rows = artifacts.iter().zip(scores).map(row).collect::<Result<_>>()?;
        Ok(Found { rows, skills, conditions: self.conditions, noise })
    }
}

fn candidate(model: &Model, positions: usize) -> Result<Candidate<'_>> {
    let engine = Engine::new(model.checkpoint.as_ref(), positions).at(|| model.name.clone())?;
    Ok(Candidate { name: model.name.clone(), engine })
}

/// How often one model was right, skill by skill.
struct Skills {
    model: String,
    accuracies: Vec<(&'static str, Accuracy)>,
}

impl Skills {
    fn of(model: &str, skills: &[&'static str], right: &[bool]) -> Skills {
        // Questions of one skill stand together.
        let mut rest = right;
        let accuracies = skills.chunk_by(|a, b| a == b).map(|run| {
            let (own, others) = rest.split_at(run.len());
            rest = others;
            (run[0], Accuracy::of(own))
        });
        Skills { model: model.to_owned(), accuracies: accuracies.collect() }
    }

    fn cells(&self) -> Vec<String> {
        let share = |(_, a): &(&str, Accuracy)| format!("{:.0} %", a.share() * 100.0);
        std::iter::once(self.model.clone()).chain(self.accuracies.iter().map(share)).collect()
    }

    fn json(&self) -> Value {
        let accuracies: Map<String, Value> = self.accuracies.iter().map(|(s, a)| ((*s).to_owned(), json!(a))).collect();
        json!({"model": self.model, "exact": accuracies})
    }
}

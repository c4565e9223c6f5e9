//! `quant eval`

mod caches;
mod report;

use std::path::{Path, PathBuf};

use clap::Args;

use super::device::{DeviceArgs, Place};
use super::gate::{self, GateArgs};
use super::model::Model;
use super::quality::{self, Row, facts};
use super::report::Reporter;
use super::size::positive;
use super::stress;
use super::tasks::TaskArgs;
use super::text::TextArgs;
use super::{Common, Exit, model};
use crate::codec::kv::KvPolicy;
use crate::container::output::{check_outputs, refuse_inputs};
use crate::container::{Checkpoint, OpenOptions};
use crate::convert::verify;
use crate::device::{Worker, cpu};
use crate::engine::Engine;
use crate::error::{At, Error, Result};
use crate::eval::gate::Early;
use crate::eval::long;
use crate::eval::position::by_position;
use crate::eval::protocol::Window;
use crate::eval::reference::{Cached, Conditions, Facts, Reference};
use crate::eval::stats::{self, Chunk, summarize};
use crate::eval::task::Task;
use crate::eval::{self, Candidate};
use report::{Files, Report, named, write};

#[derive(Args)]
pub struct Eval {
    /// Files to judge: GGUF files or Hugging Face folders
    #[arg(required = true, value_name = "ARTIFACT")]
    artifacts: Vec<String>,
    /// What they were made from: a model, or a file of `quant reference`. Without it only their perplexity is known
    #[arg(long, value_name = "MODEL|FILE.ref")]
    reference: Option<String>,
    #[command(flatten)]
    text: TextArgs,
    /// What is judged: the weights alone, or the model as runtimes serve it, activations rounded where its files say so
    #[arg(long, value_name = "WHICH", value_parser = ["plain", "as-served"], default_value = "plain")]
    activations: String,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    tasks: TaskArgs,
    /// Ask the tasks alone: no text is read
    #[arg(long, requires = "suite", conflicts_with = "weights")]
    no_text: bool,
    /// Also let reference and artifacts continue so many beginnings of the text, greedily: where do they part, do they end, do they
    /// fall into loops?
    #[arg(long, value_name = "N", requires = "reference", conflicts_with = "no_text", value_parser = clap::value_parser!(u32).range(1..))]
    stress: Option<u32>,
    /// Also predict every token that has more context than so many tokens from these alone: perplexity of tokens that need the long
    /// context (LongPPL), divergence with and without it
    #[arg(long, value_name = "TOKENS", requires = "reference", conflicts_with = "no_text")]
    short_context: Option<usize>,
    /// Also compare every weight with the reference's
    #[arg(long, requires = "reference")]
    weights: bool,
    /// The mean divergence up to which a context is called safe, where windows are long enough to tell by position
    #[arg(long, value_name = "KLD", default_value_t = 0.02, value_parser = positive, requires = "reference")]
    margin: f64,
    /// Compare cache types in place of files: what does each lose, by position? Against the same weights with an f32 cache; with
    /// --reference against that with one, weights and cache together
    ///
    /// TYPE or KEYS/VALUES of `quant list kv`, several separated by commas; after each what stays in f16: `+sink4` (the first
    /// positions), `+window128` (the latest), `+skip0,22-23` (whole layers). As in `f16,q8_0,q4h/q8_0+sink4+skip0,1`
    #[arg(long, value_name = "TYPES", conflicts_with_all = ["weights", "stress", "short_context", "no_text"])]
    kv: Option<String>,
    /// Also read the first window token by token, and say how far that is from reading it at once
    #[arg(long, requires = "kv")]
    check_decode: bool,
    /// Write the table as Markdown too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write what --json prints to a file too: for `quant gate`, and as a later run's baseline
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Judge the results by the budgets in this TOML file: exit code 0 passed, 3 a budget was missed, 4 not enough evidence
    #[arg(long, value_name = "FILE")]
    gate: Option<PathBuf>,
    #[command(flatten)]
    gating: GateArgs,
    /// Write a page with tables and plots too, as `quant report` does
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// What `--reference` names.
enum Source {
    File(Box<Cached>),
    Model(Model),
}

impl Source {
    fn open(argument: &str, reporter: &Reporter) -> Result<Source> {
        let path = Path::new(argument);
        match Cached::detect(path) {
            true => Ok(Source::File(Box::new(Cached::open(path)?))),
            false => model::open(argument, &OpenOptions::default(), reporter).map(Source::Model),
        }
    }

    fn prepare(&self, text: &TextArgs, reporter: &Reporter) -> Result<(Vec<Window>, Conditions, Facts)> {
        match self {
            Source::File(_) if !text.is_default() => {
                Err(Error::request("a reference file has its own text, protocol and windows")
                    .help("drop --data, --protocol, --context and --chunks, or pass the model itself"))
            }
            Source::File(cached) => Ok((cached.windows.clone(), cached.conditions.clone(), cached.facts.clone())),
            Source::Model(m) => {
                let (windows, conditions) = text.prepare(m.checkpoint.as_ref(), reporter)?;
                Ok((windows, conditions, facts(&m.name, m.checkpoint.as_ref())))
            }
        }
    }

    /// What answers for windows of so many tokens.
    fn ready<'a>(&'a self, positions: usize, worker: Worker<'a>) -> Result<Reference<'a>> {
        Ok(match self {
            Source::File(cached) => Reference::Cached(cached),
            Source::Model(m) => Reference::Live(Box::new(Engine::new(m.checkpoint.as_ref(), positions)?.on(worker)?)),
        })
    }

    fn files(&self) -> Vec<PathBuf> {
        match self {
            Source::File(cached) => vec![cached.path.clone()],
            Source::Model(m) => m.files(),
        }
    }
}

/// What is judged: path and model.
type Artifact = (String, Model);

impl Eval {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<Exit> {
        let caches = self.kv.as_deref().map(KvPolicy::list).transpose()?;
        let options = OpenOptions::default();
        let open = |a: &String| Ok((a.clone(), model::open(a, &options, reporter)?));
        let artifacts: Vec<Artifact> = self.artifacts.iter().map(open).collect::<Result<_>>()?;
        let source = self.reference.as_ref().map(|r| Source::open(r, reporter)).transpose()?;

        let tasks = self.tasks.load(reporter)?;

        let inputs = artifacts.iter().flat_map(|(_, m)| m.files()).chain(source.iter().flat_map(Source::files));
        let inputs: Vec<PathBuf> = inputs.chain(self.text.data.iter().cloned()).collect();
        let outputs: Vec<PathBuf> =
            [&self.markdown, &self.html, &self.save, &self.tasks.answers].into_iter().flatten().cloned().collect();
        refuse_inputs(&outputs, &inputs)?;
        check_outputs(&[&outputs[..], &self.gating.outputs()].concat())?;
        let gate = self.gating.ready(self.gate.as_deref())?;
        let early = self.tasks.early(gate.as_ref().map(|g| &g.budgets), &tasks)?;
        if early.is_some() && matches!(source, Some(Source::File(_))) {
            return Err(
                Error::request("a reference file cannot be asked").help("--until-decided needs the model itself")
            );
        }
        let place = self.device.open(self.needs_the_cpu())?;
        let mut report = match (&source, &caches) {
            _ if self.no_text => self.no_text(&artifacts, source.as_ref())?,
            (source, Some(caches)) => self.caches(&artifacts, source.as_ref(), caches, common, reporter)?,
            (Some(source), _) => self.paired(&artifacts, source, &place, common, reporter)?,
            (None, None) => self.alone(&artifacts, &place, common, reporter)?,
        };
        if self.tasks.wanted() {
            self.ask(&tasks, early.as_ref(), &artifacts, source.as_ref(), &mut report, common, reporter)?;
        }
        let judgement = gate.map(|gate| self.gating.judge(&report.json, &gate)).transpose()?;
        if let Some(judgement) = &judgement {
            report.json["gate"] = serde_json::json!(judgement);
        }
        let [markdown, save, html] = [&self.markdown, &self.save, &self.html].map(Option::as_deref);
        report.print(&Files { markdown, save, html }, reporter)?;
        let Some(judgement) = judgement else { return Ok(Exit::DONE) };
        if !reporter.json {
            reporter.text("")?;
            gate::print(&judgement, reporter)?;
        }
        Ok(gate::exit(&judgement))
    }

    /// The same, with what is judged.
    fn judged(&self, conditions: Conditions) -> Conditions {
        Conditions { activations: self.served().then(|| self.activations.clone()), ..conditions }
    }

    /// Activations are rounded as runtimes do.
    fn served(&self) -> bool {
        self.activations == "as-served"
    }

    /// What is asked for that no card does.
    fn needs_the_cpu(&self) -> Option<&'static str> {
        let all = [
            (self.kv.is_some(), "quantized caches (--kv)"),
            (self.tasks.wanted(), "tasks (--suite)"),
            (self.stress.is_some(), "text that models write (--stress)"),
        ];
        all.into_iter().find(|(asked, _)| *asked).map(|(_, what)| what)
    }

    fn engine<'a>(&self, checkpoint: &'a dyn Checkpoint, positions: usize) -> Result<Engine<'a>> {
        let engine = Engine::new(checkpoint, positions)?;
        Ok(if self.served() { engine.as_served() } else { engine })
    }

    fn candidates<'a>(
        &self,
        artifacts: &'a [Artifact],
        positions: usize,
        worker: Worker<'a>,
    ) -> Result<Vec<Candidate<'a>>> {
        let candidate = |(path, artifact): &'a Artifact| {
            let engine = self.engine(artifact.checkpoint.as_ref(), positions).and_then(|e| e.on(worker));
            Ok(Candidate { name: path.clone(), engine: engine.at(|| path.clone())? })
        };
        artifacts.iter().map(candidate).collect()
    }

    /// Tasks, for the reference's model and all artifacts.
    #[expect(clippy::too_many_arguments)]
    fn ask(
        &self,
        tasks: &[Task],
        early: Option<&Early>,
        artifacts: &[Artifact],
        source: Option<&Source>,
        report: &mut Report,
        common: &Common,
        reporter: &Reporter,
    ) -> Result<()> {
        let reference = match source {
            Some(Source::Model(m)) => Some(m.checkpoint.as_ref()),
            Some(Source::File(_)) => {
                let note = "a reference file cannot be asked: tasks are compared with the model itself alone";
                report.notes.push(note.to_owned());
                None
            }
            None => None,
        };
        let served = self.served();
        let artifacts = checkpoints(artifacts);
        let results = self.tasks.ask(tasks, reference, &artifacts, served, early, common.threads(), reporter)?;
        report.more.extend(results.tables());
        report.notes.extend(results.notes());
        results.join(&mut report.json);
        if let Some(path) = &self.tasks.answers {
            write(path, &results.lines())?;
        }
        Ok(())
    }

    /// Sizes alone: what tasks are added to.
    fn no_text(&self, artifacts: &[Artifact], source: Option<&Source>) -> Result<Report> {
        if let (Some(Source::Model(m)), _) | (None, Some((_, m))) = (source, artifacts.first()) {
            let hash = eval::tokenizer_hash(&m.checkpoint.metadata()?)?;
            same_tokenizers(artifacts, &hash, "the reference's")?;
        }
        let reference = match source {
            Some(Source::Model(m)) => Some(facts(&m.name, m.checkpoint.as_ref())),
            _ => None,
        };
        let path = self.reference.as_deref().unwrap_or_default();
        let sizes: Vec<_> = artifacts
            .iter()
            .map(|(path, m)| {
                (path.clone(), quality::format(m.checkpoint.as_ref()), facts(&m.name, m.checkpoint.as_ref()))
            })
            .collect();
        Ok(Report {
            header: named(quality::HEADER_SIZES),
            cells: quality::cells_sizes(&sizes),
            more: Vec::new(),
            notes: Vec::new(),
            json: quality::to_json_sizes(&sizes, reference.as_ref(), path),
        })
    }

    /// Against the reference, token by token.
    fn paired(
        &self,
        artifacts: &[Artifact],
        source: &Source,
        place: &Place,
        common: &Common,
        reporter: &Reporter,
    ) -> Result<Report> {
        if (self.weights || self.stress.is_some() || self.short_context.is_some()) && matches!(source, Source::File(_))
        {
            return Err(Error::request("a reference file has no weights to compare or to run")
                .help("drop --weights, --stress and --short-context, or pass the model itself"));
        }
        let (windows, conditions, reference_facts) = source.prepare(&self.text, reporter)?;
        let conditions = self.judged(conditions);
        same_tokenizers(artifacts, &conditions.tokenizer_hash, "the reference's")?;
        for (path, artifact) in artifacts {
            if let Some(what) = unlike(&facts(&artifact.name, artifact.checkpoint.as_ref()), &reference_facts) {
                reporter.note(&format!("warning: {path}: {what}: was it made from this reference?"));
            }
        }
        let again = self.short_context.map(|short| long::windows(&windows, short, conditions.bos)).transpose()?;
        let again: Option<Vec<Window>> = again.map(|parts| parts.concat());
        let (scores, short, noise, device) = cpu::pool(common.threads())?.install(|| {
            let positions = eval::longest(&windows);
            let ((candidates, mut reference), device) = place.choose(|worker| {
                Ok((self.candidates(artifacts, positions, worker)?, source.ready(positions, worker)?))
            })?;
            let noise = match &reference {
                Reference::Live(engine) => Some(eval::noise(engine, &windows)?),
                Reference::Cached(_) => None,
            };
            let all = tokens(&windows) + again.as_deref().map_or(0, tokens);
            let bar = reporter.tokens("evaluate", all * (candidates.len() as u64 + 1));
            let mut run = |windows: &[Window]| eval::run(&mut reference, &candidates, windows, &|n| bar.advance(n));
            let scores = run(&windows)?;
            let short = again.as_deref().map(run).transpose()?;
            bar.finish();
            Ok::<_, Error>((scores, short, noise, device))
        })?;

        let mut rows = Vec::new();
        for (i, ((path, artifact), scores)) in artifacts.iter().zip(scores).enumerate() {
            let checkpoint = artifact.checkpoint.as_ref();
            let weights = match source {
                Source::Model(m) if self.weights => {
                    Some(verify::weight_errors(checkpoint, m.checkpoint.as_ref(), common.threads(), &|_| {})?)
                }
                _ => None,
            };
            rows.push(Row {
                path: path.clone(),
                format: quality::format(checkpoint),
                facts: facts(&artifact.name, checkpoint),
                figures: summarize(&scores).at(|| path.clone())?,
                chunks: scores.iter().map(|chunk| Chunk::of(chunk)).collect(),
                positions: by_position(&windows, &scores).at(|| path.clone())?,
                long: match (self.short_context, &short) {
                    (Some(n), Some(short)) => {
                        Some(long::compare(&windows, &scores, n, &short[i].concat()).at(|| path.clone())?)
                    }
                    _ => None,
                },
                weights,
            });
        }
        rows.sort_by(|a, b| a.figures.kld.mean.total_cmp(&b.figures.kld.mean));
        let path = self.reference.as_deref().unwrap_or_default();
        let mut report = Report {
            header: named(quality::HEADER),
            cells: quality::cells(&rows, &reference_facts),
            more: [quality::by_position(&rows, self.margin), quality::long(&rows)]
                .into_iter()
                .flatten()
                .chain(quality::worst_weights(&rows))
                .collect(),
            notes: quality::notes(rows.first().map(|r| (r.figures.tokens, r.figures.chunks)), &conditions, noise),
            json: quality::to_json(&rows, &conditions, path, &reference_facts, noise),
        };
        report.ran_on(device);
        if let (Some(count), Source::Model(m)) = (self.stress, source) {
            let (reference, artifacts) = (m.checkpoint.as_ref(), checkpoints(artifacts));
            let found = stress::run(reference, &artifacts, &windows, count as usize, common.threads(), reporter)?;
            report.more.push(stress::cells(&found));
            report.notes.extend(stress::note(&found));
            report.json["stress"] = stress::to_json(&found);
        }
        Ok(report)
    }

    /// Perplexity alone, artifact by artifact.
    fn alone(&self, artifacts: &[Artifact], place: &Place, common: &Common, reporter: &Reporter) -> Result<Report> {
        let Some((_, first)) = artifacts.first() else { return Err(Error::request("there is no artifact")) };
        let (windows, conditions) = self.text.prepare(first.checkpoint.as_ref(), reporter)?;
        let conditions = self.judged(conditions);
        same_tokenizers(artifacts, &conditions.tokenizer_hash, "the first artifact's")?;
        let (mut rows, device) = cpu::pool(common.threads())?.install(|| {
            let positions = eval::longest(&windows);
            let (candidates, device) = place.choose(|worker| self.candidates(artifacts, positions, worker))?;
            let bar = reporter.tokens("evaluate", tokens(&windows) * candidates.len() as u64);
            let mut rows = Vec::new();
            for ((path, artifact), candidate) in artifacts.iter().zip(&candidates) {
                let checkpoint = artifact.checkpoint.as_ref();
                let nll = eval::alone(candidate, &windows, &|n| bar.advance(n)).at(|| path.clone())?;
                rows.push(Row {
                    path: path.clone(),
                    format: quality::format(checkpoint),
                    facts: facts(&artifact.name, checkpoint),
                    figures: stats::likelihood(&nll).at(|| path.clone())?,
                    chunks: nll.iter().map(|chunk| Chunk::alone(chunk)).collect(),
                    positions: Vec::new(),
                    long: None,
                    weights: None,
                });
            }
            bar.finish();
            Ok::<_, Error>((rows, device))
        })?;
        rows.sort_by(|a, b| a.figures.perplexity.value.total_cmp(&b.figures.perplexity.value));
        let mut report = Report {
            header: named(quality::HEADER_ALONE),
            cells: quality::cells_alone(&rows),
            more: Vec::new(),
            notes: quality::notes(rows.first().map(|r| (r.figures.tokens, r.figures.chunks)), &conditions, None),
            json: quality::to_json_alone(&rows, &conditions),
        };
        report.ran_on(device);
        Ok(report)
    }
}

fn checkpoints(artifacts: &[Artifact]) -> Vec<(&str, &dyn Checkpoint)> {
    artifacts.iter().map(|(path, m)| (path.as_str(), m.checkpoint.as_ref())).collect()
}

fn tokens(windows: &[Window]) -> u64 {
    windows.iter().map(|w| w.tokens.len() as u64).sum()
}

/// `theirs`: the hash of the tokenizer, and `whose` it is.
/// What of a model is not the reference's, though it need not be a mistake.
fn unlike(model: &Facts, reference: &Facts) -> Option<String> {
    // Padding, an output matrix of its own and pruned layers are less than that.
    const NOTABLE: f64 = 1.5;
    let ratio = model.weights as f64 / reference.weights.max(1) as f64;
    if model.arch != reference.arch {
        return Some(format!("its architecture is {}, the reference's {}", model.arch, reference.arch));
    }
    let unlike = !(1.0 / NOTABLE..NOTABLE).contains(&ratio);
    unlike.then(|| {
        format!(
            "it has {:.2} M weights, the reference {:.2} M",
            model.weights as f64 / 1e6,
            reference.weights as f64 / 1e6
        )
    })
}

fn same_tokenizers(artifacts: &[Artifact], theirs: &str, whose: &str) -> Result<()> {
    for (path, artifact) in artifacts {
        let hash = eval::tokenizer_hash(&artifact.checkpoint.metadata()?)?;
        if hash != theirs {
            let what = format!("its tokenizer ({hash}) is not {whose} ({theirs}): tokens would mean other texts");
            return Err(Error::input(what).at(path.clone()).help("compare files that were made from one model"));
        }
    }
    Ok(())
}

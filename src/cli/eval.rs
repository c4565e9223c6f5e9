//! `quant eval`

use std::path::{Path, PathBuf};

use clap::Args;

use super::model::Model;
use super::quality::{self, Row, facts};
use super::report::{Reporter, markdown, table};
use super::text::TextArgs;
use super::{Common, html, model};
use crate::container::OpenOptions;
use crate::container::output::{Output, publish, refuse_inputs};
use crate::convert::verify;
use crate::device::cpu;
use crate::engine::Engine;
use crate::error::{At, Error, Result};
use crate::eval::protocol::Window;
use crate::eval::reference::{Cached, Conditions, Facts, Reference};
use crate::eval::stats::{self, summarize};
use crate::eval::{self, Candidate};

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
    /// Also compare every weight with the reference's
    #[arg(long, requires = "reference")]
    weights: bool,
    /// Write the table as Markdown too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
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

    fn prepare(&self, text: &TextArgs) -> Result<(Vec<Window>, Conditions, Facts)> {
        match self {
            Source::File(_) if !text.is_default() => {
                Err(Error::request("a reference file has its own text, protocol and windows")
                    .help("drop --data, --protocol, --context and --chunks, or pass the model itself"))
            }
            Source::File(cached) => Ok((cached.windows.clone(), cached.conditions.clone(), cached.facts.clone())),
            Source::Model(m) => {
                let (windows, conditions) = text.prepare(m.checkpoint.as_ref())?;
                Ok((windows, conditions, facts(&m.name, m.checkpoint.as_ref())))
            }
        }
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
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let options = OpenOptions::default();
        let open = |a: &String| Ok((a.clone(), model::open(a, &options, reporter)?));
        let artifacts: Vec<Artifact> = self.artifacts.iter().map(open).collect::<Result<_>>()?;
        let source = self.reference.as_ref().map(|r| Source::open(r, reporter)).transpose()?;

        let inputs = artifacts.iter().flat_map(|(_, m)| m.files()).chain(source.iter().flat_map(Source::files));
        let inputs: Vec<PathBuf> = inputs.chain(self.text.data.iter().cloned()).collect();
        refuse_inputs(self.markdown.as_slice(), &inputs)?;
        refuse_inputs(self.html.as_slice(), &inputs)?;
        match &source {
            Some(source) => self.paired(&artifacts, source, common, reporter),
            None => self.alone(&artifacts, common, reporter),
        }
        .map(|()| true)
    }

    fn candidates<'a>(&self, artifacts: &'a [Artifact], positions: usize) -> Result<Vec<Candidate<'a>>> {
        let mut out = Vec::with_capacity(artifacts.len());
        for (path, artifact) in artifacts {
            let engine = Engine::new(artifact.checkpoint.as_ref(), positions).at(|| path.clone())?;
            let engine = if self.activations == "as-served" { engine.as_served() } else { engine };
            out.push(Candidate { name: path.clone(), engine });
        }
        Ok(out)
    }

    /// Against the reference, token by token.
    fn paired(&self, artifacts: &[Artifact], source: &Source, common: &Common, reporter: &Reporter) -> Result<()> {
        if self.weights && matches!(source, Source::File(_)) {
            return Err(Error::request("a reference file has no weights to compare")
                .help("drop --weights, or pass the model itself"));
        }
        let (windows, conditions, reference_facts) = source.prepare(&self.text)?;
        same_tokenizers(artifacts, &conditions, "the reference's")?;
        let (scores, noise) = cpu::pool(common.threads())?.install(|| {
            let positions = eval::longest(&windows);
            let candidates = self.candidates(artifacts, positions)?;
            let mut reference = match source {
                Source::File(cached) => Reference::Cached(cached),
                Source::Model(m) => Reference::Live(Box::new(Engine::new(m.checkpoint.as_ref(), positions)?)),
            };
            let noise = match &reference {
                Reference::Live(engine) => Some(eval::noise(engine, &windows)?),
                Reference::Cached(_) => None,
            };
            let bar = reporter.tokens("evaluate", tokens(&windows) * (candidates.len() as u64 + 1));
            let scores = eval::run(&mut reference, &candidates, &windows, &|n| bar.advance(n))?;
            bar.finish();
            Ok::<_, Error>((scores, noise))
        })?;

        let mut rows = Vec::new();
        for ((path, artifact), scores) in artifacts.iter().zip(scores) {
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
                weights,
            });
        }
        rows.sort_by(|a, b| a.figures.kld.mean.total_cmp(&b.figures.kld.mean));
        let path = self.reference.as_deref().unwrap_or_default();
        self.print(
            &Report {
                header: quality::HEADER,
                cells: quality::cells(&rows, &reference_facts),
                weights: quality::worst_weights(&rows),
                notes: quality::notes(rows.first().map(|r| (r.figures.tokens, r.figures.chunks)), &conditions, noise),
                json: quality::to_json(&rows, &conditions, path, &reference_facts, noise),
            },
            reporter,
        )
    }

    /// Perplexity alone, artifact by artifact.
    fn alone(&self, artifacts: &[Artifact], common: &Common, reporter: &Reporter) -> Result<()> {
        let Some((_, first)) = artifacts.first() else { return Ok(()) };
        let (windows, conditions) = self.text.prepare(first.checkpoint.as_ref())?;
        same_tokenizers(artifacts, &conditions, "the first artifact's")?;
        let mut rows = cpu::pool(common.threads())?.install(|| {
            let candidates = self.candidates(artifacts, eval::longest(&windows))?;
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
                    weights: None,
                });
            }
            bar.finish();
            Ok::<_, Error>(rows)
        })?;
        rows.sort_by(|a, b| a.figures.perplexity.value.total_cmp(&b.figures.perplexity.value));
        self.print(
            &Report {
                header: quality::HEADER_ALONE,
                cells: quality::cells_alone(&rows),
                weights: Vec::new(),
                notes: quality::notes(rows.first().map(|r| (r.figures.tokens, r.figures.chunks)), &conditions, None),
                json: quality::to_json_alone(&rows, &conditions),
            },
            reporter,
        )
    }

    fn print(&self, report: &Report<'_>, reporter: &Reporter) -> Result<()> {
        let right: Vec<usize> = (1..report.header.len()).collect();
        if let Some(path) = &self.markdown {
            let text = format!("{}\n{}\n", markdown(report.header, &right, &report.cells), report.notes.join("  \n"));
            let output = Output::create(path)?;
            output.write_at(0, text.as_bytes())?;
            publish(vec![output])?;
        }
        if let Some(path) = &self.html {
            html::page(path, &report.json)?;
        }
        if reporter.json {
            return reporter.value(&report.json);
        }
        reporter.text(&table(report.header, &right, report.cells.iter().cloned()))?;
        reporter.text("")?;
        for (title, lines) in &report.weights {
            reporter.text(&table(&[title, "format", "relative"], &[2], lines.iter().cloned()))?;
            reporter.text("")?;
        }
        report.notes.iter().try_for_each(|note| reporter.text(note))
    }
}

/// What is printed: a table, or the JSON value of the same.
struct Report<'a> {
    header: &'a [&'a str],
    cells: Vec<Vec<String>>,
    weights: Vec<(String, Vec<Vec<String>>)>,
    notes: Vec<String>,
    json: serde_json::Value,
}

fn tokens(windows: &[Window]) -> u64 {
    windows.iter().map(|w| w.tokens.len() as u64).sum()
}

/// `whose` tokenizer the conditions tell of.
fn same_tokenizers(artifacts: &[Artifact], conditions: &Conditions, whose: &str) -> Result<()> {
    for (path, artifact) in artifacts {
        let hash = eval::tokenizer_hash(&artifact.checkpoint.metadata()?)?;
        if hash != conditions.tokenizer_hash {
            let theirs = &conditions.tokenizer_hash;
            let what = format!("its tokenizer ({hash}) is not {whose} ({theirs}): tokens would mean other texts");
            return Err(Error::input(what).at(path.clone()).help("compare files that were made from one model"));
        }
    }
    Ok(())
}

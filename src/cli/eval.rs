//! `quant eval` and `quant reference`.

use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::report::{Reporter, markdown, table};
use super::size::Size;
use super::{Common, model};
use crate::container::output::{Output, publish, refuse_inputs};
use crate::container::{Checkpoint, OpenOptions};
use crate::convert::verify::{self, WeightError};
use crate::device::cpu;
use crate::engine::{Engine, chat};
use crate::error::{At, Error, Result};
use crate::eval::protocol::{PROTOCOLS, Protocol, Window};
use crate::eval::reference::{self, Cached, Conditions, Facts, Reference};
use crate::eval::stats::{Summary, summarize};
use crate::eval::text::Corpus;
use crate::eval::{self, Candidate, Noise};

#[derive(Args)]
pub struct Eval {
    /// Files to judge: GGUF files or Hugging Face folders
    #[arg(required = true, value_name = "ARTIFACT")]
    artifacts: Vec<String>,
    /// What they were made from: a model, or a file of `quant reference`
    #[arg(long, value_name = "MODEL|FILE.ref")]
    reference: String,
    #[command(flatten)]
    text: TextArgs,
    /// Also compare every weight with the reference's
    #[arg(long)]
    weights: bool,
    /// Write the table as Markdown too
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
}

#[derive(Args)]
pub struct MakeReference {
    /// The model that artifacts will be compared with
    model: String,
    /// The file to write
    #[arg(short, long, value_name = "FILE.ref")]
    output: PathBuf,
    #[command(flatten)]
    text: TextArgs,
}

#[derive(Args)]
struct TextArgs {
    /// Text to evaluate on: .jsonl, .parquet, or any plain text [default: the bundled corpus]
    #[arg(long, value_name = "FILE")]
    data: Vec<PathBuf>,
    /// Which windows of the text are run and what of them is scored
    #[arg(long, value_name = "NAME", value_parser = PROTOCOLS.iter().map(|p| p.name).collect::<Vec<_>>(), default_value = PROTOCOLS[0].name)]
    protocol: String,
    /// Tokens of a window, if not the protocol's own
    #[arg(long, value_name = "N")]
    context: Option<usize>,
    /// At most so many windows
    #[arg(long, value_name = "N")]
    chunks: Option<usize>,
}

impl TextArgs {
    fn is_default(&self) -> bool {
        self.data.is_empty() && self.context.is_none() && self.chunks.is_none() && self.protocol == PROTOCOLS[0].name
    }

    /// Windows of the text under a model's tokenizer, and what the figures will depend on.
    fn prepare(&self, checkpoint: &dyn Checkpoint) -> Result<(Vec<Window>, Conditions)> {
        let protocol = Protocol::find(&self.protocol)?;
        let context = self.context.unwrap_or(protocol.context);
        let most = checkpoint.family().and_then(|(_, spec)| spec.context).map_or(usize::MAX, |n| n as usize);
        if context > most {
            let over = context - most;
            return Err(Error::request(format!(
                "windows of {context} tokens are {over} more than the model's context of {most}"
            ))
            .help(format!("pass --context {most}")));
        }
        let metadata = checkpoint.metadata()?;
        let corpus = match self.data.is_empty() {
            true => Corpus::bundled(),
            false => {
                let tokenizer = checkpoint.tokenizer()?;
                Corpus::load(&self.data, &|row| chat::render(&metadata, &tokenizer, row))?
            }
        };
        let text = eval::tokenize(checkpoint, &protocol.text(&corpus.documents))?;
        let windows = protocol.windows(&text.tokens, text.bos, self.context, self.chunks).at(|| corpus.name.clone())?;
        let conditions = Conditions {
            protocol: protocol.name.to_owned(),
            context,
            corpus: corpus.name,
            corpus_hash: corpus.hash,
            tokenizer_hash: eval::tokenizer_hash(&metadata)?,
            bos: text.bos,
        };
        Ok((windows, conditions))
    }
}

/// A model file as tables show it.
fn facts(name: &str, checkpoint: &dyn Checkpoint) -> Facts {
    let tensors = checkpoint.tensors();
    Facts {
        name: name.to_owned(),
        arch: checkpoint.arch().to_owned(),
        bytes: tensors.iter().map(|t| t.bytes as u64).sum(),
        weights: tensors.iter().map(|t| t.len() as u64).sum(),
    }
}

impl MakeReference {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let model = model::open(&self.model, &OpenOptions::default(), reporter)?;
        let inputs: Vec<PathBuf> = files(&model).into_iter().chain(self.text.data.iter().cloned()).collect();
        refuse_inputs(std::slice::from_ref(&self.output), &inputs)?;
        let (windows, conditions) = self.text.prepare(model.checkpoint.as_ref())?;
        let facts = facts(&model.name, model.checkpoint.as_ref());
        let scored: usize = windows.iter().map(|w| w.scored.len()).sum();
        let bytes = cpu::pool(common.threads())?.install(|| {
            let engine = Engine::new(model.checkpoint.as_ref(), eval::longest(&windows))?;
            let bar = reporter.tokens("reference", windows.iter().map(|w| w.tokens.len() as u64).sum());
            let written = reference::write(&self.output, &engine, &windows, &conditions, &facts, &|n| bar.advance(n))?;
            bar.finish();
            Ok::<_, Error>(written)
        })?;
        let states = scored as u64 * model.checkpoint.family().map_or(0, |(_, s)| u64::from(s.hidden)) * 4;
        let per_token = states as f64 / scored.max(1) as f64;
        if reporter.json {
            let value = json!({"path": self.output, "bytes": bytes, "scored": scored, "bytes_per_token": per_token,
                "conditions": conditions, "reference": facts});
            return reporter.value(&value).map(|()| true);
        }
        let line = format!(
            "{}: {} for {scored} scored tokens, {per_token:.0} bytes a token and {} of output matrix",
            self.output.display(),
            Size(bytes),
            Size(bytes - states)
        );
        reporter.text(&line).map(|()| true)
    }
}

/// One artifact's results.
struct Row {
    path: String,
    format: String,
    facts: Facts,
    summary: Summary,
    weights: Option<Vec<WeightError>>,
}

/// What `--reference` names.
enum Source {
    File(Box<Cached>),
    Model(model::Model),
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
            Source::Model(m) => files(m),
        }
    }
}

fn files(model: &model::Model) -> Vec<PathBuf> {
    model.checkpoint.files().into_iter().map(|(path, _)| path).collect()
}

impl Eval {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let options = OpenOptions::default();
        let open = |a: &String| Ok((a.clone(), model::open(a, &options, reporter)?));
        let artifacts: Vec<(String, model::Model)> = self.artifacts.iter().map(open).collect::<Result<_>>()?;

        let source = Source::open(&self.reference, reporter)?;
        if self.weights && matches!(source, Source::File(_)) {
            return Err(Error::request("a reference file has no weights to compare")
                .help("drop --weights, or pass the model itself"));
        }
        let inputs = artifacts.iter().flat_map(|(_, m)| files(m)).chain(source.files());
        let inputs: Vec<PathBuf> = inputs.chain(self.text.data.iter().cloned()).collect();
        refuse_inputs(self.markdown.as_slice(), &inputs)?;
        let (windows, conditions, reference_facts) = source.prepare(&self.text)?;
        for (path, artifact) in &artifacts {
            same_tokenizer(artifact.checkpoint.as_ref(), &conditions).at(|| path.clone())?;
        }

        let (scores, noise) = cpu::pool(common.threads())?.install(|| {
            let positions = eval::longest(&windows);
            let mut candidates = Vec::with_capacity(artifacts.len());
            for (path, artifact) in &artifacts {
                let engine = Engine::new(artifact.checkpoint.as_ref(), positions).at(|| path.clone())?;
                candidates.push(Candidate { name: path.clone(), engine });
            }
            let mut reference = match &source {
                Source::File(cached) => Reference::Cached(cached),
                Source::Model(m) => Reference::Live(Box::new(Engine::new(m.checkpoint.as_ref(), positions)?)),
            };
            let noise = match &reference {
                Reference::Live(engine) => Some(eval::noise(engine, &windows)?),
                Reference::Cached(_) => None,
            };
            let models = candidates.len() as u64 + 1;
            let tokens = windows.iter().map(|w| w.tokens.len() as u64).sum::<u64>();
            let bar = reporter.tokens("evaluate", tokens * models);
            let scores = eval::run(&mut reference, &candidates, &windows, &|n| bar.advance(n))?;
            bar.finish();
            Ok::<_, Error>((scores, noise))
        })?;

        let mut rows = Vec::new();
        for ((path, artifact), scores) in artifacts.iter().zip(scores) {
            let checkpoint = artifact.checkpoint.as_ref();
            let weights = match &source {
                Source::Model(m) if self.weights => {
                    Some(verify::weight_errors(checkpoint, m.checkpoint.as_ref(), common.threads(), &|_| {})?)
                }
                _ => None,
            };
            rows.push(Row {
                path: path.clone(),
                format: format(checkpoint),
                facts: facts(&artifact.name, checkpoint),
                summary: summarize(&scores).at(|| path.clone())?,
                weights,
            });
        }
        rows.sort_by(|a, b| a.summary.kld.mean.total_cmp(&b.summary.kld.mean));
        self.print(&rows, &conditions, &reference_facts, noise, reporter).map(|()| true)
    }

    fn print(
        &self,
        rows: &[Row],
        conditions: &Conditions,
        reference: &Facts,
        noise: Option<Noise>,
        reporter: &Reporter,
    ) -> Result<()> {
        let cells = cells(rows, reference);
        let notes = notes(rows, conditions, noise);
        if let Some(path) = &self.markdown {
            let text = format!("{}\n{}\n", markdown(HEADER, RIGHT, &cells), notes.join("  \n"));
            let output = Output::create(path)?;
            output.write_at(0, text.as_bytes())?;
            publish(vec![output])?;
        }
        if reporter.json {
            return reporter.value(&to_json(rows, conditions, &self.reference, reference, noise));
        }
        reporter.text(&table(HEADER, RIGHT, cells))?;
        reporter.text("")?;
        for row in rows {
            if let Some(errors) = &row.weights {
                let mut errors: Vec<_> = errors.iter().collect();
                errors.sort_by(|a, b| b.relative.total_cmp(&a.relative));
                let lines = errors
                    .iter()
                    .take(10)
                    .map(|e| vec![e.name.clone(), e.codec.to_owned(), format!("{:.5}", e.relative)]);
                let title = format!("largest errors of {}", row.path);
                reporter.text(&table(&[&title, "format", "relative"], &[2], lines))?;
                reporter.text("")?;
            }
        }
        notes.iter().try_for_each(|note| reporter.text(note))
    }
}

const HEADER: &[&str] =
    &["model", "size", "bits/weight", "perplexity", "change", "KLD mean", "95 %", "p99", "max", "same top", "rms dp"];
const RIGHT: &[usize] = &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10];

fn bpw(facts: &Facts) -> f64 {
    facts.bytes as f64 * 8.0 / facts.weights.max(1) as f64
}

/// The baseline first, then the artifacts, closest first.
fn cells(rows: &[Row], reference: &Facts) -> Vec<Vec<String>> {
    let size = |facts: &Facts| [Size(facts.bytes).to_string(), format!("{:.2}", bpw(facts))];
    let mut out = Vec::new();
    if let Some(first) = rows.first() {
        let mut cells = vec![format!("{} (reference)", reference.name)];
        cells.extend(size(reference));
        cells.push(format!("{:.4}", first.summary.reference_perplexity));
        cells.extend(["", "", "", "", "", "", ""].map(str::to_owned));
        out.push(cells);
    }
    for row in rows {
        let s = &row.summary;
        let mut cells = vec![row.path.clone()];
        cells.extend(size(&row.facts));
        cells.extend([
            format!("{:.4}", s.perplexity.value),
            format!("{:+.2} %", s.ln_ppl_ratio.value.exp_m1() * 100.0),
            digits(s.kld.mean),
            interval(s.kld.low, s.kld.high),
            digits(s.kld.p99),
            digits(s.kld.max),
            format!("{:.2} %", s.same_top.value * 100.0),
            format!("{:.2} %", s.rms_delta_p.value * 100.0),
        ]);
        out.push(cells);
    }
    out
}

/// Three significant digits.
fn digits(x: f64) -> String {
    match x {
        0.0 => "0".to_owned(),
        x if x.abs() < 1e-3 => format!("{x:.2e}"),
        x => {
            let places = (2.0 - x.abs().log10().floor()).clamp(0.0, 6.0) as usize;
            format!("{x:.places$}")
        }
    }
}

fn interval(low: Option<f64>, high: Option<f64>) -> String {
    match (low, high) {
        (Some(low), Some(high)) => format!("{} - {}", digits(low), digits(high)),
        _ => "one window".to_owned(),
    }
}

/// What the figures mean and depend on.
fn notes(rows: &[Row], conditions: &Conditions, noise: Option<Noise>) -> Vec<String> {
    let c = conditions;
    let (tokens, chunks) = rows.first().map_or((0, 0), |r| (r.summary.tokens, r.summary.chunks));
    let bos = c.bos.map_or_else(|| "no BOS".to_owned(), |id| format!("BOS {id}"));
    let mut out = vec![format!(
        "{} with windows of {}: {tokens} tokens scored in {chunks} windows of {} ({}), tokenizer {}, {bos}",
        c.protocol,
        c.context,
        c.corpus,
        c.corpus_hash.get(..16).unwrap_or(&c.corpus_hash),
        c.tokenizer_hash
    )];
    if let Some(noise) = noise {
        out.push(format!(
            "noise floor: {} between batch shapes (largest), {} for hidden states rounded to BF16 (mean KLD)",
            digits(noise.batch_kld),
            digits(noise.bf16_kld)
        ));
    }
    out
}

fn to_json(rows: &[Row], conditions: &Conditions, path: &str, reference: &Facts, noise: Option<Noise>) -> Value {
    let artifacts: Vec<Value> = rows
        .iter()
        .map(|row| {
            let mut value =
                json!({"path": row.path, "format": row.format, "bytes": row.facts.bytes, "bpw": bpw(&row.facts)});
            if let (Value::Object(out), Ok(Value::Object(summary))) = (&mut value, serde_json::to_value(row.summary)) {
                out.extend(summary);
                out.remove("reference_perplexity");
                if let Some(weights) = &row.weights {
                    out.insert("weights".into(), json!(weights));
                }
            }
            value
        })
        .collect();
    let perplexity = rows.first().map(|r| r.summary.reference_perplexity);
    let tokens = rows.first().map(|r| r.summary.tokens);
    json!({"protocol": conditions.protocol, "tokens": tokens, "conditions": conditions, "noise": noise,
        "reference": {"path": path, "name": reference.name, "bytes": reference.bytes, "bpw": bpw(reference),
            "perplexity": perplexity},
        "artifacts": artifacts})
}

/// The format that most weights of a checkpoint are in.
fn format(checkpoint: &dyn Checkpoint) -> String {
    let mut sums = std::collections::BTreeMap::<&str, usize>::new();
    for t in checkpoint.tensors() {
        *sums.entry(t.codec.name()).or_default() += t.len();
    }
    sums.into_iter().max_by_key(|(_, n)| *n).map_or_else(String::new, |(name, _)| name.to_owned())
}

fn same_tokenizer(artifact: &dyn Checkpoint, conditions: &Conditions) -> Result<()> {
    let hash = eval::tokenizer_hash(&artifact.metadata()?)?;
    if hash != conditions.tokenizer_hash {
        return Err(Error::input(format!(
            "its tokenizer ({hash}) is not the reference's ({}): tokens would mean other texts",
            conditions.tokenizer_hash
        ))
        .help("compare it with the model that it was made from"));
    }
    Ok(())
}

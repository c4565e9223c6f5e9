//! `quant calibrate`

use std::path::PathBuf;

use clap::{Args, Subcommand};
use serde_json::json;

use super::device::DeviceArgs;
use super::report::Reporter;
use super::size::Size;
use super::{Common, model, statistics_report};
use crate::calibrate::calibration::Calibration;
use crate::calibrate::data::{self, Amount, Source, Tokens};
use crate::calibrate::run::Event;
use crate::calibrate::stats::Statistics;
use crate::calibrate::{coverage, merge, mix, overlap};
use crate::container::output::refuse_inputs;
use crate::container::{Checkpoint, OpenOptions};
use crate::device::cpu;
use crate::error::{At, Error, Result};
use crate::eval::text::Corpus;

#[derive(Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Calibrate {
    #[command(subcommand)]
    action: Option<Action>,
    /// The model, as it will be converted
    #[arg(required = true)]
    model: Option<String>,
    /// Text to run it on, and its share of the tokens [default: 1]: .jsonl, .parquet, or any plain text; on the hub
    /// hf:org/name/FILE[@revision]
    #[arg(long, value_name = "FILE[:WEIGHT]")]
    data: Vec<String>,
    /// A mix of bundled texts (see `quant list mixes`), or one of your own [default: general, if there is no --data]
    #[arg(long, value_name = "NAME|FILE.toml[:WEIGHT]")]
    mix: Vec<String>,
    /// Text that models will be judged by: warns if some of it is calibrated on [default: the bundled corpus]
    #[arg(long, value_name = "FILE")]
    eval_data: Vec<PathBuf>,
    /// The amount of text: as many tokens as so many rows of --length
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    rows: u32,
    /// The longest sequence, in tokens [default: 2048, or the model's context if that is smaller]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    length: Option<u32>,
    /// Keep the Gram matrix of every activation too, which methods with error feedback need
    #[arg(long)]
    gram: bool,
    /// Decides which text is drawn
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Part of the sequences that is kept apart to judge methods by
    #[arg(long, value_name = "SHARE", default_value_t = 0.1, value_parser = share)]
    held_out: f64,
    /// Let sequences go on across the ends of documents
    #[arg(long)]
    pack: bool,
    /// Run a part of the text only, for `calibrate merge`: 2/4 is the second of four
    #[arg(long, value_name = "K/N", default_value = "1/1", value_parser = shard)]
    shard: (usize, usize),
    /// Keep the tokens in the file too, not only their hash
    #[arg(long)]
    keep_tokens: bool,
    /// Allocate at most so much; text and weights are mapped and do not count
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    #[command(flatten)]
    device: DeviceArgs,
    /// The file to write
    #[arg(short, long, value_name = "STATS", required = true)]
    output: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Action {
    /// Add up files that were made of one model on different text
    Merge {
        #[arg(required = true, value_name = "STATS")]
        files: Vec<PathBuf>,
        /// The file to write
        #[arg(short, long, value_name = "STATS")]
        output: PathBuf,
    },
    /// Show what a file holds: text, coverage
    Show {
        #[arg(value_name = "STATS")]
        file: PathBuf,
    },
    /// Write an importance matrix for llama.cpp
    Export {
        #[arg(value_name = "STATS")]
        file: PathBuf,
        /// The file to write: GGUF, or llama.cpp's older format if its name ends in .dat
        #[arg(short, long, value_name = "FILE.gguf|FILE.dat")]
        output: PathBuf,
        /// Also of the output matrix, which llama.cpp leaves out unless asked
        #[arg(long)]
        process_output: bool,
    },
}

fn share(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if (0.0..=0.5).contains(&share) => Ok(share),
        _ => Err("it must be from 0 to 0.5".into()),
    }
}

fn shard(text: &str) -> std::result::Result<(usize, usize), String> {
    let parts = text.split_once('/').and_then(|(k, n)| Some((k.parse().ok()?, n.parse().ok()?)));
    parts.filter(|(k, n)| (1..=*n).contains(k)).ok_or_else(|| "write it as 2/4: the second of four parts".into())
}

/// `code.jsonl:0.3`; a file whose own name ends like that comes first.
fn weighted(argument: &str) -> Result<(PathBuf, f64)> {
    let whole = PathBuf::from(argument);
    let Some((path, weight)) = argument.rsplit_once(':').filter(|_| !whole.exists()) else { return Ok((whole, 1.0)) };
    match weight.parse::<f64>() {
        Ok(weight) if weight.is_finite() && weight > 0.0 => Ok((PathBuf::from(path), weight)),
        Ok(weight) => Err(Error::request(format!("a weight of {weight}")).at(path).help("weights are above 0")),
        Err(_) => Ok((whole, 1.0)),
    }
}

/// Runs of tokens that are equal by chance are fewer than this.
const NOTABLE: f64 = 0.001;

impl Calibrate {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        match &self.action {
            Some(Action::Merge { files, output }) => {
                refuse_inputs(std::slice::from_ref(output), files)?;
                let files = files.iter().map(|f| Statistics::open(f)).collect::<Result<Vec<_>>>()?;
                let merged = merge::merge(&files, output).at(|| output.display().to_string())?;
                let sites = cpu::pool(common.threads())?.install(|| coverage::of(&merged));
                statistics_report::print(&merged, &sites, output, None, reporter)
            }
            Some(Action::Export { file, output, process_output }) => {
                refuse_inputs(std::slice::from_ref(output), std::slice::from_ref(file))?;
                let statistics = Statistics::open(file)?;
                let wanted = |name: &str| name.starts_with("blk.") || *process_output;
                let imatrix = statistics.imatrix_of(wanted);
                imatrix.write(output)?;
                if reporter.json {
                    return reporter.value(&json!({"path": output, "entries": imatrix.entries_count()})).map(|()| true);
                }
                reporter.text(&format!("{}: {} entries", output.display(), imatrix.entries_count())).map(|()| true)
            }
            Some(Action::Show { file }) => {
                let statistics = Statistics::open(file)?;
                let sites = cpu::pool(common.threads())?.install(|| coverage::of(&statistics));
                statistics_report::print(&statistics, &sites, file, None, reporter)
            }
            None => self.calibrate(common, reporter),
        }
    }

    fn calibrate(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let (Some(model), Some(output)) = (&self.model, &self.output) else { return Ok(false) };
        let data = self.data.iter().map(|d| weighted(d)).collect::<Result<Vec<_>>>()?;
        let model = model::open(model, &OpenOptions::default(), reporter)?;
        let texts = data.iter().map(|(path, _)| path).chain(&self.eval_data).cloned();
        refuse_inputs(std::slice::from_ref(output), &model.files().into_iter().chain(texts).collect::<Vec<_>>())?;
        let checkpoint = model.checkpoint.as_ref();
        let amount = self.amount(checkpoint)?;
        let tokens = Tokens::of(checkpoint)?;
        let draw = data::draw(&self.sources(&data, &tokens, reporter)?, &tokens, &amount)?;
        let overlap = overlap::share(&draw.sequences, &self.judged(&tokens, reporter)?);
        if overlap >= NOTABLE {
            let share = overlap * 100.0;
            reporter.note(&format!(
                "warning: {share:.2} % of the evaluation text occurs in the calibration text too; figures on it will flatter"
            ));
        }
        let calibration = Calibration {
            checkpoint,
            model: &model.name,
            tokens: &tokens,
            amount,
            draw: &draw,
            gram: self.gram,
            keep_tokens: self.keep_tokens,
            memory: self.memory.map(|m| m.0),
            card: None,
            output,
        };
        let place = self.device.open(None)?;
        let bar = reporter.tokens("calibrate", calibration.steps());
        let (statistics, sites) = cpu::pool(common.threads())?.install(|| {
            let (engine, device) = place.choose(|worker| calibration.engine()?.on(worker))?;
            let calibration = Calibration { card: (device != "cpu").then_some(device), ..calibration };
            let statistics = calibration.run(&engine, &|event| match event {
                Event::Tokens(n) => bar.advance(n),
                Event::Resumed { layers } => {
                    reporter.note(&format!("going on after layer {} of a run that was stopped", layers - 1));
                }
            })?;
            bar.finish();
            let sites = coverage::of(&statistics);
            Ok::<_, Error>((statistics, sites))
        })?;
        statistics_report::print(&statistics, &sites, output, Some(overlap), reporter)
    }

    fn sources(&self, data: &[(PathBuf, f64)], tokens: &Tokens, reporter: &Reporter) -> Result<Vec<Source>> {
        let mut sources = Vec::new();
        for (path, weight) in data {
            for here in model::texts(std::slice::from_ref(path), reporter)? {
                sources.push(Source::file(&here, *weight, tokens)?);
            }
        }
        let default = [mix::DEFAULT.to_owned()];
        let mixes = if data.is_empty() && self.mix.is_empty() { &default[..] } else { &self.mix };
        for argument in mixes {
            let (name, weight) = weighted(argument)?;
            sources.extend(mix::load(&name.to_string_lossy(), weight, tokens)?);
        }
        Ok(sources)
    }

    /// The text that models will be judged by, document by document.
    fn judged(&self, tokens: &Tokens, reporter: &Reporter) -> Result<Vec<Vec<u32>>> {
        let corpus = match self.eval_data.is_empty() {
            true => Corpus::bundled(),
            false => Corpus::load(&model::texts(&self.eval_data, reporter)?, &|row| tokens.render(row))?,
        };
        corpus.documents.iter().map(|d| tokens.plain(d)).collect()
    }

    fn amount(&self, checkpoint: &dyn Checkpoint) -> Result<Amount> {
        let most = checkpoint.family().and_then(|(_, spec)| spec.context).unwrap_or(u32::MAX);
        let length = self.length.unwrap_or(2048.min(most));
        if length > most {
            let over = length - most;
            return Err(Error::request(format!(
                "rows of {length} tokens are {over} more than the model's context of {most}"
            ))
            .help(format!("pass --length {most}")));
        }
        let Calibrate { rows, seed, held_out, pack, shard, .. } = *self;
        Ok(Amount { rows: rows as usize, length: length as usize, seed, held_out, pack, shard })
    }
}

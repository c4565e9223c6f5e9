//! `quant convert --target-bpw`, `--target-size`, `--max-kld`: measure, choose, convert, measure again.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::Deserialize;
use serde_json::{Value, json};

use super::outputs;
use super::quality::digits;
use super::report::Reporter;
use super::size::{Size, positive};
use super::text::TextArgs;
use crate::allocate::{self, Choices, Goal, Job, Measurement, Mixed, exllamav2};
use crate::calibrate::fingerprint;
use crate::container::output::refuse_inputs;
use crate::container::{self, Checkpoint, Tensor};
use crate::convert::{self, Output, Plan, Request};
use crate::device::cpu;
use crate::error::{At, Error, Result};
use crate::eval;
use crate::eval::protocol::Window;
use crate::recipe::{self, Recipe};

#[derive(Args)]
pub struct GoalArgs {
    /// Choose the format of each weight by measurement, for so many bits a weight; with a recipe that has a ladder (gguf, packed, exl2)
    #[arg(long, value_name = "BITS", group = "goal", value_parser = positive)]
    target_bpw: Option<f64>,
    /// The same for files of this size
    #[arg(long, value_name = "SIZE", group = "goal")]
    target_size: Option<Size>,
    /// The same for the smallest file whose mean KL divergence stays below
    #[arg(long, value_name = "KLD", group = "goal", value_parser = positive)]
    max_kld: Option<f64>,
    /// Where the measurement is kept: used if it is there, be it exllamav2's own, else made and written (of EXL2 so that exllamav2 reads it)
    #[arg(long, value_name = "FILE.json", requires = "goal")]
    measurement: Option<PathBuf>,
    #[command(flatten)]
    pub text: TextArgs,
}

impl GoalArgs {
    /// Errors: a text, and nothing to measure on it; a goal of a dry run.
    pub fn check(&self, dry_run: bool) -> Result<()> {
        match self.goal() {
            None if !self.text.is_default() => Err(Error::request(
                "weights are measured on this text only with a goal",
            )
            .help("add --target-bpw, --target-size or --max-kld; text to calibrate on goes to `quant calibrate`")),
            Some(_) if dry_run => Err(Error::request("which formats a measurement chooses is known only after it")
                .help("convert; the recipe that it leaves beside the file can be planned")),
            _ => Ok(()),
        }
    }

    pub fn goal(&self) -> Option<Goal> {
        let size = self.target_size.map(|s| Goal::Size(s.0));
        self.target_bpw.map(Goal::Bits).or(size).or(self.max_kld.map(Goal::Divergence))
    }
}

/// What is to be made.
pub struct Allocation<'a> {
    pub args: &'a GoalArgs,
    pub goal: Goal,
    /// Bytes that weights have at the least, by name.
    pub least: HashMap<String, u64>,
    pub request: &'a Request<'a>,
    /// As it was asked for.
    pub target: &'a str,
    pub recipe: &'a Recipe,
    pub path: &'a Path,
    pub threads: usize,
    pub reporter: &'a Reporter,
}

/// What was made, and how it came out.
pub struct Allocated {
    pub plan: Plan,
    pub output: Output,
    pub recipe: PathBuf,
    pub predicted: Option<f64>,
    /// Of the mix, and of what was kept.
    pub mix: f64,
    pub measured: f64,
    /// A preset of at most this size, and its divergence.
    pub preset: Option<(String, f64)>,
    /// The preset lost less, and was kept.
    pub rejected: bool,
    /// Of the search, not of the conversion.
    pub seconds: f64,
}

/// Windows that weights are measured on, and others that the outcome is judged by; their ratio, if there are fewer.
const MEASURED: usize = 6;
const JUDGED: usize = 18;
const AGAIN: &str = "name another file: it will be measured again";
/// A divergence that was asked for is aimed at again if the outcome misses it.
const TRIES: usize = 3;

impl Allocation<'_> {
    pub fn run(&self) -> Result<Allocated> {
        if self.recipe.offers().is_empty() {
            return Err(Error::request(format!("{} says which format each weight gets", self.recipe.name))
                .help("take a recipe with a ladder of formats: gguf, packed, exl2-4bpw"));
        }
        if self.request.imatrix.is_none() {
            return Err(Error::request("weights are measured with statistics of their inputs")
                .help("make them with `quant calibrate MODEL --gram -o STATS` and pass --stats STATS"));
        }
        let named = PathBuf::from(self.target);
        refuse_inputs(&[recipe_beside(self.path)], std::slice::from_ref(&named))?;
        let source = self.request.source;
        let narrowest = Plan::new(self.request, &self.recipe.narrowest(), self.path)?;
        self.reachable(&narrowest)?;
        let (mut windows, _) = self.args.text.prepare_at_most(source, MEASURED + JUDGED, self.reporter)?;
        if windows.len() < 2 {
            return Err(Error::request("the text fills one window: some are measured on, others judge the outcome")
                .help("give more text, or a smaller --context"));
        }
        let judged = windows.split_off((windows.len() * MEASURED / (MEASURED + JUDGED)).max(1).min(windows.len() - 1));
        let start = std::time::Instant::now();
        let mut choices = self.choices(&narrowest, &windows)?;
        choices.at_least(&self.least);
        let seconds = start.elapsed().as_secs_f64();
        let mut goal = self.goal;
        for attempt in 1.. {
            let mixed = allocate::mix(&choices, &narrowest, self.recipe, (&self.base(), &self.name()), goal)?;
            let made = self.make(&mixed, &judged, seconds)?;
            match (self.goal, goal) {
                (Goal::Divergence(limit), Goal::Divergence(aim)) if made.measured > limit && attempt < TRIES => {
                    self.reporter.note(&format!(
                        "a divergence of {} was aimed at, {} is measured: aiming lower",
                        digits(aim),
                        digits(made.measured)
                    ));
                    goal = Goal::Divergence(aim * 0.95 * limit / made.measured);
                }
                _ => return Ok(made),
            }
        }
        Err(Error::request("no attempt was made"))
    }

    /// Refuses, before anything is measured, a size that not even the narrowest formats keep.
    fn reachable(&self, narrowest: &Plan) -> Result<()> {
        let narrowed = |t: &convert::Planned| {
            let tensor = &self.request.source.tensors()[t.source];
            let bytes = self.recipe.offers().iter().filter_map(|c| c.bytes(tensor.dims()).ok()).min()?;
            Some((t.bytes as u64).saturating_sub((bytes * tensor.planes()) as u64))
        };
        let saved: u64 = narrowest.tensors.iter().filter(|t| t.choice.open).filter_map(narrowed).sum();
        let (allowed, all) = match self.goal {
            Goal::Bits(bits) => ((bits * narrowest.weights() as f64 / 8.0) as u64, narrowest.bytes()),
            Goal::Size(bytes) => (bytes, narrowest.layout.bytes()),
            Goal::Divergence(_) => return Ok(()),
        };
        let least = all.saturating_sub(saved);
        if least <= allowed {
            return Ok(());
        }
        Err(Error::request(format!("{} are too few: {} is the least", Size(allowed), Size(least)))
            .help("ask for more, or give the recipe narrower formats"))
    }

    /// The recipe that the chosen one extends: `exl2-4bpw` is exl2. A file is named so that it is found from anywhere.
    fn base(&self) -> String {
        if self.target.ends_with(".toml") {
            let file = Path::new(self.target);
            return file.canonicalize().map_or_else(|_| self.target.to_owned(), |p| p.display().to_string());
        }
        match self.target.strip_suffix("bpw").and_then(|t| t.rsplit_once('-')) {
            Some((base, bits)) if bits.parse::<f64>().is_ok() => base.to_owned(),
            _ => self.target.to_owned(),
        }
    }

    fn name(&self) -> String {
        let goal = match self.goal {
            Goal::Bits(bits) => format!("{bits}BPW"),
            Goal::Size(bytes) => Size(bytes).to_string().replace(' ', ""),
            Goal::Divergence(kld) => format!("KLD{kld}"),
        };
        format!("{}-{goal}", self.recipe.name)
    }

    /// What the file says that was named, or what is measured now.
    fn choices(&self, narrowest: &Plan, windows: &[Window]) -> Result<Choices> {
        let source = self.request.source;
        let ladder = self.recipe.offers();
        let fits = |t: &&convert::Planned| {
            let dims = source.tensors()[t.source].dims();
            t.choice.open && ladder.iter().any(|c| c.layout(dims).is_ok())
        };
        let open: Vec<usize> = narrowest.tensors.iter().filter(fits).map(|t| t.source).collect();
        let model_hash = fingerprint::of(source)?;
        if let Some(path) = self.args.measurement.as_ref().filter(|p| p.exists()) {
            return self.kept(path, &open, &model_hash).map_err(|e| e.at(path.display().to_string()));
        }
        let bits = match self.goal {
            Goal::Bits(bits) => bits,
            Goal::Size(bytes) => bytes as f64 * 8.0 / narrowest.weights().max(1) as f64,
            Goal::Divergence(_) => 4.0,
        };
        let feedback = self.request.feedback;
        let job = Job { source, statistics: self.request.statistics, ladder, open: &open, bits, feedback, windows };
        let bar = self.reporter.steps("measure", 2 * open.len() as u64);
        let found = cpu::pool(self.threads)?.install(|| allocate::measure(&job, model_hash, &|n| bar.advance(n)))?;
        bar.finish();
        if let Some(path) = &self.args.measurement {
            let mut file = serde_json::to_value(&found).map_err(|e| Error::input(e.to_string()))?;
            if let (Value::Object(file), Some(Value::Object(theirs))) = (&mut file, exllamav2::write(&found)) {
                file.extend(theirs);
            }
            write(path, &format!("{file:#}"))?;
        }
        Ok(found.choices(&|name| allocate::together(self.recipe, name)))
    }

    /// A measurement of an earlier run's, or of exllamav2's.
    fn kept(&self, path: &Path, open: &[usize], model_hash: &str) -> Result<Choices> {
        let text = std::fs::read_to_string(path)?;
        let not_one = |e: serde_json::Error| Error::input(format!("no measurement: {e}"));
        let file: Value = serde_json::from_str(&text).map_err(not_one)?;
        let weights: Vec<&Tensor> = open.iter().map(|i| &self.request.source.tensors()[*i]).collect();
        if file.get("weights").is_none() && file.get(exllamav2::KEY).is_some() {
            return exllamav2::read(&file, &weights);
        }
        let mut found = Measurement::deserialize(file).map_err(not_one)?;
        if found.model_hash != model_hash {
            return Err(Error::input("this measurement was made for another model").help(AGAIN));
        }
        let names: Vec<&str> = weights.iter().map(|t| t.name.as_str()).collect();
        found.only(&names, self.recipe.offers()).map_err(|e| e.help(AGAIN))?;
        Ok(found.choices(&|name| allocate::together(self.recipe, name)))
    }

    /// Converts by the recipe and by the best preset of its size, and keeps what loses less.
    fn make(&self, mixed: &Mixed, judged: &[Window], seconds: f64) -> Result<Allocated> {
        let plan = Plan::new(self.request, &mixed.recipe, self.path)?;
        let other = self.path.with_file_name(format!(
            ".{}.preset{}",
            self.path.file_name().unwrap_or_default().to_string_lossy(),
            if self.recipe.container == "gguf" { ".gguf" } else { "" }
        ));
        let mut plans = vec![plan];
        let (preset_name, preset) = self.preset(&plans[0], &other)?.unzip();
        plans.extend(preset);
        let bytes = self.request.source.tensors().iter().map(|t| t.bytes as u64).sum();
        let bar = self.reporter.progress("convert", bytes);
        let mut outputs =
            convert::run(self.request, &plans, self.threads, &|event| outputs::follow(event, &bar, self.reporter))?;
        bar.finish();
        let klds = plans.iter().map(|p| self.judge(&p.path, judged)).collect::<Result<Vec<f64>>>();
        let remove =
            |path: &Path| if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
        let klds = klds.inspect_err(|_| {
            let _ = remove(&other);
        })?;
        let preset = plans.get(1).zip(klds.get(1)).map(|(p, kld)| (p.target.clone(), *kld));
        let rejected = preset.as_ref().is_some_and(|(_, kld)| *kld < klds[0]);
        let recipe = recipe_beside(self.path);
        if rejected {
            remove(self.path).at(|| self.path.display().to_string())?;
            std::fs::rename(&other, self.path).at(|| self.path.display().to_string())?;
            plans.swap_remove(0);
            outputs.swap_remove(0);
            let name = preset_name.unwrap_or_default();
            write(&recipe, &format!("# A preset that loses less than what was chosen.\nextends = \"{name}\"\n"))?;
        } else {
            if preset.is_some() {
                remove(&other).at(|| other.display().to_string())?;
            }
            write(&recipe, &mixed.text)?;
        }
        let mut output = outputs.swap_remove(0);
        output.paths = vec![self.path.to_owned()];
        let measured = if rejected { klds[1] } else { klds[0] };
        Ok(Allocated {
            plan: plans.swap_remove(0),
            output,
            recipe,
            predicted: mixed.predicted,
            mix: klds[0],
            measured,
            preset,
            rejected,
            seconds,
        })
    }

    /// The largest preset of the same formats within the goal.
    fn preset(&self, mix: &Plan, path: &Path) -> Result<Option<(String, Plan)>> {
        let ladder = self.recipe.offers();
        let mut best: Option<(String, Plan)> = None;
        for preset in recipe::list()?.into_iter().filter(|p| p.container == self.recipe.container && p.writable) {
            let recipe = Recipe::load(&preset.name)?;
            if !recipe.offers().is_empty() {
                continue;
            }
            let Ok(plan) = Plan::new(self.request, &recipe, path) else { continue };
            let of_ladder = |t: &convert::Planned| t.choice.keeps.is_some() || ladder.contains(&t.choice.codec);
            let within = match self.goal {
                Goal::Bits(bits) => plan.bpw() <= bits,
                Goal::Size(bytes) => plan.layout.bytes() <= bytes,
                Goal::Divergence(_) => plan.layout.bytes() <= mix.layout.bytes(),
            };
            let fits = within && plan.tensors.iter().all(of_ladder);
            if fits && best.as_ref().is_none_or(|(_, b)| b.layout.bytes() < plan.layout.bytes()) {
                best = Some((preset.name, plan));
            }
        }
        Ok(best)
    }

    fn judge(&self, path: &Path, windows: &[Window]) -> Result<f64> {
        let artifact = container::open(path)?;
        let source: &dyn Checkpoint = self.request.source;
        cpu::pool(self.threads)?.install(|| eval::divergence(source, artifact.as_ref(), windows))
    }
}

impl Allocated {
    fn json(&self) -> Value {
        json!({"recipe": self.recipe, "predicted_kld": self.predicted, "mix_kld": self.mix, "kld": self.measured,
            "preset": self.preset.as_ref().map(|(name, kld)| json!({"name": name, "kld": kld})), "rejected": self.rejected,
            "search_seconds": self.seconds})
    }

    pub fn print(&self, reporter: &Reporter) -> Result<()> {
        let (plans, outputs) = (std::slice::from_ref(&self.plan), std::slice::from_ref(&self.output));
        outputs::print(plans, outputs, Some(self.json()), reporter)?;
        if reporter.json {
            return Ok(());
        }
        let predicted = self.predicted.map(|kld| format!("{} was predicted", digits(kld)));
        match (&self.preset, self.rejected) {
            (Some((name, kld)), true) => reporter.text(&format!(
                "the mix diverges by {} ({}): {name} of this size diverges by {} and was kept",
                digits(self.mix),
                predicted.as_deref().unwrap_or("mean KLD"),
                digits(*kld)
            )),
            (preset, _) => {
                let beside = match preset {
                    Some((name, kld)) => format!("{name}, a preset of at most this size, by {}", digits(*kld)),
                    None => "there is no preset of at most this size".to_owned(),
                };
                reporter.text(&format!(
                    "diverges by {} (mean KLD{}); {beside}\nthe mix took {:.0} s to find; it is the recipe {}",
                    digits(self.measured),
                    predicted.map_or_else(String::new, |p| format!("; {p}")),
                    self.seconds,
                    self.recipe.display()
                ))
            }
        }
    }
}

/// Where the recipe of an artifact goes: that of `m.gguf` is `m.toml`, that of the folder `m-4.5` is `m-4.5.toml`.
fn recipe_beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!("{}.toml", name.strip_suffix(".gguf").unwrap_or(&name)))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let output = container::output::Output::create(path)?;
    output.write_at(0, text.as_bytes())?;
    container::output::publish(vec![output]).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recipes_have_the_names_of_their_artifacts() {
        for (artifact, recipe) in
            [("a/m.gguf", "a/m.toml"), ("a/m-4.5", "a/m-4.5.toml"), ("Qwen2.5-0.5B-packed", "Qwen2.5-0.5B-packed.toml")]
        {
            assert_eq!(recipe_beside(Path::new(artifact)), Path::new(recipe));
        }
    }
}

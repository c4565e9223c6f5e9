//! `quant convert` and `quant plan`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use super::allocate::{Allocated, Allocation, GoalArgs};
use super::inputs::InputArgs;
use super::report::{Progress, Reporter, table};
use super::size::Size;
use super::{Common, model};
use crate::container::{LeftOut, OpenOptions, hf};
use crate::convert::{self, Event, Output, Plan, Planned, Request};
use crate::device::{Device, Worker};
use crate::error::{At, Error, Result};
use crate::recipe::Recipe;

#[derive(Args)]
pub struct Convert {
    /// A Hugging Face folder, a GGUF file (its first shard, if split) or hf:org/name[@revision]
    model: String,
    /// What to make: presets (`quant list presets`) or recipe files, separated by commas; each weight is read once for all
    #[arg(long, required = true, value_delimiter = ',', value_name = "TARGET")]
    to: Vec<String>,
    /// Output file or folder, or a folder for several targets [default: NAME-TARGET.gguf or NAME-TARGET/ beside the model]
    #[arg(short, long, value_name = "FILE|DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    inputs: InputArgs,
    /// Change the recipe, e.g. --set output=q8_0 --set 'fallback.q4_k=q8_0', or the format of all tensors whose names match:
    /// --tensor-type ffn_down=q6_k (recipes/README.md has the language)
    #[arg(long, visible_alias = "tensor-type", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Quantize again what is quantized already: quality suffers
    #[arg(long)]
    allow_requantize: bool,
    /// Split the output into files of at most this size, e.g. 4GiB
    #[arg(long, value_name = "SIZE")]
    split_max_size: Option<Size>,
    /// Refuse to start if the buffers would take more than this
    #[arg(long, value_name = "SIZE")]
    memory: Option<Size>,
    /// llama.cpp's name of the pre-tokenizer, where quant cannot recognise it
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    /// Where codes are chosen: cpu, cuda:N, or auto for a card if there is one. The bytes are the same
    #[arg(long, default_value = "cpu", value_name = "DEVICE")]
    device: Device,
    /// Show the plan, write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    goal: GoalArgs,
}

impl Convert {
    pub fn run(&self, common: &Common, reporter: &Reporter, dry_run: bool) -> Result<bool> {
        let model = model::open(&self.model, &OpenOptions { pre: self.pre.clone() }, reporter)?;
        let inputs = self.inputs.load(model.checkpoint.as_ref())?;
        let dry_run = dry_run || self.dry_run;
        // A plan needs no card.
        let card = if dry_run { None } else { self.device.open()? };
        let request = Request {
            worker: card.as_ref().map_or(Worker::Cpu, |card| Worker::Card(card)),
            allow_requantize: self.allow_requantize,
            split_max_bytes: self.split_max_size.map(|s| s.0),
            ..inputs.request(model.checkpoint.as_ref())
        };
        self.goal.check(dry_run)?;
        let recipes = self.to.iter().map(|to| self.recipe(to)).collect::<Result<Vec<_>>>()?;
        let paths = self.paths(&recipes, &model.name, &model.beside, dry_run)?;
        if let Some(goal) = self.goal.goal() {
            let ([target], [recipe], [path]) = (&self.to[..], &recipes[..], &paths[..]) else {
                return Err(Error::request("one target at a time is measured for"));
            };
            let (args, threads) = (&self.goal, common.threads());
            let least = HashMap::new();
            let allocation =
                Allocation { args, goal, least, request: &request, target, recipe, path, threads, reporter };
            let made = allocation.run()?;
            let (plans, outputs) = (std::slice::from_ref(&made.plan), std::slice::from_ref(&made.output));
            return print_outputs(plans, outputs, Some(&made), reporter).map(|()| true);
        }
        let plans = recipes
            .iter()
            .zip(&paths)
            .map(|(recipe, path)| Plan::new(&request, recipe, path))
            .collect::<Result<Vec<_>>>()?;
        let threads = common.threads();
        self.check_memory(&plans, threads)?;
        if dry_run {
            return self.print_plans(&plans, threads, reporter).map(|()| true);
        }
        for plan in &plans {
            reporter.note(&fallback_note(plan));
        }
        let bytes = model.checkpoint.tensors().iter().map(|t| t.bytes as u64).sum();
        let bar = reporter.progress("convert", bytes);
        let outputs = convert::run(&request, &plans, threads, &|event| follow(event, &bar, reporter))?;
        bar.finish();
        print_outputs(&plans, &outputs, None, reporter).map(|()| true)
    }

    fn recipe(&self, target: &str) -> Result<Recipe> {
        let mut recipe = Recipe::load(target)?;
        self.set.iter().try_for_each(|assignment| recipe.set(assignment))?;
        Ok(recipe)
    }

    /// One path per target. Unless it is a dry run, the folder of several is made.
    fn paths(&self, recipes: &[Recipe], name: &str, beside: &Path, dry_run: bool) -> Result<Vec<PathBuf>> {
        let file = |(target, recipe): (&String, &Recipe)| {
            let file = Path::new(target).file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            let stem = file.strip_suffix(".toml").unwrap_or(&file);
            if is_folder(recipe) { format!("{name}-{stem}") } else { format!("{name}-{stem}.gguf") }
        };
        let all = || self.to.iter().zip(recipes);
        let paths: Vec<PathBuf> = match &self.output {
            None => all().map(|t| beside.join(file(t))).collect(),
            // A folder is replaced like a file, if it is one of ours.
            Some(o) if self.to.len() > 1 || (o.is_dir() && !(is_folder(&recipes[0]) && hf::detect(o))) => {
                if !dry_run {
                    std::fs::create_dir_all(o).at(|| o.display().to_string())?;
                }
                all().map(|t| o.join(file(t))).collect()
            }
            Some(o) => vec![o.clone()],
        };
        let mut seen = BTreeMap::new();
        for (path, target) in paths.iter().zip(&self.to) {
            if let Some(other) = seen.insert(path, target) {
                return Err(Error::request(format!(
                    "{other} and {target} would both be written to {}",
                    path.display()
                )));
            }
        }
        Ok(paths)
    }

    fn check_memory(&self, plans: &[Plan], threads: usize) -> Result<()> {
        let needed: u64 = plans.iter().map(|p| p.peak_memory(threads)).max().unwrap_or(0);
        match self.memory {
            Some(Size(limit)) if needed > limit => {
                Err(Error::limits(format!("needs {} of buffers, --memory allows {}", Size(needed), Size(limit)))
                    .help("fewer --threads need less"))
            }
            _ => Ok(()),
        }
    }

    fn print_plans(&self, plans: &[Plan], threads: usize, reporter: &Reporter) -> Result<()> {
        if reporter.json {
            let outputs: Vec<Value> = plans
                .iter()
                .map(|p| {
                    json!({"path": p.path, "target": p.target, "bytes": p.layout.bytes(), "bpw": p.bpw(),
                        "disk": p.layout.bytes(), "memory": p.peak_memory(threads), "tensors": tensors_json(p),
                        "left_out": left_out_json(&p.left_out), "beside": left_out_json(&p.beside)})
                })
                .collect();
            return reporter.value(&json!({ "outputs": outputs }));
        }
        for plan in plans {
            let rows = plan.tensors.iter().map(|t| {
                vec![
                    t.spec.name.clone(),
                    format!("{:?}", t.spec.shape),
                    t.spec.codec.name().to_owned(),
                    Size(t.bytes as u64).to_string(),
                    why(t),
                ]
            });
            reporter.text(&table(&["tensor", "shape", "format", "size", "because"], &[3], rows))?;
            reporter.text("")?;
            let rows = by_codec(plan).into_iter().map(|(codec, (tensors, weights, bytes))| {
                vec![codec.to_owned(), tensors.to_string(), weights.to_string(), Size(bytes).to_string()]
            });
            reporter.text(&table(&["format", "tensors", "weights", "size"], &[1, 2, 3], rows))?;
            reporter.text(&format!(
                "\n{}: {} in {} file(s), {:.2} bits per weight, {} of buffers with {threads} threads\n{}",
                plan.path.display(),
                Size(plan.layout.bytes()),
                plan.layout.shards(),
                plan.bpw(),
                Size(plan.peak_memory(threads)),
                fallback_note(plan),
            ))?;
            outside(plan).iter().try_for_each(|note| reporter.text(note))?;
        }
        Ok(())
    }
}

/// Shows how a conversion goes on.
pub fn follow(event: Event, bar: &Progress, reporter: &Reporter) {
    match event {
        Event::Bytes(n) => bar.advance(n),
        Event::Resumed { weights, of } => {
            reporter.note(&format!("going on after {weights} of {of} weights of a run that was stopped"));
        }
    }
}

/// Whether a target becomes a folder.
fn is_folder(recipe: &Recipe) -> bool {
    recipe.container == "hf"
}

/// What decided, in words.
fn why(t: &Planned) -> String {
    match &t.choice.fallback {
        Some(f) => format!("{}; {}", t.choice.reason, f.because),
        None => t.choice.reason.clone(),
    }
}

fn by_codec(plan: &Plan) -> BTreeMap<&'static str, (usize, usize, u64)> {
    let mut sums = BTreeMap::new();
    for t in &plan.tensors {
        let sum: &mut (usize, usize, u64) = sums.entry(t.spec.codec.name()).or_default();
        sum.0 += 1;
        sum.1 += t.spec.shape.iter().product::<usize>();
        sum.2 += t.bytes as u64;
    }
    sums
}

fn fallback_note(plan: &Plan) -> String {
    let fallen = plan.tensors.iter().filter(|t| t.choice.fallback.is_some()).count();
    let quantized = plan.tensors.iter().filter(|t| t.choice.keeps.is_none()).count();
    match fallen {
        0 => format!("{}: {quantized} tensors get their format, none falls back", plan.target),
        n => format!(
            "{}: {n} of {} tensors fall back to another format or stay as they are: they are no multiple of its blocks (`quant plan` lists them)",
            plan.target,
            quantized + plan.tensors.iter().filter(|t| t.choice.keeps.is_some() && t.choice.fallback.is_some()).count()
        ),
    }
}

/// What becomes of tensors that no recipe is asked about.
fn outside(plan: &Plan) -> Vec<String> {
    let note = |verb: &str, l: &LeftOut| {
        let (n, size) = (l.tensors, Size(l.bytes));
        let tensors = if n == 1 { "tensor" } else { "tensors" };
        format!("{}: {n} {tensors} of {size} {verb}, {} first: {}", plan.target, l.example, l.reason)
    };
    let left_out = plan.left_out.iter().map(|l| note("left out", l));
    left_out.chain(plan.beside.iter().map(|l| note("kept as they are", l))).collect()
}

fn left_out_json(all: &[LeftOut]) -> Vec<Value> {
    let one = |l: &LeftOut| json!({"reason": l.reason, "tensors": l.tensors, "bytes": l.bytes, "first": l.example});
    all.iter().map(one).collect()
}

fn tensors_json(plan: &Plan) -> Vec<Value> {
    plan.tensors
        .iter()
        .map(|t| {
            json!({"name": t.spec.name, "codec": t.spec.codec.name(), "shape": t.spec.shape, "bytes": t.bytes,
                "because": why(t), "fallback": t.choice.fallback.as_ref().map(|f| f.wanted.name()),
                "importance": t.weighted})
        })
        .collect()
}

pub fn print_outputs(plans: &[Plan], outputs: &[Output], made: Option<&Allocated>, reporter: &Reporter) -> Result<()> {
    if reporter.json {
        let outputs: Vec<Value> = plans
            .iter()
            .zip(outputs)
            .map(|(p, o)| {
                json!({"path": o.paths[0], "paths": o.paths, "target": p.target, "bytes": o.bytes, "bpw": p.bpw(),
                    "seconds": o.seconds, "carried": o.carried, "requantized": o.requantized, "exact": exact(o),
                    "tensors": tensors_json(p), "solved": o.solved, "left_out": left_out_json(&p.left_out),
                    "beside": left_out_json(&p.beside)})
            })
            .collect();
        let mut value = json!({ "outputs": outputs });
        if let Some(made) = made {
            value["outputs"][0]["allocation"] = made.json();
        }
        return reporter.value(&value);
    }
    let rows = plans.iter().zip(outputs).map(|(p, o)| {
        vec![
            o.paths[0].display().to_string(),
            Size(o.bytes).to_string(),
            format!("{:.2}", p.bpw()),
            format!("{:.1} s", o.seconds),
        ]
    });
    reporter.text(&table(&["file", "size", "bits/weight", "time"], &[1, 2, 3], rows))?;
    for (p, o) in plans.iter().zip(outputs) {
        outside(p).iter().try_for_each(|note| reporter.text(note))?;
        if let Some(note) = solved_note(p, o) {
            reporter.text(&note)?;
        }
        match exact(o) {
            Some(true) => {
                reporter.text(&format!(
                    "{}: exact: yes, all {} quantized weights keep their values",
                    o.paths[0].display(),
                    o.carried
                ))?;
            }
            Some(false) => {
                let (carried, again) = (o.carried, o.requantized);
                let text = format!("exact: no, {again} weights were quantized again, {carried} keep their values");
                reporter.text(&format!("{}: {text}", o.paths[0].display()))?;
            }
            None => {}
        }
    }
    made.map_or(Ok(()), |made| made.print(reporter))
}

/// What solving did, and where it was given up.
fn solved_note(plan: &Plan, output: &Output) -> Option<String> {
    let mut ratios: Vec<f64> = output.solved.iter().filter_map(|s| s.error_ratio).collect();
    ratios.sort_by(f64::total_cmp);
    let median = ratios.get(ratios.len() / 2)?;
    let mut counts = BTreeMap::<&str, usize>::new();
    output.solved.iter().for_each(|s| *counts.entry(&s.method).or_default() += 1);
    let counts: Vec<String> = counts.iter().map(|(name, n)| format!("{n} by {name}")).collect();
    let mut note = format!(
        "{}: {}; median error of the outputs {median:.2} times that of imatrix, on held-out text",
        plan.target,
        counts.join(", ")
    );
    for s in &output.solved {
        if let Some(because) = &s.because {
            note += &format!("\n  {} (matrix {}): {}, because {because}", s.name, s.plane, s.method);
        }
    }
    Some(note)
}

/// Whether the source's quantized weights have their values still; `None` if there were none.
fn exact(output: &Output) -> Option<bool> {
    (output.carried + output.requantized > 0).then_some(output.requantized == 0)
}

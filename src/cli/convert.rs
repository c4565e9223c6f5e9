//! `quant convert` and `quant plan`.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use clap::Args;

use super::allocate::{Allocation, GoalArgs};
use super::device::{DeviceArgs, Place};
use super::inputs::InputArgs;
use super::report::Reporter;
use super::size::Size;
use super::{Common, model, outputs};
use crate::container::{OpenOptions, hf};
use crate::convert::{self, Plan, Request};
use crate::device::Worker;
use crate::error::{At, Error, Result};
use crate::recipe::Recipe;

#[derive(Args)]
pub struct Convert {
    /// A Hugging Face folder, a GGUF file (its first shard, if split) or hf:org/name[@revision]
    model: String,
    /// What to make: presets (`quant list presets`) or recipe files, separated by commas; each weight is read once for all
    #[arg(long, required = true, value_delimiter = ',', value_name = "TARGET")]
    to: Vec<String>,
    /// Output file or folder, or a folder for several targets; folders that are missing are made [default: NAME-TARGET.gguf
    /// or NAME-TARGET/ beside the model]
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
    #[arg(long, value_name = "SIZE", conflicts_with = "goal")]
    split_max_size: Option<Size>,
    /// Refuse to start if the buffers would take more than this
    #[arg(long, value_name = "SIZE", conflicts_with = "goal")]
    memory: Option<Size>,
    /// llama.cpp's name of the pre-tokenizer, where quant cannot recognise it
    #[arg(long, value_name = "NAME")]
    pre: Option<String>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Show the plan, write nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    goal: GoalArgs,
}

impl Convert {
    pub fn run(&self, common: &Common, reporter: &Reporter, dry_run: bool) -> Result<bool> {
        let model = model::open(&self.model, &OpenOptions { pre: self.pre.clone() }, reporter)?;
        let inputs = self.inputs.load(model.checkpoint.as_ref(), reporter)?;
        let dry_run = dry_run || self.dry_run;
        // A plan needs no card.
        let place = (!dry_run).then(|| self.device.open(None)).transpose()?;
        let (worker, device) = place.as_ref().map_or((Worker::Cpu, "cpu"), Place::worker);
        if let Worker::Card(_) = worker {
            reporter.note(&format!("codes are chosen on {device}"));
        }
        let request = Request {
            worker,
            allow_requantize: self.allow_requantize,
            split_max_bytes: self.split_max_size.map(|s| s.0),
            ..inputs.request(model.checkpoint.as_ref())
        };
        self.goal.check(dry_run)?;
        let recipes = self.to.iter().map(|to| self.recipe(to)).collect::<Result<Vec<_>>>()?;
        if let Some(folder) = recipes.iter().find(|r| self.inputs.exact_llama() && is_folder(r)) {
            return Err(Error::request(format!("llama.cpp does not make {}", folder.name)).help("drop --exact-llama"));
        }
        if let Some(open) = recipes.iter().find(|r| self.goal.goal().is_none() && r.is_open()) {
            return Err(Error::request(format!("{} chooses among formats by what they may take or lose", open.name))
                .help("say so with --target-bpw, --target-size or --max-kld, or name another preset: `quant list presets`"));
        }
        let paths = self.paths(&recipes, &model.name, &model.beside)?;
        if let Some(goal) = self.goal.goal() {
            let ([target], [recipe], [path]) = (&self.to[..], &recipes[..], &paths[..]) else {
                return Err(Error::request("one target at a time is measured for"));
            };
            make_folders(&paths)?;
            let (args, threads) = (&self.goal, common.threads());
            let least = HashMap::new();
            let allocation =
                Allocation { args, goal, least, request: &request, target, recipe, path, threads, reporter };
            return allocation.run()?.print(reporter).map(|()| true);
        }
        let plans = recipes
            .iter()
            .zip(&paths)
            .map(|(recipe, path)| Plan::new(&request, recipe, path))
            .collect::<Result<Vec<_>>>()?;
        let threads = common.threads();
        self.check_memory(&plans, worker, threads)?;
        if dry_run {
            return outputs::print_plans(&plans, threads, reporter).map(|()| true);
        }
        make_folders(&paths)?;
        for plan in &plans {
            reporter.note(&outputs::fallback_note(plan));
            if !request.search {
                outputs::searched_note(plan).iter().for_each(|note| reporter.note(note));
            }
            outputs::wordless_note(plan).iter().for_each(|note| reporter.note(note));
            if request.imatrix.is_some() {
                outputs::unweighted_note(plan).iter().for_each(|note| reporter.note(note));
            }
        }
        let bytes = model.checkpoint.tensors().iter().map(|t| t.bytes as u64).sum();
        let bar = reporter.progress("convert", bytes);
        let outputs = convert::run(&request, &plans, threads, &|event| outputs::follow(event, &bar, reporter))?;
        bar.finish();
        outputs::print(&plans, &outputs, None, reporter).map(|()| true)
    }

    fn recipe(&self, target: &str) -> Result<Recipe> {
        if target.is_empty() {
            return Err(Error::request("a target of --to is empty").help("drop the comma that nothing stands behind"));
        }
        let mut recipe = Recipe::load(target)?;
        self.set.iter().try_for_each(|assignment| recipe.set(assignment))?;
        Ok(recipe)
    }

    /// One path per target.
    fn paths(&self, recipes: &[Recipe], name: &str, beside: &Path) -> Result<Vec<PathBuf>> {
        let file = |(target, recipe): (&String, &Recipe)| {
            let file = Path::new(target).file_name().unwrap_or_default().to_string_lossy().to_lowercase();
            let stem = file.strip_suffix(".toml").unwrap_or(&file);
            if is_folder(recipe) { format!("{name}-{stem}") } else { format!("{name}-{stem}.gguf") }
        };
        let all = || self.to.iter().zip(recipes);
        if let Some(o) = self.output.as_ref().filter(|o| is_file_name(o) && !o.is_dir()) {
            let why = match &self.to[..] {
                [_] if !is_folder(&recipes[0]) => None,
                [target] => Some(format!("{target} is written as a folder")),
                _ => Some("several targets are written into a folder".to_owned()),
            };
            if let Some(why) = why {
                let what = format!("{why}, and {} is the name of a file", o.display());
                return Err(Error::request(what).help("name a folder with -o"));
            }
        }
        let paths: Vec<PathBuf> = match &self.output {
            None => all().map(|t| beside.join(file(t))).collect(),
            // A folder is replaced like a file, if it is one of ours.
            Some(o)
                if self.to.len() > 1
                    || (ends_in_separator(o) && !is_folder(&recipes[0]))
                    || (o.is_dir() && !(is_folder(&recipes[0]) && hf::detect(o))) =>
            {
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

    fn check_memory(&self, plans: &[Plan], worker: Worker<'_>, threads: usize) -> Result<()> {
        let chunk = convert::chunk(worker, threads)?;
        let needed: u64 = plans.iter().map(|p| p.peak_memory(threads, chunk)).max().unwrap_or(0);
        match self.memory {
            Some(Size(limit)) if needed > limit => {
                Err(Error::limits(format!("needs {} of buffers, --memory allows {}", Size(needed), Size(limit)))
                    .help("fewer --threads need less"))
            }
            _ => Ok(()),
        }
    }
}

/// `out/`: a folder is meant, there or not.
fn ends_in_separator(path: &Path) -> bool {
    path.as_os_str().to_string_lossy().ends_with(std::path::is_separator)
}

/// `m.gguf`: a file is meant.
fn is_file_name(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf") || e.eq_ignore_ascii_case("safetensors"))
}

/// Makes the folders that outputs are to lie in, once nothing but writing is left.
fn make_folders(outputs: &[PathBuf]) -> Result<()> {
    let mut folders = outputs.iter().filter_map(|path| path.parent()).filter(|folder| !folder.as_os_str().is_empty());
    folders.try_for_each(|folder| std::fs::create_dir_all(folder).at(|| folder.display().to_string()))
}

/// Whether a target becomes a folder.
fn is_folder(recipe: &Recipe) -> bool {
    recipe.container == "hf"
}

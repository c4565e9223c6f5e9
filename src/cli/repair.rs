//! `quant repair`

use std::path::PathBuf;

use clap::Args;

use super::allocate::{Allocation, GoalArgs};
use super::inputs::InputArgs;
use super::report::Reporter;
use super::{Common, model};
use crate::allocate::Goal;
use crate::container::output::refuse_inputs;
use crate::container::{Checkpoint, OpenOptions};
use crate::error::{Error, Result};
use crate::recipe::{self, Recipe};

#[derive(Args)]
pub struct Repair {
    /// The file that loses too much: GGUF or a Hugging Face folder
    artifact: String,
    /// The model that it was made from
    #[arg(long, value_name = "MODEL")]
    reference: String,
    /// The file to write, or a folder
    #[arg(short, long, value_name = "FILE|DIR")]
    output: PathBuf,
    #[command(flatten)]
    inputs: InputArgs,
    #[command(flatten)]
    goal: GoalArgs,
}

impl Repair {
    pub fn run(&self, common: &Common, reporter: &Reporter) -> Result<bool> {
        let goal = self.goal.goal().ok_or_else(|| {
            Error::request("how much may it lose, or take?").help("add --max-kld, --target-size or --target-bpw")
        })?;
        let options = OpenOptions::default();
        let artifact = model::open(&self.artifact, &options, reporter)?;
        let reference = model::open(&self.reference, &options, reporter)?;
        let files: Vec<PathBuf> = artifact.files().into_iter().chain(reference.files()).collect();
        refuse_inputs(std::slice::from_ref(&self.output), &files)?;
        let (target, recipe) = ladder(artifact.checkpoint.as_ref())?;
        let inputs = self.inputs.load(reference.checkpoint.as_ref(), reporter)?;
        let matrices = artifact.checkpoint.tensors().iter().filter(|t| t.shape.len() > 1);
        let allocation = Allocation {
            args: &self.goal,
            goal,
            least: matrices.map(|t| (t.name.clone(), t.bytes as u64)).collect(),
            request: &inputs.request(reference.checkpoint.as_ref()),
            target: &target,
            recipe: &recipe,
            path: &self.output,
            threads: common.threads(),
            reporter,
        };
        let made = allocation.run()?;
        made.print(reporter)?;
        Ok(!matches!(goal, Goal::Divergence(limit) if made.measured > limit))
    }
}

/// The recipe whose ladder has most of the artifact's formats.
fn ladder(artifact: &dyn Checkpoint) -> Result<(String, Recipe)> {
    let container = if artifact.container() == "gguf" { "gguf" } else { "hf" };
    let mut best: Option<(usize, String, Recipe)> = None;
    for preset in recipe::list()?.into_iter().filter(|p| p.container == container) {
        let recipe = Recipe::load(&preset.name)?;
        let same = artifact.tensors().iter().filter(|t| recipe.offers().contains(&t.codec)).count();
        if same > best.as_ref().map_or(0, |b| b.0) {
            best = Some((same, preset.name, recipe));
        }
    }
    let (_, name, recipe) = best.ok_or_else(|| {
        Error::unsupported("no recipe has a ladder of the formats of this artifact")
            .help("GGUF, EXL2 and compressed-tensors with zeros have: convert the model to gguf, exl2-4bpw or packed")
    })?;
    Ok((name.to_lowercase(), recipe))
}

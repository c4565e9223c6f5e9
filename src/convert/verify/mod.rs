//! Does a file hold what it should? Structure, values, every source tensor accounted for, metadata, tokenizer and chat template.

mod facts;
mod weights;

use std::collections::{HashMap, HashSet};

use super::rows::check_finite;
use super::{CHUNK_WEIGHTS, Plan, Progress, each_unit, units_of};
use crate::arch::{self, ModelSpec};
use crate::codec::Codec;
use crate::container::{Checkpoint, LeftOut, Tensor, hf, tokenizer};
use crate::engine::Engine;
use crate::engine::chat::{self, Message};
use crate::error::{At, Error, Kind, Result};
use crate::tensor::{Dims, same_shape};
use weights::shaped_alike;
pub use weights::{WeightError, weight_errors};

#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Passed,
    Failed,
    Skipped,
}

#[derive(Debug, serde::Serialize)]
pub struct Check {
    pub name: &'static str,
    pub status: Status,
    pub detail: String,
}

#[derive(Debug, Default, serde::Serialize)]
pub struct Report {
    pub checks: Vec<Check>,
    pub weights: Vec<WeightError>,
}

impl Report {
    pub fn passed(&self) -> bool {
        self.checks.iter().all(|c| c.status != Status::Failed)
    }

    fn add(&mut self, name: &'static str, outcome: Result<String>) {
        let (status, detail) = match outcome {
            Ok(detail) => (Status::Passed, detail),
            Err(e) => (Status::Failed, e.to_string()),
        };
        self.checks.push(Check { name, status, detail });
    }

    fn add_or_skip(&mut self, name: &'static str, outcome: Option<Result<String>>, why: &str) {
        match outcome {
            Some(outcome) => self.add(name, outcome),
            None => self.skip(name, why),
        }
    }

    fn skip(&mut self, name: &'static str, why: &str) {
        self.checks.push(Check { name, status: Status::Skipped, detail: why.to_owned() });
    }
}

/// A finished file, read back, has exactly the planned tensors.
pub fn structure(artifact: &dyn Checkpoint, plan: &Plan) -> Result<()> {
    let found: HashMap<&str, &Tensor> = artifact.tensors().iter().map(|t| (t.name.as_str(), t)).collect();
    for p in &plan.tensors {
        let planned = format!("planned {} {:?} as {}", p.spec.name, p.spec.shape, p.spec.codec.name());
        match found.get(p.spec.name.as_str()) {
            Some(t) if same_shape(&t.shape, &p.spec.shape) && alike(t.codec, p.spec.codec, t.dims()) => {}
            Some(t) => {
                return Err(Error::input(format!("{planned}, found {:?} as {}", t.shape, t.codec.name())));
            }
            None => return Err(Error::input(format!("{planned}, it is not there"))),
        }
    }
    // A folder's reader adds what it computes from config.json.
    let planned: HashSet<String> = plan.specs().into_iter().map(|spec| spec.name).collect();
    match artifact.tensors().iter().find(|t| !planned.contains(&t.name) && t.file != hf::CONFIG) {
        Some(extra) => Err(Error::input(format!("{} was not planned", extra.name))),
        None => Ok(()),
    }
}

/// One format under two names: of a small matrix, unlike shares may be the same columns.
fn alike(found: &'static dyn Codec, planned: &'static dyn Codec, dims: Dims) -> bool {
    let layout = |c: &dyn Codec| c.layout(dims).ok();
    found == planned || found.pattern() == planned.pattern() && layout(found) == layout(planned)
}

/// Everything that can be said about `artifact` alone and, if given, against the model it was made from.
pub fn verify(
    artifact: &dyn Checkpoint,
    source: Option<&dyn Checkpoint>,
    threads: usize,
    progress: Progress<'_>,
) -> Report {
    let mut report = Report::default();
    report.add("structure", whole(artifact));
    report.add("finite", finite(artifact, threads, progress));
    let needs = "needs --source";
    report.add_or_skip("accounted", source.map(|s| accounted(artifact, s)), needs);
    let mut errors = Vec::new();
    let weights = source.map(|s| weight_errors(artifact, s, threads, progress));
    report.add_or_skip("weights", weights.map(|w| like_the_source(w?, &mut errors)), needs);
    report.weights = errors;
    report.add_or_skip("metadata", source.map(|s| facts::compare(artifact, s)), needs);
    report.add_or_skip("tokenizer", source.map(|s| same_tokens(artifact, s)), needs);
    report.add_or_skip("chat template", chat_template(artifact).transpose(), "the file carries none");
    report
}

/// Nothing in the files contradicts the rest of them.
fn whole(artifact: &dyn Checkpoint) -> Result<String> {
    if let Some(fault) = artifact.faults().into_iter().next() {
        return Err(Error::input(fault));
    }
    match artifact.family() {
        // Its weights have the shapes that its metadata ask for. What the engine cannot run may still be whole.
        Some(_) => Engine::new(artifact, 1).map(|_| ()).or_else(|e| match e.kind {
            Kind::Unsupported => Ok(()),
            _ => Err(e),
        })?,
        None if arch::for_gguf(artifact.arch()).is_some() => {
            ModelSpec::from_metadata(&artifact.metadata()?).map(|_| ())?
        }
        None => {}
    }
    Ok(format!("{} tensors, every offset and size in bounds", artifact.tensors().len()))
}

fn like_the_source(errors: Vec<WeightError>, out: &mut Vec<WeightError>) -> Result<String> {
    let worst = errors.iter().map(|e| e.relative).fold(0.0, f64::max);
    let faults: Vec<String> =
        errors.iter().filter_map(|e| Some(format!("{}: {}", e.name, e.fault.as_ref()?))).collect();
    *out = errors;
    match &faults[..] {
        [] => Ok(format!("largest relative error of a tensor: {worst:.4}")),
        [only] => Err(Error::input(only)),
        [first, rest @ ..] => Err(Error::input(format!("{first} (and {} more tensors)", rest.len()))),
    }
}

/// What every chat begins with. A template may parse and still fail, or lose what was said.
const GREETING: &str = "Hello, who are you?";

/// Whether the templates parse, and the default one makes a prompt of a first message. `None`: there is no template.
fn chat_template(artifact: &dyn Checkpoint) -> Result<Option<String>> {
    let metadata = artifact.metadata()?;
    let templates = tokenizer::templates(&metadata);
    templates.iter().try_for_each(|(name, text)| tokenizer::check_template(text).at(|| *name))?;
    if !templates.iter().any(|(name, _)| *name == "default") {
        return Ok((!templates.is_empty()).then(|| format!("{} parsed, none of them the default", templates.len())));
    }
    let tokens = artifact.tokenizer()?;
    let prompt = chat::prompt(&metadata, &tokens, &[Message { role: "user", content: GREETING }])?;
    if !prompt.contains(GREETING) {
        return Err(Error::input(format!("it makes {prompt:?} of {GREETING:?}: what users say is lost")));
    }
    let ids = chat::tokens(&metadata, &tokens, &prompt)?;
    Ok(Some(format!("{} parsed, a first message becomes {} tokens", templates.len(), ids.len())))
}

/// The artifact's tokenizer and the source's see the bundled awkward strings alike.
fn same_tokens(artifact: &dyn Checkpoint, source: &dyn Checkpoint) -> Result<String> {
    let texts = tokenizer::awkward();
    let differing = tokenizer::parity(&source.tokenizer()?, &artifact.tokenizer()?, texts.iter().map(String::as_str))?;
    if let Some(m) = differing.iter().find(|m| m.known.is_none()) {
        return Err(Error::input(format!(
            "{} of {} strings become other tokens, first {:?}: {:?} in the source, {:?} in the artifact",
            differing.iter().filter(|m| m.known.is_none()).count(),
            texts.len(),
            m.text,
            m.source,
            m.artifact
        )));
    }
    let same = texts.len() - differing.len();
    let known = differing.first().and_then(|m| m.known);
    let rest =
        known.map_or_else(String::new, |why| format!("; {} do not, as for every such model: {why}", differing.len()));
    Ok(format!("{same} awkward strings become the same tokens{rest}"))
}

fn finite(artifact: &dyn Checkpoint, threads: usize, progress: Progress<'_>) -> Result<String> {
    let tensors = artifact.tensors();
    each_unit(&units_of(artifact, |_| CHUNK_WEIGHTS), threads, |unit, scratch| {
        let t = &tensors[unit.tensor];
        let weight = artifact.read(unit.tensor, unit.plane)?;
        let cols = weight.packed.dims.cols;
        scratch.source.resize(unit.rows.len() * cols, 0.0);
        weight.codec.decode(&weight.packed, unit.rows.clone(), &mut scratch.source);
        progress((t.bytes / (t.planes() * t.dims().rows).max(1) * unit.rows.len()) as u64);
        check_finite(&scratch.source, cols, unit.rows.start).at(|| format!("{} in {}", t.name, t.file))
    })?;
    Ok(format!("{} weights decoded", tensors.iter().map(|t| t.len() as u64).sum::<u64>()))
}

/// Every tensor of the source is in the artifact with its shape, or was left out for a stated reason; nothing is new.
fn accounted(artifact: &dyn Checkpoint, source: &dyn Checkpoint) -> Result<String> {
    for t in source.tensors() {
        let found = artifact.find(&t.name).map(|i| &artifact.tensors()[i]);
        let found = found.ok_or_else(|| Error::input(format!("{} ({}) is missing", t.name, t.source)))?;
        shaped_alike(found, t)?;
    }
    // Scales that `read` applies are part of their weights.
    let scales: HashSet<String> = artifact
        .tensors()
        .iter()
        .filter_map(|t| Some((t.name.strip_suffix("weight")?, t.codec.tensor_scale()?)))
        .flat_map(|(stem, kind)| [kind.weight, kind.input].map(|suffix| format!("{stem}{suffix}")))
        .collect();
    let new = |t: &&Tensor| source.find(&t.name).is_none() && !scales.contains(&t.name);
    if let Some(new) = artifact.tensors().iter().find(new) {
        return Err(Error::input(format!("{} is not in the source", new.name)));
    }
    let kept: HashSet<&str> = artifact.beside().iter().map(|raw| raw.name).collect();
    let left_out = LeftOut::of(source.dropped().iter().filter(|d| !kept.contains(d.source.as_str())));
    let left_out: String = left_out.iter().map(|l| format!("; left out: {l}")).collect();
    Ok(format!("{} tensors written{left_out}", source.tensors().len()))
}

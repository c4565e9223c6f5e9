//! Does a file hold what it should? Structure, values, every source tensor accounted for, tokenizer and chat template.

use std::collections::{HashMap, HashSet};
use std::sync::Mutex;

use super::rows::check_finite;
use super::{CHUNK_WEIGHTS, Plan, Progress, each_unit, units_of};
use crate::codec::Codec;
use crate::container::{Checkpoint, LeftOut, Tensor, hf, tokenizer};
use crate::engine::chat::{self, Message};
use crate::error::{At, Error, Result};
use crate::tensor::{Dims, same_shape};

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

/// Error of one weight against its source: `|w - w'| / |w|` over all its values.
#[derive(Debug, serde::Serialize)]
pub struct WeightError {
    pub name: String,
    pub codec: &'static str,
    pub relative: f64,
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
    report.add("structure", Ok(format!("{} tensors, every offset and size in bounds", artifact.tensors().len())));
    report.add("finite", finite(artifact, threads, progress));
    match source {
        Some(source) => {
            report.add("accounted", accounted(artifact, source));
            match weight_errors(artifact, source, threads, progress) {
                Ok(errors) => {
                    let worst = errors.iter().map(|e| e.relative).fold(0.0, f64::max);
                    report.weights = errors;
                    let detail = format!("largest relative error of a tensor: {worst:.4}");
                    // Even one bit per weight keeps most of the energy; more loss than this is another matrix.
                    let outcome = if worst < 0.95 { Ok(detail) } else { Err(Error::input(detail)) };
                    report.add("weights", outcome);
                }
                Err(e) => report.add("weights", Err(e)),
            }
        }
        None => {
            report.skip("accounted", "needs --source");
            report.skip("weights", "needs --source");
        }
    }
    report.add_or_skip("tokenizer", source.map(|s| same_tokens(artifact, s)), "needs --source");
    report.add_or_skip("chat template", chat_template(artifact).transpose(), "the file carries none");
    report
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
    each_unit(&units_of(artifact, CHUNK_WEIGHTS), threads, |unit, scratch| {
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

fn shaped_alike(t: &Tensor, source: &Tensor) -> Result<()> {
    match same_shape(&t.shape, &source.shape) {
        true => Ok(()),
        false => Err(Error::input(format!("{} is {:?}, its source {:?}", t.name, t.shape, source.shape))),
    }
}

/// Compares every weight with its source, in the artifact's row order.
///
/// Errors: weights of other shapes.
pub fn weight_errors(
    artifact: &dyn Checkpoint,
    source: &dyn Checkpoint,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Vec<WeightError>> {
    let tensors = artifact.tensors();
    let sums = Mutex::new(vec![(0f64, 0f64); tensors.len()]);
    each_unit(&units_of(artifact, CHUNK_WEIGHTS), threads, |unit, scratch| {
        let t = &tensors[unit.tensor];
        let Some(original) = source.find(&t.name) else { return Ok(()) };
        shaped_alike(t, &source.tensors()[original])?;
        let transform = source.transform(&t.name, artifact.convention());
        let weight = artifact.read(unit.tensor, unit.plane)?;
        let reference = source.read(original, unit.plane)?;
        let cols = weight.packed.dims.cols;
        scratch.source.resize(cols, 0.0);
        scratch.moved.resize(cols, 0.0);
        let vector = t.shape.len() == 1;
        let (mut energy, mut error) = (0f64, 0f64);
        for row in unit.rows.clone() {
            weight.codec.decode(&weight.packed, row..row + 1, &mut scratch.source);
            let from = if vector { row } else { transform.source_row(row) };
            reference.codec.decode(&reference.packed, from..from + 1, &mut scratch.moved);
            if vector {
                let moved = (0..cols).map(|i| scratch.moved[transform.source_row(i)]).collect();
                scratch.moved = moved;
            }
            for (w, r) in scratch.source.iter().zip(&scratch.moved) {
                let r = f64::from(*r * reference.scale + transform.add);
                energy += r * r;
                error += (f64::from(*w * weight.scale) - r).powi(2);
            }
        }
        let mut sums = sums.lock().unwrap_or_else(|p| p.into_inner());
        sums[unit.tensor].0 += energy;
        sums[unit.tensor].1 += error;
        progress((t.bytes / (t.planes() * t.dims().rows).max(1) * unit.rows.len()) as u64);
        Ok(())
    })?;
    let sums = sums.into_inner().unwrap_or_else(|p| p.into_inner());
    Ok(tensors
        .iter()
        .zip(sums)
        .map(|(t, (energy, error))| WeightError {
            name: t.name.clone(),
            codec: t.codec.name(),
            relative: if energy > 0.0 { (error / energy).sqrt() } else { error.sqrt() },
        })
        .collect())
}

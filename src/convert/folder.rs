//! The plan of a Hugging Face folder.

use std::path::Path;

use super::plan::{Layout, Plan, Planned, Request, planned_all};
use crate::arch::{self, Arch, Part, STAYING};
use crate::calibrate::stats::Statistics;
use crate::codec::{Activations, Codec, float, fp8};
use crate::container::hf::{self, Calibration, NewWeight, Told};
use crate::container::{Checkpoint, Convention, LeftOut, Tensor};
use crate::error::{At, Error, Result};
use crate::recipe::{self, Recipe};

impl Plan {
    pub(super) fn folder(request: &Request<'_>, recipe: &Recipe, path: &Path) -> Result<Plan> {
        let source = request.source;
        let (Some(folder), Some((family, spec))) = (source.folder(), source.family()) else {
            return Err(Error::request(format!(
                "a Hugging Face folder cannot be made from a {} file",
                source.container()
            ))
            .help("start from the model's Hugging Face folder: its config.json and tokenizer go into the artifact"));
        };
        let beside = source.beside();
        let staying = source.dropped().iter().filter(|d| STAYING.contains(&d.reason));
        if let Some(packed) = staying.clone().find(|d| !beside.iter().any(|raw| raw.name == d.source)) {
            return Err(Error::unsupported(
                "a quantized weight outside the language model, which a folder cannot keep",
            )
            .at(&packed.source)
            .help("start from the unquantized model, or make a GGUF file of the language model"));
        }
        if family.own_name("blk.0.ffn_down_exps.weight").is_none()
            && let Some(codec) = recipe.formats().find(|c| hf::is_own(*c))
        {
            let message =
                format!("{} is for models whose experts are their modules' own, {} is none", codec.name(), family.name);
            return Err(Error::request(message).help("mxfp4 holds such weights of any model (compressed-tensors)"));
        }
        let facts = recipe::ModelFacts::of(&family.metadata(spec), request.imatrix.is_some())?;
        let made: Vec<String> = family.extra_tensors(spec).into_iter().map(|(name, _)| name).collect();
        let kept = kept(source, recipe);
        let sources: Vec<_> =
            source.tensors().iter().filter(|t| !made.contains(&t.name)).map(|t| described(t, recipe, kept)).collect();
        let tensors = planned_all(request, recipe, &facts, &sources, Convention::HuggingFace)?;
        let packed = |t: &Planned| t.spec.codec.packed();
        if let (Some(fallen), false) =
            (tensors.iter().find_map(|t| t.choice.fallback.as_ref()), tensors.iter().any(packed))
        {
            return Err(Error::request(format!("nothing would be quantized: {}", fallen.because))
                .help("a preset with smaller groups may fit, such as gptq-g32, awq-g32, w4a16-g32 or mlx-4bit-g32"));
        }
        let mut weights = Vec::new();
        let own = own_layout(source, &tensors);
        let stacked = tensors.iter().any(|t| hf::is_mlx(t.spec.codec));
        let apart = stacked || tensors.iter().any(|t| t.spec.codec.joint().is_some());
        if let Some(raw) = beside.first().filter(|_| apart) {
            return Err(Error::unsupported("folders of MLX and EXL2 hold a language model and nothing else")
                .at(raw.name)
                .help("w4a16, gptq, awq and fp8 keep the other parts of a model as they are"));
        }
        for planned in &tensors {
            match own.name(planned) {
                Some((_, Part::Alternate(1))) => {}
                Some((name, part)) => weights.push(own_weight(source, planned, name, &part)),
                None => named(family, source, planned, stacked, &mut weights)?,
            }
        }
        let floats = recipe.floats.and_then(float::dtype);
        let calibration = request.statistics.and_then(calibration);
        let activations = match recipe.activations {
            Activations::Measured if weights.iter().any(|w| w.inputs) => Activations::Static,
            Activations::Measured => Activations::Plain,
            stated => stated,
        };
        let cache = if recipe.fp8_cache { cache_scales(request, family, spec.layers)? } else { Vec::new() };
        let told = Told { floats, activations, calibration: calibration.as_ref(), beside: &beside, cache: &cache };
        let layout = hf::folder(folder, &weights, told, request.split_max_bytes)?;
        let (beside, left_out): (Vec<_>, Vec<_>) = source.dropped().iter().partition(|d| STAYING.contains(&d.reason));
        Ok(Plan {
            target: recipe.name.clone(),
            path: path.to_owned(),
            tensors,
            layout: Layout::Folder(layout),
            left_out: LeftOut::of(left_out),
            beside: LeftOut::of(beside),
        })
    }
}

/// What the statistics were made of.
fn calibration(statistics: &Statistics) -> Option<Calibration> {
    let runs = &statistics.about().runs;
    let names: Vec<&str> = runs.iter().flat_map(|r| &r.corpora).map(|c| c.name.as_str()).collect();
    let rows = runs.iter().map(|r| r.sequences).sum();
    Some(Calibration { rows, length: runs.iter().map(|r| r.length).max()?, dataset: names.join(", ") })
}

/// By attention module: what takes the largest key and the largest value that the statistics saw to the largest 8-bit float.
fn cache_scales(request: &Request<'_>, family: &Arch, layers: u32) -> Result<Vec<(String, [f32; 2])>> {
    let again = "make them with `quant calibrate MODEL --data text.txt -o STATS` and pass --stats STATS";
    let statistics = request.statistics.ok_or_else(|| {
        Error::request("scales of the KV cache (kv_cache = \"fp8\") come from statistics, and there are none")
            .help(again)
    })?;
    let of_layer = |layer: u32| {
        let output = format!("blk.{layer}.attn_output.weight");
        let like = request.source.find(&output).map(|i| request.source.tensors()[i].source.as_str());
        let name = family.hf_name(&output, None).zip(like).map(|(name, like)| arch::inside(name, like));
        let module = name.as_deref().and_then(|name| name.strip_suffix(".weight")?.rsplit_once('.'));
        let (module, _) =
            module.ok_or_else(|| Error::unsupported("its attention has no name in Hugging Face layout"))?;
        let largest = statistics
            .cache_absmax(layer)
            .ok_or_else(|| Error::request("the statistics say nothing of its keys and values").help(again))?;
        // Zeros can be divided by anything.
        Ok::<_, Error>((module.to_owned(), largest.map(|x| if x > 0.0 { x / fp8::MAX } else { 1.0 })))
    };
    (0..layers).map(|layer| of_layer(layer).at(|| format!("layer {layer}"))).collect()
}

pub(super) const FLOATS: [&dyn Codec; 3] = [&float::F32, &float::F16, &float::BF16];

/// What weights that stay floats are stored as: the recipe's word, else that of the model's last norm.
fn kept(source: &dyn Checkpoint, recipe: &Recipe) -> &'static dyn Codec {
    let norm = source.find("output_norm.weight").map(|i| source.tensors()[i].codec);
    recipe.floats.or(norm.filter(|c| FLOATS.contains(c))).unwrap_or(&float::BF16)
}

/// A tensor as it stays if the recipe keeps it.
fn described<'a>(t: &'a Tensor, recipe: &Recipe, kept: &'static dyn Codec) -> recipe::Source<'a> {
    let own = FLOATS.contains(&t.codec) && recipe.floats.is_none();
    recipe::Source { name: &t.name, shape: &t.shape, codec: if own { t.codec } else { kept } }
}

/// The layout that a family has for its experts and nobody else, if a plan asks for it.
pub(super) struct OwnLayout(Option<&'static Arch>);

/// Whether the experts of `tensors` go into it.
pub(super) fn own_layout(source: &dyn Checkpoint, tensors: &[Planned]) -> OwnLayout {
    let asked = tensors.iter().any(|t| hf::is_own(t.spec.codec));
    OwnLayout(source.family().map(|(arch, _)| arch).filter(|_| asked))
}

impl OwnLayout {
    /// The tensor that a stack of experts or of their biases becomes, and which of its rows they are.
    pub fn name(&self, planned: &Planned) -> Option<(String, Part)> {
        let arch = self.0.filter(|_| hf::is_own(planned.spec.codec) || planned.spec.name.ends_with(".bias"))?;
        arch.own_name(&planned.spec.name)
    }
}

/// What the experts of such a family can become.
fn own_help(e: Error, arch: &Arch, name: &str) -> Error {
    match arch.own_name(name) {
        Some(_) => e.help(format!(
            "folders of {} hold their experts in a layout of their own: use mxfp4-gpt-oss, or a GGUF or MLX preset",
            arch.name
        )),
        None => e,
    }
}

/// One tensor for a stack, or for two of which this is the first.
fn own_weight(source: &dyn Checkpoint, planned: &Planned, name: String, part: &Part) -> NewWeight {
    let mut shape = source.tensors()[planned.source].shape.clone();
    // Rows of matrices, elements of an expert's vector.
    let at = 1.min(shape.len() - 1);
    shape[at] *= if *part == Part::Whole { 1 } else { 2 };
    let name = arch::inside(name, &source.tensors()[planned.source].source);
    NewWeight { name, shape, codec: planned.spec.codec, inputs: false }
}

/// The matrices of a tensor under their Hugging Face names, one an expert or all `stacked`.
fn named(
    family: &Arch,
    source: &dyn Checkpoint,
    planned: &Planned,
    stacked: bool,
    out: &mut Vec<NewWeight>,
) -> Result<()> {
    let t = &source.tensors()[planned.source];
    let one_each = t.shape.len() > 2 && !stacked;
    let shape = t.shape[usize::from(one_each)..].to_vec();
    for plane in 0..if one_each { t.planes() } else { 1 } {
        let expert = one_each.then_some(plane as u32);
        let name = family
            .hf_name(&t.name, expert)
            .ok_or_else(|| Error::unsupported("no name in Hugging Face layout is known for this tensor"))
            .map_err(|e| own_help(e, family, &t.name));
        out.push(NewWeight {
            name: arch::inside(name.at(|| t.name.as_str())?, &t.source),
            shape: shape.clone(),
            codec: planned.spec.codec,
            inputs: planned.inputs,
        });
    }
    Ok(())
}

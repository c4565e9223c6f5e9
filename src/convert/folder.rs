//! The plan of a Hugging Face folder.

use std::path::Path;

use super::plan::{Layout, Plan, Planned, Request, planned_all};
use crate::arch::{Arch, OTHER_TOWER};
use crate::calibrate::stats::Statistics;
use crate::codec::{Activations, Codec, float, fp8};
use crate::container::hf::{self, Calibration, NewWeight, Told};
use crate::container::{Checkpoint, Convention, Tensor};
use crate::error::{At, Error, Result};
use crate::recipe::{self, Recipe};

impl Plan {
    pub(super) fn folder(request: &Request<'_>, recipe: &Recipe, path: &Path) -> Result<Plan> {
        let source = request.source;
        let (Some(folder), Some((arch, spec))) = (source.folder(), source.family()) else {
            return Err(Error::request(format!(
                "a Hugging Face folder cannot be made from a {} file",
                source.container()
            ))
            .help("start from the model's Hugging Face folder: its config.json and tokenizer go into the artifact"));
        };
        if let Some(other) = source.dropped().iter().find(|d| d.reason == OTHER_TOWER) {
            return Err(Error::unsupported(
                "models with parts for images or sound cannot become a Hugging Face folder",
            )
            .at(&other.source)
            .help("GGUF files of their language model can be made"));
        }
        let facts = recipe::ModelFacts::of(&arch.metadata(spec), request.imatrix.is_some())?;
        let made: Vec<String> = arch.extra_tensors(spec).into_iter().map(|(name, _)| name).collect();
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
        let stacked = tensors.iter().any(|t| hf::is_mlx(t.spec.codec));
        for planned in &tensors {
            named(arch, source, planned, stacked, &mut weights)?;
        }
        let floats = recipe.floats.and_then(float::dtype);
        let calibration = request.statistics.and_then(calibration);
        let activations = match recipe.activations {
            Activations::Measured if weights.iter().any(|w| w.inputs) => Activations::Static,
            Activations::Measured => Activations::Plain,
            stated => stated,
        };
        let cache = if recipe.fp8_cache { cache_scales(request, arch, spec.layers)? } else { Vec::new() };
        let told = Told { floats, activations, calibration: calibration.as_ref(), cache: &cache };
        let layout = hf::folder(folder, &weights, told, request.split_max_bytes)?;
        Ok(Plan { target: recipe.name.clone(), path: path.to_owned(), tensors, layout: Layout::Folder(layout) })
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
fn cache_scales(request: &Request<'_>, arch: &Arch, layers: u32) -> Result<Vec<(String, [f32; 2])>> {
    let again = "make them with `quant calibrate MODEL --data text.txt -o STATS` and pass --stats STATS";
    let statistics = request.statistics.ok_or_else(|| {
        Error::request("scales of the KV cache (kv_cache = \"fp8\") come from statistics, and there are none")
            .help(again)
    })?;
    let of_layer = |layer: u32| {
        let name = arch.hf_name(&format!("blk.{layer}.attn_output.weight"), None);
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

const FLOATS: [&dyn Codec; 3] = [&float::F32, &float::F16, &float::BF16];

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

/// The matrices of a tensor under their Hugging Face names, one an expert or all `stacked`.
fn named(
    arch: &Arch,
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
        let name = arch
            .hf_name(&t.name, expert)
            .ok_or_else(|| Error::unsupported("no name in Hugging Face layout is known for this tensor"));
        out.push(NewWeight {
            name: name.at(|| t.name.as_str())?,
            shape: shape.clone(),
            codec: planned.spec.codec,
            inputs: planned.inputs,
        });
    }
    Ok(())
}

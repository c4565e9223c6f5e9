//! Hugging Face folders: safetensors shards, config.json, tokenizer files. Shards are mapped, nothing is copied.

mod bnb;
mod cache;
mod check;
mod declare;
mod exl2;
mod general;
pub mod header;
mod integers;
pub mod json;
mod layout;
mod mlx;
mod place;
mod quantized;
mod scatter;
mod shards;
mod write;

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::tokenizer::{self, Tokenizer, TokenizerOptions};
use super::{Checkpoint, Container, Convention, Dropped, OpenOptions, Raw, Tensor, Weight};
use crate::arch::{Arch, ModelSpec};
use crate::codec::Activations;
use crate::error::{At, Error, Kind, Result};
use crate::metadata::Metadata;
use crate::tensor::Packed;
pub use mlx::owns as is_mlx;
use place::{Content, Found, Placed};
pub use quantized::{SIDECARS, Storage};
pub use shards::INDEX;
use shards::{Located, Shard};
pub use write::{Calibration, Folder, NewWeight, Told, beside_parts, folder, is_own, model_config};

pub const CONFIG: &str = "config.json";
pub const GENERATION: &str = "generation_config.json";

/// The row of [`crate::container::CONTAINERS`].
pub const CONTAINER: Container = Container {
    name: "safetensors",
    about: "a Hugging Face folder: safetensors in one file or shards, config.json, tokenizer (transformers)",
    detect: |path| path.is_dir(),
    open: |path, options| Ok(Box::new(HfFolder::open_with(path, options)?)),
};

/// A model as transformers saves it.
pub struct HfFolder {
    dir: PathBuf,
    options: OpenOptions,
    arch: &'static Arch,
    spec: ModelSpec,
    shards: Vec<Shard>,
    tensors: Vec<Tensor>,
    /// Beside `tensors`: where their bytes are.
    contents: Vec<Content>,
    dropped: Vec<Dropped>,
    beside: Vec<Located>,
    /// Scales of the KV cache.
    scales: Vec<Located>,
    activations: Activations,
    faults: Vec<String>,
    files: Vec<(PathBuf, u64)>,
}

impl HfFolder {
    /// Opens a folder and checks it: every weight that config.json asks for is there, once, with a shape that fits.
    pub fn open(dir: &Path) -> Result<HfFolder> {
        Self::open_with(dir, &OpenOptions::default())
    }

    pub fn open_with(dir: &Path, options: &OpenOptions) -> Result<HfFolder> {
        Self::open_inner(dir, options).map_err(again).at(|| dir.display().to_string())
    }

    fn open_inner(dir: &Path, options: &OpenOptions) -> Result<HfFolder> {
        let (arch, mut spec, storage) = describe(dir)?;
        let activations = match &storage {
            Storage::Packed(packing) => packing.activations,
            _ => Activations::Plain,
        };
        let (shards, located) = shards::open(dir)?;
        spec.tied &= !exl2::has_head(&located);
        let scales = cache::scales(&located);
        let Found { mut placed, dropped, beside, faults } = place::place(arch, &spec, &shards, located, &storage)?;
        placed.extend(arch.extra_tensors(&spec).into_iter().map(Placed::made));
        placed.sort_by_key(|p| natural(&p.tensor));
        let (tensors, contents): (Vec<_>, _) = placed.into_iter().map(|p| (p.tensor, p.content)).unzip();
        check::complete(arch, &spec, &tensors)?;
        check::shapes(&spec, &tensors)?;
        let files = files(dir, &shards);
        Ok(HfFolder {
            dir: dir.to_owned(),
            options: options.clone(),
            arch,
            spec,
            shards,
            tensors,
            contents,
            dropped,
            beside,
            scales,
            activations,
            faults,
            files,
        })
    }

    /// The metadata without the tokenizer's.
    pub fn description(&self) -> Result<Metadata> {
        general::metadata(&self.dir, self.arch, &self.spec, &self.tensors)
    }

    /// All metadata, with the name of the pre-tokenizer or without.
    fn described(&self, nameless: bool) -> Result<Metadata> {
        let mut out = self.description()?;
        let options = TokenizerOptions { pre: self.options.pre.clone(), nameless, ..Default::default() };
        let tokenizer = tokenizer::from_folder(&self.dir, self.arch.name, self.vocabulary(), &options)?;
        out.extend(tokenizer.iter().map(|(k, v)| (k, v.clone())));
        Ok(out)
    }

    /// Rows of the embedding, which the vocabulary is padded to.
    fn vocabulary(&self) -> usize {
        let embedding = self.tensors.iter().find(|t| t.name == "token_embd.weight");
        embedding.map_or(0, |t| t.dims().rows)
    }
}

impl Checkpoint for HfFolder {
    fn container(&self) -> &'static str {
        CONTAINER.name
    }

    fn convention(&self) -> Convention {
        Convention::HuggingFace
    }

    fn arch(&self) -> &str {
        self.arch.name
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn dropped(&self) -> &[Dropped] {
        &self.dropped
    }

    fn beside(&self) -> Vec<Raw<'_>> {
        self.beside.iter().map(|l| l.raw(&self.shards)).collect()
    }

    fn read(&self, tensor: usize, plane: usize) -> Result<Weight<'_>> {
        let (Some(t), Some(content)) = (self.tensors.get(tensor), self.contents.get(tensor)) else {
            return Err(Error::request(format!("there is no tensor {tensor}")));
        };
        let missing = || Error::request(format!("there is no matrix {plane}")).at(&t.name);
        let (parts, scale, inputs) = match content {
            Content::Stored(planes) => {
                let plane = planes.get(plane).ok_or_else(missing)?;
                (plane.parts.iter().map(|part| part.read(&self.shards)).collect(), plane.scale, plane.inputs)
            }
            Content::Made(bytes) if plane == 0 => (vec![Cow::Borrowed(&bytes[..])], 1.0, None),
            Content::Made(_) => return Err(missing()),
        };
        Ok(Weight { codec: t.codec, packed: Packed { dims: t.dims(), parts }, scale, inputs })
    }

    fn family(&self) -> Option<(&'static Arch, &ModelSpec)> {
        Some((self.arch, &self.spec))
    }

    fn metadata(&self) -> Result<Metadata> {
        self.described(true)
    }

    fn gguf_metadata(&self) -> Result<Metadata> {
        self.described(false)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer::load_folder(&self.dir)
    }

    fn activations(&self) -> Activations {
        self.activations
    }

    fn cache_scales(&self) -> Result<Option<Vec<[f32; 2]>>> {
        cache::read(&self.scales, &self.shards, &self.tensors, self.spec.layers)
    }

    fn faults(&self) -> Vec<String> {
        self.faults.clone()
    }

    fn folder(&self) -> Option<&Path> {
        Some(&self.dir)
    }

    fn files(&self) -> Vec<(PathBuf, u64)> {
        self.files.clone()
    }
}

/// The help for whatever has no better one.
fn again(e: Error) -> Error {
    match e.kind {
        Kind::Input => e.help("the folder is damaged or incomplete: download it again"),
        _ => e,
    }
}

/// The files of a folder's model, with their sizes: weights, what is said of them, and what conversions take along.
fn files(dir: &Path, shards: &[Shard]) -> Vec<(PathBuf, u64)> {
    let mut names = shards::listing(dir).unwrap_or_default();
    names.retain(|name| [CONFIG, INDEX].contains(&name.as_str()) || write::is_sidecar(name) || write::is_other(name));
    let small = names.into_iter().map(|name| dir.join(name));
    let small = small.filter_map(|p| std::fs::metadata(&p).ok().filter(|m| m.is_file()).map(|m| (p, m.len())));
    small.chain(shards.iter().map(|s| (s.path.clone(), s.map.len() as u64))).collect()
}

/// Whether `path` looks like a folder of Hugging Face's: it is one, and holds config.json or safetensors files.
pub fn detect(path: &Path) -> bool {
    let known =
        |name: &str| name == CONFIG || name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json");
    path.is_dir() && shards::listing(path).is_ok_and(|names| names.iter().any(|n| known(n)))
}

/// Embedding, layers by number, output; by name within each.
fn natural(t: &Tensor) -> (u8, u32, String) {
    let (group, layer) = match t.id.layer {
        Some(layer) => (1, layer),
        None if t.name.starts_with("output") => (2, 0),
        None => (0, 0),
    };
    (group, layer, t.name.clone())
}

/// What config.json says, or why this model cannot be read. Needs no weights.
pub fn describe(dir: &Path) -> Result<(&'static Arch, ModelSpec, Storage)> {
    let Some(config) = json::config(dir, CONFIG)? else { return Err(no_config(dir)) };
    let (arch, spec, storage) = interpret(&config)?;
    if storage != Storage::Plain {
        return Ok((arch, spec, storage));
    }
    for (file, method) in SIDECARS {
        if let Some(settings) = json::config(dir, file)? {
            return Ok((arch, spec, quantized::method(&settings, method).at(|| *file)?));
        }
    }
    Ok((arch, spec, storage))
}

/// [`describe`] of a parsed config.json.
pub fn interpret(config: &Value) -> Result<(&'static Arch, ModelSpec, Storage)> {
    let storage = quantized::storage(config).at(|| CONFIG)?;
    let (arch, spec) = ModelSpec::from_config(config)?;
    Ok((arch, spec, storage))
}

fn no_config(dir: &Path) -> Error {
    match shards::listing(dir) {
        Err(e) => e,
        Ok(names)
            if names.iter().any(|n| n == "params.json" || n.starts_with("consolidated") || n.ends_with(".gguf")) =>
        {
            shards::no_weights(&names)
        }
        Ok(_) => Error::input("no config.json")
            .help("pass a folder as Hugging Face publishes it, a GGUF file or hf:org/name"),
    }
}

/// The weight files of a folder that holds (or will hold) `names`; the index, if one is among them, is there already.
pub fn weight_files(dir: &Path, names: &[String]) -> Result<Vec<String>> {
    shards::files(dir, names)
}

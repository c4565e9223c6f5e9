//! A folder to be written: weight files, config.json, and what the source has besides.

use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::{Value, json};

use super::declare::{self, Module};
use super::integers::stored_name;
use super::layout::{self, NewTensor};
use super::{CONFIG, SIDECARS, exl2, json as files, mlx, quantized, shards};
use crate::codec::{Activations, Codec, Family, float};
use crate::container::Raw;
use crate::container::sink::{NewFile, Sink, Slot, Start};
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// A matrix or vector to be written.
pub struct NewWeight {
    /// `model.layers.0.mlp.down_proj.weight`
    pub name: String,
    /// `[experts, rows, cols]`, `[rows, cols]` or `[n]`
    pub shape: Vec<usize>,
    pub codec: &'static dyn Codec,
    /// The scale of its inputs is stored as well.
    pub inputs: bool,
}

/// All files of a folder, before one is written.
#[derive(Clone, Debug)]
pub struct Folder {
    /// Their names are relative to the folder. Weight files come first.
    pub files: Vec<NewFile>,
    /// The stored tensors of each weight, in the order given, each in the order of its codec's layout.
    pub names: Vec<String>,
    pub slots: Vec<Slot>,
    /// Tensors that are known already: the last of the slots.
    pub known: Vec<[u8; 4]>,
}

/// What runtimes are told besides the weights.
#[derive(Clone, Copy, Default)]
pub struct Told<'a> {
    /// The element type that config.json shall name, if another than the source's.
    pub floats: Option<Dtype>,
    /// What becomes of the inputs of packed weights.
    pub activations: Activations,
    pub calibration: Option<&'a Calibration>,
    /// Tensors that follow the weights as they are.
    pub beside: &'a [Raw<'a>],
    /// Attention modules (`model.layers.0.self_attn`), and what their keys and values are divided by to become 8-bit floats.
    pub cache: &'a [(String, [f32; 2])],
}

impl Folder {
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|f| f.bytes).sum()
    }

    pub fn shards(&self) -> usize {
        1 + self.slots.iter().map(|s| s.shard).max().unwrap_or(0)
    }

    /// Refuses to replace a model that nobody quantized, unless this is what was made before: another's config.json tells.
    fn spare_originals(&self, path: &Path) -> Result<()> {
        // What cannot be read is not known to be an artifact; what is no folder is looked at later.
        let Ok(Some(there)) = files::config(path, CONFIG) else { return Ok(()) };
        let packed = quantized::KEYS.iter().chain(&[mlx::KEY]).any(|key| there.get(*key).is_some_and(|v| !v.is_null()));
        let ours = self.files.iter().find(|f| f.path.as_os_str() == CONFIG);
        let same = ours.is_some_and(|f| match &f.start {
            Start::Bytes(bytes) => files::parse_config(bytes).is_ok_and(|config| config == there),
            Start::Copy(from) => std::fs::read(from).is_ok_and(|b| files::parse_config(&b).is_ok_and(|c| c == there)),
        });
        if packed || same || SIDECARS.iter().any(|(file, _)| path.join(file).exists()) {
            return Ok(());
        }
        Err(Error::request("the output folder holds a model that is not quantized, and would be lost")
            .at(path.display().to_string())
            .help("write to another name with -o, or remove the folder"))
    }

    /// The weights' places in the sink are those of [`Folder::slots`]; `job` is that of [`Sink::create`].
    pub fn create(&self, path: &Path, inputs: &[PathBuf], job: Option<&str>) -> Result<Sink> {
        let tensors = self.names.iter().cloned().zip(self.slots.iter().copied()).collect();
        if !inputs.iter().any(|i| i.starts_with(path)) {
            self.spare_originals(path)?;
        }
        let replaced = |name: &str| is_weights(name) || is_sidecar(name);
        let sink = Sink::create_folder(path, &self.files, tensors, inputs, job, replaced)?;
        let first = self.slots.len() - self.known.len();
        self.known.iter().enumerate().try_for_each(|(i, bytes)| sink.write_at(first + i, 0, bytes))?;
        Ok(sink)
    }
}

/// The text that the weights were quantized for, as config.json tells it.
pub struct Calibration {
    pub rows: usize,
    pub length: usize,
    pub dataset: String,
}

/// Plans a folder of `weights`, for a model whose other files lie in `source`. `split`: largest size of a weight file.
pub fn folder(source: &Path, weights: &[NewWeight], told: Told<'_>, split: Option<u64>) -> Result<Folder> {
    let Told { floats, activations, calibration, beside, cache } = told;
    let mut tensors = weights.iter().map(stored).collect::<Result<Vec<_>>>()?;
    tensors.extend(beside.iter().map(|raw| {
        let (dtype, shape, bytes) = (raw.dtype, raw.shape.to_vec(), raw.bytes.len() as u64);
        vec![NewTensor { name: raw.name.to_owned(), dtype, shape, bytes }]
    }));
    tensors.extend(cache_scales(weights, cache)?);
    let known = cache.iter().flat_map(|(_, scales)| scales.map(f32::to_le_bytes)).collect();
    let mlx = weights.iter().any(|w| mlx::owns(w.codec));
    let packed = |w: &&NewWeight| !mlx && w.codec.scheme().is_some() && !is_own(w.codec);
    if let Some(embedding) = weights.iter().filter(packed).find(|w| w.name.contains("embed")) {
        return Err(Error::request("loaders of such folders look for embeddings that are not packed")
            .at(&embedding.name)
            .help("keep them (a tied model's are its output too), or make MLX"));
    }
    let (declared, names) = match exl2::declare(weights, calibration)? {
        Some(declared) => (Some(declared), layout::OUTPUT),
        None => (
            declare::declare(&modules(weights, beside, mlx), activations, !cache.is_empty())?,
            if mlx { layout::MLX } else { layout::MODEL },
        ),
    };
    let (mut files, slots) = layout::layout(&tensors, names, split)?;
    let mut config = files::config(source, CONFIG)?.ok_or_else(|| Error::input("no config.json"))?;
    forget(&mut config);
    if let Some(dtype) = floats {
        set_dtype(&mut config, dtype);
    }
    if let Some(declared) = declared {
        if let Some((name, sidecar)) = declared.sidecar {
            files.push(layout::text(name, &sidecar));
        }
        declared.keys.iter().for_each(|key| config[*key] = declared.config.clone());
    }
    files.push(layout::text(CONFIG, &config));
    files.extend(other_files(source)?);
    let names = tensors.into_iter().flatten().map(|t| t.name).collect();
    Ok(Folder { files, names, slots, known })
}

/// The tensors that a weight becomes.
fn stored(weight: &NewWeight) -> Result<Vec<NewTensor>> {
    let NewWeight { name, shape, codec, inputs } = weight;
    if let Some(dtype) = float::dtype(*codec) {
        let bytes = codec.bytes(Dims::new(1, shape.iter().product())).at(|| name)?;
        return Ok(vec![NewTensor { name: name.clone(), dtype, shape: shape.clone(), bytes: bytes as u64 }]);
    }
    let own = is_own(*codec).then_some(name.as_str());
    let (module, experts, dims) = match (name.strip_suffix(".weight").or(own), &shape[..], codec.packed()) {
        (Some(module), &[ref experts @ .., rows, cols], true) => (module, experts, Dims::new(rows, cols)),
        _ => {
            let message = format!("a Hugging Face folder cannot hold {shape:?} as {}", codec.name());
            return Err(Error::request(message).at(name).help("`quant list formats` shows what it can"));
        }
    };
    let parts = codec.layout(dims).at(|| name)?;
    let tensor = |part: crate::codec::Part| NewTensor {
        name: stored_name(module, part.name),
        dtype: part.dtype,
        shape: [experts, &part.shape].concat(),
        bytes: experts.iter().fold(part.bytes as u64, |bytes, n| bytes.saturating_mul(*n as u64)),
    };
    let mut tensors: Vec<NewTensor> = parts.into_iter().map(tensor).collect();
    for (suffix, shape) in beside_parts(*codec, *inputs) {
        tensors.push(NewTensor {
            name: format!("{module}.{suffix}"),
            dtype: Dtype::F32,
            shape: shape.to_vec(),
            bytes: 4,
        });
    }
    Ok(tensors)
}

/// Those of the keys and the values of every attention module.
fn cache_scales(weights: &[NewWeight], cache: &[(String, [f32; 2])]) -> Result<Vec<Vec<NewTensor>>> {
    let Some((first, _)) = cache.first() else { return Ok(Vec::new()) };
    let scheme = weights.iter().find_map(|w| w.codec.scheme());
    let (names, shape) = scheme.and_then(|s| declare::cache_scales(s.family)).ok_or_else(|| {
        Error::request("folders of this format have no place for scales of the KV cache")
            .at(first)
            .help("compressed-tensors (fp8, w4a16, nvfp4 ...) and ModelOpt have: `quant list presets`")
    })?;
    let tensor = |name: String| NewTensor { name, dtype: Dtype::F32, shape: shape.to_vec(), bytes: 4 };
    Ok(cache.iter().map(|(module, _)| names.map(|name| tensor(format!("{module}.{name}"))).to_vec()).collect())
}

/// What lies beside the parts of a matrix: its scale, and that of its inputs.
pub fn beside_parts(codec: &dyn Codec, inputs: bool) -> Vec<(&'static str, &'static [usize])> {
    let Some(scale) = codec.tensor_scale() else { return Vec::new() };
    let input = inputs.then_some((scale.input, scale.shape));
    std::iter::once((scale.weight, scale.shape)).chain(input).collect()
}

/// The layers among the weights: linear ones, experts in a layout of their own, and for MLX every matrix.
fn modules(weights: &[NewWeight], beside: &[Raw<'_>], mlx: bool) -> Vec<Module> {
    let linear = |name: &str, shape: &[usize]| shape.len() == 2 && !name.contains("embed");
    let matrices = weights.iter().filter(|w| mlx || linear(&w.name, &w.shape) || is_own(w.codec));
    let module = |w: &NewWeight| {
        let own = is_own(w.codec).then_some(w.name.as_str());
        Some(Module { name: w.name.strip_suffix(".weight").or(own)?.to_owned(), scheme: w.codec.scheme().copied() })
    };
    let raw = |r: &Raw<'_>| {
        let name = r.name.strip_suffix(".weight").filter(|_| linear(r.name, r.shape))?;
        Some(Module { name: name.to_owned(), scheme: None })
    };
    matrices.filter_map(module).chain(beside.iter().filter_map(raw)).collect()
}

/// Whether a format is that of a stack of experts that is no layer's.
pub fn is_own(codec: &dyn Codec) -> bool {
    codec.scheme().is_some_and(|s| s.family == Family::GptOss)
}

/// Takes out what described the source's own quantization.
fn forget(config: &mut Value) {
    remove(config, quantized::KEYS.iter().chain(&[mlx::KEY]));
}

/// Of the whole and of a model inside it.
fn remove<'a>(config: &mut Value, keys: impl Iterator<Item = &'a &'static str>) {
    for key in keys {
        if let Some(text) = config.get_mut("text_config").and_then(Value::as_object_mut) {
            text.shift_remove(*key);
        }
        if let Some(object) = config.as_object_mut() {
            object.shift_remove(*key);
        }
    }
}

/// What tools write about themselves.
const BOOKKEEPING: &[&str] = &["_name_or_path", "transformers_version", "use_cache"];

/// config.json without what a conversion changes: what it says of the model.
pub fn model_config(dir: &Path) -> Result<Value> {
    let mut config = files::config(dir, CONFIG)?.unwrap_or_default();
    forget(&mut config);
    remove(&mut config, DTYPE.iter().chain(BOOKKEEPING));
    Ok(config)
}

/// The two names that transformers has had for it.
const DTYPE: [&str; 2] = ["dtype", "torch_dtype"];

fn set_dtype(config: &mut Value, dtype: Dtype) {
    let name = float::torch_name(dtype);
    let mut set = false;
    for key in DTYPE {
        let inner = config.get_mut("text_config").and_then(|t| t.get_mut(key));
        inner.into_iter().for_each(|v| *v = json!(name));
        if let Some(value) = config.get_mut(key) {
            *value = json!(name);
            set = true;
        }
    }
    if !set {
        config[DTYPE[1]] = json!(name);
    }
}

fn is_weights(name: &str) -> bool {
    const ENDS: &[&str] = &[
        ".safetensors",
        ".safetensors.index.json",
        ".bin",
        ".bin.index.json",
        ".pt",
        ".pth",
        ".gguf",
        ".onnx",
        ".h5",
        ".msgpack",
        ".tflite",
        ".ot",
    ];
    ENDS.iter().any(|end| name.ends_with(end))
}

pub(super) fn is_sidecar(name: &str) -> bool {
    SIDECARS.iter().any(|(file, _)| *file == name)
}

/// Tokenizer, generation settings, chat template, licence: what is neither weights nor about them.
pub(super) fn is_other(name: &str) -> bool {
    !name.starts_with('.') && name != CONFIG && !is_weights(name) && !is_sidecar(name)
}

/// Every such file of the source.
fn other_files(source: &Path) -> Result<Vec<NewFile>> {
    let mut out = Vec::new();
    for name in shards::listing(source)? {
        let path = source.join(&name);
        let meta = std::fs::metadata(&path).at(|| path.display().to_string())?;
        if meta.is_file() && is_other(&name) {
            out.push(NewFile { path: name.into(), start: Start::Copy(path), bytes: meta.len() });
        }
    }
    Ok(out)
}

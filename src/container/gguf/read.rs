//! A GGUF model on disk, mapped.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use memmap2::Mmap;

use super::{Header, TensorInfo, header, shards};
use crate::arch::{Arch, ModelSpec, WeightId};
use crate::container::map::map;
use crate::container::tokenizer::{self, Tokenizer};
use crate::container::{Checkpoint, Convention, Dropped, Tensor, Weight};
use crate::error::{At, Error, Result};
use crate::metadata::Metadata;
use crate::tensor::Packed;

const KEY_ARCH: &str = "general.architecture";
const KEY_TYPE: &str = "general.type";
/// ggml's type id of the scales.
const F32: u32 = 0;

/// One file or all shards of a split one. Tensors are listed as they are stored, so a weight's `.scale` and
/// `.input_scale` companions are there too, beside being applied by `read`.
pub struct Gguf {
    arch: String,
    family: Option<(&'static Arch, ModelSpec)>,
    metadata: Metadata,
    shards: Vec<Mapped>,
    tensors: Vec<Tensor>,
    places: Vec<Place>,
    contiguous: bool,
    faults: Vec<String>,
}

struct Mapped {
    path: PathBuf,
    map: Mmap,
}

struct Place {
    shard: usize,
    offset: usize,
    /// One value per plane, where the weight has a `.scale` companion.
    scales: Option<Vec<f32>>,
    /// The same of its `.input_scale`.
    inputs: Option<Vec<f32>>,
}

impl Gguf {
    /// Opens a model; of a split one, the first shard. Everything the headers say is checked against the files.
    pub fn open(path: &Path) -> Result<Gguf> {
        let (map, mut first) = map_and_parse(path)?;
        // In this order: later shards of a split model have no architecture either.
        let paths = shards::siblings(path, &first.metadata).at(|| path.display().to_string())?;
        let arch = architecture(&first.metadata).at(|| path.display().to_string())?;
        let metadata = std::mem::take(&mut first.metadata);
        let mut parts = vec![(Mapped { path: path.to_owned(), map }, first)];
        for sibling in paths.iter().flatten().skip(1) {
            let help = "a split model needs all its shards in one folder";
            let (map, header) = map_and_parse(sibling).map_err(|e| e.help(help))?;
            parts.push((Mapped { path: sibling.clone(), map }, header));
        }
        if let Some(paths) = &paths {
            let total = parts.iter().map(|(_, h)| h.tensors.len()).sum();
            for (no, (shard, header)) in parts.iter().enumerate() {
                let metadata = if no == 0 { &metadata } else { &header.metadata };
                shards::check(metadata, no, paths.len(), total).at(|| shard.path.display().to_string())?;
            }
        }
        Gguf::assemble(arch, metadata, parts)
    }

    fn assemble(arch: String, metadata: Metadata, parts: Vec<(Mapped, Header)>) -> Result<Gguf> {
        let contiguous = parts.iter().all(|(_, header)| header.is_contiguous());
        let faults = parts.iter().flat_map(|(shard, header)| faults(shard, header)).collect();
        let (mut shards, mut tensors, mut places) = (Vec::new(), Vec::<Tensor>::new(), Vec::new());
        let mut by_name = HashMap::new();
        for (no, (shard, header)) in parts.into_iter().enumerate() {
            let file = file_name(&shard.path);
            for info in header.tensors {
                if let Some(twin) = by_name.insert(info.name.clone(), tensors.len()) {
                    let message = format!("this tensor is also in {}", tensors[twin].file);
                    return Err(Error::input(message).at(info.name).at(shard.path.display().to_string()));
                }
                places.push(Place { shard: no, offset: info.offset, scales: None, inputs: None });
                tensors.push(describe(info, &file));
            }
            shards.push(shard);
        }
        let family = ModelSpec::from_metadata(&metadata).ok();
        let mut gguf = Gguf { arch, family, metadata, shards, tensors, places, contiguous, faults };
        gguf.attach_scales(&by_name)?;
        Ok(gguf)
    }

    /// Finds `blk.0.attn_q.scale` for `blk.0.attn_q.weight`. llama.cpp multiplies by it whatever the weight's type.
    fn attach_scales(&mut self, by_name: &HashMap<String, usize>) -> Result<()> {
        for weight in 0..self.tensors.len() {
            let Some(stem) = self.tensors[weight].name.strip_suffix(".weight") else { continue };
            let [scales, inputs] = ["scale", "input_scale"].map(|suffix| {
                let companion = *by_name.get(&format!("{stem}.{suffix}"))?;
                let path = &self.shards[self.places[companion].shard].path;
                let scales = self.scales(weight, companion).at(|| self.tensors[companion].name.as_str());
                Some(scales.at(|| path.display().to_string()))
            });
            let (scales, inputs) = (scales.transpose()?, inputs.transpose()?);
            (self.places[weight].scales, self.places[weight].inputs) = (scales, inputs);
        }
        Ok(())
    }

    fn scales(&self, weight: usize, companion: usize) -> Result<Vec<f32>> {
        let (tensor, planes) = (&self.tensors[companion], self.tensors[weight].planes());
        let is_f32 = tensor.codec.block().is_some_and(|b| b.ggml == Some(F32));
        if !is_f32 || tensor.shape.len() != 1 || (tensor.len() != 1 && tensor.len() != planes) {
            let (codec, shape) = (tensor.codec.name(), &tensor.shape);
            return Err(Error::input(format!(
                "a weight's scale is f32 [1] or [{planes}], this one is {codec} {shape:?}"
            )));
        }
        let mut scales = vec![0.0; tensor.len()];
        tensor.codec.decode(&self.packed(companion, 0), 0..1, &mut scales);
        match scales.iter().find(|s| !s.is_finite()) {
            Some(s) => Err(Error::input(format!("a weight's scale is {s}"))),
            None => Ok(scales),
        }
    }

    fn packed(&self, tensor: usize, plane: usize) -> Packed<'_> {
        let (info, place) = (&self.tensors[tensor], &self.places[tensor]);
        let bytes = info.bytes / info.planes();
        let start = place.offset + plane * bytes;
        Packed::one(info.dims(), &self.shards[place.shard].map[start..start + bytes])
    }

    /// Every pair of the first shard, `split.*` and `general.file_type` included.
    pub fn stored_metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Whether llama.cpp would accept the offsets; see [`Header::is_contiguous`].
    pub fn is_contiguous(&self) -> bool {
        self.contiguous
    }
}

impl Checkpoint for Gguf {
    fn container(&self) -> &'static str {
        super::CONTAINER.name
    }

    fn convention(&self) -> Convention {
        Convention::Gguf
    }

    fn arch(&self) -> &str {
        &self.arch
    }

    fn family(&self) -> Option<(&'static Arch, &ModelSpec)> {
        self.family.as_ref().map(|(arch, spec)| (*arch, spec))
    }

    fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    fn dropped(&self) -> &[Dropped] {
        &[]
    }

    fn read(&self, tensor: usize, plane: usize) -> Result<Weight<'_>> {
        let info = self.tensors.get(tensor).filter(|t| plane < t.planes());
        let info = info.ok_or_else(|| Error::request(format!("no plane {plane} of tensor {tensor}")))?;
        let of = |scales: &Option<Vec<f32>>| match scales.as_deref()? {
            [scale] => Some(*scale),
            scales => Some(scales[plane]),
        };
        let (scale, inputs) = (of(&self.places[tensor].scales).unwrap_or(1.0), of(&self.places[tensor].inputs));
        Ok(Weight { codec: info.codec, packed: self.packed(tensor, plane), scale, inputs })
    }

    fn metadata(&self) -> Result<Metadata> {
        let mut metadata = self.metadata.clone();
        for key in shards::KEYS {
            metadata.remove(key);
        }
        Ok(metadata)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer::rebuild(&self.metadata)
    }

    fn faults(&self) -> Vec<String> {
        self.faults.clone()
    }

    fn files(&self) -> Vec<(PathBuf, u64)> {
        self.shards.iter().map(|s| (s.path.clone(), s.map.len() as u64)).collect()
    }
}

/// What llama.cpp refuses, and what no tool writes.
fn faults(shard: &Mapped, header: &Header) -> Vec<String> {
    let gaps = (!header.is_contiguous()).then(|| "a tensor does not begin where the one before it ends".to_owned());
    let trailing = Some(header.trailing(shard.map.len())).filter(|n| *n > 0);
    let trailing = trailing.map(|n| format!("{n} bytes after the last tensor belong to no tensor"));
    gaps.into_iter().chain(trailing).map(|fault| format!("{}: {fault}", file_name(&shard.path))).collect()
}

fn describe(info: TensorInfo, file: &str) -> Tensor {
    Tensor {
        id: WeightId::parse(&info.name),
        source: info.name.clone(),
        name: info.name,
        shape: info.shape,
        codec: info.codec,
        file: file.to_owned(),
        bytes: info.bytes,
    }
}

fn architecture(metadata: &Metadata) -> Result<String> {
    if metadata.str(KEY_TYPE) == Some("imatrix") {
        return Err(Error::request("this is an importance matrix, not a model").help("pass it with --imatrix"));
    }
    match metadata.str(KEY_ARCH) {
        Some(arch) if !arch.is_empty() => Ok(arch.to_owned()),
        _ => Err(Error::input(format!("{KEY_ARCH} is missing"))
            .help("if this is a later shard of a split model, open the first; otherwise it is not a model")),
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn map_and_parse(path: &Path) -> Result<(Mmap, Header)> {
    let opened = || {
        let map = map(path)?;
        let header = header::parse(&map)?;
        Ok((map, header))
    };
    opened().map_err(|e: Error| e.at(path.display().to_string()))
}

//! The plan: for every tensor its codec, size and, where it falls back, why. Made from headers alone.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::arch::{self, Role, Transform};
use crate::calibrate::imatrix::{Entry, Imatrix};
use crate::calibrate::stats::Statistics;
use crate::codec::{self, Activations, Codec, Importance, transcode};
use crate::container::gguf::{self, TensorSpec};
use crate::container::sink::Place;
use crate::container::{Checkpoint, Convention, LeftOut, Sink, Tensor, hf};
use crate::device::Worker;
use crate::error::{At, Error, Result};
use crate::metadata::{Metadata, Value};
use crate::recipe::{self, Choice, Recipe};

use super::scale;

/// One tensor of the output.
#[derive(Debug)]
pub struct Planned {
    /// Index in the source's tensors.
    pub source: usize,
    pub spec: TensorSpec,
    pub choice: Choice,
    /// From the source's rows and offsets to the output's.
    pub transform: Transform,
    pub bytes: usize,
    /// The source's own bytes go over unchanged.
    pub copied: bool,
    /// The source's own codes and scales go over, if the format can say their values exactly.
    pub carried: bool,
    /// The importance file has an entry that the encoder uses.
    pub weighted: bool,
    /// Its codes are solved for, site by site, once all else is written.
    pub solve: bool,
    /// It gets a scale of the whole matrix, and one of its inputs.
    pub scaled: bool,
    pub inputs: bool,
    slots: Slots,
}

/// Where a tensor's bytes go: the slots of its parts, and then of the scales beside them.
#[derive(Clone, Debug)]
struct Slots {
    first: usize,
    /// Bytes of each in one plane.
    parts: Vec<usize>,
    /// The planes of a part follow each other in one slot; else each plane has slots of its own.
    stacked: bool,
    /// Its rows, or the elements of its vectors, and those of another take turns: which of two comes first, and how many there are.
    turns: Option<(usize, usize)>,
}

impl Planned {
    /// The slot of a part of a plane, and where in it the plane begins.
    fn slot(&self, plane: usize, part: usize) -> (usize, u64) {
        let Slots { first, parts, stacked, turns } = &self.slots;
        let owners = if turns.is_some() { 2 } else { 1 };
        match stacked {
            true => (first + part, plane as u64 * owners * parts[part] as u64),
            false => (first + plane * parts.len() + part, 0),
        }
    }

    /// Writes bytes of a part of a plane, `offset` counted from the plane's first.
    pub fn write(&self, sink: &Sink, plane: usize, part: usize, offset: usize, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        for place in self.pieces(plane, part, offset..offset + bytes.len()) {
            let piece = rest.split_off(..place.bytes as usize).unwrap_or_default();
            sink.write_at(place.tensor, place.offset, piece)?;
        }
        Ok(())
    }

    /// Where bytes of a part of a plane go.
    fn pieces(&self, plane: usize, part: usize, bytes: Range<usize>) -> Vec<Place> {
        let (tensor, start) = self.slot(plane, part);
        let Some((first, count)) = self.slots.turns else {
            return vec![Place { tensor, offset: start + bytes.start as u64, bytes: bytes.len() as u64 }];
        };
        let size = (self.slots.parts[part] / count.max(1)).max(1);
        let piece = |n: usize| {
            let own = (n * size).max(bytes.start)..((n + 1) * size).min(bytes.end);
            let offset = start + ((2 * n + first) * size + own.start - n * size) as u64;
            Place { tensor, offset, bytes: own.len() as u64 }
        };
        (bytes.start / size..bytes.end.div_ceil(size)).map(piece).collect()
    }

    /// All parts of a plane.
    pub fn places(&self, plane: usize) -> Vec<Place> {
        let parts = &self.slots.parts[..self.slots.parts.len() - self.suffixes().len()];
        parts.iter().enumerate().flat_map(|(part, bytes)| self.pieces(plane, part, 0..*bytes)).collect()
    }

    /// The slot of a scale that lies beside the parts: 0 is that of the weights, 1 that of the inputs.
    pub fn slot_beside(&self, plane: usize, scale: usize) -> (usize, u64) {
        self.slot(plane, self.slots.parts.len() - self.suffixes().len() + scale)
    }

    /// The GGUF tensors that it becomes: itself and its scales.
    fn specs(&self) -> Vec<TensorSpec> {
        let mut specs = vec![self.spec.clone()];
        let stem = self.spec.name.strip_suffix("weight").unwrap_or(&self.spec.name);
        for suffix in self.suffixes() {
            let shape = vec![planes(&self.spec.shape) as usize];
            specs.push(TensorSpec { name: format!("{stem}{suffix}"), shape, codec: &codec::float::F32 });
        }
        specs
    }

    /// Of the scales beside it.
    fn suffixes(&self) -> Vec<&'static str> {
        let Some(kind) = self.spec.codec.tensor_scale().filter(|_| self.scaled) else { return Vec::new() };
        std::iter::once(kind.weight).chain(self.inputs.then_some(kind.input)).collect()
    }

    /// Whether its codes are chosen from its grid, not by the encoder that ggml has.
    pub fn on_grid(&self) -> bool {
        self.whole() || self.scaled
    }

    /// Whether a matrix must be whole before it is written: words may span its rows.
    pub fn whole(&self) -> bool {
        self.carried || self.spec.codec.packed()
    }
}

/// One output: a file, a set of shards or a folder, fixed before a byte is written.
#[derive(Debug)]
pub struct Plan {
    pub target: String,
    pub path: PathBuf,
    pub tensors: Vec<Planned>,
    pub layout: Layout,
    /// Source tensors that are not in the output.
    pub left_out: Vec<LeftOut>,
    /// Source tensors that are in it as they are, whatever the recipe.
    pub beside: Vec<LeftOut>,
}

/// All files of an output.
#[derive(Debug)]
pub enum Layout {
    Gguf { metadata: Metadata, layout: gguf::Layout },
    Folder(hf::Folder),
}

impl Layout {
    /// Bytes of all files together.
    pub fn bytes(&self) -> u64 {
        match self {
            Layout::Gguf { layout, .. } => layout.bytes(),
            Layout::Folder(folder) => folder.bytes(),
        }
    }

    /// How many files hold weights.
    pub fn shards(&self) -> usize {
        match self {
            Layout::Gguf { layout, .. } => layout.shards.len(),
            Layout::Folder(folder) => folder.shards(),
        }
    }
}

/// What a plan is made from.
pub struct Request<'a> {
    pub source: &'a dyn Checkpoint,
    /// And the path it came from, which the output records.
    pub imatrix: Option<(&'a Imatrix, &'a str)>,
    /// What the inputs of each site look like: with Gram matrices, codes are solved for.
    pub statistics: Option<&'a Statistics>,
    /// Scale columns before rounding (AWQ) where the model has a place for the inverse.
    pub fold: bool,
    /// Choose codes against each other's errors (GPTQ).
    pub feedback: bool,
    /// Look for scales that lose less than those that the largest weights ask for.
    pub search: bool,
    /// Nothing that llama.cpp's quantizer would not do.
    pub exact_llama: bool,
    pub allow_requantize: bool,
    pub split_max_bytes: Option<u64>,
    /// Where codes are chosen. The bytes are the same everywhere.
    pub worker: Worker<'a>,
}

impl Plan {
    pub fn new(request: &Request<'_>, recipe: &Recipe, path: &Path) -> Result<Plan> {
        match recipe.container.as_str() {
            "gguf" => Self::gguf(request, recipe, path),
            "hf" => Self::folder(request, recipe, path),
            other => Err(Error::request(format!("unknown container {other:?}")).help("known containers: gguf, hf")),
        }
    }

    fn gguf(request: &Request<'_>, recipe: &Recipe, path: &Path) -> Result<Plan> {
        let source = request.source;
        let mut metadata = source.gguf_metadata()?;
        let facts = recipe::ModelFacts::of(&metadata, request.imatrix.is_some())?;
        let sources: Vec<recipe::Source<'_>> = source.tensors().iter().map(|t| described(source, t)).collect();
        let tensors = planned_all(request, recipe, &facts, &sources, Convention::Gguf)?;

        if !tensors.iter().all(|t| t.copied) {
            metadata.remove("general.file_type");
        }
        if let Some(file_type) = recipe.file_type {
            replace(&mut metadata, "general.quantization_version", 2u32.into());
            replace(&mut metadata, "general.file_type", file_type.into());
        }
        if let Some((imatrix, file)) = request.imatrix {
            imatrix.metadata(file).into_iter().for_each(|(key, value)| replace(&mut metadata, key, value));
        }
        let specs: Vec<TensorSpec> = tensors.iter().flat_map(Planned::specs).collect();
        let layout = gguf::layout(&metadata, &specs, request.split_max_bytes)?;
        let layout = Layout::Gguf { metadata, layout };
        let left_out = LeftOut::of(source.dropped());
        Ok(Plan { target: recipe.name.clone(), path: path.to_owned(), tensors, layout, left_out, beside: Vec::new() })
    }

    /// Files under temporary names, to be filled in; `job` is that of [`Sink::create`].
    pub fn create(&self, split: Option<u64>, inputs: &[PathBuf], job: Option<&str>) -> Result<Sink> {
        match &self.layout {
            Layout::Gguf { metadata, .. } => {
                let specs = self.specs();
                gguf::create(&self.path, metadata, &specs, split, inputs, job)
            }
            Layout::Folder(folder) => folder.create(&self.path, inputs, job),
        }
    }

    /// Every tensor of a GGUF file, in its order.
    pub fn specs(&self) -> Vec<TensorSpec> {
        self.tensors.iter().flat_map(Planned::specs).collect()
    }

    /// Weights in the model, norms and biases included.
    pub fn weights(&self) -> u64 {
        self.tensors.iter().map(|t| t.spec.shape.iter().map(|&n| n as u64).product::<u64>()).sum()
    }

    /// Bytes of tensor data.
    pub fn bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes as u64).sum()
    }

    /// Bits per weight, over all tensors, as llama-quantize counts them.
    pub fn bpw(&self) -> f64 {
        self.bytes() as f64 * 8.0 / self.weights().max(1) as f64
    }

    /// Weights whose formats use importance, and that have none.
    pub fn unweighted(&self) -> impl Iterator<Item = &Planned> {
        let rest = |t: &&Planned| !t.spec.name.starts_with("output") && !t.spec.name.starts_with("token_embd");
        let asks = |t: &&Planned| t.spec.shape.len() > 1 && !t.copied && uses_importance(t.spec.codec);
        self.tensors.iter().filter(|t| !t.weighted).filter(rest).filter(asks)
    }

    /// Buffers that the conversion holds at its peak, in bytes, where a thread has so many weights at a time. The source is mapped and not
    /// counted.
    pub fn peak_memory(&self, threads: usize, chunk: usize) -> u64 {
        let of = |t: &Planned| {
            let cols = t.spec.shape.last().copied().unwrap_or(1);
            let rows = t.spec.shape.iter().rev().nth(1).copied().unwrap_or(1);
            let chunk = chunk.max(cols) as u64;
            // Decoded, moved and encoded; the last is never the largest.
            let rolling = chunk * 4 * 3;
            // A code a weight, and the parts of a matrix twice: as they are chosen, and as they are stored.
            let whole = if t.whole() { (rows * cols) as u64 + 2 * t.bytes as u64 / planes(&t.spec.shape) } else { 0 };
            rolling + whole
        };
        threads as u64 * self.tensors.iter().map(of).max().unwrap_or(0)
    }
}

fn planes(shape: &[usize]) -> u64 {
    shape.iter().rev().skip(2).product::<usize>().max(1) as u64
}

/// llama-quantize puts what it sets behind all other keys.
fn replace(metadata: &mut Metadata, key: &str, value: Value) {
    metadata.remove(key);
    metadata.set(key, value);
}

/// A tensor as llama.cpp's quantizer would meet it: of a Hugging Face model, after its converter.
fn described<'a>(source: &dyn Checkpoint, t: &'a Tensor) -> recipe::Source<'a> {
    let float32 = source.convention() == Convention::HuggingFace && arch::always_f32(&t.name, &t.shape);
    let codec: &dyn Codec = match float32 {
        true => &codec::float::F32,
        false if hf::is_own(t.codec) => &codec::ggml::fp4::MXFP4,
        false => t.codec,
    };
    recipe::Source { name: &t.name, shape: &t.shape, codec }
}

/// The recipe, applied to all of `sources`.
pub(super) fn planned_all(
    request: &Request<'_>,
    recipe: &Recipe,
    facts: &recipe::ModelFacts,
    sources: &[recipe::Source<'_>],
    convention: Convention,
) -> Result<Vec<Planned>> {
    let index: HashMap<&str, usize> =
        request.source.tensors().iter().enumerate().map(|(i, t)| (t.name.as_str(), i)).collect();
    let choices = recipe::choose(recipe, facts, sources)?;
    let tensors = choices.into_iter().map(|choice| {
        let source = index[choice.name.as_str()];
        planned(request, recipe, source, choice, convention)
    });
    let mut tensors = tensors.collect::<Result<Vec<_>>>()?;
    // GGUF and MLX keep the experts of a layer in one tensor.
    let stacked = convention == Convention::Gguf || tensors.iter().any(|t| hf::is_mlx(t.spec.codec));
    let own = super::folder::own_layout(request.source, &tensors);
    let (mut slot, mut shared) = (0, HashMap::new());
    for planned in &mut tensors {
        let t = &request.source.tensors()[planned.source];
        let mut parts = match convention {
            Convention::Gguf => vec![planned.bytes / t.planes().max(1)],
            Convention::HuggingFace => planned.spec.codec.layout(t.dims())?.iter().map(|p| p.bytes).collect(),
        };
        parts.extend(planned.suffixes().iter().map(|_| size_of::<f32>()));
        let whole = own.name(planned);
        let stacked = stacked || whole.is_some();
        let count = parts.len() * if stacked { 1 } else { t.planes() };
        // A vector an expert lies as a row: its elements are what takes turns.
        let pieces = if t.shape.len() > 2 { t.dims().rows } else { t.len() };
        let (first, turns) = match whole {
            Some((name, arch::Part::Alternate(n))) => (*shared.entry(name).or_insert(slot), Some((n, pieces))),
            _ => (slot, None),
        };
        planned.slots = Slots { first, parts, stacked, turns };
        slot += if first == slot { count } else { 0 };
    }
    Ok(tensors)
}

fn planned(
    request: &Request<'_>,
    recipe: &Recipe,
    index: usize,
    choice: Choice,
    convention: Convention,
) -> Result<Planned> {
    let t = &request.source.tensors()[index];
    let place = || format!("{} ({} in {})", t.name, t.source, t.file);
    let transform = request.source.transform(&t.name, convention);
    transform.check(if t.shape.len() > 1 { t.dims().rows } else { t.len() }).at(place)?;
    let codec = codec::suited(choice.codec, t.codec);
    let bytes = if t.shape.len() > 1 { codec.bytes(t.dims())? * t.planes() } else { choice.size.bytes as usize };
    // What is taken apart is checked on the way: columns out of order would have to be declared.
    let copied = t.codec == codec && transform.is_identity() && !codec.packed();
    // A scale that goes over as a tensor of its own multiplies whatever is written here.
    let scaled = codec.tensor_scale().is_some()
        && !copied
        && own_scale(request.source, t).is_none()
        && (convention == Convention::HuggingFace
            || !request.exact_llama && arch::scale_is_read(request.source.arch(), &t.id));
    let carried = transcode::possible(t.codec, codec, t.dims().cols) && t.codec.tensor_scale().is_some() == scaled;
    if codec::float::is_integer(t.codec) && !copied {
        return Err(Error::input(format!("its elements are integers ({}), which are no weights", t.codec.name()))
            .at(place())
            .help("the checkpoint is damaged, or of a format that is not read: its parts are packed weights"));
    }
    if !copied && !carried {
        refuse_requantize(request, t.codec, codec).at(place)?;
    }
    let entry = request.imatrix.and_then(|(imatrix, _)| imatrix.get(&t.name)).filter(|_| !copied);
    // Also where the format does not use it: an importance matrix of another model must not pass unseen.
    let fits = entry.map(|entry| entry.plane(0, t.planes(), t.dims().cols).map(|_| ()).at(place)).transpose();
    // llama.cpp goes without it for the embedding.
    let fits = if t.id.role == Role::TokenEmbd { fits.unwrap_or(None) } else { fits? };
    let weighted = fits.is_some() && (scaled || uses_importance(codec));
    if choice.needs_importance && !(weighted && entry.is_some_and(Entry::is_known)) {
        return Err(Error::request(format!("{} needs importance, and the matrix has none for it", codec.name()))
            .at(place())
            .help("collect it on more text, or give this weight another format with --set"));
    }
    let spec = TensorSpec { name: t.name.clone(), shape: t.shape.clone(), codec };
    let solve = !copied && !carried && t.shape.len() > 1 && has_grid(codec) && has_gram(request, t);
    let slots = Slots { first: 0, parts: Vec::new(), stacked: false, turns: None };
    let inputs = false;
    let mut out = Planned {
        source: index,
        spec,
        choice,
        transform,
        bytes,
        copied,
        carried,
        weighted,
        solve,
        scaled,
        inputs,
        slots,
    };
    if scaled {
        out.inputs = stores_inputs(request, recipe, &out, convention).at(place)?;
    }
    Ok(out)
}

/// Whether the scales of inputs are stored; they are all there, or this is an error.
fn stores_inputs(request: &Request<'_>, recipe: &Recipe, planned: &Planned, convention: Convention) -> Result<bool> {
    let planes = request.source.tensors()[planned.source].planes();
    let found = || (0..planes).try_for_each(|plane| scale::inputs(request, planned, plane, None).map(|_| ()));
    match (convention, recipe.activations) {
        (Convention::Gguf, _) => Ok(planned.carried && request.source.read(planned.source, 0)?.inputs.is_some()),
        (_, Activations::Static) => found().map(|()| true),
        (_, Activations::Measured) if request.statistics.is_some() => found().map(|()| true),
        _ => Ok(false),
    }
}

/// The scale of a GGUF weight, where it is a tensor of its own.
pub(super) fn own_scale(source: &dyn Checkpoint, t: &Tensor) -> Option<usize> {
    source.find(&format!("{}.scale", t.name.strip_suffix(".weight")?))
}

/// llama.cpp's rule: quantizing what was quantized before costs more than anyone expects. Decoding to floats loses nothing that was
/// still there.
fn refuse_requantize(request: &Request<'_>, from: &dyn Codec, to: &dyn Codec) -> Result<()> {
    let quantized = from.packed() || from.block().is_some_and(|b| b.weights > 1);
    if quantized && codec::float::dtype(to).is_none() && !request.allow_requantize {
        return Err(Error::request(format!("already quantized: {} would become {}", from.name(), to.name()))
            .help("start from the original model, or pass --allow-requantize and accept the added loss"));
    }
    Ok(())
}

fn has_grid(codec: &dyn Codec) -> bool {
    codec.grid().is_some() || codec.joint().is_some()
}

/// Whether the site that reads a weight was measured for solving.
fn has_gram(request: &Request<'_>, t: &Tensor) -> bool {
    let wanted = request.fold || request.feedback;
    let Some(statistics) = request.statistics.filter(|s| wanted && s.about().gram) else { return false };
    let experts = if t.shape.len() > 2 { (0..t.planes() as u32).map(Some).collect() } else { vec![None] };
    experts.iter().any(|e| statistics.site(t.id.layer, &t.id.role, *e).is_some_and(|s| s.gram.is_some()))
}

fn uses_importance(codec: &dyn Codec) -> bool {
    let encode = codec.block().and_then(|b| b.encode);
    codec.packed() || encode.is_some_and(|e| e.importance != Importance::Ignored)
}

//! Source tensors to canonical ones: experts of a layer become one stack, a fused gate and up become two tensors.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use half::bf16;
use safetensors::Dtype;

use super::bnb::{self, Nested};
use super::exl2;
use super::integers::{self, Bundle};
use super::mlx;
use super::quantized::Storage;
use super::scatter::Scatter;
use super::shards::{Located, Shard};
use super::write::is_own;
use crate::arch::{self, Arch, ModelSpec, Part, Place, Placement, WeightId};
use crate::codec::{Codec, float, fp8};
use crate::container::{Dropped, Tensor};
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// Where the bytes of a tensor are.
pub enum Content {
    /// One entry a plane.
    Stored(Vec<Plane>),
    /// Computed from config.json.
    Made(Vec<u8>),
}

/// One matrix.
#[derive(Clone)]
pub struct Plane {
    /// In the order of the codec's layout.
    pub parts: Vec<Stored>,
    /// Multiplies what they decode to.
    pub scale: f32,
    /// What its inputs are divided by before they are rounded, where the file says so.
    pub inputs: Option<f32>,
}

/// One part of a matrix.
#[derive(Clone)]
pub enum Stored {
    Mapped {
        shard: usize,
        bytes: Range<usize>,
        /// BF16 that the codec wants as F32.
        widened: bool,
    },
    Scattered {
        shard: usize,
        all: Scatter,
    },
    Nested(Box<Nested>),
    Made(Vec<u8>),
}

impl Stored {
    /// The `n`th of equal pieces, which are whole rows.
    pub fn plane(&self, n: usize, size: usize) -> Stored {
        let piece = n * size..(n + 1) * size;
        match self {
            Stored::Mapped { shard, bytes, widened } => {
                let bytes = bytes.start + piece.start..bytes.start + piece.end;
                Stored::Mapped { shard: *shard, bytes, widened: *widened }
            }
            Stored::Scattered { shard, all } => {
                let rows = size / (all.shape[1] * all.size).max(1);
                let (from, shape) = (all.from + n * rows * all.step[0], [rows, all.shape[1]]);
                Stored::Scattered { shard: *shard, all: Scatter { from, shape, ..all.clone() } }
            }
            Stored::Nested(nested) => Stored::Nested(Box::new(nested.plane(n, size))),
            Stored::Made(bytes) => Stored::Made(bytes[piece].to_vec()),
        }
    }

    /// Every second of `rows` rows, from row `first` on.
    fn alternate(&self, rows: usize, first: usize) -> Option<Stored> {
        let Stored::Mapped { shard, bytes, widened: false } = self else { return None };
        let size = bytes.len() / rows.max(1);
        let all = Scatter { from: bytes.start + first * size, shape: [rows / 2, 1], step: [2 * size, 0], size };
        Some(Stored::Scattered { shard: *shard, all })
    }

    /// Its bytes as the codec's layout has them.
    pub fn read<'a>(&'a self, shards: &'a [Shard]) -> Cow<'a, [u8]> {
        match self {
            Stored::Made(bytes) => bytes.into(),
            Stored::Mapped { shard, bytes, widened: false } => shards[*shard].map[bytes.clone()].into(),
            // The codec's layout has one type of scale.
            Stored::Mapped { shard, bytes, widened: true } => {
                let halves = shards[*shard].map[bytes.clone()].as_chunks::<2>().0;
                halves.iter().flat_map(|b| bf16::from_le_bytes(*b).to_f32().to_le_bytes()).collect()
            }
            Stored::Scattered { shard, all } => all.gather(&shards[*shard].map).into(),
            Stored::Nested(nested) => nested.read(shards).into(),
        }
    }

    /// Its size in the file.
    pub fn bytes(&self) -> usize {
        match self {
            Stored::Mapped { bytes, .. } => bytes.len(),
            Stored::Nested(nested) => nested.bytes(),
            Stored::Scattered { all, .. } => all.bytes(),
            Stored::Made(bytes) => bytes.len(),
        }
    }
}

pub struct Placed {
    pub tensor: Tensor,
    pub content: Content,
}

impl Placed {
    pub fn made((name, values): (String, Vec<f32>)) -> Placed {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = Tensor {
            id: WeightId::parse(&name),
            name,
            shape: vec![values.len()],
            codec: &float::F32,
            source: "computed from config.json".into(),
            file: super::CONFIG.into(),
            bytes: bytes.len(),
        };
        Placed { tensor, content: Content::Made(bytes) }
    }
}

/// A whole tensor, or one expert of it.
struct Piece {
    tensor: Tensor,
    planes: Vec<Plane>,
}

/// What a folder holds.
pub struct Found {
    /// In no particular order.
    pub placed: Vec<Placed>,
    pub dropped: Vec<Dropped>,
    /// Of what was dropped, the tensors that stay in the model's folder.
    pub beside: Vec<Located>,
    pub faults: Vec<String>,
}

/// Places every tensor of the folder.
pub fn place(
    family: &Arch,
    spec: &ModelSpec,
    shards: &[Shard],
    located: Vec<Located>,
    storage: &Storage,
) -> Result<Found> {
    if let Some(packed) = integers::undeclared(storage, &located) {
        return Err(Error::input("a packed weight, but config.json does not say how it is packed")
            .at(&packed.entry.name)
            .at(&shards[packed.shard].file)
            .help("config.json lacks its quantization_config: download it again"));
    }
    let packed = exl2::is_here(&located);
    let (bundles, located, dropped) = match storage {
        Storage::Packed(packing) => integers::bundles(packing, shards, located)?,
        Storage::Mlx(mlx) => mlx::bundles(mlx, shards, located)?,
        Storage::BitsAndBytes => bnb::bundles(shards, located)?,
        // Folders of the first versions do not say what they are.
        Storage::Plain | Storage::Exl2 if packed => exl2::bundles(family, spec, shards, located)?,
        _ => (Vec::new(), located, Vec::new()),
    };
    if bundles.is_empty() && !matches!(storage, Storage::Plain | Storage::Fp8Block) {
        return Err(Error::input("config.json says that the weights are packed, and none is")
            .help("config.json is of another model: download it again"));
    }
    let is_scale = |l: &Located| *storage == Storage::Fp8Block && l.entry.name.ends_with(SCALE_SUFFIX);
    let (scales, weights): (Vec<_>, Vec<_>) = located.into_iter().partition(is_scale);
    let mut scales: HashMap<_, _> = scales.into_iter().map(|l| (l.entry.name.clone(), l)).collect();
    let mut sorter = Sorter { arch: family, spec, storage, pieces: BTreeMap::new(), dropped };
    let mut faults = Vec::new();
    let embedded = bundles.iter().any(|b| b.name.ends_with(EMBEDDING));
    for bundle in bundles {
        let (source, file) = (bundle.source.clone(), bundle.file.clone());
        faults.extend(bundle.fault.map(|fault| format!("{}: {fault}", bundle.name)));
        sorter.put_bundle(bundle).at(|| source).at(|| file)?;
    }
    let head_alone = spec.tied && !embedded && !weights.iter().any(|w| arch::alone(&w.entry.name) == EMBEDDING);
    let mut beside = Vec::new();
    for mut source in weights {
        let file = &shards[source.shard].file;
        let scale = scales.remove(&format!("{}{SCALE_SUFFIX}", source.entry.name));
        if head_alone && source.entry.name == HEAD {
            EMBEDDING.clone_into(&mut source.entry.name);
        }
        let name = source.entry.name.clone();
        if sorter.put(&source, scale.as_ref(), file).at(|| name).at(|| file.as_str())? {
            beside.extend(std::iter::once(source).chain(scale));
        }
    }
    if let Some(orphan) = scales.values().min_by_key(|l| &l.entry.name) {
        let error = Error::input("a scale without its weight").at(&orphan.entry.name).at(&shards[orphan.shard].file);
        return Err(error);
    }
    let placed = sorter.pieces.into_iter().map(|(name, pieces)| stack(name, pieces, spec)).collect::<Result<_>>()?;
    Ok(Found { placed, dropped: sorter.dropped, beside, faults })
}

/// Collects pieces under canonical names and expert numbers.
struct Sorter<'a> {
    arch: &'a Arch,
    spec: &'a ModelSpec,
    storage: &'a Storage,
    pieces: BTreeMap<String, BTreeMap<Option<u32>, Piece>>,
    dropped: Vec<Dropped>,
}

impl Sorter<'_> {
    /// True if it is not placed, and stays in the model's folder.
    fn put(&mut self, source: &Located, scale: Option<&Located>, file: &str) -> Result<bool> {
        let places = match self.arch.resolve(&source.entry.name, self.spec)? {
            Placement::Place(places) => places,
            Placement::Drop(reason) => {
                for l in std::iter::once(source).chain(scale) {
                    let (source, bytes) = (l.entry.name.clone(), l.entry.bytes.len() as u64);
                    self.dropped.push(Dropped { source, reason, bytes });
                }
                return Ok(arch::STAYING.contains(&reason));
            }
        };
        for place in places {
            let piece = match place.transposed {
                true => self.transposed(source, scale, file, &place)?,
                false => self.piece(source, scale, file, &place.name, &place.part)?,
            };
            self.insert(place.name, place.expert, piece)?;
        }
        Ok(false)
    }

    fn insert(&mut self, name: String, expert: Option<u32>, piece: Piece) -> Result<()> {
        match self.pieces.entry(name).or_default().insert(expert, piece) {
            None => Ok(()),
            Some(other) => Err(Error::input(format!("it and {} are the same weight", other.tensor.source))
                .help("the checkpoint stores one weight twice: remove one of them")),
        }
    }

    fn put_bundle(&mut self, bundle: Bundle) -> Result<()> {
        let Bundle { name, source, file, codec, dims, experts, planes, .. } = bundle;
        let places = match self.arch.resolve(&name, self.spec)? {
            Placement::Place(places) => places,
            Placement::Drop(reason) => {
                let bytes = planes.iter().flat_map(|p| &p.parts).map(|part| part.bytes() as u64).sum();
                self.dropped.push(Dropped { source: name, reason, bytes });
                return Ok(());
            }
        };
        for Place { name, expert, part, transposed } in places {
            let own = is_own(codec);
            let (dims, planes) = match part {
                Part::Whole if own || !transposed => (dims, planes.clone()),
                Part::Alternate(first) if own => {
                    (Dims::new(dims.rows / 2, dims.cols), alternate(&planes, dims, first)?)
                }
                _ => return Err(Error::unsupported("experts that are packed in one tensor")),
            };
            if experts.is_some_and(|n| n != self.spec.experts() as usize || expert.is_some()) {
                let message = format!("{} matrices, config.json says {} experts", planes.len(), self.spec.experts());
                return Err(Error::input(message).help("config.json is of another model: download it again"));
            }
            let tensor = Tensor {
                id: WeightId::parse(&name),
                shape: experts.into_iter().chain([dims.rows, dims.cols]).collect(),
                codec,
                source: source.clone(),
                file: file.clone(),
                bytes: planes.iter().flat_map(|p| &p.parts).map(Stored::bytes).sum(),
                name: name.clone(),
            };
            self.insert(name, expert, Piece { tensor, planes })?;
        }
        Ok(())
    }

    /// Matrices that lie `[inputs, outputs]`, or the vectors of all experts: of their outputs those that `place` names.
    fn transposed(&self, source: &Located, scale: Option<&Located>, file: &str, place: &Place) -> Result<Piece> {
        let (entry, experts) = (&source.entry, self.spec.experts() as usize);
        let &[stack, ref inputs @ .., outputs] = &entry.shape[..] else {
            return Err(Error::input(format!("shape {:?}, but there are {experts} experts", entry.shape)));
        };
        let (first, step) = if let Part::Alternate(first) = place.part { (first, 2) } else { (0, 1) };
        let vectors = place.name.ends_with(".bias");
        let fits = stack == experts && inputs.len() == usize::from(!vectors) && outputs.is_multiple_of(step);
        let inputs: usize = inputs.iter().product();
        if !fits || stack * inputs * outputs == 0 {
            return Err(Error::input(format!("shape {:?}, but config.json says {experts} experts", entry.shape))
                .help("config.json is of another model: download it again"));
        }
        let codec = codec_of(entry.dtype, scale.is_some(), self.storage)?;
        if float::dtype(codec).is_none() {
            return Err(Error::unsupported(format!("experts of type {} that lie transposed", entry.dtype)));
        }
        let (size, kept, from) = (entry.dtype.bitsize() / 8, outputs / step, entry.bytes.start);
        let across = step * size;
        let all = match vectors {
            true => {
                vec![Scatter { from: from + first * size, shape: [stack, kept], step: [outputs * size, across], size }]
            }
            false => (0..stack)
                .map(|n| Scatter {
                    from: from + (n * inputs * outputs + first) * size,
                    shape: [kept, inputs],
                    step: [across, outputs * size],
                    size,
                })
                .collect(),
        };
        let plane =
            |all| Plane { parts: vec![Stored::Scattered { shard: source.shard, all }], scale: 1.0, inputs: None };
        let tensor = Tensor {
            name: place.name.clone(),
            id: WeightId::parse(&place.name),
            shape: if vectors { vec![stack, kept] } else { vec![stack, kept, inputs] },
            codec,
            source: entry.name.clone(),
            file: file.to_owned(),
            bytes: all.iter().map(Scatter::bytes).sum(),
        };
        Ok(Piece { tensor, planes: all.into_iter().map(plane).collect() })
    }

    /// The rows of `source` that `part` names, as a tensor of their own.
    fn piece(&self, source: &Located, scale: Option<&Located>, file: &str, name: &str, part: &Part) -> Result<Piece> {
        let entry = &source.entry;
        let mut tensor = Tensor {
            name: name.to_owned(),
            id: WeightId::parse(name),
            shape: entry.shape.clone(),
            codec: codec_of(entry.dtype, scale.is_some(), self.storage)?,
            source: entry.name.clone(),
            file: file.to_owned(),
            bytes: 0,
        };
        if tensor.is_empty() {
            return Err(Error::input(format!("shape {:?} holds no weights", entry.shape)));
        }
        let (experts, planes) = (self.spec.experts() as usize, tensor.planes());
        if planes > 1 && planes != experts {
            return Err(Error::input(format!("shape {:?}, but config.json says {experts} experts", entry.shape))
                .help("config.json is of another model: download it again"));
        }
        let Dims { rows, cols } = tensor.dims();
        let kept = rows_of(part, rows)?;
        let row = entry.dtype.bitsize() / 8 * cols;
        let plane = |p| {
            let start = entry.bytes.start + (p * rows + kept.start) * row;
            let scale = scale.map(|s| scale_of(s, &tensor, p, &kept)).transpose()?;
            let codes = Stored::Mapped { shard: source.shard, bytes: start..start + kept.len() * row, widened: false };
            Ok(Plane { parts: std::iter::once(codes).chain(scale).collect(), scale: 1.0, inputs: None })
        };
        let planes: Vec<_> = (0..planes).map(plane).collect::<Result<_>>()?;
        if let [.., rows, _] = tensor.shape.as_mut_slice() {
            *rows = kept.len();
        }
        tensor.bytes = tensor.codec.bytes(tensor.dims())? * planes.len();
        Ok(Piece { tensor, planes })
    }
}

/// Every second row of matrices of these dimensions.
fn alternate(planes: &[Plane], dims: Dims, first: usize) -> Result<Vec<Plane>> {
    let half = |part: &Stored| part.alternate(dims.rows, first).filter(|_| dims.rows.is_multiple_of(2));
    let plane = |plane: &Plane| Some(Plane { parts: plane.parts.iter().map(half).collect::<Option<_>>()?, ..*plane });
    planes
        .iter()
        .map(plane)
        .collect::<Option<_>>()
        .ok_or_else(|| Error::input(format!("{} rows are not those of gate and up in turn", dims.rows)))
}

/// A part that is not the whole is one of equal parts: gate and up.
fn rows_of(part: &Part, rows: usize) -> Result<Range<usize>> {
    match part {
        Part::Whole => Ok(0..rows),
        Part::Alternate(_) => Err(Error::unsupported("rows of gate and up in turn")),
        Part::Rows(r) if r.start < r.end && r.len().checked_mul(2) == Some(rows) && r.end <= rows => Ok(r.clone()),
        Part::Rows(r) => Err(Error::input(format!("{rows} rows, but config.json splits them at {}", r.len()))
            .help("config.json is of another model: download it again")),
    }
}

/// Of a tied pair, transformers stores one, and either will do.
const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

const SCALE_SUFFIX: &str = "_scale_inv";

fn codec_of(dtype: Dtype, scaled: bool, storage: &Storage) -> Result<&'static dyn Codec> {
    match (dtype, scaled, storage) {
        (Dtype::F8_E4M3, true, Storage::Fp8Block) => return Ok(&fp8::BLOCK_FP8),
        (Dtype::F8_E4M3, false, Storage::Fp8Block) => {
            return Err(Error::input(format!("an FP8 weight without its scale (..{SCALE_SUFFIX})")));
        }
        (Dtype::I8 | Dtype::F8_E4M3, _, Storage::Packed(_)) => {
            return Err(Error::input("a weight of bytes without its scale (weight_scale)"));
        }
        (_, true, _) => return Err(Error::input(format!("a scale (..{SCALE_SUFFIX}) beside a weight of {dtype}"))),
        _ => {}
    }
    let row = float::DTYPES.iter().find(|(d, _)| *d == dtype);
    let (_, codec) = row.ok_or_else(|| {
        Error::unsupported(format!("elements of type {dtype} are no weights")).help(
            "the checkpoint is quantized in a way that its config.json does not tell: start from the original model",
        )
    })?;
    Ok(*codec)
}

/// The multipliers of rows `kept` of plane `plane` of an FP8 tensor.
fn scale_of(scale: &Located, weight: &Tensor, plane: usize, kept: &Range<usize>) -> Result<Stored> {
    let entry = &scale.entry;
    let Dims { rows, cols } = weight.dims();
    let (down, across) = (rows.div_ceil(fp8::BLOCK), cols.div_ceil(fp8::BLOCK));
    let mut expected = weight.shape.clone();
    if let [.., r, c] = expected.as_mut_slice() {
        (*r, *c) = (down, across);
    }
    if entry.shape != expected {
        let message = format!("its scale has shape {:?} instead of {expected:?}", entry.shape);
        return Err(Error::input(message));
    }
    let size = match entry.dtype {
        Dtype::F32 => 4,
        Dtype::BF16 => 2,
        other => return Err(Error::input(format!("its scale has elements of type {other}"))),
    };
    if !kept.start.is_multiple_of(fp8::BLOCK) || (kept.end != rows && !kept.end.is_multiple_of(fp8::BLOCK)) {
        return Err(Error::unsupported(format!(
            "FP8 blocks of {} rows across the split at row {}",
            fp8::BLOCK,
            kept.end
        )));
    }
    let blocks = kept.start / fp8::BLOCK..kept.end.div_ceil(fp8::BLOCK);
    let start = entry.bytes.start + (plane * down + blocks.start) * across * size;
    let bytes = start..start + blocks.len() * across * size;
    Ok(Stored::Mapped { shard: scale.shard, bytes, widened: entry.dtype == Dtype::BF16 })
}

/// One tensor of all its pieces: itself, or one a expert.
fn stack(name: String, mut pieces: BTreeMap<Option<u32>, Piece>, spec: &ModelSpec) -> Result<Placed> {
    if let Some(whole) = pieces.remove(&None) {
        if let Some(other) = pieces.values().next() {
            let message = format!("both {} and {} hold this weight", whole.tensor.source, other.tensor.source);
            return Err(Error::input(message).at(name).at(&other.tensor.file));
        }
        return Ok(Placed { tensor: whole.tensor, content: Content::Stored(whole.planes) });
    }
    let count = spec.experts();
    if let Some(missing) = (0..count).find(|e| !pieces.contains_key(&Some(*e))) {
        let (_, other) = pieces.first_key_value().expect("a name has at least one piece");
        return Err(Error::input(format!("expert {missing} of {count} is missing"))
            .at(name)
            .at(&other.tensor.file)
            .help(format!(
                "beside {} there should be one for each expert: download the model again",
                other.tensor.source
            )));
    }
    let mut pieces = pieces.into_values();
    let Piece { mut tensor, mut planes } = pieces.next().expect("a name has at least one piece");
    for piece in pieces {
        let other = &piece.tensor;
        if (&other.shape, other.codec) != (&tensor.shape, tensor.codec) {
            let message = format!(
                "experts differ: {:?} of {} here, {:?} of {} in {}",
                other.shape,
                other.codec.name(),
                tensor.shape,
                tensor.codec.name(),
                tensor.source
            );
            return Err(Error::input(message).at(&other.source).at(&other.file));
        }
        tensor.bytes += other.bytes;
        planes.extend(piece.planes);
    }
    tensor.shape.insert(0, planes.len());
    Ok(Placed { tensor, content: Content::Stored(planes) })
}

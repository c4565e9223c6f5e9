//! Formats. A [`Codec`] says how one weight lies in bytes; [`CODECS`] lists them all, and the readers, the planner, the
//! command line, the tests and the benches walk that list. A format's name is written in its own row and nowhere else.

pub mod affine;
pub mod awq;
pub mod bits;
pub mod block;
mod cpu;
pub mod exl2;
pub mod facts;
pub mod float;
pub mod fp4;
pub mod fp8;
pub mod ggml;
mod gptq;
pub mod grid;
pub mod kv;
mod mlx;
pub mod nf4;
mod packed;
pub mod scheme;
pub mod served;
pub mod transcode;

use std::ops::Range;

use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};
pub use block::{Block, Encode, Importance};
pub use facts::{DeviceGrid, Facts};
pub use grid::{Codes, Grid, Joint};
pub use scheme::{Family, Scheme};

/// One stored part of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Suffix of the stored tensor's name: `weight`, `weight_scale_inv` ...
    pub name: &'static str,
    /// Element type and shape, as a safetensors header gives them; GGUF blocks are bytes.
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub bytes: usize,
}

impl Part {
    pub fn new(name: &'static str, dtype: Dtype, shape: Vec<usize>) -> Result<Part> {
        let bytes = shape.iter().try_fold(dtype.bitsize() / 8, |n, d| n.checked_mul(*d));
        let bytes = bytes.ok_or_else(|| Error::input(format!("{shape:?} of {dtype} overflow")))?;
        Ok(Part { name, dtype, shape, bytes })
    }
}

/// What a runtime is told to do with the inputs of quantized weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Activations {
    /// Nothing.
    #[default]
    Plain,
    /// To round them to the weights' format, by their own magnitude.
    Dynamic,
    /// The same, by a scale that was measured beforehand.
    Static,
    /// `Static` where it was measured, else `Plain`.
    Measured,
}

/// A number for a whole matrix that lies beside its parts: a multiplier of its weights. Another one is for its inputs: what
/// runtimes that round them divide them by, where it is fixed beforehand.
#[derive(Debug)]
pub struct TensorScale {
    /// Suffixes of their stored names; both are F32.
    pub weight: &'static str,
    pub input: &'static str,
    pub shape: &'static [usize],
    /// What is stored divides.
    pub divides: bool,
    /// The largest magnitude of weights under a multiplier of 1, and that of inputs.
    pub reach: f32,
    pub input_reach: f32,
    /// The share of `reach` that a search for scales may want to leave free.
    pub room: f32,
    pub power_of_two: bool,
}

impl TensorScale {
    /// The multiplier for weights up to `largest`. 1 for a matrix of zeros.
    ///
    /// Errors: one that no float holds.
    pub fn of(&self, largest: f32, searched: bool) -> Result<f32> {
        let exact = f64::from(largest) / f64::from(self.reach);
        let scale = match (largest == 0.0, searched) {
            (true, _) => 1.0,
            (_, true) if self.power_of_two => (exact * f64::from(self.room)).log2().ceil().exp2(),
            _ => exact,
        };
        Self::stored(scale)
    }

    /// What inputs up to `largest` are divided by.
    pub fn of_inputs(&self, largest: f32) -> Result<f32> {
        Self::stored(f64::from(largest) / f64::from(self.input_reach))
    }

    fn stored(scale: f64) -> Result<f32> {
        let usable = |x: f32| x.is_normal() && x.recip().is_normal();
        Some(scale as f32).filter(|s| usable(*s)).ok_or_else(|| {
            Error::request(format!("its scale would be {scale:e}, which single precision does not hold"))
                .help("keep this weight, or give it a format without a scale of the whole matrix")
        })
    }

    /// From the multiplier to what is stored, and back.
    pub fn turned(&self, scale: f32) -> f32 {
        if self.divides { scale.recip() } else { scale }
    }
}

/// The byte half of a format: layout, decode and, where `quant` writes it, encode.
pub trait Codec: Send + Sync {
    /// Lower-case name, as in `--set` and recipes.
    fn name(&self) -> &str;

    /// The name, or what the names of a family have in common: what lists show.
    fn pattern(&self) -> &str {
        self.name()
    }

    /// One line for `quant list formats`, with the source of the format.
    fn about(&self) -> &'static str;

    /// The parts of a weight and their sizes, or why such a weight cannot be stored so.
    fn layout(&self, dims: Dims) -> Result<Vec<Part>>;

    /// Rows and columns of a weight come in multiples of these.
    fn multiples(&self) -> Dims {
        Dims::new(1, self.block().map_or(1, |b| b.weights))
    }

    /// Decodes whole rows; `out.len() == rows.len() * dims.cols`. The parts have the sizes that `layout` gives:
    /// containers check this when they open a file, so any bytes decode (perhaps to non-finite values) and none panic.
    fn decode(&self, packed: &Packed<'_>, rows: Range<usize>, out: &mut [f32]);

    /// The row-block view: one part, each row a whole number of blocks. `None` for formats with several parts.
    fn block(&self) -> Option<&Block> {
        None
    }

    /// The values that its weights may take. `None` for dense formats and for codebooks of vectors.
    fn grid(&self) -> Option<&dyn Grid> {
        None
    }

    /// How its grid comes about, where each matrix has one of its own.
    fn joint(&self) -> Option<&dyn Joint> {
        None
    }

    /// Its weights are several tensors of a Hugging Face folder.
    fn packed(&self) -> bool {
        self.scheme().is_some()
    }

    /// What configuration files say about it, where it is one of Hugging Face folders.
    fn scheme(&self) -> Option<&Scheme> {
        None
    }

    /// The scale of the whole matrix that lies beside its parts. What is decoded must be multiplied with it.
    fn tensor_scale(&self) -> Option<&'static TensorScale> {
        None
    }

    /// How devices other than the CPU read it. `None`: they are given what the CPU decoded.
    fn facts(&self) -> Option<Facts> {
        self.grid().and_then(Grid::facts)
    }

    /// The inverse of [`Grid::pack`]. `None` for bytes that it does not write, and for formats that cannot be taken apart.
    fn unpack(&self, _: &Packed<'_>) -> Option<Codes> {
        None
    }

    /// Bytes of all parts.
    fn bytes(&self, dims: Dims) -> Result<usize> {
        Ok(self.layout(dims)?.iter().map(|p| p.bytes).sum())
    }
}

impl PartialEq for dyn Codec {
    fn eq(&self, other: &Self) -> bool {
        self.name() == other.name()
    }
}

impl std::fmt::Debug for dyn Codec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Every format that `quant` reads or writes.
pub static CODECS: &[&[&dyn Codec]] = &[
    float::CODECS,
    fp8::CODECS,
    ggml::CODECS,
    &gptq::V1,
    &gptq::V2,
    &awq::CODECS,
    &packed::PACKED,
    &packed::INT,
    &mlx::CODECS,
    fp4::CODECS,
    nf4::CODECS,
    &exl2::CODECS,
];

pub fn all() -> impl Iterator<Item = &'static dyn Codec> {
    CODECS.iter().flat_map(|group| group.iter().copied())
}

pub fn find(name: &str) -> Result<&'static dyn Codec> {
    let known = || all().map(|c| c.name());
    let found = all().find(|c| c.name() == name);
    found.ok_or_else(|| Error::unknown("format", name, known(), "`quant list formats` has all"))
}

/// The codec with this ggml type id.
pub fn ggml_type(id: u32) -> Option<&'static dyn Codec> {
    all().find(|c| c.block().is_some_and(|b| b.ggml == Some(id)))
}

/// `codec` with scales of the model's own type, in formats that follow the model. `model`: what its weights are stored as.
pub fn suited(codec: &'static dyn Codec, model: &dyn Codec) -> &'static dyn Codec {
    use Family::{BnbFp4, Float8, Int, Mlx, Nf4, Packed};
    let follows = |s: &&Scheme| matches!(s.family, Packed | Int | Float8 | Mlx | Nf4 | BnbFp4);
    let Some(scheme) = codec.scheme().filter(follows) else {
        return codec;
    };
    let own = model.scheme().map(|s| s.scales).or_else(|| float::dtype(model).filter(|d| *d == Dtype::F16));
    let scales = own.filter(|_| scheme.scales == Dtype::BF16).unwrap_or(scheme.scales);
    with_scheme(&Scheme { scales, ..*scheme }).unwrap_or(codec)
}

/// Whether weights can be put into this format.
pub fn is_written(codec: &dyn Codec) -> bool {
    codec.scheme().is_some() || codec.joint().is_some() || codec.block().is_some_and(|b| b.encode.is_some())
}

/// Bits per weight of large matrices, scales and all.
pub fn bits_per_weight(codec: &dyn Codec) -> Option<f64> {
    if let Some(block) = codec.block() {
        return Some(block.bytes as f64 * 8.0 / block.weights as f64);
    }
    let side = 8192;
    let bytes = codec.bytes(Dims::new(side, side)).ok()?;
    Some(bytes as f64 * 8.0 / (side * side) as f64)
}

/// The format that a configuration file describes.
pub fn with_scheme(scheme: &Scheme) -> Option<&'static dyn Codec> {
    all().find(|c| c.scheme() == Some(scheme))
}

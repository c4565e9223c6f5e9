//! Weights of several parts: which parts make one weight, and which format their types and shapes tell.

use std::collections::HashMap;

use half::{bf16, f16};
use safetensors::Dtype;

use super::header::Entry;
use super::place::{Plane, Stored};
use super::quantized::{Packing, Storage};
use super::shards::{Located, Shard};
use crate::codec::{self, Codec, Family, Part, Scheme, bits, fp8};
use crate::container::Dropped;
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// A weight of several parts.
pub struct Bundle {
    /// `model.layers.0.mlp.down_proj.weight`
    pub name: String,
    /// Its first part, as it is called in the file.
    pub source: String,
    pub file: String,
    pub codec: &'static dyn Codec,
    pub dims: Dims,
    /// How many matrices of these `dims` it stacks, if it is a stack.
    pub experts: Option<usize>,
    pub planes: Vec<Plane>,
    /// Why other loaders may read other weights.
    pub fault: Option<&'static str>,
}

const BLANK_INDEX: &str = "g_idx puts all columns into group 0: loaders that look there read other weights";

/// Tensors of a folder by name.
pub type All = HashMap<String, Located>;

/// Packed weights, the other tensors in their order, and what is left out.
pub type Found = (Vec<Bundle>, Vec<Located>, Vec<Dropped>);

/// The part by which a packed weight is known.
const MARKS: &[(&str, Mark)] =
    &[(".qweight", Mark::Words), (".weight_packed", Mark::Rows), (BLOCKS, Mark::Blocks), (".weight", Mark::Bytes)];

const BLOCKS: &str = "_blocks";

#[derive(Clone, Copy, PartialEq)]
enum Mark {
    /// GPTQ and AWQ.
    Words,
    /// compressed-tensors, packed.
    Rows,
    /// gpt-oss: all experts of a layer.
    Blocks,
    /// compressed-tensors and ModelOpt, beside a scale.
    Bytes,
}

/// What lies beside weights without being part of them.
const BESIDE: &[(&str, &str)] = &[
    (".input_scale", "a scale of activations"),
    (".input_global_scale", "a scale of activations"),
    (".input_zero_point", "a zero of activations"),
    (".output_scale", "a scale of activations"),
    (".k_scale", "a scale of the KV cache"),
    (".v_scale", "a scale of the KV cache"),
    (".q_scale", "a scale of the KV cache"),
];

/// Parts that no weight claimed say that it is incomplete.
const PARTS: &[&str] = &[
    ".qzeros",
    ".scales",
    "_scales",
    ".biases",
    ".g_idx",
    ".weight_scale",
    ".weight_scale_2",
    ".weight_global_scale",
    ".weight_zero_point",
    ".weight_shape",
    ".weight_g_idx",
    ".absmax",
    ".quant_map",
    ".quant_state.bitsandbytes__nf4",
    ".quant_state.bitsandbytes__fp4",
    ".nested_absmax",
    ".nested_quant_map",
];

/// A packed weight in a folder that does not say that it has any.
pub fn undeclared<'a>(storage: &Storage, located: &'a [Located]) -> Option<&'a Located> {
    let marked = |name: &str| MARKS.iter().any(|(mark, m)| *m != Mark::Bytes && name.ends_with(mark));
    let packed = |l: &&Located| marked(&l.entry.name) || l.entry.dtype == Dtype::U32;
    located.iter().filter(|_| !matches!(storage, Storage::Packed(_) | Storage::Mlx(_))).find(packed)
}

/// Takes all packed weights out of the tensors of a folder.
pub fn bundles(storage: &Packing, shards: &[Shard], located: Vec<Located>) -> Result<Found> {
    collect(shards, located, |name, file, all| {
        let (module, mark) = MARKS.iter().find_map(|(suffix, m)| Some((name.strip_suffix(suffix)?, *m)))?;
        let packed = mark != Mark::Bytes || all.contains_key(&format!("{module}.weight_scale"));
        let module = Module { storage, shards, module };
        packed.then(|| if mark == Mark::Blocks { module.blocks(file, all) } else { module.bundle(mark, file, all) })
    })
}

/// Takes what `bundle` makes of a tensor's name, its file and the tensors that are left, from which it removes the parts.
pub fn collect(
    shards: &[Shard],
    located: Vec<Located>,
    bundle: impl Fn(&str, &str, &mut All) -> Option<Result<Bundle>>,
) -> Result<Found> {
    let mut order: Vec<String> = located.iter().map(|l| l.entry.name.clone()).collect();
    let mut all: All = located.into_iter().map(|l| (l.entry.name.clone(), l)).collect();
    let (mut bundles, mut dropped) = (Vec::new(), Vec::new());
    for name in &order {
        let Some(first) = all.get(name) else { continue };
        let file = shards[first.shard].file.as_str();
        if let Some(bundle) = bundle(name, file, &mut all) {
            bundles.push(bundle.at(|| name.as_str()).at(|| file)?);
        }
    }
    order.retain(|name| all.contains_key(name));
    let mut rest = Vec::new();
    for located in order.iter().filter_map(|name| all.remove(name)) {
        let name = &located.entry.name;
        if let Some((_, reason)) = BESIDE.iter().find(|(suffix, _)| name.ends_with(suffix)) {
            dropped.push(Dropped { source: name.clone(), reason, bytes: located.entry.bytes.len() as u64 });
        } else if PARTS.iter().any(|suffix| name.ends_with(suffix)) {
            return Err(Error::input("a part of a packed weight whose codes are missing")
                .at(name)
                .at(&shards[located.shard].file));
        } else {
            rest.push(located);
        }
    }
    Ok((bundles, rest, dropped))
}

struct Module<'a> {
    storage: &'a Packing,
    shards: &'a [Shard],
    module: &'a str,
}

impl Module<'_> {
    fn bundle(&self, mark: Mark, file: &str, all: &mut All) -> Result<Bundle> {
        let codes = if mark == Mark::Rows { "weight_packed" } else { "weight" };
        let (scheme, dims) = match (mark, all.get(&format!("{}.{codes}", self.module)).map(|l| l.entry.dtype)) {
            (Mark::Words, _) => self.transposed(all)?,
            (_, Some(Dtype::U8)) => self.fours(all, codes)?,
            (Mark::Rows, _) => self.rows(all)?,
            (Mark::Bytes, Some(Dtype::F8_E4M3)) => self.eights(all)?,
            (Mark::Bytes | Mark::Blocks, _) => self.bytes(all)?,
        };
        let ragged = scheme.family == Family::Float8 && scheme.group.is_some_and(|g| !dims.cols.is_multiple_of(g));
        let codec = if ragged { Some(&fp8::BLOCK_FP8 as &dyn Codec) } else { codec::with_scheme(&scheme) };
        let codec = codec.ok_or_else(|| {
            let group = scheme.group.map_or_else(|| "whole rows".to_owned(), |g| format!("groups of {g}"));
            Error::unsupported(format!("{} bits in {group} with scales of {}", scheme.bits, scheme.scales))
        })?;
        // The shapes in a file are no request of anyone's.
        let layout = codec.layout(dims).map_err(|e| Error::input(e.message()))?;
        let mut parts = layout.iter().map(|part| take(self.module, all, part, None)).collect::<Result<Vec<_>>>()?;
        let mut fault = None;
        if let (Mark::Words, [_, zeros, _, index]) = (mark, parts.as_mut_slice()) {
            fault = self.check_index(&scheme, dims.cols, index).at(|| format!("{}.g_idx", self.module))?;
            self.check_zeros(&scheme, zeros).at(|| format!("{}.qzeros", self.module))?;
        }
        if let Some(index) = all.get(&format!("{}.weight_g_idx", self.module)) {
            let message = "columns in the order of their activations (weight_g_idx)";
            return Err(Error::unsupported(message).at(&index.entry.name));
        }
        let name = format!("{}.weight", self.module);
        let source = format!("{}.{}", self.module, layout[0].name);
        let (scale, inputs) = self.tensor_scale(codec, all)?;
        let planes = vec![Plane { parts, scale, inputs }];
        Ok(Bundle { name, source, file: file.to_owned(), codec, dims, experts: None, planes, fault })
    }

    /// The experts of a layer, packed in the file's own order of rows.
    fn blocks(&self, file: &str, all: &mut All) -> Result<Bundle> {
        let codec = codec::all().find(|c| c.scheme().is_some_and(|s| s.family == Family::GptOss));
        let codec = codec.filter(|_| self.storage.family == Family::GptOss);
        let codec = codec.ok_or_else(|| Error::input("blocks of 4-bit floats, but config.json does not say mxfp4"))?;
        let shape = &find(self.module, all, BLOCKS)?.entry.shape;
        let dims = match shape[..] {
            [_, rows, blocks, _] if !shape.contains(&0) => blocks.checked_mul(32).map(|cols| Dims::new(rows, cols)),
            _ => None,
        };
        let dims = dims.ok_or_else(|| Error::input(format!("shape {shape:?} is not one of blocks")))?;
        let experts = Some(shape[0]);
        let layout = codec.layout(dims).map_err(|e| Error::input(e.message()))?;
        let planes = planes(self.module, all, &layout, experts)?;
        let (name, source) = (self.module.to_owned(), format!("{}{BLOCKS}", self.module));
        Ok(Bundle { name, source, file: file.to_owned(), codec, dims, experts, planes, fault: None })
    }

    /// The multipliers that lie beside the parts: of the weights, and of the inputs where the file has it.
    fn tensor_scale(&self, codec: &dyn Codec, all: &mut All) -> Result<(f32, Option<f32>)> {
        let Some(kind) = codec.tensor_scale() else { return Ok((1.0, None)) };
        find(self.module, all, kind.weight)?;
        let mut take = |suffix: &str| {
            let name = format!("{}.{suffix}", self.module);
            let located = all.remove(&name)?;
            let number = number(&self.shards[located.shard].map[located.entry.bytes.clone()], located.entry.dtype);
            let scale = number.map(|x| kind.turned(x)).filter(|s| s.is_finite() && *s > 0.0);
            Some(scale.ok_or_else(|| {
                let (shape, dtype) = (&located.entry.shape, located.entry.dtype);
                let value = number.map_or_else(String::new, |x| format!(", {x:e}"));
                Error::input(format!("a scale must be one positive number, this is {shape:?} of {dtype}{value}"))
                    .at(name)
            }))
        };
        Ok((take(kind.weight).transpose()?.unwrap_or(1.0), take(kind.input).transpose()?))
    }

    /// Two dimensions of a part.
    fn shape(&self, all: &All, part: &str) -> Result<[usize; 2]> {
        let shape = &find(self.module, all, part)?.entry.shape;
        match shape[..] {
            [rows, cols] if rows > 0 && cols > 0 => Ok([rows, cols]),
            // One scale a row.
            [rows] if rows > 0 => Ok([rows, 1]),
            _ => Err(Error::input(format!("{part} has shape {shape:?}"))),
        }
    }

    fn group(&self, cols: usize, groups: usize) -> Result<Option<usize>> {
        let stated = &self.storage.groups;
        match cols.checked_rem(groups) {
            Some(0) if groups > 1 && !stated.is_empty() && !stated.contains(&Some(cols / groups)) => {
                let sizes: Vec<String> = stated.iter().map(|s| s.map_or("all".to_owned(), |n| n.to_string())).collect();
                let message =
                    format!("its scales are of {} columns each, config.json says {}", cols / groups, sizes.join(", "));
                Err(Error::input(message).help("config.json is of another model: download it again"))
            }
            // One group of all columns, or the only group of a narrow matrix.
            Some(0) => Ok(Some(cols / groups).filter(|_| groups > 1 || !(stated.is_empty() || stated.contains(&None)))),
            _ => Err(Error::unsupported(format!("{cols} columns in {groups} groups, the last of them cut off"))),
        }
    }

    fn width(&self, bits: usize, message: impl FnOnce() -> String) -> Result<usize> {
        match self.storage.widths.is_empty() || self.storage.widths.contains(&bits) {
            true => Ok(bits),
            false => Err(Error::input(message()).help("config.json is of another model: download it again")),
        }
    }

    /// GPTQ and AWQ: the matrix lies transposed.
    fn transposed(&self, all: &All) -> Result<(Scheme, Dims)> {
        let [down, across] = self.shape(all, "qweight")?;
        let [groups, _] = self.shape(all, "scales")?;
        let scales = scales(self.module, all, "scales")?;
        let family = self.storage.family;
        if family == Family::Awq {
            let overflow = || Error::input("its shape overflows");
            let dims = Dims::new(across.checked_mul(8).ok_or_else(overflow)?, down);
            let group = self.group(dims.cols, groups)?;
            return Ok((Scheme { family, bits: 4, group, symmetric: false, scales }, dims));
        }
        let stated = self.storage.widths.first().copied();
        let cols = match (all.get(&format!("{}.g_idx", self.module)), stated) {
            (Some(index), _) => index.entry.shape.first().copied().unwrap_or(0),
            (None, Some(bits)) => down / bits * 32 + down % bits * 32 / bits,
            (None, None) => return Err(Error::input("its part g_idx is missing")),
        };
        let fits = [2, 3, 4, 8].into_iter().find(|b| bits::words(cols, *b) == down && cols > 0);
        let bits = fits.ok_or_else(|| Error::input(format!("{down} rows of words for {cols} columns")))?;
        let bits =
            self.width(bits, || format!("its codes have {bits} bits, config.json says {}", stated.unwrap_or(0)))?;
        let group = self.group(cols, groups)?;
        Ok((Scheme { family, bits, group, symmetric: family == Family::Gptq, scales }, Dims::new(across, cols)))
    }

    /// compressed-tensors, packed.
    fn rows(&self, all: &All) -> Result<(Scheme, Dims)> {
        let shape = find(self.module, all, "weight_shape")?;
        let bytes = &self.shards[shape.shard].map[shape.entry.bytes.clone()];
        let size = |n: usize| {
            let bytes: [u8; 8] = bytes.get(n * 8..n * 8 + 8)?.try_into().ok()?;
            usize::try_from(i64::from_le_bytes(bytes)).ok().filter(|n| *n > 0)
        };
        let dims = match (shape.entry.dtype, size(0), size(1)) {
            (Dtype::I64, Some(rows), Some(cols)) if bytes.len() == 16 => Dims::new(rows, cols),
            _ => return Err(Error::input("weight_shape does not hold two sizes")),
        };
        let [rows, across] = self.shape(all, "weight_packed")?;
        if rows != dims.rows {
            return Err(Error::input(format!("weight_shape says {} rows, weight_packed has {rows}", dims.rows)));
        }
        let widths = self.storage.widths.iter().copied();
        let bits = widths.clone().filter(|b| (2..=8).contains(b)).find(|b| bits::words(dims.cols, *b) == across);
        let Some(bits) = bits else {
            let gaps = widths.into_iter().find(|b| (2..=8).contains(b) && dims.cols.div_ceil(32 / b) == across);
            return Err(match gaps {
                Some(bits) => Error::unsupported(format!(
                    "{bits}-bit codes with gaps, as compressed-tensors before 0.17 packed them"
                )),
                None => Error::input(format!(
                    "{across} words a row for {} columns of {:?} bits",
                    dims.cols, self.storage.widths
                )),
            });
        };
        let [_, groups] = self.shape(all, "weight_scale")?;
        let symmetric = !all.contains_key(&format!("{}.weight_zero_point", self.module));
        let (group, scales) = (self.group(dims.cols, groups)?, scales(self.module, all, "weight_scale")?);
        Ok((Scheme { family: Family::Packed, bits, group, symmetric, scales }, dims))
    }

    /// compressed-tensors, a byte a weight.
    fn bytes(&self, all: &All) -> Result<(Scheme, Dims)> {
        let [rows, cols] = self.shape(all, "weight")?;
        let [_, groups] = self.shape(all, "weight_scale")?;
        let symmetric = !all.contains_key(&format!("{}.weight_zero_point", self.module));
        let bits = self.width(8, || format!("its codes have 8 bits, config.json says {:?}", self.storage.widths))?;
        let (group, scales) = (self.group(cols, groups)?, scales(self.module, all, "weight_scale")?);
        Ok((Scheme { family: Family::Int, bits, group, symmetric, scales }, Dims::new(rows, cols)))
    }

    /// Floats of four bits.
    fn fours(&self, all: &All, codes: &str) -> Result<(Scheme, Dims)> {
        let [rows, bytes] = self.shape(all, codes)?;
        let cols = bytes.checked_mul(2).ok_or_else(|| Error::input("its shape overflows"))?;
        let scales = find(self.module, all, "weight_scale")?.entry.dtype;
        let (family, group) = match (codes, scales) {
            ("weight", Dtype::F8_E4M3) => (Family::ModelOptNvfp4, 16),
            (_, Dtype::F8_E4M3) => (Family::Nvfp4, 16),
            ("weight_packed", Dtype::U8) => (Family::Mxfp4, 32),
            (_, other) => {
                return Err(Error::unsupported(format!("4-bit floats in {codes} with weight_scale of type {other}")));
            }
        };
        Ok((Scheme { family, bits: 4, group: Some(group), symmetric: true, scales }, Dims::new(rows, cols)))
    }

    /// Floats of eight bits, under scales of rows, of squares, of runs of columns or of the matrix.
    fn eights(&self, all: &All) -> Result<(Scheme, Dims)> {
        let [rows, cols] = self.shape(all, "weight")?;
        let Entry { shape, dtype, .. } = &find(self.module, all, "weight_scale")?.entry;
        let squares = [rows.div_ceil(fp8::BLOCK), cols.div_ceil(fp8::BLOCK)];
        let modelopt = self.storage.family == Family::ModelOptNvfp4;
        let one = if modelopt { Family::ModelOptFloat8 } else { Family::Float8Tensor };
        let (family, group) = match shape[..] {
            [r, c] if (*dtype, r, c.checked_mul(32)) == (Dtype::U8, rows, Some(cols)) => (Family::Mxfp8, Some(32)),
            [] | [1] => (one, None),
            [r] | [r, 1] if r == rows => (Family::Float8, None),
            [r, c] if [r, c] == squares => (Family::Float8, Some(fp8::BLOCK)),
            _ => return Err(Error::input(format!("weight_scale has shape {shape:?} for {rows} x {cols} weights"))),
        };
        let scales = match family {
            Family::Mxfp8 => *dtype,
            Family::Float8 => scales(self.module, all, "weight_scale")?,
            _ => Dtype::F32,
        };
        Ok((Scheme { family, bits: 8, group, symmetric: true, scales }, Dims::new(rows, cols)))
    }

    /// Every column belongs to a group, and to the one that kernels take when they do not look here. Returns why they might not.
    fn check_index(&self, scheme: &Scheme, cols: usize, index: &mut Stored) -> Result<Option<&'static str>> {
        let (group, groups) = (scheme.columns(cols), scheme.groups(cols));
        if let Some(beyond) = words(self.shards, index).find(|g| *g as usize >= groups) {
            return Err(Error::input(format!("a column belongs to group {}, there are {groups}", beyond as i32)));
        }
        // Some tools leave it out, others leave it zero.
        let blank = words(self.shards, index).all(|g| g == 0);
        let fault = blank && !self.storage.permuted && groups > 1 && index.bytes() > 0;
        if !self.storage.permuted && blank {
            let natural = (0..cols).flat_map(|k| ((k / group) as u32).to_le_bytes());
            *index = Stored::Made(natural.collect());
        }
        if !self.storage.permuted && words(self.shards, index).enumerate().any(|(k, g)| g as usize != k / group) {
            return Err(Error::input("columns are out of order, but config.json does not say desc_act")
                .help("loaders read such a file differently: set \"desc_act\": true if it was quantized so"));
        }
        Ok(fault.then_some(BLANK_INDEX))
    }

    /// Version 1 stores a zero less one. What became of a zero of 0, its tools and kernels do not agree on.
    fn check_zeros(&self, scheme: &Scheme, zeros: &Stored) -> Result<()> {
        let words: Vec<u32> = words(self.shards, zeros).collect();
        let top = (1u16 << scheme.bits) - 1;
        let mut codes = (0..words.len() * 32 / scheme.bits).map(|n| bits::get(scheme.bits, n, |i| words[i]));
        if scheme.family == Family::Gptq && codes.any(|z| u16::from(z) == top) {
            return Err(Error::unsupported("a zero of 0 in checkpoint_format gptq, which loaders read differently")
                .help("convert it to checkpoint_format gptq_v2 with the tool that wrote it"));
        }
        Ok(())
    }
}

/// What a part of a module's weight is called. Of gpt-oss it is no layer's.
pub fn stored_name(module: &str, part: &str) -> String {
    if part.starts_with('_') { format!("{module}{part}") } else { format!("{module}.{part}") }
}

/// Takes the parts of one matrix, or of a stack of so many.
pub fn planes(module: &str, all: &mut All, layout: &[Part], experts: Option<usize>) -> Result<Vec<Plane>> {
    let parts: Vec<Stored> = layout.iter().map(|part| take(module, all, part, experts)).collect::<Result<_>>()?;
    let plane = |n| {
        let parts = parts.iter().zip(layout).map(|(part, one)| part.plane(n, one.bytes)).collect();
        Plane { parts, scale: 1.0, inputs: None }
    };
    Ok((0..experts.unwrap_or(1)).map(plane).collect())
}

pub fn find<'a>(module: &str, all: &'a All, part: &str) -> Result<&'a Located> {
    let name = stored_name(module, part);
    all.get(&name).ok_or_else(|| Error::input(format!("its part {name} is missing")))
}

/// The type of a part's scales.
pub fn scales(module: &str, all: &All, part: &str) -> Result<Dtype> {
    let dtype = find(module, all, part)?.entry.dtype;
    match dtype {
        Dtype::F16 | Dtype::BF16 | Dtype::F32 => Ok(dtype),
        other => Err(Error::unsupported(format!("{part} has elements of type {other}"))),
    }
}

/// Takes one part, of one matrix or of so many; its type and shape must be those of the layout.
pub fn take(module: &str, all: &mut All, part: &Part, experts: Option<usize>) -> Result<Stored> {
    // Of two names for one thing, compressed-tensors has the shorter.
    let own = part.name.strip_suffix("_inv").unwrap_or(part.name);
    let name = stored_name(module, own);
    let Some(located) = all.remove(&name) else {
        return match part.name {
            // Tools that never reorder columns leave it out.
            "g_idx" => Ok(Stored::Made(Vec::new())),
            _ => Err(Error::input(format!("its part {name} is missing"))),
        };
    };
    let expected: Vec<usize> = experts.into_iter().chain(part.shape.iter().copied()).collect();
    let (have, shape) = (located.entry.dtype, &located.entry.shape);
    let words = (have, part.dtype) == (Dtype::U32, Dtype::I32);
    // A column of scales may be stored as a vector.
    let column = expected.split_last().is_some_and(|(last, rest)| *last == 1 && rest == shape.as_slice());
    let widened = (have, part.dtype) == (Dtype::BF16, Dtype::F32);
    if (have != part.dtype && !words && !widened) || (*shape != expected && !column) {
        let message = format!("{shape:?} of {have} instead of {expected:?} of {}", part.dtype);
        return Err(Error::input(message).at(name));
    }
    Ok(Stored::Mapped { shard: located.shard, bytes: located.entry.bytes, widened })
}

/// The only number of a tensor.
pub fn number(bytes: &[u8], dtype: Dtype) -> Option<f32> {
    match (dtype, bytes) {
        (Dtype::F32, &[a, b, c, d]) => Some(f32::from_le_bytes([a, b, c, d])),
        (Dtype::BF16, &[a, b]) => Some(bf16::from_le_bytes([a, b]).to_f32()),
        (Dtype::F16, &[a, b]) => Some(f16::from_le_bytes([a, b]).to_f32()),
        _ => None,
    }
}

fn words(shards: &[Shard], part: &Stored) -> impl Iterator<Item = u32> {
    let words: Vec<u32> = part.read(shards).as_chunks::<4>().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
    words.into_iter()
}

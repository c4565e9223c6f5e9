//! EXL2 folders: weights that bring their own bands. Loaders know them by their parts, whatever config.json says. Source:
//! exllamav2 `module.py`, `ext.py`, `conversion/compile.py`; the parts are described in [`crate::codec::exl2`].

use std::collections::HashMap;

use safetensors::Dtype;
use serde_json::json;

use super::check;
use super::declare::{Declaration, KEYS};
use super::integers::Bundle;
use super::place::{Plane, Stored};
use super::shards::{Located, Shard};
use super::write::{Calibration, NewWeight};
use crate::arch::{Arch, ModelSpec, Placement, Role, WeightId};
use crate::codec;
use crate::codec::exl2::{self, Bands};
use crate::container::Dropped;
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

const MARK: &str = ".q_weight";
const SCALES: &str = ".q_scale_max";
/// Parts that no weight claimed say that it is incomplete.
const PARTS: &[&str] = &[".q_scale", SCALES, ".q_groups", ".q_invperm"];
/// The inverse of `q_invperm`, which old files have besides.
const ORDER: &str = ".q_perm";

pub fn is_here(located: &[Located]) -> bool {
    located.iter().any(|l| l.entry.name.ends_with(MARK))
}

/// A tied model has a head of its own once it is quantized.
pub fn has_head(located: &[Located]) -> bool {
    located.iter().any(|l| l.entry.name == "lm_head.q_weight")
}

/// Takes all packed weights out of the tensors of a folder.
pub fn bundles(
    arch: &Arch,
    spec: &ModelSpec,
    shards: &[Shard],
    located: Vec<Located>,
) -> Result<(Vec<Bundle>, Vec<Located>, Vec<Dropped>)> {
    let names: Vec<String> = located.iter().map(|l| l.entry.name.clone()).collect();
    let mut all: HashMap<String, Located> = located.into_iter().map(|l| (l.entry.name.clone(), l)).collect();
    let mut bundles = Vec::new();
    for name in &names {
        let Some(module) = name.strip_suffix(MARK) else { continue };
        let file = all.get(name).map_or_else(String::new, |l| shards[l.shard].file.clone());
        let bundle = Module { arch, spec, shards, module }.bundle(&file, &mut all);
        bundles.push(bundle.at(|| name.as_str()).at(|| file)?);
    }
    let (mut rest, mut dropped) = (Vec::new(), Vec::new());
    for located in names.iter().filter_map(|name| all.remove(name)) {
        let name = &located.entry.name;
        if PARTS.iter().any(|suffix| name.ends_with(suffix)) {
            let error = Error::input("a part of a packed weight whose codes are missing").at(name);
            return Err(error.at(&shards[located.shard].file));
        }
        match name.ends_with(ORDER) {
            true => dropped.push(Dropped {
                source: name.clone(),
                reason: "q_invperm says the same",
                bytes: located.entry.bytes.len() as u64,
            }),
            false => rest.push(located),
        }
    }
    Ok((bundles, rest, dropped))
}

struct Module<'a> {
    arch: &'a Arch,
    spec: &'a ModelSpec,
    shards: &'a [Shard],
    module: &'a str,
}

impl Module<'_> {
    fn bundle(&self, file: &str, all: &mut HashMap<String, Located>) -> Result<Bundle> {
        let wrong = |part: &str, l: &Located| {
            let message = format!("{part} has shape {:?} of {}", l.entry.shape, l.entry.dtype);
            Error::input(message).at(&l.entry.name)
        };
        let mut take = |part: &str, dtype: Dtype| -> Result<(Located, Vec<usize>)> {
            let name = format!("{}.{part}", self.module);
            let located = all.remove(&name).ok_or_else(|| Error::input(format!("its part {name} is missing")))?;
            let shape = located.entry.shape.clone();
            if located.entry.dtype != dtype || shape.contains(&0) {
                return Err(wrong(part, &located));
            }
            Ok((located, shape))
        };
        let weight = take("q_weight", Dtype::I32)?;
        let scale = take("q_scale", Dtype::I32)?;
        let largest = take("q_scale_max", Dtype::F16)?;
        let groups = take("q_groups", Dtype::I16)?;
        let places = take("q_invperm", Dtype::I32)?;
        let (&[words, across], &[cols], &[pairs]) = (&weight.1[..], &places.1[..], &groups.1[..]) else {
            return Err(Error::input("q_weight has two dimensions, q_groups and q_invperm have one"));
        };
        if !across.is_multiple_of(exl2::ROWS) {
            return Err(wrong("q_weight", &weight.0));
        }
        let count = pairs / 2;
        for (part, (located, shape), expected) in [
            ("q_groups", &groups, &[2 * count][..]),
            ("q_scale", &scale, &[count, across / 8]),
            ("q_scale_max", &largest, &[count]),
        ] {
            if shape != expected {
                return Err(wrong(part, located));
            }
        }
        let bands = Bands::parse(self.bytes(&groups.0), words, cols).at(|| groups.0.entry.name.as_str())?;
        exl2::order(self.bytes(&places.0)).at(|| places.0.entry.name.as_str())?;
        let halves = self.bytes(&largest.0).as_chunks::<2>().0;
        if let Some(g) = halves.iter().position(|b| !half::f16::from_le_bytes(*b).is_finite()) {
            let error = Error::input(format!("the scale of group {g} is no finite number")).at(&largest.0.entry.name);
            return Err(error.help("the file is damaged or was quantized from one that is: download it again"));
        }
        let bias = all.get(&format!("{}.bias", self.module)).and_then(|l| l.entry.shape.first().copied());
        let dims = Dims::new(self.rows(across, bias, all)?, cols);
        let parts = [weight, scale, largest, groups, places];
        let stored =
            |(l, _): (Located, Vec<usize>)| Stored::Mapped { shard: l.shard, bytes: l.entry.bytes, widened: false };
        Ok(Bundle {
            name: self.weight(),
            source: format!("{}{MARK}", self.module),
            file: file.to_owned(),
            codec: exl2::with_bands(&bands, cols).unwrap_or(&exl2::OTHER),
            dims,
            experts: None,
            planes: vec![Plane { parts: parts.into_iter().map(stored).collect(), scale: 1.0, inputs: None }],
            fault: None,
        })
    }

    fn weight(&self) -> String {
        format!("{}.weight", self.module)
    }

    fn bytes(&self, located: &Located) -> &[u8] {
        &self.shards[located.shard].map[located.entry.bytes.clone()]
    }

    /// Outputs without what is added to fill warps: the file does not tell, the model does.
    fn rows(&self, across: usize, bias: Option<usize>, all: &HashMap<String, Located>) -> Result<usize> {
        let place = match self.arch.resolve(&self.weight(), self.spec)? {
            Placement::Place(places) => places.into_iter().next(),
            Placement::Drop(_) => None,
        };
        let role = place.map(|p| WeightId::parse(&p.name).role);
        let expected = role.as_ref().and_then(|role| match role {
            Role::FfnUp => Some(self.spec.ffn as usize),
            Role::Output => {
                let embedding = all.iter().find(|(name, _)| name.ends_with("embed_tokens.weight"));
                embedding.and_then(|(_, l)| l.entry.shape.first().copied())
            }
            role => check::expected(self.spec, role).and_then(|shape| shape.iter().rev().nth(1).copied()),
        });
        let rows = bias.or(expected).unwrap_or(across);
        if rows.checked_next_multiple_of(exl2::ROWS) != Some(across) {
            let message =
                format!("it has {across} outputs, filled up to a multiple of {}, the model {rows}", exl2::ROWS);
            return Err(
                Error::input(message).help("config.json and weights are of different models: download both again")
            );
        }
        Ok(rows)
    }
}

/// Version of exllamav2 whose files these are.
const VERSION: &str = "0.3.2";
/// Matrices that exllamav2 stores apart.
const FUSED: &[&str] = &["qkv_proj", "gate_up_proj"];

/// What config.json says of EXL2 weights; `None` if there are none.
///
/// Errors: weights in other packed formats besides; matrices that exllamav2 would look for in parts.
pub fn declare(weights: &[NewWeight], calibration: Option<&Calibration>) -> Result<Option<Declaration>> {
    let is_ours = |w: &&NewWeight| w.codec.pattern() == exl2::PATTERN;
    if !weights.iter().any(|w| is_ours(&w)) {
        return Ok(None);
    }
    if let Some(other) = weights.iter().find(|w| w.codec.packed() && !is_ours(w)) {
        return Err(Error::request("EXL2 and other packed formats cannot share a folder").at(&other.name));
    }
    let module = |w: &NewWeight| w.name.strip_suffix(".weight").and_then(|m| m.rsplit('.').next()).map(str::to_owned);
    let fused = |w: &&NewWeight| module(w).is_some_and(|m| FUSED.contains(&m.as_str()));
    if let Some(fused) = weights.iter().filter(is_ours).find(fused) {
        return Err(Error::unsupported("a fused matrix, which exllamav2 stores in parts").at(&fused.name));
    }
    let (mut bits, mut count) = (0.0, 0.0);
    for w in weights.iter().filter(is_ours) {
        let &[rows, cols] = &w.shape[..] else { continue };
        bits += w.codec.bytes(Dims::new(rows, cols))? as f64 * 8.0;
        count += (rows * cols) as f64;
    }
    let head = weights.iter().find(|w| w.name == "lm_head.weight");
    let head = head.filter(is_ours).and_then(|w| codec::bits_per_weight(w.codec)).map_or(16, |bits| bits as u64);
    let mut config = json!({
        "quant_method": "exl2", "version": VERSION, "bits": (bits / count * 100.0_f64).round() / 100.0, "head_bits": head
    });
    if let Some(Calibration { rows, length, dataset }) = calibration {
        config["calibration"] = json!({ "rows": rows, "length": length, "dataset": dataset });
    }
    Ok(Some(Declaration { config, keys: KEYS, sidecar: None }))
}

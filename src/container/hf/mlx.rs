//! MLX's folders: what config.json says of them, and which parts make one weight. Source: mlx-lm `utils.py` (load_model,
//! quantize_model, save_model).

use std::collections::BTreeMap;

use safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::declare::{Declaration, Module};
use super::integers::{self, All, Bundle, Found};
use super::quantized::{Storage, refuse};
use super::shards::{Located, Shard};
use crate::codec::{self, Codec, Family, Scheme};
use crate::error::{At, Error, Result};
use crate::tensor::Dims;

/// The key of config.json; transformers' own holds the same.
pub const KEY: &str = "quantization";

/// How the weights of a folder are packed. Their shapes alone do not tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mlx {
    default: Setting,
    /// By module; `None`: not packed.
    modules: BTreeMap<String, Option<Setting>>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    family: Family,
    bits: usize,
    group: usize,
}

/// The mode of integers; those of floats are the ends of their formats' names.
const AFFINE: &str = "affine";
const PREFIX: &str = "mlx-";

/// Whether a format makes a folder one of MLX's.
pub fn owns(codec: &dyn Codec) -> bool {
    codec.scheme().is_some_and(|s| mode(s).is_some())
}

fn mode(scheme: &Scheme) -> Option<&'static str> {
    match scheme.family {
        Family::Mlx => Some(AFFINE),
        Family::MlxFloat => codec::with_scheme(scheme)?.name().strip_prefix(PREFIX),
        _ => None,
    }
}

/// Reads `quantization`: settings for all modules, and under their names those of single ones.
pub fn read(q: &Value) -> Result<Storage> {
    let default = setting(q)?;
    let mut modules = BTreeMap::new();
    for (name, own) in q.as_object().into_iter().flatten() {
        let own = match own {
            Value::Object(_) => Some(setting(own).at(|| name.as_str())?),
            Value::Bool(packed) => packed.then_some(default),
            _ => continue,
        };
        modules.insert(name.clone(), own);
    }
    Ok(Storage::Mlx(Mlx { default, modules }))
}

fn setting(q: &Value) -> Result<Setting> {
    let mode = q.get("mode").map_or(AFFINE, |mode| mode.as_str().unwrap_or("unnamed"));
    // What is meant where bits and group are left out.
    let (family, bits, group) = if mode == AFFINE {
        (Family::Mlx, 4, 64)
    } else {
        let scheme = codec::find(&format!("{PREFIX}{mode}")).ok().and_then(|c| c.scheme());
        let scheme = scheme.filter(|s| s.family == Family::MlxFloat);
        let scheme = scheme.ok_or_else(|| refuse(&format!("mlx, mode {mode}")))?;
        (scheme.family, scheme.bits, scheme.group.unwrap_or(1))
    };
    Ok(Setting { family, bits: number(q, "bits", bits)?, group: number(q, "group_size", group)? })
}

fn number(q: &Value, key: &str, default: usize) -> Result<usize> {
    let Some(stated) = q.get(key).filter(|v| !v.is_null()) else { return Ok(default) };
    let number = stated.as_u64().filter(|n| (1..=1024).contains(n));
    number.map(|n| n as usize).ok_or_else(|| Error::input(format!("{key} is {stated}")))
}

/// Takes all packed weights out of the tensors of a folder. A stack of experts is one of them.
pub fn bundles(storage: &Mlx, shards: &[Shard], located: Vec<Located>) -> Result<Found> {
    integers::collect(shards, located, |name, file, all| {
        let module = name.strip_suffix(".weight")?;
        let packed = all.get(name).is_some_and(|l| l.entry.dtype == Dtype::U32);
        let scaled = all.contains_key(&format!("{module}.scales"));
        (packed || scaled).then(|| bundle(storage, module, file, all))
    })
}

fn bundle(storage: &Mlx, module: &str, file: &str, all: &mut All) -> Result<Bundle> {
    let setting = storage.modules.get(module).copied().unwrap_or(Some(storage.default));
    let Setting { family, bits, group } =
        setting.ok_or_else(|| Error::input("a packed weight, but config.json says that it is not packed"))?;
    let shape = &integers::find(module, all, "weight")?.entry.shape;
    let (experts, rows, across) = match shape[..] {
        _ if shape.contains(&0) => return Err(Error::input(format!("shape {shape:?} holds no weights"))),
        [rows, across] => (None, rows, across),
        [experts, rows, across] => (Some(experts), rows, across),
        _ => return Err(Error::input(format!("weight has shape {shape:?}"))),
    };
    let cols = across.checked_mul(32).filter(|n| n.is_multiple_of(bits)).map(|n| n / bits);
    let cols = cols.ok_or_else(|| Error::input(format!("{across} words a row for codes of {bits} bits")))?;
    let scales = integers::find(module, all, "scales")?.entry.dtype;
    let symmetric = family != Family::Mlx;
    let scheme = Scheme { family, bits, group: Some(group), symmetric, scales };
    let codec = codec::with_scheme(&scheme)
        .ok_or_else(|| Error::unsupported(format!("{bits} bits in groups of {group} with scales of {scales}")))?;
    let dims = Dims::new(rows, cols);
    let layout = codec.layout(dims).map_err(|e| Error::input(e.message()))?;
    let planes = integers::planes(module, all, &layout, experts)?;
    let name = format!("{module}.weight");
    Ok(Bundle { source: name.clone(), name, file: file.to_owned(), codec, dims, experts, planes, fault: None })
}

/// Says how all modules are stored: the most frequent format for all, the others by name. What is not packed has no scales,
/// which tells.
///
/// Errors: formats of others beside.
pub fn declare(modules: &[Module]) -> Result<Declaration> {
    let mut kinds: Vec<(Value, Vec<&str>)> = Vec::new();
    for module in modules {
        let Some(scheme) = &module.scheme else { continue };
        let mode = mode(scheme)
            .ok_or_else(|| Error::request("MLX's formats and others cannot share a folder").at(&module.name))?;
        let setting = json!({ "group_size": scheme.group, "bits": scheme.bits, "mode": mode });
        match kinds.iter_mut().find(|(s, _)| *s == setting) {
            Some((_, names)) => names.push(&module.name),
            None => kinds.push((setting, vec![&module.name])),
        }
    }
    kinds.sort_by_key(|(_, names)| std::cmp::Reverse(names.len()));
    let mut kinds = kinds.into_iter();
    let mut config = kinds.next().map_or_else(|| json!({}), |(setting, _)| setting);
    let named = kinds.flat_map(|(setting, names)| names.into_iter().map(move |n| (n.to_owned(), setting.clone())));
    if let Some(config) = config.as_object_mut() {
        config.extend(named.collect::<Map<_, _>>());
    }
    Ok(Declaration { config, keys: &[KEY, "quantization_config"], sidecar: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::hf::quantized::storage;

    fn module(name: &str, packed: Option<(usize, usize)>) -> Module {
        let scheme = |(bits, group)| Scheme {
            family: Family::Mlx,
            bits,
            group: Some(group),
            symmetric: false,
            scales: Dtype::BF16,
        };
        Module { name: name.into(), scheme: packed.map(scheme) }
    }

    #[test]
    fn what_is_declared_is_read_back() {
        let modules =
            [module("a", Some((4, 64))), module("b", Some((6, 32))), module("c", None), module("d", Some((4, 64)))];
        let Declaration { config, keys, sidecar } = declare(&modules).unwrap();
        assert_eq!(
            config,
            json!({ "group_size": 64, "bits": 4, "mode": "affine", "b": { "group_size": 32, "bits": 6, "mode": "affine" } })
        );
        assert_eq!((keys, sidecar), (&["quantization", "quantization_config"][..], None));
        let modules = BTreeMap::from([("b".to_owned(), Some(Setting { family: Family::Mlx, bits: 6, group: 32 }))]);
        let expected = Storage::Mlx(Mlx { default: Setting { family: Family::Mlx, bits: 4, group: 64 }, modules });
        assert_eq!(storage(&json!({ "quantization": config, "quantization_config": config })).unwrap(), expected);
    }

    #[test]
    fn single_modules_have_settings_of_their_own() {
        let codec = codec::all().find(|c| c.scheme().is_some_and(|s| s.family == Family::MlxFloat)).unwrap();
        let (float, scheme) = (codec.name().strip_prefix(PREFIX).unwrap(), codec.scheme().unwrap());
        let q = json!({ "bits": 3, "group_size": 128, "a": false, "b": true, "c": { "bits": 8 }, "d": {}, "e": "words",
            "f": { "mode": float } });
        let Storage::Mlx(read) = read(&q).unwrap() else { panic!() };
        let setting = |bits, group| Some(Setting { family: Family::Mlx, bits, group });
        let expected = [
            ("a", None),
            ("b", setting(3, 128)),
            ("c", setting(8, 64)),
            ("d", setting(4, 64)),
            ("f", Some(Setting { family: Family::MlxFloat, bits: scheme.bits, group: scheme.group.unwrap() })),
        ];
        assert!(read.modules.iter().map(|(name, s)| (name.as_str(), *s)).eq(expected));
        for wrong in [json!({ "bits": 0 }), json!({ "bits": "four" }), json!({ "a": { "group_size": 1e9 } })] {
            assert!(super::read(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn formats_of_others_cannot_be_beside() {
        let mut other = module("x.y", Some((4, 64)));
        other.scheme.as_mut().unwrap().family = Family::Awq;
        let error = declare(&[module("a", Some((4, 64))), other]).err().unwrap();
        assert!(error.to_string().contains("cannot share a folder"), "{error}");
    }
}

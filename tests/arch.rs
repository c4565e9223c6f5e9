//! `arch` against llama.cpp's converter. The golden files name tool and version; adding a file adds a case.

use std::collections::{BTreeMap, BTreeSet};

use quant::arch::{self, Arch, Convention, Folder, ModelSpec, Part, Placement, Size, always_f32};
use quant::metadata::{Metadata, Value};
use serde_json::Value as Json;

/// `(file stem, content)` of every golden file in `tests/golden/{folder}`.
fn golden(folder: &str) -> Vec<(String, Json)> {
    let folder = format!("{}/tests/golden/{folder}", env!("CARGO_MANIFEST_DIR"));
    let mut files: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|f| f.unwrap().path()).collect();
    files.sort();
    assert!(!files.is_empty(), "no golden files in {folder}");
    let name = |p: &std::path::Path| p.file_stem().unwrap().to_string_lossy().into_owned();
    files.iter().map(|p| (name(p), serde_json::from_slice(&std::fs::read(p).unwrap()).unwrap())).collect()
}

fn f32_bits(list: &Json) -> Vec<u32> {
    list.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect()
}

fn expected(rows: &Json) -> Vec<(String, Value)> {
    let value = |kind: &str, v: &Json| match kind {
        "string" => Value::Str(v.as_str().unwrap().to_owned()),
        "uint32" => Value::U32(v.as_u64().unwrap() as u32),
        "bool" => Value::Bool(v.as_bool().unwrap()),
        "int32" => Value::I32(v.as_i64().unwrap() as i32),
        "array" => v.as_array().unwrap().iter().map(|s| s.as_str().unwrap().to_owned()).collect::<Vec<_>>().into(),
        "f32_bits" => Value::F32(f32::from_bits(v.as_u64().unwrap() as u32)),
        other => panic!("type {other}"),
    };
    let row = |r: &Json| (r[0].as_str().unwrap().to_owned(), value(r[1].as_str().unwrap(), &r[2]));
    rows.as_array().unwrap().iter().map(row).collect()
}

fn pairs(metadata: &Metadata) -> Vec<(String, Value)> {
    metadata.iter().map(|(k, v)| (k.to_owned(), v.clone())).collect()
}

#[test]
fn metadata_equals_the_converters_in_keys_types_values_and_order() {
    for (name, golden) in golden("arch") {
        let (arch, spec) = ModelSpec::from_config(&golden["config"]).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(pairs(&arch.metadata(&spec)), expected(&golden["metadata"]), "{name}");
    }
}

#[test]
fn metadata_read_back_gives_the_same_metadata() {
    for (name, golden) in golden("arch") {
        let (arch, spec) = ModelSpec::from_config(&golden["config"]).unwrap();
        let written = arch.metadata(&spec);
        let (again, read) = ModelSpec::from_metadata(&written).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(again.name, arch.name, "{name}");
        assert_eq!(again.metadata(&read), written, "{name}");
        assert_eq!((read.head_dim(), read.kv_heads()), (spec.head_dim(), spec.kv_heads()), "{name}");
        for layer in 0..spec.layers {
            assert_eq!(read.is_sliding(layer), spec.is_sliding(layer), "{name} layer {layer}");
        }
    }
}

#[test]
fn extra_tensors_equal_the_converters_bit_for_bit() {
    let mut seen = 0;
    for (name, golden) in golden("arch") {
        let (arch, spec) = ModelSpec::from_config(&golden["config"]).unwrap();
        let bits = |v: &[f32]| v.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let ours: Vec<_> = arch.extra_tensors(&spec).into_iter().map(|(n, v)| (n, bits(&v))).collect();
        let tensor = |t: &Json| (t[0].as_str().unwrap().to_owned(), f32_bits(&t[1]));
        let theirs: Vec<_> = golden["extra_tensors_f32_bits"].as_array().unwrap().iter().map(tensor).collect();
        assert_eq!(ours, theirs, "{name}");
        seen += theirs.len();
    }
    assert!(seen > 0);
}

/// One matrix of a canonical tensor: where each of its rows comes from.
#[derive(Debug, PartialEq)]
struct Plane {
    source: String,
    rows: Vec<usize>,
    add: f64,
}

type Layout = BTreeMap<String, Vec<Plane>>;

fn shape(source: &Json) -> Vec<usize> {
    source.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect()
}

/// Rows of one matrix; the elements of a vector count as rows.
fn rows(shape: &[usize]) -> usize {
    shape[shape.len().saturating_sub(2)]
}

/// Places every source tensor by `resolve` and `transform`.
fn layout(arch: &Arch, spec: &ModelSpec, sources: &Json) -> (Layout, BTreeSet<String>) {
    let (mut planes, mut dropped) = (BTreeMap::<String, BTreeMap<u32, Plane>>::new(), BTreeSet::new());
    for (source, s) in sources.as_object().unwrap() {
        let places = match arch.resolve(source, spec).unwrap() {
            Placement::Place(places) => places,
            Placement::Drop(_) => {
                dropped.insert(source.clone());
                continue;
            }
        };
        let shape = shape(s);
        for place in places {
            let transform = arch.transform(&place.name, Convention::HuggingFace, Convention::Gguf, spec);
            let stack = if shape.len() == 3 { shape[0] } else { 1 };
            for plane in 0..stack {
                let whole = rows(&shape);
                let range = match &place.part {
                    Part::Whole => 0..whole,
                    Part::Rows(range) => range.clone(),
                };
                transform.check(range.len()).unwrap();
                let from = |row| plane * whole + range.start + transform.source_row(row);
                let rows = (0..range.len()).map(from).collect();
                let found = Plane { source: source.clone(), rows, add: transform.add.into() };
                let index = place.expert.unwrap_or(plane as u32);
                assert!(planes.entry(place.name.clone()).or_default().insert(index, found).is_none(), "{source}");
            }
        }
    }
    (planes.into_iter().map(|(name, p)| (name, p.into_values().collect())).collect(), dropped)
}

#[test]
fn every_row_of_every_tensor_goes_where_the_converter_puts_it() {
    for (name, golden) in golden("layout") {
        let (arch, spec) = ModelSpec::from_config(&golden["config"]).unwrap_or_else(|e| panic!("{name}: {e}"));
        let (ours, dropped) = layout(arch, &spec, &golden["source"]);
        let plane = |p: &Json| {
            let source = p["source"].as_str().unwrap();
            let all = (0..rows(&shape(&golden["source"][source]))).collect();
            let rows = p["rows"].as_array().map(|r| r.iter().map(|x| x.as_u64().unwrap() as usize).collect());
            Plane { source: source.to_owned(), rows: rows.unwrap_or(all), add: p["add"].as_f64().unwrap() }
        };
        let tensors = golden["tensors"].as_array().unwrap();
        let theirs: Layout = tensors
            .iter()
            .map(|t| {
                (t["name"].as_str().unwrap().to_owned(), t["planes"].as_array().unwrap().iter().map(plane).collect())
            })
            .collect();
        assert_eq!(ours, theirs, "{name}");
        let left_out: BTreeSet<_> =
            golden["dropped"].as_array().unwrap().iter().map(|d| d.as_str().unwrap().to_owned()).collect();
        assert_eq!(dropped, left_out, "{name}");
        for t in tensors {
            let tensor = t["name"].as_str().unwrap();
            assert_eq!(always_f32(tensor, &shape(&t["shape"])), t["f32"].as_bool().unwrap(), "{name} {tensor}");
        }
    }
}

#[test]
fn both_directions_compose_to_identity() {
    use Convention::{Gguf, HuggingFace};
    for (name, golden) in golden("layout") {
        let (arch, spec) = ModelSpec::from_config(&golden["config"]).unwrap();
        for tensor in golden["tensors"].as_array().unwrap() {
            let canonical = tensor["name"].as_str().unwrap();
            let there = arch.transform(canonical, HuggingFace, Gguf, &spec);
            let back = arch.transform(canonical, Gguf, HuggingFace, &spec);
            assert!(arch.transform(canonical, Gguf, Gguf, &spec).is_identity());
            assert_eq!(there.add + back.add, 0.0, "{name} {canonical}");
            for row in 0..rows(&shape(&tensor["shape"])) {
                assert_eq!(there.source_row(back.source_row(row)), row, "{name} {canonical}");
            }
        }
    }
}

#[test]
fn names_go_both_ways() {
    for (name, golden) in golden("layout").into_iter().filter(|(n, _)| !n.contains("vision") && !n.contains("fused")) {
        let (arch, spec) = ModelSpec::from_config(&golden["config"]).unwrap();
        for source in golden["source"].as_object().unwrap().keys() {
            if let Placement::Place(places) = arch.resolve(source, &spec).unwrap() {
                let back = arch.hf_name(&places[0].name, places[0].expert);
                assert_eq!(back.as_ref(), Some(source), "{name}");
            }
        }
    }
}

#[test]
fn general_metadata_equals_the_converters() {
    for (_, golden) in golden("general") {
        for case in golden["cases"].as_array().unwrap() {
            let tensors: Vec<_> =
                case["tensors"].as_array().unwrap().iter().map(|t| (t[0].as_str().unwrap(), shape(&t[1]))).collect();
            let folder = Folder {
                name: case["folder"].as_str().unwrap(),
                config: &case["config"],
                generation: Some(&case["generation"]),
                readme: case["readme"].as_str(),
                size: Size::of(tensors.iter().map(|(name, shape)| (*name, &shape[..]))),
            };
            let ours = arch::general(&folder);
            assert_eq!(pairs(&ours), expected(&case["metadata"]), "{}", case["name"]);
        }
    }
}

#[test]
fn descriptions_start_as_the_converters() {
    let phi = golden("arch").into_iter().find(|(name, _)| name == "phi-3-mini-128k").unwrap().1;
    let (arch, spec) = ModelSpec::from_config(&phi["config"]).unwrap();
    let mut general = Metadata::default();
    general.set("general.type", "model");
    let all = arch.describe(&spec, &general);
    let keys: Vec<_> = all.iter().map(|(k, _)| k).collect();
    let start = ["general.architecture", "phi3.rope.scaling.attn_factor", "general.type", "phi3.context_length"];
    assert_eq!(keys[..4], start);
    assert_eq!(keys.last(), Some(&"general.quantization_version"));
}

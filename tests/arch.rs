//! `arch` against llama.cpp's converter. The golden files name tool and version; adding a file adds a case.

use std::collections::{BTreeMap, BTreeSet};

use quant::arch::{self, Arch, Convention, Folder, ModelSpec, Part, Placement, Size, always_f32};
use quant::metadata::{Array, Metadata, Value};
use serde_json::{Value as Json, json};

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
        "array" if v[0].is_i64() => {
            Value::Array(Array::I32(v.as_array().unwrap().iter().map(|n| n.as_i64().unwrap() as i32).collect()))
        }
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
                // Of experts' vectors the converter's file tells which, not which elements.
                let vectors = place.transposed && shape.len() == 2;
                let whole = if place.transposed && !vectors { shape[2] } else { rows(&shape) };
                let kept: Vec<usize> = match &place.part {
                    _ if vectors => (0..whole).collect(),
                    Part::Whole => (0..whole).collect(),
                    Part::Rows(range) => range.clone().collect(),
                    Part::Alternate(first) => (*first..whole).step_by(2).collect(),
                };
                transform.check(kept.len()).unwrap();
                let from = |row| plane * whole + kept[transform.source_row(row)];
                let rows = (0..kept.len()).map(from).collect();
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
    for (name, golden) in golden("layout").into_iter().filter(|(n, _)| !n.contains("fused")) {
        let (arch, spec) = ModelSpec::from_config(&golden["config"]).unwrap();
        for source in golden["source"].as_object().unwrap().keys() {
            if let Placement::Place(places) = arch.resolve(source, &spec).unwrap() {
                let place = &places[0];
                let back = match place.transposed {
                    true => arch.own_name(&place.name).map(|(back, _)| back),
                    false => arch.hf_name(&place.name, place.expert),
                };
                assert_eq!(back.map(|back| arch::inside(back, source)).as_ref(), Some(source), "{name}");
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

fn config(name: &str) -> Json {
    golden("arch").into_iter().find(|(n, _)| n == name).unwrap().1["config"].take()
}

#[test]
fn impossible_facts_are_named() {
    let huge = u64::MAX;
    let cases = [
        ("num_hidden_layers", json!(null), "num_hidden_layers is missing or zero"),
        ("num_hidden_layers", json!(0), "num_hidden_layers is missing or zero"),
        ("num_hidden_layers", json!(100_000), "num_hidden_layers is 100000, more than any model has"),
        ("num_attention_heads", json!(0), "num_attention_heads is missing or zero"),
        ("num_attention_heads", json!(-1), "num_attention_heads is -1, expected a whole number below 2^32"),
        ("num_attention_heads", json!(32.5), "num_attention_heads is 32.5, expected a whole number below 2^32"),
        ("num_attention_heads", json!(8000), "8000 heads do not fit hidden_size 4096"),
        ("num_key_value_heads", json!(0), "num_key_value_heads is missing or zero"),
        ("num_key_value_heads", json!(5), "32 attention heads are no multiple of 5 key-value heads"),
        ("hidden_size", json!("big"), "hidden_size is \"big\", expected a whole number below 2^32"),
        ("hidden_size", json!(huge), "hidden_size is 18446744073709551615, expected a whole number below 2^32"),
        ("head_dim", json!(33), "head_dim is 33, rotary embedding needs pairs"),
        ("head_dim", json!(4_000_000_000u64), "head_dim is 4000000000, more than any model has"),
        ("rms_norm_eps", json!(1e300), "rms_norm_eps is 1e+300, expected a number"),
        ("rms_norm_eps", json!(0), "rms_norm_eps is 0, expected a number above 0"),
        ("max_position_embeddings", json!(0), "max_position_embeddings is 0, expected a number above 0"),
        ("bos_token_id", json!("1"), "bos_token_id is \"1\", expected the id of a token"),
        ("eos_token_id", json!([2, 2.5]), "eos_token_id is [2,2.5], expected the id of a token"),
        ("rope_theta", json!(-1e4), "rope_theta is -10000.0, expected a number above 0"),
        ("rope_parameters", json!({"rope_theta": 0}), "rope_theta is 0, expected a number above 0"),
        ("rope_theta", json!([1]), "rope_theta is [1], expected a number"),
        ("rope_scaling", json!("llama3"), "rope_scaling is \"llama3\", expected an object"),
        ("rope_scaling", json!({"rope_type": "new"}), "unknown rope type \"new\""),
        ("rope_scaling", json!({"rope_type": "linear"}), "rope type linear needs factor"),
        ("rope_scaling", json!({"type": "yarn", "factor": 4}), "rope type yarn needs original_max_position_embeddings"),
        ("rope_scaling", json!({"type": "llama3", "factor": 0}), "impossible llama3 rope scaling"),
        ("tie_word_embeddings", json!(1), "tie_word_embeddings is 1, expected true or false"),
        ("architectures", json!([]), "no model class in `architectures`"),
        ("architectures", json!(["BertModel"]), "unknown architecture \"BertModel\""),
    ];
    for (key, value, message) in cases {
        let mut config = config("llama-3.1-8b");
        config[key] = value.clone();
        let error = ModelSpec::from_config(&config).expect_err(&format!("{key} {value}"));
        assert!(error.message().starts_with(message), "{key} {value}: {error}");
    }
    assert!(ModelSpec::from_config(&json!([])).is_err());
    for (key, value) in [("eos_token_id", json!([1, 2])), ("eos_token_id", json!(null)), ("rope_theta", json!(null))] {
        let mut config = config("llama-3.1-8b");
        config["rope_scaling"] = json!(null);
        config[key] = value;
        ModelSpec::from_config(&config).unwrap();
    }
}

/// Junk in any place of any real config gives facts that everything accepts, or an error.
#[test]
fn junk_in_config_never_panics() {
    let junk = [
        json!(null),
        json!(0),
        json!(1),
        json!(-1),
        json!(0.5),
        json!(1e308),
        json!(u64::MAX),
        json!(u32::MAX),
        json!("x"),
        json!(true),
        json!([]),
        json!([0, "x"]),
        json!({}),
        json!({"rope_type": "longrope"}),
        json!({"type": "llama3"}),
    ];
    for (name, golden) in golden("arch") {
        let top = golden["config"].as_object().unwrap();
        let nested = ["text_config", "rope_scaling", "rope_parameters"];
        let inner = nested.iter().filter_map(|k| Some((*k, top.get(*k)?.as_object()?)));
        let paths: Vec<_> = top
            .keys()
            .map(|k| vec![k.clone()])
            .chain(inner.flat_map(|(k, map)| map.keys().map(move |i| vec![k.to_owned(), i.clone()])))
            .collect();
        for (path, value) in paths.iter().flat_map(|p| junk.iter().map(move |j| (p, j))) {
            let mut config = golden["config"].clone();
            *path.iter().fold(&mut config, |at, key| &mut at[key]) = value.clone();
            let Ok((arch, spec)) = ModelSpec::from_config(&config) else { continue };
            let written = arch.metadata(&spec);
            ModelSpec::from_metadata(&written).unwrap_or_else(|e| panic!("{name} {path:?} = {value}: {e}"));
            for (tensor, values) in arch.extra_tensors(&spec) {
                assert!(values.iter().all(|v| v.is_finite()), "{name} {path:?} = {value}: {tensor}");
            }
            for tensor in ["blk.0.attn_q.weight", "blk.0.attn_k.bias", "output_norm.weight"] {
                let t = arch.transform(tensor, Convention::HuggingFace, Convention::Gguf, &spec);
                t.source_row(12345);
            }
            let _ = arch.resolve("model.layers.0.mlp.experts.gate_up_proj", &spec);
        }
    }
}

#[test]
fn unknown_tensors_are_named() {
    let (arch, spec) = ModelSpec::from_config(&config("qwen3-30b-a3b")).unwrap();
    let cases = [
        ("model.layers.0.mlp.shared_expert.up_proj.weight", "qwen3moe has no tensor named"),
        ("model.layers.48.mlp.gate.weight", "is beyond the 48 layers"),
        ("model.layers.0.mlp.experts.128.up_proj.weight", "is beyond the 48 layers and 128 experts"),
        ("model.layers.007.mlp.gate.weight", "qwen3moe has no tensor named"),
        ("model.layers.+0.mlp.gate.weight", "qwen3moe has no tensor named"),
        ("model.norm", "qwen3moe has no tensor named"),
        ("model.layers.99999999999.mlp.gate.weight", "qwen3moe has no tensor named"),
        ("", "qwen3moe has no tensor named"),
    ];
    for (name, message) in cases {
        let error = arch.resolve(name, &spec).expect_err(name);
        assert!(error.message().contains(message), "{error}");
    }
}

#[test]
fn tied_output_is_dropped() {
    for (name, dropped) in [("qwen2.5-0.5b", true), ("llama-3.1-8b", false), ("gemma-2-2b", true)] {
        let (arch, spec) = ModelSpec::from_config(&config(name)).unwrap();
        let placement = arch.resolve("lm_head.weight", &spec).unwrap();
        assert_eq!(matches!(placement, Placement::Drop(_)), dropped, "{name}");
    }
}

#[test]
fn mixtral_is_told_from_llama_by_its_experts() {
    for (name, class) in [("mixtral-8x7b", "MixtralForCausalLM"), ("llama-3.1-8b", "LlamaForCausalLM")] {
        let (arch, spec) = ModelSpec::from_config(&config(name)).unwrap();
        let (again, _) = ModelSpec::from_metadata(&arch.metadata(&spec)).unwrap();
        assert_eq!(again.classes[0], class);
    }
}

#[test]
fn rows_of_broken_heads_are_refused() {
    let (arch, spec) = ModelSpec::from_config(&config("llama-3.1-8b")).unwrap();
    let t = arch.transform("blk.0.attn_q.weight", Convention::HuggingFace, Convention::Gguf, &spec);
    assert!(t.check(4096).is_ok());
    assert!(t.check(4000).is_err());
}

#[test]
fn every_architecture_has_a_golden_config_and_layout() {
    for folder in ["arch", "layout"] {
        let golden = golden(folder);
        let covered = |a: &Arch| golden.iter().any(|(_, g)| g["config"]["architectures"][0] == a.classes[0]);
        let missing: Vec<_> = arch::ARCHES.iter().filter(|a| !covered(a)).map(|a| a.classes[0]).collect();
        assert!(missing.is_empty(), "{folder}: {missing:?}");
    }
}

//! One test for each way in which a Hugging Face folder can lie: one clear error that names the file, the tensor and
//! the way out.

mod common;

use common::folder::{Folder, SHARDS, safetensors, with_header};
use quant::container::hf::HfFolder;
use quant::error::Kind;
use serde_json::json;

/// Opens a folder that must be refused; the error must contain every one of `words` and offer help.
fn refuse(folder: &Folder, words: &[&str]) {
    let error = match HfFolder::open(folder.path()) {
        Ok(_) => panic!("accepted; expected an error with {words:?}"),
        Err(e) => e,
    };
    assert!(matches!(error.kind, Kind::Input | Kind::Unsupported | Kind::Limits), "{:?}", error.kind);
    let text = error.to_string();
    for word in words {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
    assert!(text.contains("help: "), "no help in:\n{text}");
    assert!(text.len() < 2000, "{} bytes of error", text.len());
}

/// Llama with `content` as its model.safetensors.
fn with_file(content: impl AsRef<[u8]>) -> Folder {
    let folder = Folder::llama();
    folder.write().put(FILE, content);
    folder
}

/// Llama with one tensor of this header entry and `data` bytes.
fn with_entry(entry: &str, data: usize) -> Folder {
    with_file(with_header(&format!(r#"{{"{NORM}":{entry}}}"#), &vec![0; data]))
}

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const NORM: &str = "model.norm.weight";

// ---- the header of a safetensors file

#[test]
fn empty_file() {
    refuse(&with_file([]), &[FILE, "empty", "download"]);
}

#[test]
fn file_shorter_than_its_length_field() {
    refuse(&with_file([1, 2, 3]), &[FILE, "3 bytes"]);
}

#[test]
fn header_longer_than_the_file() {
    let mut file = 1000u64.to_le_bytes().to_vec();
    file.extend(b"{}");
    refuse(&with_file(file), &[FILE, "998 bytes missing"]);
}

#[test]
fn header_length_of_an_exabyte() {
    for length in [u64::MAX, 1 << 60, 100_000_001] {
        let mut file = length.to_le_bytes().to_vec();
        file.extend(b"{}");
        refuse(&with_file(file), &[FILE, &length.to_string()]);
    }
}

#[test]
fn header_that_is_not_json() {
    refuse(&with_file(with_header("hello", &[])), &[FILE, "does not start with `{`"]);
    refuse(&with_file(with_header("{hello}", &[])), &[FILE, "header is not valid", "line 1"]);
    refuse(&with_file(with_header("{\"a\": \"\u{1}\"}", &[])), &[FILE, "header is not valid"]);
    refuse(&with_file(with_header("{\"a\": 1}", &[])), &[FILE, "tensor a"]);
}

#[test]
fn header_of_invalid_utf8() {
    let mut file = 8u64.to_le_bytes().to_vec();
    file.extend(b"{\"\xff\xfe\":1}");
    refuse(&with_file(file), &[FILE, "header is not valid"]);
}

#[test]
fn depth_bomb_in_the_header() {
    let bomb = "[".repeat(200_000);
    for header in
        [format!("{{\"a\":{bomb}"), format!("{{\"a\":{{\"x\":{bomb}"), format!("{{\"__metadata__\":{{\"a\":{bomb}")]
    {
        refuse(&with_file(with_header(&header, &[])), &[FILE, "header is not valid"]);
    }
}

#[test]
fn tensor_listed_twice_in_one_file() {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let header = format!(r#"{{"{NORM}":{entry},"{NORM}":{entry}}}"#);
    refuse(&with_file(with_header(&header, &[0; 4])), &[FILE, NORM, "twice"]);
}

#[test]
fn names_and_shapes_that_would_fill_the_terminal() {
    let entry = r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#;
    let header = |name: &str| with_header(&format!(r#"{{"{name}":{entry}}}"#), &[0; 4]);
    refuse(&with_file(header(&"a".repeat(100_000))), &[FILE, "100000 bytes"]);
    refuse(&with_file(header("\\u001b[2J")), &[FILE, "control characters"]);
    refuse(&with_file(header("")), &[FILE, "no name"]);
    let dims = vec!["1"; 100_000].join(",");
    refuse(
        &with_entry(&format!(r#"{{"dtype":"F32","shape":[{dims}],"data_offsets":[0,4]}}"#), 4),
        &[NORM, "100000 dimensions"],
    );
    let dtype = "X".repeat(100_000);
    refuse(
        &with_entry(&format!(r#"{{"dtype":"{dtype}","shape":[1],"data_offsets":[0,4]}}"#), 4),
        &[NORM, "element type"],
    );
}

#[test]
fn offsets_beyond_the_file() {
    refuse(
        &with_entry(r#"{"dtype":"F32","shape":[8],"data_offsets":[0,32]}"#, 10),
        &[FILE, NORM, "22 of", "bytes missing"],
    );
}

#[test]
fn offsets_backwards() {
    refuse(&with_entry(r#"{"dtype":"F32","shape":[8],"data_offsets":[32,0]}"#, 32), &[FILE, NORM, "before they start"]);
}

#[test]
fn offsets_near_the_end_of_memory() {
    let max = u64::MAX;
    let entry = format!(r#"{{"dtype":"U8","shape":[8],"data_offsets":[{},{max}]}}"#, max - 8);
    refuse(&with_entry(&entry, 8), &[FILE, NORM, "overflows"]);
}

#[test]
fn negative_and_fractional_numbers() {
    for entry in [
        r#"{"dtype":"F32","shape":[-8],"data_offsets":[0,32]}"#,
        r#"{"dtype":"F32","shape":[8.5],"data_offsets":[0,32]}"#,
        r#"{"dtype":"F32","shape":[8],"data_offsets":[-1,32]}"#,
        r#"{"dtype":"F32","shape":[8],"data_offsets":[0]}"#,
        r#"{"dtype":"F32","shape":[8]}"#,
        r#"{"dtype":"F32","shape":[36893488147419103232],"data_offsets":[0,32]}"#,
    ] {
        refuse(&with_entry(entry, 32), &[FILE, NORM]);
    }
}

#[test]
fn bytes_that_do_not_fit_shape_and_type() {
    let entry = r#"{"dtype":"F32","shape":[8],"data_offsets":[0,30]}"#;
    refuse(&with_entry(entry, 30), &[FILE, NORM, "30 bytes", "takes 32"]);
}

#[test]
fn overlapping_tensors() {
    let header = r#"{"a.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b.weight":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#;
    refuse(&with_file(with_header(header, &[0; 12])), &[FILE, "b.weight", "also belong to another tensor"]);
}

#[test]
fn gap_between_tensors() {
    let header = r#"{"a.weight":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b.weight":{"dtype":"F32","shape":[2],"data_offsets":[12,20]}}"#;
    refuse(&with_file(with_header(header, &[0; 20])), &[FILE, "b.weight", "belong to no tensor"]);
}

#[test]
fn bytes_after_the_last_tensor() {
    let folder = Folder::llama();
    let mut file = safetensors(folder.tensors.iter());
    file.extend([0; 5]);
    refuse(&with_file(file), &[FILE, "5 bytes after the last tensor"]);
}

#[test]
fn shape_whose_product_overflows() {
    for shape in ["[4294967296,4294967296,4294967296]", "[9223372036854775807,4]"] {
        let entry = format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[0,32]}}"#);
        refuse(&with_entry(&entry, 32), &[FILE, NORM, "overflows"]);
    }
}

#[test]
fn shape_without_weights() {
    refuse(
        &with_entry(r#"{"dtype":"F32","shape":[0,18446744073709551615],"data_offsets":[0,0]}"#, 0),
        &[FILE, NORM, "no weights"],
    );
}

#[test]
fn unknown_element_type() {
    refuse(&with_entry(r#"{"dtype":"F3","shape":[8],"data_offsets":[0,3]}"#, 3), &[FILE, NORM, "\"F3\""]);
}

#[test]
fn element_type_that_holds_no_weights() {
    refuse(&with_entry(r#"{"dtype":"U8","shape":[8],"data_offsets":[0,8]}"#, 8), &[FILE, NORM, "U8", "no weights"]);
    refuse(&with_entry(r#"{"dtype":"F4","shape":[8],"data_offsets":[0,4]}"#, 4), &[FILE, NORM, "F4", "no weights"]);
}

#[test]
fn truncated_file_says_how_much_is_missing() {
    let folder = Folder::llama();
    let mut file = safetensors(folder.tensors.iter());
    file.truncate(file.len() - 1234);
    refuse(&with_file(file), &[FILE, "1234 of", "bytes missing", "download it again"]);
}

#[test]
fn git_lfs_pointer() {
    let pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 4976698672\n";
    refuse(&with_file(pointer), &[FILE, "Git LFS pointer", "git lfs pull"]);
}

#[test]
fn other_things_under_that_name() {
    refuse(&with_file("<!DOCTYPE html><html></html>"), &[FILE, "web page"]);
    refuse(&with_file("GGUF\x03\0\0\0\0\0\0\0"), &[FILE, "GGUF"]);
    refuse(&with_file("PK\x03\x04...."), &[FILE, "PyTorch archive", "safe_serialization"]);
}

#[test]
fn a_directory_under_that_name() {
    let folder = Folder::llama();
    folder.put("config.json", folder.config.to_string());
    std::fs::create_dir(folder.file(FILE)).unwrap();
    refuse(&folder, &[FILE, "not a file"]);
}

// ---- shards and their index

#[test]
fn index_that_is_not_json() {
    let folder = Folder::llama();
    for (content, word) in
        [("", "EOF"), ("[]", "invalid"), ("{}", "weight_map"), ("{\"weight_map\": 3}", "invalid type")]
    {
        folder.write_shards().put(INDEX, content);
        refuse(&folder, &[INDEX, word]);
    }
    folder.put(INDEX, format!("{{\"x\": {}", "[".repeat(200_000)));
    refuse(&folder, &[INDEX]);
}

#[test]
fn index_that_lists_a_tensor_twice() {
    let folder = Folder::llama();
    folder.write_shards().put(INDEX, format!(r#"{{"weight_map": {{"a": "{0}", "a": "{0}"}}}}"#, SHARDS[0]));
    refuse(&folder, &[INDEX, "tensor a is listed twice"]);
}

#[test]
fn index_naming_a_missing_shard() {
    let folder = Folder::llama();
    folder.write_shards();
    std::fs::remove_file(folder.file(SHARDS[1])).unwrap();
    refuse(&folder, &[INDEX, SHARDS[1], "not there", "download"]);
}

#[test]
fn index_pointing_outside_the_folder() {
    let folder = Folder::llama();
    folder.write_shards();
    let outside =
        ["../x.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "C:\\\\x", "a\\\\b", "a\\u0000b"];
    for shard in outside {
        folder.put(INDEX, format!(r#"{{"weight_map": {{"lm_head.weight": "{shard}"}}}}"#));
        refuse(&folder, &[INDEX, "lm_head.weight", "not a plain file name"]);
    }
}

#[cfg(unix)]
#[test]
fn linked_shards_are_fine() {
    let folder = Folder::llama();
    folder.write_shards();
    for shard in SHARDS {
        std::fs::rename(folder.file(shard), folder.file(&format!("blob-{shard}"))).unwrap();
        std::os::unix::fs::symlink(format!("blob-{shard}"), folder.file(shard)).unwrap();
    }
    HfFolder::open(folder.path()).unwrap_or_else(|e| panic!("{e}"));
}

/// The index of `folder` with one entry changed.
fn edit_index(folder: &Folder, edit: impl FnOnce(&mut serde_json::Map<String, serde_json::Value>)) {
    let text = std::fs::read_to_string(folder.file(INDEX)).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
    edit(index["weight_map"].as_object_mut().unwrap());
    folder.put(INDEX, index.to_string());
}

#[test]
fn tensor_in_the_index_but_not_in_its_shard() {
    let folder = Folder::llama();
    folder.write_shards();
    edit_index(&folder, |map| _ = map.insert("model.extra.weight".into(), json!(SHARDS[0])));
    refuse(&folder, &[INDEX, "model.extra.weight", SHARDS[0], "does not hold it"]);
}

#[test]
fn tensor_in_another_shard_than_the_index_says() {
    let folder = Folder::llama();
    folder.write_shards();
    edit_index(&folder, |map| map["lm_head.weight"] = json!(SHARDS[1]));
    refuse(&folder, &[INDEX, "lm_head.weight", SHARDS[0], SHARDS[1]]);
}

#[test]
fn tensor_in_a_shard_but_not_in_the_index() {
    let folder = Folder::llama();
    folder.write_shards();
    edit_index(&folder, |map| _ = map.remove("lm_head.weight"));
    refuse(&folder, &["lm_head.weight", SHARDS[0], "index does not list"]);
}

#[test]
fn tensor_in_two_shards() {
    let folder = Folder::llama();
    folder.write_shards().put(SHARDS[1], safetensors(folder.tensors.iter()));
    refuse(&folder, &["lm_head.weight", SHARDS[0], SHARDS[1]]);
}

#[test]
fn missing_shard_without_an_index() {
    let folder = Folder::llama();
    folder.write_shards();
    std::fs::remove_file(folder.file(INDEX)).unwrap();
    std::fs::remove_file(folder.file(SHARDS[0])).unwrap();
    refuse(&folder, &["shard 1 of 2 is missing"]);
}

#[test]
fn truncated_shard() {
    let folder = Folder::llama();
    folder.write_shards();
    let mut shard = std::fs::read(folder.file(SHARDS[1])).unwrap();
    shard.truncate(shard.len() - 7);
    folder.put(SHARDS[1], shard);
    refuse(&folder, &[SHARDS[1], "7 of", "missing"]);
}

// ---- no weights at all

#[test]
fn folder_without_weights() {
    for (file, words) in [
        ("notes.txt", ["no model.safetensors", "GGUF file or hf:"]),
        ("pytorch_model.bin", ["PyTorch files only", "save_pretrained"]),
        ("pytorch_model-00001-of-00002.bin", ["PyTorch files only", "save_pretrained"]),
        ("adapter_model.safetensors", ["LoRA adapter", "merge_and_unload"]),
        ("model-q4_k_m.gguf", ["GGUF", "pass that file itself"]),
        ("consolidated.safetensors", ["consolidated", "Hugging Face layout"]),
    ] {
        let folder = Folder::llama();
        folder.put("config.json", folder.config.to_string()).put(file, "x");
        refuse(&folder, &words);
    }
}

// ---- config.json

#[test]
fn config_missing() {
    let folder = Folder::llama();
    folder.write();
    std::fs::remove_file(folder.file("config.json")).unwrap();
    refuse(&folder, &["no config.json"]);
}

#[test]
fn config_that_is_not_a_json_object() {
    let folder = Folder::llama();
    for (content, word) in [("", "EOF"), ("{", "EOF"), ("[1]", "not a JSON object"), ("{\"a\": NaN}", "not valid JSON")]
    {
        folder.write().put("config.json", content);
        refuse(&folder, &["config.json", word]);
    }
    folder.put("config.json", format!("{{\"a\": {}{}}}", "[".repeat(200_000), "]".repeat(200_000)));
    refuse(&folder, &["config.json", "recursion limit"]);
}

#[test]
fn config_of_many_megabytes() {
    let folder = Folder::llama();
    folder.write();
    let file = std::fs::File::create(folder.file("config.json")).unwrap();
    file.set_len(1 << 40).unwrap(); // sparse: nothing is written, and reading it would take a terabyte
    let error = HfFolder::open(folder.path()).err().expect("refused");
    assert_eq!(error.kind, Kind::Limits, "{error}");
    assert!(error.to_string().contains("config.json"), "{error}");
}

#[test]
fn unknown_architecture() {
    let mut folder = Folder::llama();
    folder.config["architectures"] = json!(["FooForCausalLM"]);
    folder.write();
    refuse(&folder, &["FooForCausalLM", "LlamaForCausalLM", "Qwen3MoeForCausalLM"]);
    folder.config["architectures"] = json!([]);
    folder.write();
    refuse(&folder, &["architectures", "config.json"]);
}

#[test]
fn config_with_values_of_the_wrong_type() {
    for (key, value) in [
        ("num_hidden_layers", json!("two")),
        ("num_hidden_layers", json!(-1)),
        ("num_hidden_layers", json!(1e30)),
        ("hidden_size", json!([8])),
        ("rms_norm_eps", json!("small")),
        ("tie_word_embeddings", json!("no")),
        ("hidden_act", json!("gelu_pytorch_tanh")),
        ("hidden_act", json!(7)),
    ] {
        let mut folder = Folder::llama();
        folder.config[key] = value.clone();
        folder.write();
        let error = HfFolder::open(folder.path()).err().unwrap_or_else(|| panic!("accepted {key} = {value}"));
        assert!(error.to_string().contains(key) && error.to_string().contains("config.json"), "{error}");
    }
}

#[test]
fn more_layers_than_weights() {
    let mut folder = Folder::llama();
    folder.config["num_hidden_layers"] = json!(3);
    folder.write();
    refuse(
        &folder,
        &["model.layers.2.input_layernorm.weight is missing", "blk.2.attn_norm.weight", "num_hidden_layers 3"],
    );
}

#[test]
fn more_weights_than_layers() {
    let mut folder = Folder::llama();
    folder.config["num_hidden_layers"] = json!(1);
    folder.write();
    let error = HfFolder::open(folder.path()).err().expect("refused");
    assert!(error.to_string().contains("model.layers.1."), "{error}");
}

#[test]
fn a_layer_without_one_of_its_weights() {
    let mut folder = Folder::llama();
    folder.tensors.remove("model.layers.1.self_attn.q_proj.weight");
    folder.write();
    refuse(&folder, &["model.layers.1.self_attn.q_proj.weight is missing", "blk.1.attn_q.weight"]);
}

#[test]
fn a_bias_in_one_layer_only() {
    let mut folder = Folder::llama();
    folder.config["attention_bias"] = json!(true);
    folder.add("model.layers.0.self_attn.q_proj.bias", &[8]);
    folder.write();
    refuse(&folder, &["model.layers.1.self_attn.q_proj.bias is missing"]);
}

#[test]
fn untied_model_without_a_head() {
    let mut folder = Folder::llama();
    folder.tensors.remove("lm_head.weight");
    folder.write();
    refuse(&folder, &["lm_head.weight is missing", "tie_word_embeddings"]);
}

#[test]
fn tensor_that_no_llama_has() {
    let mut folder = Folder::llama();
    folder.add("model.layers.0.self_attn.q_proj.qzeros", &[8]);
    folder.write();
    refuse(&folder, &["model.layers.0.self_attn.q_proj.qzeros", FILE]);
}

#[test]
fn weight_of_another_shape_than_the_config_says() {
    let mut folder = Folder::llama();
    folder.config["intermediate_size"] = json!(24);
    folder.write();
    refuse(&folder, &[".mlp.down_proj.weight", "[8, 12]", "[8, 24]"]);
    let mut folder = Folder::llama();
    folder.add("model.layers.1.self_attn.k_proj.weight", &[4, 9]);
    folder.write();
    refuse(&folder, &["model.layers.1.self_attn.k_proj.weight", "[4, 9]", "[4, 8]"]);
    let mut folder = Folder::llama();
    folder.config["vocab_size"] = json!(1000);
    folder.write();
    refuse(&folder, &["model.embed_tokens.weight", "[1000, 8]"]);
}

// ---- experts

#[test]
fn missing_expert() {
    let mut folder = Folder::moe(3);
    folder.tensors.remove("model.layers.1.mlp.experts.1.up_proj.weight");
    folder.write();
    refuse(&folder, &["expert 1 of 3 is missing", "blk.1.ffn_up_exps.weight"]);
}

#[test]
fn experts_of_different_shape_or_type() {
    let name = "model.layers.1.mlp.experts.2.up_proj.weight";
    let mut folder = Folder::moe(3);
    folder.add(name, &[6, 9]);
    folder.write();
    refuse(&folder, &["experts differ", name, "[6, 9]"]);
    let mut folder = Folder::moe(3);
    folder.tensors.get_mut(name).unwrap().dtype = "F16";
    folder.write();
    refuse(&folder, &["experts differ", name, "f16", "bf16"]);
}

#[test]
fn more_experts_than_the_config_says() {
    let mut folder = Folder::moe(3);
    folder.config["num_experts"] = json!(2);
    folder.write();
    let error = HfFolder::open(folder.path()).err().expect("refused");
    assert!(error.to_string().contains("experts.2."), "{error}");
}

#[test]
fn fused_experts_that_do_not_split() {
    let mut folder = Folder::moe(3);
    folder.tensors.retain(|name, _| !name.contains(".experts."));
    folder.add("model.layers.0.mlp.experts.gate_up_proj", &[3, 14, 8]);
    folder.write();
    refuse(&folder, &["gate_up_proj", "14 rows"]);
    folder.add("model.layers.0.mlp.experts.gate_up_proj", &[5, 12, 8]);
    folder.write();
    refuse(&folder, &["gate_up_proj", "3 experts"]);
}

#[test]
fn experts_both_fused_and_apart() {
    let mut folder = Folder::moe(3);
    folder.add("model.layers.0.mlp.experts.down_proj", &[3, 8, 6]);
    folder.write();
    refuse(&folder, &["model.layers.0.mlp.experts.down_proj", "experts.0.down_proj"]);
}

// ---- quantized checkpoints

#[test]
fn quantized_checkpoints_are_named() {
    let others = [("bitsandbytes", " with 8 bits"), ("quark", ""), ("hqq", ""), ("exl3", "")];
    for (method, more) in others {
        let mut folder = Folder::llama();
        folder.config["quantization_config"] = json!({ "quant_method": method, "bits": 4 });
        folder.write();
        refuse(&folder, &["config.json", &format!("({method}{more})"), "unquantized"]);
    }
    let folder = Folder::llama();
    folder.write().put("hf_quant_config.json", "{\"quantization\": {}}");
    refuse(&folder, &["hf_quant_config.json", "(modelopt unnamed)"]);
}

#[test]
fn weights_that_should_be_packed() {
    let mut folder = Folder::llama();
    folder.config["quantization_config"] = json!({ "quant_method": "gptq", "bits": 4 });
    folder.write();
    refuse(&folder, &["says that the weights are packed"]);
    let folder = Folder::llama();
    folder.write().put("quantize_config.json", "{\"bits\": 4}");
    refuse(&folder, &["says that the weights are packed"]);
    folder.put("quantize_config.json", "{\"bits\": -4}");
    refuse(&folder, &["quantize_config.json", "bits is -4"]);
}

/// Block FP8, with `scale` as the shape of layer 0's q_proj scale.
fn fp8(scale: Option<&[usize]>) -> Folder {
    let mut folder = Folder::llama();
    folder.config["quantization_config"] = json!({ "quant_method": "fp8", "weight_block_size": [128, 128] });
    let name = "model.layers.0.self_attn.q_proj.weight";
    let q = folder.tensors.get_mut(name).unwrap();
    q.dtype = "F8_E4M3";
    q.bytes.truncate(64);
    if let Some(shape) = scale {
        folder.add(&format!("{name}_scale_inv"), shape);
    }
    folder
}

#[test]
fn fp8_without_its_scale() {
    let folder = fp8(None);
    folder.write();
    refuse(&folder, &["model.layers.0.self_attn.q_proj.weight", "without its scale"]);
}

#[test]
fn fp8_scale_of_another_shape() {
    let folder = fp8(Some(&[2, 1]));
    folder.write();
    refuse(&folder, &["model.layers.0.self_attn.q_proj.weight", "[2, 1]", "[1, 1]"]);
}

#[test]
fn fp8_scale_of_another_type_or_without_a_weight() {
    let mut folder = fp8(Some(&[1, 1]));
    let scale = "model.layers.0.self_attn.q_proj.weight_scale_inv";
    folder.tensors.get_mut(scale).unwrap().dtype = "I16";
    folder.write();
    refuse(&folder, &["model.layers.0.self_attn.q_proj.weight", "I16"]);
    let mut folder = fp8(Some(&[1, 1]));
    folder.add("model.layers.9.self_attn.q_proj.weight_scale_inv", &[1, 1]);
    folder.write();
    refuse(&folder, &["model.layers.9.self_attn.q_proj.weight_scale_inv", "without its weight"]);
    let mut folder = fp8(Some(&[1, 1]));
    folder.add("model.layers.0.self_attn.k_proj.weight_scale_inv", &[1, 1]);
    folder.write();
    refuse(&folder, &["model.layers.0.self_attn.k_proj.weight", "BF16"]);
}

// ---- whatever else

/// Reads all of a folder that was accepted: no read may fail or panic, and every part has the size of its layout.
fn read_all(folder: &Folder) {
    use quant::container::Checkpoint;
    let Ok(model) = HfFolder::open(folder.path()) else { return };
    for (i, t) in model.tensors().iter().enumerate() {
        for plane in 0..t.planes() {
            let weight = model.read(i, plane).unwrap();
            let sizes: Vec<_> = weight.packed.parts.iter().map(|p| p.len()).collect();
            let layout: Vec<_> = weight.codec.layout(t.dims()).unwrap().iter().map(|p| p.bytes).collect();
            assert_eq!(sizes, layout, "{}", t.name);
            weight.codec.decode(&weight.packed, 0..t.dims().rows, &mut vec![0.0; t.dims().len()]);
        }
    }
}

/// Changes some bytes, then cuts or repeats a piece.
fn damage(mut text: Vec<u8>, changes: &[(u16, u8)], cut: Option<(u16, u16)>) -> Vec<u8> {
    for (at, byte) in changes {
        let at = *at as usize % text.len();
        // Digits and punctuation keep JSON valid more often than arbitrary bytes do.
        text[at] = match byte % 3 {
            0 => *byte,
            1 => b'0' + byte % 10,
            _ => b"{}[],:\"9"[(*byte / 3) as usize % 8],
        };
    }
    if let Some((from, len)) = cut {
        let from = from as usize % text.len();
        let to = (from + len as usize % 200).min(text.len());
        text.drain(from..to);
    }
    text
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(400))]

    #[test]
    fn damaged_files_never_panic(
        file in 0usize..4,
        changes in proptest::collection::vec((proptest::num::u16::ANY, proptest::num::u8::ANY), 0..4),
        cut in proptest::option::of((proptest::num::u16::ANY, proptest::num::u16::ANY)),
    ) {
        let folder = Folder::moe(2);
        folder.write_shards();
        let name = ["config.json", INDEX, SHARDS[0], SHARDS[1]][file];
        let mut text = std::fs::read(folder.file(name)).unwrap();
        // Of the shards, the header is what can lie; it begins with its length.
        let tail = if file < 2 { Vec::new() } else { text.split_off(8 + u64::from_le_bytes(text[..8].try_into().unwrap()) as usize) };
        let mut damaged = damage(text, &changes, cut);
        damaged.extend(tail);
        folder.put(name, damaged);
        read_all(&folder);
    }

    /// What is accepted here, the reference implementation accepts too.
    #[test]
    fn headers_are_judged_as_by_the_reference(
        changes in proptest::collection::vec((proptest::num::u16::ANY, proptest::num::u8::ANY), 0..3),
        length in proptest::bool::ANY,
    ) {
        let folder = Folder::llama();
        let file = safetensors(folder.tensors.iter().take(3));
        let header = u64::from_le_bytes(file[..8].try_into().unwrap()) as usize;
        let mut damaged = damage(file[8..8 + header].to_vec(), &changes, None);
        damaged.extend(&file[8 + header..]);
        let mut damaged = [&(header as u64).to_le_bytes(), &damaged[..]].concat();
        if length {
            damaged.push(0);
        }
        let ours = quant::container::hf::header::parse(&damaged);
        let theirs = safetensors::SafeTensors::deserialize(&damaged);
        if let Ok(entries) = &ours {
            let theirs = theirs.unwrap();
            proptest::prop_assert_eq!(entries.len(), theirs.len());
            for e in entries {
                let t = theirs.tensor(&e.name).unwrap();
                proptest::prop_assert_eq!((t.dtype(), t.shape(), t.data()), (e.dtype, &e.shape[..], &damaged[e.bytes.clone()]));
            }
        }
    }
}

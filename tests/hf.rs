//! Hugging Face folders that are as they should be.

mod common;

use common::folder::{Folder, HIDDEN, Stored, VOCAB};
use quant::container::Checkpoint;
use quant::container::hf::HfFolder;
use serde_json::json;

fn open(folder: &Folder) -> HfFolder {
    HfFolder::open(folder.path()).unwrap_or_else(|e| panic!("{e}"))
}

fn index(model: &dyn Checkpoint, name: &str) -> usize {
    model.find(name).unwrap_or_else(|| panic!("no {name}"))
}

/// Values of one matrix.
fn values(model: &dyn Checkpoint, name: &str, plane: usize) -> Vec<f32> {
    let weight = model.read(index(model, name), plane).unwrap();
    let dims = weight.packed.dims;
    let mut out = vec![f32::NAN; dims.len()];
    weight.codec.decode(&weight.packed, 0..dims.rows, &mut out);
    out
}

fn bytes(model: &dyn Checkpoint, name: &str, plane: usize) -> Vec<u8> {
    model.read(index(model, name), plane).unwrap().packed.parts[0].to_vec()
}

#[test]
fn one_file_and_shards_give_the_same_model() {
    let folder = Folder::llama();
    folder.write();
    let one = open(&folder);
    std::fs::remove_file(folder.file("model.safetensors")).unwrap();
    folder.write_shards();
    let indexed = open(&folder);
    std::fs::remove_file(folder.file("model.safetensors.index.json")).unwrap();
    let bare = open(&folder);
    let names: Vec<_> = one.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names.len(), folder.tensors.len());
    for other in [&indexed, &bare] {
        assert_eq!(names, other.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>());
        for name in &names {
            assert_eq!(bytes(&one, name, 0), bytes(other, name, 0), "{name}");
        }
    }
    assert_eq!(indexed.files().len(), 4);
}

#[test]
fn tensors_have_canonical_names_and_their_own_bytes() {
    let folder = Folder::llama();
    folder.write();
    let model = open(&folder);
    assert_eq!((model.container(), model.arch()), ("safetensors", "llama"));
    let names: Vec<_> = model.tensors().iter().map(|t| t.name.as_str()).collect();
    assert_eq!(names[0], "token_embd.weight");
    assert_eq!(names[1], "blk.0.attn_k.weight");
    assert_eq!(names[names.len() - 2..], ["output.weight", "output_norm.weight"]);
    let down = &model.tensors()[index(&model, "blk.1.ffn_down.weight")];
    assert_eq!((down.shape.as_slice(), down.codec.name()), ([HIDDEN, 12].as_slice(), "bf16"));
    assert_eq!(
        (down.source.as_str(), down.file.as_str()),
        ("model.layers.1.mlp.down_proj.weight", "model.safetensors")
    );
    assert_eq!(down.bytes, HIDDEN * 12 * 2);
    for t in model.tensors() {
        assert_eq!(bytes(&model, &t.name, 0), folder.tensors[&t.source].bytes, "{}", t.name);
    }
    assert!(model.read(0, 1).is_err() && model.read(999, 0).is_err());
}

#[test]
fn a_tied_head_is_dropped_if_there_and_not_missed_if_absent() {
    let mut folder = Folder::llama();
    folder.config["tie_word_embeddings"] = json!(true);
    folder.write();
    let model = open(&folder);
    assert!(model.tensors().iter().all(|t| t.name != "output.weight"));
    assert_eq!(model.dropped().iter().map(|d| d.source.as_str()).collect::<Vec<_>>(), ["lm_head.weight"]);
    folder.tensors.remove("lm_head.weight");
    folder.write();
    assert!(open(&folder).dropped().is_empty());
}

#[test]
fn experts_are_stacked_in_order() {
    // Eleven experts: as text, "10" sorts before "2".
    let folder = Folder::moe(11);
    folder.write_shards();
    let model = open(&folder);
    let name = "blk.1.ffn_up_exps.weight";
    let t = &model.tensors()[index(&model, name)];
    assert_eq!((t.shape.as_slice(), t.planes(), t.bytes), ([11, 6, HIDDEN].as_slice(), 11, 11 * 6 * HIDDEN * 2));
    for e in 0..11 {
        let source = format!("model.layers.1.mlp.experts.{e}.up_proj.weight");
        assert_eq!(bytes(&model, name, e), folder.tensors[&source].bytes, "{source}");
    }
    assert!(model.read(index(&model, name), 11).is_err());
}

#[test]
fn fused_experts_are_rows_of_one_tensor() {
    let mut folder = Folder::moe(3);
    folder.tensors.retain(|name, _| !name.contains(".experts."));
    for layer in 0..2 {
        folder.add(&format!("model.layers.{layer}.mlp.experts.gate_up_proj"), &[3, 12, HIDDEN]);
        folder.add(&format!("model.layers.{layer}.mlp.experts.down_proj"), &[3, HIDDEN, 6]);
    }
    folder.write();
    let model = open(&folder);
    let fused = &folder.tensors["model.layers.1.mlp.experts.gate_up_proj"].bytes;
    let half = 6 * HIDDEN * 2;
    for e in 0..3 {
        let (gate, up) = fused[e * 2 * half..][..2 * half].split_at(half);
        assert_eq!(bytes(&model, "blk.1.ffn_gate_exps.weight", e), gate);
        assert_eq!(bytes(&model, "blk.1.ffn_up_exps.weight", e), up);
    }
    let t = &model.tensors()[index(&model, "blk.1.ffn_up_exps.weight")];
    assert_eq!((t.shape.as_slice(), t.bytes), ([3, 6, HIDDEN].as_slice(), 3 * half));
}

#[test]
fn rope_factors_of_llama3_are_made() {
    let mut folder = Folder::llama();
    folder.config["rope_scaling"] = json!({ "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 32 });
    folder.write();
    let model = open(&folder);
    let factors = values(&model, "rope_freqs.weight", 0);
    assert_eq!(factors.len(), 2);
    assert_eq!(factors[1], 8.0);
    assert_eq!(model.tensors()[index(&model, "rope_freqs.weight")].codec.name(), "f32");
}

/// e4m3fn codes of 1.0 for a whole weight, and one scale a block.
fn fp8(folder: &mut Folder, name: &str, scale_dtype: &'static str) {
    let shape = folder.tensors[name].shape.clone();
    let blocks: Vec<usize> = shape.iter().map(|d| d.div_ceil(128)).collect();
    let n: usize = blocks.iter().product();
    let bytes = (0..n).flat_map(|i| match scale_dtype {
        "F32" => (i as f32 + 0.5).to_le_bytes().to_vec(),
        _ => half::bf16::from_f32(i as f32 + 0.5).to_le_bytes().to_vec(),
    });
    let scale = Stored { dtype: scale_dtype, shape: blocks, bytes: bytes.collect() };
    folder.tensors.insert(format!("{name}_scale_inv"), scale);
    let codes = vec![0x38; shape.iter().product()];
    folder.tensors.insert(name.to_owned(), Stored { dtype: "F8_E4M3", shape, bytes: codes });
}

#[test]
fn block_fp8_weights_carry_their_scales() {
    let mut folder = Folder::llama();
    folder.config["intermediate_size"] = json!(200);
    folder.config["quantization_config"] =
        json!({ "quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128] });
    for layer in 0..2 {
        for (name, shape) in [("gate_proj", [200, HIDDEN]), ("up_proj", [200, HIDDEN]), ("down_proj", [HIDDEN, 200])] {
            let name = format!("model.layers.{layer}.mlp.{name}.weight");
            folder.add(&name, &shape);
            fp8(&mut folder, &name, if layer == 0 { "F32" } else { "BF16" });
        }
    }
    folder.write();
    let model = open(&folder);
    assert_eq!(model.tensors().len(), 21, "scales are no tensors of their own");
    for layer in 0..2 {
        let down = values(&model, &format!("blk.{layer}.ffn_down.weight"), 0);
        assert!(
            down.chunks(200).all(|row| row[..128].iter().all(|v| *v == 0.5) && row[128..].iter().all(|v| *v == 1.5))
        );
        let up = values(&model, &format!("blk.{layer}.ffn_up.weight"), 0);
        assert!(up[..128 * HIDDEN].iter().all(|v| *v == 0.5) && up[128 * HIDDEN..].iter().all(|v| *v == 1.5));
    }
    let t = &model.tensors()[index(&model, "blk.0.ffn_up.weight")];
    assert_eq!((t.codec.name(), t.bytes), ("deepseek-fp8", 200 * HIDDEN + 8));
}

#[test]
fn metadata_describes_the_model() {
    let folder = Folder::llama();
    folder.write();
    folder.put("generation_config.json", r#"{"temperature": 0.6, "top_k": 20}"#);
    folder.put("README.md", "---\nlicense: mit\n---\n");
    let metadata = quant::container::hf::HfFolder::open(folder.path()).unwrap().description().unwrap();
    let keys: Vec<_> = metadata.iter().map(|(k, _)| k).collect();
    assert_eq!(keys[..3], ["general.architecture", "general.type", "general.sampling.top_k"]);
    assert_eq!(metadata.str("general.architecture"), Some("llama"));
    assert_eq!(metadata.str("general.license"), Some("mit"));
    assert_eq!(metadata.u64("llama.block_count"), Some(2));
    assert_eq!(metadata.u64("llama.vocab_size"), Some(VOCAB as u64));
    assert!(metadata.get("general.file_type").is_none());
}

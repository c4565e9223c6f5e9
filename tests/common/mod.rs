//! Tiny Hugging Face folders, made in a temporary directory.
#![allow(dead_code)] // each test binary uses its part

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

pub const HIDDEN: usize = 8;
pub const VOCAB: usize = 16;
pub const FFN: usize = 12;
pub const LAYERS: usize = 2;

/// One stored tensor.
#[derive(Clone)]
pub struct Stored {
    pub dtype: &'static str,
    pub shape: Vec<usize>,
    pub bytes: Vec<u8>,
}

/// BF16 elements that tell tensors and places apart.
pub fn bf16(seed: usize, shape: &[usize]) -> Stored {
    let n: usize = shape.iter().product();
    let bytes = (0..n).flat_map(|i| half::bf16::from_f32((seed * 31 + i) as f32 % 97.0).to_le_bytes()).collect();
    Stored { dtype: "BF16", shape: shape.to_vec(), bytes }
}

/// A folder to be written: change it, then [`Folder::write`].
pub struct Folder {
    pub config: Value,
    pub tensors: BTreeMap<String, Stored>,
    dir: tempfile::TempDir,
}

impl Folder {
    pub fn new(config: Value, names: &[(&str, &[usize])]) -> Folder {
        let tensors =
            names.iter().enumerate().map(|(i, (name, shape))| (name.to_string(), bf16(i + 1, shape))).collect();
        Folder { config, tensors, dir: tempfile::tempdir().unwrap() }
    }

    /// Llama, 2 heads of 4, untied.
    pub fn llama() -> Folder {
        let mut folder = Folder::new(
            json!({
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN,
                "intermediate_size": FFN, "num_hidden_layers": LAYERS, "num_attention_heads": 2, "num_key_value_heads": 1,
                "vocab_size": VOCAB, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
                "tie_word_embeddings": false
            }),
            &[
                ("model.embed_tokens.weight", &[VOCAB, HIDDEN]),
                ("model.norm.weight", &[HIDDEN]),
                ("lm_head.weight", &[VOCAB, HIDDEN]),
            ],
        );
        for layer in 0..LAYERS {
            folder.attention(layer);
            for (name, shape) in
                [("gate_proj", [FFN, HIDDEN]), ("up_proj", [FFN, HIDDEN]), ("down_proj", [HIDDEN, FFN])]
            {
                folder.add(&format!("model.layers.{layer}.mlp.{name}.weight"), &shape);
            }
        }
        folder
    }

    /// Qwen3-MoE with `experts` experts of width 6, one tensor each.
    pub fn moe(experts: usize) -> Folder {
        let mut folder = Folder::llama();
        folder.config["architectures"] = json!(["Qwen3MoeForCausalLM"]);
        folder.config["num_experts"] = json!(experts);
        folder.config["num_experts_per_tok"] = json!(1);
        folder.config["moe_intermediate_size"] = json!(6);
        folder.config["head_dim"] = json!(4);
        folder.tensors.retain(|name, _| !name.contains(".mlp."));
        for layer in 0..LAYERS {
            folder.add(&format!("model.layers.{layer}.mlp.gate.weight"), &[experts, HIDDEN]);
            folder.add(&format!("model.layers.{layer}.self_attn.q_norm.weight"), &[4]);
            folder.add(&format!("model.layers.{layer}.self_attn.k_norm.weight"), &[4]);
            for e in 0..experts {
                for (name, shape) in [("gate_proj", [6, HIDDEN]), ("up_proj", [6, HIDDEN]), ("down_proj", [HIDDEN, 6])]
                {
                    folder.add(&format!("model.layers.{layer}.mlp.experts.{e}.{name}.weight"), &shape);
                }
            }
        }
        folder
    }

    fn attention(&mut self, layer: usize) {
        for (name, shape) in [("q", [8, HIDDEN]), ("k", [4, HIDDEN]), ("v", [4, HIDDEN]), ("o", [HIDDEN, 8])] {
            self.add(&format!("model.layers.{layer}.self_attn.{name}_proj.weight"), &shape);
        }
        for name in ["input_layernorm", "post_attention_layernorm"] {
            self.add(&format!("model.layers.{layer}.{name}.weight"), &[HIDDEN]);
        }
    }

    pub fn add(&mut self, name: &str, shape: &[usize]) {
        let tensor = bf16(self.tensors.len() + 1, shape);
        self.tensors.insert(name.to_owned(), tensor);
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub fn put(&self, name: &str, content: impl AsRef<[u8]>) -> &Self {
        std::fs::write(self.file(name), content).unwrap();
        self
    }

    /// config.json and one model.safetensors.
    pub fn write(&self) -> &Self {
        self.put("config.json", self.config.to_string()).put("model.safetensors", safetensors(self.tensors.iter()))
    }

    /// config.json, two shards and their index.
    pub fn write_shards(&self) -> &Self {
        let half = self.tensors.len() / 2;
        let mut map = serde_json::Map::new();
        for (n, file) in SHARDS.iter().enumerate() {
            let part: Vec<_> =
                self.tensors.iter().skip(n * half).take(if n == 0 { half } else { usize::MAX }).collect();
            map.extend(part.iter().map(|(name, _)| (name.to_string(), json!(file))));
            self.put(file, safetensors(part.into_iter()));
        }
        self.put("config.json", self.config.to_string());
        self.put(
            "model.safetensors.index.json",
            json!({ "metadata": { "total_size": 0 }, "weight_map": map }).to_string(),
        )
    }
}

pub const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A safetensors file.
pub fn safetensors<'a>(tensors: impl Iterator<Item = (&'a String, &'a Stored)>) -> Vec<u8> {
    let (mut header, mut data) = (serde_json::Map::new(), Vec::new());
    header.insert("__metadata__".into(), json!({ "format": "pt" }));
    for (name, t) in tensors {
        let start = data.len();
        data.extend(&t.bytes);
        header.insert(name.clone(), json!({ "dtype": t.dtype, "shape": t.shape, "data_offsets": [start, data.len()] }));
    }
    with_header(&Value::Object(header).to_string(), &data)
}

/// Any text as the header.
pub fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

//! A small random Llama (or Mixtral) with its tokenizer: what the pipeline tests convert.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::folder::{Folder, Stored};

pub struct Shape {
    pub hidden: usize,
    pub inter: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub vocab: usize,
    pub experts: usize,
    pub tied: bool,
}

pub const DENSE: Shape =
    Shape { hidden: 256, inter: 512, layers: 4, heads: 4, kv_heads: 2, vocab: 384, experts: 0, tied: false };
pub const ODD: Shape = Shape { hidden: 96, inter: 160, heads: 3, kv_heads: 3, tied: true, ..DENSE };
pub const MOE: Shape = Shape { layers: 2, experts: 4, ..DENSE };

/// Reproducible, roughly normal, with a few outliers.
pub fn noise(name: &str, n: usize, scale: f32) -> Vec<f32> {
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut uniform = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    (0..n)
        .map(|_| {
            let normal = uniform() + uniform() + uniform() + uniform();
            let outlier = if uniform() > 0.499 { 6.0 } else { 1.0 };
            normal * scale * outlier
        })
        .collect()
}

fn tensors(s: &Shape) -> BTreeMap<String, Stored> {
    let mut all = BTreeMap::new();
    let mut add = |name: String, shape: &[usize]| {
        let n = shape.iter().product();
        let mut values = noise(&name, n, 0.05);
        if shape.len() == 1 {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        all.insert(name, Stored { dtype: "F32", shape: shape.to_vec(), bytes: bytemuck::cast_slice(&values).to_vec() });
    };
    let kv = s.hidden / s.heads * s.kv_heads;
    add("model.embed_tokens.weight".into(), &[s.vocab, s.hidden]);
    for l in 0..s.layers {
        let p = format!("model.layers.{l}.");
        add(format!("{p}input_layernorm.weight"), &[s.hidden]);
        add(format!("{p}post_attention_layernorm.weight"), &[s.hidden]);
        add(format!("{p}self_attn.q_proj.weight"), &[s.hidden, s.hidden]);
        add(format!("{p}self_attn.k_proj.weight"), &[kv, s.hidden]);
        add(format!("{p}self_attn.v_proj.weight"), &[kv, s.hidden]);
        add(format!("{p}self_attn.o_proj.weight"), &[s.hidden, s.hidden]);
        if s.experts == 0 {
            add(format!("{p}mlp.gate_proj.weight"), &[s.inter, s.hidden]);
            add(format!("{p}mlp.up_proj.weight"), &[s.inter, s.hidden]);
            add(format!("{p}mlp.down_proj.weight"), &[s.hidden, s.inter]);
        } else {
            add(format!("{p}block_sparse_moe.gate.weight"), &[s.experts, s.hidden]);
        }
        for e in 0..s.experts {
            add(format!("{p}block_sparse_moe.experts.{e}.w1.weight"), &[s.inter, s.hidden]);
            add(format!("{p}block_sparse_moe.experts.{e}.w2.weight"), &[s.hidden, s.inter]);
            add(format!("{p}block_sparse_moe.experts.{e}.w3.weight"), &[s.inter, s.hidden]);
        }
    }
    add("model.norm.weight".into(), &[s.hidden]);
    if !s.tied {
        add("lm_head.weight".into(), &[s.vocab, s.hidden]);
    }
    all
}

fn config(s: &Shape) -> Value {
    let (class, kind) = if s.experts > 0 { ("MixtralForCausalLM", "mixtral") } else { ("LlamaForCausalLM", "llama") };
    let mut config = json!({
        "architectures": [class], "model_type": kind, "hidden_size": s.hidden, "intermediate_size": s.inter,
        "num_hidden_layers": s.layers, "num_attention_heads": s.heads, "num_key_value_heads": s.kv_heads,
        "vocab_size": s.vocab, "max_position_embeddings": 512, "hidden_act": "silu", "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0, "tie_word_embeddings": s.tied, "torch_dtype": "float32", "bos_token_id": 257,
        "eos_token_id": 258
    });
    if s.experts > 0 {
        config["num_local_experts"] = json!(s.experts);
        config["num_experts_per_tok"] = json!(2);
    }
    config
}

/// Byte-level BPE with one merge: the 256 bytes, `he` and two special tokens, split as GPT-2 does.
fn tokenizer() -> Value {
    let mut letters: Vec<char> = Vec::new();
    let mut extra = 256u32;
    for b in 0u32..256 {
        let plain = (33..127).contains(&b) || (161..173).contains(&b) || (174..256).contains(&b);
        letters.push(char::from_u32(if plain { b } else { extra }).unwrap());
        extra += u32::from(!plain);
    }
    let mut vocab: serde_json::Map<String, Value> =
        letters.iter().enumerate().map(|(i, c)| (c.to_string(), json!(i))).collect();
    vocab.insert("he".to_owned(), json!(256));
    let special = |id: u32, text: &str| json!({"id": id, "content": text, "single_word": false, "lstrip": false, "rstrip": false, "normalized": false, "special": true});
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [special(257, "<|begin|>"), special(258, "<|end|>")],
        "normalizer": null,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true},
        "post_processor": null,
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": vocab, "merges": ["h e"]}
    })
}

/// The model in a temporary folder of its own.
pub fn model(shape: &Shape) -> Folder {
    let folder = Folder::of(config(shape), tensors(shape));
    put_tokenizer(&folder);
    folder.write();
    folder
}

pub fn put_tokenizer(folder: &Folder) {
    folder.put("tokenizer.json", tokenizer().to_string());
    let template = "{% for m in messages %}{{ m['content'].strip() }}{% endfor %}";
    let settings = json!({"tokenizer_class": "GPT2Tokenizer", "bos_token": "<|begin|>", "eos_token": "<|end|>",
        "add_bos_token": true, "chat_template": template});
    folder.put("tokenizer_config.json", settings.to_string());
}

//! Small random models of several families, with the tokenizer of [`super::model`].

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::folder::{Folder, Stored};
use super::model;

const HIDDEN: usize = 64;
const HEADS: usize = 2;
const HEAD: usize = 64;
const INNER: usize = 96;
const EXPERTS: usize = 4;
const WIDTH: usize = 32;
const VOCAB: usize = 384;
pub const LAYERS: usize = 2;

/// What a family has beside Llama's tensors, and its configuration.
pub struct Family {
    pub name: &'static str,
    /// What to compare it with.
    pub artifact: &'static str,
    config: fn() -> Value,
    /// Of each layer.
    tensors: fn() -> Vec<(&'static str, Vec<usize>)>,
}

pub const FAMILIES: &[Family] = &[
    Family {
        name: "qwen2: grouped heads, biases",
        artifact: "q8_0",
        config: || json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}),
        tensors: || [heads(), qkv_biases(), gated("mlp.", INNER), norms(&LLAMA_NORMS)].concat(),
    },
    Family {
        name: "gemma2: norms behind, softcaps, a window",
        artifact: "q8_0",
        config: || {
            json!({"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "sliding_window": 16, "tie_word_embeddings": true,
                "query_pre_attn_scalar": 64, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 4.0,
                "hidden_activation": "gelu_pytorch_tanh"})
        },
        tensors: || [heads(), gated("mlp.", INNER), norms(&GEMMA_NORMS)].concat(),
    },
    Family {
        name: "qwen3: norms of heads",
        artifact: "q8_0",
        config: || json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3"}),
        tensors: || {
            let of_heads = vec![("self_attn.q_norm.weight", vec![HEAD]), ("self_attn.k_norm.weight", vec![HEAD])];
            [heads(), of_heads, gated("mlp.", INNER), norms(&LLAMA_NORMS)].concat()
        },
    },
    Family {
        name: "qwen2-moe: experts, one of them for all",
        artifact: "mlx-4bit-g32",
        config: || {
            json!({"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": EXPERTS,
                "num_experts_per_tok": 2, "moe_intermediate_size": WIDTH, "shared_expert_intermediate_size": INNER})
        },
        tensors: || {
            let mut all = [heads(), qkv_biases(), gated("mlp.shared_expert.", INNER), norms(&LLAMA_NORMS)].concat();
            all.push(("mlp.gate.weight", vec![EXPERTS, HIDDEN]));
            all.push(("mlp.shared_expert_gate.weight", vec![1, HIDDEN]));
            for prefix in ["mlp.experts.0.", "mlp.experts.1.", "mlp.experts.2.", "mlp.experts.3."] {
                all.extend(gated(prefix, WIDTH));
            }
            all
        },
    },
    Family {
        name: "gpt-oss: sinks, experts with biases",
        artifact: "q8_0",
        config: || {
            json!({"architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "intermediate_size": WIDTH,
                "num_local_experts": EXPERTS, "num_experts_per_tok": 2, "sliding_window": 16, "swiglu_limit": 7.0,
                "layer_types": ["sliding_attention", "full_attention"]})
        },
        tensors: || {
            let mut all = [heads(), qkv_biases(), norms(&LLAMA_NORMS)].concat();
            all.extend([
                ("self_attn.o_proj.bias", vec![HIDDEN]),
                ("self_attn.sinks", vec![HEADS]),
                ("mlp.router.weight", vec![EXPERTS, HIDDEN]),
                ("mlp.router.bias", vec![EXPERTS]),
                ("mlp.experts.gate_up_proj", vec![EXPERTS, HIDDEN, 2 * WIDTH]),
                ("mlp.experts.gate_up_proj_bias", vec![EXPERTS, 2 * WIDTH]),
                ("mlp.experts.down_proj", vec![EXPERTS, WIDTH, HIDDEN]),
                ("mlp.experts.down_proj_bias", vec![EXPERTS, HIDDEN]),
            ]);
            all
        },
    },
];

type Tensors = Vec<(&'static str, Vec<usize>)>;

const LLAMA_NORMS: [&str; 2] = ["input_layernorm.weight", "post_attention_layernorm.weight"];
const GEMMA_NORMS: [&str; 4] = [
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
    "pre_feedforward_layernorm.weight",
    "post_feedforward_layernorm.weight",
];

fn norms(names: &[&'static str]) -> Tensors {
    names.iter().map(|name| (*name, vec![HIDDEN])).collect()
}

fn heads() -> Tensors {
    let wide = HEADS * HEAD;
    vec![
        ("self_attn.q_proj.weight", vec![wide, HIDDEN]),
        ("self_attn.k_proj.weight", vec![HEAD, HIDDEN]),
        ("self_attn.v_proj.weight", vec![HEAD, HIDDEN]),
        ("self_attn.o_proj.weight", vec![HIDDEN, wide]),
    ]
}

fn qkv_biases() -> Tensors {
    let wide = HEADS * HEAD;
    vec![
        ("self_attn.q_proj.bias", vec![wide]),
        ("self_attn.k_proj.bias", vec![HEAD]),
        ("self_attn.v_proj.bias", vec![HEAD]),
    ]
}

/// `prefix` is one of a few: the names live as long as the tests.
fn gated(prefix: &str, inner: usize) -> Tensors {
    let name = |of: &str| -> &'static str { Box::leak(format!("{prefix}{of}_proj.weight").into_boxed_str()) };
    vec![(name("gate"), vec![inner, HIDDEN]), (name("up"), vec![inner, HIDDEN]), (name("down"), vec![HIDDEN, inner])]
}

/// The model in a temporary folder of its own, BF16.
pub fn family(family: &Family) -> Folder {
    let mut config = json!({
        "hidden_size": HIDDEN, "intermediate_size": INNER, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS,
        "num_key_value_heads": 1, "head_dim": HEAD, "vocab_size": VOCAB, "max_position_embeddings": 512, "hidden_act": "silu",
        "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": false, "torch_dtype": "bfloat16",
        "bos_token_id": 257, "eos_token_id": 258
    });
    if let (Value::Object(all), Value::Object(own)) = (&mut config, (family.config)()) {
        all.extend(own);
    }
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB, HIDDEN])];
    shapes.push(("model.norm.weight".to_owned(), vec![HIDDEN]));
    if config["tie_word_embeddings"] == false {
        shapes.push(("lm_head.weight".to_owned(), vec![VOCAB, HIDDEN]));
    }
    for layer in 0..LAYERS {
        let own = (family.tensors)().into_iter().map(|(name, shape)| (format!("model.layers.{layer}.{name}"), shape));
        shapes.extend(own);
    }
    let tensors: BTreeMap<String, Stored> =
        shapes.into_iter().map(|(name, shape)| (name.clone(), stored(&name, shape))).collect();
    let folder = Folder::of(config, tensors);
    model::put_tokenizer(&folder);
    folder.write();
    folder
}

fn stored(name: &str, shape: Vec<usize>) -> Stored {
    let (spread, middle) = match (shape.len(), name.contains("norm")) {
        (_, true) => (0.1, 1.0),
        (1, false) => (0.5, 0.0),
        _ => (0.15, 0.0),
    };
    let values = model::noise(name, shape.iter().product(), spread);
    let bytes = values.iter().flat_map(|x| half::bf16::from_f32(x + middle).to_le_bytes()).collect();
    Stored { dtype: "BF16", shape, bytes }
}

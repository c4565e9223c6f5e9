//! `RUSTC_BOOTSTRAP=1 cargo fuzz run recipe fuzz/corpus/recipe recipes`

#![no_main]

use libfuzzer_sys::fuzz_target;
use quant::codec::float;
use quant::recipe::{ModelFacts, Recipe, Source, select};

/// Names of every kind that rules speak of, at both ends and in the middle of a model.
const NAMES: &[&str] = &[
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "blk.0.attn_q.weight",
    "blk.0.attn_v.weight",
    "blk.0.attn_output.weight",
    "blk.0.ffn_down.weight",
    "blk.3.attn_qkv.weight",
    "blk.3.ffn_gate_inp.weight",
    "blk.3.ffn_down_exps.weight",
    "blk.7.ffn_up.weight",
];

fuzz_target!(|text: &str| {
    let Ok(recipe) = Recipe::parse(text) else { return };
    for cols in [256, 96] {
        let shape = [4, cols];
        let sources: Vec<_> = NAMES.iter().map(|&name| Source { name, shape: &shape, codec: &float::F32 }).collect();
        let facts =
            ModelFacts { arch: "llama".into(), layers: 8, heads: 8, kv_heads: 2, experts: 2, has_importance: true };
        let Ok(choices) = select(&recipe, &facts, &sources) else { continue };
        // Every tensor gets a format that takes its rows.
        assert_eq!(choices.len(), sources.len());
        for choice in &choices {
            let bytes = choice.codec.bytes(quant::tensor::Dims::new(4, cols)).expect("a chosen format fits");
            assert_eq!(bytes as u64, choice.size.bytes);
        }
    }
});

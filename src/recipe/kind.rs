//! The kinds of weights that a rule can name, and the order in which rules count them.
//! Source: llama.cpp `src/llama-quant.cpp` (categories), `src/llama-model-loader.h` (order).

use std::cmp::Ordering;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Output,
    TokenEmbd,
    AttnQ,
    AttnK,
    AttnV,
    AttnOutput,
    FfnUp,
    FfnGate,
    FfnDown,
    Other,
}

/// As recipes write them; the index is the enum's value.
pub const KINDS: [(&str, Kind); 10] = [
    ("output", Kind::Output),
    ("token_embd", Kind::TokenEmbd),
    ("attn_q", Kind::AttnQ),
    ("attn_k", Kind::AttnK),
    ("attn_v", Kind::AttnV),
    ("attn_output", Kind::AttnOutput),
    ("ffn_up", Kind::FfnUp),
    ("ffn_gate", Kind::FfnGate),
    ("ffn_down", Kind::FfnDown),
    ("other", Kind::Other),
];

/// The embedding table of each layer (Gemma 3n), which `[tensors]` may take out of `token_embd`.
pub(super) const PER_LAYER_EMBD: &str = "per_layer_token_embd.weight";

const EXACT: [(&str, Kind); 3] =
    [("output.weight", Kind::Output), ("token_embd.weight", Kind::TokenEmbd), (PER_LAYER_EMBD, Kind::TokenEmbd)];

/// Parts of names, first match wins. Everything that holds values counts as `attn_v`, fused or compressed or not.
const WITHIN: [(&str, Kind); 9] = [
    ("attn_qkv.weight", Kind::AttnV),
    ("attn_kv_b.weight", Kind::AttnV),
    ("attn_v.weight", Kind::AttnV),
    ("attn_k.weight", Kind::AttnK),
    ("attn_q.weight", Kind::AttnQ),
    ("attn_output.weight", Kind::AttnOutput),
    ("ffn_up", Kind::FfnUp),
    ("ffn_gate", Kind::FfnGate),
    ("ffn_down", Kind::FfnDown),
];

impl Kind {
    /// Of a tensor's GGUF name: `blk.3.ffn_down_exps.weight` is `FfnDown`.
    pub fn of(name: &str) -> Kind {
        let exact = EXACT.iter().find(|(n, _)| *n == name);
        let within = || WITHIN.iter().find(|(part, _)| name.contains(part));
        exact.or_else(within).map_or(Kind::Other, |&(_, kind)| kind)
    }
    pub fn named(name: &str) -> Option<Kind> {
        KINDS.iter().find(|(n, _)| *n == name).map(|&(_, kind)| kind)
    }
    pub fn name(self) -> &'static str {
        KINDS[self as usize].0
    }
    pub fn is_ffn(self) -> bool {
        matches!(self, Kind::FfnUp | Kind::FfnGate | Kind::FfnDown)
    }
}

/// The `3` of `blk.3.attn_q.weight`.
pub fn layer(name: &str) -> Option<usize> {
    let digits = name.strip_prefix("blk.")?;
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    digits[..end].parse().ok()
}

/// llama-quantize's order: tensors outside layers first, then by layer, then by name.
pub fn order(a: &str, b: &str) -> Ordering {
    layer(a).cmp(&layer(b)).then_with(|| a.cmp(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_indexed_by_value() {
        assert!(KINDS.iter().enumerate().all(|(i, (name, kind))| *kind as usize == i && kind.name() == *name));
    }

    #[test]
    fn names_fall_into_kinds() {
        for (name, kind) in [
            ("output.weight", Kind::Output),
            ("blk.0.attn_output.weight", Kind::AttnOutput),
            ("blk.0.attn_kv_b.weight", Kind::AttnV),
            ("blk.0.attn_q_a.weight", Kind::Other),
            ("blk.10.ffn_gate_up_exps.weight", Kind::FfnGate),
            ("blk.10.ffn_down_shexp.weight", Kind::FfnDown),
            ("per_layer_token_embd.weight", Kind::TokenEmbd),
            ("token_embd_norm.weight", Kind::Other),
        ] {
            assert_eq!(Kind::of(name), kind, "{name}");
        }
    }

    #[test]
    fn layers_sort_by_number_after_the_rest() {
        let sorted = [
            "output.weight",
            "rope_freqs.weight",
            "token_embd.weight",
            "blk.0.attn_q.weight",
            "blk.2.attn_k.weight",
            "blk.2.ffn_down.weight",
            "blk.10.attn_k.weight",
        ];
        let mut names = sorted;
        names.reverse();
        names.sort_by(|a, b| order(a, b));
        assert_eq!(names, sorted);
    }
}

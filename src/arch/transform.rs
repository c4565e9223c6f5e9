//! What a weight's values need on the way between the two conventions.

use super::{Arch, Convention, ModelSpec, Rope, WeightId};
use crate::error::{Error, Result};

/// Which source row becomes which output row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowOrder {
    Same,
    /// Halves to neighbours within each run of `head` rows: `a0 a1 b0 b1 -> a0 b0 a1 b1`.
    Interleave {
        head: usize,
    },
    /// The inverse.
    Deinterleave {
        head: usize,
    },
}

/// Reorders rows, then adds a constant. Element of a vector count as its rows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Transform {
    pub rows: RowOrder,
    pub add: f32,
}

impl Transform {
    pub const IDENTITY: Transform = Transform { rows: RowOrder::Same, add: 0.0 };

    pub fn is_identity(&self) -> bool {
        *self == Self::IDENTITY
    }

    /// The source row that becomes output row `row`. Stays within `0..rows` for every `rows` that [`Self::check`] accepts.
    pub fn source_row(&self, row: usize) -> usize {
        match self.rows {
            RowOrder::Same => row,
            RowOrder::Interleave { head } => {
                let (start, i) = (row - row % head, row % head);
                start + i % 2 * (head / 2) + i / 2
            }
            RowOrder::Deinterleave { head } => {
                let (start, i) = (row - row % head, row % head);
                start + i % (head / 2) * 2 + i / (head / 2)
            }
        }
    }

    /// Whether a weight (or vector) of `rows` rows consists of whole heads.
    pub fn check(&self, rows: usize) -> Result<()> {
        match self.rows {
            RowOrder::Interleave { head } | RowOrder::Deinterleave { head } if !rows.is_multiple_of(head) => {
                Err(Error::input(format!("{rows} rows are no multiple of the head size {head}"))
                    .help("num_attention_heads, hidden_size or head_dim in config.json do not fit this weight"))
            }
            _ => Ok(()),
        }
    }
}

/// Stems whose rows rotary embedding pairs up.
const ROTATED: &[&str] = &["attn_q", "attn_k"];

impl Arch {
    /// How the values of the canonical tensor `name` change between conventions. Data only: reading rows through
    /// [`Transform::source_row`] and adding is the caller's part.
    pub fn transform(&self, name: &str, from: Convention, to: Convention, spec: &ModelSpec) -> Transform {
        if from == to {
            return Transform::IDENTITY;
        }
        let to_gguf = to == Convention::Gguf;
        let stem = name.rsplit_once('.').map_or(name, |(stem, _)| stem);
        let last = stem.rsplit_once('.').map_or(stem, |(_, last)| last);
        let head = spec.head_dim();
        let rows = match self.rope {
            Rope::Norm if ROTATED.contains(&last) && head.is_multiple_of(2) => {
                if to_gguf {
                    RowOrder::Interleave { head }
                } else {
                    RowOrder::Deinterleave { head }
                }
            }
            _ => RowOrder::Same,
        };
        let offset = if name.ends_with("norm.weight") { self.norm_offset } else { 0.0 };
        Transform { rows, add: if to_gguf { offset } else { -offset } }
    }
}

/// Families whose feed-forward layers llama.cpp multiplies with `.scale` tensors. Source: llama.cpp `src/models/` 0.3.36 of
/// llama-cpp-python: the others are built without.
const SCALED_FFN: &[&str] = &["llama", "mistral3", "qwen3", "qwen3moe"];

/// Whether llama.cpp multiplies this weight with its `.scale`, if it has one. Where it does not, such a file loads and says
/// nothing sensible.
pub fn scale_is_read(arch: &str, id: &WeightId) -> bool {
    id.layer.is_some() && (id.role.stem().starts_with("attn_") || SCALED_FFN.contains(&arch))
}

/// Whether the converter stores this tensor as f32 whatever type was asked for: vectors, norms, routers and whatever is
/// no `.weight`. Source: llama.cpp `conversion/base.py` (prepare_tensors).
pub fn always_f32(name: &str, shape: &[usize]) -> bool {
    let router = name.ends_with(".ffn_gate_inp.weight") || name.ends_with(".ffn_gate_inp_shexp.weight");
    shape.len() <= 1 || router || name.ends_with("_norm.weight") || !name.ends_with(".weight")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_are_read_in_attention_everywhere_and_elsewhere_in_some() {
        let read = |arch, name| scale_is_read(arch, &WeightId::parse(name));
        assert!(read("gemma3", "blk.0.attn_output.weight") && !read("gemma3", "blk.0.ffn_up.weight"));
        assert!(read("llama", "blk.1.ffn_down_exps.weight") && read("qwen3moe", "blk.1.ffn_gate_exps.weight"));
        assert!(!read("llama", "output.weight") && !read("llama", "token_embd.weight"));
    }
}

//! ggml's block formats, as GGUF stores them. Source: ggml `ggml-common.h` (layouts), `ggml-quants.c` (arithmetic).

pub mod encode;

use super::Codec;

pub static CODECS: &[&dyn Codec] = &[];

//! ggml's block formats, as GGUF stores them. Source: ggml `ggml-common.h` (layouts), `ggml-quants.c` (arithmetic).

use super::Codec;

pub static CODECS: &[&dyn Codec] = &[];

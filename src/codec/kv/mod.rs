//! How runtimes keep the keys and values of attention in fewer bits than single precision. [`KV_FORMATS`] lists the types;
//! [`KvPolicy`] says which of them a cache has, and what of it stays in half precision.

mod calibrated;
mod dense;
mod policy;
mod rotate;
mod turbo;
mod uniform;

use super::float::{BF16, F16, F32};
use super::ggml::iq4::IQ4_NL;
use super::ggml::simple::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use crate::error::Result;
use calibrated::{Calibrated, Centered, Outliers};
use dense::{Blocks, Eight};
pub use policy::{Held, KvPolicy, KvShape};
use rotate::Rotated;
pub use rotate::hadamard;
use turbo::Turbo;
use uniform::{Channels, Fit, Uniform};

/// Vectors of one head as bytes, `[tokens][head_dim]` at a time.
pub trait Vectors: Send + Sync {
    /// Whether heads of this dimension can be stored so.
    fn check(&self, _head_dim: usize) -> Result<()> {
        Ok(())
    }

    /// Tokens that are encoded together.
    fn tokens(&self) -> usize {
        1
    }

    /// So many tokens must be known before the first is encoded: what all share comes from them.
    fn calibration(&self) -> usize {
        0
    }

    /// What all tokens of a head share. `x` holds [`Vectors::calibration`] of them.
    fn shared(&self, _x: &[f32], _head_dim: usize) -> Vec<u8> {
        Vec::new()
    }

    /// Bytes of [`Vectors::shared`].
    fn shared_bytes(&self, _head_dim: usize) -> usize {
        0
    }

    /// Whether a scale for all vectors of a layer may go with it.
    fn scaled(&self) -> bool {
        false
    }

    /// Bytes of [`Vectors::tokens`] tokens, of a dimension that `check` accepts.
    fn bytes(&self, head_dim: usize) -> usize;

    /// Whole groups of tokens.
    fn encode(&self, x: &[f32], head_dim: usize, shared: &[u8], out: &mut [u8]);

    /// The inverse, as near as the format comes.
    fn decode(&self, bytes: &[u8], head_dim: usize, shared: &[u8], out: &mut [f32]);
}

/// How a format stores keys, or values.
#[derive(Clone, Copy)]
pub struct Stored {
    pub vectors: &'static dyn Vectors,
    /// Keys as they are before they are turned by their position; every reader turns them again.
    pub before_rope: bool,
    /// First and most recent positions that stay in half precision unless the user says otherwise.
    pub sink: usize,
    pub window: usize,
}

/// A row of the table of cache types.
pub struct KvFormat {
    pub name: &'static str,
    pub about: &'static str,
    pub key: Stored,
    pub value: Stored,
}

impl KvFormat {
    /// Bits per value in long contexts: keys, values.
    pub fn bits(&self, head_dim: usize) -> [f64; 2] {
        [self.key, self.value].map(|stored| {
            let (vectors, values) = (stored.vectors, stored.vectors.tokens() * head_dim);
            vectors.bytes(head_dim) as f64 * 8.0 / values as f64
        })
    }
}

pub static KV_FORMATS: &[KvFormat] = &[
    both(F32.name, "single precision: nothing is lost", &Blocks(&F32)),
    both(F16.name, "half precision, what runtimes keep by default (llama.cpp)", &Blocks(&F16)),
    both(BF16.name, "bfloat16 (vLLM, SGLang)", &Blocks(&BF16)),
    both(Q8_0.name, "8 bits, a scale for 32 values (llama.cpp)", &Blocks(&Q8_0)),
    both(
        "int8",
        "8 bits, a scale for each token and head (vLLM)",
        &Uniform { bits: 8, group: WHOLE, fit: Fit::Symmetric },
    ),
    both(
        "fp8",
        "8-bit floats E4M3 under the layer's scales that the model has, else 1, cut off at 448 (vLLM, SGLang)",
        &Eight,
    ),
    both(Q5_1.name, "5 bits, scale and minimum for 32 values (llama.cpp)", &Blocks(&Q5_1)),
    both(Q5_0.name, "5 bits, a scale for 32 values (llama.cpp, rotation off)", &Blocks(&Q5_0)),
    both(Q4_1.name, "4 bits, scale and minimum for 32 values (llama.cpp)", &Blocks(&Q4_1)),
    both(Q4_0.name, "4 bits, a scale for 32 values (llama.cpp, rotation off)", &Blocks(&Q4_0)),
    both(IQ4_NL.name, "4 bits, unequal steps, a scale for 32 values (llama.cpp)", &Blocks(&IQ4_NL)),
    both("q3", "3 bits, a scale for 32 values", &THREE),
    both("q2", "2 bits, a scale for 32 values", &TWO),
    both("q8h", "q8_0 of Hadamard-rotated heads (QuaRot, ExLlamaV2; llama.cpp since 2026)", &Rotated(&Blocks(&Q8_0))),
    both("q5h", "q5_0 of Hadamard-rotated heads (the same)", &Rotated(&Blocks(&Q5_0))),
    both("q4h", "q4_0 of Hadamard-rotated heads (the same)", &Q4H),
    both("q3h", "q3 of Hadamard-rotated heads", &Q3H),
    both("q2h", "q2 of Hadamard-rotated heads", &Rotated(&TWO)),
    centered("q4hc", "q4h; keys before RoPE, less each channel's mean of the first 128 tokens", &Q4HC, &Q4H),
    centered("q3hc", "q3h; keys before RoPE, less each channel's mean of the first 128 tokens", &Q3HC, &Q3H),
    kivi(
        "kivi4",
        "keys by channel over 32 tokens, values by token, 4 bits; the last 128 tokens in f16 (KIVI)",
        [&KIVI4.0, &KIVI4.1],
    ),
    kivi("kivi2", "the same in 2 bits (KIVI)", [&KIVI2.0, &KIVI2.1]),
    kvquant(
        "kvquant4",
        "keys before RoPE by channel, ranges from the first 128 tokens; 1 % outliers, first token in f16; 4 bits, equal steps (KVQuant)",
        [&KVQUANT4.0, &KVQUANT4.1],
    ),
    kvquant("kvquant3", "the same in 3 bits (KVQuant)", [&KVQUANT3.0, &KVQUANT3.1]),
    both("turbo4", "randomly rotated, 4-bit Lloyd-Max codebook, norm corrected (TurboQuant, MSE)", &Turbo { bits: 4 }),
    both("turbo3", "the same in 3 bits (TurboQuant, MSE)", &Turbo { bits: 3 }),
    both("turbo2", "the same in 2 bits (TurboQuant, MSE)", &Turbo { bits: 2 }),
];

/// All values of a head.
const WHOLE: usize = usize::MAX;

static THREE: Uniform = Uniform { bits: 3, group: 32, fit: Fit::Signed };
static TWO: Uniform = Uniform { bits: 2, group: 32, fit: Fit::Signed };
static Q4H: Rotated = Rotated(&Blocks(&Q4_0));
static Q3H: Rotated = Rotated(&THREE);
static Q4HC: Centered = Centered(&Q4H);
static Q3HC: Centered = Centered(&Q3H);
static KIVI4: (Channels, Uniform) = per_channel(4);
static KIVI2: (Channels, Uniform) = per_channel(2);
static KVQUANT4: (Calibrated, Outliers) = (Calibrated { bits: 4 }, Outliers { bits: 4 });
static KVQUANT3: (Calibrated, Outliers) = (Calibrated { bits: 3 }, Outliers { bits: 3 });

const fn per_channel(bits: usize) -> (Channels, Uniform) {
    let by_token = Uniform { bits, group: 32, fit: Fit::Minimum };
    (Channels { bits, tokens: 32 }, by_token)
}

const fn stored(vectors: &'static dyn Vectors) -> Stored {
    Stored { vectors, before_rope: false, sink: 0, window: 0 }
}

const fn both(name: &'static str, about: &'static str, vectors: &'static dyn Vectors) -> KvFormat {
    KvFormat { name, about, key: stored(vectors), value: stored(vectors) }
}

const fn kivi(name: &'static str, about: &'static str, [key, value]: [&'static dyn Vectors; 2]) -> KvFormat {
    let (key, value) = (stored(key), stored(value));
    KvFormat { name, about, key: Stored { window: 128, ..key }, value: Stored { window: 128, ..value } }
}

const fn centered(
    name: &'static str,
    about: &'static str,
    key: &'static dyn Vectors,
    value: &'static dyn Vectors,
) -> KvFormat {
    KvFormat { name, about, key: Stored { before_rope: true, ..stored(key) }, value: stored(value) }
}

const fn kvquant(name: &'static str, about: &'static str, [key, value]: [&'static dyn Vectors; 2]) -> KvFormat {
    let (key, value) = (stored(key), stored(value));
    let key = Stored { before_rope: true, sink: 1, ..key };
    KvFormat { name, about, key, value: Stored { sink: 1, ..value } }
}

#[cfg(test)]
mod tests;

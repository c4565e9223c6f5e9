//! What runtimes know about a family and no file says. Sources: transformers `modeling_*.py`; llama.cpp `src/models/*.cpp`.

use super::ModelSpec;

/// The nonlinearity of a gated feed-forward layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    Silu,
    /// GELU by its tanh formula.
    Gelu,
    /// gpt-oss's: both inputs within [`Activation::LIMIT`], a steeper logistic function, and one is added to `up`.
    ClampedSilu,
}

impl Activation {
    /// What config.json calls it; of Gemma's `gelu` transformers says that its tanh formula is meant.
    pub fn names(self) -> &'static [&'static str] {
        match self {
            Activation::Silu | Activation::ClampedSilu => &["silu", "swish"],
            Activation::Gelu => &["gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu"],
        }
    }

    /// Of [`Activation::ClampedSilu`]: gates are at most this, `up` neither more nor less than plus or minus this.
    pub const LIMIT: f32 = 7.0;
    /// Its logistic function is that of so many times the gate.
    pub const SLOPE: f32 = 1.702;
}

#[derive(Clone, Copy)]
pub struct Runtime {
    pub activation: Activation,
    /// Embeddings are multiplied by the square root of the hidden size.
    pub scaled_embeddings: bool,
    /// The weights of a token's experts are made to add up to 1.
    pub normalized_experts: bool,
    /// Layer `l` has no rotary embedding when `(l + 1) % period == 0`.
    pub rope_skip_period: Option<u32>,
    /// Rotary base of layers with a sliding window, where it is another and a file may not say so.
    pub window_rope_base: Option<f32>,
    /// Scores are divided by the square root of this.
    pub query_scalar: fn(&ModelSpec) -> f64,
}

impl Runtime {
    pub const LLAMA: Runtime = Runtime {
        activation: Activation::Silu,
        scaled_embeddings: false,
        normalized_experts: true,
        rope_skip_period: None,
        window_rope_base: None,
        query_scalar: |spec| spec.head_dim() as f64,
    };

    pub const GEMMA: Runtime = Runtime { activation: Activation::Gelu, scaled_embeddings: true, ..Runtime::LLAMA };
}

impl super::Arch {
    /// The rotary base of layers with a sliding window, where it differs. GGUF files of gemma3 do not always state theirs:
    /// llama.cpp assumes the base of every published model.
    pub fn window_rope_base(&self, spec: &ModelSpec) -> Option<f32> {
        spec.rope_base_swa.or(self.runtime.window_rope_base)
    }
}

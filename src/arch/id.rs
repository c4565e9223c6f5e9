//! What a weight is, read off its canonical (GGUF) name.

/// Canonical identity of a tensor: GGUF's naming, which all its architectures share.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WeightId {
    pub role: Role,
    pub layer: Option<u32>,
}

macro_rules! roles {
    ($($variant:ident $stem:literal),* $(,)?) => {
        /// The job of a weight inside its layer. `Other` keeps its stem: files of unknown families can still be converted.
        #[derive(Clone, Debug, PartialEq, Eq, Hash)]
        pub enum Role { $($variant,)* Other(String) }

        impl Role {
            /// The name without `blk.N.` and `.weight`.
            pub fn stem(&self) -> &str {
                match self { $(Role::$variant => $stem,)* Role::Other(s) => s }
            }
            pub fn from_stem(stem: &str) -> Role {
                match stem { $($stem => Role::$variant,)* other => Role::Other(other.to_owned()) }
            }
        }
    };
}

roles! {
    TokenEmbd "token_embd", OutputNorm "output_norm", Output "output", RopeFreqs "rope_freqs",
    AttnNorm "attn_norm", AttnQ "attn_q", AttnK "attn_k", AttnV "attn_v", AttnQkv "attn_qkv", AttnOutput "attn_output",
    AttnSinks "attn_sinks",
    AttnQNorm "attn_q_norm", AttnKNorm "attn_k_norm", PostAttentionNorm "post_attention_norm",
    FfnNorm "ffn_norm", FfnGate "ffn_gate", FfnUp "ffn_up", FfnDown "ffn_down", PostFfwNorm "post_ffw_norm",
    FfnGateInp "ffn_gate_inp", FfnGateExps "ffn_gate_exps", FfnUpExps "ffn_up_exps", FfnDownExps "ffn_down_exps",
    FfnGateInpShexp "ffn_gate_inp_shexp", FfnGateShexp "ffn_gate_shexp", FfnUpShexp "ffn_up_shexp",
    FfnDownShexp "ffn_down_shexp",
}

/// Weights that read one activation: a site. The first names it; quantities measured there hold for all of them.
pub static SITES: &[&[Role]] = &[
    &[Role::AttnQ, Role::AttnK, Role::AttnV, Role::AttnQkv],
    &[Role::AttnOutput],
    // A shared expert reads what a dense layer would.
    &[Role::FfnGate, Role::FfnUp, Role::FfnGateShexp, Role::FfnUpShexp, Role::FfnGateInpShexp],
    &[Role::FfnDown, Role::FfnDownShexp],
    &[Role::FfnGateInp],
    &[Role::FfnGateExps, Role::FfnUpExps],
    &[Role::FfnDownExps],
    &[Role::Output],
];

impl Role {
    /// The first of the weights that read the same activation; `None` for what is no matrix of a layer or the output.
    pub fn site(&self) -> Option<Role> {
        SITES.iter().find(|site| site.contains(self)).map(|site| site[0].clone())
    }
}

impl WeightId {
    /// `blk.3.attn_q.weight` -> AttnQ of layer 3. The suffix (`.weight`, `.bias`, `.scale`) is not part of the identity.
    pub fn parse(name: &str) -> WeightId {
        let base = name.rsplit_once('.').map_or(name, |(base, _suffix)| base);
        let layered = base.strip_prefix("blk.").and_then(|rest| {
            let (layer, stem) = rest.split_once('.')?;
            Some((layer.parse().ok()?, stem))
        });
        match layered {
            Some((layer, stem)) => WeightId { role: Role::from_stem(stem), layer: Some(layer) },
            None => WeightId { role: Role::from_stem(base), layer: None },
        }
    }
}

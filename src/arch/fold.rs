//! Where a scale of columns can hide: the channel that a column reads was written by a norm or by the rows of another weight,
//! which take the inverse. The function of the model stays as it is.

use super::{ModelSpec, Role};

/// A weight that writes channels, and all that read them.
#[derive(Debug)]
pub struct Fold {
    /// A norm's gain, or the rows (and the bias) of a matrix.
    pub writer: Role,
    pub readers: &'static [Role],
    /// Whether the model lets the scale pass between them.
    pub holds: fn(&ModelSpec) -> bool,
}

pub static FOLDS: &[Fold] = &[
    Fold { writer: Role::AttnNorm, readers: &[Role::AttnQ, Role::AttnK, Role::AttnV, Role::AttnQkv], holds: |_| true },
    Fold {
        writer: Role::FfnNorm,
        readers: &[
            Role::FfnGate,
            Role::FfnUp,
            Role::FfnGateExps,
            Role::FfnUpExps,
            Role::FfnGateInp,
            Role::FfnGateShexp,
            Role::FfnUpShexp,
            Role::FfnGateInpShexp,
        ],
        holds: |_| true,
    },
    // A value head that several query heads share cannot be scaled for each of them.
    Fold { writer: Role::AttnV, readers: &[Role::AttnOutput], holds: |spec| spec.kv_heads() == spec.heads as usize },
    // Activations stand in front of `up`'s product, never behind it.
    Fold { writer: Role::FfnUp, readers: &[Role::FfnDown], holds: |_| true },
];

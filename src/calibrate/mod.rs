//! What the inputs of a model's weights look like on real text.

pub mod fingerprint;
pub mod imatrix;
pub mod layout;
pub mod method;
pub mod stats;

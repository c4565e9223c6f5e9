//! What the inputs of a model's weights look like on real text.

pub mod imatrix;
pub mod method;

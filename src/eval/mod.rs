//! What a file lost: texts, windows over them, and the numbers.

pub mod protocol;
pub mod stats;
pub mod text;

//! What did a file lose? Perplexity and divergence of artifacts against their reference.

pub mod score;

//! The CPU: the oracle that other devices are measured against. Everything is f32.
//!
//! A result never depends on what else is computed beside it: every sum runs in an order fixed by the shapes of its own
//! row, so a token's numbers are the same bits in any batch, with any number of threads, on any instruction set with a fused
//! multiply-add (without one, Rust computes it in software: slow and equal).

mod attention;
mod cache;
mod columns;
mod elementwise;
mod encoded;
mod factor;
mod gram;
mod kernel;
mod product;
mod scores;
mod simd;
mod span;
mod transpose;

pub use attention::Attention;
pub use cache::KvCache;
pub use columns::{Feedback, Scales, round_columns};
pub use elementwise::{add, dot, gate, is_finite, rms_norm, softcap, softmax};
pub use factor::cholesky;
pub use gram::{Gram, GramScratch, moments, weighted_squares};
pub use product::{Panels, linear};
pub use scores::{Scores, TokenScore};

/// Runs `work` with its loops spread over `threads` threads.
pub fn pool(threads: usize) -> crate::error::Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    pool.map_err(|e| crate::error::Error::limits(format!("cannot start {threads} threads: {e}")))
}

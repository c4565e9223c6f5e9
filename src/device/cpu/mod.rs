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
mod quadratic;
mod scores;
mod simd;
mod span;
mod transpose;

use crate::arch::Activation;
use crate::codec::facts::Number;

pub use attention::Attention;
pub use cache::KvCache;
pub use columns::{BLOCK as SOLVE_BLOCK, Feedback, LANES as SOLVE_ROWS, Scales, round_columns};
pub use elementwise::{add, dot, gate, is_finite, rms_norm, softcap, softmax};
pub use factor::cholesky;
pub use gram::{Gram, GramScratch, ROWS as GRAM_ROWS, moments, weighted_squares};
pub use product::{Panels, linear};
pub use quadratic::{padded, quadratic};
pub use scores::{Running, Scores, TokenScore};

/// The instructions of this CPU that something here is written for.
pub fn features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! those {
            ($($name:tt)*) => { [$(($name, is_x86_feature_detected!($name))),*] };
        }
        let known = those!("avx2" "f16c" "fma" "avx512f" "avx512bw" "avx512dq" "avx512vl");
        known.into_iter().filter(|(_, has)| *has).map(|(name, _)| name).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// The numbers that its arithmetic is made of, by the names that `kernels/` has for them.
pub fn numbers() -> Vec<(&'static str, Number)> {
    use Number::{Float, Floats, Int};
    vec![
        ("EXP_LOG2_E", Float(std::f32::consts::LOG2_E)),
        ("EXP_ROUND", Float(simd::ROUND)),
        ("EXP_LOWEST", Float(simd::LOWEST)),
        ("EXP_HIGHEST", Float(simd::HIGHEST)),
        ("EXP_LN_2", Floats(simd::LN_2.to_vec())),
        ("EXP_TERMS", Int(simd::EXP.len() as i32)),
        ("EXP_POLYNOMIAL", Floats(simd::EXP.to_vec())),
        ("GELU_TWICE_SQRT_2_OVER_PI", Float(elementwise::TWICE_SQRT_2_OVER_PI)),
        ("GELU_CUBE", Float(elementwise::CUBE)),
        ("CLAMPED_SILU_LIMIT", Float(Activation::LIMIT)),
        ("CLAMPED_SILU_SLOPE", Float(Activation::SLOPE)),
        ("PRODUCT_DEPTH", Int(kernel::DEPTH as i32)),
        ("SOLVE_BLOCK", Int(columns::BLOCK as i32)),
    ]
}

/// Runs `work` with its loops spread over `threads` threads.
pub fn pool(threads: usize) -> crate::error::Result<rayon::ThreadPool> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.max(1)).build();
    pool.map_err(|e| crate::error::Error::limits(format!("cannot start {threads} threads: {e}")))
}

//! Rotations that spread a vector's outliers over all of its values. Sources: QuaRot (2404.00456), llama.cpp.
//!
//! Runtimes rotate queries and keys alike, values, and the output back. Turning what was stored back when it is read is the
//! same, for rotations leave products as they are, and asks nothing of attention.

use super::Vectors;
use crate::error::Result;

/// Multiplies every vector of `x`, `[tokens][dim]`, with the normalised Hadamard matrix; twice is nothing. Where `dim` is no
/// power of two, blocks of the largest that divides it are turned.
pub fn hadamard(x: &mut [f32], dim: usize) {
    let side = 1 << dim.trailing_zeros();
    let scale = 1.0 / (side as f32).sqrt();
    for block in x.chunks_exact_mut(side) {
        let mut half = 1;
        while half < side {
            for pair in block.chunks_exact_mut(2 * half) {
                let (low, high) = pair.split_at_mut(half);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            half *= 2;
        }
        block.iter_mut().for_each(|x| *x *= scale);
    }
}

/// Another format, of Hadamard-rotated vectors.
pub struct Rotated(pub &'static dyn Vectors);

impl Vectors for Rotated {
    fn check(&self, head_dim: usize) -> Result<()> {
        self.0.check(head_dim)
    }

    fn tokens(&self) -> usize {
        self.0.tokens()
    }

    fn bytes(&self, head_dim: usize) -> usize {
        self.0.bytes(head_dim)
    }

    fn encode(&self, x: &[f32], head_dim: usize, shared: &[u8], out: &mut [u8]) {
        let mut x = x.to_vec();
        hadamard(&mut x, head_dim);
        self.0.encode(&x, head_dim, shared, out);
    }

    fn decode(&self, bytes: &[u8], head_dim: usize, shared: &[u8], out: &mut [f32]) {
        self.0.decode(bytes, head_dim, shared, out);
        hadamard(out, head_dim);
    }
}

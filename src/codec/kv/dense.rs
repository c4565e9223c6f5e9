//! Formats of weights, applied to the rows of a cache.

use super::Vectors;
use crate::codec::block::Block;
use crate::codec::{Codec, fp8};
use crate::error::Result;
use crate::tensor::Dims;

/// Every vector is a row of blocks.
pub struct Blocks(pub &'static Block);

impl Vectors for Blocks {
    fn check(&self, head_dim: usize) -> Result<()> {
        self.0.layout(Dims::new(1, head_dim)).map(|_| ())
    }

    fn bytes(&self, head_dim: usize) -> usize {
        self.0.row_bytes(head_dim)
    }

    fn encode(&self, x: &[f32], head_dim: usize, _: &[u8], out: &mut [u8]) {
        if let Some(encode) = self.0.encode {
            (encode.run)(x, head_dim, None, out);
        }
    }

    fn decode(&self, bytes: &[u8], _: usize, _: &[u8], out: &mut [f32]) {
        (self.0.decode)(bytes, out);
    }
}

/// E4M3 as it is.
pub struct Eight;

impl Vectors for Eight {
    fn scaled(&self) -> bool {
        true
    }

    fn bytes(&self, head_dim: usize) -> usize {
        head_dim
    }

    fn encode(&self, x: &[f32], _: usize, _: &[u8], out: &mut [u8]) {
        out.iter_mut().zip(x).for_each(|(o, x)| *o = fp8::nearest(*x).0);
    }

    fn decode(&self, bytes: &[u8], _: usize, _: &[u8], out: &mut [f32]) {
        (fp8::F8_E4M3.decode)(bytes, out);
    }
}

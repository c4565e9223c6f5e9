//! Shapes and borrowed bytes: what a weight is before any format gives it meaning.

use std::borrow::Cow;

/// A matrix as every format stores it: `rows` output features, `cols` input features, columns contiguous.
/// Vectors are one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Dims {
    pub rows: usize,
    pub cols: usize,
}

impl Dims {
    pub fn new(rows: usize, cols: usize) -> Self {
        Dims { rows, cols }
    }
    /// Number of weights. Dims come from parsed headers, whose products are checked there.
    pub fn len(self) -> usize {
        self.rows * self.cols
    }
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }
}

/// A shape as GGUF has it: a matrix of one row is a vector there.
pub fn without_leading_ones(shape: &[usize]) -> &[usize] {
    let ones = shape.iter().take_while(|d| **d == 1).count();
    &shape[ones.min(shape.len().saturating_sub(1))..]
}

/// One shape, in a container that keeps leading ones or in one that does not.
pub fn same_shape(a: &[usize], b: &[usize]) -> bool {
    without_leading_ones(a) == without_leading_ones(b)
}

/// One stored piece of a weight: its codes, its scales ... in the order of [`crate::codec::Codec::layout`].
pub type Bytes<'a> = Cow<'a, [u8]>;

/// The stored bytes of one weight. Normally borrows the memory map.
#[derive(Clone, Debug)]
pub struct Packed<'a> {
    pub dims: Dims,
    pub parts: Vec<Bytes<'a>>,
}

impl<'a> Packed<'a> {
    pub fn one(dims: Dims, bytes: impl Into<Bytes<'a>>) -> Self {
        Packed { dims, parts: vec![bytes.into()] }
    }
}

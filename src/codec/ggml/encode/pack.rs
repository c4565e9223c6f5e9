//! From codes in lanes to blocks in memory.

use super::lanes::{Ints, Lanes};

/// The blocks being written, one per lane in use.
pub struct Out<'a> {
    bytes: &'a mut [u8],
    block: usize,
}

impl<'a> Out<'a> {
    /// `bytes` are whole blocks of `block` bytes.
    pub fn new(bytes: &'a mut [u8], block: usize) -> Self {
        Out { bytes, block }
    }

    /// Writes the low `N` bytes of each lane, little endian, at this offset of its block.
    #[inline(always)]
    fn put<const N: usize>(&mut self, at: usize, value: impl Ints) {
        for (block, value) in self.bytes.chunks_exact_mut(self.block).zip(value.to_array()) {
            block[at..at + N].copy_from_slice(&value.to_le_bytes()[..N]);
        }
    }

    #[inline(always)]
    pub fn byte(&mut self, at: usize, value: impl Ints) {
        self.put::<1>(at, value);
    }

    #[inline(always)]
    pub fn half(&mut self, at: usize, value: impl Ints) {
        self.put::<2>(at, value);
    }

    #[inline(always)]
    pub fn word(&mut self, at: usize, value: impl Ints) {
        self.put::<4>(at, value);
    }
}

/// Four bytes, the first lowest; higher bits are cut.
#[inline(always)]
pub fn bytes<I: Ints>(b: [I; 4]) -> I {
    let byte = I::splat(0xff);
    (b[0] & byte) | (b[1] & byte) << 8 | (b[2] & byte) << 16 | b[3] << 24
}

/// Sixteen bytes, four to a word.
#[inline(always)]
pub fn four_by_four<I: Ints>(b: [I; 16]) -> [I; 4] {
    let mut words = [b[0]; 4];
    for (word, four) in words.iter_mut().zip(b.as_chunks::<4>().0) {
        *word = bytes(*four);
    }
    words
}

/// Codes as bytes, four to a word. Integral floats of at most 255.
#[inline(always)]
pub fn words<L: Lanes>(codes: &[L], words: &mut [L::Int]) {
    for (four, word) in codes.as_chunks::<4>().0.iter().zip(words) {
        *word = four[0].truncate() | four[1].truncate() << 8 | four[2].truncate() << 16 | four[3].truncate() << 24;
    }
}

/// Bit `n` of each of the four bytes, in place as their lowest bit.
#[inline(always)]
pub fn plane<I: Ints>(word: I, n: u32) -> I {
    word >> n & I::splat(0x0101_0101)
}

/// The lowest bits of the four bytes, next to each other.
#[inline(always)]
pub fn squeeze<I: Ints>(plane: I) -> I {
    (plane | plane >> 7 | plane >> 14 | plane >> 21) & I::splat(0xf)
}

/// Low nibbles of the bytes of `low` and `high`, as nibbles.
#[inline(always)]
pub fn nibbles<I: Ints>(low: I, high: I) -> I {
    let nibble = I::splat(0x0f0f_0f0f);
    low & nibble | (high & nibble) << 4
}

/// Four words of two-bit codes, the first lowest; higher bits are cut.
#[inline(always)]
pub fn pairs<I: Ints>(w: [I; 4]) -> I {
    let pair = I::splat(0x0303_0303);
    w[0] & pair | (w[1] & pair) << 2 | (w[2] & pair) << 4 | (w[3] & pair) << 6
}

//! Integers of 1 to 8 bits in 32-bit words: one stream, least significant bit first, values may straddle words.

use crate::tensor::Bytes;

/// Values that fill whole words whatever their width: as many words as a value has bits.
pub const UNIT: usize = 32;

/// The words of one unit; those past the width are zero.
pub type Words = [u32; 8];

/// Words that `values` of them take.
pub const fn words(values: usize, bits: usize) -> usize {
    // In two steps, so that no product overflows.
    values / UNIT * bits + (values % UNIT * bits).div_ceil(32)
}

/// Values that fill whole words, and no fewer do: 8 of 4 bits, 32 of 3.
pub const fn per_whole_words(bits: usize) -> usize {
    UNIT >> bits.trailing_zeros()
}

pub fn unpack(bits: usize, words: &Words) -> [u8; UNIT] {
    each_width(bits, Unpack(words))
}

/// The upper bits of each value are cut off.
pub fn pack(bits: usize, values: &[u8; UNIT]) -> Words {
    each_width(bits, Pack(values))
}

/// Value `n` of the stream whose word `i` is `word(i)`.
pub fn get(bits: usize, n: usize, word: impl Fn(usize) -> u32) -> u8 {
    let (first, shift) = (n / UNIT * bits + n % UNIT * bits / 32, n % UNIT * bits % 32);
    let high = if shift + bits > 32 { word(first + 1) } else { 0 };
    ((u64::from(high) << 32 | u64::from(word(first))) >> shift) as u8 & mask(bits)
}

const fn mask(bits: usize) -> u8 {
    (0xff_u16 >> (8 - bits)) as u8
}

/// Work that is compiled for each width.
trait Width {
    type Out;
    fn run<const BITS: usize>(self) -> Self::Out;
}

fn each_width<W: Width>(bits: usize, work: W) -> W::Out {
    match bits {
        1 => work.run::<1>(),
        2 => work.run::<2>(),
        3 => work.run::<3>(),
        4 => work.run::<4>(),
        5 => work.run::<5>(),
        6 => work.run::<6>(),
        7 => work.run::<7>(),
        _ => work.run::<8>(),
    }
}

struct Unpack<'a>(&'a Words);

impl Width for Unpack<'_> {
    type Out = [u8; UNIT];

    #[inline(always)]
    fn run<const BITS: usize>(self) -> [u8; UNIT] {
        let mut out = [0; UNIT];
        for (i, out) in out.iter_mut().enumerate() {
            let (word, shift) = (i * BITS / 32, i * BITS % 32);
            let next = self.0[(word + 1) % 8];
            *out = ((u64::from(next) << 32 | u64::from(self.0[word])) >> shift) as u8 & mask(BITS);
        }
        out
    }
}

struct Pack<'a>(&'a [u8; UNIT]);

impl Width for Pack<'_> {
    type Out = Words;

    #[inline(always)]
    fn run<const BITS: usize>(self) -> Words {
        let mut out = [0; 8];
        for (i, value) in self.0.iter().enumerate() {
            let (word, shift) = (i * BITS / 32, i * BITS % 32);
            let wide = u64::from(value & mask(BITS)) << shift;
            out[word] |= wide as u32;
            out[(word + 1) % 8] |= (wide >> 32) as u32;
        }
        out
    }
}

/// Codes of rows, each a stream of words.
pub(super) fn pack_rows(codes: &[u8], cols: usize, bits: usize) -> Vec<u8> {
    let across = words(cols, bits);
    let mut out = vec![0; codes.len() / cols.max(1) * across * 4];
    for (row, codes) in codes.chunks_exact(cols.max(1)).enumerate() {
        for (unit, from) in codes.chunks(UNIT).enumerate() {
            let mut codes = [0; UNIT];
            codes[..from.len()].copy_from_slice(from);
            for (i, w) in pack(bits, &codes)[..words(from.len(), bits)].iter().enumerate() {
                put(&mut out, row * across + unit * bits + i, *w);
            }
        }
    }
    out
}

/// Takes such a row apart.
pub(super) fn unpack_row(part: &Bytes<'_>, row: usize, bits: usize, out: &mut [u8]) {
    let across = words(out.len(), bits);
    for (unit, out) in out.chunks_mut(UNIT).enumerate() {
        let mut of_unit = [0; 8];
        for (i, w) in of_unit[..words(out.len(), bits)].iter_mut().enumerate() {
            *w = word(part, row * across + unit * bits + i);
        }
        out.copy_from_slice(&unpack(bits, &of_unit)[..out.len()]);
    }
}

/// Word `n` of a part.
#[inline(always)]
pub(super) fn word(part: &Bytes<'_>, n: usize) -> u32 {
    let bytes = &part[n * 4..][..4];
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

/// Sets word `n` of a part to be.
#[inline(always)]
pub(super) fn put(part: &mut [u8], n: usize, word: u32) {
    part[n * 4..][..4].copy_from_slice(&word.to_le_bytes());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_words() {
        let mut values = [0; UNIT];
        values.iter_mut().enumerate().for_each(|(i, v)| *v = i as u8 % 8);
        // What GPTQ's packers write.
        assert_eq!(pack(3, &values)[..3], [0x88fa_c688, 0xc688_fac6, 0xfac6_88fa]);
        assert_eq!(pack(4, &values)[..4], [0x7654_3210; 4]);
        assert_eq!(pack(8, &values)[0], 0x0302_0100);
    }

    #[test]
    fn every_width_comes_back() {
        for bits in 1..=8 {
            let mut values = [0; UNIT];
            values.iter_mut().enumerate().for_each(|(i, v)| *v = (i * 37 + 11) as u8 & mask(bits));
            let packed = pack(bits, &values);
            assert!(packed[bits..].iter().all(|w| *w == 0));
            assert_eq!(unpack(bits, &packed), values);
            for (n, value) in values.iter().enumerate() {
                assert_eq!(get(bits, n, |i| packed[i]), *value, "{bits} bits, value {n}");
            }
            assert_eq!((words(UNIT, bits), words(1, bits), words(0, bits)), (bits, 1, 0));
            assert_eq!(per_whole_words(bits) * bits % 32, 0);
        }
        assert_eq!([2, 3, 4, 8].map(per_whole_words), [16, 32, 8, 4]);
    }
}

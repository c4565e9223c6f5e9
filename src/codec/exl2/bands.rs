//! The groups of one weight, and the order of its columns, as its parts tell them.

use std::ops::Range;

use crate::error::{Error, Result};

/// Columns that share a scale in each row.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    pub bits: usize,
    /// Of the sorted columns.
    pub columns: Range<usize>,
    /// Its first row of words.
    pub word: usize,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bands {
    pub groups: Vec<Group>,
}

/// Widths, as the kernels take them one after the other.
pub const WIDTHS: [usize; 6] = [8, 6, 5, 4, 3, 2];

impl Bands {
    /// Reads `q_groups` of a weight with `words` rows of words and `cols` columns.
    ///
    /// Errors: widths that there are not, or that rise; groups that are not whole words, or not all the columns.
    pub fn parse(q_groups: &[u8], words: usize, cols: usize) -> Result<Bands> {
        let stored: Vec<(usize, usize)> = q_groups
            .as_chunks::<4>()
            .0
            .iter()
            .map(|&[a, b, c, d]| (u16::from_le_bytes([a, b]).into(), u16::from_le_bytes([c, d]).into()))
            .collect();
        let wrong = |n: usize, what: String| Err(Error::input(format!("group {n}: {what}")));
        let (mut groups, mut column) = (Vec::<Group>::with_capacity(stored.len()), 0);
        for (n, &(bits, word)) in stored.iter().enumerate() {
            let end = stored.get(n + 1).map_or(words, |(_, next)| *next);
            if !WIDTHS.contains(&bits) {
                return wrong(n, format!("a width of {bits} bits"));
            }
            if groups.last().is_some_and(|last| last.bits < bits) {
                return wrong(n, format!("{bits} bits after {}: widths must fall", groups[n - 1].bits));
            }
            if (n == 0 && word != 0) || end <= word || end > words {
                return wrong(n, format!("rows {word} to {end} of {words}"));
            }
            let bits_here = (end - word) * 32;
            // What kernels take at a time.
            let run = if bits == 2 { 16 } else { 32 };
            if !bits_here.is_multiple_of(bits * run) {
                return wrong(n, format!("{} words of {bits}-bit codes are no runs of {run} columns", end - word));
            }
            let columns = column..column + bits_here / bits;
            column = columns.end;
            groups.push(Group { bits, columns, word });
        }
        if column != cols {
            return Err(Error::input(format!("its groups have {column} columns, the weight has {cols}")));
        }
        Ok(Bands { groups })
    }

    /// `q_groups`
    pub fn bytes(&self) -> Vec<u8> {
        let pair = |g: &Group| [g.bits as i16, g.word as i16];
        self.groups.iter().flat_map(pair).flat_map(i16::to_le_bytes).collect()
    }
}

/// The column stored at each place, from `q_invperm`.
///
/// Errors: places that are not each taken once.
pub fn order(q_invperm: &[u8]) -> Result<Vec<u32>> {
    let places = q_invperm.as_chunks::<4>().0;
    let mut order = vec![u32::MAX; places.len()];
    for (column, bytes) in places.iter().enumerate() {
        let place = i32::from_le_bytes(*bytes);
        match usize::try_from(place).ok().and_then(|p| order.get_mut(p)) {
            Some(slot) if *slot == u32::MAX => *slot = column as u32,
            Some(_) => return Err(Error::input(format!("columns {place} stands twice in it"))),
            None => return Err(Error::input(format!("column {place} of {}", places.len()))),
        }
    }
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(pairs: &[(u16, u16)]) -> Vec<u8> {
        pairs.iter().flat_map(|(a, b)| [a.to_le_bytes(), b.to_le_bytes()].concat()).collect()
    }

    #[test]
    fn groups_are_read_and_written() {
        // 32 columns of 8 bits, 64 of 3, 16 and 16 of 2.
        let stored = bytes(&[(8, 0), (3, 8), (2, 14), (2, 15)]);
        let bands = Bands::parse(&stored, 16, 128).unwrap();
        let columns: Vec<_> = bands.groups.iter().map(|g| g.columns.clone()).collect();
        assert_eq!(columns, [0..32, 32..96, 96..112, 112..128]);
        assert_eq!(bands.bytes(), stored);
    }

    #[test]
    fn groups_that_lie() {
        for (pairs, words, message) in [
            (&[(3, 0), (4, 3)][..], 7, "widths must fall"),
            (&[(7, 0)], 7, "a width of 7 bits"),
            (&[(0, 0)], 7, "a width of 0 bits"),
            (&[(4, 1)], 4, "rows 1 to 4"),
            (&[(4, 0), (4, 0)], 8, "rows 0 to 0"),
            (&[(4, 0), (4, 60)], 8, "rows 0 to 60"),
            (&[(4, 0), (4, u16::MAX)], 8, "rows 0 to 65535"),
            (&[(4, 0), (4, 1)], 4, "1 words of 4-bit codes are no runs of 32"),
            (&[(3, 0)], 4, "4 words of 3-bit codes are no runs of 32"),
            (&[(4, 0)], 8, "64 columns, the weight has 32"),
            (&[], 8, "0 columns"),
        ] {
            let error = Bands::parse(&bytes(pairs), words, 32).unwrap_err();
            assert!(error.message().contains(message), "{error}");
        }
    }

    #[test]
    fn orders_are_permutations() {
        let stored = |places: &[i32]| places.iter().flat_map(|p| p.to_le_bytes()).collect::<Vec<u8>>();
        assert_eq!(order(&stored(&[2, 0, 1])).unwrap(), [1, 2, 0]);
        for (places, message) in [(&[0, 0][..], "twice"), (&[0, 2], "column 2 of 2"), (&[0, -1], "column -1")] {
            assert!(order(&stored(places)).unwrap_err().message().contains(message));
        }
    }
}

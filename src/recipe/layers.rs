//! Which of a model's layers a rule means: `more_bits`, `7`, `..2`, `..1/8`, `1/8..7/8`.

use crate::error::{Error, Result};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layers {
    /// The first and the last eighth, and every third between: where llama.cpp's `_M` mixes spend.
    MoreBits,
    Range(Bound, Bound),
}

/// An end of a range: a number, or a share of all layers, rounded down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bound {
    At(usize),
    Share(u32, u32),
}

impl Bound {
    pub const START: Bound = Bound::At(0);
    pub const END: Bound = Bound::Share(1, 1);

    fn of(self, n: usize) -> usize {
        match self {
            Bound::At(i) => i,
            Bound::Share(p, q) => (n as u128 * u128::from(p) / u128::from(q)) as usize,
        }
    }

    fn parse(text: &str) -> Option<Bound> {
        match text.split_once('/') {
            None => text.parse().ok().map(Bound::At),
            Some((p, q)) => {
                let (p, q) = (p.trim().parse().ok()?, q.trim().parse().ok()?);
                (p <= q && q > 0).then_some(Bound::Share(p, q))
            }
        }
    }
}

impl Layers {
    /// Whether position `i` of `n` is meant.
    pub fn contains(self, i: usize, n: usize) -> bool {
        match self {
            Layers::MoreBits => i < n / 8 || i >= Bound::Share(7, 8).of(n) || (i - n / 8) % 3 == 2,
            Layers::Range(from, to) => (from.of(n)..to.of(n)).contains(&i),
        }
    }

    pub fn parse(text: &str) -> Result<Layers> {
        let open = |text: &str, default| match text.trim() {
            "" => Some(default),
            bound => Bound::parse(bound),
        };
        let layers = match text.trim() {
            "more_bits" => Some(Layers::MoreBits),
            text => match text.split_once("..") {
                // One that ends before it begins means nothing.
                Some((from, to)) => open(from, Bound::START)
                    .zip(open(to, Bound::END))
                    .filter(|ends| !matches!(ends, (Bound::At(from), Bound::At(to)) if from >= to))
                    .map(|(from, to)| Layers::Range(from, to)),
                None => text
                    .parse::<usize>()
                    .ok()
                    .and_then(|i| Some(Layers::Range(Bound::At(i), Bound::At(i.checked_add(1)?)))),
            },
        };
        layers.ok_or_else(|| {
            Error::request(format!("cannot read the layers {text:?}")).help(
                "write more_bits, one layer (7), or a range of layers or of shares of all: ..2, 3..7, ..1/8, 7/8..",
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(text: &str, n: usize) -> Vec<usize> {
        let layers = Layers::parse(text).unwrap();
        (0..n).filter(|&i| layers.contains(i, n)).collect()
    }

    #[test]
    fn ranges() {
        assert_eq!(chosen("..2", 5), [0, 1]);
        assert_eq!(chosen("3", 5), [3]);
        assert_eq!(chosen("..1/8", 31), [0, 1, 2]);
        assert_eq!(chosen("7/8..", 17), [14, 15, 16]);
        assert_eq!(chosen("1/4 .. 3/4", 8), [2, 3, 4, 5]);
        assert_eq!(chosen("..1/16", 15), Vec::<usize>::new());
    }

    #[test]
    fn more_bits_is_both_ends_and_every_third() {
        assert_eq!(chosen("more_bits", 16), [0, 1, 4, 7, 10, 13, 14, 15]);
        assert_eq!(chosen("more_bits", 1), [0]);
        assert_eq!(chosen("more_bits", 0), Vec::<usize>::new());
    }

    #[test]
    fn nonsense_is_refused() {
        for text in ["", "most", "1/0..", "9/8..", "-1", "1..2..3", "1/8", "18446744073709551615"] {
            assert!(Layers::parse(text).is_err(), "{text:?}");
        }
    }
}

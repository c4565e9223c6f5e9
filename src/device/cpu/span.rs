//! Keys and values of a span of positions, laid out for the kernel.

use super::kernel::WIDTH;
use crate::error::{Error, Result};

/// Panels of every head. Keys lie transposed, so that both are panels for the kernel.
#[derive(Clone, Debug)]
pub struct Span {
    pub heads: usize,
    pub head_dim: usize,
    /// The first position, and how many there is room for: multiples of [`WIDTH`].
    pub origin: usize,
    pub room: usize,
    /// `[head][head_dim][room]`, and `[head][room][head_dim rounded up to WIDTH]`.
    panels: [Vec<f32>; 2],
}

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Keys,
    Values,
}

impl Span {
    /// All zeros. Errors: more than memory holds.
    pub fn new(heads: usize, head_dim: usize, origin: usize, positions: usize) -> Result<Span> {
        let room = positions.next_multiple_of(WIDTH);
        let sizes = [head_dim, head_dim.next_multiple_of(WIDTH)].map(|d| heads.checked_mul(d)?.checked_mul(room));
        let too_large = || Error::limits(format!("a cache of {positions} positions does not fit into memory"));
        let [Some(k), Some(v)] = sizes else { return Err(too_large()) };
        let zeros = |n: usize| {
            let mut out: Vec<f32> = Vec::new();
            out.try_reserve_exact(n).map_err(|_| too_large())?;
            out.resize(n, 0.0);
            Ok::<_, Error>(out)
        };
        Ok(Span { heads, head_dim, origin, room, panels: [zeros(k)?, zeros(v)?] })
    }

    /// From one panel row to the next: of keys, of values.
    pub fn strides(&self) -> [usize; 2] {
        [self.room, self.head_dim.next_multiple_of(WIDTH)]
    }

    fn head_len(&self, kind: Kind) -> usize {
        match kind {
            Kind::Keys => self.head_dim * self.room,
            Kind::Values => self.room * self.head_dim.next_multiple_of(WIDTH),
        }
    }

    pub fn head(&self, kind: Kind, head: usize) -> &[f32] {
        let len = self.head_len(kind);
        &self.panels[kind as usize][head * len..][..len]
    }

    /// All heads' panels, to be written side by side.
    pub fn heads_mut(&mut self, kind: Kind) -> impl Iterator<Item = Panel<'_>> {
        let (len, origin, room, head_dim) = (self.head_len(kind).max(1), self.origin, self.room, self.head_dim);
        let chunks = self.panels[kind as usize].chunks_exact_mut(len);
        chunks.map(move |data| Panel { kind, origin, room, head_dim, data })
    }
}

/// One head's keys or values.
pub struct Panel<'a> {
    kind: Kind,
    origin: usize,
    room: usize,
    head_dim: usize,
    data: &'a mut [f32],
}

impl Panel<'_> {
    /// Writes positions from `position` on; `row(t)` has `head_dim` values.
    pub fn put<'r>(&mut self, position: usize, rows: impl ExactSizeIterator<Item = &'r [f32]>) {
        let (at, d) = (position - self.origin, self.head_dim);
        assert!(at + rows.len() <= self.room);
        match self.kind {
            Kind::Keys => {
                for (t, row) in rows.enumerate() {
                    for (i, k) in row[..d].iter().enumerate() {
                        self.data[i * self.room + at + t] = *k;
                    }
                }
            }
            Kind::Values => {
                let padded = d.next_multiple_of(WIDTH);
                for (t, row) in rows.enumerate() {
                    self.data[(at + t) * padded..][..d].copy_from_slice(&row[..d]);
                }
            }
        }
    }

    /// Zeros from `position` to the end of its panel: what a kernel reads must be a number, whatever its weight.
    pub fn clear_from(&mut self, position: usize) {
        let at = position - self.origin;
        let ends = at.next_multiple_of(WIDTH).min(self.room);
        match self.kind {
            Kind::Keys => self.data.chunks_exact_mut(self.room).for_each(|row| row[at..ends].fill(0.0)),
            Kind::Values => {
                let padded = self.head_dim.next_multiple_of(WIDTH);
                self.data[at * padded..ends * padded].fill(0.0);
            }
        }
    }
}

//! Matrices that do not lie row after row: transposed, or the rows of two in turn.

/// A matrix whose elements lie apart. What one is, is up to whoever made it: a number, or a whole row.
#[derive(Clone, Debug, PartialEq)]
pub struct Scatter {
    /// Where the first begins.
    pub from: usize,
    /// Rows and columns.
    pub shape: [usize; 2],
    /// Bytes from a row to the next, and from a column to the next.
    pub step: [usize; 2],
    /// Bytes of an element.
    pub size: usize,
}

impl Scatter {
    pub fn bytes(&self) -> usize {
        self.shape[0] * self.shape[1] * self.size
    }

    /// The elements row after row.
    ///
    /// # Panics
    /// If one reaches beyond `map`.
    pub fn gather(&self, map: &[u8]) -> Vec<u8> {
        let mut out = vec![0; self.bytes()];
        match self.size {
            2 => self.tiles(|at, to| out[to..to + 2].copy_from_slice(&map[at..at + 2])),
            4 => self.tiles(|at, to| out[to..to + 4].copy_from_slice(&map[at..at + 4])),
            n => self.tiles(|at, to| out[to..to + n].copy_from_slice(&map[at..at + n])),
        }
        out
    }

    /// Where every element is and goes, square after square: one side of a transposed matrix is never in order.
    fn tiles(&self, mut copy: impl FnMut(usize, usize)) {
        const SIDE: usize = 32;
        let [rows, cols] = self.shape;
        for (row, col) in (0..rows).step_by(SIDE).flat_map(|r| (0..cols).step_by(SIDE).map(move |c| (r, c))) {
            for r in row..rows.min(row + SIDE) {
                for c in col..cols.min(col + SIDE) {
                    copy(self.from + r * self.step[0] + c * self.step[1], (r * cols + c) * self.size);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_is_found() {
        let (rows, cols) = (70, 45);
        for size in [1, 2, 3, 4] {
            // Every second column of a matrix that lies transposed.
            let stored: Vec<u8> = (0..cols * rows * 2 * size).map(|i| ((i * 7919) >> 4) as u8).collect();
            let step = [2 * size, 2 * rows * size];
            let found = Scatter { from: size, shape: [rows, cols], step, size }.gather(&stored);
            for (r, c) in (0..rows).flat_map(|r| (0..cols).map(move |c| (r, c))) {
                let at = (c * rows * 2 + r * 2 + 1) * size;
                assert_eq!(found[(r * cols + c) * size..][..size], stored[at..][..size]);
            }
        }
    }
}

//! Cholesky factorization, f64. Our own because codes depend on its bits: they must not change with threads or instruction sets.

use crate::widest::widest;
use ndarray::Array2;
use rayon::prelude::*;

/// Columns that are finished together.
const BLOCK: usize = 64;
/// Rows that one job updates.
const ROWS: usize = 32;
/// Lanes of a dot product, added up in one order.
const LANES: usize = 8;
/// Rows, and rows above them, whose products are computed together.
const SIDE: usize = 4;

/// Overwrites the lower triangle of `a`, symmetric and read below its diagonal, with L of `a = L L^T`.
///
/// Errors: the first pivot that is not positive.
pub fn cholesky(a: &mut Array2<f64>) -> Result<(), usize> {
    let n = a.nrows();
    assert!(a.is_square());
    let a = a.as_slice_mut().expect("rows lie one after the other");
    let mut done = Vec::new();
    for from in (0..n).step_by(BLOCK) {
        let until = n.min(from + BLOCK);
        // The block's own rows come first: every row below is reduced by what they hold.
        for i in from..until {
            let (above, row) = a.split_at_mut(i * n);
            let row = &mut row[..=i];
            for j in from..i {
                let other = &above[j * n..][..=j];
                row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
            }
            let pivot = row[i] - dot(&row[..i], &row[..i]);
            if !(pivot > 0.0 && pivot.is_finite()) {
                return Err(i);
            }
            row[i] = pivot.sqrt();
        }
        done.clear();
        done.extend_from_slice(&a[from * n..until * n]);
        let done = &done;
        a[until * n..].par_chunks_mut(ROWS * n).for_each(|rows| below(rows, n, done, from));
    }
    Ok(())
}

/// Columns `from..` of rows below a block, given the block's finished rows.
fn below(rows: &mut [f64], n: usize, done: &[f64], from: usize) {
    // What columns before the block say, in squares: each row that is loaded serves a side.
    for rows in rows.chunks_mut(SIDE * n) {
        for (j, others) in done.chunks(SIDE * n).enumerate() {
            let sums = square(rows, others, n, from);
            for (row, sums) in rows.chunks_exact_mut(n).zip(sums) {
                let row = &mut row[from + j * SIDE..][..others.len() / n];
                row.iter_mut().zip(sums).for_each(|(x, sum)| *x -= sum);
            }
        }
    }
    for row in rows.chunks_exact_mut(n) {
        let row = &mut row[from..][..done.len() / n];
        for (j, other) in done.chunks_exact(n).enumerate() {
            let other = &other[from..][..=j];
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / other[j];
        }
    }
}

widest! {
    fn dot(a: &[f64], b: &[f64]) -> f64 = dot_body;
}

#[inline(always)]
fn dot_body(a: &[f64], b: &[f64]) -> f64 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    a.iter().zip(b).for_each(|(a, b)| add_products(&mut lanes, a, b));
    lanes.iter_mut().zip(a_rest.iter().zip(b_rest)).for_each(|(lane, (a, b))| *lane = a.mul_add(*b, *lane));
    total(&lanes)
}

widest! {
    /// Products of the first `depth` elements of up to [`SIDE`] rows with those of as many others, all of length `n`.
    fn square(a: &[f64], b: &[f64], n: usize, depth: usize) -> [[f64; SIDE]; SIDE] = square_body;
}

#[inline(always)]
fn square_body(a: &[f64], b: &[f64], n: usize, depth: usize) -> [[f64; SIDE]; SIDE] {
    // Where rows are missing the first stands in, and what comes of it is not used. `depth` is whole blocks.
    let start = |x: &[f64], i: usize| if (i + 1) * n <= x.len() { i * n } else { 0 };
    let a: [_; SIDE] = std::array::from_fn(|i| a[start(a, i)..][..depth].as_chunks::<LANES>().0);
    let b: [_; SIDE] = std::array::from_fn(|i| b[start(b, i)..][..depth].as_chunks::<LANES>().0);
    let mut lanes = [[[0.0; LANES]; SIDE]; SIDE];
    for k in 0..depth / LANES {
        for i in 0..SIDE {
            for j in 0..SIDE {
                add_products(&mut lanes[i][j], &a[i][k], &b[j][k]);
            }
        }
    }
    lanes.map(|row| row.map(|lanes| total(&lanes)))
}

#[inline(always)]
fn add_products(lanes: &mut [f64; LANES], a: &[f64; LANES], b: &[f64; LANES]) {
    for l in 0..LANES {
        lanes[l] = a[l].mul_add(b[l], lanes[l]);
    }
}

#[inline(always)]
fn total(l: &[f64; LANES]) -> f64 {
    ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definite(n: usize) -> Array2<f64> {
        let x = Array2::from_shape_fn((n, n), |(i, j)| (((i * n + j) * 7919) % 1013) as f64 / 1013.0 - 0.5);
        x.dot(&x.t()) + Array2::<f64>::eye(n) * 0.1
    }

    #[test]
    fn the_factor_gives_the_matrix_back() {
        for n in [1, 5, 64, 65, 150, 203] {
            let a = definite(n);
            let mut l = a.clone();
            cholesky(&mut l).unwrap();
            let l = Array2::from_shape_fn((n, n), |(i, j)| if j <= i { l[[i, j]] } else { 0.0 });
            let worst = (l.dot(&l.t()) - a).iter().fold(0.0, |worst: f64, x| worst.max(x.abs()));
            assert!(worst < 1e-9, "{n}: {worst}");
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let a = definite(203);
        let run = |threads| {
            let mut l = a.clone();
            super::super::pool(threads).unwrap().install(|| cholesky(&mut l)).unwrap();
            l
        };
        assert!(run(1) == run(3));
    }

    #[test]
    fn a_pivot_that_is_not_positive_is_named() {
        let mut a = definite(100);
        a[[70, 70]] = -1.0;
        assert_eq!(cholesky(&mut a), Err(70));
    }
}

//! Cholesky factorization, f64. Our own because codes depend on its bits: they must not change with threads or instruction sets.

use rayon::prelude::*;

use super::simd::widest;

/// Columns that are finished together.
const BLOCK: usize = 64;
/// Rows that one job updates.
const ROWS: usize = 32;
/// Lanes of a dot product, added up in one order.
const LANES: usize = 8;

/// Overwrites the lower triangle of `a`, `[n][n]`, symmetric and read below its diagonal, with L of `a = L L^T`.
///
/// Errors: the first pivot that is not positive.
pub fn cholesky(a: &mut [f64], n: usize) -> Result<(), usize> {
    assert!(a.len() == n * n);
    let mut done = Vec::new();
    for from in (0..n).step_by(BLOCK) {
        let until = n.min(from + BLOCK);
        // The block's own rows come first: every row below is reduced by what they hold.
        for i in from..until {
            let (above, row) = a.split_at_mut(i * n);
            let row = &mut row[..=i];
            for j in from..=i {
                let other = if j == i { None } else { Some(&above[j * n..j * n + j]) };
                let sum = match other {
                    Some(other) => row[j] - dot(&row[..j], other),
                    None => row[j] - dot(&row[..j], &row[..j]),
                };
                row[j] = match other {
                    Some(_) => sum / above[j * n + j],
                    None if sum > 0.0 && sum.is_finite() => sum.sqrt(),
                    None => return Err(i),
                };
            }
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
    for (j, other) in done.chunks_exact(n).enumerate() {
        let j = from + j;
        let pivot = other[j];
        let mut pairs = rows.chunks_exact_mut(4 * n);
        for four in &mut pairs {
            let (a, b) = four.split_at_mut(2 * n);
            let ((a, b), (c, d)) = (a.split_at_mut(n), b.split_at_mut(n));
            let sums = dots(&[&a[..j], &b[..j], &c[..j], &d[..j]], &other[..j]);
            for (row, sum) in [a, b, c, d].into_iter().zip(sums) {
                row[j] = (row[j] - sum) / pivot;
            }
        }
        for row in pairs.into_remainder().chunks_exact_mut(n) {
            row[j] = (row[j] - dot(&row[..j], &other[..j])) / pivot;
        }
    }
}

widest! {
    fn dot(a: &[f64], b: &[f64]) -> f64 = dot_body;
}

#[inline(always)]
fn dot_body(a: &[f64], b: &[f64]) -> f64 {
    let [sum] = dots_body(&[a], b);
    sum
}

widest! {
    /// Four rows with one: what is loaded of `b` serves them all.
    fn dots(a: &[&[f64]; 4], b: &[f64]) -> [f64; 4] = dots_body;
}

#[inline(always)]
fn dots_body<const N: usize>(a: &[&[f64]; N], b: &[f64]) -> [f64; N] {
    let mut lanes = [[0.0; LANES]; N];
    let (chunks, rest) = b.as_chunks::<LANES>();
    let parts: [_; N] = std::array::from_fn(|i| a[i][..b.len()].as_chunks::<LANES>());
    for (k, b) in chunks.iter().enumerate() {
        for i in 0..N {
            let a = &parts[i].0[k];
            for l in 0..LANES {
                lanes[i][l] = a[l].mul_add(b[l], lanes[i][l]);
            }
        }
    }
    for i in 0..N {
        for (l, (a, b)) in parts[i].1.iter().zip(rest).enumerate() {
            lanes[i][l] = a.mul_add(*b, lanes[i][l]);
        }
    }
    lanes.map(|l| ((l[0] + l[4]) + (l[2] + l[6])) + ((l[1] + l[5]) + (l[3] + l[7])))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definite(n: usize) -> Vec<f64> {
        let x: Vec<f64> = (0..n * n).map(|i| ((i * 7919) % 1013) as f64 / 1013.0 - 0.5).collect();
        let mut a = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..n {
                a[i * n + j] = (0..n).map(|k| x[i * n + k] * x[j * n + k]).sum::<f64>();
            }
            a[i * n + i] += 0.1;
        }
        a
    }

    #[test]
    fn the_factor_gives_the_matrix_back() {
        for n in [1, 5, 64, 65, 150, 203] {
            let a = definite(n);
            let mut l = a.clone();
            cholesky(&mut l, n).unwrap();
            for i in 0..n {
                for j in 0..=i {
                    let sum: f64 = (0..=j).map(|k| l[i * n + k] * l[j * n + k]).sum();
                    assert!((sum - a[i * n + j]).abs() < 1e-9, "{n}: {i}, {j}");
                }
            }
        }
    }

    #[test]
    fn threads_change_no_bit() {
        let a = definite(203);
        let run = |threads| {
            let mut l = a.clone();
            super::super::pool(threads).unwrap().install(|| cholesky(&mut l, 203)).unwrap();
            l
        };
        assert!(run(1) == run(3));
    }

    #[test]
    fn a_pivot_that_is_not_positive_is_named() {
        let mut a = definite(100);
        a[70 * 100 + 70] = -1.0;
        assert_eq!(cholesky(&mut a, 100), Err(70));
    }
}

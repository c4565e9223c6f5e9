//! What errors of a weight do to its output.

use ndarray::ArrayView2;
use rayon::prelude::*;

use super::kernel::{Kernel, Tile, WIDTH};

/// Columns rounded up to whole panels.
pub fn padded(n: usize) -> usize {
    n.next_multiple_of(WIDTH)
}

/// The sum over rows of `e H e^T`. `errors` are `[rows][n]`; `h` is `[n][padded(n)]`, its first `n` columns symmetric, the rest zeros.
/// The same bits with any number of threads.
pub fn quadratic(errors: &[f32], h: ArrayView2<'_, f32>) -> f64 {
    let (n, stride) = h.dim();
    let values = h.as_slice().expect("rows lie one after the other");
    let rows = errors.len() / n.max(1);
    assert!(rows * n == errors.len() && stride == padded(n));
    let panel = |first: usize| -> f64 {
        let mut products = vec![0.0f32; rows * WIDTH];
        let mut tile = Tile {
            x: errors.as_ptr(),
            x_stride: n,
            panel: values[first..].as_ptr(),
            panel_stride: stride,
            depth: first,
            out: products.as_mut_ptr(),
            out_stride: WIDTH,
            add: false,
        };
        // SAFETY: `errors` has rows of `n >= first`; `values` has rows of `stride >= first + WIDTH`; `products` has rows of WIDTH.
        unsafe { Kernel::best().multiply(tile, rows, 0) };
        // What lies above the diagonal counts twice.
        products.iter_mut().for_each(|x| *x *= 2.0);
        let width = WIDTH.min(n - first);
        tile = Tile {
            x: errors[first..].as_ptr(),
            panel: values[first * stride + first..].as_ptr(),
            depth: width,
            out: products.as_mut_ptr(),
            add: true,
            ..tile
        };
        // SAFETY: as above; `width` terms of each row and as many rows of `values` follow the first.
        unsafe { Kernel::best().multiply(tile, rows, 0) };
        let each = errors.chunks_exact(n).zip(products.chunks_exact(WIDTH));
        each.flat_map(|(e, product)| e[first..][..width].iter().zip(product))
            .map(|(e, p)| f64::from(*e) * f64::from(*p))
            .sum()
    };
    (0..n).into_par_iter().step_by(WIDTH).map(panel).collect::<Vec<f64>>().iter().sum()
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn it_is_the_quadratic_form() {
        let noise = |i: usize| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5;
        for (rows, n) in [(1, 1), (3, 31), (17, 32), (5, 33), (2, 300)] {
            let at = |i: usize, j: usize| noise(i.min(j) * n + i.max(j));
            let h = Array2::from_shape_fn((n, padded(n)), |(i, j)| if j < n { at(i, j) } else { 0.0 });
            let errors: Vec<f32> = (0..rows * n).map(|i| noise(i + 5)).collect();
            let term = |e: &[f32], i: usize, j: usize| f64::from(e[i]) * f64::from(e[j]) * f64::from(at(i, j));
            let row = |e: &[f32]| (0..n * n).map(|k| term(e, k / n, k % n)).sum::<f64>();
            let exact: f64 = errors.chunks_exact(n).map(row).sum();
            let found = quadratic(&errors, h.view());
            assert!((found - exact).abs() < 1e-5 * (rows * n * n) as f64, "{rows} x {n}: {found}, {exact}");
            let alone = crate::device::cpu::pool(1).unwrap().install(|| quadratic(&errors, h.view()));
            assert_eq!(found, alone);
        }
        assert_eq!(quadratic(&[], Array2::zeros((0, 0)).view()), 0.0);
    }
}

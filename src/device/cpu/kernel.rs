//! The one inner loop: a few rows of x times a panel of 32 columns.
//!
//! Each element of the result is `((x0*w0 + x1*w1) + x2*w2) ...`, fused, first to last, in chunks of [`DEPTH`] that are added up:
//! the same bits whatever the kernel, the tile or the neighbours.

/// Columns of a panel.
pub const WIDTH: usize = 32;
/// Rows and panels are multiplied in chunks of this many terms, so that a chunk of a panel stays in the first-level cache.
pub const DEPTH: usize = 256;
/// `out[r][c] (+)= sum over k of x[r][k] * panel[k][c]` for `rows` rows and [`WIDTH`] columns. Terms of `x` lie side by side, or
/// [`WIDTH`] apart where the kernel reads down a panel.
#[derive(Clone, Copy)]
pub struct Tile {
    pub x: *const f32,
    pub x_stride: usize,
    pub panel: *const f32,
    pub panel_stride: usize,
    pub depth: usize,
    pub out: *mut f32,
    pub out_stride: usize,
    /// Adds to what `out` holds.
    pub add: bool,
}

type Run = unsafe fn(&Tile);

/// A kernel for each number of rows up to its most; the first is for one row.
#[derive(Clone, Copy)]
pub struct Kernel {
    run: &'static [Run],
    /// From one term of `x` to the next.
    step: usize,
}

/// Kernels for terms that lie side by side, and for those that lie [`WIDTH`] apart.
type Pair = [&'static [Run]; 2];

impl Kernel {
    /// The fastest that this machine can run.
    pub fn best() -> Kernel {
        Kernel { run: Self::fastest()[0], step: 1 }
    }

    /// The same for an `x` that is itself a panel: its rows are the panel's columns, `x_stride` is 1.
    pub fn down_a_panel() -> Kernel {
        Kernel { run: Self::fastest()[1], step: WIDTH }
    }

    fn fastest() -> Pair {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return x86::AVX512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return x86::AVX2;
            }
        }
        PLAIN
    }

    #[cfg(test)]
    pub fn plain() -> Kernel {
        Kernel { run: PLAIN[0], step: 1 }
    }

    /// Multiplies `rows` rows of `depth` terms, chunk by chunk. Chunks begin at multiples of [`DEPTH`] counted from `origin`
    /// terms before the first.
    ///
    /// # Safety
    /// For all `r < rows`, `k < depth`, `c < WIDTH`: `x[r * x_stride + k * step]` and `panel[k * panel_stride + c]` can be read and
    /// `out[r * out_stride + c]` can be written, by no other thread meanwhile.
    pub unsafe fn multiply(self, tile: Tile, rows: usize, origin: usize) {
        let mut from = 0;
        while from < tile.depth {
            let until = tile.depth.min((origin + from) / DEPTH * DEPTH + DEPTH - origin);
            let mut row = 0;
            while row < rows {
                let n = self.run.len().min(rows - row);
                // SAFETY: rows `row..row + n` and terms `from..until` are within what the caller vouches for.
                unsafe {
                    (self.run[n - 1])(&Tile {
                        x: tile.x.add(row * tile.x_stride + from * self.step),
                        panel: tile.panel.add(from * tile.panel_stride),
                        depth: until - from,
                        out: tile.out.add(row * tile.out_stride),
                        add: tile.add || from > 0,
                        ..tile
                    });
                }
                row += n;
            }
            from = until;
        }
    }
}

macro_rules! each {
    ($run:ident: $($rows:literal)*) => {
        [&[$($run::<$rows, 1>),*], &[$($run::<$rows, WIDTH>),*]]
    };
}

const PLAIN: Pair = each!(plain: 1 2 3 4 5 6);

/// # Safety
/// As [`Kernel::multiply`], for `M` rows.
unsafe fn plain<const M: usize, const STEP: usize>(t: &Tile) {
    let mut sums = [[0.0f32; WIDTH]; M];
    for k in 0..t.depth {
        for (r, sums) in sums.iter_mut().enumerate() {
            // SAFETY: `r < M`, `k < depth`, `c < WIDTH`.
            unsafe {
                let x = *t.x.add(r * t.x_stride + k * STEP);
                for (c, sum) in sums.iter_mut().enumerate() {
                    *sum = x.mul_add(*t.panel.add(k * t.panel_stride + c), *sum);
                }
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        for (c, sum) in sums.iter().enumerate() {
            // SAFETY: `r < M`, `c < WIDTH`.
            unsafe {
                let out = t.out.add(r * t.out_stride + c);
                *out = if t.add { *out + sum } else { *sum };
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Pair, Tile, WIDTH};
    use std::arch::x86_64::*;

    pub const AVX512: Pair = each!(avx512: 1 2 3 4 5 6 7 8 9 10 11 12 13 14);
    pub const AVX2: Pair = each!(avx2: 1 2 3 4 5 6);

    /// # Safety
    /// As [`super::Kernel::multiply`], for `M` rows, on a CPU with AVX-512F.
    #[target_feature(enable = "avx512f")]
    unsafe fn avx512<const M: usize, const STEP: usize>(t: &Tile) {
        const LANES: usize = 16;
        let mut sums = [[_mm512_setzero_ps(); WIDTH / LANES]; M];
        // SAFETY: every address is one of those that the caller vouches for.
        unsafe {
            for k in 0..t.depth {
                let panel = t.panel.add(k * t.panel_stride);
                let w = [_mm512_loadu_ps(panel), _mm512_loadu_ps(panel.add(LANES))];
                for (r, sums) in sums.iter_mut().enumerate() {
                    let x = _mm512_set1_ps(*t.x.add(r * t.x_stride + k * STEP));
                    sums[0] = _mm512_fmadd_ps(x, w[0], sums[0]);
                    sums[1] = _mm512_fmadd_ps(x, w[1], sums[1]);
                }
            }
            for (r, sums) in sums.iter().enumerate() {
                for (part, sum) in sums.iter().enumerate() {
                    let out = t.out.add(r * t.out_stride + part * LANES);
                    let sum = if t.add { _mm512_add_ps(_mm512_loadu_ps(out), *sum) } else { *sum };
                    _mm512_storeu_ps(out, sum);
                }
            }
        }
    }

    /// # Safety
    /// As [`super::Kernel::multiply`], for `M` rows, on a CPU with AVX2 and FMA.
    #[target_feature(enable = "avx2,fma")]
    unsafe fn avx2<const M: usize, const STEP: usize>(t: &Tile) {
        const LANES: usize = 8;
        // 16 registers hold six rows of half a panel.
        for half in [0, WIDTH / 2] {
            let mut sums = [[_mm256_setzero_ps(); 2]; M];
            // SAFETY: every address is one of those that the caller vouches for.
            unsafe {
                for k in 0..t.depth {
                    let panel = t.panel.add(k * t.panel_stride + half);
                    let w = [_mm256_loadu_ps(panel), _mm256_loadu_ps(panel.add(LANES))];
                    for (r, sums) in sums.iter_mut().enumerate() {
                        let x = _mm256_set1_ps(*t.x.add(r * t.x_stride + k * STEP));
                        sums[0] = _mm256_fmadd_ps(x, w[0], sums[0]);
                        sums[1] = _mm256_fmadd_ps(x, w[1], sums[1]);
                    }
                }
                for (r, sums) in sums.iter().enumerate() {
                    for (part, sum) in sums.iter().enumerate() {
                        let out = t.out.add(r * t.out_stride + half + part * LANES);
                        let sum = if t.add { _mm256_add_ps(_mm256_loadu_ps(out), *sum) } else { *sum };
                        _mm256_storeu_ps(out, sum);
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn product(kernel: Kernel, rows: usize, depth: usize, x: &[f32], panel: &[f32]) -> Vec<f32> {
        let mut out = vec![f32::NAN; rows * WIDTH];
        let tile = Tile {
            x: x.as_ptr(),
            x_stride: depth,
            panel: panel.as_ptr(),
            panel_stride: WIDTH,
            depth,
            out: out.as_mut_ptr(),
            out_stride: WIDTH,
            add: false,
        };
        // SAFETY: `x` is rows x depth, `panel` depth x WIDTH, `out` rows x WIDTH.
        unsafe { kernel.multiply(tile, rows, 0) };
        out
    }

    #[test]
    fn every_kernel_gives_the_bits_of_the_plain_one() {
        for (rows, depth) in [(1, 1), (3, 255), (14, 256), (15, 257), (29, 700)] {
            let (x, panel) = (noise(rows * depth, 1), noise(depth * WIDTH, 2));
            let expected = product(Kernel::plain(), rows, depth, &x, &panel);
            let mut kernels = vec![Kernel::best()];
            #[cfg(target_arch = "x86_64")]
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                kernels.push(Kernel { run: x86::AVX2[0], step: 1 });
            }
            for kernel in kernels {
                let got = product(kernel, rows, depth, &x, &panel);
                assert!(got.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()), "{rows} x {depth}");
            }
        }
    }

    /// Columns of a panel as rows: each kernel against the plain one on the same rows, side by side.
    #[test]
    fn reading_down_a_panel_gives_the_same_bits() {
        let depth = 300;
        let (left, right) = (noise(depth * WIDTH, 5), noise(depth * WIDTH, 6));
        let rows: Vec<f32> = (0..WIDTH).flat_map(|r| left[r..].iter().step_by(WIDTH).copied()).collect();
        let expected = product(Kernel::plain(), WIDTH, depth, &rows, &right);
        let mut kernels = vec![Kernel::down_a_panel(), Kernel { run: PLAIN[1], step: WIDTH }];
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            kernels.push(Kernel { run: x86::AVX2[1], step: WIDTH });
        }
        for kernel in kernels {
            let mut out = vec![f32::NAN; WIDTH * WIDTH];
            let tile = Tile {
                x: left.as_ptr(),
                x_stride: 1,
                panel: right.as_ptr(),
                panel_stride: WIDTH,
                depth,
                out: out.as_mut_ptr(),
                out_stride: WIDTH,
                add: false,
            };
            // SAFETY: both panels are depth x WIDTH, `out` WIDTH x WIDTH.
            unsafe { kernel.multiply(tile, WIDTH, 0) };
            assert!(out.iter().zip(&expected).all(|(a, b)| a.to_bits() == b.to_bits()));
        }
    }

    #[test]
    fn sums_are_right() {
        let (rows, depth) = (5, 600);
        let (x, panel) = (noise(rows * depth, 3), noise(depth * WIDTH, 4));
        let got = product(Kernel::best(), rows, depth, &x, &panel);
        for (i, got) in got.iter().enumerate() {
            let (r, c) = (i / WIDTH, i % WIDTH);
            let exact: f64 = (0..depth).map(|k| f64::from(x[r * depth + k]) * f64::from(panel[k * WIDTH + c])).sum();
            assert!((f64::from(*got) - exact).abs() < 1e-4, "{got} {exact}");
        }
    }
}

//! Products with packed weights: rows are decoded a panel at a time, right in front of the kernel, so that a quantized
//! model takes no more memory than its file.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::elementwise::add;
use super::kernel::{Kernel, Tile, WIDTH};
use super::transpose::transpose;
use crate::container::Weight;

/// Decoded rows of a weight, transposed for the kernel: panels of [`WIDTH`] rows, each `[cols][WIDTH]`.
#[derive(Default)]
pub struct Panels {
    rows: Vec<f32>,
    data: Vec<f32>,
    cols: usize,
    count: usize,
}

/// Rows decoded at a time take about this much, to lie in the second-level cache.
const DECODE_BYTES: usize = 256 << 10;

impl Panels {
    /// Decodes `rows` of `weight`.
    pub fn load(&mut self, weight: &Weight<'_>, rows: Range<usize>) {
        let cols = weight.packed.dims.cols;
        (self.cols, self.count) = (cols, rows.len().div_ceil(WIDTH));
        self.data.resize(self.count * cols * WIDTH, 0.0);
        let step = (DECODE_BYTES / 4 / cols.max(1)).clamp(1, WIDTH);
        for (panel, data) in self.data.chunks_exact_mut((cols * WIDTH).max(1)).enumerate() {
            let end = rows.len().min((panel + 1) * WIDTH);
            if end < (panel + 1) * WIDTH {
                data.fill(0.0);
            }
            for from in (panel * WIDTH..end).step_by(step) {
                let until = end.min(from + step);
                self.rows.resize((until - from) * cols, 0.0);
                weight.codec.decode(&weight.packed, rows.start + from..rows.start + until, &mut self.rows);
                transpose(&self.rows, cols, weight.scale, &mut data[from - panel * WIDTH..]);
            }
        }
    }

    /// `out[t] = x[t] * rows^T`: `x` is `[tokens][cols]`, `out` `[tokens][out_stride]`. Columns past the rows that were loaded
    /// get zeros, up to a multiple of [`WIDTH`].
    pub fn multiply(&self, x: &[f32], tokens: usize, out: &mut [f32], out_stride: usize) {
        assert!(self.count * WIDTH <= out_stride && out.len() >= tokens * out_stride);
        // SAFETY: all of `out` is ours, and large enough by the assert.
        unsafe { self.multiply_into(x, tokens, out.as_mut_ptr(), out_stride) }
    }

    /// # Safety
    /// `tokens` rows of `count` x [`WIDTH`] elements, `out_stride` apart, can be written at `out`, by no other thread meanwhile.
    unsafe fn multiply_into(&self, x: &[f32], tokens: usize, out: *mut f32, out_stride: usize) {
        let kernel = Kernel::best();
        assert!(x.len() >= tokens * self.cols);
        for panel in 0..self.count {
            // SAFETY: `x` has the rows, by the assert; `load` made `count` panels of `cols` x WIDTH; `out` is the caller's word.
            unsafe {
                let tile = Tile {
                    x: x.as_ptr(),
                    x_stride: self.cols,
                    panel: self.data[panel * self.cols * WIDTH..].as_ptr(),
                    panel_stride: WIDTH,
                    depth: self.cols,
                    out: out.add(panel * WIDTH),
                    out_stride,
                    add: false,
                };
                kernel.multiply(tile, tokens, 0);
            }
        }
    }
}

thread_local! {
    static SCRATCH: RefCell<(Panels, Vec<f32>)> = RefCell::default();
}

/// Rows that one job decodes.
const JOB_ROWS: usize = 4 * WIDTH;
/// Tokens that one job multiplies, so that its result stays in the second-level cache.
const JOB_TOKENS: usize = 256;

/// `x * W^T + bias`: `x` is `[tokens][cols]`, `out` `[tokens][rows.len()]`, for these rows of `weight`.
pub fn linear(weight: &Weight<'_>, rows: Range<usize>, bias: Option<&[f32]>, x: &[f32], out: &mut [f32]) {
    let (n, cols) = (rows.len(), weight.packed.dims.cols);
    let tokens = x.len() / cols.max(1);
    let shared = Shared(out.as_mut_ptr(), out.len());
    (0..n.div_ceil(JOB_ROWS)).into_par_iter().for_each(|job| {
        let columns = job * JOB_ROWS..n.min((job + 1) * JOB_ROWS);
        SCRATCH.with_borrow_mut(|(panels, tile)| {
            panels.load(weight, rows.start + columns.start..rows.start + columns.end);
            for from in (0..tokens).step_by(JOB_TOKENS) {
                let until = tokens.min(from + JOB_TOKENS);
                let x = &x[from * cols..until * cols];
                // SAFETY: jobs have distinct columns, so no two write the same element.
                let place = |t: usize| unsafe { shared.slice(t * n + columns.start, columns.len()) };
                if columns.len().is_multiple_of(WIDTH) {
                    let all = shared.pointer(from * n + columns.start..(until - 1) * n + columns.end);
                    // SAFETY: from the first element to the last they are within the output, and this job's alone.
                    unsafe { panels.multiply_into(x, until - from, all, n) };
                } else {
                    let width = columns.len().next_multiple_of(WIDTH);
                    tile.resize(tile.len().max(JOB_TOKENS * JOB_ROWS), 0.0);
                    panels.multiply(x, until - from, tile, width);
                    for (t, values) in (from..until).zip(tile.chunks_exact(width)) {
                        place(t).copy_from_slice(&values[..columns.len()]);
                    }
                }
                if let Some(bias) = bias {
                    (from..until).for_each(|t| add(place(t), &bias[columns.clone()]));
                }
            }
        });
    });
}

/// An output that jobs write disjoint parts of.
struct Shared(*mut f32, usize);

// SAFETY: whoever writes through it keeps to a part of their own.
unsafe impl Sync for Shared {}

impl Shared {
    /// To the first of these elements, all of which are within the output.
    fn pointer(&self, range: Range<usize>) -> *mut f32 {
        assert!(range.start <= range.end && range.end <= self.1);
        // SAFETY: within the output, by the assert.
        unsafe { self.0.add(range.start) }
    }

    /// # Safety
    /// No other reference to these elements may live as long as the result.
    #[expect(clippy::mut_from_ref)]
    unsafe fn slice(&self, from: usize, len: usize) -> &mut [f32] {
        // SAFETY: within the output, by `pointer`; exclusive, by the caller.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(from..from + len), len) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{self, float};
    use crate::tensor::{Dims, Packed};

    #[test]
    fn products_do_not_depend_on_what_is_beside_them() {
        for (rows, cols) in [(1, 8), (33, 40), (300, 520)] {
            let w: Vec<f32> = (0..rows * cols).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect();
            let x: Vec<f32> = (0..300 * cols).map(|i| ((i * 104_729) % 997) as f32 / 997.0 - 0.5).collect();
            let bytes: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
            let codec: &'static dyn codec::Codec = &float::F32;
            let weight = Weight { codec, packed: Packed::one(Dims::new(rows, cols), bytes), scale: 2.0, inputs: None };
            let bias: Vec<f32> = (0..rows).map(|r| r as f32).collect();
            let mut all = vec![f32::NAN; 300 * rows];
            linear(&weight, 0..rows, Some(&bias), &x, &mut all);
            for t in [0, 17, 299] {
                let x = &x[t * cols..(t + 1) * cols];
                let mut one = vec![f32::NAN; rows];
                linear(&weight, 0..rows, Some(&bias), x, &mut one);
                assert_eq!(one, all[t * rows..(t + 1) * rows]);
                let r = rows - 1;
                let mut last = [f32::NAN];
                linear(&weight, r..rows, Some(&bias[r..]), x, &mut last);
                assert_eq!(last[0], one[r]);
                let dot = |r: usize| -> f64 {
                    (0..cols).map(|c| f64::from(x[c]) * f64::from(w[r * cols + c]) * 2.0).sum::<f64>() + r as f64
                };
                (0..rows).for_each(|r| assert!((f64::from(one[r]) - dot(r)).abs() < 1e-4, "{rows} x {cols}"));
            }
        }
    }
}

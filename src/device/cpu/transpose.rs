//! Rows of a weight into the lanes of a panel.

use super::kernel::WIDTH;

/// Side of the squares that are turned in registers.
#[cfg(target_arch = "x86_64")]
const SIDE: usize = 16;

/// `out[c * WIDTH + r] = rows[r][c] * scale`, for at most [`WIDTH`] rows.
pub fn transpose(rows: &[f32], cols: usize, scale: f32, out: &mut [f32]) {
    let count = rows.len() / cols.max(1);
    if count == 0 {
        return;
    }
    assert!(count <= WIDTH && rows.len() == count * cols && out.len() >= (cols - 1) * WIDTH + count);
    let done = squares(rows, count, cols, scale, out);
    plain(rows, cols, scale, out, done);
}

/// Turns what whole squares cover; returns rows and columns done.
#[cfg(target_arch = "x86_64")]
fn squares(rows: &[f32], count: usize, cols: usize, scale: f32, out: &mut [f32]) -> (usize, usize) {
    if !is_x86_feature_detected!("avx512f") {
        return (0, 0);
    }
    let done = (count / SIDE * SIDE, cols / SIDE * SIDE);
    for r in (0..done.0).step_by(SIDE) {
        for c in (0..done.1).step_by(SIDE) {
            // SAFETY: the CPU has the feature; rows r..r + 16 of columns c..c + 16 are within `rows` and, turned, within
            // `out`, as the caller asserts.
            unsafe { square(rows.as_ptr().add(r * cols + c), cols, scale, out.as_mut_ptr().add(c * WIDTH + r)) };
        }
    }
    done
}

#[cfg(not(target_arch = "x86_64"))]
fn squares(_: &[f32], _: usize, _: usize, _: f32, _: &mut [f32]) -> (usize, usize) {
    (0, 0)
}

/// All but the first `done.0` rows of the first `done.1` columns.
fn plain(rows: &[f32], cols: usize, scale: f32, out: &mut [f32], done: (usize, usize)) {
    for (r, row) in rows.chunks_exact(cols).enumerate() {
        let from = if r < done.0 { done.1 } else { 0 };
        for (c, w) in row.iter().enumerate().skip(from) {
            out[c * WIDTH + r] = w * scale;
        }
    }
}

/// A square of [`SIDE`]: pairs, then fours, then whole rows change places.
///
/// # Safety
/// 16 rows of 16 elements can be read at `rows`, `cols` apart, and written at `out`, [`WIDTH`] apart; the CPU has AVX-512F.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn square(rows: *const f32, cols: usize, scale: f32, out: *mut f32) {
    use std::arch::x86_64::*;
    let zero = _mm512_setzero_ps();
    let (mut a, mut b) = ([zero; SIDE], [zero; SIDE]);
    for (i, row) in a.iter_mut().enumerate() {
        // SAFETY: as the caller vouches.
        *row = unsafe { _mm512_mul_ps(_mm512_loadu_ps(rows.add(i * cols)), _mm512_set1_ps(scale)) };
    }
    for i in 0..SIDE / 2 {
        b[2 * i] = _mm512_unpacklo_ps(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_ps(a[2 * i], a[2 * i + 1]);
    }
    let pair = |x, y, high: bool| {
        let (x, y) = (_mm512_castps_pd(x), _mm512_castps_pd(y));
        _mm512_castpd_ps(if high { _mm512_unpackhi_pd(x, y) } else { _mm512_unpacklo_pd(x, y) })
    };
    for i in (0..SIDE).step_by(4) {
        for half in 0..2 {
            a[i + 2 * half] = pair(b[i + half], b[i + 2 + half], false);
            a[i + 2 * half + 1] = pair(b[i + half], b[i + 2 + half], true);
        }
    }
    // Now a[4g + j] holds, in its quarter q, rows 4g.. of column 4q + j.
    for j in 0..4 {
        let even = [_mm512_shuffle_f32x4::<0x88>(a[j], a[4 + j]), _mm512_shuffle_f32x4::<0x88>(a[8 + j], a[12 + j])];
        let odd = [_mm512_shuffle_f32x4::<0xdd>(a[j], a[4 + j]), _mm512_shuffle_f32x4::<0xdd>(a[8 + j], a[12 + j])];
        b[j] = _mm512_shuffle_f32x4::<0x88>(even[0], even[1]);
        b[4 + j] = _mm512_shuffle_f32x4::<0x88>(odd[0], odd[1]);
        b[8 + j] = _mm512_shuffle_f32x4::<0xdd>(even[0], even[1]);
        b[12 + j] = _mm512_shuffle_f32x4::<0xdd>(odd[0], odd[1]);
    }
    for (c, column) in b.iter().enumerate() {
        // SAFETY: as the caller vouches.
        unsafe { _mm512_storeu_ps(out.add(c * WIDTH), *column) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn squares_and_edges_land_where_the_plain_loop_puts_them() {
        for (count, cols) in [(1, 1), (16, 16), (32, 48), (31, 47), (17, 576), (32, 15)] {
            let rows: Vec<f32> = (0..count * cols).map(|i| i as f32).collect();
            let (mut got, mut expected) = (vec![-1.0; cols * WIDTH], vec![-1.0; cols * WIDTH]);
            transpose(&rows, cols, 0.5, &mut got);
            plain(&rows, cols, 0.5, &mut expected, (0, 0));
            assert_eq!(got, expected, "{count} x {cols}");
            assert_eq!(got[(cols - 1) * WIDTH + count - 1], (count * cols - 1) as f32 * 0.5);
        }
    }
}

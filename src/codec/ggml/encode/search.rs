//! The searches for scales: least squares over codes that a grid of trial scales gives, as ggml's `make_*_quants`.
//!
//! A search returns the trial that won, not its codes: those are recomputed where they are needed at all.

use super::lanes::{Lanes, clamp, extreme, nearest};

/// Trial scales of the searches without an offset are this many levels apart, so many to each side of the plain one; for values that
/// should not be negative fewer.
pub const TRIAL: f32 = 0.1;
pub const SIGNED_TRIALS: i32 = 9;
pub const POSITIVE_TRIALS: i32 = 4;
/// Times that codes are gone through one by one.
pub const DESCENTS: usize = 5;

/// ggml takes smaller groups for zero.
pub const TINY: f32 = 1e-15;

/// Trial scales of [`scale_min`]: `levels + first + step * i` steps across the range, for `i` in `0..=last`.
#[derive(Clone, Copy)]
pub struct Trials {
    pub first: f32,
    pub step: f32,
    pub last: u32,
}

/// The grid of every search that is given an importance vector.
pub const WEIGHTED: Trials = Trials { first: -0.9, step: 0.05, last: 36 };

/// `x ~ scale * code + low` with codes `0..=top` and `low <= 0`.
#[derive(Clone, Copy)]
pub struct ScaleMin<L> {
    pub scale: L,
    pub low: L,
    inverse: L,
    origin: L,
    top: f32,
}

impl<L: Lanes> ScaleMin<L> {
    #[inline(always)]
    pub fn zero() -> Self {
        let zero = L::splat(0.0);
        ScaleMin { scale: zero, low: zero, inverse: zero, origin: zero, top: 0.0 }
    }

    /// The code that the search chose.
    #[inline(always)]
    pub fn code(&self, x: L) -> L {
        clamp(nearest(self.inverse * (x - self.origin)), 0.0, self.top)
    }
}

/// Minimizes the weighted error, absolute or squared. ggml's `make_qkx2_quants` and `make_qkx3_quants`.
#[inline(always)]
pub fn scale_min<L: Lanes, const N: usize, const ABSOLUTE: bool>(
    x: &[L; N],
    w: &[L; N],
    top: f32,
    trials: Trials,
) -> ScaleMin<L> {
    let (zero, one) = (L::splat(0.0), L::splat(1.0));
    let (mut min, mut max, mut sum_w, mut sum_x) = (x[0], x[0], w[0], w[0] * x[0]);
    for i in 1..N {
        min = x[i].min(min);
        max = x[i].max(max);
        sum_w = sum_w + w[i];
        sum_x = sum_x + w[i] * x[i];
    }
    let low = zero.min(min);
    let some = low.lt(max);
    let mut codes = [zero; N];

    let inverse = L::splat(top) / (max - low);
    let mut best = ScaleMin { scale: one / inverse, low, inverse, origin: low, top };
    for i in 0..N {
        codes[i] = best.code(x[i]);
    }
    let mut least = error::<L, N, ABSOLUTE>(x, w, &codes, best.scale, low);

    for trial in 0..=trials.last {
        // From the best minimum so far, not from that of the data.
        let origin = best.low;
        let inverse = L::splat(trials.first + trials.step * trial as f32 + top) / (max - origin);
        let (mut sum_l, mut sum_l2, mut sum_xl) = (zero, zero, zero);
        for i in 0..N {
            let l = clamp(nearest(inverse * (x[i] - origin)), 0.0, top);
            codes[i] = l;
            let wl = w[i] * l;
            sum_l = sum_l + wl;
            sum_l2 = sum_l2 + wl * l;
            sum_xl = sum_xl + wl * x[i];
        }
        let det = sum_w * sum_l2 - sum_l * sum_l;
        let mut scale = (sum_w * sum_xl - sum_x * sum_l) / det;
        let mut low = (sum_l2 * sum_x - sum_l * sum_xl) / det;
        let positive = zero.lt(low);
        if L::any(positive) {
            scale = L::select(positive, sum_xl / sum_l2, scale);
            low = L::select(positive, zero, low);
        }
        let error = error::<L, N, ABSOLUTE>(x, w, &codes, scale, low);
        let better = zero.lt(det) & error.lt(least);
        least = L::select(better, error, least);
        best.scale = L::select(better, scale, best.scale);
        best.low = L::select(better, low, best.low);
        best.inverse = L::select(better, inverse, best.inverse);
        best.origin = L::select(better, origin, best.origin);
    }
    best.scale = L::select(some, best.scale, zero);
    best.low = L::select(some, best.low, low);
    best.inverse = L::select(some, best.inverse, zero);
    best
}

/// Weighted error, absolute or squared, of `scale * codes + low`.
#[inline(always)]
fn error<L: Lanes, const N: usize, const ABSOLUTE: bool>(
    x: &[L; N],
    w: &[L; N],
    codes: &[L; N],
    scale: L,
    low: L,
) -> L {
    let mut error = L::splat(0.0);
    for i in 0..N {
        let e = scale * codes[i] + low - x[i];
        error = error + w[i] * if ABSOLUTE { e.abs() } else { e * e };
    }
    error
}

/// `x ~ scale * (code - half)` with codes `0..2 * half`.
#[derive(Clone, Copy)]
pub struct Signed<L: Lanes> {
    pub scale: L,
    inverse: L,
    some: L::Mask,
    half: f32,
}

impl<L: Lanes> Signed<L> {
    #[inline(always)]
    pub fn zero() -> Self {
        let zero = L::splat(0.0);
        Signed { scale: zero, inverse: zero, some: zero.lt(zero), half: 0.0 }
    }

    /// The code that the search chose; 0 (not `half`) in a group of zeros.
    #[inline(always)]
    pub fn code(&self, x: L) -> L {
        let code = clamp(nearest(self.inverse * x), -self.half, self.half - 1.0) + L::splat(self.half);
        L::select(self.some, code, L::splat(0.0))
    }
}

/// Minimizes the weighted squared error. ggml's `make_qx_quants` with `rmse_type` 1.
#[inline(always)]
pub fn signed<L: Lanes, const N: usize>(x: &[L; N], w: &[L; N], half: f32) -> Signed<L> {
    let zero = L::splat(0.0);
    let (max, magnitude) = extreme(x);
    let some = !magnitude.lt(L::splat(TINY));
    let mut wx = *w;
    for i in 0..N {
        wx[i] = w[i] * x[i];
    }

    let mut inverse = L::splat(-half) / max;
    let (sum_lx, sum_l2) = products(x, w, &wx, inverse, half);
    let mut scale = L::select(sum_l2.eq(zero), zero, sum_lx / sum_l2);
    let mut best = scale * sum_lx;
    for trial in (-SIGNED_TRIALS..=SIGNED_TRIALS).filter(|&t| t != 0) {
        let try_inverse = L::splat(-(half + TRIAL * trial as f32)) / max;
        let (sum_lx, sum_l2) = products(x, w, &wx, try_inverse, half);
        let better = zero.lt(sum_l2) & (best * sum_l2).lt(sum_lx * sum_lx);
        if L::any(better) {
            scale = L::select(better, sum_lx / sum_l2, scale);
            best = L::select(better, scale * sum_lx, best);
            inverse = L::select(better, try_inverse, inverse);
        }
    }
    Signed { scale: L::select(some, scale, zero), inverse, some, half }
}

/// Sums of `w x l` and `w l l` over the codes of one trial.
#[inline(always)]
fn products<L: Lanes, const N: usize>(x: &[L; N], w: &[L; N], wx: &[L; N], inverse: L, half: f32) -> (L, L) {
    let (mut sum_lx, mut sum_l2) = (L::splat(0.0), L::splat(0.0));
    for i in 0..N {
        let l = clamp(nearest(inverse * x[i]), -half, half - 1.0);
        sum_lx = sum_lx + wx[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }
    (sum_lx, sum_l2)
}

/// One code at a time towards the least squared error, from codes that the largest value alone sets. Returns the scale and
/// codes in `0..2 * half`. ggml's `make_q3_quants`.
#[inline(always)]
pub fn signed_descent<L: Lanes, const N: usize>(x: &[L; N], half: f32) -> (L, [L; N]) {
    let zero = L::splat(0.0);
    let (max, magnitude) = extreme(x);
    let some = !magnitude.lt(L::splat(TINY));
    let inverse = L::splat(-half) / max;
    let (mut sum_lx, mut sum_l2) = (zero, zero);
    let mut codes = [zero; N];
    for i in 0..N {
        let w = x[i] * x[i];
        let l = clamp(nearest(inverse * x[i]), -half, half - 1.0);
        codes[i] = l;
        sum_lx = sum_lx + w * x[i] * l;
        sum_l2 = sum_l2 + w * l * l;
    }
    for _ in 0..DESCENTS {
        let mut changed = false;
        for i in 0..N {
            let (w, old) = (x[i] * x[i], codes[i]);
            let lx = sum_lx - w * x[i] * old;
            let l2 = sum_l2 - w * old * old;
            let new = clamp(nearest(x[i] * l2 / lx), -half, half - 1.0);
            let moves = some & zero.lt(lx) & !new.eq(old);
            if !L::any(moves) {
                continue;
            }
            let lx = lx + w * x[i] * new;
            let l2 = l2 + w * new * new;
            let better = moves & zero.lt(l2) & (sum_lx * sum_lx * l2).lt(lx * lx * sum_l2);
            changed |= L::any(better);
            codes[i] = L::select(better, new, old);
            sum_lx = L::select(better, lx, sum_lx);
            sum_l2 = L::select(better, l2, sum_l2);
        }
        if !changed {
            break;
        }
    }
    for code in &mut codes {
        *code = L::select(some, *code + L::splat(half), zero);
    }
    (L::select(some & zero.lt(sum_l2), sum_lx / sum_l2, zero), codes)
}

/// Codes `0..=top` for values that should not be negative: trial scales, then one code at a time. Returns the scale and the
/// codes. ggml's `make_qp_quants`, down to negative codes that wrap to a byte.
#[inline(always)]
pub fn positive<L: Lanes, const N: usize>(x: &[L; N], w: &[L; N], top: f32) -> (L, [L; N]) {
    let (zero, one) = (L::splat(0.0), L::splat(1.0));
    let mut max = zero;
    for &x in x {
        max = max.max(x);
    }
    let some = !max.lt(L::splat(TINY));
    let mut inverse = L::splat(top) / max;
    let mut codes = [zero; N];

    let mut least = zero;
    for i in 0..N {
        let e = x[i] - one / inverse * byte(nearest(inverse * x[i]));
        least = least + w[i] * e * e;
    }
    for trial in (-POSITIVE_TRIALS..=POSITIVE_TRIALS).filter(|&t| t != 0) {
        let try_inverse = L::splat(TRIAL * trial as f32 + top) / max;
        let scale = one / try_inverse;
        let mut error = zero;
        for i in 0..N {
            let e = x[i] - scale * L::splat(top).min(nearest(try_inverse * x[i]));
            error = error + w[i] * e * e;
        }
        let better = error.lt(least);
        least = L::select(better, error, least);
        inverse = L::select(better, try_inverse, inverse);
    }

    let (mut sum_lx, mut sum_l2) = (zero, zero);
    for i in 0..N {
        let l = L::splat(top).min(nearest(inverse * x[i]));
        codes[i] = byte(l);
        sum_lx = sum_lx + w[i] * x[i] * l;
        sum_l2 = sum_l2 + w[i] * l * l;
    }
    for _ in 0..DESCENTS {
        let mut changed = false;
        for i in 0..N {
            let old = codes[i];
            let lx = sum_lx - w[i] * x[i] * old;
            let l2 = sum_l2 - w[i] * old * old;
            let new = L::splat(top).min(nearest(x[i] * l2 / lx));
            let moves = some & zero.lt(lx) & zero.lt(l2) & !new.eq(old);
            if !L::any(moves) {
                continue;
            }
            let lx = lx + w[i] * x[i] * new;
            let l2 = l2 + w[i] * new * new;
            let better = moves & (sum_lx * sum_lx * l2).lt(lx * lx * sum_l2);
            changed |= L::any(better);
            codes[i] = L::select(better, byte(new), old);
            sum_lx = L::select(better, lx, sum_lx);
            sum_l2 = L::select(better, l2, sum_l2);
        }
        if !changed {
            break;
        }
    }
    for code in &mut codes {
        *code = L::select(some, *code, zero);
    }
    (L::select(some & zero.lt(sum_l2), sum_lx / sum_l2, zero), codes)
}

/// An integral float modulo 256.
#[inline(always)]
fn byte<L: Lanes>(x: L) -> L {
    use super::lanes::Ints;
    L::from_int(x.truncate() & L::Int::splat(0xff))
}

//! What loops for the widest registers are made of: only fused multiply-adds and exact steps, so that all CPUs agree.

/// Lanes of sums that are kept apart, so that vectors of any width add in the same order.
pub const LANES: usize = 16;

/// Where [`exp`] leaves the normal numbers.
pub const LOWEST: f32 = -87.336_54;
pub const HIGHEST: f32 = 88.722_83;
/// Adding and subtracting 1.5 * 2^23 rounds to an integer.
pub const ROUND: f32 = 12_582_912.0;
/// Minus ln 2 in two parts.
pub const LN_2: [f32; 2] = [-0.693_359_4, 2.121_944_4e-4];
/// Coefficients, the highest power first.
pub const EXP: [f32; 6] = [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e to the x, within 2 units in the last place; 0 below -87.3, infinity above 88.7, NaN for NaN.
/// Source: range reduction by ln 2 in two parts and a minimax polynomial (Cephes `expf`).
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let n = x.mul_add(std::f32::consts::LOG2_E, ROUND) - ROUND;
    let r = n.mul_add(LN_2[0], x);
    let r = n.mul_add(LN_2[1], r);
    let [mut p, rest @ ..] = EXP;
    for c in rest {
        p = p.mul_add(r, c);
    }
    let y = (r * r).mul_add(p, r) + 1.0;
    // In two steps, because 2^128 is no float.
    let n = if (LOWEST..=HIGHEST).contains(&x) { n as i32 } else { 0 };
    let half = n >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    let y = y * power(half) * power(n - half);
    if x < LOWEST {
        0.0
    } else if x > HIGHEST {
        f32::INFINITY
    } else if x.is_nan() {
        x
    } else {
        y
    }
}

/// Sum of `f(x)` in [`LANES`] interleaved sums, added pairwise.
#[inline(always)]
pub fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = xs.as_chunks::<LANES>();
    let mut lanes = [0.0f32; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += f(*x);
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane += f(*x);
    }
    fold(lanes, |a, b| a + b)
}

/// Largest of all; ignores NaN.
#[inline(always)]
pub fn max(xs: &[f32]) -> f32 {
    let (chunks, rest) = xs.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane = if *x > *lane { *x } else { *lane };
        }
    }
    for (lane, x) in lanes.iter_mut().zip(rest) {
        *lane = lane.max(*x);
    }
    fold(lanes, f32::max)
}

#[inline(always)]
fn fold(mut lanes: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = LANES;
    while n > 1 {
        n /= 2;
        for i in 0..n {
            lanes[i] = f(lanes[i], lanes[i + n]);
        }
    }
    lanes[0]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_exact_to_two_units() {
        let mut worst = 0.0f64;
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3 + 1.3e-4;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - exact).abs() / exact);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        assert_eq!((exp(0.0), exp(-100.0), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
        assert_eq!((exp(100.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(88.72).is_finite());
    }

    #[test]
    fn sums_and_maxima_of_all_lengths() {
        for n in 0..70 {
            let xs: Vec<f32> = (0..n).map(|i| (i * 37 % 64) as f32 - 20.0).collect();
            assert_eq!(sum(&xs, |x| x * 2.0), xs.iter().map(|x| x * 2.0).sum::<f32>());
            assert_eq!(max(&xs), xs.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        }
    }
}

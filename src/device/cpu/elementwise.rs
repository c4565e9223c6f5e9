//! What happens between products.

use super::simd::{self, exp};
use crate::arch::Activation;
use crate::widest::widest;

widest! {
    /// `out = x / sqrt(mean(x^2) + eps) * gain`, one row.
    pub fn rms_norm(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) = rms_norm_body;
}

#[inline(always)]
fn rms_norm_body(x: &[f32], gain: &[f32], eps: f32, out: &mut [f32]) {
    let mean = simd::sum(x, |x| x * x) / x.len() as f32;
    let scale = 1.0 / (mean + eps).sqrt();
    for ((out, x), gain) in out.iter_mut().zip(x).zip(gain) {
        *out = x * scale * gain;
    }
}

widest! {
    /// `x += y`
    pub fn add(x: &mut [f32], y: &[f32]) = add_body;
}

#[inline(always)]
fn add_body(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

widest! {
    /// Sum of `x y`, in lanes that are the same on every CPU.
    pub fn dot(x: &[f32], y: &[f32]) -> f32 = dot_body;
}

#[inline(always)]
fn dot_body(x: &[f32], y: &[f32]) -> f32 {
    let mut lanes = [0.0f32; simd::LANES];
    let ((xs, x_rest), (ys, y_rest)) = (x.as_chunks::<{ simd::LANES }>(), y.as_chunks::<{ simd::LANES }>());
    for (x, y) in xs.iter().zip(ys) {
        for ((lane, x), y) in lanes.iter_mut().zip(x).zip(y) {
            *lane = x.mul_add(*y, *lane);
        }
    }
    for ((lane, x), y) in lanes.iter_mut().zip(x_rest).zip(y_rest) {
        *lane = x.mul_add(*y, *lane);
    }
    lanes.iter().sum()
}

/// `gate = activation(gate) * up`
pub fn gate(activation: Activation, gate: &mut [f32], up: &[f32]) {
    match activation {
        Activation::Silu => silu(gate, up),
        Activation::Gelu => gelu(gate, up),
        Activation::ClampedSilu => clamped_silu(gate, up),
    }
}

widest! {
    fn silu(gate: &mut [f32], up: &[f32]) = silu_body;
}

#[inline(always)]
fn silu_body(gate: &mut [f32], up: &[f32]) {
    for (g, u) in gate.iter_mut().zip(up) {
        *g = *g / (1.0 + exp(-*g)) * u;
    }
}

widest! {
    fn clamped_silu(gate: &mut [f32], up: &[f32]) = clamped_silu_body;
}

#[inline(always)]
fn clamped_silu_body(gate: &mut [f32], up: &[f32]) {
    const LIMIT: f32 = Activation::LIMIT;
    for (g, u) in gate.iter_mut().zip(up) {
        let (x, u) = (g.min(LIMIT), u.clamp(-LIMIT, LIMIT));
        *g = x / (1.0 + exp(Activation::SLOPE * -x)) * (u + 1.0);
    }
}

/// Of the tanh approximation of GELU.
pub const TWICE_SQRT_2_OVER_PI: f32 = 1.595_769;
pub const CUBE: f32 = 0.044_715;

widest! {
    fn gelu(gate: &mut [f32], up: &[f32]) = gelu_body;
}

#[inline(always)]
fn gelu_body(gate: &mut [f32], up: &[f32]) {
    // (1 + tanh y) / 2 is the logistic function of 2y; this side of it does not cancel.
    for (g, u) in gate.iter_mut().zip(up) {
        let x = *g;
        *g = x / (1.0 + exp(-(TWICE_SQRT_2_OVER_PI * x * (1.0 + CUBE * x * x)))) * u;
    }
}

#[inline(always)]
fn tanh(x: f32) -> f32 {
    1.0 - 2.0 / (1.0 + exp(2.0 * x))
}

widest! {
    /// `x = cap * tanh(x / cap)`
    pub fn softcap(x: &mut [f32], cap: f32) = softcap_body;
}

#[inline(always)]
fn softcap_body(x: &mut [f32], cap: f32) {
    for x in x {
        *x = cap * tanh(*x / cap);
    }
}

widest! {
    /// Turns scores into `e^(score - largest)` and returns the sum of these; all -infinity gives zeros and 0.
    pub fn softmax(scores: &mut [f32]) -> f32 = softmax_body;
}

#[inline(always)]
fn softmax_body(scores: &mut [f32]) -> f32 {
    let largest = simd::max(scores);
    if largest == f32::NEG_INFINITY {
        scores.fill(0.0);
        return 0.0;
    }
    for x in scores.iter_mut() {
        *x = exp(*x - largest);
    }
    simd::sum(scores, |x| x)
}

widest! {
    /// Whether no element is infinite or NaN.
    pub fn is_finite(x: &[f32]) -> bool = is_finite_body;
}

#[inline(always)]
fn is_finite_body(x: &[f32]) -> bool {
    // The largest magnitude's exponent tells for all, without a branch an element.
    x.iter().fold(0, |most, x| (x.to_bits() & 0x7fff_ffff).max(most)) < f32::INFINITY.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ramp(n: usize) -> Vec<f32> {
        (0..n).map(|i| (i as f32 - n as f32 / 2.0) * 0.37).collect()
    }

    fn close(got: f32, exact: f64) {
        assert!((f64::from(got) - exact).abs() <= 1e-6 * exact.abs().max(1e-2), "{got} {exact}");
    }

    #[test]
    fn functions_follow_their_formulas() {
        let x = ramp(53);
        let up: Vec<f32> = x.iter().map(|x| x * 0.5 + 1.0).collect();
        let (mut a, mut b, mut c, mut d) = (x.clone(), x.clone(), x.clone(), x.clone());
        gate(Activation::Silu, &mut a, &up);
        gate(Activation::Gelu, &mut b, &up);
        gate(Activation::ClampedSilu, &mut d, &up);
        softcap(&mut c, 5.0);
        for (i, x) in x.iter().map(|x| f64::from(*x)).enumerate() {
            let u = f64::from(up[i]);
            close(a[i], x / (1.0 + (-x).exp()) * u);
            close(
                b[i],
                0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh()) * u,
            );
            close(c[i], 5.0 * (x / 5.0).tanh());
            let clamped = x.min(7.0);
            close(d[i], clamped / (1.0 + (-1.702 * clamped).exp()) * (u.clamp(-7.0, 7.0) + 1.0));
        }
        let mut p = x.clone();
        let sum = f64::from(softmax(&mut p));
        let exact: f64 = x.iter().map(|x| f64::from(*x).exp()).sum();
        p.iter().zip(&x).for_each(|(p, x)| close((f64::from(*p) / sum) as f32, f64::from(*x).exp() / exact));
        let mut out = vec![0.0; 53];
        rms_norm(&x, &up, 1e-5, &mut out);
        let rms = (x.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 53.0 + 1e-5).sqrt();
        (0..53).for_each(|i| close(out[i], f64::from(x[i]) / rms * f64::from(up[i])));
    }

    #[test]
    fn wide_loops_give_the_bits_of_plain_ones() {
        let x = ramp(1001);
        let (mut a, mut b) = (x.clone(), x.clone());
        assert_eq!(softmax(&mut a).to_bits(), softmax_body(&mut b).to_bits());
        gate(Activation::Gelu, &mut a, &x);
        gelu_body(&mut b, &x);
        gate(Activation::Silu, &mut a, &x);
        silu_body(&mut b, &x);
        assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()));
    }

    #[test]
    fn whatever_is_not_finite_is_seen() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = ramp(37);
            assert!(is_finite(&x));
            x[36] = bad;
            assert!(!is_finite(&x));
        }
        assert_eq!(softmax(&mut [f32::NEG_INFINITY; 3]), 0.0);
    }
}

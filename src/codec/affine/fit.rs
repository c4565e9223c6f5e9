//! The scale of a group: candidates from the group's range, shrunk step by step, then the least-squares scale of the best one's
//! codes; where the offset is free, that of each candidate's codes. Every candidate is judged as it will be stored, by its
//! weighted squared error.

use super::{Scheme, Zero};
use crate::codec::facts::Number;
use crate::codec::grid::Scale;
use crate::widest::widest;

/// How far the range may shrink: cutting off an outlier can pay for finer steps.
const SHRINK: f32 = 0.025;
const SHRUNK: usize = 20;
/// Running sums of an error.
pub const LANES: usize = 8;
/// The least step that MLX takes.
const LEAST: f32 = 1e-7;

/// The numbers that it is made of, by the names that `kernels/` has for them.
pub fn numbers() -> Vec<(&'static str, Number)> {
    vec![
        ("FIT_SHRINK", Number::Float(SHRINK)),
        ("FIT_SHRUNK", Number::Int(SHRUNK as i32)),
        ("FIT_LANES", Number::Int(LANES as i32)),
        ("FIT_LEAST", Number::Float(LEAST)),
        ("FIT_MIDDLE", Number::Int(Zero::Middle as i32)),
        ("FIT_CODE", Number::Int(Zero::Code as i32)),
        ("FIT_FREE", Number::Int(Zero::Free as i32)),
    ]
}

widest! {
    /// Returns a scale as it is stored, its step finite and not zero.
    pub fn group(scheme: &Scheme, w: &[f32], importance: Option<&[f32]>) -> Scale = group_body;
}

#[inline(always)]
fn group_body(scheme: &Scheme, w: &[f32], importance: Option<&[f32]>) -> Scale {
    // All weights are zero: any step will do, and one of 1 cannot trouble a kernel.
    let blank = scheme.at_zero(1.0);
    let (mut low, mut high) = w.iter().fold((f32::MAX, f32::MIN), |(low, high), w| (low.min(*w), high.max(*w)));
    if scheme.zero() != Zero::Free || low >= high {
        (low, high) = (low.min(0.0), high.max(0.0));
    }
    if low >= high {
        return blank;
    }
    let importance = importance.filter(|i| i.iter().any(|x| *x > 0.0));
    let mut search = Search { scheme, w, importance, best: (f32::INFINITY, blank) };
    for n in 0..=SHRUNK {
        let share = 1.0 - SHRINK * n as f32;
        match scheme.zero() {
            Zero::Middle => search.symmetric(low * share, high * share),
            Zero::Code => search.asymmetric(low * share, high * share),
            Zero::Free => search.free(low, high, share),
        }
    }
    search.refine();
    search.best.1
}

/// The same from the range alone.
pub fn largest(scheme: &Scheme, w: &[f32]) -> Scale {
    let (low, high) = w.iter().fold((0f32, 0f32), |(low, high), w| (low.min(*w), high.max(*w)));
    let top = scheme.top() as f32;
    if low == high {
        return scheme.at_zero(1.0);
    }
    match scheme.zero() {
        Zero::Middle => scheme.at_zero(scheme.storable(high.max(-low) / (top / 2.0))),
        Zero::Code => {
            let step = scheme.storable((high - low) / top);
            Scale { step, zero: (-low / step).round_ties_even().clamp(0.0, top), offset: 0.0 }
        }
        Zero::Free => storable(scheme, mlx(w, top)),
    }
}

/// As MLX does it: the end of the range that is farther from zero is kept, and zero is a value.
fn mlx(w: &[f32], top: f32) -> Scale {
    let (low, high) = w.iter().fold((f32::MAX, f32::MIN), |(low, high), w| (low.min(*w), high.max(*w)));
    let below = low.abs() > high.abs();
    let step = ((high - low) / top).max(LEAST);
    let (edge, step) = if below { (low, step) } else { (high, -step) };
    match (edge / step).round_ties_even() {
        0.0 => Scale { step, zero: 0.0, offset: 0.0 },
        codes => Scale { step: edge / codes, zero: 0.0, offset: edge },
    }
}

struct Search<'a> {
    scheme: &'a Scheme,
    w: &'a [f32],
    importance: Option<&'a [f32]>,
    /// And its error.
    best: (f32, Scale),
}

impl Search<'_> {
    /// There is one code more below the zero than above it: the larger side gets it, by the sign of the scale.
    #[inline(always)]
    fn symmetric(&mut self, low: f32, high: f32) {
        let zero = f32::from(self.scheme.middle());
        let (below, above) = (zero, zero - 1.0);
        self.candidate((-low / below).max(high / above), zero);
        self.candidate(-(high / below).max(-low / above), zero);
    }

    #[inline(always)]
    fn asymmetric(&mut self, low: f32, high: f32) {
        let top = self.scheme.top() as f32;
        let step = (high - low) / top;
        let zero = (-low / step).round_ties_even().clamp(0.0, top);
        self.candidate(step, zero);
        // Where codes are few, the next zero may be the better one.
        if self.scheme.bits <= 3 {
            self.candidate(step, (zero - 1.0).max(0.0));
            self.candidate(step, (zero + 1.0).min(top));
        }
    }

    /// The range shrinks towards its middle.
    #[inline(always)]
    fn free(&mut self, low: f32, high: f32, share: f32) {
        let top = self.scheme.top() as f32;
        let middle = low / 2.0 + high / 2.0;
        let (low, high) = (middle + (low - middle) * share, middle + (high - middle) * share);
        let range = Scale { step: high / top - low / top, zero: 0.0, offset: low };
        if share == 1.0 {
            self.judge(range);
        }
        self.line(range);
    }

    #[inline(always)]
    fn candidate(&mut self, step: f32, zero: f32) {
        self.judge(Scale { step, zero, offset: 0.0 });
    }

    #[inline(always)]
    fn judge(&mut self, scale: Scale) {
        let scale = storable(self.scheme, scale);
        let error = self.error(scale);
        if error < self.best.0 {
            self.best = (error, scale);
        }
    }

    #[inline(always)]
    fn refine(&mut self) {
        let scale = self.best.1;
        if self.scheme.zero() == Zero::Free {
            return self.line(scale);
        }
        let (mut along, mut square) = (0.0, 0.0);
        for (n, w) in self.w.iter().enumerate() {
            let importance = self.importance.map_or(1.0, |i| i[n]);
            let q = code(*w, scale.step.recip(), scale, self.scheme.top()) - scale.zero;
            along += importance * q * w;
            square += importance * q * q;
        }
        if square > 0.0 && (along / square).is_finite() {
            self.candidate(along / square, scale.zero);
        }
    }

    /// The line `step * code + offset` that is nearest to the weights, through the codes that `scale` gives them. Groups with an
    /// offset of their own are of 32 and more.
    #[inline(always)]
    fn line(&mut self, scale: Scale) {
        let (inverse, top) = (scale.step.recip(), self.scheme.top());
        // Around the middle of the codes, so that no sum cancels another.
        let center = top as f32 / 2.0;
        let mut sums = [[0.0; LANES]; 5];
        for (n, w) in self.w.as_chunks::<LANES>().0.iter().enumerate() {
            let i = self.importance.map_or([1.0; LANES], |i| i.as_chunks::<LANES>().0[n]);
            let q = w.map(|w| code(w, inverse, scale, top) - center);
            let times =
                |a: &[f32; LANES], b: &[f32; LANES]| -> [f32; LANES] { std::array::from_fn(|lane| a[lane] * b[lane]) };
            let iq = times(&i, &q);
            let products = [i, iq, times(&iq, &q), times(&i, w), times(&iq, w)];
            for (sums, product) in sums.iter_mut().zip(&products) {
                sums.iter_mut().zip(product).for_each(|(sum, x)| *sum += x);
            }
        }
        let [i, q, qq, w, qw] = sums.map(|lanes| lanes.iter().sum::<f32>());
        let determinant = i * qq - q * q;
        let step = (i * qw - q * w) / determinant;
        let offset = (w - step * q) / i - step * center;
        if determinant > 0.0 && step.is_finite() && step != 0.0 && offset.is_finite() {
            self.judge(Scale { step, zero: 0.0, offset });
        }
    }

    #[inline(always)]
    fn error(&self, scale: Scale) -> f32 {
        let (inverse, top) = (scale.step.recip(), self.scheme.top());
        let off = |w: f32| {
            let error = w - scale.value(code(w, inverse, scale, top));
            error * error
        };
        match self.importance {
            None => sum(self.w.len(), |n| off(self.w[n])),
            Some(importance) => sum(self.w.len().min(importance.len()), |n| importance[n] * off(self.w[n])),
        }
    }
}

/// In running sums, which become one vector.
#[inline(always)]
fn sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; LANES];
    for n in (0..len - len % LANES).step_by(LANES) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(n + lane);
        }
    }
    let rest: f32 = (len - len % LANES..len).map(term).sum();
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn code(w: f32, inverse: f32, scale: Scale, top: usize) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction: rounds to nearest even, in any instruction set.
    const WHOLE: f32 = 12_582_912.0;
    let code = ((w - scale.offset) * inverse + scale.zero).clamp(0.0, top as f32);
    (code + WHOLE) - WHOLE
}

#[inline(always)]
fn storable(scheme: &Scheme, scale: Scale) -> Scale {
    let offset = if scale.offset == 0.0 { 0.0 } else { scheme.storable(scale.offset) };
    Scale { step: scheme.storable(scale.step), zero: scale.zero, offset }
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::codec::affine::Family;

    fn scheme(bits: usize, symmetric: bool) -> Scheme {
        Scheme { family: Family::Packed, bits, group: Some(32), symmetric, scales: Dtype::F16 }
    }

    fn free(bits: usize) -> Scheme {
        Scheme { family: Family::Mlx, ..scheme(bits, false) }
    }

    #[test]
    fn the_larger_side_has_the_extra_code() {
        for sign in [1.0, -1.0] {
            let mut w = [0.0; 32];
            w.iter_mut().enumerate().for_each(|(i, w)| *w = sign * (i % 16) as f32 / 2.0 - sign * 8.0 / 2.0);
            let scale = group(&scheme(4, true), &w, None);
            assert_eq!((scale.step, scale.zero), (0.5 * sign, 8.0), "-8 to 7 halves, and mirrored");
        }
    }

    #[test]
    fn asymmetric_ranges_use_all_codes() {
        let w: Vec<f32> = (0..32).map(|i| (i % 16) as f32 * 0.25 - 0.75).collect();
        assert_eq!(group(&scheme(4, false), &w, None), Scale { step: 0.25, zero: 3.0, offset: 0.0 });
        // A range that does not reach zero is stretched to it.
        let w: Vec<f32> = (0..32).map(|i| 7.0 + (i % 2) as f32 * 8.0).collect();
        assert_eq!(group(&scheme(4, false), &w, None), Scale { step: 1.0, zero: 0.0, offset: 0.0 });
        // Unless it need not reach it.
        let w: Vec<f32> = (0..32).map(|i| 7.0 + (i % 16) as f32 / 2.0).collect();
        assert_eq!(group(&free(4), &w, None), Scale { step: 0.5, zero: 0.0, offset: 7.0 });
    }

    #[test]
    fn zeros_and_extremes_give_usable_scales() {
        for scheme in [scheme(4, true), scheme(4, false), free(4), free(8)] {
            for scales in [Dtype::F16, Dtype::BF16, Dtype::F32] {
                let scheme = Scheme { scales, ..scheme };
                for w in [0.0, -0.0, 1e-44, -1e-30, 1e-9, 3e38, -3e38] {
                    for (rest, name) in [(0.0, "alone"), (w, "all"), (-w, "both signs")] {
                        let mut weights = [rest; 32];
                        weights[3] = w;
                        let Scale { step, offset, .. } = group(&scheme, &weights, Some(&[0.0; 32]));
                        assert!(step.is_finite() && step != 0.0, "{w:e} {name} {scheme:?}: {step}");
                        assert!(offset.is_finite(), "{w:e} {name} {scheme:?}: {offset}");
                        assert_eq!((scheme.stored(step), scheme.stored(offset)), (step, offset));
                    }
                }
            }
        }
    }

    #[test]
    fn importance_decides_what_is_cut_off() {
        let mut w = [0.1; 32];
        w.iter_mut().enumerate().for_each(|(i, w)| *w *= (i as f32 - 16.0) / 16.0);
        w[0] = 1.0;
        for scheme in [scheme(3, true), scheme(3, false), free(3)] {
            let error = |importance: &[f32; 32], column: usize| {
                let scale = group(&scheme, &w, Some(importance));
                (w[column] - scale.value(code(w[column], scale.step.recip(), scale, 7))).abs()
            };
            let mut importance = [1.0; 32];
            let before = error(&importance, 0);
            importance[0] = 1e-6;
            assert!(error(&importance, 0) > before, "{scheme:?}");
        }
    }

    /// Scales and biases that mx.quantize 0.32.4 gives.
    #[test]
    fn the_plain_free_offset_is_that_of_mlx() {
        for sign in [1.0, -1.0] {
            let w: Vec<f32> = (0..32).map(|i| sign * (((i * 37 + 11) % 64) as f32 - 20.0) / 64.0).collect();
            for (bits, step) in [(2, -0.320_312_5), (4, -0.064_062_5), (8, -0.003_746_345)] {
                let scheme = Scheme { scales: Dtype::F32, ..free(bits) };
                let expected = Scale { step: sign * step, zero: 0.0, offset: sign * 0.640_625 };
                assert_eq!(largest(&scheme, &w), expected);
            }
        }
    }

    #[test]
    fn a_free_offset_is_used() {
        let mut state = 3u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32
        };
        for (bits, share) in [(2, 0.7), (3, 0.8), (4, 0.9), (5, 0.95), (6, 0.95), (8, 0.99)] {
            let scheme = Scheme { scales: Dtype::BF16, ..free(bits) };
            let (mut ours, mut theirs) = (0.0, 0.0);
            for _ in 0..50 {
                // Roughly normal.
                let w: Vec<f32> = (0..64).map(|_| (0..6).map(|_| next()).sum::<f32>() - 2.9).collect();
                let error = |scale: Scale| -> f32 {
                    let value = |w: &f32| scale.value(code(*w, scale.step.recip(), scale, scheme.top()));
                    w.iter().map(|w| (w - value(w)).powi(2)).sum()
                };
                ours += error(group(&scheme, &w, None));
                theirs += error(largest(&scheme, &w));
            }
            assert!(ours < share * theirs, "{bits} bits: {ours}, {theirs}");
        }
    }
}

//! The scale and zero of a group: candidates from the group's range, shrunk step by step, then the least-squares scale of the
//! best one's codes. Every candidate is judged as it will be stored, by its weighted squared error.

use super::Scheme;

/// How far the range may shrink: cutting off an outlier can pay for finer steps.
const SHRINK: f32 = 0.025;
const SHRUNK: usize = 20;

/// Returns the scale, which is finite and not zero, and the zero.
pub fn group(scheme: &Scheme, w: &[f32], importance: Option<&[f32]>) -> (f32, u8) {
    let (low, high) = w.iter().fold((0f32, 0f32), |(low, high), w| (low.min(*w), high.max(*w)));
    if low == high {
        // All weights are zero: any scale will do, and one of 1 cannot trouble a kernel.
        return (1.0, scheme.middle());
    }
    let importance = importance.filter(|i| i.iter().any(|x| *x > 0.0));
    let mut search = Search { scheme, w, importance, best: (f32::INFINITY, 1.0, scheme.middle()) };
    for n in 0..=SHRUNK {
        let share = 1.0 - SHRINK * n as f32;
        if scheme.symmetric {
            search.symmetric(low * share, high * share);
        } else {
            search.asymmetric(low * share, high * share);
        }
    }
    search.refine();
    (search.best.1, search.best.2)
}

/// The same from the range alone.
pub fn largest(scheme: &Scheme, w: &[f32]) -> (f32, u8) {
    let (low, high) = w.iter().fold((0f32, 0f32), |(low, high), w| (low.min(*w), high.max(*w)));
    let top = scheme.top() as f32;
    match (low == high, scheme.symmetric) {
        (true, _) => (1.0, scheme.middle()),
        (false, true) => (scheme.storable(high.max(-low) / (top / 2.0)), scheme.middle()),
        (false, false) => {
            let scale = scheme.storable((high - low) / top);
            (scale, (-low / scale).round_ties_even().clamp(0.0, top) as u8)
        }
    }
}

struct Search<'a> {
    scheme: &'a Scheme,
    w: &'a [f32],
    importance: Option<&'a [f32]>,
    /// Error, scale, zero.
    best: (f32, f32, u8),
}

impl Search<'_> {
    /// There is one code more below the zero than above it: the larger side gets it, by the sign of the scale.
    fn symmetric(&mut self, low: f32, high: f32) {
        let middle = self.scheme.middle();
        let (below, above) = (f32::from(middle), f32::from(middle) - 1.0);
        self.candidate((-low / below).max(high / above), middle);
        self.candidate(-(high / below).max(-low / above), middle);
    }

    fn asymmetric(&mut self, low: f32, high: f32) {
        let top = self.scheme.top() as f32;
        let scale = (high - low) / top;
        let zero = (-low / scale).round_ties_even().clamp(0.0, top);
        self.candidate(scale, zero as u8);
        // Where codes are few, the next zero may be the better one.
        if self.scheme.bits <= 3 {
            self.candidate(scale, (zero - 1.0).max(0.0) as u8);
            self.candidate(scale, (zero + 1.0).min(top) as u8);
        }
    }

    fn candidate(&mut self, scale: f32, zero: u8) {
        let scale = self.scheme.storable(scale);
        let error = self.error(scale, zero);
        if error < self.best.0 {
            self.best = (error, scale, zero);
        }
    }

    fn refine(&mut self) {
        let (_, scale, zero) = self.best;
        let (mut along, mut square) = (0.0, 0.0);
        for (n, w) in self.w.iter().enumerate() {
            let importance = self.importance.map_or(1.0, |i| i[n]);
            let q = code(*w, scale.recip(), zero, self.scheme.top()) - f32::from(zero);
            along += importance * q * w;
            square += importance * q * q;
        }
        if square > 0.0 && (along / square).is_finite() {
            self.candidate(along / square, zero);
        }
    }

    fn error(&self, scale: f32, zero: u8) -> f32 {
        let (inverse, top) = (scale.recip(), self.scheme.top());
        let off = |w: f32| {
            let error = w - (code(w, inverse, zero, top) - f32::from(zero)) * scale;
            error * error
        };
        match self.importance {
            None => sum(self.w.len(), |n| off(self.w[n])),
            Some(importance) => sum(self.w.len().min(importance.len()), |n| importance[n] * off(self.w[n])),
        }
    }
}

/// In eight running sums, which become one vector.
#[inline(always)]
fn sum(len: usize, term: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0; 8];
    for n in (0..len - len % 8).step_by(8) {
        for (lane, sum) in sums.iter_mut().enumerate() {
            *sum += term(n + lane);
        }
    }
    let rest: f32 = (len - len % 8..len).map(term).sum();
    sums.iter().sum::<f32>() + rest
}

#[inline(always)]
fn code(w: f32, inverse: f32, zero: u8, top: usize) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction: rounds to nearest even, in any instruction set.
    const WHOLE: f32 = 12_582_912.0;
    let code = (w * inverse + f32::from(zero)).clamp(0.0, top as f32);
    (code + WHOLE) - WHOLE
}

#[cfg(test)]
mod tests {
    use safetensors::Dtype;

    use super::*;
    use crate::codec::affine::Family;

    fn scheme(bits: usize, symmetric: bool) -> Scheme {
        Scheme { family: Family::Packed, bits, group: Some(32), symmetric, scales: Dtype::F16 }
    }

    #[test]
    fn the_larger_side_has_the_extra_code() {
        for sign in [1.0, -1.0] {
            let mut w = [0.0; 32];
            w.iter_mut().enumerate().for_each(|(i, w)| *w = sign * (i % 16) as f32 / 2.0 - sign * 8.0 / 2.0);
            let (scale, zero) = group(&scheme(4, true), &w, None);
            assert_eq!((scale, zero), (0.5 * sign, 8), "-8 to 7 halves, and mirrored");
        }
    }

    #[test]
    fn asymmetric_ranges_use_all_codes() {
        let w: Vec<f32> = (0..32).map(|i| (i % 16) as f32 * 0.25 - 0.75).collect();
        assert_eq!(group(&scheme(4, false), &w, None), (0.25, 3));
        // A range that does not reach zero is stretched to it.
        let w: Vec<f32> = (0..32).map(|i| 7.0 + (i % 2) as f32 * 8.0).collect();
        assert_eq!(group(&scheme(4, false), &w, None), (1.0, 0));
    }

    #[test]
    fn zeros_and_extremes_give_usable_scales() {
        for symmetric in [true, false] {
            for scales in [Dtype::F16, Dtype::BF16, Dtype::F32] {
                let scheme = Scheme { scales, ..scheme(4, symmetric) };
                for w in [0.0, -0.0, 1e-44, -1e-30, 1e-9, 3e38, -3e38] {
                    let mut weights = [0.0; 32];
                    weights[3] = w;
                    let (scale, _) = group(&scheme, &weights, Some(&[0.0; 32]));
                    assert!(scale.is_finite() && scale != 0.0, "{w:e} {scales}: {scale}");
                    assert_eq!(scheme.stored(scale), scale);
                }
            }
        }
    }

    #[test]
    fn importance_decides_what_is_cut_off() {
        let mut w = [0.1; 32];
        w.iter_mut().enumerate().for_each(|(i, w)| *w *= (i as f32 - 16.0) / 16.0);
        w[0] = 1.0;
        let mut importance = [1.0; 32];
        let error = |importance: &[f32; 32], column: usize| {
            let (scale, zero) = group(&scheme(3, true), &w, Some(importance));
            (w[column] - (code(w[column], 1.0 / scale, zero, 7) - f32::from(zero)) * scale).abs()
        };
        let before = error(&importance, 0);
        importance[0] = 1e-6;
        assert!(error(&importance, 0) > before);
    }
}

//! How many directions an activation has, and how unequal they are.

use serde::Serialize;

use super::stats::Gram;

#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spectrum {
    /// (sum of eigenvalues)^2 / sum of their squares: the number of equal directions that would be as concentrated.
    pub effective_rank: f64,
    /// Largest over smallest eigenvalue, a lower bound; infinite where there are fewer tokens than inputs.
    #[serde(serialize_with = "finite")]
    pub condition: f64,
}

/// JSON has no infinity.
fn finite<S: serde::Serializer>(x: &f64, s: S) -> Result<S::Ok, S::Error> {
    if x.is_finite() { s.serialize_some(x) } else { s.serialize_none() }
}

/// Steps of the iteration.
const STEPS: usize = 24;

pub fn of(gram: &Gram<'_>, tokens: u64) -> Spectrum {
    let n = gram.columns();
    let (mut trace, mut squares) = (0.0, 0.0);
    for i in 0..n {
        let row = gram.row(i);
        let diagonal = f64::from(row[0]);
        trace += diagonal;
        squares += diagonal * diagonal + 2.0 * row[1..].iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>();
    }
    let effective_rank = if squares > 0.0 { trace * trace / squares } else { 0.0 };
    let condition = if tokens < n as u64 { f64::INFINITY } else { condition(gram) };
    Spectrum { effective_rank, condition }
}

/// By Lanczos' iteration: the extreme eigenvalues of a small tridiagonal matrix lie within those of the large one.
fn condition(gram: &Gram<'_>) -> f64 {
    let n = gram.columns();
    let (mut diagonal, mut beside): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    // Any start that is orthogonal to no eigenvector will do.
    let mut v: Vec<f64> = (0..n).map(|i| 1.0 + 0.5 * ((i as f64 * 1.618).fract() - 0.5)).collect();
    let mut before = vec![0.0; n];
    normalize(&mut v);
    for _ in 0..STEPS.min(n) {
        let mut w = multiply(gram, &v);
        let a = dot(&w, &v);
        let b = beside.last().copied().unwrap_or(0.0);
        for ((w, v), before) in w.iter_mut().zip(&v).zip(&before) {
            *w -= a * v + b * before;
        }
        diagonal.push(a);
        before = std::mem::replace(&mut v, w);
        let b = normalize(&mut v);
        if b <= 1e-12 * a.abs() {
            break;
        }
        beside.push(b);
    }
    let (low, high) = extremes(&diagonal, &beside);
    if low > high * 1e-12 { high / low } else { f64::INFINITY }
}

fn multiply(gram: &Gram<'_>, v: &[f64]) -> Vec<f64> {
    let mut out = vec![0.0; v.len()];
    for i in 0..v.len() {
        let row = gram.row(i);
        let own = v[i];
        let mut sum = f64::from(row[0]) * own;
        for ((x, v), out) in row[1..].iter().zip(&v[i + 1..]).zip(&mut out[i + 1..]) {
            let x = f64::from(*x);
            sum += x * v;
            *out += x * own;
        }
        out[i] += sum;
    }
    out
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn normalize(v: &mut [f64]) -> f64 {
    let norm = dot(v, v).sqrt();
    if norm > 0.0 {
        v.iter_mut().for_each(|x| *x /= norm);
    }
    norm
}

/// Smallest and largest eigenvalue of a symmetric tridiagonal matrix, by counting sign changes and halving.
fn extremes(diagonal: &[f64], beside: &[f64]) -> (f64, f64) {
    let b = |i: usize| beside.get(i).copied().unwrap_or(0.0);
    // Gershgorin's circles hold all of them.
    let radius = |i: usize| (if i > 0 { b(i - 1) } else { 0.0 }) + if i + 1 < diagonal.len() { b(i) } else { 0.0 };
    let low = diagonal.iter().enumerate().map(|(i, d)| d - radius(i)).fold(f64::INFINITY, f64::min);
    let high = diagonal.iter().enumerate().map(|(i, d)| d + radius(i)).fold(f64::NEG_INFINITY, f64::max);
    let below = |x: f64| {
        let (mut count, mut q) = (0, 1.0);
        for (i, d) in diagonal.iter().enumerate() {
            let b = if i > 0 { b(i - 1) } else { 0.0 };
            q = d - x - b * b / if q == 0.0 { f64::MIN_POSITIVE } else { q };
            count += usize::from(q < 0.0);
        }
        count
    };
    let find = |rank: usize| {
        let (mut low, mut high) = (low, high);
        for _ in 0..100 {
            let middle = (low + high) / 2.0;
            if below(middle) > rank { high = middle } else { low = middle }
        }
        (low + high) / 2.0
    };
    (find(0), find(diagonal.len().saturating_sub(1)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(n: usize, value: impl Fn(usize, usize) -> f32) -> Vec<f32> {
        (0..n).flat_map(|i| (i..n).map(move |j| (i, j))).map(|(i, j)| value(i, j)).collect()
    }

    #[test]
    fn known_spectra() {
        // 1, 2 ... 8 on the diagonal.
        let values = packed(8, |i, j| if i == j { i as f32 + 1.0 } else { 0.0 });
        let found = of(&Gram::new(8, values.into()).unwrap(), 100);
        assert!((found.effective_rank - 36.0 * 36.0 / 204.0).abs() < 1e-9);
        assert!((found.condition - 8.0).abs() < 1e-6, "{found:?}");
        // Second differences: 2 - 2 cos(k pi / 13).
        let values = packed(12, |i, j| if i == j { 2.0 } else { -f32::from(j == i + 1) });
        let found = of(&Gram::new(12, values.into()).unwrap(), 100);
        let value = |k: f64| 2.0 - 2.0 * (k * std::f64::consts::PI / 13.0).cos();
        assert!((found.condition / (value(12.0) / value(1.0)) - 1.0).abs() < 1e-6, "{found:?}");
        // One direction only.
        let values = packed(5, |i, j| (i + 1) as f32 * (j + 1) as f32);
        let found = of(&Gram::new(5, values.into()).unwrap(), 100);
        assert!((found.effective_rank - 1.0).abs() < 1e-6 && found.condition > 1e9, "{found:?}");
        assert_eq!(of(&Gram::new(1, vec![3.0].into()).unwrap(), 0).condition, f64::INFINITY);
    }
}

//! One device held to another: what is compared, and how it went.

use crate::error::Result;

/// One operation on one kind of numbers and a few shapes.
pub struct Check<On: ?Sized> {
    pub op: &'static str,
    /// The format, or what else the op is compiled for.
    pub of: String,
    /// Sizes that are gone through.
    pub shape: String,
    pub dtype: &'static str,
    /// The largest difference, as a share of the largest number that was expected; 0: every bit is the CPU's.
    pub allowed: f64,
    run: Box<Run<On>>,
}

type Run<On> = dyn Fn(&On) -> Result<Difference> + Send + Sync;

/// What a device did otherwise.
#[derive(Clone, Copy, Debug, Default)]
pub struct Difference {
    pub numbers: usize,
    pub differ: usize,
    /// As [`Check::allowed`] counts it.
    pub worst: f64,
}

impl<On: ?Sized> Check<On> {
    pub fn new(
        (op, of): (&'static str, &str),
        shape: &str,
        dtype: &'static str,
        allowed: f64,
        run: impl Fn(&On) -> Result<Difference> + Send + Sync + 'static,
    ) -> Check<On> {
        Check { op, of: of.to_owned(), shape: shape.to_owned(), dtype, allowed, run: Box::new(run) }
    }

    pub fn run(&self, on: &On) -> Result<Difference> {
        (self.run)(on)
    }

    pub fn passes(&self, found: &Difference) -> bool {
        found.numbers > 0 && if self.allowed == 0.0 { found.differ == 0 } else { found.worst <= self.allowed }
    }
}

impl Difference {
    pub fn of(got: impl IntoIterator<Item = f64>, expected: impl IntoIterator<Item = f64>) -> Difference {
        let (mut out, mut largest, mut worst) = (Difference::default(), 0f64, 0f64);
        for (got, expected) in got.into_iter().zip(expected) {
            out.numbers += 1;
            out.differ += usize::from(got.to_bits() != expected.to_bits() && !(got.is_nan() && expected.is_nan()));
            largest = largest.max(expected.abs());
            // A number in the place of none, or none in the place of one, is as wrong as can be.
            let off = if got.is_nan() != expected.is_nan() { f64::INFINITY } else { (got - expected).abs() };
            worst = if off.is_nan() { worst } else { worst.max(off) };
        }
        out.worst = if worst == 0.0 { 0.0 } else { worst / largest.max(f64::MIN_POSITIVE) };
        out
    }

    pub fn singles(got: &[f32], expected: &[f32]) -> Difference {
        assert_eq!(got.len(), expected.len());
        Difference::of(got.iter().map(|x| f64::from(*x)), expected.iter().map(|x| f64::from(*x)))
    }

    pub fn bytes(got: &[u8], expected: &[u8]) -> Difference {
        assert_eq!(got.len(), expected.len());
        Difference::of(got.iter().map(|x| f64::from(*x)), expected.iter().map(|x| f64::from(*x)))
    }

    pub fn and(self, other: Difference) -> Difference {
        Difference {
            numbers: self.numbers + other.numbers,
            differ: self.differ + other.differ,
            worst: self.worst.max(other.worst),
        }
    }
}

/// Numbers from -1 to 1, the same ones always.
pub fn noise(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Any bytes, the same ones always.
pub fn bytes(n: usize, seed: u32) -> Vec<u8> {
    noise(n, seed).iter().map(|x| (x.to_bits() >> 3) as u8).collect()
}

//! The arithmetic that every encoder is written in: `N` blocks at once, one per lane.
//!
//! Lanes never talk to each other and no operation fuses or reorders, so a lane computes bit for bit what a scalar program
//! would: [`plain`] (`N = 1`) and the vector instantiations give the same bytes.

pub(in super::super) mod plain;

#[cfg(target_arch = "x86_64")]
pub(in super::super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(in super::super) mod avx512;

use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Shl, Shr, Sub};

/// No instantiation has more lanes.
pub const MAX_LANES: usize = 16;

/// One IEEE single per lane.
pub trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self> + Neg<Output = Self>
{
    const N: usize;
    /// Eight lanes or fewer, for what does not fill more.
    type Narrow: Lanes;
    type Int: Ints;
    type Mask: Copy + BitAnd<Output = Self::Mask> + BitOr<Output = Self::Mask> + Not<Output = Self::Mask>;

    fn splat(x: f32) -> Self;
    /// The first `N`.
    fn from_array(lanes: &[f32; MAX_LANES]) -> Self;

    /// `if self < other { self } else { other }`: says which of two zeros, and which operand when one is NaN.
    fn min(self, other: Self) -> Self;
    /// `if self > other { self } else { other }`.
    fn max(self, other: Self) -> Self;
    fn abs(self) -> Self;
    fn sqrt(self) -> Self;

    fn lt(self, other: Self) -> Self::Mask;
    fn eq(self, other: Self) -> Self::Mask;
    fn any(mask: Self::Mask) -> bool;
    fn select(mask: Self::Mask, yes: Self, no: Self) -> Self;
    /// `value` where the mask holds, else 0.
    fn keep(mask: Self::Mask, value: Self::Int) -> Self::Int;

    fn bits(self) -> Self::Int;
    fn from_bits(bits: Self::Int) -> Self;
    /// Towards zero; `i32::MIN` for NaN and what does not fit.
    fn truncate(self) -> Self::Int;
    fn from_int(int: Self::Int) -> Self;
    /// Bits of the nearest IEEE half, ties to even.
    fn to_half(self) -> Self::Int;
    fn from_half(bits: Self::Int) -> Self;

    /// `table[index]`; the index is below 16.
    fn lookup(table: &[f32; 16], index: Self::Int) -> Self;
    /// `table[index % V]`; `V` is 4 or 8.
    fn pick<const V: usize>(table: &[f32; V], index: Self::Int) -> Self;
    /// The lanes with the least value, a bit each, the first lowest. No value is NaN.
    fn least(self) -> u32;
    #[inline(always)]
    fn choose(mask: Self::Mask, yes: Self::Int, no: Self::Int) -> Self::Int {
        Self::select(mask, Self::from_bits(yes), Self::from_bits(no)).bits()
    }

    /// Transposes blocks into lanes: lane `k` of `columns[c]` is `source[at[k] + c]`. `columns.len()` is a multiple of 4.
    fn gather(source: &[f32], at: &[usize; MAX_LANES], columns: &mut [Self]);
    /// The way back for four columns: lane `k` of `four[c]` goes to `blocks[k][at + c]`.
    fn scatter(four: &[Self; 4], blocks: &mut [[f32; 32]; MAX_LANES], at: usize);
}

/// One 32-bit integer per lane, wrapping; `>>` shifts in zeros, `min` is signed.
pub trait Ints:
    Copy
    + Add<Output = Self>
    + Sub<Output = Self>
    + BitAnd<Output = Self>
    + BitOr<Output = Self>
    + BitXor<Output = Self>
    + Shl<u32, Output = Self>
    + Shr<u32, Output = Self>
{
    fn splat(x: i32) -> Self;
    /// As many as there are lanes.
    fn from_array(lanes: &[i32; MAX_LANES]) -> Self;
    /// As many as there are lanes; `x` is not shorter.
    fn widen(x: &[u16]) -> Self;
    /// The number of each lane.
    #[inline(always)]
    fn ascending() -> Self {
        Self::from_array(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15])
    }
    fn min(self, other: Self) -> Self;
    /// The lanes, then zeros.
    fn to_array(self) -> [i32; MAX_LANES];
}

/// Every element that [`Lanes::gather`] reads exists.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn check_gather<L: Lanes>(source: &[f32], at: &[usize; MAX_LANES], columns: &[L]) {
    assert!(
        columns.len().is_multiple_of(4)
            && at[..L::N].iter().all(|&a| a <= source.len() && source.len() - a >= columns.len())
    );
}

/// Adding 1.5 * 2^23 leaves the nearest integer (ties to even) in the low mantissa bits.
const MAGIC: f32 = 12_582_912.0;
const MANTISSA: i32 = 0x007f_ffff;
/// Exponent bits of a float whose unit in the last place is 1.
const UNIT: i32 = 0x4b00_0000;

/// ggml's `nearest_int`, as an integral float. Beyond 2^22 it wraps as the mantissa does, and NaN gives 0; hence the
/// masking where a subtraction would do for ordinary numbers.
#[inline(always)]
pub fn nearest<L: Lanes>(x: L) -> L {
    let mantissa = (x + L::splat(MAGIC)).bits() & L::Int::splat(MANTISSA);
    L::from_bits(mantissa | L::Int::splat(UNIT)) - L::splat(MAGIC)
}

/// Nearest integer, ties away from zero, as C's `roundf`; `i32::MIN` for NaN and what does not fit.
#[inline(always)]
pub fn round_away<L: Lanes>(x: L) -> L::Int {
    // The largest float below 1/2: adding 1/2 itself would lift 0.49999997 to 1.
    let half = L::Int::splat(0x3eff_ffff) | (x.bits() & L::Int::splat(i32::MIN));
    (x + L::from_bits(half)).truncate()
}

/// `x` is not NaN.
#[inline(always)]
pub fn clamp<L: Lanes>(x: L, low: f32, high: f32) -> L {
    L::splat(low).max(L::splat(high).min(x))
}

/// `1 / x`, and 0 for 0.
#[inline(always)]
pub fn inverse<L: Lanes>(x: L) -> L {
    let zero = L::splat(0.0);
    L::select(x.eq(zero), zero, L::splat(1.0) / x)
}

/// Sum in order.
#[inline(always)]
pub fn sum<L: Lanes>(x: &[L]) -> L {
    let mut sum = L::splat(0.0);
    for &x in x {
        sum = sum + x;
    }
    sum
}

/// Sum of squares in order.
#[inline(always)]
pub fn energy<L: Lanes>(x: &[L]) -> L {
    let mut sum = L::splat(0.0);
    for &x in x {
        sum = sum + x * x;
    }
    sum
}

/// The first value of largest magnitude, and the magnitude.
#[inline(always)]
pub fn extreme<L: Lanes>(x: &[L]) -> (L, L) {
    let (mut value, mut magnitude) = (L::splat(0.0), L::splat(0.0));
    for &x in x {
        let a = x.abs();
        value = L::select(magnitude.lt(a), x, value);
        magnitude = a.max(magnitude);
    }
    (value, magnitude)
}

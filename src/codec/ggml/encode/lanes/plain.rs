//! One lane: the slow twin of the vector instantiations, and what machines without them run.

use half::f16;

use super::{Ints, Lanes, MAX_LANES};

impl Lanes for f32 {
    const N: usize = 1;
    type Narrow = f32;
    type Int = Int;
    type Mask = bool;

    #[inline(always)]
    fn splat(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    fn from_array(lanes: &[f32; MAX_LANES]) -> f32 {
        lanes[0]
    }
    #[inline(always)]
    fn min(self, other: f32) -> f32 {
        if self < other { self } else { other }
    }
    #[inline(always)]
    fn max(self, other: f32) -> f32 {
        if self > other { self } else { other }
    }
    #[inline(always)]
    fn abs(self) -> f32 {
        f32::abs(self)
    }
    #[inline(always)]
    fn sqrt(self) -> f32 {
        f32::sqrt(self)
    }
    #[inline(always)]
    fn lt(self, other: f32) -> bool {
        self < other
    }
    #[inline(always)]
    fn eq(self, other: f32) -> bool {
        self == other
    }
    #[inline(always)]
    fn any(mask: bool) -> bool {
        mask
    }
    #[inline(always)]
    fn select(mask: bool, yes: f32, no: f32) -> f32 {
        if mask { yes } else { no }
    }
    #[inline(always)]
    fn keep(mask: bool, value: Int) -> Int {
        if mask { value } else { Int(0) }
    }
    #[inline(always)]
    fn bits(self) -> Int {
        Int(self.to_bits())
    }
    #[inline(always)]
    fn from_bits(bits: Int) -> f32 {
        f32::from_bits(bits.0)
    }
    #[inline(always)]
    fn truncate(self) -> Int {
        const END: f32 = 2_147_483_648.0;
        Int(if (-END..END).contains(&self) { self as i32 } else { i32::MIN } as u32)
    }
    #[inline(always)]
    fn from_int(int: Int) -> f32 {
        int.0 as i32 as f32
    }
    #[inline(always)]
    fn to_half(self) -> Int {
        Int(f16::from_f32(self).to_bits().into())
    }
    #[inline(always)]
    fn from_half(bits: Int) -> f32 {
        f16::from_bits(bits.0 as u16).to_f32()
    }
    #[inline(always)]
    fn lookup(table: &[f32; 16], index: Int) -> f32 {
        table[index.0 as usize & 15]
    }
    #[inline(always)]
    fn pick<const V: usize>(table: &[f32; V], index: Int) -> f32 {
        table[index.0 as usize % V]
    }
    #[inline(always)]
    fn least(self) -> u32 {
        1
    }
    #[inline(always)]
    fn gather(source: &[f32], at: &[usize; MAX_LANES], columns: &mut [f32]) {
        columns.copy_from_slice(&source[at[0]..][..columns.len()]);
    }
    #[inline(always)]
    fn scatter(four: &[f32; 4], blocks: &mut [[f32; 32]; MAX_LANES], at: usize) {
        blocks[0][at..at + 4].copy_from_slice(four);
    }
}

#[derive(Clone, Copy)]
pub struct Int(u32);

impl Ints for Int {
    #[inline(always)]
    fn splat(x: i32) -> Int {
        Int(x as u32)
    }
    #[inline(always)]
    fn from_array(lanes: &[i32; MAX_LANES]) -> Int {
        Int(lanes[0] as u32)
    }
    #[inline(always)]
    fn widen(x: &[u16]) -> Int {
        Int(x[0].into())
    }
    #[inline(always)]
    fn min(self, other: Int) -> Int {
        Int((self.0 as i32).min(other.0 as i32) as u32)
    }
    #[inline(always)]
    fn to_array(self) -> [i32; MAX_LANES] {
        let mut lanes = [0; MAX_LANES];
        lanes[0] = self.0 as i32;
        lanes
    }
}

macro_rules! operators {
    ($($op:ident $name:ident ($a:ident, $b:ident: $rhs:ty) $result:expr;)*) => {$(
        impl std::ops::$op<$rhs> for Int {
            type Output = Int;
            #[inline(always)]
            fn $name(self, other: $rhs) -> Int {
                let ($a, $b) = (self.0, other);
                Int($result)
            }
        }
    )*};
}

operators! {
    Add add (a, b: Int) a.wrapping_add(b.0);
    Sub sub (a, b: Int) a.wrapping_sub(b.0);
    BitAnd bitand (a, b: Int) a & b.0;
    BitOr bitor (a, b: Int) a | b.0;
    BitXor bitxor (a, b: Int) a ^ b.0;
    Shl shl (a, n: u32) a << n;
    Shr shr (a, n: u32) a >> n;
}

//! Eight lanes. Values of these types exist only under [`run`]'s promise, which every SAFETY line below leans on.

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Not, Shl, Shr, Sub};

use super::super::{Kernel, drive};
use super::{Ints, Lanes, MAX_LANES, check_gather};

/// Whether this machine can [`run`].
pub fn available() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c")
}

/// [`drive`] on eight lanes.
///
/// # Safety
/// [`available`] has returned true.
#[target_feature(enable = "avx2,f16c")]
pub unsafe fn run<K: Kernel>(w: &[f32], cols: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    drive::<K, F32x8>(w, cols, importance, out);
}

#[derive(Clone, Copy)]
pub struct F32x8(__m256);

#[derive(Clone, Copy)]
pub struct I32x8(__m256i);

/// All ones or all zeros in each lane.
#[derive(Clone, Copy)]
pub struct Mask8(__m256);

macro_rules! operators {
    ($($vector:ident: $op:ident $name:ident $intrinsic:ident;)*) => {$(
        impl $op for $vector {
            type Output = Self;
            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: see the module.
                Self(unsafe { $intrinsic(self.0, other.0) })
            }
        }
    )*};
}

operators! {
    F32x8: Add add _mm256_add_ps;
    F32x8: Sub sub _mm256_sub_ps;
    F32x8: Mul mul _mm256_mul_ps;
    F32x8: Div div _mm256_div_ps;
    Mask8: BitAnd bitand _mm256_and_ps;
    Mask8: BitOr bitor _mm256_or_ps;
    I32x8: Add add _mm256_add_epi32;
    I32x8: Sub sub _mm256_sub_epi32;
    I32x8: BitAnd bitand _mm256_and_si256;
    I32x8: BitOr bitor _mm256_or_si256;
    I32x8: BitXor bitxor _mm256_xor_si256;
}

impl Not for Mask8 {
    type Output = Self;
    #[inline(always)]
    fn not(self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_xor_ps(self.0, _mm256_castsi256_ps(_mm256_set1_epi32(-1))) })
    }
}

impl Neg for F32x8 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self::from_bits(self.bits() ^ I32x8::splat(i32::MIN))
    }
}

impl Shl<u32> for I32x8 {
    type Output = Self;
    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_sllv_epi32(self.0, _mm256_set1_epi32(n as i32)) })
    }
}

impl Shr<u32> for I32x8 {
    type Output = Self;
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_srlv_epi32(self.0, _mm256_set1_epi32(n as i32)) })
    }
}

impl Ints for I32x8 {
    #[inline(always)]
    fn splat(x: i32) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_set1_epi32(x) })
    }
    #[inline(always)]
    fn from_array(lanes: &[i32; MAX_LANES]) -> Self {
        // SAFETY: see the module; the array fills more than one vector.
        Self(unsafe { _mm256_loadu_si256(lanes.as_ptr().cast()) })
    }
    #[inline(always)]
    fn widen(x: &[u16]) -> Self {
        let x: &[u16; 8] = x.first_chunk().expect("a whole vector");
        // SAFETY: see the module; the array fills one half vector.
        Self(unsafe { _mm256_cvtepu16_epi32(_mm_loadu_si128(x.as_ptr().cast())) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_min_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn to_array(self) -> [i32; MAX_LANES] {
        let mut lanes = [0; MAX_LANES];
        // SAFETY: see the module; the array has room for eight lanes.
        unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), self.0) };
        lanes
    }
}

impl Lanes for F32x8 {
    const N: usize = 8;
    type Narrow = Self;
    type Int = I32x8;
    type Mask = Mask8;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    fn from_array(lanes: &[f32; MAX_LANES]) -> Self {
        // SAFETY: see the module; the array fills more than one vector.
        Self(unsafe { _mm256_loadu_ps(lanes.as_ptr()) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        Self::from_bits(self.bits() & I32x8::splat(i32::MAX))
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> Mask8 {
        // SAFETY: see the module.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn eq(self, other: Self) -> Mask8 {
        // SAFETY: see the module.
        Mask8(unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(self.0, other.0) })
    }
    #[inline(always)]
    fn any(mask: Mask8) -> bool {
        // SAFETY: see the module.
        unsafe { _mm256_movemask_ps(mask.0) != 0 }
    }
    #[inline(always)]
    fn select(mask: Mask8, yes: Self, no: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_blendv_ps(no.0, yes.0, mask.0) })
    }
    #[inline(always)]
    fn keep(mask: Mask8, value: I32x8) -> I32x8 {
        Self(mask.0).bits() & value
    }
    #[inline(always)]
    fn bits(self) -> I32x8 {
        // SAFETY: see the module.
        I32x8(unsafe { _mm256_castps_si256(self.0) })
    }
    #[inline(always)]
    fn from_bits(bits: I32x8) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_castsi256_ps(bits.0) })
    }
    #[inline(always)]
    fn truncate(self) -> I32x8 {
        // SAFETY: see the module.
        I32x8(unsafe { _mm256_cvttps_epi32(self.0) })
    }
    #[inline(always)]
    fn from_int(int: I32x8) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm256_cvtepi32_ps(int.0) })
    }
    #[inline(always)]
    fn to_half(self) -> I32x8 {
        // SAFETY: see the module.
        I32x8(unsafe { _mm256_cvtepu16_epi32(_mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) })
    }
    #[inline(always)]
    fn from_half(bits: I32x8) -> Self {
        // SAFETY: see the module.
        unsafe {
            let (low, high) = (_mm256_castsi256_si128(bits.0), _mm256_extracti128_si256::<1>(bits.0));
            Self(_mm256_cvtph_ps(_mm_packus_epi32(low, high)))
        }
    }
    #[inline(always)]
    fn lookup(table: &[f32; 16], index: I32x8) -> Self {
        // SAFETY: see the module; the table fills two vectors. Permutes read the low three bits of an index and blends the
        // sign bit, so the fourth bit is moved there.
        unsafe {
            let low = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), index.0);
            let high = _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr().add(8)), index.0);
            Self(_mm256_blendv_ps(low, high, _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index.0))))
        }
    }
    #[inline(always)]
    fn pick<const V: usize>(table: &[f32; V], index: I32x8) -> Self {
        const { assert!(V == 4 || V == 8) };
        // SAFETY: see the module; the table fills the vector. Permutes read as many low bits of an index as they need.
        Self(unsafe {
            if V == 4 {
                _mm256_permutevar_ps(_mm256_broadcast_ps(&_mm_loadu_ps(table.as_ptr())), index.0)
            } else {
                _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), index.0)
            }
        })
    }
    #[inline(always)]
    fn least(self) -> u32 {
        // SAFETY: see the module.
        unsafe {
            let mut least = self.0;
            least = _mm256_min_ps(least, _mm256_permute2f128_ps::<1>(least, least));
            least = _mm256_min_ps(least, _mm256_permute_ps::<0b01_00_11_10>(least));
            least = _mm256_min_ps(least, _mm256_permute_ps::<0b10_11_00_01>(least));
            _mm256_movemask_ps(self.eq(Self(least)).0) as u32
        }
    }

    #[inline(always)]
    fn gather(source: &[f32], at: &[usize; MAX_LANES], columns: &mut [Self]) {
        check_gather(source, at, columns);
        for (c, four) in columns.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // SAFETY: see the module; `check_gather` keeps `at[k] + 4 * c + 4` within the source.
            unsafe {
                let part = |k: usize| _mm_loadu_ps(source.as_ptr().add(at[k] + 4 * c));
                // Vector k holds four columns of blocks k and k + 4.
                let rows = |k: usize| _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(part(k)), part(k + 4));
                let [a, b, c, d] = transpose([rows(0), rows(1), rows(2), rows(3)]);
                *four = [Self(a), Self(b), Self(c), Self(d)];
            }
        }
    }

    #[inline(always)]
    fn scatter(four: &[Self; 4], blocks: &mut [[f32; 32]; MAX_LANES], at: usize) {
        let [a, b, c, d] = *four;
        // SAFETY: see the module.
        let rows = unsafe { transpose([a.0, b.0, c.0, d.0]) };
        for (k, row) in rows.into_iter().enumerate() {
            // SAFETY: see the module; the slices have the vectors' size.
            unsafe {
                _mm_storeu_ps(blocks[k][at..at + 4].as_mut_ptr(), _mm256_castps256_ps128(row));
                _mm_storeu_ps(blocks[k + 4][at..at + 4].as_mut_ptr(), _mm256_extractf128_ps::<1>(row));
            }
        }
    }
}

/// Each half of the vectors is one of the four rows of a square.
///
/// # Safety
/// See the module.
#[inline(always)]
unsafe fn transpose([a, b, c, d]: [__m256; 4]) -> [__m256; 4] {
    // SAFETY: see the module.
    unsafe {
        let low = |a, b| _mm256_castps_pd(_mm256_unpacklo_ps(a, b));
        let high = |a, b| _mm256_castps_pd(_mm256_unpackhi_ps(a, b));
        let (ab, cd) = (low(a, b), low(c, d));
        let (ab_high, cd_high) = (high(a, b), high(c, d));
        [
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab, cd)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(ab, cd)),
            _mm256_castpd_ps(_mm256_unpacklo_pd(ab_high, cd_high)),
            _mm256_castpd_ps(_mm256_unpackhi_pd(ab_high, cd_high)),
        ]
    }
}

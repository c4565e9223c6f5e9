//! Sixteen lanes. Values of these types exist only under [`run`]'s promise, which every SAFETY line below leans on.

use std::arch::x86_64::*;
use std::ops::{Add, BitAnd, BitOr, BitXor, Div, Mul, Neg, Shl, Shr, Sub};

use super::super::{Kernel, drive};
use super::{Ints, Lanes, MAX_LANES, check_gather};

/// Whether this machine can [`run`].
pub fn available() -> bool {
    super::avx2::available()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
}

/// [`drive`] on sixteen lanes.
///
/// # Safety
/// [`available`] has returned true.
#[target_feature(enable = "avx2,f16c,avx512f,avx512dq,avx512bw,avx512vl")]
pub unsafe fn run<K: Kernel>(w: &[f32], cols: usize, importance: Option<&[f32]>, out: &mut [u8]) {
    drive::<K, F32x16>(w, cols, importance, out);
}

#[derive(Clone, Copy)]
pub struct F32x16(__m512);

#[derive(Clone, Copy)]
pub struct I32x16(__m512i);

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
    F32x16: Add add _mm512_add_ps;
    F32x16: Sub sub _mm512_sub_ps;
    F32x16: Mul mul _mm512_mul_ps;
    F32x16: Div div _mm512_div_ps;
    I32x16: Add add _mm512_add_epi32;
    I32x16: Sub sub _mm512_sub_epi32;
    I32x16: BitAnd bitand _mm512_and_si512;
    I32x16: BitOr bitor _mm512_or_si512;
    I32x16: BitXor bitxor _mm512_xor_si512;
}

impl Neg for F32x16 {
    type Output = Self;
    #[inline(always)]
    fn neg(self) -> Self {
        Self::from_bits(self.bits() ^ I32x16::splat(i32::MIN))
    }
}

impl Shl<u32> for I32x16 {
    type Output = Self;
    #[inline(always)]
    fn shl(self, n: u32) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_sllv_epi32(self.0, _mm512_set1_epi32(n as i32)) })
    }
}

impl Shr<u32> for I32x16 {
    type Output = Self;
    #[inline(always)]
    fn shr(self, n: u32) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_srlv_epi32(self.0, _mm512_set1_epi32(n as i32)) })
    }
}

impl Ints for I32x16 {
    #[inline(always)]
    fn splat(x: i32) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_set1_epi32(x) })
    }
    #[inline(always)]
    fn from_array(lanes: &[i32; MAX_LANES]) -> Self {
        // SAFETY: see the module; the array fills one vector.
        Self(unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) })
    }
    #[inline(always)]
    fn widen(x: &[u16]) -> Self {
        let x: &[u16; 16] = x.first_chunk().expect("a whole vector");
        // SAFETY: see the module; the array fills one half vector.
        Self(unsafe { _mm512_cvtepu16_epi32(_mm256_loadu_si256(x.as_ptr().cast())) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_min_epi32(self.0, other.0) })
    }
    #[inline(always)]
    fn to_array(self) -> [i32; MAX_LANES] {
        let mut lanes = [0; MAX_LANES];
        // SAFETY: see the module; the array holds sixteen lanes.
        unsafe { _mm512_storeu_si512(lanes.as_mut_ptr().cast(), self.0) };
        lanes
    }
}

impl Lanes for F32x16 {
    const N: usize = 16;
    type Narrow = super::avx2::F32x8;
    type Int = I32x16;
    type Mask = __mmask16;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    fn from_array(lanes: &[f32; MAX_LANES]) -> Self {
        // SAFETY: see the module; the array fills one vector.
        Self(unsafe { _mm512_loadu_ps(lanes.as_ptr()) })
    }
    #[inline(always)]
    fn min(self, other: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_min_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_abs_ps(self.0) })
    }
    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_sqrt_ps(self.0) })
    }
    #[inline(always)]
    fn lt(self, other: Self) -> __mmask16 {
        // SAFETY: see the module.
        unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn eq(self, other: Self) -> __mmask16 {
        // SAFETY: see the module.
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0) }
    }
    #[inline(always)]
    fn any(mask: __mmask16) -> bool {
        mask != 0
    }
    #[inline(always)]
    fn select(mask: __mmask16, yes: Self, no: Self) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_mask_blend_ps(mask, no.0, yes.0) })
    }
    #[inline(always)]
    fn keep(mask: __mmask16, value: I32x16) -> I32x16 {
        // SAFETY: see the module.
        I32x16(unsafe { _mm512_maskz_mov_epi32(mask, value.0) })
    }
    #[inline(always)]
    fn bits(self) -> I32x16 {
        // SAFETY: see the module.
        I32x16(unsafe { _mm512_castps_si512(self.0) })
    }
    #[inline(always)]
    fn from_bits(bits: I32x16) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_castsi512_ps(bits.0) })
    }
    #[inline(always)]
    fn truncate(self) -> I32x16 {
        // SAFETY: see the module.
        I32x16(unsafe { _mm512_cvttps_epi32(self.0) })
    }
    #[inline(always)]
    fn from_int(int: I32x16) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_cvtepi32_ps(int.0) })
    }
    #[inline(always)]
    fn to_half(self) -> I32x16 {
        // SAFETY: see the module.
        I32x16(unsafe { _mm512_cvtepu16_epi32(_mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(self.0)) })
    }
    #[inline(always)]
    fn from_half(bits: I32x16) -> Self {
        // SAFETY: see the module.
        Self(unsafe { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits.0)) })
    }
    #[inline(always)]
    fn lookup(table: &[f32; 16], index: I32x16) -> Self {
        // SAFETY: see the module; the table fills one vector.
        Self(unsafe { _mm512_permutexvar_ps(index.0, _mm512_loadu_ps(table.as_ptr())) })
    }
    #[inline(always)]
    fn pick<const V: usize>(table: &[f32; V], index: I32x16) -> Self {
        const { assert!(V == 4 || V == 8) };
        // SAFETY: see the module; the table fills the narrower vector. Permutes read the low bits of an index: two, or
        // four, of which the copy of the table makes the last irrelevant.
        Self(unsafe {
            if V == 4 {
                _mm512_permutevar_ps(_mm512_broadcast_f32x4(_mm_loadu_ps(table.as_ptr())), index.0)
            } else {
                _mm512_permutexvar_ps(index.0, _mm512_broadcast_f32x8(_mm256_loadu_ps(table.as_ptr())))
            }
        })
    }
    #[inline(always)]
    fn least(self) -> u32 {
        // SAFETY: see the module.
        let least = Self(unsafe { _mm512_set1_ps(_mm512_reduce_min_ps(self.0)) });
        self.eq(least).into()
    }

    #[inline(always)]
    fn gather(source: &[f32], at: &[usize; MAX_LANES], columns: &mut [Self]) {
        check_gather(source, at, columns);
        for (c, four) in columns.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            // SAFETY: see the module; `check_gather` keeps `at[k] + 4 * c + 4` within the source.
            unsafe {
                let part = |k: usize| _mm_loadu_ps(source.as_ptr().add(at[k] + 4 * c));
                // Vector k holds four columns of blocks k, k + 4, k + 8, k + 12.
                let rows = |k: usize| {
                    let v = _mm512_castps128_ps512(part(k));
                    let v = _mm512_insertf32x4::<1>(v, part(k + 4));
                    let v = _mm512_insertf32x4::<2>(v, part(k + 8));
                    _mm512_insertf32x4::<3>(v, part(k + 12))
                };
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
                _mm_storeu_ps(blocks[k][at..at + 4].as_mut_ptr(), _mm512_castps512_ps128(row));
                _mm_storeu_ps(blocks[k + 4][at..at + 4].as_mut_ptr(), _mm512_extractf32x4_ps::<1>(row));
                _mm_storeu_ps(blocks[k + 8][at..at + 4].as_mut_ptr(), _mm512_extractf32x4_ps::<2>(row));
                _mm_storeu_ps(blocks[k + 12][at..at + 4].as_mut_ptr(), _mm512_extractf32x4_ps::<3>(row));
            }
        }
    }
}

/// Each quarter of the vectors is one of the four rows of a square.
///
/// # Safety
/// See the module.
#[inline(always)]
unsafe fn transpose([a, b, c, d]: [__m512; 4]) -> [__m512; 4] {
    // SAFETY: see the module.
    unsafe {
        let low = |a, b| _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
        let high = |a, b| _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
        let (ab, cd) = (low(a, b), low(c, d));
        let (ab_high, cd_high) = (high(a, b), high(c, d));
        [
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab, cd)),
            _mm512_castpd_ps(_mm512_unpacklo_pd(ab_high, cd_high)),
            _mm512_castpd_ps(_mm512_unpackhi_pd(ab_high, cd_high)),
        ]
    }
}

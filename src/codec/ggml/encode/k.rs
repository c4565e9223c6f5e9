//! K-quants whose groups have a scale and a minimum: Q2_K, Q4_K, Q5_K.

use super::lanes::{Ints, Lanes, clamp, energy, nearest, sum};
use super::pack::{Out, bytes, four_by_four, nibbles, pairs, plane, words};
use super::search::{ScaleMin, Trials, WEIGHTED, positive, scale_min};
use super::{Blocks, Kernel};

/// Scales (or minima) of the groups as multiples of one half, the bytes as the search left them.
struct Scales<L: Lanes, const GROUPS: usize> {
    codes: [L::Int; GROUPS],
    unit: L,
}

impl<L: Lanes, const GROUPS: usize> Scales<L, GROUPS> {
    /// The largest becomes `top`.
    #[inline(always)]
    fn by_largest(values: &[L; GROUPS], top: f32) -> Self {
        let zero = L::splat(0.0);
        let mut max = zero;
        for &value in values {
            max = value.max(max);
        }
        let inverse = L::select(zero.lt(max), L::splat(top) / max, zero);
        let mut codes = [L::Int::splat(0); GROUPS];
        for (code, &value) in codes.iter_mut().zip(values) {
            *code = nearest(inverse * value).truncate() & L::Int::splat(0xff);
        }
        Scales { codes, unit: max / L::splat(top) }
    }

    #[inline(always)]
    fn by_search(values: &[L; GROUPS], weights: &[L; GROUPS], top: f32) -> Self {
        let (unit, found) = positive(values, weights, top);
        let mut codes = [L::Int::splat(0); GROUPS];
        for (code, found) in codes.iter_mut().zip(found) {
            *code = found.truncate();
        }
        Scales { codes, unit }
    }
}

/// A super-block's groups fitted, and how their scales and minima will be stored.
struct Fitted<L: Lanes, const GROUPS: usize> {
    groups: [ScaleMin<L>; GROUPS],
    scales: Scales<L, GROUPS>,
    mins: Scales<L, GROUPS>,
}

/// Without importance: errors weigh by magnitude, squared errors by that and the group's root mean square.
#[inline(always)]
fn fit<L: Lanes, const N: usize, const GROUPS: usize, const ABSOLUTE: bool>(
    x: &[[L; N]],
    (top, scale_top): (f32, f32),
    trials: Trials,
) -> Fitted<L, GROUPS> {
    let mut groups = [ScaleMin::zero(); GROUPS];
    let (mut scales, mut mins) = ([L::splat(0.0); GROUPS], [L::splat(0.0); GROUPS]);
    let mut w = [L::splat(0.0); N];
    for (j, x) in x.iter().enumerate() {
        let rms = if ABSOLUTE { L::splat(0.0) } else { (energy(x) / L::splat(N as f32)).sqrt() };
        for i in 0..N {
            w[i] = rms + x[i].abs();
        }
        groups[j] = scale_min::<L, N, ABSOLUTE>(x, &w, top, trials);
        (scales[j], mins[j]) = (groups[j].scale, -groups[j].low);
    }
    Fitted { groups, scales: Scales::by_largest(&scales, scale_top), mins: Scales::by_largest(&mins, scale_top) }
}

/// With importance, mixed with the magnitude of the weights around `spread`, a mean square.
#[inline(always)]
fn fit_weighted<L: Lanes, const N: usize, const GROUPS: usize>(
    x: &[[L; N]],
    importance: &[L],
    spread: L,
    (top, scale_top): (f32, f32),
) -> Fitted<L, GROUPS> {
    let zero = L::splat(0.0);
    let mut groups = [ScaleMin::zero(); GROUPS];
    let (mut scales, mut mins, mut weights) = ([zero; GROUPS], [zero; GROUPS], [zero; GROUPS]);
    let mut w = [zero; N];
    for (j, (x, importance)) in x.iter().zip(importance.as_chunks::<N>().0).enumerate() {
        for i in 0..N {
            w[i] = importance[i] * (spread + x[i] * x[i]).sqrt();
        }
        weights[j] = sum(&w);
        groups[j] = scale_min::<L, N, false>(x, &w, top, WEIGHTED);
        (scales[j], mins[j]) = (groups[j].scale, -groups[j].low);
    }
    Fitted {
        groups,
        scales: Scales::by_search(&scales, &weights, scale_top),
        mins: Scales::by_search(&mins, &weights, scale_top),
    }
}

/// Codes of a group under its stored scale and minimum, or those of the search where the stored scale is zero.
#[inline(always)]
fn round<L: Lanes, const N: usize>(x: &[L; N], fit: &ScaleMin<L>, scale: L, min: L, top: f32, out: &mut [L::Int]) {
    let zero = scale.eq(L::splat(0.0));
    let any_zero = L::any(zero);
    let mut codes = [L::splat(0.0); N];
    for i in 0..N {
        codes[i] = clamp(nearest((x[i] + min) / scale), 0.0, top);
        if any_zero {
            codes[i] = L::select(zero, fit.code(x[i]), codes[i]);
        }
    }
    words(&codes, out);
}

/// Eight groups of 32, six-bit scales: Q4_K and Q5_K.
pub struct FourOrFive<const BITS: usize>;

impl<const BITS: usize> FourOrFive<BITS> {
    const TOP: f32 = ((1 << BITS) - 1) as f32;
    pub const TRIALS: Trials = match BITS {
        4 => Trials { first: -1.0, step: 0.1, last: 20 },
        _ => Two::TRIALS,
    };

    #[inline(always)]
    fn fit<L: Lanes>(blocks: &Blocks<'_, L>) -> Fitted<L, 8> {
        let (x, _) = blocks.x.as_chunks::<32>();
        match blocks.importance {
            None => fit::<L, 32, 8, false>(x, (Self::TOP, 63.0), Self::TRIALS),
            Some(importance) => {
                let spread = L::splat(2.0) * energy(blocks.x) / L::splat(256.0);
                fit_weighted(x, importance, spread, (Self::TOP, 63.0))
            }
        }
    }
}

impl<const BITS: usize> Kernel for FourOrFive<BITS> {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 16 + 32 * BITS;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let Fitted { groups, mut scales, mut mins } = Self::fit(blocks);
        if BITS == 5 || blocks.importance.is_none() {
            for code in scales.codes.iter_mut().chain(&mut mins.codes) {
                *code = code.min(L::Int::splat(63));
            }
        }
        let (d, dmin) = (scales.unit.to_half(), mins.unit.to_half());
        let packed = pack_six_bit::<L>(&scales.codes, &mins.codes);
        out.word(0, d | dmin << 16);
        for i in 0..3 {
            out.word(4 + 4 * i, bytes([packed[4 * i], packed[4 * i + 1], packed[4 * i + 2], packed[4 * i + 3]]));
        }

        let (d, dmin) = (L::from_half(d), L::from_half(dmin));
        let mut codes = [L::Int::splat(0); 64];
        for (j, (x, fit)) in blocks.x.as_chunks::<32>().0.iter().zip(&groups).enumerate() {
            let (scale, min) = unpack_six_bit::<L>(&packed, j);
            let (scale, min) = (d * L::from_int(scale), dmin * L::from_int(min));
            round(x, fit, scale, min, Self::TOP, &mut codes[8 * j..8 * j + 8]);
        }
        if BITS == 5 {
            for k in 0..8 {
                let mut high = L::Int::splat(0);
                for j in 0..8 {
                    high = high | plane(codes[8 * j + k], 4) << j as u32;
                }
                out.word(16 + 4 * k, high);
            }
        }
        for j in 0..4 {
            for k in 0..8 {
                let at = 16 + 32 * (BITS - 4) + 32 * j + 4 * k;
                out.word(at, nibbles(codes[16 * j + k], codes[16 * j + 8 + k]));
            }
        }
    }
}

/// Twelve bytes: scales 0..4, minima 0..4, then the low nibbles of the other four of each, whose upper two bits lie in the
/// top of the first eight.
#[inline(always)]
fn pack_six_bit<L: Lanes>(scales: &[L::Int; 8], mins: &[L::Int; 8]) -> [L::Int; 12] {
    let (nibble, byte) = (L::Int::splat(0xf), L::Int::splat(0xff));
    let mut packed = [L::Int::splat(0); 12];
    for j in 0..4 {
        packed[j] = (scales[j] | scales[j + 4] >> 4 << 6) & byte;
        packed[j + 4] = (mins[j] | mins[j + 4] >> 4 << 6) & byte;
        packed[j + 8] = scales[j + 4] & nibble | (mins[j + 4] & nibble) << 4;
    }
    packed
}

/// Scale and minimum of a group as a decoder will read them.
#[inline(always)]
fn unpack_six_bit<L: Lanes>(packed: &[L::Int; 12], j: usize) -> (L::Int, L::Int) {
    let (nibble, low) = (L::Int::splat(0xf), L::Int::splat(63));
    if j < 4 {
        return (packed[j] & low, packed[j + 4] & low);
    }
    let rest = packed[j + 4];
    (rest & nibble | packed[j - 4] >> 6 << 4, rest >> 4 | packed[j] >> 6 << 4)
}

/// Sixteen groups of 16, four-bit scales: Q2_K.
pub struct Two;

impl Two {
    const TOP: f32 = 3.0;
    pub const TRIALS: Trials = Trials { first: -0.5, step: 0.1, last: 15 };

    #[inline(always)]
    fn fit<L: Lanes>(blocks: &Blocks<'_, L>) -> Fitted<L, 16> {
        let (x, _) = blocks.x.as_chunks::<16>();
        match blocks.importance {
            None => fit::<L, 16, 16, true>(x, (Self::TOP, 15.0), Self::TRIALS),
            Some(importance) => {
                let spread = energy(blocks.x) / L::splat(256.0);
                fit_weighted(x, importance, spread, (Self::TOP, 15.0))
            }
        }
    }
}

impl Kernel for Two {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 84;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let Fitted { groups, scales, mins } = Self::fit(blocks);
        let (d, dmin) = (scales.unit.to_half(), mins.unit.to_half());
        let (nibble, byte) = (L::Int::splat(0xf), L::Int::splat(0xff));
        let mut packed = [L::Int::splat(0); 16];
        for (packed, (&scale, &min)) in packed.iter_mut().zip(scales.codes.iter().zip(&mins.codes)) {
            *packed = (scale | min << 4) & byte;
        }
        for (i, word) in four_by_four(packed).into_iter().enumerate() {
            out.word(4 * i, word);
        }
        out.word(80, d | dmin << 16);

        let (d, dmin) = (L::from_half(d), L::from_half(dmin));
        let mut codes = [L::Int::splat(0); 64];
        for (j, (x, fit)) in blocks.x.as_chunks::<16>().0.iter().zip(&groups).enumerate() {
            let scale = d * L::from_int(packed[j] & nibble);
            let min = dmin * L::from_int(packed[j] >> 4);
            round(x, fit, scale, min, Self::TOP, &mut codes[4 * j..4 * j + 4]);
        }
        two_bit(&codes, 16, out);
    }
}

/// The low two bits of 256 codes: each half of the block has 32 bytes, and each byte codes `l`, `l + 32`, `l + 64`, `l + 96`.
#[inline(always)]
pub fn two_bit<I: Ints>(codes: &[I; 64], at: usize, out: &mut Out<'_>) {
    for half in 0..2 {
        for k in 0..8 {
            let c = 32 * half + k;
            out.word(at + 32 * half + 4 * k, pairs([codes[c], codes[c + 8], codes[c + 16], codes[c + 24]]));
        }
    }
}

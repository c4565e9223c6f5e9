//! The search for points of a codebook, which the encoders of all IQ1, IQ2 and IQ3 formats share.
//!
//! A point is written as its digits, packed: two bits a coordinate where there are eight of them, three where there are
//! four, the first lowest. Digits that are no point of the codebook give way to the best of their neighbours, the points
//! at the few smallest distances from them; which these are depends on the codebook alone. Source: ggml
//! `iq2xs_init_impl`, `iq3xs_init_impl` (lists), `iq2_find_best_neighbour` and its variants (choice).

use std::sync::LazyLock;

use super::lanes::{Ints, Lanes, MAX_LANES};
use crate::codec::ggml::grid;

pub static IQ1: LazyLock<Codebook> = LazyLock::new(|| Codebook::new::<8, 3>(&grid::IQ1_SET, 3));
pub static IQ2_XXS: LazyLock<Codebook> = LazyLock::new(|| Codebook::new::<8, 3>(&grid::IQ2_XXS_SET, 2));
pub static IQ2_XS: LazyLock<Codebook> = LazyLock::new(|| Codebook::new::<8, 3>(&grid::IQ2_XS_SET, 2));
pub static IQ2_S: LazyLock<Codebook> = LazyLock::new(|| Codebook::new::<8, 3>(&grid::IQ2_S_SET, 1));
pub static IQ3_XXS: LazyLock<Codebook> = LazyLock::new(|| Codebook::new::<4, 8>(&grid::IQ3_XXS_SET, 2));
pub static IQ3_S: LazyLock<Codebook> = LazyLock::new(|| Codebook::new::<4, 8>(&grid::IQ3_S_SET, 3));

/// The weighted squared error of each coordinate of a point at each level: `D` coordinates by `V` levels (the next power
/// of two).
pub type Errors = [f32; 32];

pub struct Codebook {
    /// By packed digits.
    entries: Vec<Entry>,
    /// Packed digits of the neighbours of each entry, the nearest first, and by index where distances are equal. Each
    /// list is filled up to whole vectors with what cannot win.
    neighbours: Vec<u16>,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    /// Of a point: its place in the codebook.
    index: u16,
    /// Of other digits: the length of their list, and where it begins.
    count: u16,
    start: u32,
}

impl Codebook {
    /// Of a set as in [`grid`], with `D` coordinates of `L` levels. Neighbours lie at the `reach` smallest distances.
    fn new<const D: usize, const L: usize>(set: &[u64], reach: usize) -> Codebook {
        let numbers = || 0..L.pow(D as u32);
        let is_point = |n: usize| set[n / 64] >> (n % 64) & 1 == 1;
        let points: Vec<[usize; D]> = numbers().filter(|&n| is_point(n)).map(digits::<D, L>).collect();
        let packed: Vec<_> = points.iter().map(pack).collect();

        let mut book = Codebook { entries: vec![Entry::default(); 1 << (D * bits(D))], neighbours: Vec::new() };
        for (index, &code) in packed.iter().enumerate() {
            book.entries[usize::from(code)].index = index as u16;
        }
        for digits in numbers().filter(|&n| !is_point(n)).map(digits::<D, L>) {
            let distance = |p: &[usize; D]| p.iter().zip(&digits).map(|(p, d)| p.abs_diff(*d).pow(2)).sum();
            let distances: Vec<usize> = points.iter().map(distance).collect();
            let mut found = [false; 256]; // the largest distance is 4 * 7 * 7
            distances.iter().for_each(|&d| found[d] = true);

            let start = book.neighbours.len();
            for near in (0..found.len()).filter(|&d| found[d]).take(reach) {
                let at = distances.iter().zip(&packed).filter(|&(&d, _)| d == near);
                book.neighbours.extend(at.map(|(_, code)| code));
            }
            let count = book.neighbours.len() - start;
            let whole = if count <= 8 { 8 } else { count.next_multiple_of(MAX_LANES) };
            // Of two bits, the digit 3 is free and its level infinite; of three none is, but the first cannot win twice.
            let filler = if L < 4 { u16::MAX } else { book.neighbours[start] };
            book.neighbours.resize(start + whole, filler);
            book.entries[usize::from(pack(&digits))] = Entry { index: 0, count: whole as u16, start: start as u32 };
        }
        book
    }

    /// Places of points in the codebook.
    #[inline(always)]
    pub fn indices<I: Ints>(&self, codes: I) -> I {
        let mut lanes = codes.to_array();
        for lane in &mut lanes {
            *lane = self.entries[*lane as usize].index.into();
        }
        I::from_array(&lanes)
    }

    /// Replaces digits that are no point, each by the neighbour whose values `levels[digit]` have the least squared
    /// error from `x` under the weights `w`. Returns the points, and 1 for lanes where something was replaced, else 0.
    ///
    /// `D` coordinates of `V` levels, the last of four infinite.
    #[inline(always)]
    pub fn snap<L: Lanes, const D: usize, const V: usize>(
        &self,
        codes: L::Int,
        x: &[L; D],
        w: &[L; D],
        levels: &[L; V],
        scratch: &mut [Errors; MAX_LANES],
    ) -> (L::Int, L) {
        let mut codes = codes.to_array();
        let mut missed = [0.0; MAX_LANES];
        let mut any = false;
        for (missed, code) in missed[..L::N].iter_mut().zip(&codes) {
            let is_point = self.entries[*code as usize].count == 0;
            *missed = if is_point { 0.0 } else { 1.0 };
            any |= !is_point;
        }
        if any {
            errors(x, w, levels, scratch);
            for (code, errors) in codes[..L::N].iter_mut().zip(scratch) {
                let Entry { count, start, .. } = self.entries[*code as usize];
                if count > 0 {
                    let neighbours = &self.neighbours[start as usize..][..usize::from(count)];
                    *code = closest::<L, D, V>(neighbours, errors);
                }
            }
        }
        (L::Int::from_array(&codes), L::from_array(&missed))
    }
}

/// Bits of a digit.
pub const fn bits(coordinates: usize) -> usize {
    if coordinates == 8 { 2 } else { 3 }
}

/// Digits in base `L`, the lowest first.
fn digits<const D: usize, const L: usize>(mut number: usize) -> [usize; D] {
    [(); D].map(|()| {
        let digit = number % L;
        number /= L;
        digit
    })
}

fn pack<const D: usize>(digits: &[usize; D]) -> u16 {
    digits.iter().rev().fold(0, |code, &digit| code << bits(D) | digit as u16)
}

/// For each lane the errors of every coordinate at every level.
#[inline(always)]
fn errors<L: Lanes, const D: usize, const V: usize>(
    x: &[L; D],
    w: &[L; D],
    levels: &[L; V],
    errors: &mut [Errors; MAX_LANES],
) {
    const { assert!(D * V == 32 && V.is_multiple_of(4)) };
    for i in 0..D {
        for first in (0..V).step_by(4) {
            let mut four = [L::splat(f32::INFINITY); 4];
            for (error, level) in four.iter_mut().zip(&levels[first..]) {
                let e = *level - x[i];
                *error = w[i] * e * e;
            }
            L::scatter(&four, errors, V * i + first);
        }
    }
}

/// The first of the codes with the smallest sum of errors. Sums that are not below the largest float (where the reference
/// gives up) never win; if none does, the first code is returned.
#[inline(always)]
fn closest<L: Lanes, const D: usize, const V: usize>(codes: &[u16], errors: &Errors) -> i32 {
    let (errors, _) = errors.as_chunks::<V>();
    if codes.len() <= L::Narrow::N {
        return codes[first_least::<L::Narrow, D, V>(codes, errors)].into();
    }
    if codes.len() <= L::N {
        return codes[first_least::<L, D, V>(codes, errors)].into();
    }
    let mut ranks = L::Int::ascending();
    let (mut least, mut best) = (L::splat(f32::MAX), L::Int::splat(0));
    for codes in codes.chunks_exact(L::N) {
        let sum = sums::<L, D, V>(codes, errors);
        let less = sum.lt(least);
        least = L::select(less, sum, least);
        best = L::choose(less, ranks, best);
        ranks = ranks + L::Int::splat(L::N as i32);
    }
    let ranks = best.to_array();
    let mut ties = least.least();
    let mut first = i32::MAX;
    while ties != 0 {
        first = first.min(ranks[ties.trailing_zeros() as usize]);
        ties &= ties - 1;
    }
    codes[first as usize].into()
}

/// Place of the first code with the smallest sum; there are no more codes than lanes.
#[inline(always)]
fn first_least<L: Lanes, const D: usize, const V: usize>(codes: &[u16], errors: &[[f32; V]]) -> usize {
    let sums = sums::<L, D, V>(codes, errors).min(L::splat(f32::MAX));
    sums.least().trailing_zeros() as usize
}

/// The sums of the errors of some candidates, one a lane.
#[inline(always)]
fn sums<L: Lanes, const D: usize, const V: usize>(codes: &[u16], errors: &[[f32; V]]) -> L {
    let codes = L::Int::widen(codes);
    let mut sum = L::pick(&errors[0], codes);
    for (i, errors) in errors.iter().enumerate().skip(1) {
        sum = sum + L::pick(errors, codes >> (i * bits(D)) as u32);
    }
    sum
}

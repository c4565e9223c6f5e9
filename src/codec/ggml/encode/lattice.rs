//! Magnitudes from a codebook, signs apart: the search that IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S share.
//!
//! A digit `q` of a point stands for the magnitude `2 q + 1`. Groups of 16 or 32 weights share a scale, found over a grid of
//! trials: each rounds the weights to digits, replaces digits that are no point, and solves for the scale of least squares.

use std::sync::LazyLock;

use super::Blocks;
use super::codebook::{Codebook, Errors, bits};
use super::lanes::{Ints, Lanes, MAX_LANES, clamp, energy, nearest};
use super::search::positive;

/// What tells the formats apart.
pub struct Rules {
    pub codebook: &'static LazyLock<Codebook>,
    /// The number of minuses among eight signs is even, so that seven tell them.
    pub even: bool,
    /// A group whose largest magnitude is smaller is zero.
    pub tiny: f32,
    /// Spread around which importance is mixed with the magnitude, in mean squares of the block.
    pub spread: f32,
    /// What is added to the square of a weight where there is no importance, in that spread.
    pub floor: f32,
    pub trials: Trials,
    pub redo: Redo,
    /// Of the stored scale, found by experiment.
    pub fudge: f32,
}

/// Trial scales bring the reach of the group to `top + step * i`, `i` in `-last..=last`; `top` is the largest magnitude.
pub struct Trials {
    pub last: i32,
    pub step: f32,
    /// The reach is that of the scale which is best without a codebook, not the largest weight.
    pub solved: bool,
}

/// Which points are chosen again under the scale that won.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Redo {
    All,
    /// All, if any came in place of digits that are no point, or if no trial won.
    AllIfReplaced,
    /// Those that came in place of digits that are no point.
    Replaced,
}

/// Weights under one scale: `32 / D` points and 4 bytes of signs at most.
#[derive(Clone, Copy)]
pub struct Group<L: Lanes> {
    /// Packed digits.
    pub codes: [L::Int; 8],
    /// Bit `i`: weight `i` of eight is negative. Only seven bits where their number is even.
    pub signs: [L::Int; 4],
    /// Groups that are not zero.
    pub some: L::Mask,
    scale: L,
}

/// A block of `N` groups.
pub struct Encoded<L: Lanes, const N: usize> {
    /// The half that all scales multiply.
    pub unit: L::Int,
    pub groups: [Group<L>; N],
    /// Of each group, four bits.
    pub scales: [L::Int; N],
    /// Blocks of which some group has a scale.
    pub some: L::Mask,
}

/// Encodes a block in `N` groups of `G` weights, with points of `D` coordinates at `V` levels.
#[inline(always)]
pub fn encode<L: Lanes, const N: usize, const G: usize, const D: usize, const V: usize>(
    rules: &Rules,
    blocks: &Blocks<'_, L>,
) -> Encoded<L, N> {
    const { assert!(N * G == 256) };
    let (zero, half) = (L::splat(0.0), L::splat(0.5));
    let mean = energy(blocks.x) * L::splat(rules.spread) / L::splat(256.0);
    let none = Group { codes: [L::Int::splat(0); 8], signs: [L::Int::splat(0); 4], some: zero.lt(zero), scale: zero };
    let mut groups = [none; N];
    let mut max = zero;
    for (j, (out, x)) in groups.iter_mut().zip(blocks.x.as_chunks::<G>().0).enumerate() {
        let importance = blocks.importance.map(|w| &w.as_chunks::<G>().0[j]);
        *out = group::<L, G, D, V>(rules, x, &weigh(rules, x, importance, mean));
        max = max.max(out.scale);
    }
    let unit = max / L::splat(31.0);
    let inverse = L::splat(1.0) / unit;
    let mut scales = [L::Int::splat(0); N];
    for (l, group) in scales.iter_mut().zip(&groups) {
        *l = clamp(nearest(half * (inverse * group.scale - L::splat(1.0))), 0.0, 15.0).truncate();
    }
    Encoded { unit: (unit * L::splat(rules.fudge)).to_half(), groups, scales, some: !max.eq(zero) }
}

/// Weights of the errors.
#[inline(always)]
fn weigh<L: Lanes, const G: usize>(rules: &Rules, x: &[L; G], importance: Option<&[L; G]>, mean: L) -> [L; G] {
    let mut w = *x;
    for i in 0..G {
        w[i] = match importance {
            Some(importance) => importance[i] * (mean + x[i] * x[i]).sqrt(),
            None => L::splat(rules.floor) * mean + x[i] * x[i],
        };
    }
    w
}

/// The points, signs and scale of one group.
#[inline(always)]
fn group<L: Lanes, const G: usize, const D: usize, const V: usize>(rules: &Rules, x: &[L; G], w: &[L; G]) -> Group<L> {
    const { assert!(G.is_multiple_of(8) && G <= 32 && D * V == 32) };
    let zero = L::splat(0.0);
    let (x, signs) = split(rules.even, x, w);
    let mut max = x[0];
    for &x in &x[1..] {
        max = max.max(x);
    }
    let mut some = !max.lt(L::splat(rules.tiny));
    let (mut reach, mut scale) = (max, max / L::splat(top::<V>()));
    if rules.trials.solved {
        // Of codes up to 4, though digits end at 2; the trials around it make good for that.
        scale = positive(&x, w, 4.0).0;
        reach = scale * L::splat(3.0);
        some = some & zero.lt(reach);
    }
    let mut points = Points::none(rules.redo == Redo::AllIfReplaced);
    if L::any(some) {
        let mut search = Search::<L, G, D, V>::new(rules, &x, w);
        scale = search.best(&rules.trials, reach, scale, &mut points);
        scale = search.again(rules.redo, some, scale, &mut points);
    }

    let mut group = Group { codes: points.codes, signs, some, scale: L::select(some, scale, zero) };
    let negative = group.scale.lt(zero);
    group.scale = L::select(negative, -group.scale, group.scale);
    let flip = L::keep(negative, L::Int::splat(if rules.even { 0x7f } else { 0xff }));
    for signs in &mut group.signs {
        *signs = L::keep(some, *signs ^ flip);
    }
    for codes in &mut group.codes {
        *codes = L::keep(some, *codes);
    }
    group
}

/// The largest magnitude.
const fn top<const V: usize>() -> f32 {
    2.0 * largest_digit::<V>() + 1.0
}

/// Four levels stand for three.
const fn largest_digit<const V: usize>() -> f32 {
    if V == 4 { 2.0 } else { 7.0 }
}

/// Magnitudes and signs. If minuses must be even in number, one sign that matters least is given up where they are odd:
/// that magnitude becomes negative.
#[inline(always)]
fn split<L: Lanes, const G: usize>(even: bool, x: &[L; G], w: &[L; G]) -> ([L; G], [L::Int; 4]) {
    let zero = L::splat(0.0);
    let mut magnitudes = *x;
    let mut signs = [L::Int::splat(0); 4];
    for k in 0..G / 8 {
        let (mut bits, mut minuses) = (L::Int::splat(0), L::Int::splat(0));
        let (mut least, mut at) = (L::splat(f32::INFINITY), zero);
        for i in 0..8 {
            let (x, w) = (x[8 * k + i], w[8 * k + i]);
            let negative = x.lt(zero);
            magnitudes[8 * k + i] = L::select(negative, -x, x);
            bits = bits | L::keep(negative, L::Int::splat(1 << i));
            minuses = minuses ^ L::keep(negative, L::Int::splat(1));
            let matters = w * x * x;
            at = L::select(matters.lt(least), L::splat(i as f32), at);
            least = matters.min(least);
        }
        if even {
            let odd = zero.lt(L::from_int(minuses));
            for i in 0..8 {
                let gives_up = odd & at.eq(L::splat(i as f32));
                let magnitude = magnitudes[8 * k + i];
                magnitudes[8 * k + i] = L::select(gives_up, -magnitude, magnitude);
                bits = bits ^ L::keep(gives_up, L::Int::splat(1 << i));
            }
            bits = bits & L::Int::splat(0x7f);
        }
        signs[k] = bits;
    }
    (magnitudes, signs)
}

/// The points of a group; 1 for each that came in place of digits that are no point, else 0.
struct Points<L: Lanes> {
    codes: [L::Int; 8],
    replaced: [L; 8],
}

impl<L: Lanes> Points<L> {
    #[inline(always)]
    fn none(replaced: bool) -> Self {
        Points { codes: [L::Int::splat(0); 8], replaced: [L::splat(if replaced { 1.0 } else { 0.0 }); 8] }
    }

    #[inline(always)]
    fn replace(&mut self, mask: L::Mask, other: &Points<L>) {
        for k in 0..8 {
            self.codes[k] = L::choose(mask, other.codes[k], self.codes[k]);
            self.replaced[k] = L::select(mask, other.replaced[k], self.replaced[k]);
        }
    }

    /// 1 for each point that is chosen again.
    #[inline(always)]
    fn again<const G: usize, const D: usize>(&self, redo: Redo) -> [L; 8] {
        let mut any = L::splat(if redo == Redo::All { 1.0 } else { 0.0 });
        if redo == Redo::Replaced {
            return self.replaced;
        }
        for &replaced in &self.replaced[..G / D] {
            any = any.max(replaced);
        }
        [any; 8]
    }
}

/// What all trials of a group have in common.
struct Search<'a, L, const G: usize, const D: usize, const V: usize> {
    codebook: &'a Codebook,
    x: &'a [L; G],
    w: &'a [L; G],
    wx: [L; G],
    /// The reference weighs the errors of points by the roots.
    roots: [L; G],
    scratch: [Errors; MAX_LANES],
}

impl<'a, L: Lanes, const G: usize, const D: usize, const V: usize> Search<'a, L, G, D, V> {
    #[inline(always)]
    fn new(rules: &'a Rules, x: &'a [L; G], w: &'a [L; G]) -> Self {
        let (mut wx, mut roots) = (*w, *w);
        for i in 0..G {
            wx[i] = w[i] * x[i];
            roots[i] = w[i].sqrt();
        }
        Search { codebook: rules.codebook, x, w, wx, roots, scratch: [[0.0; 32]; MAX_LANES] }
    }

    /// Tries all scales; of the best returns the solved scale and leaves the points. Where none is any good, both stay.
    #[inline(always)]
    fn best(&mut self, trials: &Trials, reach: L, mut scale: L, points: &mut Points<L>) -> L {
        let (zero, one) = (L::splat(0.0), L::splat(1.0));
        let mut best = zero;
        for trial in -trials.last..=trials.last {
            let inverse = L::splat(top::<V>() + trial as f32 * trials.step) / reach;
            let tried = self.points(inverse, one / inverse);
            let (sum_qx, sum_q2) = self.products(&tried);
            let better = zero.lt(sum_q2) & (best * sum_q2).lt(sum_qx * sum_qx);
            if L::any(better) {
                scale = L::select(better, sum_qx / sum_q2, scale);
                best = L::select(better, scale * sum_qx, best);
                points.replace(better, &tried);
            }
        }
        scale
    }

    /// Chooses points again under the scale that won, and solves for it once more.
    #[inline(always)]
    fn again(&mut self, redo: Redo, some: L::Mask, scale: L, points: &mut Points<L>) -> L {
        let zero = L::splat(0.0);
        let again = points.again::<G, D>(redo);
        let mut any = zero;
        for &again in &again[..G / D] {
            any = any.max(again);
        }
        let any = some & zero.lt(scale) & zero.lt(any);
        if !L::any(any) {
            return scale;
        }
        let tried = self.points(L::splat(1.0) / scale, scale);
        for (k, again) in again.iter().enumerate().take(G / D) {
            points.codes[k] = L::choose(any & zero.lt(*again), tried.codes[k], points.codes[k]);
        }
        let (sum_qx, sum_q2) = self.products(points);
        L::select(any & zero.lt(sum_q2), sum_qx / sum_q2, scale)
    }

    /// The best points under a scale and, rounded apart from it, its inverse.
    #[inline(always)]
    fn points(&mut self, inverse: L, scale: L) -> Points<L> {
        let mut levels = [scale; V];
        for (q, level) in levels.iter_mut().enumerate() {
            let unused = V == 4 && q == 3;
            *level = if unused { L::splat(f32::INFINITY) } else { scale * L::splat(2.0 * q as f32 + 1.0) };
        }
        let mut points = Points::none(false);
        let groups = self.x.as_chunks::<D>().0.iter().zip(self.roots.as_chunks::<D>().0);
        for (k, (x, roots)) in groups.enumerate() {
            let mut code = L::Int::splat(0);
            for (i, &x) in x.iter().enumerate() {
                let digit = nearest(L::splat(0.5) * (inverse * x - L::splat(1.0)));
                let digit = clamp(digit, 0.0, largest_digit::<V>()).truncate();
                code = code | digit << (i * bits(D)) as u32;
            }
            (points.codes[k], points.replaced[k]) =
                self.codebook.snap::<L, D, V>(code, x, roots, &levels, &mut self.scratch);
        }
        points
    }

    /// Sums of `w q x` and `w q q`.
    #[inline(always)]
    fn products(&self, points: &Points<L>) -> (L, L) {
        let (mut sum_qx, mut sum_q2) = (L::splat(0.0), L::splat(0.0));
        for i in 0..G {
            let digit = points.codes[i / D] >> (i % D * bits(D)) as u32 & L::Int::splat((1 << bits(D)) - 1);
            let q = L::from_int(digit + digit + L::Int::splat(1));
            sum_qx = sum_qx + self.wx[i] * q;
            sum_q2 = sum_q2 + self.w[i] * q * q;
        }
        (sum_qx, sum_q2)
    }
}

//! Ternary points of eight, all their values shifted up or down by an eighth: IQ1_S and IQ1_M.
//!
//! The weights of a group are sorted, so that two cuts tell which become -1, 0 and 1. Of all cuts and shifts those of least
//! squares win; only then each eight weights move to a point of the codebook.

use super::codebook::IQ1;
use super::lanes::{Ints, Lanes, MAX_LANES, clamp, energy, nearest};
use super::pack::Out;
use super::{Blocks, Importance, Kernel};

/// IQ1_S: eight groups of 32 with one shift.
pub struct Iq1S;

/// IQ1_M: sixteen groups of 16, each half with its own shift.
pub struct Iq1M;

const SHIFT: f32 = 0.125;
/// The values of -1, 0 and 1 when shifted up, and down.
const UP: [f32; 3] = [SHIFT - 1.0, SHIFT, SHIFT + 1.0];
const DOWN: [f32; 3] = [-SHIFT - 1.0, -SHIFT, 1.0 - SHIFT];

impl Kernel for Iq1S {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 50;
    const IMPORTANCE: Importance = Importance::Required;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let w = weigh(blocks);
        let mut groups = [Group::<L, 4>::none(); 8];
        let weights = blocks.x.as_chunks::<32>().0.iter().zip(w.as_chunks::<32>().0);
        for (group, (x, w)) in groups.iter_mut().zip(weights) {
            let sorted = Sorted::new(x, w);
            *group = Group::new(x, w, &sorted, cut_32(&sorted), 1e-12);
        }
        let (unit, scales, some) = scales(&groups);
        out.half(0, L::keep(some, (unit * L::splat(1.125)).to_half()));
        for (j, group) in groups.iter().enumerate() {
            let mut high = L::keep(some, scales[j] << 12 | group.down << 15);
            for (i, &code) in group.codes.iter().enumerate() {
                let index = IQ1.indices(code);
                out.byte(2 + 4 * j + i, index);
                high = high | index >> 8 << (3 * i as u32);
            }
            out.half(34 + 2 * j, high);
        }
    }
}

impl Kernel for Iq1M {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 56;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let w = weigh(blocks);
        let mut groups = [Group::<L, 2>::none(); 16];
        let weights = blocks.x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0);
        for (group, (x, w)) in groups.iter_mut().zip(weights) {
            let sorted = Sorted::new(x, w);
            *group = Group::new(x, w, &sorted, cut_16(&sorted), 1e-7);
        }
        let (unit, scales, some) = scales(&groups);

        // The block's scale is solved for anew under the rounded scales of its groups.
        let (mut sum_qx, mut sum_q2) = (L::splat(0.0), L::splat(0.0));
        let weights = blocks.x.as_chunks::<16>().0.iter().zip(w.as_chunks::<16>().0);
        for ((group, l), (x, w)) in groups.iter().zip(scales).zip(weights) {
            let scale = L::from_int(l + l + L::Int::splat(1));
            group.add_products(x, w, scale, &mut sum_qx, &mut sum_q2);
        }
        let unit = L::select(L::splat(0.0).lt(sum_q2), sum_qx / sum_q2, unit);
        let unit = L::keep(some, (unit * L::splat(1.1125)).to_half());

        for (j, group) in groups.iter().enumerate() {
            let (a, b) = (IQ1.indices(group.codes[0]), IQ1.indices(group.codes[1]));
            out.half(2 * j, a & L::Int::splat(0xff) | b << 8);
            let down = (group.down & L::Int::splat(2)) << 2 | (group.down & L::Int::splat(1)) << 7;
            out.byte(32 + j, a >> 8 | b >> 8 << 4 | L::keep(some, down));
        }
        for (j, l) in scales.as_chunks::<4>().0.iter().enumerate() {
            let scales = l[0] | l[1] << 3 | l[2] << 6 | l[3] << 9;
            let part = unit >> (4 * j as u32) & L::Int::splat(0xf);
            out.half(48 + 2 * j, L::keep(some, scales) | part << 12);
        }
    }
}

/// Weights of the errors of a block.
#[inline(always)]
fn weigh<L: Lanes>(blocks: &Blocks<'_, L>) -> [L; 256] {
    let spread = energy(blocks.x) * L::splat(2.0) / L::splat(256.0);
    let mut w = [L::splat(0.0); 256];
    for (i, &x) in blocks.x.iter().enumerate() {
        w[i] = match blocks.importance {
            Some(importance) => importance[i] * (spread + x * x).sqrt(),
            None => x * x,
        };
    }
    w
}

/// The unit of the groups' scales, these in three bits, and the blocks of which some group has one.
#[inline(always)]
fn scales<L: Lanes, const N: usize, const P: usize>(groups: &[Group<L, P>; N]) -> (L, [L::Int; N], L::Mask) {
    let mut max = L::splat(0.0);
    for group in groups {
        max = max.max(group.scale);
    }
    let unit = max / L::splat(15.0);
    let inverse = L::splat(1.0) / unit;
    let mut scales = [L::Int::splat(0); N];
    for (l, group) in scales.iter_mut().zip(groups) {
        *l = clamp(nearest(L::splat(0.5) * (inverse * group.scale - L::splat(1.0))), 0.0, 7.0).truncate();
    }
    (unit, scales, !max.eq(L::splat(0.0)))
}

/// The weights of a group in ascending order; of equal ones the first comes first.
struct Sorted<L: Lanes, const N: usize> {
    x: [L; N],
    w: [L; N],
    /// Where they were.
    at: [L::Int; N],
}

impl<L: Lanes, const N: usize> Sorted<L, N> {
    #[inline(always)]
    fn new(x: &[L; N], w: &[L; N]) -> Self {
        let mut sorted = Sorted { x: *x, w: *w, at: [L::Int::splat(0); N] };
        let Sorted { x, w, at } = &mut sorted;
        for i in 0..N {
            at[i] = L::Int::splat(i as i32);
            // By insertion, until the new weight has come to rest in every lane.
            for j in (0..i).rev() {
                let swap = x[j + 1].lt(x[j]);
                if !L::any(swap) {
                    break;
                }
                (x[j], x[j + 1]) = (L::select(swap, x[j + 1], x[j]), L::select(swap, x[j], x[j + 1]));
                (w[j], w[j + 1]) = (L::select(swap, w[j + 1], w[j]), L::select(swap, w[j], w[j + 1]));
                (at[j], at[j + 1]) = (L::choose(swap, at[j + 1], at[j]), L::choose(swap, at[j], at[j + 1]));
            }
        }
        sorted
    }
}

/// The best cuts and shifts so far.
struct Cut<L> {
    scale: L,
    score: L,
    /// As [`Cut::pack`] has it; -1 for none.
    choice: L,
}

impl<L: Lanes> Cut<L> {
    #[inline(always)]
    fn none() -> Self {
        Cut { scale: L::splat(0.0), score: L::splat(-f32::MAX), choice: L::splat(-1.0) }
    }

    /// Of the sorted weights, those from `low` on are 0 and those from `high` on 1. `down` has bit 1 if the first half of
    /// the group is shifted down, bit 0 if the second is.
    fn pack(low: usize, high: usize, down: usize) -> f32 {
        ((low << 6 | high) << 2 | down) as f32
    }

    fn unpack(choice: i32) -> (usize, usize, i32) {
        ((choice >> 8) as usize, (choice >> 2 & 63) as usize, choice & 3)
    }

    #[inline(always)]
    fn offer(&mut self, choice: f32, sum_qx: L, sum_q2: L) {
        let better = L::splat(0.0).lt(sum_q2) & (self.score * sum_q2).lt(sum_qx * sum_qx);
        if L::any(better) {
            self.scale = L::select(better, sum_qx / sum_q2, self.scale);
            self.score = L::select(better, self.scale * sum_qx, self.score);
            self.choice = L::select(better, L::splat(choice), self.choice);
        }
    }
}

/// All cuts of 32 weights with one shift.
#[inline(always)]
fn cut_32<L: Lanes>(sorted: &Sorted<L, 32>) -> Cut<L> {
    let (mut sum_x, mut sum_w) = ([L::splat(0.0); 33], [L::splat(0.0); 33]);
    for j in 0..32 {
        sum_x[j + 1] = sum_x[j] + sorted.w[j] * sorted.x[j];
        sum_w[j + 1] = sum_w[j] + sorted.w[j];
    }
    // What the weights above the upper cut add, by cut and shift.
    let (mut above_x, mut above_w) = ([[L::splat(0.0); 2]; 33], [[L::splat(0.0); 2]; 33]);
    for j in 0..33 {
        for (s, values) in [UP, DOWN].iter().enumerate() {
            let top = L::splat(values[2]);
            above_x[j][s] = (sum_x[32] - sum_x[j]) * top;
            above_w[j][s] = (sum_w[32] - sum_w[j]) * top * top;
        }
    }
    let mut best = Cut::none();
    for low in 0..33 {
        let (up, down) = (L::splat(UP[0]), L::splat(DOWN[0]));
        let below_x = [sum_x[low] * up, sum_x[low] * down];
        let below_w = [sum_w[low] * up * up, sum_w[low] * down * down];
        for high in low..33 {
            let shift = L::splat(SHIFT);
            let x = (sum_x[high] - sum_x[low]) * shift;
            let w = (sum_w[high] - sum_w[low]) * shift * shift;
            // Zeros shifted down are those shifted up, with the other sign.
            let (sum_qx, sum_q2) = (below_x[0] + x + above_x[high][0], below_w[0] + w + above_w[high][0]);
            best.offer(Cut::<L>::pack(low, high, 0), sum_qx, sum_q2);
            let (sum_qx, sum_q2) = (below_x[1] - x + above_x[high][1], below_w[1] + w + above_w[high][1]);
            best.offer(Cut::<L>::pack(low, high, 3), sum_qx, sum_q2);
        }
    }
    best
}

/// All cuts of 16 weights whose halves may be shifted apart. The sums of a half are those of its top value over all its
/// weights, less what each cut takes away.
#[inline(always)]
fn cut_16<L: Lanes>(sorted: &Sorted<L, 16>) -> Cut<L> {
    let zero = L::splat(0.0);
    let (mut sum_x, mut sum_w) = ([[zero; 2]; 17], [[zero; 2]; 17]);
    for j in 0..16 {
        let first = L::from_int(sorted.at[j]).lt(L::splat(8.0));
        let (x, w) = (sorted.w[j] * sorted.x[j], sorted.w[j]);
        for (h, here) in [first, !first].into_iter().enumerate() {
            sum_x[j + 1][h] = L::select(here, sum_x[j][h] + x, sum_x[j][h]);
            sum_w[j + 1][h] = L::select(here, sum_w[j][h] + w, sum_w[j][h]);
        }
    }
    // By half, then by shift.
    let (mut all_x, mut all_w) = ([[zero; 2]; 2], [[zero; 2]; 2]);
    for h in 0..2 {
        for (s, values) in [UP, DOWN].iter().enumerate() {
            let top = L::splat(values[2]);
            all_x[h][s] = sum_x[16][h] * top;
            all_w[h][s] = sum_w[16][h] * top * top;
        }
    }
    let mut best = Cut::none();
    for low in 0..17 {
        for high in low..17 {
            let (mut qx, mut q2) = ([[zero; 2]; 2], [[zero; 2]; 2]);
            for h in 0..2 {
                let x = sum_x[low][h] + sum_x[high][h];
                for (s, [a, b, c]) in [UP, DOWN].into_iter().enumerate() {
                    qx[h][s] = all_x[h][s] - x;
                    let low = sum_w[low][h] * L::splat(a * a - b * b);
                    let high = sum_w[high][h] * L::splat(b * b - c * c);
                    q2[h][s] = all_w[h][s] + low + high;
                }
            }
            for down in 0..4 {
                let (first, second) = (down >> 1, down & 1);
                let (sum_qx, sum_q2) = (qx[0][first] + qx[1][second], q2[0][first] + q2[1][second]);
                best.offer(Cut::<L>::pack(low, high, down), sum_qx, sum_q2);
            }
        }
    }
    best
}

/// Weights under one scale: `P` points of eight.
#[derive(Clone, Copy)]
struct Group<L: Lanes, const P: usize> {
    codes: [L::Int; P],
    /// Which halves are shifted down, as in [`Cut::pack`].
    down: L::Int,
    scale: L,
}

impl<L: Lanes, const P: usize> Group<L, P> {
    #[inline(always)]
    fn none() -> Self {
        Group { codes: [L::Int::splat(0); P], down: L::Int::splat(0), scale: L::splat(0.0) }
    }

    /// The cut's digits, moved to points. Groups whose magnitudes are all below `tiny` are zero.
    #[inline(always)]
    fn new<const N: usize>(x: &[L; N], w: &[L; N], sorted: &Sorted<L, N>, cut: Cut<L>, tiny: f32) -> Self {
        const { assert!(N == 8 * P) };
        let zero = L::splat(0.0);
        let magnitude = sorted.x[0].abs().max(sorted.x[N - 1].abs());
        let some = !magnitude.lt(L::splat(tiny)) & !cut.choice.lt(zero);
        let mut group = cut.group(sorted);
        let mut any = zero;
        let mut scratch = [[0.0; 32]; MAX_LANES];
        for k in 0..P {
            let (x, w) = (&x.as_chunks::<8>().0[k], &w.as_chunks::<8>().0[k]);
            let mut levels = group.levels(k);
            for level in &mut levels {
                *level = group.scale * *level;
            }
            let missed;
            (group.codes[k], missed) = IQ1.snap::<L, 8, 4>(group.codes[k], x, w, &levels, &mut scratch);
            any = any.max(missed);
        }
        let (mut sum_qx, mut sum_q2) = (zero, zero);
        group.add_products(x, w, L::splat(1.0), &mut sum_qx, &mut sum_q2);
        let solved = zero.lt(any) & zero.lt(sum_qx) & zero.lt(sum_q2);
        group.scale = L::select(some, L::select(solved, sum_qx / sum_q2, group.scale), zero);
        group.down = L::keep(some, group.down);
        for code in &mut group.codes {
            *code = L::keep(some, *code);
        }
        group
    }

    /// The values of the digits of point `k`; the last is no digit's.
    #[inline(always)]
    fn levels(&self, k: usize) -> [L; 4] {
        let half = if k < P / 2 { self.down >> 1 } else { self.down };
        let down = L::splat(0.0).lt(L::from_int(half & L::Int::splat(1)));
        let mut levels = [L::splat(f32::INFINITY); 4];
        for (level, (up, low)) in levels.iter_mut().zip(UP.into_iter().zip(DOWN)) {
            *level = L::select(down, L::splat(low), L::splat(up));
        }
        levels
    }

    /// Adds to the sums of `w q x` and `w q q`, the values multiplied by `scale`.
    #[inline(always)]
    fn add_products<const N: usize>(&self, x: &[L; N], w: &[L; N], scale: L, sum_qx: &mut L, sum_q2: &mut L) {
        for i in 0..N {
            let digit = self.codes[i / 8] >> (i % 8 * 2) as u32 & L::Int::splat(3);
            // The value of 0 is the shift.
            let value = L::from_int(digit - L::Int::splat(1)) + self.levels(i / 8)[1];
            let q = value * scale;
            *sum_qx = *sum_qx + w[i] * q * x[i];
            *sum_q2 = *sum_q2 + w[i] * q * q;
        }
    }
}

impl<L: Lanes> Cut<L> {
    /// Its digits where the weights were, under a scale that is not negative.
    #[inline(always)]
    fn group<const N: usize, const P: usize>(&self, sorted: &Sorted<L, N>) -> Group<L, P> {
        let choices = self.choice.truncate().to_array();
        let flipped = L::keep(self.scale.lt(L::splat(0.0)), L::Int::splat(1)).to_array();
        let mut at = [[0; MAX_LANES]; N];
        for (at, sorted) in at.iter_mut().zip(&sorted.at) {
            *at = sorted.to_array();
        }
        let mut codes = [[0; MAX_LANES]; P];
        let mut downs = [0; MAX_LANES];
        for lane in 0..L::N {
            let (low, high, mut down) = Self::unpack(choices[lane].max(0));
            // Two bits for each of up to 32 weights.
            let mut digits = 0u64;
            for at in &at[low..] {
                digits += 1 << (2 * at[lane]);
            }
            for at in &at[high..] {
                digits += 1 << (2 * at[lane]);
            }
            if flipped[lane] != 0 {
                digits = (0xaaaa_aaaa_aaaa_aaaa >> (64 - 2 * N)) - digits;
                down = 3 - down;
            }
            for (k, code) in codes.iter_mut().enumerate() {
                code[lane] = (digits >> (16 * k)) as i32 & 0xffff;
            }
            downs[lane] = down;
        }
        let mut group = Group::none();
        for (code, lanes) in group.codes.iter_mut().zip(&codes) {
            *code = L::Int::from_array(lanes);
        }
        group.down = L::Int::from_array(&downs);
        group.scale = self.scale.abs();
        group
    }
}

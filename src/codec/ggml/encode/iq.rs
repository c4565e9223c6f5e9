//! Rules and layouts of the formats with signed codebooks: IQ2_XXS, IQ2_XS, IQ2_S, IQ3_XXS and IQ3_S.

use super::codebook::{self, Codebook};
use super::lanes::{Ints, Lanes};
use super::lattice::{Encoded, Group, Redo, Rules, Trials, encode};
use super::pack::{Out, bytes};
use super::search::TINY;
use super::{Blocks, Importance, Kernel};

/// IQ2_XXS: 256 points of eight, groups of 32.
pub struct Iq2Xxs;

/// IQ2_XS: 512 points of eight, groups of 16.
pub struct Iq2Xs;

/// IQ2_S: 1024 points of eight, groups of 16.
pub struct Iq2S;

/// IQ3_XXS: 256 points of four, groups of 32.
pub struct Iq3Xxs;

/// IQ3_S: 512 points of four, groups of 32.
pub struct Iq3S;

impl Kernel for Iq2Xxs {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 66;
    const IMPORTANCE: Importance = Importance::Required;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let rules = Rules {
            codebook: &codebook::IQ2_XXS,
            even: true,
            tiny: TINY,
            spread: 1.0,
            floor: 0.0,
            trials: Trials { last: 6, step: 0.1, solved: true },
            redo: Redo::All,
            fudge: 1.0,
        };
        let Encoded { unit, groups, scales, some } = encode::<L, 8, 32, 8, 4>(&rules, blocks);
        out.half(0, unit);
        for (j, group) in groups.iter().enumerate() {
            let points = four(rules.codebook, &group.codes[..4]);
            let signs = sevens(&group.signs) | scales[j] << 28;
            out.word(2 + 8 * j, L::keep(some, points));
            out.word(6 + 8 * j, L::keep(some, signs));
        }
    }
}

impl Kernel for Iq2Xs {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 74;
    const IMPORTANCE: Importance = Importance::Required;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let rules = Rules {
            codebook: &codebook::IQ2_XS,
            even: true,
            tiny: TINY,
            spread: 1.0,
            floor: 0.0,
            trials: Trials { last: 9, step: 0.1, solved: false },
            redo: Redo::Replaced,
            fudge: 1.0,
        };
        let Encoded { unit, groups, scales, some } = encode::<L, 16, 16, 8, 4>(&rules, blocks);
        out.half(0, unit);
        for (j, group) in groups.iter().enumerate() {
            let low = rules.codebook.indices(group.codes[0]) | group.signs[0] << 9;
            let high = rules.codebook.indices(group.codes[1]) | group.signs[1] << 9;
            out.word(2 + 4 * j, L::keep(some, low | high << 16));
        }
        nibbles(&scales, 66, out);
    }
}

impl Kernel for Iq2S {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 82;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let rules = Rules {
            codebook: &codebook::IQ2_S,
            even: false,
            tiny: 1e-8,
            spread: 2.0,
            floor: 0.25,
            trials: Trials { last: 9, step: 0.1, solved: false },
            redo: Redo::Replaced,
            fudge: 0.9875,
        };
        let Encoded { unit, groups, scales, .. } = encode::<L, 16, 16, 8, 4>(&rules, blocks);
        out.half(0, unit);
        for (j, pair) in groups.as_chunks::<2>().0.iter().enumerate() {
            let mut high = L::Int::splat(0);
            for (i, group) in pair.iter().enumerate() {
                let (a, b) = (rules.codebook.indices(group.codes[0]), rules.codebook.indices(group.codes[1]));
                out.half(2 + 4 * j + 2 * i, a & L::Int::splat(0xff) | b << 8);
                out.half(34 + 4 * j + 2 * i, group.signs[0] | group.signs[1] << 8);
                high = high | (a >> 8 | b >> 8 << 2) << (4 * i as u32);
            }
            out.byte(66 + j, high);
        }
        nibbles(&scales, 74, out);
    }
}

impl Kernel for Iq3Xxs {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 98;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let rules = Rules {
            codebook: &codebook::IQ3_XXS,
            even: true,
            tiny: 1e-8,
            spread: 2.0,
            floor: 0.0,
            trials: Trials { last: 15, step: 0.2, solved: false },
            redo: Redo::Replaced,
            fudge: 1.0125,
        };
        let Encoded { unit, groups, scales, some } = encode::<L, 8, 32, 4, 8>(&rules, blocks);
        out.half(0, unit);
        for (j, group) in groups.iter().enumerate() {
            for (i, codes) in group.codes.chunks_exact(4).enumerate() {
                out.word(2 + 8 * j + 4 * i, L::keep(some, four(rules.codebook, codes)));
            }
            let signs = sevens(&group.signs) | scales[j] << 28;
            out.word(66 + 4 * j, L::keep(some, signs));
        }
    }
}

impl Kernel for Iq3S {
    const WEIGHTS: usize = 256;
    const BYTES: usize = 110;

    #[inline(always)]
    fn encode<L: Lanes>(blocks: &Blocks<'_, L>, out: &mut Out<'_>) {
        let rules = Rules {
            codebook: &codebook::IQ3_S,
            even: false,
            tiny: f32::from_bits(1),
            spread: 2.0,
            floor: 0.0,
            trials: Trials { last: 9, step: 0.2, solved: false },
            redo: Redo::AllIfReplaced,
            fudge: 1.033,
        };
        let Encoded { unit, groups, scales, .. } = encode::<L, 8, 32, 4, 8>(&rules, blocks);
        out.half(0, unit);
        let mut words = [[L::Int::splat(0); 3]; 8];
        for (j, (words, group)) in words.iter_mut().zip(&groups).enumerate() {
            let mut high = L::Int::splat(0);
            for (i, &code) in group.codes.iter().enumerate() {
                let index = rules.codebook.indices(code);
                words[i / 4] = words[i / 4] | (index & L::Int::splat(0xff)) << (i % 4 * 8) as u32;
                high = high | index >> 8 << i as u32;
            }
            words[2] = bytes(group.signs);
            out.byte(66 + j, high);
        }
        close_gaps::<L>(&groups, &mut words);
        for (j, [low, high, signs]) in words.into_iter().enumerate() {
            out.word(2 + 8 * j, low);
            out.word(6 + 8 * j, high);
            out.word(74 + 4 * j, signs);
        }
        nibbles(&scales, 106, out);
    }
}

/// Where a group is zero, the reference writes the points and signs of those behind it one place earlier, though not the
/// points' ninth bits nor the scales. Such a block decodes to other weights; its bytes are those of the reference.
#[inline(always)]
fn close_gaps<L: Lanes>(groups: &[Group<L>; 8], words: &mut [[L::Int; 3]; 8]) {
    // Last to first: all behind a gap moves up by one, and the last place stays empty.
    for gap in (0..8).rev() {
        let zero = !groups[gap].some;
        if !L::any(zero) {
            continue;
        }
        for j in gap..8 {
            let next = if j + 1 < 8 { words[j + 1] } else { [L::Int::splat(0); 3] };
            for (word, next) in words[j].iter_mut().zip(next) {
                *word = L::choose(zero, next, *word);
            }
        }
    }
}

/// The indices of four points, a byte each.
#[inline(always)]
fn four<I: Ints>(codebook: &Codebook, codes: &[I]) -> I {
    let mut word = I::splat(0);
    for (i, &code) in codes.iter().enumerate() {
        word = word | codebook.indices(code) << (8 * i as u32);
    }
    word
}

/// Four times seven bits.
#[inline(always)]
fn sevens<I: Ints>(signs: &[I; 4]) -> I {
    signs[0] | signs[1] << 7 | signs[2] << 14 | signs[3] << 21
}

/// Two scales a byte, from this offset on.
#[inline(always)]
fn nibbles<I: Ints>(scales: &[I], at: usize, out: &mut Out<'_>) {
    for (j, pair) in scales.as_chunks::<2>().0.iter().enumerate() {
        out.byte(at + j, pair[0] | pair[1] << 4);
    }
}

//! Every way to run every encoder, against the plain one and against files that llama.cpp's own encoders made.

use std::collections::BTreeMap;
use std::path::Path;

use super::lanes::{Lanes, MAX_LANES, nearest, round_away};
use super::*;
use crate::codec::block::EncodeFn;

/// One encoder, by the ggml type id that the golden files carry.
struct Case {
    id: u32,
    weights: usize,
    bytes: usize,
    encode: Encode,
    ways: Vec<(&'static str, EncodeFn)>,
}

fn case<K: Kernel>(id: u32) -> Case {
    let encode = encoder::<K>();
    #[allow(unused_mut)]
    let mut ways: Vec<(_, EncodeFn)> = vec![("plain", encode.plain), ("run", encode.run)];
    #[cfg(target_arch = "x86_64")]
    {
        if lanes::avx2::available() {
            // SAFETY: just asked.
            ways.push(("avx2", |w, cols, i, out| unsafe { lanes::avx2::run::<K>(w, cols, i, out) }));
        }
        if lanes::avx512::available() {
            // SAFETY: just asked.
            ways.push(("avx512", |w, cols, i, out| unsafe { lanes::avx512::run::<K>(w, cols, i, out) }));
        }
    }
    Case { id, weights: K::WEIGHTS, bytes: K::BYTES, encode, ways }
}

fn cases() -> Vec<Case> {
    vec![
        case::<simple::Signed<4>>(2),
        case::<simple::ScaleMin<4>>(3),
        case::<simple::Signed<5>>(6),
        case::<simple::ScaleMin<5>>(7),
        case::<simple::EightBit>(8),
        case::<k::Two>(10),
        case::<k_signed::Three>(11),
        case::<k::FourOrFive<4>>(12),
        case::<k::FourOrFive<5>>(13),
        case::<k_signed::Six>(14),
        case::<iq::Iq2Xxs>(16),
        case::<iq::Iq2Xs>(17),
        case::<iq::Iq3Xxs>(18),
        case::<iq1::Iq1S>(19),
        case::<iq4::Block32>(20),
        case::<iq::Iq3S>(21),
        case::<iq::Iq2S>(22),
        case::<iq4::Block256>(23),
        case::<iq1::Iq1M>(29),
        case::<ternary::Base3>(34),
        case::<ternary::Base4>(35),
        case::<fp4::PowerOfTwo>(39),
        case::<fp4::SmallFloat>(40),
        case::<simple::Sign>(41),
        case::<simple::TwoBit>(42),
    ]
}

/// A finalizer of 32-bit hashes over a counter, as in `tests/golden/encode/make.py`.
fn scramble(index: usize, seed: u32) -> u32 {
    let h = (index as u32).wrapping_mul(0x9E37_79B9).wrapping_add(seed);
    let h = (h ^ (h >> 16)).wrapping_mul(0x85EB_CA6B);
    let h = (h ^ (h >> 13)).wrapping_mul(0xC2B2_AE35);
    h ^ (h >> 16)
}

fn scale(mantissa: i64, exponent: i32) -> f32 {
    (mantissa as f64 * 2f64.powi(exponent)) as f32
}

const KINDS: usize = 12;

/// Types whose reference ends the process where squares overflow.
const MODEST: [u32; 7] = [16, 17, 18, 19, 21, 22, 29];

/// Twelve kinds of super-block in turn, as in `make.py`.
fn weights(n: usize, seed: u32, modest: bool) -> Vec<f32> {
    let weight = |i: usize| {
        let (a, b, pick) = (scramble(i, seed), scramble(i, seed + 1), scramble(i, seed + 2));
        let bell = [a & 0xffff, a >> 16, b & 0xffff, b >> 16].iter().map(|&x| i64::from(x)).sum::<i64>() - 131_070;
        match i / 256 % KINDS {
            0 => scale(bell, -21),
            1 => scale(if pick % 50 == 0 { 64 * bell } else { bell }, -21),
            2 => scale(45_875, -16),
            3 => 0.0,
            4 => scale(bell, -120),
            5 => scale(bell, -149),
            6 => scale(bell, if modest { 10 } else { 83 }),
            7 => scale(bell.abs(), -21),
            8 => scale(-bell.abs(), -21),
            9 => scale(bell >> 15, -3),
            10 => scale(if pick % 10 == 0 { bell } else { 0 }, -17),
            _ => scale(bell, -40 + 5 * (i / 32 % 8) as i32),
        }
    };
    (0..n).map(weight).collect()
}

/// An eighth of the columns do not matter, as in `make.py`.
fn importance(cols: usize, seed: u32) -> Vec<f32> {
    let one = |i| {
        let h = scramble(i, seed);
        scale(if h >> 28 == 0 { 0 } else { i64::from(h & 0x3ff) }, -((h >> 12 & 7) as i32))
    };
    (0..cols).map(one).collect()
}

/// Nothing, what `make.py` uses, all zero, one column in sixteen, and tiny.
fn importances(cols: usize, seed: u32) -> Vec<Option<Vec<f32>>> {
    let usual = importance(cols, seed);
    let sparse = (0..cols).map(|i| if scramble(i, seed).is_multiple_of(16) { 1.0 } else { 0.0 }).collect();
    let tiny = usual.iter().map(|x| x * 1e-38).collect();
    vec![None, Some(usual), Some(vec![0.0; cols]), Some(sparse), Some(tiny)]
}

#[test]
fn every_way_gives_the_plain_bytes() {
    for case in cases() {
        // Fewer blocks than lanes, a ragged end, rows that start within a group of lanes.
        for (seed, (rows, cols)) in
            [(1, case.weights), (3, 768), (5, 5 * 256), (1, 3 * 16 * 256)].into_iter().enumerate()
        {
            let seed = 10 * seed as u32 + 100;
            let w = weights(rows * cols, seed, false);
            for (which, importance) in importances(cols, seed).iter().enumerate() {
                let size = w.len() / case.weights * case.bytes;
                let mut plain = vec![0; size];
                (case.encode.plain)(&w, cols, importance.as_deref(), &mut plain);
                for (way, run) in &case.ways {
                    let mut out = vec![0xaa; size];
                    run(&w, cols, importance.as_deref(), &mut out);
                    let differs = plain.iter().zip(&out).position(|(a, b)| a != b);
                    assert_eq!(
                        differs, None,
                        "type {} {way}, {rows} x {cols}, importance {which}: first byte",
                        case.id
                    );
                }
            }
        }
    }
}

#[test]
fn importance_matters_where_it_says_so() {
    for case in cases() {
        let w = weights(256, 1, false);
        let mut out = [None, Some(importance(256, 4))].map(|importance| {
            let mut out = vec![0; 256 / case.weights * case.bytes];
            (case.encode.run)(&w, 256, importance.as_deref(), &mut out);
            out
        });
        let same = out[0] == out[1];
        assert_eq!(same, case.encode.importance == Importance::Ignored, "type {}", case.id);
        out[0].clear();
        (case.encode.run)(&[], 0, Some(&[]), &mut out[0]);
    }
}

/// `key=value` of a golden file's first line, and the rest.
fn golden(path: &Path) -> (BTreeMap<String, String>, Vec<u8>) {
    let mut bytes = std::fs::read(path).unwrap();
    let end = bytes.iter().position(|&b| b == b'\n').unwrap();
    let rest = bytes.split_off(end + 1);
    let header = String::from_utf8(bytes).unwrap();
    let pairs = header.split_whitespace().map(|pair| pair.split_once('=').unwrap());
    (pairs.map(|(k, v)| (k.to_string(), v.to_string())).collect(), rest)
}

#[test]
fn bytes_are_those_of_llama_cpp() {
    let cases = cases();
    let mut seen = BTreeMap::new();
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/encode");
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "bin") {
            continue;
        }
        let (header, want) = golden(&path);
        let number = |key: &str| header[key].parse::<usize>().unwrap();
        let (rows, cols) = (number("rows"), number("cols"));
        let case = cases.iter().find(|c| c.id as usize == number("type")).unwrap();
        let importance = (number("importance") == 1).then(|| importance(cols, 4));
        let w = weights(rows * cols, 1, MODEST.contains(&case.id));
        for (way, run) in &case.ways {
            let mut out = vec![0xaa; w.len() / case.weights * case.bytes];
            run(&w, cols, importance.as_deref(), &mut out);
            let differs = want.iter().zip(&out).position(|(a, b)| a != b);
            assert_eq!((differs, want.len()), (None, out.len()), "{} {way}: first byte", path.display());
        }
        seen.insert((case.id, importance.is_some()), path);
    }
    for case in cases {
        let importance = case.encode.importance;
        let ways = [(false, importance != Importance::Required), (true, importance != Importance::Ignored)];
        for (with, used) in ways {
            assert_eq!(seen.contains_key(&(case.id, with)), used, "golden file of type {}, importance {with}", case.id);
        }
    }
}

/// Floats within some units in the last place.
fn around(x: f32, ulps: i32) -> impl Iterator<Item = f32> {
    (-ulps..=ulps).map(move |d| f32::from_bits(x.to_bits().wrapping_add_signed(d))).filter(|x| x.is_finite())
}

#[test]
fn nearest_is_the_integer_that_the_mantissa_holds() {
    let reference = |x: f32| ((x + 12_582_912.0).to_bits() & 0x007f_ffff) as i32 - 0x0040_0000;
    let spread = (0..100_000).map(|i| f32::from_bits(scramble(i, 1))).chain([0.0, -0.0, f32::INFINITY, f32::NAN]);
    let halves = (-300..300).flat_map(|i| around(i as f32 / 2.0, 3));
    for x in spread.chain(halves) {
        assert_eq!(nearest(x), reference(x) as f32, "{x}");
    }
}

#[test]
fn round_away_is_round() {
    let near = (-300..300).flat_map(|i| around(i as f32 / 2.0, 3)).chain(around(0.5, 100));
    for x in near.chain((0..100_000).map(|i| f32::from_bits(scramble(i, 1))).filter(|x| x.abs() < 8_388_608.0)) {
        assert_eq!(round_away(x).to_array()[0], x.round() as i32, "{x}");
    }
}

#[test]
fn one_lane_truncates_as_the_hardware_does() {
    for (x, want) in [(2.9, 2), (-2.9, -2), (3e9, i32::MIN), (-3e9, i32::MIN), (f32::NAN, i32::MIN)] {
        assert_eq!(x.truncate().to_array()[0], want, "{x}");
    }
}

#[test]
fn gather_transposes_and_scatter_goes_back() {
    fn check<L: Lanes>() {
        let source: Vec<f32> = (0..400).map(|i| i as f32).collect();
        let mut at = [0; MAX_LANES];
        for (lane, at) in at.iter_mut().enumerate() {
            *at = lane * 23 % 300;
        }
        let mut columns = [L::splat(-1.0); 12];
        L::gather(&source, &at, &mut columns);
        for (c, column) in columns.iter().enumerate() {
            let lanes = column.truncate().to_array();
            for lane in 0..L::N {
                assert_eq!(lanes[lane] as usize, at[lane] + c, "{} lanes", L::N);
            }
        }
        let mut blocks = [[0.0; 32]; MAX_LANES];
        L::scatter(&columns.as_chunks().0[1], &mut blocks, 20);
        for (block, at) in blocks[..L::N].iter().zip(at) {
            assert_eq!(block[20..24], source[at + 4..at + 8], "{} lanes", L::N);
        }
    }
    check::<f32>();
    #[cfg(target_arch = "x86_64")]
    {
        if lanes::avx2::available() {
            check::<lanes::avx2::F32x8>();
        }
        if lanes::avx512::available() {
            check::<lanes::avx512::F32x16>();
        }
    }
}

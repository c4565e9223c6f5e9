use super::*;
use crate::error::Kind;

/// Normal values, some channels with an offset of their own, as keys have.
fn keys(tokens: usize, head_dim: usize, offset: f32) -> Vec<f32> {
    let mut state = 7u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 24) as f32 - 0.5
    };
    let mut x: Vec<f32> = (0..tokens * head_dim).map(|_| (0..12).map(|_| uniform()).sum()).collect();
    for vector in x.chunks_exact_mut(head_dim) {
        vector[3] += offset;
        vector[head_dim / 2 + 1] -= offset / 2.0;
    }
    x
}

/// Mean square of what a round trip changes, over the mean square.
fn error(vectors: &dyn Vectors, x: &[f32], head_dim: usize) -> f64 {
    let tokens = x.len() / head_dim;
    let shared = match vectors.calibration() {
        0 => Vec::new(),
        n => vectors.shared(&x[..n * head_dim], head_dim),
    };
    assert_eq!(shared.len(), vectors.shared_bytes(head_dim));
    let mut bytes = vec![0; tokens / vectors.tokens() * vectors.bytes(head_dim)];
    vectors.encode(x, head_dim, &shared, &mut bytes);
    let mut back = vec![f32::NAN; x.len()];
    vectors.decode(&bytes, head_dim, &shared, &mut back);
    let square = |x: f32| f64::from(x) * f64::from(x);
    let lost: f64 = x.iter().zip(&back).map(|(x, y)| square(x - y)).sum();
    lost / x.iter().map(|x| square(*x)).sum::<f64>()
}

fn format(name: &str) -> &'static KvFormat {
    KV_FORMATS.iter().find(|f| f.name == name).unwrap()
}

#[test]
fn names_are_unique_and_do_not_begin_with_a_digit() {
    for (i, f) in KV_FORMATS.iter().enumerate() {
        assert!(KV_FORMATS[..i].iter().all(|other| other.name != f.name), "{}", f.name);
        assert!(f.name.starts_with(|c: char| c.is_ascii_lowercase()));
    }
}

/// Every row, on heads of every size that it takes: what theory leaves of uniform rounding, four times less with every bit.
#[test]
fn the_error_of_a_round_trip_falls_with_bits() {
    for head_dim in [64, 80, 96, 128, 256] {
        let x = keys(256, head_dim, 0.0);
        for f in KV_FORMATS {
            for (stored, bits) in [f.key, f.value].into_iter().zip(f.bits(head_dim)) {
                if stored.vectors.check(head_dim).is_err() {
                    assert_eq!(head_dim, 80, "{}", f.name);
                    continue;
                }
                let error = error(stored.vectors, &x, head_dim);
                // The worst: a step of the range of 256 normal values. Floats of 3 mantissa bits lose as much as 7 bits.
                let bits = if f.name == "fp8" { 7.0 } else { bits.floor().min(9.0) };
                let most = 12.0 * 4f64.powf(-bits);
                assert!(error <= most, "{} of {head_dim}: {error:.2e} at {bits} bits, expected {most:.2e}", f.name);
            }
        }
    }
    let x = keys(256, 64, 0.0);
    for falling in [
        &["f32", "f16", "bf16", "q8_0", "q5_0", "q4_0", "q3", "q2"][..],
        &["q8h", "q5h", "q4h", "q3h", "q2h"],
        &["kivi4", "kivi2"],
        &["kvquant4", "kvquant3"],
        &["turbo4", "turbo3", "turbo2"],
        &["q5_1", "q4_1"],
        &["int8", "fp8"],
    ] {
        for pair in falling.windows(2) {
            for side in [|f: &KvFormat| f.key, |f: &KvFormat| f.value] {
                let [better, worse] = [pair[0], pair[1]].map(|name| error(side(format(name)).vectors, &x, 64));
                assert!(better < worse, "{pair:?}: {better:.2e} {worse:.2e}");
            }
        }
    }
    assert_eq!(error(format("f32").key.vectors, &x, 64), 0.0);
    // Of normal variables: E4M3, blocks of 32, and Max's codebooks.
    for (name, known) in [("fp8", 7.0e-4), ("q8_0", 2.9e-5), ("q4_0", 7.4e-3), ("turbo4", 9.5e-3), ("turbo2", 0.1175)] {
        let error = error(format(name).key.vectors, &x, 64);
        assert!((error / known - 1.0).abs() < 0.15, "{name}: {error:.2e}");
    }
}

/// An offset of a channel that all tokens share breaks blocks of a token; rotation spreads it, channels absorb it.
#[test]
fn rotation_and_channels_bear_an_offset() {
    let x = keys(256, 64, 12.0);
    let lost =
        |name: &str| error(format(name).key.vectors, &x, 64) / error(format(name).key.vectors, &keys(256, 64, 0.0), 64);
    let plain = lost("q4_0");
    assert!(lost("q4h") < plain / 1.5, "{} {plain}", lost("q4h"));
    for by_channel in ["kivi4", "kvquant4", "q4hc"] {
        assert!(lost(by_channel) < plain / 8.0, "{by_channel} {} {plain}", lost(by_channel));
    }
}

#[test]
fn a_rotation_keeps_products_and_twice_is_nothing() {
    for dim in [32, 40, 64, 80, 96, 128, 256] {
        let (a, b) = (keys(3, dim, 1.0), keys(4, dim, 2.0));
        let b = &b[dim..];
        let (mut ha, mut hb) = (a.clone(), b.to_vec());
        hadamard(&mut ha, dim);
        hadamard(&mut hb, dim);
        for (i, j) in [(0, 0), (1, 2), (2, 1)] {
            let dot = |a: &[f32], b: &[f32]| -> f32 { (0..dim).map(|k| a[i * dim + k] * b[j * dim + k]).sum() };
            assert!((dot(&a, b) - dot(&ha, &hb)).abs() < 1e-5 * dim as f32);
        }
        hadamard(&mut ha, dim);
        assert!(a.iter().zip(&ha).all(|(a, b)| (a - b).abs() < 1e-5));
    }
}

/// Each level is the mean of what is rounded to it, and the error is the one known for the normal distribution.
#[test]
fn codebooks_are_lloyd_and_maxs() {
    for (levels, known) in super::turbo::CODEBOOKS.iter().zip([0.1175, 0.03454, 0.009497]) {
        let step = 1e-4;
        let density = |x: f64| (-x * x / 2.0).exp() / std::f64::consts::TAU.sqrt();
        let mut total = 0.0;
        for (i, level) in levels.iter().map(|l| f64::from(*l)).enumerate() {
            let border = |a: usize, b: usize| f64::from(levels[a] + levels[b]) / 2.0;
            let from = if i == 0 { 0.0 } else { border(i - 1, i) };
            let to = if i + 1 == levels.len() { 9.0 } else { border(i, i + 1) };
            let points = || (0..((to - from) / step) as usize).map(|n| from + (n as f64 + 0.5) * step);
            let mass: f64 = points().map(density).sum();
            let mean = points().map(|x| x * density(x)).sum::<f64>() / mass;
            assert!((mean - level).abs() < 1e-3, "{mean} {level}");
            total += 2.0 * step * points().map(|x| (x - level).powi(2) * density(x)).sum::<f64>();
        }
        assert!((total / known - 1.0).abs() < 2e-3, "{total} {known}");
    }
}

/// Bytes that never were written decode without a panic.
#[test]
fn any_bytes_decode() {
    for f in KV_FORMATS {
        for stored in [f.key, f.value] {
            for fill in [0u8, 0x7f, 0x80, 0xff] {
                let bytes = vec![fill; stored.vectors.bytes(64)];
                let shared = vec![fill; stored.vectors.shared_bytes(64)];
                let mut out = vec![0.0; 64 * stored.vectors.tokens()];
                stored.vectors.decode(&bytes, 64, &shared, &mut out);
            }
        }
    }
}

#[test]
fn a_policy_says_what_it_was_told() {
    let p: KvPolicy = "q4h/q8_0+sink4+window128+skip0,2-3".parse().unwrap();
    assert_eq!(p.name(), "q4h/q8_0+sink4+window128+skip0,2-3");
    for (layer, bits) in [(0, 16.0), (1, 4.5), (2, 16.0), (3, 16.0), (4, 4.5)] {
        let [key, value] = p.layer(layer);
        assert_eq!(key.vectors.bytes(64) as f64 / 8.0, bits, "layer {layer}");
        assert_eq!(value.vectors.bytes(64) as f64 / 8.0, if bits == 16.0 { 16.0 } else { 8.5 });
        assert_eq!((key.sink, value.window), if bits == 16.0 { (0, 0) } else { (4, 128) });
    }
    assert!("f32".parse::<KvPolicy>().unwrap().is_full() && !"f32/f16".parse::<KvPolicy>().unwrap().is_full());
    let list = KvPolicy::list("f16,q4h+skip0,1-2+sink1,q8_0").unwrap();
    assert_eq!(list.iter().map(KvPolicy::name).collect::<Vec<_>>(), ["f16", "q4h+skip0,1-2+sink1", "q8_0"]);
}

#[test]
fn a_wrong_policy_names_the_part() {
    for (text, part) in [
        ("q9", "\"q9\""),
        ("q4h/", "\"\""),
        ("", "\"\""),
        ("q4h/q8_0/f16", "\"q8_0/f16\""),
        ("q4h+sinks4", "+sinks4"),
        ("q4h+sink", "+sink"),
        ("q4h+window12x", "\"12x\""),
        ("q4h+window-3", "+window-3"),
        ("q4h+window99999999999999", "\"99999999999999\""),
        ("q4h+sink1+sink2", "sink is given twice"),
        ("q4h+skip1-", "\"\""),
        ("q4h+skip0;1", "\"0;1\""),
        ("q4h+skip0,5-2", "from 5 to 2"),
        ("q4h+", "option +"),
    ] {
        let error = text.parse::<KvPolicy>().unwrap_err();
        assert!(error.message().contains(part), "{text}: {}", error.message());
        assert_eq!(error.kind, Kind::Request);
        assert!(error.advice().unwrap().contains("q8h, q5h, q4h"));
    }
    assert!(KvPolicy::list("q8_0,q8_0").unwrap_err().message().contains("twice"));
    let error = "q4h+skip4".parse::<KvPolicy>().unwrap().check(4, 64).unwrap_err();
    assert!(error.message().contains("no layer 4"), "{error}");
    assert!("q4_0".parse::<KvPolicy>().unwrap().check(4, 80).unwrap_err().to_string().contains("multiples of 32"));
}

/// By hand, for one layer of one head.
#[test]
fn bytes_are_those_of_the_formats() {
    let shape = KvShape { layers: 2, heads: 3, head_dim: 64 };
    let bytes = |text: &str, n| text.parse::<KvPolicy>().unwrap().bytes(&shape, n);
    assert_eq!(bytes("f32", 10), 2 * 3 * 10 * 2 * 256);
    assert_eq!(bytes("q8_0", 10), 2 * 3 * 10 * 2 * 68);
    assert_eq!(bytes("q8_0/q4_0", 10), 2 * 3 * 10 * (68 + 36));
    assert_eq!(bytes("q8_0+skip1", 10), 3 * 10 * 2 * (68 + 128));
    assert_eq!(bytes("q8_0+sink4+window5", 7), 2 * 3 * 7 * 2 * 128, "all of them are still wanted");
    assert_eq!(bytes("q8_0+sink4+window5", 20), 2 * 3 * 2 * (9 * 128 + 11 * 68));
    // Keys: 64 channels of 32 tokens, each 4 + 16 bytes; values: 2 runs a token of 4 + 16.
    assert_eq!(bytes("kivi4+window0", 70), 2 * 3 * (2 * 64 * 20 + 6 * 128 + 70 * 40));
    assert_eq!(bytes("kivi4", 128), bytes("f16", 128));
    assert_eq!(bytes("kvquant4/f16", 128), bytes("f16", 128), "the sink, and not yet 128 more");
    assert_eq!(bytes("kvquant4/f16", 130), 2 * 3 * (130 * 128 + 128 + 64 * 4 + 129 * (3 + 32)));
    let policy: KvPolicy = "q8_0/q4_0+window64".parse().unwrap();
    assert_eq!(policy.bytes_per_token(&shape), (2 * 3 * (68 + 36)) as f64);
    let rise = policy.bytes(&shape, 301) - policy.bytes(&shape, 300);
    assert_eq!(rise as f64, policy.bytes_per_token(&shape));
}

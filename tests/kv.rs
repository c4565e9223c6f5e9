//! Caches of keys and values in fewer bits: in the engine, and through the binary.

mod common;

use std::fs;

use common::model::{DENSE, Shape, model};
use common::{quant_fails, quant_ok};
use quant::codec::kv::{KV_FORMATS, KvPolicy};
use quant::container::{Checkpoint, open};
use quant::device::cpu;
use quant::engine::{Engine, NoTap, Sequence};
use quant::eval::probe::{Item, Skill, Split};
use quant::eval::protocol::Window;
use quant::eval::reference::Reference;
use quant::eval::skills::{self, Scored};
use quant::eval::{self, Candidate, kv};
use serde_json::Value;

const POLICIES: [&str; 5] =
    ["q4h/q8_0+sink4+window20", "kivi2+window0", "kivi4/q3h+window40", "kvquant3+window10", "q4_0+skip1"];

fn policy(text: &str) -> KvPolicy {
    text.parse().unwrap()
}

/// Final hidden states, the text read in parts of these lengths.
fn states(checkpoint: &dyn Checkpoint, policy: &KvPolicy, tokens: &[u32], parts: &[usize]) -> (Vec<f32>, usize) {
    let engine = Engine::new(checkpoint, tokens.len()).unwrap().with_kv(policy.clone()).unwrap();
    let mut cache = engine.cache(tokens.len()).unwrap();
    let (mut out, mut from) = (Vec::new(), 0);
    for n in parts {
        let tokens = &tokens[from..from + n];
        out.extend(engine.forward(&mut [Sequence { tokens, cache: &mut cache }], &mut NoTap).unwrap());
        from += n;
    }
    assert_eq!(cache.len(), tokens.len());
    (out, cache.bytes())
}

/// Generation sees what evaluation measured: the same bits, for every type.
#[test]
fn token_by_token_is_the_same_as_at_once_and_bytes_are_counted() {
    let folder = model(&Shape { layers: 2, ..DENSE });
    let checkpoint = open(folder.path()).unwrap();
    let tokens: Vec<u32> = (0..180).map(|i| (i * 7919 + 13) % 256).collect();
    let shape = Engine::new(checkpoint.as_ref(), 1).unwrap().kv_shape();
    let all = KV_FORMATS.iter().map(|f| f.name).chain(POLICIES);
    cpu::pool(2).unwrap().install(|| {
        let mut seen = Vec::new();
        for name in all {
            let policy = policy(name);
            let (at_once, bytes) = states(checkpoint.as_ref(), &policy, &tokens, &[180]);
            let (one_by_one, same) = states(checkpoint.as_ref(), &policy, &tokens, &[1; 180]);
            assert!(at_once == one_by_one, "{name}");
            let (parts, _) = states(checkpoint.as_ref(), &policy, &tokens, &[7, 60, 1, 100, 12]);
            assert!(at_once == parts, "{name} in parts");
            assert_eq!((bytes as u64, same), (policy.bytes(&shape, 180), bytes), "{name}");
            assert!(!seen.contains(&at_once), "{name} is another type under a new name");
            seen.push(at_once);
        }
    });
}

#[test]
fn sinks_windows_and_skipped_layers_are_half_precision() {
    let folder = model(&Shape { layers: 2, ..DENSE });
    let checkpoint = open(folder.path()).unwrap();
    let tokens: Vec<u32> = (0..100).map(|i| (i * 7919 + 13) % 256).collect();
    let run = |text: &str| states(checkpoint.as_ref(), &policy(text), &tokens, &[100]).0;
    let half = run("f16");
    for whole in ["q2+sink100", "q2+window100", "q2+skip0-1", "kivi2", "kvquant3/f16+sink1"] {
        assert!(run(whole) == half, "{whole}");
    }
    let hidden = half.len() / 100;
    // Sinks and windows keep what is within them, and no more.
    for (text, same, other) in [("q2+sink10", 10, 11), ("q2+window10", 10, 11), ("kivi2/f16+window0", 31, 33)] {
        let got = run(text);
        assert!(got[..same * hidden] == half[..same * hidden], "{text}");
        assert!(got[(other - 1) * hidden..other * hidden] != half[(other - 1) * hidden..other * hidden], "{text}");
    }
    let gap = |text: &str| run(text).iter().zip(&half).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    let all = gap("q2");
    for less in ["q2+skip0", "q2+skip1", "q2+sink50", "q2+window50", "q2/f16", "f16/q2"] {
        assert!(gap(less) < all, "{less}: {} {all}", gap(less));
    }
}

fn probe() -> Box<dyn Checkpoint> {
    open(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("evals/probe/model")).unwrap()
}

fn candidates<'a>(checkpoint: &'a dyn Checkpoint, names: &[&str], positions: usize) -> Vec<Candidate<'a>> {
    let engine = |name: &&str| Engine::new(checkpoint, positions).unwrap().with_kv(policy(name)).unwrap();
    names.iter().map(|name| Candidate { name: (*name).to_owned(), engine: engine(name) }).collect()
}

fn items(skills: &[&str], count: usize) -> Vec<Item> {
    let some = |name: &&str| Skill::find(name).unwrap().items(Split::Test, 11, count, None).unwrap();
    skills.iter().flat_map(some).collect()
}

/// On texts that the probe was not trained on: what each type loses, and that rotation, channels and windows are worth what
/// they are. Its keys have no outliers, so rotation alone changes little here.
#[test]
fn kld_falls_with_bits_on_a_trained_model() {
    let checkpoint = probe();
    let mut windows =
        skills::windows(checkpoint.as_ref(), &items(&["story", "json", "recall"], 6), Scored::Text).unwrap();
    // Read as one text: long enough for windows of recent positions.
    let tokens: Vec<u32> = windows.drain(..).flat_map(|w| w.tokens).take(1024).collect();
    let windows: Vec<Window> =
        tokens.chunks_exact(512).map(|t| Window { tokens: t.to_vec(), scored: 0..511 }).collect();
    let names =
        ["f16", "q8_0", "fp8", "q5h", "q4_0", "q4h", "q3h", "q2h", "kivi4", "q8_0/q4h", "q4h+window128", "kivi2"];
    let policies: Vec<KvPolicy> = names.iter().map(|n| policy(n)).collect();
    let rows = cpu::pool(2).unwrap().install(|| {
        let engine = Engine::new(checkpoint.as_ref(), 512).unwrap();
        let shape = engine.kv_shape();
        let candidates = candidates(checkpoint.as_ref(), &names, 512);
        let scores = eval::run(&mut Reference::Live(Box::new(engine)), &candidates, &windows, &|_| {}).unwrap();
        kv::rows(&policies, &shape, &windows, &scores).unwrap()
    });
    let of = |name: &str| rows.iter().find(|r| r.kv == name).unwrap();
    for row in &rows {
        eprintln!("{:15} {:6.0} bytes {:.2e}", row.kv, row.bytes_per_token, row.whole.kld.mean);
        assert_eq!(row.buckets.iter().map(|b| (b.from, b.to)).collect::<Vec<_>>(), [(0, 128), (128, 256), (256, 512)]);
        assert_eq!(row.buckets.iter().map(|b| b.figures.tokens).sum::<usize>(), row.whole.tokens);
    }
    let kld = |name: &str| of(name).whole.kld.mean;
    for (better, worse) in [
        ("f16", "q8_0"),
        ("q8_0", "fp8"),
        ("q8_0", "q5h"),
        ("q5h", "q4h"),
        ("q4h", "q3h"),
        ("q3h", "q2h"),
        ("q4h+window128", "q4h"),
        ("q8_0/q4h", "q4h"),
        ("kivi4", "q4_0"),
        ("kivi2", "q2h"),
    ] {
        assert!(kld(better) < kld(worse), "{better} {} {worse} {}", kld(better), kld(worse));
    }
    assert!(kld("q8_0") < 2e-4 && kld("q4_0") > 20.0 * kld("q8_0"));
    // Where all positions are in the window there is no more loss than f16's.
    let first = |name: &str| of(name).buckets[0].figures.kld.mean;
    assert!(first("kivi2") < 1e-5 && first("q4h+window128") < 1e-5, "{}", first("kivi2"));
}

/// Answers that must be exact. Each type answers the same questions.
#[test]
fn skills_survive_many_bits_and_not_few() {
    let checkpoint = probe();
    let questions = skills::windows(checkpoint.as_ref(), &items(&["recall", "json"], 25), Scored::Answer).unwrap();
    let names = ["f32", "q8_0", "q4_0", "q4h", "q3", "q3h", "q2", "q2h", "kivi2+window0", "turbo3", "turbo2"];
    let positions = eval::longest(&questions);
    cpu::pool(2).unwrap().install(|| {
        let right: Vec<[usize; 2]> = candidates(checkpoint.as_ref(), &names, positions)
            .iter()
            .map(|c| {
                let right = skills::right(c, &questions, &|_| {}).unwrap();
                [&right[..25], &right[25..]].map(|r| r.iter().filter(|r| **r).count())
            })
            .collect();
        names.iter().zip(&right).for_each(|(name, right)| eprintln!("{name:15} recall, json of 25 {right:?}"));
    });
}

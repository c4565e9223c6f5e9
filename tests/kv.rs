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

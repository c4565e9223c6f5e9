//! The engine on small random models: the same numbers in any batch, from any container, and errors that name the layer.

mod common;

use std::path::Path;

use common::model::{DENSE, MOE, ODD, Shape, model};
use common::quant_ok;
use quant::arch::Role;
use quant::container::{Checkpoint, open};
use quant::device::cpu;
use quant::engine::ops::{OnCpu, Ops};
use quant::engine::{Engine, Sequence, Site, Tap};
use quant::error::Result;

const SHAPES: [(&str, Shape); 3] = [("dense", DENSE), ("odd", ODD), ("moe", MOE)];

fn tokens(n: usize) -> Vec<u32> {
    (0..n as u32).map(|i| (i * 7919 + 13) % 256).collect()
}

/// Logits of every position.
fn logits(checkpoint: &dyn Checkpoint, tokens: &[u32]) -> Vec<f32> {
    let engine = Engine::new(checkpoint, tokens.len()).unwrap();
    let mut cache = engine.transient(tokens.len()).unwrap();
    let hidden = engine.forward(&mut [Sequence { tokens, cache: &mut cache }]).unwrap();
    engine.head().unwrap().logits(&hidden)
}

fn convert(model: &Path, to: &str, out: &Path) -> Box<dyn Checkpoint> {
    quant_ok(&["convert", model.to_str().unwrap(), "--to", to, "-o", out.to_str().unwrap(), "--quiet"]);
    open(out).unwrap()
}

#[test]
fn a_token_has_the_same_bits_in_any_batch_and_with_any_threads() {
    for (name, shape) in SHAPES {
        let folder = model(&shape);
        let checkpoint = open(folder.path()).unwrap();
        let engine = Engine::new(checkpoint.as_ref(), 100).unwrap();
        let (long, short) = (tokens(100), tokens(31));
        let run = |threads: usize| {
            cpu::pool(threads).unwrap().install(|| {
                let mut caches = [engine.transient(100).unwrap(), engine.transient(31).unwrap()];
                let [a, b] = &mut caches;
                let mut both = [Sequence { tokens: &long, cache: a }, Sequence { tokens: &short, cache: b }];
                engine.forward(&mut both).unwrap()
            })
        };
        let both = run(2);
        assert!(both == run(1), "{name}: one thread");
        // The short text is how the long one begins, so its states are too.
        let hidden = engine.hidden();
        assert!(both[100 * hidden..] == both[..31 * hidden], "{name}: a prefix");
        // In parts, as in generation.
        let mut cache = engine.cache(100).unwrap();
        let mut parts = Vec::new();
        for part in [&long[..1], &long[1..40], &long[40..99], &long[99..]] {
            parts.extend(engine.forward(&mut [Sequence { tokens: part, cache: &mut cache }]).unwrap());
        }
        assert!(parts == both[..100 * hidden], "{name}: in parts");
        // From a shared prefix.
        cache.truncate(40);
        let mut branch = cache.clone();
        let again = engine.forward(&mut [Sequence { tokens: &long[40..], cache: &mut branch }]).unwrap();
        assert!(again == both[40 * hidden..100 * hidden], "{name}: from a prefix");
    }
}

#[test]
fn the_same_weights_give_the_same_numbers_from_every_container() {
    let dir = tempfile::tempdir().unwrap();
    for (name, shape) in SHAPES {
        let folder = model(&shape);
        let source = open(folder.path()).unwrap();
        let tokens = tokens(60);
        let expected = logits(source.as_ref(), &tokens);
        let close = |other: &dyn Checkpoint, limit: f32| {
            let got = logits(other, &tokens);
            let worst = expected.iter().zip(&got).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= limit, "{name}: {worst}");
        };
        // GGUF orders the rows of q and k otherwise, so sums over a head run in another order.
        close(convert(folder.path(), "f32", &dir.path().join(format!("{name}.gguf"))).as_ref(), 2e-5);
        close(convert(folder.path(), "q8_0", &dir.path().join(format!("{name}-q8.gguf"))).as_ref(), 0.2);
    }
}

#[test]
fn decoding_to_f32_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let folder = model(&DENSE);
    let packed = convert(folder.path(), "q4_k_m", &dir.path().join("q4.gguf"));
    let (q4, f32) = (dir.path().join("q4.gguf"), dir.path().join("f32.gguf"));
    quant_ok(&["convert", q4.to_str().unwrap(), "--to", "f32", "-o", f32.to_str().unwrap(), "--allow-requantize"]);
    let decoded = open(&f32).unwrap();
    assert!(logits(packed.as_ref(), &tokens(40)) == logits(decoded.as_ref(), &tokens(40)));
}

/// Sums what it hears.
#[derive(Default)]
struct Ear(Vec<(Site, usize)>);

impl<O: Ops> Tap<O> for Ear {
    fn input(&mut self, on: &O, site: Site, x: &O::Rows, weights: Option<&[f32]>) -> Result<()> {
        assert!(weights.is_none_or(|w| w.iter().all(|w| (0.0..=1.0).contains(w))));
        self.0.push((site, on.len(x)));
        Ok(())
    }
}

#[test]
fn a_tap_hears_every_site_once_and_every_expert_its_tokens() {
    for (shape, per_layer) in [(DENSE, 4), (MOE, 3)] {
        let folder = model(&shape);
        let checkpoint = open(folder.path()).unwrap();
        let engine = Engine::new(checkpoint.as_ref(), 50).unwrap();
        let (tokens, mut ear) = (tokens(50), Ear::default());
        let mut cache = engine.transient(50).unwrap();
        let mut sequences = [Sequence { tokens: &tokens, cache: &mut cache }];
        engine.forward_on(&OnCpu::default(), &mut sequences, &mut ear).unwrap();
        let shared: Vec<_> = ear.0.iter().filter(|(site, _)| site.expert.is_none()).collect();
        assert_eq!(shared.len(), shape.layers * per_layer + 1);
        for (site, n) in &shared {
            let columns = if site.reader == Role::FfnDown { shape.inter } else { shape.hidden };
            assert_eq!(*n, 50 * columns, "{site:?}");
        }
        // Every token visits two experts in each layer.
        let visits: usize = ear.0.iter().filter(|(s, _)| s.reader == Role::FfnGateExps).map(|(_, n)| n).sum();
        assert_eq!(visits, if shape.experts > 0 { 2 * 50 * shape.hidden * shape.layers } else { 0 });
    }
}

#[test]
fn what_cannot_be_run_says_why() {
    let mut folder = model(&DENSE);
    let checkpoint = open(folder.path()).unwrap();
    let engine = Engine::new(checkpoint.as_ref(), 20).unwrap();
    let refused = |tokens: &[u32], positions: usize| {
        let mut cache = engine.transient(positions).unwrap();
        let sequence = Sequence { tokens, cache: &mut cache };
        engine.forward(&mut [sequence]).unwrap_err().to_string()
    };
    let long = refused(&tokens(45), 20);
    assert!(long.contains("45 tokens are 25 more than the context of 20"), "{long}");
    let unknown = refused(&[1, 99_999], 20);
    assert!(unknown.contains("token 99999"), "{unknown}");
    assert!(engine.transient(21).unwrap_err().to_string().contains("21 positions are 1 more"));

    let weight = folder.tensors.get_mut("model.layers.2.mlp.down_proj.weight").unwrap();
    weight.bytes[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    folder.write();
    let broken = open(folder.path()).unwrap();
    let engine = Engine::new(broken.as_ref(), 20).unwrap();
    let mut cache = engine.transient(20).unwrap();
    let tokens = tokens(5);
    let sequence = Sequence { tokens: &tokens, cache: &mut cache };
    let error = engine.forward(&mut [sequence]).unwrap_err().to_string();
    assert!(error.contains("layer 2"), "{error}");
}

//! What must hold for every row of the table of formats.

use std::collections::HashSet;

use proptest::prelude::*;
use quant::codec::{self, Block, Codec};
use quant::tensor::{Dims, Packed};

fn codecs() -> impl Strategy<Value = &'static dyn Codec> {
    (0..codec::all().count()).prop_map(|i| codec::all().nth(i).unwrap())
}

fn blocks() -> impl Iterator<Item = &'static Block> {
    codec::all().filter_map(|c| c.block())
}

/// Weights of any format in any bytes, a few rows of a few blocks.
fn weights() -> impl Strategy<Value = (&'static dyn Codec, Packed<'static>)> {
    (codecs(), 0..5usize, 0..5usize).prop_flat_map(|(codec, rows, blocks)| {
        let dims = Dims::new(rows, blocks * codec.block().map_or(77, |b| b.weights));
        let parts: Vec<_> =
            codec.layout(dims).unwrap().iter().map(|p| prop::collection::vec(any::<u8>(), p.bytes)).collect();
        parts.prop_map(move |parts| (codec, Packed { dims, parts: parts.into_iter().map(Into::into).collect() }))
    })
}

fn bits(weights: &[f32]) -> Vec<Option<u32>> {
    weights.iter().map(|w| (!w.is_nan()).then_some(w.to_bits())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..Default::default() })]

    #[test]
    fn any_bytes_of_the_right_length_decode((codec, packed) in weights()) {
        let Dims { rows, cols } = packed.dims;
        let mut whole = vec![0.0; packed.dims.len()];
        codec.decode(&packed, 0..rows, &mut whole);
        for row in 0..rows {
            let mut out = vec![0.0; cols];
            codec.decode(&packed, row..row + 1, &mut out);
            prop_assert_eq!(bits(&out), bits(&whole[row * cols..][..cols]), "{} row {}", codec.name(), row);
        }
    }

    #[test]
    fn the_fast_decoder_gives_the_bits_of_the_plain_one((codec, packed) in weights()) {
        if let Some(block) = codec.block() {
            let (mut fast, mut plain) = (vec![0.0; packed.dims.len()], vec![0.0; packed.dims.len()]);
            (block.decode)(&packed.parts[0], &mut fast);
            (block.decode_plain)(&packed.parts[0], &mut plain);
            prop_assert_eq!(bits(&fast), bits(&plain), "{}", codec.name());
        }
    }

    #[test]
    fn layouts_of_any_size_are_given_or_refused(codec in codecs(), rows: usize, cols: usize) {
        if let Ok(parts) = codec.layout(Dims::new(rows, cols)) {
            let sum = parts.iter().try_fold(0usize, |sum, p| sum.checked_add(p.bytes));
            prop_assert!(sum.is_some(), "{}", codec.name());
        }
    }

    #[test]
    fn ragged_rows_are_refused(codec in codecs(), rows in 1..5usize, cols in 1..1000usize) {
        let whole = codec.block().is_none_or(|b| cols % b.weights == 0);
        prop_assert_eq!(codec.layout(Dims::new(rows, cols)).is_ok(), whole, "{}", codec.name());
    }
}

#[test]
fn names_are_unique_and_found() {
    let mut names = HashSet::new();
    for codec in codec::all() {
        let name = codec.name();
        assert!(names.insert(name), "two formats are called {name}");
        assert_eq!(codec::find(name).unwrap().name(), name);
        assert_eq!(name, name.to_lowercase());
        assert!(!codec.about().is_empty(), "{name} does not say what it is");
    }
    assert!(codec::find("no such format").is_err());
}

#[test]
fn ggml_ids_are_unique_and_found() {
    let mut ids = HashSet::new();
    for block in blocks() {
        if let Some(id) = block.ggml {
            assert!(ids.insert(id), "two formats have ggml's id {id}");
            assert_eq!(codec::ggml_type(id).unwrap().name(), block.name);
        }
    }
    assert!(codec::ggml_type(4).is_none(), "removed from GGUF");
}

#[test]
fn floats_survive_decoding_and_encoding() {
    for (name, width) in [("f32", 4), ("f16", 2), ("bf16", 2)] {
        let block = codec::find(name).unwrap().block().unwrap();
        // Every value of the upper 16 bits.
        let bytes: Vec<u8> = (0..=u16::MAX)
            .flat_map(|x| {
                let mut element = [x as u8, 0, x as u8, (x >> 8) as u8];
                element[width - 2..][..2].copy_from_slice(&x.to_le_bytes());
                element.into_iter().take(width)
            })
            .collect();
        let mut weights = vec![0.0; 1 << 16];
        (block.decode)(&bytes, &mut weights);
        let encode = block.encode.unwrap();
        for run in [encode.run, encode.plain] {
            // The second time at an odd address.
            let mut out = vec![0; bytes.len() + 1];
            for start in [0, 1] {
                let out = &mut out[start..][..bytes.len()];
                run(&weights, weights.len(), None, out);
                let mut again = vec![0.0; weights.len()];
                (block.decode)(out, &mut again);
                assert_eq!(bits(&again), bits(&weights), "{name}");
                let finite =
                    weights.iter().zip(out.chunks(width)).zip(bytes.chunks(width)).filter(|((w, _), _)| !w.is_nan());
                finite.for_each(|((w, got), want)| assert_eq!(got, want, "{name}: {w:e}"));
            }
        }
    }
}

/// Bits buy accuracy: the error on even noise is a small multiple of what the bits are worth (at most 2.3, where they
/// are ternary).
#[test]
fn what_was_encoded_decodes_to_about_the_same() {
    let (rows, cols) = (2, 1024);
    let step = |x: &u64| Some(x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
    let noise = std::iter::successors(Some(1), step).map(|x| (x >> 40) as f32 / (1 << 24) as f32 - 0.5);
    let weights: Vec<f32> = noise.take(rows * cols).collect();
    let importance = vec![1.0; cols];
    let squares = |w: &mut dyn Iterator<Item = f32>| w.map(|x| x * x).sum::<f32>();
    for block in blocks().filter(|b| b.weights > 1) {
        let Some(encode) = block.encode else { continue };
        let mut bytes = vec![0; rows * block.row_bytes(cols)];
        (encode.run)(&weights, cols, Some(&importance), &mut bytes);
        let mut decoded = vec![0.0; weights.len()];
        (block.decode)(&bytes, &mut decoded);
        let noise = squares(&mut weights.iter().zip(&decoded).map(|(w, d)| w - d));
        let error = (noise / squares(&mut weights.iter().copied())).sqrt();
        let step = 2f32.powf(-((8 * block.bytes) as f32) / block.weights as f32);
        assert!(error < 3.0 * step, "{}: relative error {error}, bits worth {step}", block.name);
    }
}

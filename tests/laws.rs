//! What must hold for every row of the table of formats.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use quant::codec::{self, Block, Codec, Codes, Grid, transcode};
use quant::tensor::{Dims, Packed};

/// Any format, each family of many as often as one that stands alone.
fn codecs() -> impl Strategy<Value = &'static dyn Codec> {
    let mut families: BTreeMap<&str, Vec<&'static dyn Codec>> = BTreeMap::new();
    codec::all().for_each(|c| families.entry(c.pattern()).or_default().push(c));
    let families: Vec<_> = families.into_values().collect();
    (0..families.len(), any::<prop::sample::Index>()).prop_map(move |(f, i)| *i.get(&families[f]))
}

fn blocks() -> impl Iterator<Item = &'static Block> {
    codec::all().filter_map(|c| c.block())
}

/// Weights of any format in any bytes, a few rows of a few blocks.
fn weights() -> impl Strategy<Value = (&'static dyn Codec, Packed<'static>)> {
    (codecs(), 0..5usize, 0..5usize).prop_flat_map(|(codec, rows, blocks)| {
        let Dims { rows: tall, cols: wide } = codec.multiples();
        let dims = match codec.packed() {
            true => Dims::new(rows * tall, blocks.max(1) * wide),
            false => Dims::new(rows, blocks * codec.block().map_or(77, |b| b.weights)),
        };
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
    fn parts_have_the_bytes_of_their_shapes((codec, packed) in weights()) {
        for part in codec.layout(packed.dims).unwrap() {
            prop_assert_eq!(part.shape.iter().product::<usize>() * part.dtype.bitsize() / 8, part.bytes, "{}", codec.name());
        }
    }

    #[test]
    fn ragged_rows_are_refused(codec in codecs(), rows in 1..50usize, cols in 1..1000usize) {
        let Dims { rows: tall, cols: wide } = codec.multiples();
        let whole = cols % wide == 0 && rows % tall == 0;
        prop_assert_eq!(codec.layout(Dims::new(rows, cols)).is_ok(), whole, "{}", codec.name());
    }

    #[test]
    fn codes_come_back((codec, seed) in (codecs(), any::<u64>())) {
        let (Some(grid), Some(scheme)) = (codec.grid(), codec.scheme()) else { return Ok(()) };
        let dims = Dims::new(codec.multiples().rows * 2, codec.multiples().cols * 2);
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 56) as u8
        };
        let top = ((1u32 << scheme.bits) - 1) as u8;
        let size = grid.param_bytes();
        let mut params: Vec<u8> = (0..dims.len() / grid.group(dims.cols) * size).map(|_| next()).collect();
        if grid.rows() > 1 {
            // These few rows share theirs.
            let (first, rest) = params.split_at_mut(dims.cols / grid.group(dims.cols) * size);
            rest.chunks_exact_mut(first.len()).for_each(|row| row.copy_from_slice(first));
        }
        if !scheme.symmetric {
            params.chunks_exact_mut(size).for_each(|p| p[size - 1] &= top);
        }
        let codes: Vec<u8> = (0..dims.len()).map(|_| next() & top).collect();
        let parts = grid.pack(dims, &params, &codes);
        let layout = codec.layout(dims).unwrap();
        prop_assert!(parts.iter().map(Vec::len).eq(layout.iter().map(|p| p.bytes)), "{}", codec.name());
        let packed = Packed { dims, parts: parts.into_iter().map(Into::into).collect() };
        let back = codec.unpack(&packed);
        prop_assert_eq!(back, Some(Codes { params, codes }), "{}", codec.name());
    }

    /// The values do not change on the way, whatever the zeros and codes; or there is no way.
    #[test]
    fn exact_ways_are_exact((from, to, seed) in (codecs(), codecs(), any::<u32>())) {
        let cols = 2048;
        let (Some(source), Some(target)) = (from.grid(), to.grid()) else { return Ok(()) };
        if !transcode::possible(from, to, cols) {
            return Ok(());
        }
        let rows = from.multiples().rows.max(to.multiples().rows);
        let dims = Dims::new(rows, cols);
        let mut state = seed;
        let w: Vec<f32> = (0..dims.len()).map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        }).collect();
        let own = quant::calibrate::method::nearest(source, &w, cols, None);
        let Some(other) = transcode::exact(source, &own, cols, target) else { return Ok(()) };
        let decoded = |codec: &dyn Codec, grid: &dyn Grid, codes: &Codes| {
            let parts = grid.pack(dims, &codes.params, &codes.codes).into_iter().map(Into::into).collect();
            let mut out = vec![0.0; dims.len()];
            codec.decode(&Packed { dims, parts }, 0..rows, &mut out);
            out
        };
        prop_assert_eq!(decoded(from, source, &own), decoded(to, target, &other), "{} to {}", from.name(), to.name());
    }
}

/// Which formats take each other's codes is a promise of the tables.
#[test]
fn exact_ways_exist() {
    for (from, to, expected) in [
        ("gptq-4bit-g128", "pack-4bit-g128-sym-f16", true),
        ("pack-4bit-g128-sym", "gptq-4bit-g128", true),
        ("gptq-4bit-g128", "pack-4bit-g32-sym-f16", true),
        ("gptq-4bit-g128", "q4_0", true),
        ("gptq-8bit-g32", "q8_0", true),
        ("awq-4bit-g32", "q4_1", true),
        ("awq-4bit-g64", "q8_0", true),
        ("awq-4bit-g128", "pack-4bit-g128-asym-f16", true),
        ("awq-4bit-g128", "gptq-v2-4bit-g128", true),
        ("pack-5bit-g32-sym", "q5_0", true),
        ("pack-8bit-channel-sym", "int-8bit-channel-sym", true),
        ("pack-4bit-g64-sym", "pack-8bit-g64-sym", true),
        ("pack-4bit-g32-sym", "gptq-4bit-g128", false),
        ("gptq-8bit-g128", "q4_0", false),
        ("gptq-4bit-g128", "q4_k", false),
        ("gptq-4bit-g128", "f16", false),
        ("q4_0", "gptq-4bit-g32", false),
        ("pack-nvfp4", "modelopt-nvfp4", true),
        ("modelopt-nvfp4", "pack-nvfp4", true),
        ("modelopt-nvfp4", "nvfp4", true),
        ("pack-nvfp4", "nvfp4", true),
        ("pack-mxfp4", "mxfp4", true),
        ("pack-mxfp4", "mxfp8", true),
        ("mxfp8", "mlx-mxfp8", true),
        ("mlx-mxfp8", "mxfp8", true),
        ("mxfp8", "pack-mxfp4", false),
        ("fp8-tensor", "modelopt-fp8", true),
        ("pack-nvfp4", "pack-mxfp4", false),
        ("pack-mxfp4", "nvfp4", false),
        ("fp8-channel", "pack-nvfp4", false),
        ("nf4", "nf4-f16", true),
        ("nf4", "bnb-fp4", false),
        ("nf4", "iq4_nl", false),
    ] {
        let [a, b] = [from, to].map(|name| codec::find(name).unwrap());
        assert_eq!(transcode::possible(a, b, 2048), expected, "{from} to {to}");
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

/// The same of the formats of folders, in their own groups.
#[test]
fn parts_decode_to_about_what_was_encoded() {
    let step = |x: &u64| Some(x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407));
    let noise = std::iter::successors(Some(1), step).map(|x| (x >> 40) as f32 / (1 << 24) as f32 - 0.5);
    for codec in codec::all() {
        let (Some(grid), Some(scheme)) = (codec.grid(), codec.scheme()) else { continue };
        let dims = Dims::new(codec.multiples().rows, 2048);
        let weights: Vec<f32> = noise.clone().take(dims.len()).collect();
        let codes = quant::calibrate::method::nearest(grid, &weights, dims.cols, None);
        let parts = grid.pack(dims, &codes.params, &codes.codes).into_iter().map(Into::into).collect();
        let mut decoded = vec![0.0; dims.len()];
        codec.decode(&Packed { dims, parts }, 0..dims.rows, &mut decoded);
        let squares = |w: &mut dyn Iterator<Item = f32>| w.map(|x| f64::from(x * x)).sum::<f64>();
        let error =
            squares(&mut weights.iter().zip(&decoded).map(|(w, d)| w - d)) / squares(&mut weights.iter().copied());
        // Even noise over n equal steps loses 1/n of its amplitude. Zero is one of the values, so one side of it has a step less:
        // 2^bits - 1 steps at worst; more is lost where one scale must do for both sides.
        let levels = f64::from(1 << scheme.bits);
        let bound = match (scheme.family.is_integer(), scheme.symmetric) {
            (true, true) => 1.4 / levels,
            (true, false) => 1.1 / (levels - 1.0),
            // Of three bits below the leading one, and of one.
            (false, _) if scheme.bits == 8 => 0.04,
            (false, _) => 0.13,
        };
        assert!(error.sqrt() < bound, "{}: relative error {}, bound {bound}", codec.name(), error.sqrt());
    }
}

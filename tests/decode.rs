//! Decoders against independent implementations: every file of `tests/golden/decode/` (see `make.py` there) is a test.

use std::path::Path;

use quant::codec::{self, Codec};
use quant::tensor::{Dims, Packed};

/// `CODEC.ROWSxCOLS.bin`: the parts, then the weights.
struct Golden {
    file: String,
    codec: &'static dyn Codec,
    packed: Packed<'static>,
    weights: Vec<f32>,
}

fn goldens() -> Vec<Golden> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/decode");
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.extension().is_some_and(|e| e == "bin")).map(|path| golden(&path)).collect()
}

fn golden(path: &Path) -> Golden {
    let file = path.file_name().unwrap().to_str().unwrap().to_owned();
    let [name, dims, _] = file.split('.').collect::<Vec<_>>()[..] else { panic!("{file}: not CODEC.ROWSxCOLS.bin") };
    let (rows, cols) = dims.split_once('x').unwrap();
    let dims = Dims::new(rows.parse().unwrap(), cols.parse().unwrap());
    let codec = codec::find(name).unwrap();

    let mut rest = &std::fs::read(path).unwrap()[..];
    let mut take = |n| rest.split_off(..n).unwrap_or_else(|| panic!("{file} is too short")).to_vec();
    let parts = codec.layout(dims).unwrap().iter().map(|part| take(part.bytes).into()).collect();
    let weights = take(dims.len() * 4).as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
    assert!(rest.is_empty(), "{file} is too long");
    Golden { file, codec, packed: Packed { dims, parts }, weights }
}

/// NaNs have many bit patterns.
fn same(a: f32, b: f32) -> bool {
    a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan()
}

fn check(what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len());
    if let Some(i) = got.iter().zip(want).position(|(g, w)| !same(*g, *w)) {
        panic!("{what}: weight {i} is {:e}, should be {:e}", got[i], want[i]);
    }
}

#[test]
fn decoders_give_the_bits_of_the_reference() {
    for Golden { file, codec, packed, weights } in goldens() {
        let Dims { rows, cols } = packed.dims;
        let mut out = vec![0.0; weights.len()];
        codec.decode(&packed, 0..rows, &mut out);
        check(&file, &out, &weights);
        for row in 0..rows {
            let mut out = vec![0.0; cols];
            codec.decode(&packed, row..row + 1, &mut out);
            check(&format!("{file} row {row}"), &out, &weights[row * cols..][..cols]);
        }
        if let Some(block) = codec.block() {
            (block.decode_plain)(&packed.parts[0], &mut out);
            check(&format!("{file}, plain"), &out, &weights);
        }
    }
}

/// All but the numbers that a CPU knows itself; of a family of integers, every width.
#[test]
fn every_format_has_a_golden_file() {
    let goldens = goldens();
    let native = ["f32", "f64", "i8", "i16", "i32", "i64"];
    let kind = |c: &dyn Codec| (c.pattern().to_owned(), c.scheme().map(|s| (s.bits, s.symmetric)));
    let missing =
        codec::all().filter(|c| !native.contains(&c.name()) && goldens.iter().all(|g| kind(g.codec) != kind(*c)));
    let missing: Vec<_> = missing.map(|c| c.name()).collect();
    assert!(missing.is_empty(), "no golden file for {missing:?}");
}

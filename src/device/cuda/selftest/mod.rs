//! Every operation of a device against the CPU's: what `quant selftest` prints, and what tests run with the host in a card's place.

pub mod codes;
mod layer;

use half::bf16;

use super::ops;
use super::runner::{Buffer, Runner};
use super::source;
use crate::codec::{self, Codec, DeviceGrid, float};
use crate::container::Weight;
use crate::device::Precision;
use crate::device::check::{Check, Difference, bytes, noise};
use crate::device::cpu;
use crate::error::Result;
use crate::tensor::{Dims, Packed};

/// Whatever kernels run on.
pub type On = dyn Runner;

/// Every check there is, for every format that has kernels, and for the libraries of a card that multiplies by them.
pub fn checks(precision: Precision) -> Vec<Check<On>> {
    let mut out = Vec::new();
    for grid in source::grids() {
        decode(&grid, &mut out);
        if grid.block {
            encode(&grid, &mut out);
        }
    }
    out.push(Check::new(("copy", "there and back"), "40 MiB and 3 bytes", "u8", 0.0, |runner: &On| {
        let sent = bytes((40 << 20) + 3, 17);
        Ok(Difference::bytes(&Buffer::of(runner, &sent)?.read(sent.len())?, &sent))
    }));
    codes::checks(precision, &mut out);
    sums(&mut out);
    layer::checks(&mut out);
    if precision != Precision::Exact {
        libraries(precision, &mut out);
    }
    out
}

fn narrow(x: &[f32]) -> Vec<bf16> {
    x.iter().map(|x| bf16::from_f32(*x)).collect()
}

fn wide(x: &[bf16]) -> Vec<f32> {
    x.iter().map(|x| x.to_f32()).collect()
}

/// The formats of a struct, whose matrices differ only in what is passed with them.
fn formats(grid: &DeviceGrid) -> Vec<&'static dyn Codec> {
    codec::all().filter(|c| c.facts().is_some_and(|f| f.grid.id() == grid.id())).collect()
}

/// A matrix of any bytes; where a part says the group of each column, groups in any order.
fn any(codec: &dyn Codec, dims: Dims) -> Result<Packed<'static>> {
    let parts = codec.layout(dims)?.into_iter().enumerate().map(|(n, part)| {
        let group = codec.facts().and_then(|f| f.group).unwrap_or(dims.cols);
        if part.name == "g_idx" {
            let groups = (dims.cols / group).max(1);
            return (0..dims.cols).flat_map(|k| ((k * 7 % groups) as u32).to_le_bytes()).collect::<Vec<u8>>();
        }
        bytes(part.bytes, 11 + n as u32)
    });
    Ok(Packed { dims, parts: parts.map(Into::into).collect() })
}

/// A matrix, and what the CPU decodes it to.
type Compare<'a> = dyn Fn(&dyn Codec, &Packed<'_>, &[f32]) -> Result<Difference> + 'a;

fn decode(grid: &DeviceGrid, out: &mut Vec<Check<On>>) {
    let all = formats(grid);
    let (id, of) = (grid.id(), format!("{} formats, 1..9 rows of 2 groups", all.len()));
    let matrices = move |run: &Compare<'_>| {
        let mut found = Difference::default();
        for codec in &all {
            let multiples = codec.multiples();
            let cols = multiples.cols.max(32) * 2 + if multiples.cols == 1 { 3 } else { 0 };
            let packed = any(*codec, Dims::new(9usize.next_multiple_of(multiples.rows), cols))?;
            let mut expected = vec![0.0; packed.dims.len()];
            codec.decode(&packed, 0..packed.dims.rows, &mut expected);
            found = found.and(run(*codec, &packed, &expected)?);
        }
        Ok(found)
    };
    let single = matrices.clone();
    out.push(Check::new(("decode", &id), &of, "f32", 0.0, move |runner: &On| {
        single(&|codec, packed, expected| {
            let got = ops::decode::<f32>(runner, codec, packed, 1..packed.dims.rows)?;
            Ok(Difference::singles(&got, &expected[packed.dims.cols..]))
        })
    }));
    out.push(Check::new(("decode", &id), &of, "bf16", 0.0, move |runner: &On| {
        matrices(&|codec, packed, expected| {
            let got = ops::decode::<bf16>(runner, codec, packed, 0..packed.dims.rows)?;
            Ok(Difference::singles(&wide(&got), &wide(&narrow(expected))))
        })
    }));
}

/// Weights that encoders treat unlike: a row each of ordinary ones, with outliers, of few values, tiny, zero.
fn weights(cols: usize) -> Vec<f32> {
    let mut w = noise(6 * cols, 3);
    let mut rows = w.chunks_exact_mut(cols);
    let mut row = |f: &dyn Fn(usize, f32) -> f32| {
        rows.next().into_iter().for_each(|row| row.iter_mut().enumerate().for_each(|(i, x)| *x = f(i, *x)));
    };
    row(&|_, x| x * x.abs());
    row(&|i, x| if i % 37 == 5 { x * 50.0 } else { x * 0.1 });
    row(&|i, x| if i % 3 == 0 { 0.25 } else { x.signum() });
    row(&|_, x| x * 1e-9);
    row(&|i, x| if i % 64 < 32 { 0.0 } else { x.abs() });
    row(&|_, _| 0.0);
    w
}

fn encode(grid: &DeviceGrid, out: &mut Vec<Check<On>>) {
    for codec in formats(grid) {
        let Some(block) = codec.block() else { continue };
        let Some(encode) = block.encode else { continue };
        for weighted in [false, true] {
            let cols = block.weights.max(256) * 2;
            let dtype = if weighted { "f32, importance" } else { "f32" };
            out.push(Check::new(("encode", &grid.id()), &format!("6 x {cols}"), dtype, 0.0, move |runner: &On| {
                let w = weights(cols);
                let importance: Option<Vec<f32>> = weighted.then(|| {
                    noise(cols, 4).iter().enumerate().map(|(i, x)| if i < 40 { 0.0 } else { x * x + 1e-3 }).collect()
                });
                let mut expected = vec![0; w.len() / block.weights * block.bytes];
                (encode.run)(&w, cols, importance.as_deref(), &mut expected);
                let got = ops::encode(runner, codec, &w, cols, importance.as_deref())?;
                Ok(Difference::bytes(&got, &expected))
            }));
        }
    }
}

/// As two products beside each other: what fills a matrix part by part.
fn product<T: ops::Element>(runner: &On, x: &[f32], w: &[T], depth: usize, expected: &[f32]) -> Result<Difference> {
    let (tokens, rows) = (x.len() / depth, w.len() / depth);
    let (x, w, out) = (Buffer::of(runner, x)?, Buffer::of(runner, w)?, Buffer::singles(runner, expected.len())?);
    for part in [0..rows / 2, rows / 2..rows] {
        let w = w.part(part.start * depth * size_of::<T>()..part.end * depth * size_of::<T>());
        ops::linear_exact::<T>(&x, &w, [tokens, part.len(), depth], &out.part(part.start * 4..out.bytes()), rows)?;
    }
    Ok(Difference::singles(&out.read(expected.len())?, expected))
}

/// Products, Gram matrices and moments.
fn sums(out: &mut Vec<Check<On>>) {
    for (tokens, rows, depth) in [(1, 3, 8), (70, 65, 513), (33, 130, 300)] {
        let shape = format!("{tokens} x {depth} x {rows}");
        let matrices = move || {
            let (x, w) = (noise(tokens * depth, 5), wide(&narrow(&noise(rows * depth, 6))));
            let codec: &'static dyn Codec = &float::F32;
            let stored: Vec<u8> = w.iter().flat_map(|w| w.to_le_bytes()).collect();
            let weight =
                Weight { codec, packed: Packed::one(Dims::new(rows, depth), stored), scale: 1.0, inputs: None };
            let mut expected = vec![0.0; tokens * rows];
            cpu::linear(&weight, 0..rows, None, &x, &mut expected);
            (x, w, expected)
        };
        out.push(Check::new(("linear", "exact"), &shape, "f32", 0.0, move |runner: &On| {
            let (x, w, expected) = matrices();
            product(runner, &x, &w, depth, &expected)
        }));
        out.push(Check::new(("linear", "exact"), &shape, "bf16", 0.0, move |runner: &On| {
            let (x, w, expected) = matrices();
            product(runner, &x, &narrow(&w), depth, &expected)
        }));
    }
    for (rows, columns, weighted) in
        [(1, 1, false), (300, 100, false), (517, 70, true), (cpu::GRAM_ROWS + 5, 33, false)]
    {
        let matrix = move || {
            let (x, weights) = (wide(&narrow(&noise(rows * columns, 7))), weighted.then(|| noise(rows, 8)));
            (x, weights)
        };
        let shape = format!("{rows} x {columns}");
        let dtype = |name| if weighted { ["f32, weighted", "bf16, weighted"][name] } else { ["f32", "bf16"][name] };
        for name in [0, 1] {
            out.push(Check::new(("gram", "upper triangle"), &shape, dtype(name), 0.0, move |runner: &On| {
                let (x, weights) = matrix();
                let expected = cpu::Gram::new(columns).map(|mut gram| {
                    gram.add(&x, weights.as_deref(), &mut cpu::GramScratch::default());
                    gram
                });
                let gram = ops::Gram::new(runner, columns)?;
                let weights = weights.map(|w| Buffer::of(runner, &w)).transpose()?;
                match name {
                    0 => gram.add_exact::<f32>(&*Buffer::of(runner, &x)?, rows, weights.as_deref())?,
                    _ => gram.add_exact::<bf16>(&*Buffer::of(runner, &narrow(&x))?, rows, weights.as_deref())?,
                }
                Ok(Difference::of(gram.upper()?, expected.iter().flat_map(|g| g.upper()).copied()))
            }));
            // Sums in f64, divided among blocks.
            out.push(Check::new(
                ("moments", "squares, sums, maxima"),
                &shape,
                dtype(name),
                1e-12,
                move |runner: &On| {
                    let (x, weights) = matrix();
                    let (mut squares, mut sums) = (vec![0.0; columns], vec![0.0; columns]);
                    let mut most = vec![0.0; columns];
                    cpu::moments(&x, &mut squares, &mut sums, &mut most);
                    if let Some(weights) = &weights {
                        squares.fill(0.0);
                        cpu::weighted_squares(&x, weights, &mut squares);
                    }
                    let got = ops::Moments::new(runner, columns)?;
                    let weights = weights.map(|w| Buffer::of(runner, &w)).transpose()?;
                    match name {
                        0 => got.add::<f32>(&*Buffer::of(runner, &x)?, rows, weights.as_deref())?,
                        _ => got.add::<bf16>(&*Buffer::of(runner, &narrow(&x))?, rows, weights.as_deref())?,
                    }
                    let got = got.totals()?;
                    let singles = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
                    let sums = if weights.is_some() { Difference::default() } else { Difference::of(got.sums, sums) };
                    let most = Difference::of(singles(&got.most), singles(&most));
                    Ok(Difference::of(got.squares, squares).and(sums).and(most))
                },
            ));
        }
    }
}

/// What rounding both factors comes to, in sums of a few hundred terms of any sign; of a single term, where nothing evens out, where
/// they are cut and not rounded.
fn allowed(precision: Precision) -> f64 {
    match precision {
        Precision::Exact => 0.0,
        Precision::Single => 1e-5,
        Precision::Tf32 => 2e-3,
        Precision::Bf16 => 1.6e-2,
    }
}

/// What comes of a library's products: never the CPU's bits.
fn libraries(precision: Precision, out: &mut Vec<Check<On>>) {
    let name = precision.to_string();
    let allowed = allowed(precision);
    for (tokens, rows, depth) in [(1, 3, 8), (70, 65, 513), (33, 130, 300)] {
        let shape = format!("{tokens} x {depth} x {rows}");
        out.push(Check::new(("linear", &name), &shape, "f32", allowed, move |runner: &On| {
            let (x, w) = (noise(tokens * depth, 5), noise(rows * depth, 6));
            let [out, expected] = [(); 2].map(|()| Buffer::singles(runner, tokens * (rows + 3)));
            let (out, expected) = (out?, expected?);
            let (x, w) = (Buffer::of(runner, &x)?, Buffer::of(runner, &w)?);
            // Rows further apart than they are long: what is between them stays.
            ops::fill(&out, 0.5)?;
            ops::fill(&expected, 0.5)?;
            ops::linear(&x, &w, [tokens, rows, depth], &out, rows + 3)?;
            ops::linear_exact::<f32>(&x, &w, [tokens, rows, depth], &expected, rows + 3)?;
            let n = tokens * (rows + 3);
            Ok(Difference::singles(&out.read(n)?, &expected.read(n)?))
        }));
    }
    for (rows, columns, weighted) in
        [(1, 1, false), (300, 700, false), (517, 600, true), (cpu::GRAM_ROWS + 5, 33, true)]
    {
        let shape = format!("{rows} x {columns}");
        let dtype = if weighted { "f32, weighted" } else { "f32" };
        out.push(Check::new(("gram", &name), &shape, dtype, allowed, move |runner: &On| {
            let x = Buffer::of(runner, &noise(rows * columns, 7))?;
            let weights = weighted.then(|| Buffer::of(runner, &noise(rows, 8))).transpose()?;
            let [got, expected] = [(); 2].map(|()| ops::Gram::new(runner, columns));
            let (got, expected) = (got?, expected?);
            // Twice: what is there already is added to.
            for _ in 0..2 {
                got.add(&x, rows, weights.as_deref())?;
                expected.add_exact::<f32>(&x, rows, weights.as_deref())?;
            }
            Ok(Difference::of(got.upper()?, expected.upper()?))
        }));
    }
}

//! How fast a card is: each kernel on sizes of a model of 8 billion weights, beside the bandwidth that a plain copy reaches.

use std::time::Instant;

use half::bf16;
use ndarray::Array2;

use super::ops::{self, Element, Matrix, codes};
use super::runner::{Buffer, Runner};
use super::selftest::codes::on_card;
use super::source;
use crate::codec::grid::Levels;
use crate::codec::{self, Codec};
use crate::device::Precision;
use crate::device::check::noise;
use crate::device::cpu::{Attention, Feedback, GRAM_ROWS};
use crate::error::{Error, Result};
use crate::tensor::{Dims, Packed};

/// One kernel on one size.
#[derive(Clone, Debug)]
pub struct Speed {
    pub op: &'static str,
    pub of: String,
    pub shape: String,
    pub seconds: f64,
    /// Read and written, at least.
    pub bytes: f64,
    pub flops: f64,
}

/// Runs of which the fastest counts, after one that compiles.
const RUNS: usize = 5;

fn fastest(runner: &dyn Runner, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut least = f64::INFINITY;
    for n in 0..=RUNS {
        let start = Instant::now();
        run()?;
        runner.finish()?;
        if n > 0 {
            least = least.min(start.elapsed().as_secs_f64());
        }
    }
    Ok(least)
}

/// Side of the matrices; `small` ones are for machines that only stand in for a card.
fn side(small: bool) -> usize {
    if small { 256 } else { 4096 }
}

/// Everything, the copy first.
pub fn run(runner: &dyn Runner, small: bool) -> Result<Vec<Speed>> {
    let n = side(small);
    let mut out = vec![copy(runner, n * n * 16)?];
    for grid in source::grids() {
        let of = codec::all().find(|c| c.facts().is_some_and(|f| f.grid.id() == grid.id()));
        let Some(codec) = of else { continue };
        out.push(decode::<bf16>(runner, codec, n)?);
        if grid.block && codec.block().is_some_and(|b| b.encode.is_some()) {
            out.push(encode(runner, codec, n)?);
        }
    }
    out.extend(solve(runner, n)?);
    for exact in [true, false] {
        if exact || runner.precision() != Precision::Exact {
            out.push(linear(runner, n, exact)?);
            out.push(gram(runner, n, exact)?);
        }
    }
    if runner.factors() {
        out.push(cholesky(runner, n)?);
    }
    out.push(attention(runner, n / 2)?);
    Ok(out)
}

fn copy(runner: &dyn Runner, bytes: usize) -> Result<Speed> {
    let (from, to) = (Buffer::zeros(runner, bytes)?, Buffer::new(runner, bytes)?);
    let seconds = fastest(runner, || runner.copy(from.address(), to.address(), bytes))?;
    let shape = format!("{bytes} bytes");
    Ok(Speed { op: "copy", of: String::new(), shape, seconds, bytes: 2.0 * bytes as f64, flops: 0.0 })
}

fn decode<T: Element>(runner: &dyn Runner, codec: &dyn Codec, n: usize) -> Result<Speed> {
    let dims = Dims::new(n, n);
    let layout = codec.layout(dims)?;
    let stored = layout.iter().map(|p| p.bytes).sum::<usize>();
    let packed = Packed { dims, parts: layout.iter().map(|p| vec![0u8; p.bytes].into()).collect() };
    let (matrix, out) = (Matrix::upload(runner, codec, &packed)?, Buffer::new(runner, n * n * size_of::<T>())?);
    let seconds = fastest(runner, || matrix.decode_into::<T>(0..n, &out))?;
    let bytes = (stored + n * n * size_of::<T>()) as f64;
    Ok(Speed { op: "decode", of: codec.name().to_owned(), shape: format!("{n} x {n}"), seconds, bytes, flops: 0.0 })
}

fn wave(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect()
}

/// With the way to the card and back.
fn encode(runner: &dyn Runner, codec: &dyn Codec, n: usize) -> Result<Speed> {
    let (w, importance) = (wave(n * n), vec![1.0; n]);
    let seconds = fastest(runner, || ops::encode(runner, codec, &w, n, Some(&importance)).map(drop))?;
    let bytes = (n * n * 4) as f64;
    let shape = format!("{n} x {n}, from and to the host");
    Ok(Speed { op: "encode", of: codec.name().to_owned(), shape, seconds, bytes, flops: 0.0 })
}

/// Four bits in groups of 128, on the card from weights to codes.
fn solve(runner: &dyn Runner, n: usize) -> Result<[Speed; 2]> {
    let unknown = || Error::unsupported("no kernel fits integers of 4 bits in groups of 128");
    let all = codec::all().filter_map(|c| c.grid()?.facts());
    let of_groups = all.filter(|f| f.group == Some(128) && f.grid.levels == Levels::Integers { first: 0, count: 16 });
    let facts = of_groups.into_iter().find(|f| f.fit.is_some()).ok_or_else(unknown)?;
    let (fitter, stride) = (codes::Fitter::new(&facts, n).ok_or_else(unknown)?, Feedback::stride(n));
    let (w, importance) = (Buffer::of(runner, &wave(n * n))?, Buffer::of(runner, &vec![1.0f32; n])?);
    let mut shares: Vec<f32> = wave(n * stride);
    for j in 0..n {
        shares[j * stride..=j * stride + j].fill(0.0);
    }
    shares.iter_mut().for_each(|s| *s *= 0.01);
    let feedback = Feedback { order: (0..n as u32).collect(), shares, stride, variances: vec![1.0; n] };
    let feedback = codes::Feedback::upload(runner, &feedback)?;
    let fit = fastest(runner, || fitter.searched(&w, Some(&importance)).map(drop))?;
    let scales = fitter.searched(&w, Some(&importance))?;
    let solve = fastest(runner, || scales.round_columns(&w, &feedback).map(drop))?;
    let shape = format!("{n} x {n}");
    // A candidate takes about a dozen operations of each weight.
    let (bytes, trials) = ((n * n * 5) as f64, 43.0 * 12.0 * (n * n) as f64);
    let of = || "4-bit integers".to_owned();
    Ok([
        Speed { op: "fit", of: of(), shape: shape.clone(), seconds: fit, bytes, flops: trials },
        Speed { op: "solve", of: of(), shape, seconds: solve, bytes, flops: (n * n) as f64 * n as f64 },
    ])
}

/// How a row of the table says it: by the kernel, or by the library.
fn how(runner: &dyn Runner, exact: bool) -> String {
    if exact { "exact".to_owned() } else { runner.precision().to_string() }
}

fn linear(runner: &dyn Runner, n: usize, exact: bool) -> Result<Speed> {
    let [x, w] = [5, 7].map(|seed| Buffer::of(runner, &noise(n * n, seed)));
    let (x, w, out) = (x?, w?, Buffer::new(runner, n * n * 4)?);
    let run = if exact { ops::linear_exact::<f32> } else { ops::linear };
    let seconds = fastest(runner, || run(&x, &w, [n, n, n], &out, n))?;
    let (bytes, flops) = ((n * n * 12) as f64, 2.0 * (n as f64).powi(3));
    Ok(Speed { op: "linear", of: how(runner, exact), shape: format!("{n} x {n} x {n}"), seconds, bytes, flops })
}

fn gram(runner: &dyn Runner, n: usize, exact: bool) -> Result<Speed> {
    let rows = GRAM_ROWS.min(n);
    let (gram, x) = (ops::Gram::new(runner, n)?, Buffer::of(runner, &noise(rows * n, 5))?);
    let run = if exact { ops::Gram::add_exact::<f32> } else { ops::Gram::add };
    let seconds = fastest(runner, || run(&gram, &x, rows, None))?;
    let (bytes, flops) = ((rows * n * 4 + n * n * 8) as f64, rows as f64 * (n * n) as f64);
    Ok(Speed { op: "gram", of: how(runner, exact), shape: format!("{rows} x {n}"), seconds, bytes, flops })
}

/// With the way to the card and back.
fn cholesky(runner: &dyn Runner, n: usize) -> Result<Speed> {
    let matrix = Array2::from_shape_fn((n, n), |(i, j)| if i == j { n as f64 } else { 1.0 / (1 + i + j) as f64 });
    let mut work = matrix.clone();
    let seconds = fastest(runner, || {
        work.assign(&matrix);
        on_card(runner, &mut work).map(drop)
    })?;
    let shape = format!("{n} x {n}, from and to the host");
    let (bytes, flops) = ((n * n * 16) as f64, (n as f64).powi(3) / 3.0);
    Ok(Speed { op: "cholesky", of: "f64".to_owned(), shape, seconds, bytes, flops })
}

fn attention(runner: &dyn Runner, tokens: usize) -> Result<Speed> {
    let of = Attention { heads: 8, kv_heads: 2, head_dim: 128, scale: 0.1, softcap: None, window: None, sinks: None };
    let (q, kv) = (wave(tokens * of.heads * of.head_dim), wave(tokens * of.kv_heads * of.head_dim));
    let (q, kv) = (Buffer::of(runner, &q)?, Buffer::of(runner, &kv)?);
    let out = Buffer::new(runner, q.bytes())?;
    let heads = ops::Heads { q: q.part(0..q.bytes()), k: kv.part(0..kv.bytes()), v: kv.part(0..kv.bytes()) };
    let seconds = fastest(runner, || ops::attention(&of, 0, &heads, &out))?;
    let (t, width) = (tokens as f64, (of.heads * of.head_dim) as f64);
    let shape = format!("{tokens} tokens, 8 heads of 128");
    Ok(Speed {
        op: "attention",
        of: "causal".to_owned(),
        shape,
        seconds,
        bytes: 10.0 * t * width,
        flops: 2.0 * t * t * width,
    })
}

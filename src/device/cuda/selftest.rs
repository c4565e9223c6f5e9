//! Every operation of a device against the CPU's: what `quant selftest` prints, and what tests run with the host in a card's place.

use half::bf16;
use safetensors::Dtype;

use super::ops;
use super::runner::{Buffer, Runner, View};
use super::source;
use crate::arch::Activation;
use crate::codec::grid::{Levels, Scale};
use crate::codec::kv::{KvPolicy, KvShape};
use crate::codec::{self, Codec, DeviceGrid, float};
use crate::container::Weight;
use crate::device::check::{Check, Difference, bytes, noise};
use crate::device::cpu::{self, Attention, Feedback, KvCache, Scales};
use crate::error::Result;
use crate::tensor::{Dims, Packed};

/// Whatever kernels run on.
pub type On = dyn Runner;

/// Every check there is, for every format that has kernels.
pub fn checks() -> Vec<Check<On>> {
    let mut out = Vec::new();
    for grid in source::grids() {
        decode(&grid, &mut out);
        if grid.block {
            encode(&grid, &mut out);
        }
    }
    solve(&mut out);
    sums(&mut out);
    layer(&mut out);
    attention(&mut out);
    scores(&mut out);
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

fn solve(out: &mut Vec<Check<On>>) {
    let mut seen: Vec<Levels> = Vec::new();
    for levels in codec::all().filter_map(|c| c.grid()).map(|g| g.levels()) {
        if seen.contains(&levels) {
            continue;
        }
        seen.push(levels);
        let of = match levels {
            Levels::Integers { first, count } => format!("integers from {first}, {count} of them"),
            Levels::Table(t) => format!("a table from {} to {}", t[0], t[t.len() - 1]),
            Levels::E4m3 => "8-bit floats".to_owned(),
        };
        // Integers are one kernel; one more shape is enough for the rest of them.
        let (rows, cols, span) = if seen.len() < 4 { (19, 608, 32) } else { (3, 160, 16) };
        out.push(Check::new(("solve", &of), &format!("{rows} x {cols}"), "f32", 0.0, move |runner: &On| {
            let (w, stride) = (noise(rows * cols, 1), Feedback::stride(cols));
            let order: Vec<u32> = (0..cols as u32).map(|i| i * 7 % cols as u32).collect();
            let mut shares: Vec<f32> = noise(cols * stride, 2).iter().map(|x| x * 0.05).collect();
            for j in 0..cols {
                shares[j * stride..=j * stride + j].fill(0.0);
            }
            let scale = |i: usize| match i % 11 {
                0 => Scale { step: 0.0, zero: 0.0, offset: 0.1 },
                _ => Scale { step: 0.1 + 0.01 * (i % 7) as f32, zero: 0.5, offset: 0.02 },
            };
            let all: Vec<Scale> = (0..rows * cols / span).map(scale).collect();
            let levels = vec![levels; cols / span];
            let (feedback, scales) = (
                Feedback { order, shares, stride, variances: vec![1.0; cols] },
                Scales { levels: &levels, span, all: &all },
            );
            let mut expected = vec![0; w.len()];
            cpu::round_columns(&w, cols, scales, &feedback, &mut expected);
            let got = ops::Shares::upload(runner, &feedback)?.round_columns(&w, scales)?;
            Ok(Difference::bytes(&got, &expected))
        }));
    }
}

/// As two products beside each other: what fills a matrix part by part.
fn product<T: ops::Element>(runner: &On, x: &[f32], w: &[T], depth: usize, expected: &[f32]) -> Result<Difference> {
    let (tokens, rows) = (x.len() / depth, w.len() / depth);
    let (x, w, out) = (Buffer::of(runner, x)?, Buffer::of(runner, w)?, Buffer::singles(runner, expected.len())?);
    for part in [0..rows / 2, rows / 2..rows] {
        let w = w.part(part.start * depth * size_of::<T>()..part.end * depth * size_of::<T>());
        ops::linear::<T>(&x, &w, [tokens, part.len(), depth], &out.part(part.start * 4..out.bytes()), rows)?;
    }
    Ok(Difference::singles(&out.read(expected.len())?, expected))
}

/// What an operation on `x` makes of it in its place.
fn on(runner: &On, x: &[f32], op: impl Fn(&View<'_>) -> Result<()>) -> Result<Vec<f32>> {
    let at = Buffer::of(runner, x)?;
    op(&at)?;
    at.read(x.len())
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
                    0 => gram.add::<f32>(&*Buffer::of(runner, &x)?, rows, weights.as_deref())?,
                    _ => gram.add::<bf16>(&*Buffer::of(runner, &narrow(&x))?, rows, weights.as_deref())?,
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

fn layer(out: &mut Vec<Check<On>>) {
    let n = 3000;
    let shape = format!("{n}");
    let mut elements = |op: &'static str, of: &str, run: fn(&On) -> Result<Difference>| {
        out.push(Check::new((op, of), &shape, "f32", 0.0, run));
    };
    elements("fill", "", |runner| {
        Ok(Difference::singles(&on(runner, &noise(3000, 1), |x| ops::fill(x, 0.5))?, &[0.5; 3000]))
    });
    elements("add", "", |runner| {
        let (x, y) = (noise(3000, 1), noise(3000, 2));
        let mut expected = x.clone();
        cpu::add(&mut expected, &y);
        let y = Buffer::of(runner, &y)?;
        Ok(Difference::singles(&on(runner, &x, |x| ops::add(x, &y))?, &expected))
    });
    elements("add bias", "30 columns", |runner| {
        let (x, bias) = (noise(3000, 1), noise(30, 2));
        let mut expected = x.clone();
        expected.chunks_exact_mut(30).for_each(|row| cpu::add(row, &bias));
        let bias = Buffer::of(runner, &bias)?;
        Ok(Difference::singles(&on(runner, &x, |x| ops::add_bias(x, &bias))?, &expected))
    });
    elements("scale", "", |runner| {
        let x = noise(3000, 1);
        let expected: Vec<f32> = x.iter().map(|x| x * 0.3).collect();
        Ok(Difference::singles(&on(runner, &x, |x| ops::scale(x, 0.3))?, &expected))
    });
    elements("softcap", "", |runner| {
        let x: Vec<f32> = noise(3000, 3).iter().map(|x| x * 100.0).collect();
        let mut expected = x.clone();
        cpu::softcap(&mut expected, 30.0);
        Ok(Difference::singles(&on(runner, &x, |x| ops::softcap(x, 30.0))?, &expected))
    });
    elements("is finite", "", |runner| {
        let places =
            [0usize, 1234, 2999].iter().flat_map(|at| [f32::NAN, f32::INFINITY, -f32::INFINITY].map(|bad| (*at, bad)));
        let found = places.map(|(at, bad)| {
            let mut x = noise(3000, 4);
            let sound = ops::is_finite(&*Buffer::of(runner, &x)?)?;
            x[at] = bad;
            Ok([sound, ops::is_finite(&*Buffer::of(runner, &x)?)?].map(|yes| f64::from(u8::from(yes))))
        });
        let found = found.collect::<Result<Vec<_>>>()?;
        Ok(Difference::of(found.concat(), [1.0, 0.0].repeat(found.len())))
    });
    for activation in [Activation::Silu, Activation::Gelu, Activation::ClampedSilu] {
        out.push(Check::new(("gate", &format!("{activation:?}")), &shape, "f32", 0.0, move |runner: &On| {
            let (gate, up): (Vec<f32>, _) = (noise(n, 1).iter().map(|x| x * 120.0 * x * x).collect(), noise(n, 2));
            let mut expected = gate.clone();
            cpu::gate(activation, &mut expected, &up);
            let up = Buffer::of(runner, &up)?;
            Ok(Difference::singles(&on(runner, &gate, |gate| ops::gate(activation, gate, &up))?, &expected))
        }));
    }
    for (dtype, codec) in [(Dtype::F16, &float::F16), (Dtype::BF16, &float::BF16)] {
        out.push(Check::new(("widen", codec.name), &shape, "f32", 0.0, move |runner: &On| {
            let (stored, mut expected) = (bytes(n * 2, 1), vec![0.0; n]);
            (codec.decode)(&stored, &mut expected);
            let (x, wide) = (Buffer::of(runner, &stored)?, Buffer::singles(runner, n)?);
            ops::widen(dtype, &x, &wide)?;
            Ok(Difference::singles(&wide.read(n)?, &expected))
        }));
    }
    for columns in [1, 100, 2048] {
        out.push(Check::new(("rms_norm", ""), &format!("5 x {columns}"), "f32", 1e-6, move |runner: &On| {
            let (x, gain) = (noise(5 * columns, 4), noise(columns, 5));
            let mut expected = vec![0.0; x.len()];
            for (x, out) in x.chunks_exact(columns).zip(expected.chunks_exact_mut(columns)) {
                cpu::rms_norm(x, &gain, 1e-6, out);
            }
            let (x, gain, out) =
                (Buffer::of(runner, &x)?, Buffer::of(runner, &gain)?, Buffer::singles(runner, 5 * columns)?);
            ops::rms_norm(&x, &gain, 1e-6, &out)?;
            Ok(Difference::singles(&out.read(expected.len())?, &expected))
        }));
    }
    experts(out);
    for halves in [false, true] {
        let (tokens, heads, head_dim, pairs) = (7, 3, 48, 20);
        let of = if halves { "halves" } else { "neighbours" };
        out.push(Check::new(
            ("rope", of),
            &format!("{tokens} x {heads} x {head_dim}"),
            "f32",
            0.0,
            move |runner: &On| {
                let x = noise(tokens * heads * head_dim, 6);
                let turns: Vec<[f32; 2]> = noise(tokens * pairs, 7).iter().map(|a| [a.cos(), a.sin()]).collect();
                let mut expected = x.clone();
                for (n, head) in expected.chunks_exact_mut(head_dim).enumerate() {
                    for (i, [cos, sin]) in turns[n / heads * pairs..][..pairs].iter().enumerate() {
                        let (a, b) = if halves { (i, i + pairs) } else { (2 * i, 2 * i + 1) };
                        (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
                    }
                }
                let turns = Buffer::of(runner, turns.as_flattened())?;
                let got = on(runner, &x, |x| ops::rope(x, &turns, tokens, head_dim, halves))?;
                Ok(Difference::singles(&got, &expected))
            },
        ));
    }
}

/// What brings tokens to their experts and back.
fn experts(out: &mut Vec<Check<On>>) {
    const COLUMNS: usize = 70;
    const PLACES: [u32; 5] = [6, 0, 3, 8, 1];
    let row = |x: &[f32], place: u32| x[place as usize * COLUMNS..][..COLUMNS].to_vec();
    out.push(Check::new(("pick", ""), "5 of 9 x 70", "f32", 0.0, move |runner: &On| {
        let x = noise(9 * COLUMNS, 1);
        let (from, to) = (Buffer::of(runner, &x)?, Buffer::singles(runner, 5 * COLUMNS)?);
        ops::pick(&from, &PLACES, COLUMNS, &to)?;
        Ok(Difference::singles(&to.read(5 * COLUMNS)?, &PLACES.map(|p| row(&x, p)).concat()))
    }));
    out.push(Check::new(("scatter", ""), "5 of 9 x 70", "f32", 0.0, move |runner: &On| {
        let (x, y, weights) = (noise(9 * COLUMNS, 1), noise(5 * COLUMNS, 2), noise(5, 3));
        let mut expected = x.clone();
        for ((place, weight), y) in PLACES.iter().zip(&weights).zip(y.chunks_exact(COLUMNS)) {
            let row = &mut expected[*place as usize * COLUMNS..][..COLUMNS];
            row.iter_mut().zip(y).for_each(|(x, y)| *x += y * weight);
        }
        let y = Buffer::of(runner, &y)?;
        let got = on(runner, &x, |x| ops::scatter(&y, &PLACES, &weights, COLUMNS, x))?;
        Ok(Difference::singles(&got, &expected))
    }));
    out.push(Check::new(("dots", ""), "9 x 70", "f32", 0.0, move |runner: &On| {
        let (x, w) = (noise(9 * COLUMNS, 1), noise(COLUMNS, 2));
        let expected: Vec<f32> = x.chunks_exact(COLUMNS).map(|x| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect();
        let (x, w, to) = (Buffer::of(runner, &x)?, Buffer::of(runner, &w)?, Buffer::singles(runner, 9)?);
        ops::dots(&x, &w, &to)?;
        Ok(Difference::singles(&to.read(9)?, &expected))
    }));
}

fn attention(out: &mut Vec<Check<On>>) {
    for &head_dim in source::HEAD_DIMS {
        for (first, tokens, window, softcap, sinks) in [
            (0, 21, None, None, None),
            (37, 11, Some(30), Some(5.0), None),
            (5, 1, Some(3), None, None),
            (3, 9, None, None, Some(vec![-2.0, 0.0, 1.0, 8.0])),
        ] {
            let mut of = window.map_or("causal".to_owned(), |w| format!("window {w}"));
            of += if softcap.is_some() { ", softcap" } else { "" };
            of += if sinks.is_some() { ", sinks" } else { "" };
            let a = Attention { heads: 4, kv_heads: 2, head_dim, scale: 0.3, softcap, window, sinks };
            let shape = format!("{tokens} after {first}, heads of {head_dim}");
            out.push(Check::new(("attention", &of), &shape, "f32", 2e-6, move |runner: &On| {
                let all = first + tokens;
                let (q, k, v) =
                    (noise(tokens * 4 * head_dim, 1), noise(all * 2 * head_dim, 2), noise(all * 2 * head_dim, 3));
                let shape = KvShape { layers: 1, heads: 2, head_dim };
                let mut cache = KvCache::new(&KvPolicy::default(), shape, 1, all)?;
                let (before, now) = (..first * 2 * head_dim, first * 2 * head_dim..);
                let mut unused = vec![0.0; first * 4 * head_dim];
                let asked = unused.clone();
                cache.attend(&a, 0, &asked, &k[before], &v[before], &|_, _| {}, &mut unused)?;
                cache.advance(first);
                let mut expected = vec![0.0; q.len()];
                cache.attend(&a, 0, &q, &k[now.clone()], &v[now], &|_, _| {}, &mut expected)?;
                let [q, k, v] = [Buffer::of(runner, &q)?, Buffer::of(runner, &k)?, Buffer::of(runner, &v)?];
                let out = Buffer::new(runner, q.bytes())?;
                let [q, k, v] = [&q, &k, &v].map(|x| x.part(0..x.bytes()));
                ops::attention(&a, first, &ops::Heads { q, k, v }, &out)?;
                Ok(Difference::singles(&out.read(expected.len())?, &expected))
            }));
        }
    }
}

fn scores(out: &mut Vec<Check<On>>) {
    let (positions, vocab, part) = (3, 1000, 384);
    let shape = format!("{positions} x {vocab}, {part} at a time");
    out.push(Check::new(("scores", "NLL, KLD, same top"), &shape, "f32", 1e-7, move |runner: &On| {
        let p: Vec<f32> = noise(positions * vocab, 1).iter().map(|x| x * 9.0).collect();
        let q: Vec<f32> = p.iter().zip(noise(positions * vocab, 2)).map(|(p, n)| p + n * 0.3).collect();
        let targets = [0, 613, 999];
        let mut all = cpu::Scores::new(positions, 1);
        for first in (0..vocab).step_by(part) {
            for (n, target) in targets.iter().enumerate() {
                let row = n * vocab + first..n * vocab + vocab.min(first + part);
                all.add(n, first, *target, &p[row.clone()], &[&q[row]]);
            }
        }
        let numbers = |s: cpu::TokenScore| [s.nll_ref, s.nll, s.kld, f64::from(u8::from(s.same_top))];
        let got = ops::Scores::new(runner, &targets)?;
        for first in (0..vocab).step_by(part) {
            let n = part.min(vocab - first);
            let columns = |x: &[f32]| -> Vec<f32> {
                x.chunks_exact(vocab).flat_map(|row| &row[first..first + n]).copied().collect()
            };
            let (p, q) = (Buffer::of(runner, &columns(&p))?, Buffer::of(runner, &columns(&q))?);
            // The last position by itself.
            for positions in [0..2, 2..3] {
                got.add(positions.clone(), first, n, &p.rows(positions.clone(), n), &q.rows(positions, n))?;
            }
        }
        Ok(Difference::of(got.finish()?.finish(0).flat_map(numbers), all.finish(0).flat_map(numbers)))
    }));
}

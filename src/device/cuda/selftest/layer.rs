//! What happens between products.

use safetensors::Dtype;

use super::On;
use crate::arch::Activation;
use crate::codec::float;
use crate::codec::kv::{KvPolicy, KvShape};
use crate::device::check::{Check, Difference, bytes, noise};
use crate::device::cpu::{self, Attention, KvCache};
use crate::device::cuda::runner::{Buffer, View};
use crate::device::cuda::{ops, source};
use crate::error::Result;

/// What an operation on `x` makes of it in its place.
fn on(runner: &On, x: &[f32], op: impl Fn(&View<'_>) -> Result<()>) -> Result<Vec<f32>> {
    let at = Buffer::of(runner, x)?;
    op(&at)?;
    at.read(x.len())
}

/// A layer's operations beside its products, and the statistics of what comes out of the last.
pub fn checks(out: &mut Vec<Check<On>>) {
    between(out);
    experts(out);
    attention(out);
    scores(out);
}

fn between(out: &mut Vec<Check<On>>) {
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
            (0, 130, None, None, None),
            (90, 70, Some(67), None, Some(vec![-2.0, 0.0, 1.0, 8.0])),
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

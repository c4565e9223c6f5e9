//! Scales, codes, what they lose, and feedback.

use ndarray::Array2;

use super::On;
use crate::codec::grid::{Codes, Grid, Levels, Scale, Unsearched, scales};
use crate::codec::{self, Codec};
use crate::device::Precision;
use crate::device::check::{Check, Difference, noise};
use crate::device::cpu::{self, Feedback, Scales};
use crate::device::cuda::ops::codes;
use crate::device::cuda::{Buffer, Runner};
use crate::error::{Error, Result};

pub fn checks(precision: Precision, out: &mut Vec<Check<On>>) {
    fit(out);
    solve(out);
    scaled(out);
    if precision != Precision::Exact {
        factored(precision, out);
        solved(precision, out);
        judged(precision, out);
    }
}

fn singles(scales: &[Scale]) -> &[f32] {
    bytemuck::cast_slice(scales)
}

/// One format of each width, place of the zero and type of scales that kernels fit.
fn fitted() -> Vec<(&'static dyn Codec, &'static dyn Grid)> {
    let mut seen = Vec::new();
    let all = codec::all().filter_map(|codec| Some((codec, codec.grid()?)));
    let one_each = all.filter(|(_, grid)| {
        let Some(facts) = grid.facts().filter(|f| matches!(f.group, None | Some(16) | Some(32) | Some(128))) else {
            return false;
        };
        let kind = facts.fit.map(|fit| (fit, facts.scales, facts.group.is_some()));
        let new = kind.is_some() && !seen.contains(&kind);
        seen.push(kind);
        new
    });
    one_each.collect()
}

fn fit(out: &mut Vec<Check<On>>) {
    for (codec, grid) in fitted() {
        // A row that is one group need not be a multiple of anything.
        let cols = if grid.group(64) == 64 { 603 } else { grid.group(64) * 3 };
        for weighted in [false, true] {
            let dtype = if weighted { "f32, importance" } else { "f32" };
            out.push(Check::new(("fit", codec.name()), &format!("6 x {cols}"), dtype, 0.0, move |runner: &On| {
                let w = super::weights(cols);
                let importance: Option<Vec<f32>> = weighted
                    .then(|| noise(cols, 4).iter().map(|x| if *x < -0.6 { 0.0 } else { x * x + 1e-3 }).collect());
                let no_kernel = || Error::unsupported("there is no kernel that fits them");
                let facts = grid.facts().ok_or_else(no_kernel)?;
                let fitter = codes::Fitter::new(&facts, cols).ok_or_else(no_kernel)?;
                let there = Buffer::of(runner, &w)?;
                let given = importance.as_ref().map(|i| Buffer::of(runner, i)).transpose()?;
                let mut params = vec![0; w.len() / grid.group(cols) * grid.param_bytes()];
                grid.fit(&w, cols, importance.as_deref(), &mut params);
                let expected = scales(grid, cols, w.len(), &params);
                let searched = fitter.searched(&there, given.as_deref())?;
                let got = searched.read()?;
                let mut adopted = params.clone();
                for (scale, params) in got.iter().zip(adopted.chunks_exact_mut(grid.param_bytes())) {
                    grid.adopt(&[*scale], params);
                }
                let adopted = searched.stored()?.unwrap_or(adopted);
                let found = Difference::singles(singles(&got), singles(&expected));
                let found = found.and(Difference::bytes(&adopted, &params));
                if weighted {
                    return Ok(found);
                }
                let cuts: &[f32] = if fitter.cuts() { &[1.0, 0.8, 0.55] } else { &[1.0] };
                cuts.iter().try_fold(found, |found, cut| {
                    let mut cut_off = w.clone();
                    for span in cut_off.chunks_exact_mut(grid.span(cols)) {
                        let most = cut * span.iter().fold(0.0f32, |most, w| most.max(w.abs()));
                        span.iter_mut().for_each(|w| *w = w.clamp(-most, most));
                    }
                    Unsearched(grid).fit(&cut_off, cols, None, &mut params);
                    let got = fitter.largest(&there, *cut)?.read()?;
                    Ok(found.and(Difference::singles(singles(&got), singles(&scales(grid, cols, w.len(), &params)))))
                })
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
        let shape = format!("{rows} x {cols}");
        let weights = move || (noise(rows * cols, 1), some_scales(rows * cols / span, levels));
        out.push(Check::new(("solve", &of), &shape, "f32", 0.0, move |runner: &On| {
            let ((w, all), feedback) = (weights(), some_feedback(cols));
            let levels = vec![levels; cols / span];
            let scales = Scales { levels: &levels, span, all: &all };
            let mut expected = vec![0; w.len()];
            cpu::round_columns(&w, cols, scales, &feedback, &mut expected);
            let (there, feedback) = (Buffer::of(runner, &w)?, codes::Feedback::upload(runner, &feedback)?);
            let got = codes::Scales::upload(runner, cols, scales)?.round_columns_exact(&there, &feedback)?;
            Ok(Difference::bytes(&got.read(w.len())?, &expected))
        }));
        out.push(Check::new(("nearest", &of), &shape, "f32, codes and errors", 0.0, move |runner: &On| {
            let (w, all) = weights();
            let of_row = vec![levels; cols / span];
            let there = codes::Scales::upload(runner, cols, Scales { levels: &of_row, span, all: &all })?;
            let columns: Vec<f32> = noise(cols, 5).iter().map(|x| 1.5 + x).collect();
            let expected: Vec<u8> = w.iter().enumerate().map(|(i, w)| levels.nearest(*w, all[i / span])).collect();
            let errors = w.iter().zip(&expected).enumerate();
            let errors: Vec<f32> = errors.map(|(i, (w, code))| w - all[i / span].value(levels.level(*code))).collect();
            let back: Vec<f32> = errors.iter().enumerate().map(|(i, e)| e / columns[i % cols]).collect();
            let (w, columns) = (Buffer::of(runner, &w)?, Buffer::of(runner, &columns)?);
            let got = there.nearest(&w)?;
            let plain: Vec<f32> = there.errors(&w, &got, None)?.read(errors.len())?;
            let divided: Vec<f32> = there.errors(&w, &got, Some(&columns))?.read(errors.len())?;
            let codes = Difference::bytes(&got.read(expected.len())?, &expected);
            Ok(codes.and(Difference::singles(&plain, &errors)).and(Difference::singles(&divided, &back)))
        }));
    }
}

fn some_scales(n: usize, levels: Levels) -> Vec<Scale> {
    let middle = if let Levels::Integers { count, .. } = levels { (count / 2) as f32 } else { 0.0 };
    let scale = |i: usize| match i % 13 {
        0 => Scale { step: 0.0, zero: 0.0, offset: 0.1 },
        _ => Scale { step: 0.05 + 0.01 * (i % 7) as f32, zero: middle, offset: 0.02 },
    };
    (0..n).map(scale).collect()
}

fn some_feedback(cols: usize) -> Feedback {
    let stride = Feedback::stride(cols);
    let order: Vec<u32> = (0..cols as u32).map(|i| i * 7 % cols as u32).collect();
    let mut shares: Vec<f32> = noise(cols * stride, 2).iter().map(|x| x * 0.05).collect();
    for j in 0..cols {
        shares[j * stride..=j * stride + j].fill(0.0);
        shares[j * stride + cols..(j + 1) * stride].fill(0.0);
    }
    Feedback { order, shares, stride, variances: noise(cols, 3).iter().map(|x| x * x).collect() }
}

/// Of whose shares only codes tell.
fn scaled(out: &mut Vec<Check<On>>) {
    let (rows, cols, span) = (5, 160, 16);
    out.push(Check::new(("feedback", "scaled"), &format!("{rows} x {cols}"), "f32", 0.0, move |runner: &On| {
        let levels = Levels::Integers { first: 0, count: 16 };
        let (w, all, feedback) = (noise(rows * cols, 1), some_scales(rows * cols / span, levels), some_feedback(cols));
        let scale: Vec<f32> = noise(cols, 6).iter().map(|x| 1.2 + x).collect();
        let levels = vec![levels; cols / span];
        let scales = Scales { levels: &levels, span, all: &all };
        let mut expected = vec![0; w.len()];
        let on_cpu = feedback.scaled(&scale);
        cpu::round_columns(&w, cols, scales, &on_cpu, &mut expected);
        let there = codes::Feedback::upload(runner, &feedback)?.scaled(&scale)?;
        let got =
            codes::Scales::upload(runner, cols, scales)?.round_columns_exact(&*Buffer::of(runner, &w)?, &there)?;
        let variances = Difference::singles(&there.variances, &on_cpu.variances);
        Ok(Difference::bytes(&got.read(w.len())?, &expected).and(variances))
    }));
}

/// The inner products of inputs of which one in eleven is always zero: all of them in rows filled up to whole panels, and the upper
/// triangle.
fn gram(n: usize) -> (Array2<f32>, Vec<f32>) {
    let x = noise(n * n, 9);
    let at = |i: usize, j: usize| if i % 11 == 3 { 0.0 } else { x[i * n + j] };
    let product = |i: usize, j: usize| (0..n).map(|k| at(i, k) * at(j, k)).sum::<f32>();
    let dense = Array2::from_shape_fn((n, cpu::padded(n)), |(i, j)| if j < n { product(i, j) } else { 0.0 });
    let upper = (0..n).flat_map(|i| dense.row(i).iter().take(n).skip(i).copied().collect::<Vec<_>>()).collect();
    (dense, upper)
}

/// Feedback from a library's factor: the CPU's but for the last bits.
fn factored(precision: Precision, out: &mut Vec<Check<On>>) {
    for n in [1, 65, 203] {
        let (shape, of) = (format!("{n} x {n}"), precision.to_string());
        out.push(Check::new(("feedback", &of), &shape, "f64", 1e-6, move |runner: &On| {
            let (dense, upper) = gram(n);
            let order: Vec<u32> = (0..n as u32).map(|i| i * 11 % n as u32).collect();
            let none = |_| Error::unsupported("there is no factor");
            let expected = Feedback::factored(dense, order.clone(), 1.1).map_err(none)?;
            let upper = Buffer::of(runner, &upper)?;
            let got = codes::Feedback::factored(&upper, order, 1.1)?.map_err(none)?;
            let shares: Vec<f32> = got.shares()?;
            let found = Difference::singles(&shares, &expected.shares);
            Ok(found.and(Difference::singles(&got.variances, &expected.variances)))
        }));
        out.push(Check::new(("cholesky", &of), &shape, "f64", 1e-12, move |runner: &On| {
            let x = Array2::from_shape_vec((n, n), noise(n * n, 9)).map_err(|e| Error::limits(e.to_string()))?;
            let x = x.mapv(f64::from);
            let matrix = x.dot(&x.t()) + Array2::<f64>::eye(n);
            let (mut got, mut expected) = (matrix.clone(), matrix);
            let went = (on_card(runner, &mut got)?, cpu::cholesky(&mut expected));
            let lower = |a: &Array2<f64>| (0..n).flat_map(|i| a.row(i).to_vec()[..=i].to_vec()).collect::<Vec<f64>>();
            // One that has none is told from one that has.
            let mut none = Array2::from_diag_elem(n, 1.0);
            none[[n - 1, n - 1]] = -1.0;
            let pivot = on_card(runner, &mut none)?;
            let told = Difference::of([f64::from(u8::from(went == (Ok(()), Ok(())) && pivot == Err(n - 1)))], [1.0]);
            Ok(Difference::of(lower(&got), lower(&expected)).and(told))
        }));
    }
}

/// [`cpu::cholesky`] by the device.
pub fn on_card(runner: &dyn Runner, a: &mut Array2<f64>) -> Result<std::result::Result<(), usize>> {
    let n = a.nrows();
    let Some(numbers) = a.as_slice_mut() else { return Err(Error::limits("a matrix in pieces")) };
    let matrix = Buffer::of(runner, numbers)?;
    // SAFETY: `matrix` has its `n` rows of `n`.
    let done = unsafe { runner.cholesky(matrix.address(), n, runner)? };
    matrix.read_into(numbers)?;
    Ok(done)
}

/// Codes by a library's products: nearly all of them the CPU's.
fn solved(precision: Precision, out: &mut Vec<Check<On>>) {
    let (rows, cols, span) = (64, 608, 32);
    let (of, shape) = (precision.to_string(), format!("{rows} x {cols}, share that is the same"));
    out.push(Check::new(("solve", &of), &shape, "f32", 1e-3, move |runner: &On| {
        let levels = Levels::Integers { first: 0, count: 16 };
        let (w, all, feedback) = (noise(rows * cols, 1), some_scales(rows * cols / span, levels), some_feedback(cols));
        let levels = vec![levels; cols / span];
        let scales = Scales { levels: &levels, span, all: &all };
        let mut expected = vec![0; w.len()];
        cpu::round_columns(&w, cols, scales, &feedback, &mut expected);
        let there = codes::Feedback::upload(runner, &feedback)?;
        let got = codes::Scales::upload(runner, cols, scales)?.round_columns(&*Buffer::of(runner, &w)?, &there)?;
        let same = got.read::<u8>(w.len())?.iter().zip(&expected).filter(|(a, b)| a == b).count();
        Ok(Difference::of([same as f64 / w.len() as f64], [1.0]))
    }));
}

/// What errors of rows, and of groups of a row, lose.
fn judged(precision: Precision, out: &mut Vec<Check<On>>) {
    let allowed = super::allowed(precision);
    let (rows, n, group) = (7, 192, 32);
    let of = precision.to_string();
    out.push(Check::new(("judge", &of), &format!("{rows} x {n}"), "f32", allowed, move |runner: &On| {
        let ((dense, upper), errors) = (gram(n), noise(rows * n, 12));
        let expected = cpu::quadratic(&errors, dense.view());
        let upper = Buffer::of(runner, &upper)?;
        let judge = codes::Judge::new(&upper, n)?;
        let there = Buffer::of(runner, &errors)?;
        let all = Difference::of([judge.quadratic(&there)?], [expected]);
        let loss = |(at, e): (usize, &[f32])| {
            let first = at * group % n;
            let term =
                |i: usize, j: usize| f64::from(e[i]) * f64::from(e[j]) * f64::from(dense[[first + i, first + j]]);
            (0..group * group).map(|k| term(k / group, k % group)).sum::<f64>()
        };
        let expected: Vec<f64> = errors.chunks_exact(group).enumerate().map(loss).collect();
        let got = judge.groups(&there, group)?.read::<f64>(expected.len())?;
        Ok(all.and(Difference::of(got, expected)))
    }));
    // Of two choices for every group the one that loses less.
    out.push(Check::new(("judge", "the better of two"), &format!("{rows} x {n}"), "u8", 0.0, move |runner: &On| {
        let levels = vec![Levels::Integers { first: 0, count: 16 }; n / group];
        let groups = rows * n / group;
        let some = |step: f32| vec![Scale { step, zero: 8.0, offset: 0.0 }; groups];
        let (all, others) = (some(0.1), some(0.2));
        let scales = |all: &[Scale]| codes::Scales::upload(runner, n, Scales { levels: &levels, span: group, all });
        let (all, others) = (scales(&all)?, scales(&others)?);
        let (codes, found) = (Buffer::of(runner, &vec![1u8; rows * n])?, Buffer::of(runner, &vec![2u8; rows * n])?);
        let losses: Vec<f64> = noise(groups, 13).iter().map(|x| f64::from(*x)).collect();
        let (least, loss) = (Buffer::of(runner, &vec![0.0f64; groups])?, Buffer::of(runner, &losses)?);
        all.keep(&codes, &others, &found, [&least, &loss])?;
        let better = |at: usize| losses[at] < 0.0;
        let expected = Codes {
            params: (0..rows * n).map(|i| if better(i / group) { 2 } else { 1 }).collect(),
            codes: (0..groups).map(|at| if better(at) { 20 } else { 10 }).collect(),
        };
        let steps: Vec<u8> = all.read()?.iter().map(|s| (s.step * 100.0).round() as u8).collect();
        let kept: Vec<f64> = losses.iter().map(|x| x.min(0.0)).collect();
        let found = Difference::bytes(&codes.read(rows * n)?, &expected.params);
        let found = found.and(Difference::bytes(&steps, &expected.codes));
        Ok(found.and(Difference::of(least.read::<f64>(groups)?, kept)))
    }));
}

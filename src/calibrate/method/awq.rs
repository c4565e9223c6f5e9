//! AWQ (Lin et al. 2023): columns whose inputs are large are scaled up before they are rounded, and what wrote those inputs takes
//! the inverse. The scale is found by the error that remains in the output, over all tokens at once: `e H e^T`.

use super::Fit;
use super::ops::Ops;
use crate::calibrate::stats::SiteStats;
use crate::codec::grid::Grid;
use crate::error::Result;

/// Rows of one weight that reads the site, `[rows][cols]`.
pub struct Reader<'a> {
    pub grid: &'a dyn Grid,
    pub rows: Vec<f32>,
}

/// Exponents that are tried, with and without regard to the size of the weights ("duo scaling").
const STEPS: usize = 10;

/// What columns are multiplied with, the geometric mean of the largest and the smallest being 1. `None`: no scale that was
/// tried leaves less error on held-out text than none. Errors that `feedback` will make good do not count.
pub fn search<O: Ops>(
    on: &O,
    readers: &[Reader<'_>],
    stats: &SiteStats<'_>,
    gram: &O::Gram<'_>,
    feedback: Option<&O::Feedback>,
) -> Result<Option<Vec<f32>>> {
    let activity: Vec<f32> = stats.mean_square.iter().map(|x| x.sqrt()).collect();
    let magnitude = magnitudes(readers, activity.len());
    let candidates: Vec<(f32, bool)> =
        (1..=STEPS).flat_map(|i| [false, true].map(|duo| (i as f32 / STEPS as f32, duo))).collect();
    let scales: Vec<Vec<f32>> =
        candidates.into_iter().filter_map(|(power, duo)| scale(&activity, &magnitude, power, duo)).collect();
    let seen = on.judge(gram)?;
    let losses = on.each(&scales, |scale| loss(on, readers, stats, &seen, Some(scale), None))?;
    let Some(best) = (0..scales.len()).min_by(|a, b| losses[*a].total_cmp(&losses[*b])) else { return Ok(None) };
    let judge = match &stats.held_out {
        Some(held_out) => {
            drop(seen);
            on.judge(&on.gram(held_out)?)?
        }
        None => seen,
    };
    let with = loss(on, readers, stats, &judge, Some(&scales[best]), feedback)?;
    let without = loss(on, readers, stats, &judge, None, feedback)?;
    Ok((with < without).then(|| scales[best].clone()))
}

/// Mean magnitude of each column, relative to the largest of its group.
fn magnitudes(readers: &[Reader<'_>], cols: usize) -> Vec<f32> {
    let mut sums = vec![0.0; cols];
    let mut rows = 0;
    for reader in readers {
        for row in reader.rows.chunks_exact(cols) {
            rows += 1;
            for (w, sums) in row.chunks(reader.grid.span(cols)).zip(sums.chunks_mut(reader.grid.span(cols))) {
                let largest = w.iter().fold(0.0f32, |m, w| m.max(w.abs()));
                if largest > 0.0 {
                    w.iter().zip(sums).for_each(|(w, sum)| *sum += w.abs() / largest);
                }
            }
        }
    }
    sums.iter().map(|sum| sum / rows.max(1) as f32).collect()
}

/// `activity^power`, or `activity^power / magnitude^(1 - power)`. Columns that are always zero keep a scale of 1.
fn scale(activity: &[f32], magnitude: &[f32], power: f32, duo: bool) -> Option<Vec<f32>> {
    let each = activity.iter().zip(magnitude).map(|(x, w)| match *x > 0.0 && *w > 0.0 {
        true => Some((x.powf(power) / if duo { w.powf(1.0 - power) } else { 1.0 }).max(1e-4)),
        false => None,
    });
    let each: Vec<Option<f32>> = each.collect();
    let ends = |f: fn(f32, f32) -> f32| each.iter().copied().flatten().reduce(f);
    let middle = (ends(f32::max)? * ends(f32::min)?).sqrt();
    let out: Vec<f32> = each.into_iter().map(|s| s.map_or(1.0, |s| s / middle)).collect();
    out.iter().all(|s| s.is_finite() && *s > 0.0).then_some(out)
}

fn loss<O: Ops>(
    on: &O,
    readers: &[Reader<'_>],
    stats: &SiteStats<'_>,
    judge: &O::Judge,
    scale: Option<&[f32]>,
    feedback: Option<&O::Feedback>,
) -> Result<f64> {
    let cols = stats.columns;
    let importance = importance(&stats.mean_square, scale);
    let scaled = feedback.zip(scale).map(|(f, scale)| on.scaled(f, scale)).transpose()?;
    let feedback = scaled.as_ref().or(feedback);
    readers.iter().try_fold(0.0, |sum, reader| {
        let mut w = reader.rows.clone();
        if let Some(scale) = scale {
            columns(&mut w, scale);
        }
        let w = on.put(w, cols)?;
        let found = match feedback {
            Some(feedback) => on.solve(reader.grid, &w, Some(&importance), Fit::Importance, feedback)?,
            None => on.nearest(reader.grid, &w, Some(&importance))?,
        };
        Ok(sum + on.loss(reader.grid, &w, &found, scale, judge)?)
    })
}

/// Multiplies columns.
pub fn columns(w: &mut [f32], scale: &[f32]) {
    w.chunks_exact_mut(scale.len()).for_each(|row| row.iter_mut().zip(scale).for_each(|(w, s)| *w *= s));
}

/// Divides columns: errors of scaled weights become those that the plain inputs meet.
pub fn columns_back(errors: &mut [f32], scale: &[f32]) {
    errors.chunks_exact_mut(scale.len()).for_each(|row| row.iter_mut().zip(scale).for_each(|(e, s)| *e /= s));
}

/// Mean squares of inputs that were divided by `scale`.
pub fn importance(mean_square: &[f32], scale: Option<&[f32]>) -> Vec<f32> {
    match scale {
        Some(scale) => mean_square.iter().zip(scale).map(|(x, s)| x / (s * s)).collect(),
        None => mean_square.to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::calibrate::method::ops::OnCpu;
    use crate::calibrate::method::tests::correlated;
    use crate::calibrate::stats::Gram;
    use crate::codec;

    /// A few channels are far more active than the rest.
    fn outliers(n: usize) -> Gram<'static> {
        let plain = correlated(n);
        let factor = |i: usize| if i.is_multiple_of(37) { 12.0 } else { 1.0 };
        let upper: Vec<f32> = (0..n)
            .flat_map(|i| (i..n).map(move |j| (i, j)))
            .map(|(i, j)| plain.get(i, j) * factor(i) * factor(j))
            .collect();
        Gram::new(n, upper.into()).unwrap()
    }

    #[test]
    fn active_columns_are_scaled_up_and_the_output_gains() {
        let n = 256;
        let gram = outliers(n);
        let squares: Vec<f32> = (0..n).map(|i| gram.get(i, i)).collect();
        let stats = SiteStats {
            tokens: 1,
            columns: n,
            share: None,
            weight: 1.0,
            mean_square: squares.into(),
            mean: vec![].into(),
            absmax: vec![].into(),
            weighted_mean_square: None,
            gram: Some(gram),
            held_out_tokens: 0,
            held_out_weight: 0.0,
            held_out_mean_square: vec![].into(),
            held_out: None,
        };
        let rows: Vec<f32> = (0..16 * n).map(|i| ((i * 7919) % 1013) as f32 / 1013.0 - 0.5).collect();
        let grid = codec::find("q4_0").unwrap().grid().unwrap();
        let readers = [Reader { grid, rows }];
        let gram = &stats.gram.as_ref().unwrap();
        let scale = search(&OnCpu, &readers, &stats, gram, None).unwrap().expect("there is something to gain");
        let mean = |active: bool| {
            let of: Vec<f32> = (0..n).filter(|i| i.is_multiple_of(37) == active).map(|i| scale[i]).collect();
            of.iter().sum::<f32>() / of.len() as f32
        };
        assert!(mean(true) > 1.2 * mean(false));
        let gram = gram.dense();
        let loss = |scale| loss(&OnCpu, &readers, &stats, &gram, scale, None).unwrap();
        assert!(loss(Some(&scale)) < 0.9 * loss(None));
    }

    #[test]
    fn dead_columns_are_left_alone() {
        let s = scale(&[0.0, 4.0, 1.0], &[0.5, 0.5, 0.5], 0.5, true).unwrap();
        assert_eq!(s[0], 1.0);
        assert!((s[1] * s[2] - 1.0).abs() < 1e-6 && s[1] > s[2]);
        assert_eq!(scale(&[0.0], &[0.5], 0.5, false), None);
    }
}

//! From one grid to another without rounding: the same scales, other codes.

use super::grid::{self, Codes, Grid, Levels, Scale};
use super::{Codec, Scheme, fp8};

/// The same values as codes of `to`, or `None` if its parameters cannot say them all. `codes` are whole rows of `cols` columns.
pub fn exact(from: &dyn Grid, codes: &Codes, cols: usize, to: &dyn Grid) -> Option<Codes> {
    let (source, target, span) = (from.span(cols), to.group(cols), to.span(cols));
    if source == 0 || target == 0 || !cols.is_multiple_of(target) || to.rows() > 1 {
        return None;
    }
    let weights = codes.codes.len();
    let scales = grid::scales(from, cols, weights, &codes.params);
    let mut out = Codes { params: vec![0; weights / target * to.param_bytes()], codes: vec![0; weights] };
    let mut wanted = vec![Scale::default(); target / span];
    let mut stored = wanted.clone();
    for n in 0..weights / target {
        for (i, wanted) in wanted.iter_mut().enumerate() {
            let start = n * target + i * span;
            let mut own = scales[start / source..(start + span).div_ceil(source)].iter();
            *wanted = *own.next()?;
            if own.any(|other| other != wanted) {
                return None;
            }
        }
        let params = &mut out.params[n * to.param_bytes()..(n + 1) * to.param_bytes()];
        if !to.adopt(&wanted, params) {
            return None;
        }
        to.scales(params, &mut stored);
        for (i, (stored, scale)) in stored.iter().zip(&wanted).enumerate() {
            let shift = stored.zero - stored.offset / stored.step - (scale.zero - scale.offset / scale.step);
            // Where all weights are zero, so may be the scale.
            let shift = if shift.is_finite() { shift } else { 0.0 };
            let columns = n * target + i * span..n * target + (i + 1) * span;
            // Of codes that mean the same, such as the two zeros of a float, each stays itself.
            if from.levels() == to.levels() && stored == scale {
                out.codes[columns.clone()].copy_from_slice(&codes.codes[columns]);
                continue;
            }
            for (out, code) in out.codes[columns.clone()].iter_mut().zip(&codes.codes[columns]) {
                let level = from.levels().level(*code);
                *out = code_of(to.levels(), level + shift)?;
                if stored.value(to.levels().level(*out)) != scale.value(level) {
                    return None;
                }
            }
        }
    }
    Some(out)
}

fn code_of(levels: Levels, level: f32) -> Option<u8> {
    match levels {
        Levels::Integers { first, count } => {
            let code = level - first as f32;
            (code == code.trunc() && code >= 0.0 && code < count as f32).then_some(code as u8)
        }
        Levels::Table(table) => table.iter().position(|l| *l == level).map(|code| code as u8),
        Levels::E4m3 => Some(fp8::nearest(level)).filter(|(_, nearest)| *nearest == level).map(|(code, _)| code),
    }
}

/// Whether weights of `from` may go over to `to` as they are: their values decide, unless the formats rule it out.
pub fn possible(from: &dyn Codec, to: &dyn Codec, cols: usize) -> bool {
    let (Some(scheme), Some(source), Some(target)) = (from.scheme(), from.grid(), to.grid()) else { return false };
    if from.tensor_scale().is_some() != to.tensor_scale().is_some() {
        return false;
    }
    let (group, into) = (source.group(cols), target.span(cols));
    if group == 0 || into == 0 || !cols.is_multiple_of(target.group(cols)) {
        return false;
    }
    let row = sample(source, scheme, cols);
    group.is_multiple_of(into) && exact(source, &row, cols, target).is_some()
}

/// A row with a scale of 1, the zero in the middle, and every code that is a number.
fn sample(grid: &dyn Grid, scheme: &Scheme, cols: usize) -> Codes {
    let zero = if scheme.family.is_integer() { f32::from(scheme.middle()) } else { 0.0 };
    let scale = Scale { step: 1.0, zero, offset: 0.0 };
    let size = grid.param_bytes();
    let mut params = vec![0; cols / grid.group(cols) * size];
    for params in params.chunks_exact_mut(size.max(1)) {
        grid.adopt(&[scale], params);
    }
    let codes = (0..cols).map(|n| (n % (1 << scheme.bits)) as u8);
    let number = |code: u8| if grid.levels().level(code).is_finite() { code } else { 0 };
    Codes { params, codes: codes.map(number).collect() }
}

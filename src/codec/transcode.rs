//! From one grid to another without rounding: the same scales, other codes.

use super::grid::{Codes, Grid, Levels, Scale};
use super::{Codec, Scheme};

/// The same values as codes of `to`, or `None` if its parameters cannot say them all. `codes` are whole rows of `cols` columns.
pub fn exact(from: &dyn Grid, codes: &Codes, cols: usize, to: &dyn Grid) -> Option<Codes> {
    let (source, target) = (from.group(cols), to.group(cols));
    if source != from.span(cols) || target != to.span(cols) || source == 0 || !cols.is_multiple_of(target) {
        return None;
    }
    let mut scales = vec![Scale::default(); codes.params.len() / from.param_bytes()];
    for (scale, params) in scales.iter_mut().zip(codes.params.chunks_exact(from.param_bytes())) {
        from.scales(params, std::slice::from_mut(scale));
    }
    let count = codes.codes.len() / target;
    let mut out = Codes { params: vec![0; count * to.param_bytes()], codes: vec![0; codes.codes.len()] };
    for (n, params) in out.params.chunks_exact_mut(to.param_bytes()).enumerate() {
        let columns = n * target..(n + 1) * target;
        let mut own = scales[columns.start / source..columns.end.div_ceil(source)].iter();
        let scale = *own.next()?;
        let mut stored = Scale::default();
        if own.any(|other| *other != scale) || !to.adopt(scale, params) {
            return None;
        }
        to.scales(params, std::slice::from_mut(&mut stored));
        let shift = stored.zero - stored.offset / stored.step - (scale.zero - scale.offset / scale.step);
        for (out, code) in out.codes[columns.clone()].iter_mut().zip(&codes.codes[columns]) {
            let level = from.levels().level(*code);
            *out = code_of(to.levels(), level + shift)?;
            if stored.value(to.levels().level(*out)) != scale.value(level) {
                return None;
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
        Levels::Table(_) => None,
    }
}

/// Whether weights of `from` may go over to `to` as they are: their values decide, unless the formats rule it out.
pub fn possible(from: &dyn Codec, to: &dyn Codec, cols: usize) -> bool {
    let (Some(scheme), Some(source), Some(target)) = (from.scheme(), from.grid(), to.grid()) else { return false };
    let (group, into) = (source.group(cols), target.group(cols));
    if group == 0 || into == 0 || !cols.is_multiple_of(into) {
        return false;
    }
    let row = sample(source, scheme, cols);
    group.is_multiple_of(into) && exact(source, &row, cols, target).is_some()
}

/// A row with a scale of 1, the zero in the middle, and every code.
fn sample(grid: &dyn Grid, scheme: &Scheme, cols: usize) -> Codes {
    let scale = Scale { step: 1.0, zero: f32::from(scheme.middle()), offset: 0.0 };
    let mut params = vec![0; cols / grid.group(cols) * grid.param_bytes()];
    for params in params.chunks_exact_mut(grid.param_bytes()) {
        grid.adopt(scale, params);
    }
    let codes = (0..cols).map(|n| (n % (1 << scheme.bits)) as u8).collect();
    Codes { params, codes }
}

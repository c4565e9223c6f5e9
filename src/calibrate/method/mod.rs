//! How codes are chosen, given a grid.

pub use crate::codec::Codes as Solved;
use crate::codec::grid::{Grid, Scale};

/// Rounds each weight to the nearest value of its group, once the group's parameters are chosen. `w` are whole rows of `cols`
/// columns; `importance` has the mean squares of their inputs.
pub fn rtn(grid: &dyn Grid, w: &[f32], cols: usize, importance: Option<&[f32]>) -> Solved {
    let (group, span, levels) = (grid.group(cols), grid.span(cols), grid.levels());
    let count = w.len().checked_div(group).unwrap_or(0);
    let mut solved = Solved { params: vec![0; count * grid.param_bytes()], codes: vec![0; w.len()] };
    if count == 0 {
        return solved;
    }
    grid.fit(w, cols, importance, &mut solved.params);
    let mut scales = vec![Scale::default(); group / span];
    let groups = w.chunks_exact(group).zip(solved.codes.chunks_exact_mut(group));
    for ((w, codes), params) in groups.zip(solved.params.chunks_exact(grid.param_bytes())) {
        grid.scales(params, &mut scales);
        for ((w, codes), scale) in w.chunks_exact(span).zip(codes.chunks_exact_mut(span)).zip(&scales) {
            w.iter().zip(codes).for_each(|(w, code)| *code = levels.nearest(*w, *scale));
        }
    }
    solved
}

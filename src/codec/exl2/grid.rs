//! The grid of one matrix: columns in the order of their activity, scales that all rows have a share of.

use half::f16;

use super::mix::Mix;
use super::{Bands, ROWS, SIDE, share};
use crate::codec::bits::put;
use crate::codec::bits::{self, UNIT};
use crate::codec::grid::{Grid, Joint, Levels, Scale};
use crate::tensor::Dims;

impl Joint for Mix {
    fn wishes(&self, w: &[f32], cols: usize, importance: Option<&[f32]>) -> Vec<f32> {
        let sorted = Sorted::new(self.bands(cols), cols, importance);
        let mut out = Vec::with_capacity(w.len() / cols.max(1) * sorted.bands.groups.len());
        let mut gathered = Vec::with_capacity(cols);
        for row in w.chunks_exact(cols.max(1)) {
            gathered.clear();
            gathered.extend(sorted.order.iter().map(|c| row[*c as usize]));
            out.extend(
                sorted
                    .bands
                    .groups
                    .iter()
                    .map(|g| wish(g.bits, &gathered[g.columns.clone()], sorted.importance.get(g.columns.clone()))),
            );
        }
        out
    }

    fn grid(&self, cols: usize, importance: Option<&[f32]>, wishes: &[f32]) -> Box<dyn Grid> {
        let mut sorted = Sorted::new(self.bands(cols), cols, importance);
        for row in wishes.chunks_exact(sorted.largest.len().max(1)) {
            sorted.largest.iter_mut().zip(row).for_each(|(max, wish)| *max = max.max(*wish));
        }
        sorted.largest.iter_mut().for_each(|max| *max = storable(*max));
        Box::new(sorted)
    }
}

/// The nearest largest scale that kernels, which divide it by 256 in half precision, take without rounding.
fn storable(scale: f32) -> f32 {
    let small = f16::from_f32(scale.min(f16::MAX.to_f32()) / 256.0);
    small.max(f16::MIN_POSITIVE_SUBNORMAL).to_f32() * 256.0
}

struct Sorted {
    bands: Bands,
    /// The column stored at each place.
    order: Vec<u32>,
    /// The group of each column.
    group: Vec<u16>,
    /// Mean squares in the order of storage, or none.
    importance: Vec<f32>,
    /// `q_scale_max`
    largest: Vec<f32>,
}

impl Sorted {
    fn new(bands: Bands, cols: usize, importance: Option<&[f32]>) -> Sorted {
        let importance = importance.filter(|i| i.len() == cols && i.iter().any(|x| *x > 0.0)).unwrap_or_default();
        let mut order: Vec<u32> = (0..cols as u32).collect();
        if !importance.is_empty() {
            order.sort_by(|a, b| importance[*b as usize].total_cmp(&importance[*a as usize]).then(a.cmp(b)));
        }
        let importance =
            if importance.is_empty() { Vec::new() } else { order.iter().map(|c| importance[*c as usize]).collect() };
        let mut group = vec![0; cols];
        for (n, g) in bands.groups.iter().enumerate() {
            order[g.columns.clone()].iter().for_each(|c| group[*c as usize] = n as u16);
        }
        Sorted { largest: vec![0.0; bands.groups.len()], bands, order, group, importance }
    }

    fn step(&self, group: usize, code: u8) -> f32 {
        share(code) * (self.largest[group] / 256.0)
    }
}

/// Steps of the search for a scale.
const STEPS: usize = 24;

/// The scale that a row would have in a group if it were alone.
fn wish(bits: usize, w: &[f32], importance: Option<&[f32]>) -> f32 {
    let (low, high) = w.iter().fold((0f32, 0f32), |(low, high), w| (low.min(*w), high.max(*w)));
    let below = (1 << (bits - 1)) as f32;
    let widest = (-low / below).max(high / (below - 1.0));
    // The fewer the codes, the more it pays to cut off what is large.
    let shrink = 0.7 / (bits - 1) as f32 / STEPS as f32;
    let mut best = (f32::INFINITY, widest);
    for n in 0..=STEPS {
        let step = widest * (1.0 - shrink * n as f32);
        let error = error(bits, step, w, importance);
        if error < best.0 {
            best = (error, step);
        }
    }
    best.1
}

/// The weighted squared error of rounding.
fn error(bits: usize, step: f32, w: &[f32], importance: Option<&[f32]>) -> f32 {
    // Adding 1.5 * 2^23 leaves no bits for a fraction: rounds to nearest even, in any instruction set.
    const WHOLE: f32 = 12_582_912.0;
    let below = (1 << (bits - 1)) as f32;
    let inverse = if step > 0.0 { step.recip() } else { 0.0 };
    let off = |w: f32| {
        let level = ((w * inverse).clamp(-below, below - 1.0) + WHOLE) - WHOLE;
        (w - level * step).powi(2)
    };
    let mut sums = [0.0f32; 8];
    let (chunks, rest) = w.as_chunks::<8>();
    match importance {
        Some(importance) => {
            for (w, i) in chunks.iter().zip(importance.as_chunks::<8>().0) {
                (0..8).for_each(|l| sums[l] += i[l] * off(w[l]));
            }
            let tail = &importance[w.len() - rest.len()..];
            sums[0] += rest.iter().zip(tail).map(|(w, i)| i * off(*w)).sum::<f32>();
        }
        None => {
            for w in chunks {
                (0..8).for_each(|l| sums[l] += off(w[l]));
            }
            sums[0] += rest.iter().map(|w| off(*w)).sum::<f32>();
        }
    }
    sums.iter().sum()
}

impl Grid for Sorted {
    fn group(&self, cols: usize) -> usize {
        cols
    }

    fn span(&self, _: usize) -> usize {
        1
    }

    fn levels(&self) -> Levels {
        self.levels_at(self.order.first().map_or(0, |c| *c as usize))
    }

    fn levels_at(&self, column: usize) -> Levels {
        let bits = self.bands.groups[usize::from(self.group[column])].bits;
        Levels::Integers { first: -(1 << (bits - 1)), count: 1 << bits }
    }

    /// A code a group, in a byte.
    fn param_bytes(&self) -> usize {
        self.bands.groups.len()
    }

    fn fit(&self, w: &[f32], cols: usize, _: Option<&[f32]>, params: &mut [u8]) {
        let mut gathered = Vec::with_capacity(cols);
        for (row, params) in w.chunks_exact(cols).zip(params.chunks_exact_mut(self.param_bytes())) {
            gathered.clear();
            gathered.extend(self.order.iter().map(|c| row[*c as usize]));
            for (n, (group, code)) in self.bands.groups.iter().zip(params).enumerate() {
                let (w, importance) = (&gathered[group.columns.clone()], self.importance.get(group.columns.clone()));
                let errors = (0..16).map(|c| error(group.bits, self.step(n, c), w, importance));
                let best = errors.enumerate().min_by(|a, b| a.1.total_cmp(&b.1));
                *code = best.map_or(0, |(c, _)| c as u8);
            }
        }
    }

    fn scales(&self, params: &[u8], out: &mut [Scale]) {
        for (out, group) in out.iter_mut().zip(&self.group) {
            let group = usize::from(*group);
            *out = Scale { step: self.step(group, params[group]), ..Scale::default() };
        }
    }

    fn adopt(&self, _: &[Scale], _: &mut [u8]) -> bool {
        false
    }

    fn pack(&self, Dims { rows, cols }: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>> {
        let groups = &self.bands.groups;
        let across = rows.next_multiple_of(ROWS);
        let down = groups.last().map_or(0, |g| g.word + g.columns.len() / 32 * g.bits);
        let (mut weight, mut scale) = (vec![0; down * across * 4], vec![0; groups.len() * across / 2]);
        for (n, group) in groups.iter().enumerate() {
            let middle = 1 << (group.bits - 1);
            for first in (0..across).step_by(SIDE) {
                for (unit, order) in self.order[group.columns.clone()].chunks(UNIT).enumerate() {
                    for row in first..first + SIDE {
                        // What is added to fill warps reads as zero.
                        let mut unpacked = [middle; UNIT];
                        if let Some(codes) = codes.get(row * cols..(row + 1) * cols) {
                            order.iter().zip(&mut unpacked).for_each(|(c, out)| *out = codes[*c as usize]);
                        }
                        let words = bits::pack(group.bits, &unpacked);
                        for (i, w) in words[..bits::words(order.len(), group.bits)].iter().enumerate() {
                            put(&mut weight, (group.word + unit * group.bits + i) * across + row, *w);
                        }
                    }
                }
            }
            for first in (0..rows).step_by(8) {
                let codes = (first..rows.min(first + 8)).map(|row| u32::from(params[row * groups.len() + n]));
                let word = codes.enumerate().fold(0, |word, (i, code)| word | code << (4 * i));
                put(&mut scale, n * (across / 8) + first / 8, word);
            }
        }
        let mut places = vec![0; cols * 4];
        self.order.iter().enumerate().for_each(|(place, column)| put(&mut places, *column as usize, place as u32));
        let largest = self.largest.iter().flat_map(|max| f16::from_f32(*max).to_le_bytes()).collect();
        vec![weight, scale, largest, self.bands.bytes(), places]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;
    use crate::tensor::{Bytes, Packed};

    fn noise(n: usize) -> Vec<f32> {
        let mut state = 7u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next() * next().abs()).collect()
    }

    /// What a grid stores decodes to its own values, in the columns' own order; nearly those that were asked for.
    #[test]
    fn packed_codes_decode_to_the_values_of_their_scales() {
        for (name, bound) in [("exl2-8b5g32+5b10+4b-g128", 0.1), ("exl2-3b50+2b-g32", 0.42), ("exl2-8b-g64", 0.01)] {
            let codec = codec::find(name).unwrap();
            // The last group is short; outputs are filled up.
            let dims = Dims::new(37, 352);
            let w = noise(dims.len());
            let importance: Vec<f32> = noise(dims.cols).iter().map(|x| x * x + 1e-3).collect();
            for importance in [None, Some(&importance[..])] {
                let joint = codec.joint().unwrap();
                let grid = joint.grid(dims.cols, importance, &joint.wishes(&w, dims.cols, importance));
                let mut params = vec![0; dims.rows * grid.param_bytes()];
                grid.fit(&w, dims.cols, importance, &mut params);
                assert!(params.iter().all(|code| *code < 16));
                let mut scales = vec![Scale::default(); dims.cols];
                let (mut codes, mut values) = (Vec::new(), Vec::new());
                for (params, w) in params.chunks_exact(grid.param_bytes()).zip(w.chunks_exact(dims.cols)) {
                    grid.scales(params, &mut scales);
                    for (column, w) in w.iter().enumerate() {
                        let levels = grid.levels_at(column);
                        codes.push(levels.nearest(*w, scales[column]));
                        values.push(scales[column].value(levels.level(*codes.last().unwrap())));
                    }
                }
                let parts = grid.pack(dims, &params, &codes);
                let layout = codec.layout(dims).unwrap();
                assert!(parts.iter().map(Vec::len).eq(layout.iter().map(|p| p.bytes)), "{name}");
                let packed = Packed { dims, parts: parts.into_iter().map(Bytes::from).collect() };
                let mut decoded = vec![0.0; dims.len()];
                codec.decode(&packed, 0..dims.rows, &mut decoded);
                assert_eq!(decoded, values, "{name}");
                let squares = |x: &mut dyn Iterator<Item = f32>| x.map(|x| x * x).sum::<f32>();
                let error = squares(&mut w.iter().zip(&decoded).map(|(a, b)| a - b)) / squares(&mut w.iter().copied());
                assert!(error.sqrt() < bound, "{name}: relative error {}", error.sqrt());
            }
        }
    }

    #[test]
    fn active_columns_come_first_and_have_the_wide_codes() {
        let codec = codec::find("exl2-8b5+6b-g32").unwrap();
        let (cols, w) = (64, noise(64));
        let mut importance = vec![1.0; cols];
        importance[40] = 9.0;
        let joint = codec.joint().unwrap();
        let grid = joint.grid(cols, Some(&importance), &joint.wishes(&w, cols, Some(&importance)));
        assert_eq!((grid.levels_at(40).count(), grid.levels_at(0).count(), grid.levels_at(63).count()), (256, 256, 64));
        // Where nothing is known of the inputs, and where none of them is ever active, columns stay as they are.
        for nothing in [None, Some(&vec![0.0; cols][..])] {
            let grid = joint.grid(cols, nothing, &joint.wishes(&w, cols, nothing));
            assert_eq!((grid.levels_at(31).count(), grid.levels_at(32).count()), (256, 64));
        }
    }

    #[test]
    fn scales_are_what_kernels_take_without_rounding() {
        for scale in [0.0, 1e-9, 1e-5, 0.0123, 1.0, 7.7, 6e4, 1e9] {
            let stored = storable(scale);
            assert!(stored > 0.0 && f16::from_f32(stored).to_f32() == stored, "{scale}: {stored}");
            assert_eq!(f16::from_f32(stored / 256.0).to_f32() * 256.0, stored);
        }
    }
}

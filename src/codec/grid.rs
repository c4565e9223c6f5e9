//! The numeric half of a scalar format: the values that a weight may take, given the parameters stored for its group. Methods
//! choose among them; a format's byte half only packs what they chose.

use crate::tensor::Dims;

/// `value = (level - zero) * step + offset`, in this order, in f32: the arithmetic of the format's decoder.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Scale {
    pub step: f32,
    pub zero: f32,
    pub offset: f32,
}

impl Scale {
    pub fn value(self, level: f32) -> f32 {
        (level - self.zero) * self.step + self.offset
    }
}

/// What codes 0, 1, 2 ... stand for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Levels {
    /// `first`, `first + 1` ...
    Integers { first: i32, count: usize },
    /// At most 16 of them, in any order.
    Table(&'static [f32]),
}

pub trait Grid: Send + Sync {
    /// Columns that share stored parameters. Rows are whole groups.
    fn group(&self) -> usize;

    /// Columns under one [`Scale`]; divides `group`.
    fn span(&self) -> usize;

    fn levels(&self) -> Levels;

    /// Stored parameter bytes of one group.
    fn param_bytes(&self) -> usize;

    /// Chooses parameters for whole rows: `w` is `[rows][cols]`, `importance` has `cols` mean squares of the inputs, `params`
    /// is `[rows][cols / group][param_bytes]`.
    fn fit(&self, w: &[f32], cols: usize, importance: Option<&[f32]>, params: &mut [u8]);

    /// What the stored parameters of one group say: `out.len() == group / span`.
    fn scales(&self, params: &[u8], out: &mut [Scale]);

    /// The stored parts of these rows, in the order of the codec's layout. `codes` is `[rows][cols]`, each below the number of
    /// levels; `params` as [`Grid::fit`] wrote them.
    fn pack(&self, dims: Dims, params: &[u8], codes: &[u8]) -> Vec<Vec<u8>>;
}

impl Levels {
    pub fn count(self) -> usize {
        match self {
            Levels::Integers { count, .. } => count,
            Levels::Table(table) => table.len(),
        }
    }

    pub fn level(self, code: u8) -> f32 {
        match self {
            Levels::Integers { first, .. } => (first + i32::from(code)) as f32,
            Levels::Table(table) => table[usize::from(code)],
        }
    }

    /// The code whose value is nearest to `w`. With a step of zero all are alike: that of level 0.
    pub fn nearest(self, w: f32, scale: Scale) -> u8 {
        if scale.step == 0.0 {
            return self.zero();
        }
        let level = (w - scale.offset) / scale.step + scale.zero;
        match self {
            Levels::Integers { first, count } => {
                let code = (level - first as f32).round_ties_even();
                code.clamp(0.0, (count - 1) as f32) as u8
            }
            Levels::Table(table) => {
                let mut best = (f32::INFINITY, 0);
                for (code, candidate) in table.iter().enumerate() {
                    let distance = (level - candidate).abs();
                    if distance < best.0 {
                        best = (distance, code as u8);
                    }
                }
                best.1
            }
        }
    }

    /// The code of level 0, or of the level nearest to it.
    pub fn zero(self) -> u8 {
        self.nearest(0.0, Scale { step: 1.0, ..Scale::default() })
    }
}

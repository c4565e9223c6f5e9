//! Codes of weights: scales are fitted, levels chosen, and what that loses is told, without the weights leaving the device.

use super::{int, linear, tiles};
use crate::codec::Facts;
use crate::codec::affine::LANES;
use crate::codec::facts::DeviceFit;
use crate::codec::grid::{Levels, Scale};
use crate::device::Precision;
use crate::device::cpu::{self, SOLVE_BLOCK};
use crate::device::cuda::runner::{Arg, Buffer, Factor, Product, Runner, Shape, View};
use crate::device::cuda::source::Unit;
use crate::error::Result;

/// Rows that a block of threads solves, a warp each.
const SOLVED: usize = 8;
/// Shares that a sum of products comes in.
const SHARES: u64 = 256;

/// First level, last code and code of zero of a span's levels, as `solve.cu` has them.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Ends([f32; 3]);

fn ends(levels: &Levels) -> Ends {
    let zero = f32::from(levels.zero());
    match *levels {
        Levels::Integers { first, count } => Ends([first as f32, (count - 1) as f32, zero]),
        Levels::Table(_) | Levels::E4m3 => Ends([0.0, 0.0, zero]),
    }
}

/// Scales of rows of `cols` columns, one for each span, and what their codes stand for.
pub struct Scales<'r> {
    unit: Unit,
    ends: Buffer<'r>,
    all: Buffer<'r>,
    /// As they are stored, a byte each, where a kernel says so.
    stored: Option<Buffer<'r>>,
    span: usize,
    cols: usize,
}

impl<'r> Scales<'r> {
    pub fn upload(runner: &'r dyn Runner, cols: usize, scales: cpu::Scales<'_>) -> Result<Scales<'r>> {
        let all = Buffer::of::<Scale>(runner, scales.all)?;
        Scales::of(all, cols, scales.levels, scales.span)
    }

    /// `levels` has those of the spans of a row.
    pub fn of(all: Buffer<'r>, cols: usize, levels: &[Levels], span: usize) -> Result<Scales<'r>> {
        assert!(levels.len() * span == cols && cols > 0);
        let unit = Unit::of_levels(levels[0])?;
        let ends = Buffer::of(all.runner(), &levels.iter().map(ends).collect::<Vec<_>>())?;
        Ok(Scales { unit, ends, all, stored: None, span, cols })
    }

    /// What is stored for them, if that is known.
    pub fn stored(&self) -> Result<Option<Vec<u8>>> {
        self.stored.as_ref().map(|bytes| bytes.read(bytes.bytes())).transpose()
    }

    /// As they are on the device.
    pub fn read(&self) -> Result<Vec<Scale>> {
        self.all.read(self.all.bytes() / size_of::<Scale>())
    }

    /// Weights that they are for.
    fn weights(&self) -> usize {
        self.all.bytes() / size_of::<Scale>() * self.span
    }

    /// `n` and the arguments that come behind it.
    fn args(&self) -> Result<[Arg; 5]> {
        let [cols, span] = [int(self.cols)?, int(self.span)?].map(Arg::Int);
        Ok([Arg::Long(self.weights() as i64), cols, self.all.arg(), self.ends.arg(), span])
    }

    /// The code nearest to each weight.
    pub fn nearest(&self, w: &View<'r>) -> Result<Buffer<'r>> {
        let (runner, n) = (w.runner(), self.weights());
        assert!(w.singles() >= n);
        let codes = Buffer::new(runner, n)?;
        if n == 0 {
            return Ok(codes);
        }
        let [count, cols, all, ends, span] = self.args()?;
        let args = [w.arg(), count, cols, all, ends, span, codes.arg()];
        // SAFETY: `w` has a weight for each code; there is a scale for each span of each row, and an end for each of one.
        unsafe { runner.launch(&self.unit, "nearest", Shape::each(n as u64)?, &args)? };
        Ok(codes)
    }

    /// [`cpu::round_columns`]; where the device need not be exact, by a library's products in single precision.
    pub fn round_columns(&self, w: &View<'r>, feedback: &Feedback<'r>) -> Result<Buffer<'r>> {
        self.solve(w, feedback, w.runner().precision() == Precision::Exact)
    }

    /// The same to the bit.
    pub fn round_columns_exact(&self, w: &View<'r>, feedback: &Feedback<'r>) -> Result<Buffer<'r>> {
        self.solve(w, feedback, true)
    }

    fn solve(&self, w: &View<'r>, feedback: &Feedback<'r>, exact: bool) -> Result<Buffer<'r>> {
        let (runner, cols, stride) = (w.runner(), self.cols, feedback.stride);
        let rows = self.weights() / cols;
        assert!(w.singles() >= rows * cols && feedback.order.len() == cols);
        let errors = Buffer::singles(runner, rows * stride)?;
        let carried = Buffer::singles(runner, rows * SOLVE_BLOCK)?;
        let codes = Buffer::new(runner, rows * cols)?;
        let (count, width) = (Arg::Int(int(rows)?), Arg::Int(int(stride)?));
        let shape = Shape::new([rows.div_ceil(SOLVED) as u64, 1], [32, SOLVED as u32])?;
        let [_, wide, all, ends, span] = self.args()?;
        for from in (0..cols).step_by(SOLVE_BLOCK).filter(|_| rows > 0) {
            let first = Arg::Int(int(from)?);
            if from > 0 && !exact {
                // What are rows here are columns to BLAS.
                let at = feedback.shares.address() + (from * size_of::<f32>()) as u64;
                let product = Product {
                    m: SOLVE_BLOCK.min(stride - from),
                    n: rows,
                    k: from,
                    a: Factor { at, stride, transposed: false },
                    b: Factor { at: errors.address(), stride, transposed: false },
                    c: carried.address(),
                    stride: SOLVE_BLOCK,
                    precision: Precision::Single,
                };
                // SAFETY: as of the kernel below; `carried` has rows of SOLVE_BLOCK, and no more columns of `shares` are read.
                unsafe { runner.multiply(&product)? };
            } else if from > 0 {
                let args = [errors.arg(), feedback.shares.arg(), count, width, first, carried.arg()];
                // SAFETY: `errors` has `rows` rows of `stride`, of which `from` columns are read and were written before; `shares` has
                // `cols > from` rows of `stride`; `carried` has `rows` rows of SOLVE_BLOCK.
                unsafe { runner.launch(&self.unit, "carry", tiles(rows, SOLVE_BLOCK)?, &args)? };
            }
            let until = Arg::Int(int(cols.min(from + SOLVE_BLOCK))?);
            let (order, shares) = (feedback.places.arg(), feedback.shares.arg());
            let (carried, errors, codes) = (carried.arg(), errors.arg(), codes.arg());
            let args =
                [w.arg(), count, wide, order, shares, width, all, ends, span, carried, first, until, errors, codes];
            // SAFETY: `order` has a column below `cols` for each; there is a scale for each span of each row.
            unsafe { runner.launch(&self.unit, "solve", shape, &args)? };
        }
        Ok(codes)
    }

    /// `w - value`, divided by `columns` where those were multiplied.
    pub fn errors(&self, w: &View<'r>, codes: &View<'r>, columns: Option<&View<'r>>) -> Result<Buffer<'r>> {
        let (runner, n) = (w.runner(), self.weights());
        assert!(w.singles() >= n && codes.bytes() >= n && columns.is_none_or(|c| c.singles() >= self.cols));
        let out = Buffer::singles(runner, n)?;
        if n == 0 {
            return Ok(out);
        }
        let [count, cols, all, ends, span] = self.args()?;
        let columns = columns.map_or(Arg::Address(0), |c| c.arg());
        let args = [w.arg(), count, cols, all, ends, span, codes.arg(), columns, out.arg()];
        // SAFETY: there are `n` weights, codes and places for errors, `cols` columns, and scales as for codes.
        unsafe { runner.launch(&self.unit, "errors", Shape::each(n as u64)?, &args)? };
        Ok(out)
    }

    /// Takes over scales and codes of the groups that lose less so. `least` has what each lost so far; a group is a span.
    pub fn keep(&self, codes: &View<'r>, better: &Scales<'r>, found: &View<'r>, losses: [&View<'r>; 2]) -> Result<()> {
        let (runner, groups) = (codes.runner(), self.weights() / self.span);
        let [least, loss] = losses;
        assert!(self.weights() == better.weights() && self.span == better.span);
        assert!(codes.bytes() >= self.weights() && found.bytes() >= self.weights());
        assert!(least.bytes() >= groups * 8 && loss.bytes() >= groups * 8);
        let group = Arg::Int(int(self.span)?);
        let args = [loss.arg(), better.all.arg(), found.arg(), group, least.arg(), self.all.arg(), codes.arg()];
        let shape = Shape::new([groups as u64, 1], [32, 1])?;
        // SAFETY: a block has a group: its losses, scales and codes of either kind.
        unsafe { runner.launch(&Unit::of("judge")?, "keep", shape, &args) }
    }
}

/// Scales from weights on the device, searched as the format's grid does on the CPU, or its plain ones: to the bit.
pub struct Fitter<'f> {
    facts: &'f Facts,
    fit: DeviceFit,
    group: usize,
    cols: usize,
}

impl<'f> Fitter<'f> {
    /// `None`: there is no kernel that fits them.
    pub fn new(facts: &'f Facts, cols: usize) -> Option<Fitter<'f>> {
        let group = facts.group.unwrap_or(cols);
        (group > 0 && cols.is_multiple_of(group)).then_some(Fitter { facts, fit: facts.fit?, group, cols })
    }

    /// Whether ranges can be cut, see [`Fitter::largest`].
    pub fn cuts(&self) -> bool {
        matches!(self.fit, DeviceFit::Integers { .. })
    }

    /// Scales of all groups of `w`, whole rows. `importance` has `cols` mean squares.
    pub fn searched<'r>(&self, w: &View<'r>, importance: Option<&View<'r>>) -> Result<Scales<'r>> {
        assert!(importance.is_none_or(|i| i.singles() >= self.cols));
        let given = importance.map_or(Arg::Address(0), |i| i.arg());
        let own = [Arg::Int(int(self.cols / self.group)?), Arg::Int(int(self.group)?), given];
        self.run(w, "fit", &own, true)
    }

    /// From the ends of the range alone, of which the share `cut` is kept where it [can](Fitter::cuts) be.
    pub fn largest<'r>(&self, w: &View<'r>, cut: f32) -> Result<Scales<'r>> {
        let (group, across) = (Arg::Int(int(self.group)?), Arg::Int(int(self.cols / self.group)?));
        match self.fit {
            DeviceFit::Integers { .. } => self.run(w, "fit_largest", &[group, Arg::Float(cut)], false),
            DeviceFit::Fp4 { .. } => self.run(w, "", &[across, group, Arg::Address(0)], false),
        }
    }

    /// `own` are what `kernel` takes first behind the weights and their groups.
    fn run<'r>(&self, w: &View<'r>, kernel: &str, own: &[Arg], searched: bool) -> Result<Scales<'r>> {
        let (runner, groups) = (w.runner(), w.singles() / self.group);
        let out = Buffer::new(runner, groups * size_of::<Scale>())?;
        let mut args = vec![w.arg(), Arg::Long(groups as i64)];
        args.extend_from_slice(own);
        let mut stored = None;
        let (kernel, lanes) = match self.fit {
            DeviceFit::Integers { top, zero, range } => {
                args.extend([int(top)?, zero as i32, super::scales_of(self.facts)].map(Arg::Int));
                args.extend([Arg::Float(range.0), Arg::Float(range.1), out.arg()]);
                (kernel, LANES as u64)
            }
            DeviceFit::Fp4 { power } => {
                args.extend([power, searched].map(|flag| Arg::Int(i32::from(flag))));
                args.extend([out.arg(), stored.insert(Buffer::new(runner, groups)?).arg()]);
                ("fit_fp4", 1)
            }
        };
        let shape = Shape::new([(groups as u64 * lanes).div_ceil(128), 1], [128, 1])?;
        if groups > 0 {
            // SAFETY: `w` has `groups` groups, `out` and `stored` a place for each; importance has a value for each column.
            unsafe { runner.launch(&Unit::of("fit")?, kernel, shape, &args)? };
        }
        let levels = vec![self.facts.grid.levels; self.cols / self.group];
        Ok(Scales { stored, ..Scales::of(out, self.cols, &levels, self.group)? })
    }
}

/// [`cpu::Feedback`] on a device: for all matrices of a site.
pub struct Feedback<'r> {
    pub order: Vec<u32>,
    pub variances: Vec<f32>,
    places: Buffer<'r>,
    shares: Buffer<'r>,
    stride: usize,
}

impl<'r> Feedback<'r> {
    pub fn upload(runner: &'r dyn Runner, feedback: &cpu::Feedback) -> Result<Feedback<'r>> {
        assert!(feedback.shares.len() == feedback.order.len() * feedback.stride);
        Ok(Feedback {
            order: feedback.order.clone(),
            variances: feedback.variances.clone(),
            places: Buffer::of(runner, &feedback.order)?,
            shares: Buffer::of(runner, &feedback.shares)?,
            stride: feedback.stride,
        })
    }

    /// `[n][stride]`, as [`cpu::Feedback::shares`].
    pub fn shares(&self) -> Result<Vec<f32>> {
        self.shares.read(self.shares.singles())
    }

    /// Bytes that [`Feedback::factored`] takes, beside the workspace of the library: as much as the matrix, for all that is known.
    pub fn bytes(n: usize) -> usize {
        n.saturating_mul(n).saturating_mul(8 + 8 + 4)
    }

    /// By the device's own factor of the matrix in this order, what is on its diagonal times `damped`. The inner error: the
    /// first pivot that is not positive.
    pub fn factored(upper: &View<'r>, order: Vec<u32>, damped: f64) -> Result<Result<Feedback<'r>, usize>> {
        let (runner, n, stride) = (upper.runner(), order.len(), cpu::Feedback::stride(order.len()));
        assert!(upper.singles() >= n * (n + 1) / 2);
        let (unit, size) = (Unit::of("factor")?, Arg::Int(int(n)?));
        let (places, factor) = (Buffer::of(runner, &order)?, Buffer::new(runner, n * n * 8)?);
        let args = [upper.arg(), places.arg(), size, Arg::Double(damped), factor.arg()];
        // SAFETY: `upper` is the triangle of `n` columns, `order` has each of them once, `factor` is `n` x `n`.
        unsafe { runner.launch(&unit, "damp", Shape::each((n * n) as u64)?, &args)? };
        // SAFETY: as above.
        if let Err(pivot) = unsafe { runner.cholesky(factor.address(), n, runner)? } {
            return Ok(Err(pivot));
        }
        let (shares, found) = (Buffer::singles(runner, n * stride)?, Buffer::singles(runner, n)?);
        let args = [factor.arg(), size, Arg::Int(int(stride)?), shares.arg()];
        // SAFETY: `shares` has `n` rows of `stride`.
        unsafe { runner.launch(&unit, "shares", Shape::each((n * stride) as u64)?, &args)? };
        let args = [factor.arg(), places.arg(), size, found.arg()];
        // SAFETY: `found` has a place for each of the order.
        unsafe { runner.launch(&unit, "variances", Shape::each(n as u64)?, &args)? };
        Ok(Ok(Feedback { variances: found.read(n)?, order, places, shares, stride }))
    }

    /// [`cpu::Feedback::scaled`].
    pub fn scaled(&self, scale: &[f32]) -> Result<Feedback<'r>> {
        let (runner, n, stride) = (self.shares.runner(), self.order.len(), self.stride);
        let ordered: Vec<f32> = self.order.iter().map(|c| scale[*c as usize]).collect();
        let (ordered, shares) = (Buffer::of(runner, &ordered)?, Buffer::singles(runner, n * stride)?);
        let args = [self.shares.arg(), ordered.arg(), Arg::Int(int(n)?), Arg::Int(int(stride)?), shares.arg()];
        // SAFETY: both have `n` rows of `stride`, `ordered` a factor for each column.
        unsafe { runner.launch(&Unit::of("factor")?, "scale_shares", Shape::each((n * stride) as u64)?, &args)? };
        let variances = self.variances.iter().zip(scale).map(|(v, s)| v / (s * s)).collect();
        let places = Buffer::of(runner, &self.order)?;
        Ok(Feedback { order: self.order.clone(), variances, places, shares, stride })
    }
}

/// What errors do to the output.
pub struct Judge<'r> {
    /// `[n][n]`
    dense: Buffer<'r>,
    columns: usize,
}

impl<'r> Judge<'r> {
    /// Of a Gram matrix: its upper triangle, row after row.
    pub fn new(upper: &View<'r>, columns: usize) -> Result<Judge<'r>> {
        let n = columns;
        assert!(upper.singles() >= n * (n + 1) / 2);
        let dense = Buffer::singles(upper.runner(), n * n)?;
        let args = [upper.arg(), Arg::Int(int(n)?), dense.arg()];
        // SAFETY: `upper` is the triangle of `n` columns, `dense` has `n` rows of them.
        unsafe { upper.runner().launch(&Unit::of("judge")?, "dense", Shape::each((n * n) as u64)?, &args)? };
        Ok(Judge { dense, columns })
    }

    /// [`cpu::quadratic`], in the device's precision. `errors` are whole rows.
    pub fn quadratic(&self, errors: &View<'r>) -> Result<f64> {
        let (runner, n) = (errors.runner(), self.columns);
        let rows = errors.singles() / n.max(1);
        let out = Buffer::singles(runner, rows * n)?;
        linear(errors, &self.dense, [rows, n, n], &out, n)?;
        let blocks = ((rows * n) as u64).div_ceil(256).clamp(1, SHARES);
        let sums = Buffer::new(runner, blocks as usize * 8)?;
        let args = [errors.arg(), out.arg(), Arg::Long((rows * n) as i64), sums.arg()];
        // SAFETY: both have `rows` rows of `n`, `sums` a place for each block.
        unsafe { runner.launch(&Unit::of("judge")?, "products", Shape::new([blocks, 1], [256, 1])?, &args)? };
        Ok(sums.read::<f64>(blocks as usize)?.iter().sum())
    }

    /// What the errors within each group of `group` columns lose, `[rows][columns / group]` in double precision.
    pub fn groups(&self, errors: &View<'r>, group: usize) -> Result<Buffer<'r>> {
        let (runner, n) = (errors.runner(), self.columns);
        let rows = errors.singles() / n.max(1);
        assert!(group > 0 && n.is_multiple_of(group));
        let out = Buffer::singles(runner, rows * n)?;
        for from in (0..n).step_by(group) {
            squares(self, errors, from, group, [rows, n], &out)?;
        }
        let groups = rows * n / group;
        let losses = Buffer::new(runner, groups * 8)?;
        let args = [errors.arg(), out.arg(), Arg::Int(int(group)?), losses.arg()];
        let threads = group.next_power_of_two().clamp(32, 256) as u32;
        // SAFETY: a block has a group of both, and a place.
        unsafe {
            runner.launch(
                &Unit::of("judge")?,
                "group_products",
                Shape::new([groups as u64, 1], [threads, 1])?,
                &args,
            )?;
        }
        Ok(losses)
    }
}

/// Columns `from..from + group` of `errors` times the square of the matrix that they have to themselves.
fn squares(
    judge: &Judge<'_>,
    errors: &View<'_>,
    from: usize,
    group: usize,
    [rows, n]: [usize; 2],
    out: &View<'_>,
) -> Result<()> {
    let at = |of: u64, element: usize| of + element as u64 * size_of::<f32>() as u64;
    let product = Product {
        m: group,
        n: rows,
        k: group,
        a: Factor { at: at(judge.dense.address(), from * n + from), stride: n, transposed: false },
        b: Factor { at: at(errors.address(), from), stride: n, transposed: false },
        c: at(out.address(), from),
        stride: n,
        precision: errors.runner().precision(),
    };
    // SAFETY: `errors` and `out` have `rows` rows of `n`, the matrix `n` of them; `from + group` is at most `n`.
    unsafe { errors.runner().multiply(&product) }
}

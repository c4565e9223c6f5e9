//! On the CPU, in the caller's rayon pool.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ops::{Deref, DerefMut, Range};
use std::rc::Rc;

use rayon::prelude::*;

use super::{Heads, Ops, Totals, Triangle, Wanted};
use crate::arch::Activation;
use crate::container::Weight;
use crate::device::cpu::{self, GramScratch};
use crate::engine::Sequence;
use crate::error::{Error, Result};

#[derive(Default)]
pub struct OnCpu {
    spare: Spare,
    scratch: RefCell<GramScratch>,
}

type Spare = Rc<RefCell<Vec<Vec<f32>>>>;

/// Values in memory that serves others when they go: a large vector that is new costs the system as much as some of what is computed
/// in it.
pub struct Lent {
    values: Vec<f32>,
    spare: Spare,
}

impl Deref for Lent {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &self.values
    }
}

impl DerefMut for Lent {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.values
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.spare.borrow_mut().push(std::mem::take(&mut self.values));
    }
}

/// Elements that one job of a loop takes.
const STEP: usize = 1 << 13;

impl OnCpu {
    /// `n` values that mean nothing: all of them must be written.
    fn take(&self, n: usize) -> Lent {
        let mut spare = self.spare.borrow_mut();
        let capacity = |i: &usize| spare[*i].capacity();
        let fits = (0..spare.len()).filter(|i| capacity(i) >= n).min_by_key(capacity);
        let mut values = fits.map_or_else(Vec::new, |i| spare.swap_remove(i));
        values.resize(n, 0.0);
        Lent { values, spare: self.spare.clone() }
    }
}

impl Ops for OnCpu {
    type Rows = Lent;
    type Sums = Sums;

    fn put(&self, x: &[f32]) -> Result<Lent> {
        let mut out = self.take(x.len());
        out.copy_from_slice(x);
        Ok(out)
    }

    fn get<'x>(&self, x: &'x Lent) -> Result<Cow<'x, [f32]>> {
        Ok(Cow::Borrowed(x))
    }

    fn get_into(&self, x: &Self::Rows, out: &mut [f32]) -> Result<()> {
        out.copy_from_slice(x);
        Ok(())
    }

    fn len(&self, x: &Lent) -> usize {
        x.values.len()
    }

    fn zeros(&self, n: usize) -> Result<Lent> {
        let mut out = self.take(n);
        out.fill(0.0);
        Ok(out)
    }

    fn is_finite(&self, x: &Lent) -> Result<bool> {
        Ok(x.par_chunks(1 << 14).all(cpu::is_finite))
    }

    fn product(&self, weight: &Weight<'_>, rows: Range<usize>, bias: Option<&[f32]>, x: &Lent) -> Result<Lent> {
        let mut out = self.take(x.values.len() / weight.packed.dims.cols.max(1) * rows.len());
        cpu::linear(weight, rows, bias, x, &mut out);
        Ok(out)
    }

    fn norm(&self, x: &Lent, gain: &[f32], eps: f32) -> Result<Lent> {
        let (mut out, n) = (self.take(x.values.len()), gain.len().max(1));
        out.par_chunks_exact_mut(n).zip(x.par_chunks_exact(n)).for_each(|(out, x)| cpu::rms_norm(x, gain, eps, out));
        Ok(out)
    }

    fn add(&self, x: &mut Lent, y: &Lent) -> Result<()> {
        x.par_chunks_mut(STEP).zip(y.par_chunks(STEP)).for_each(|(x, y)| cpu::add(x, y));
        Ok(())
    }

    fn gate(&self, activation: Activation, gate: &mut Lent, up: &Lent) -> Result<()> {
        gate.par_chunks_mut(STEP).zip(up.par_chunks(STEP)).for_each(|(gate, up)| cpu::gate(activation, gate, up));
        Ok(())
    }

    fn attend(
        &self,
        heads: &Heads<'_>,
        sequences: &mut [Sequence<'_>],
        q: &mut Lent,
        k: &mut Lent,
        v: &Lent,
    ) -> Result<Lent> {
        let (a, mut out) = (heads.attention, self.take(q.values.len()));
        let (wide, narrow) = (a.heads * a.head_dim, a.kv_heads * a.head_dim);
        let turn = |row: usize, position: usize, x: &mut [f32]| {
            if let Some((angles, pairing)) = heads.angles {
                angles.turn(pairing, a.head_dim, row, position, x);
            }
        };
        let mut from = 0;
        for s in sequences {
            let n = s.tokens.len();
            let (q, k) = (&mut q[from * wide..][..n * wide], &mut k[from * narrow..][..n * narrow]);
            turn(wide, s.cache.len(), q);
            if !s.cache.before_rope(heads.layer) {
                turn(narrow, s.cache.len(), k);
            }
            let (v, out) = (&v[from * narrow..][..n * narrow], &mut out[from * wide..][..n * wide]);
            s.cache.attend(a, heads.layer, q, k, v, &|position, x| turn(a.head_dim, position, x), out)?;
            from += n;
        }
        Ok(out)
    }

    fn pick(&self, x: &Lent, columns: usize, tokens: &[u32]) -> Result<Lent> {
        let mut out = self.take(tokens.len() * columns);
        for (t, out) in tokens.iter().zip(out.chunks_exact_mut(columns.max(1))) {
            out.copy_from_slice(&x[*t as usize * columns..][..columns]);
        }
        Ok(out)
    }

    fn scatter(&self, out: &mut Lent, columns: usize, tokens: &[u32], weights: &[f32], y: &Lent) -> Result<()> {
        for ((token, weight), y) in tokens.iter().zip(weights).zip(y.chunks_exact(columns.max(1))) {
            let out = &mut out[*token as usize * columns..][..columns];
            out.iter_mut().zip(y).for_each(|(o, y)| *o += y * weight);
        }
        Ok(())
    }

    fn dots(&self, x: &Lent, w: &[f32]) -> Result<Vec<f32>> {
        Ok(x.chunks_exact(w.len().max(1)).map(|x| w.iter().zip(x).map(|(w, x)| w * x).sum()).collect())
    }

    fn sums(&self, wanted: Wanted) -> Result<Sums> {
        let n = wanted.columns;
        let too_large = || Error::limits(format!("the Gram matrix of {n} inputs does not fit into memory"));
        let gram = wanted.gram.then(|| cpu::Gram::new(n).ok_or_else(too_large)).transpose()?;
        let totals = Totals {
            squares: vec![0.0; n],
            sums: vec![0.0; n],
            most: vec![0.0; n],
            weighted: vec![0.0; if wanted.weighted { n } else { 0 }],
            gram: Triangle::default(),
        };
        Ok(Sums { totals, gram })
    }

    fn add_up(&self, sums: &mut Sums, x: &Lent, weights: Option<&[f32]>) -> Result<()> {
        let Sums { totals, gram } = sums;
        cpu::moments(x, &mut totals.squares, &mut totals.sums, &mut totals.most);
        if let Some(weights) = weights {
            cpu::weighted_squares(x, weights, &mut totals.weighted);
        }
        if let Some(gram) = gram {
            gram.add(x, weights, &mut self.scratch.borrow_mut());
        }
        Ok(())
    }

    fn totals(&self, sums: Sums, _: f64) -> Result<Totals> {
        let gram = sums.gram.map_or_else(Triangle::default, |gram| Triangle::Sums(gram.into_upper()));
        Ok(Totals { gram, ..sums.totals })
    }
}

/// Added up so far.
pub struct Sums {
    totals: Totals,
    gram: Option<cpu::Gram>,
}

//! What a layer is made of, wherever it is computed: layers are written once, in these terms.

mod card;
mod cpu;

use std::borrow::Cow;
use std::ops::Range;

pub use card::OnCard;
pub use cpu::{Lent, OnCpu};

use super::Sequence;
use super::rope::{Angles, Pairing};
use crate::arch::Activation;
use crate::container::Weight;
use crate::device::cpu::Attention;
use crate::error::Result;

/// A device's operations on rows of activations, which stay there from one to the next.
///
/// Errors of all: those of the device.
pub trait Ops {
    /// `[rows][columns]` in single precision; how many columns is the layer's to know. Going, it leaves its memory to others.
    type Rows;
    /// What is added up over the rows of one site.
    type Sums;

    fn put(&self, x: &[f32]) -> Result<Self::Rows>;

    fn get<'x>(&self, x: &'x Self::Rows) -> Result<Cow<'x, [f32]>>;

    /// The same into memory that is there, as long as `x`.
    fn get_into(&self, x: &Self::Rows, out: &mut [f32]) -> Result<()>;

    /// Rows times columns.
    fn len(&self, x: &Self::Rows) -> usize;

    fn zeros(&self, n: usize) -> Result<Self::Rows>;

    /// Whether no value is infinite or NaN.
    fn is_finite(&self, x: &Self::Rows) -> Result<bool>;

    /// `x W^T + bias`, `[tokens][rows]`, for these rows of `weight`.
    fn product(
        &self,
        weight: &Weight<'_>,
        rows: Range<usize>,
        bias: Option<&[f32]>,
        x: &Self::Rows,
    ) -> Result<Self::Rows>;

    /// Rows of `gain`'s length, each divided by the root of its mean square.
    fn norm(&self, x: &Self::Rows, gain: &[f32], eps: f32) -> Result<Self::Rows>;

    /// `x += y`
    fn add(&self, x: &mut Self::Rows, y: &Self::Rows) -> Result<()>;

    /// `gate = activation(gate) * up`
    fn gate(&self, activation: Activation, gate: &mut Self::Rows, up: &Self::Rows) -> Result<()>;

    /// Turns queries and keys by their positions and mixes the values that each token sees. Rows are the tokens of all sequences.
    fn attend(
        &self,
        heads: &Heads<'_>,
        sequences: &mut [Sequence<'_>],
        q: &mut Self::Rows,
        k: &mut Self::Rows,
        v: &Self::Rows,
    ) -> Result<Self::Rows>;

    /// Rows of `columns`, those of some tokens.
    fn pick(&self, x: &Self::Rows, columns: usize, tokens: &[u32]) -> Result<Self::Rows>;

    /// Adds rows of `y`, times their weights, to the rows of some tokens, each another.
    fn scatter(
        &self,
        out: &mut Self::Rows,
        columns: usize,
        tokens: &[u32],
        weights: &[f32],
        y: &Self::Rows,
    ) -> Result<()>;

    /// Every row's product with `w`.
    fn dots(&self, x: &Self::Rows, w: &[f32]) -> Result<Vec<f32>>;

    fn sums(&self, wanted: Wanted) -> Result<Self::Sums>;

    /// Adds up rows; those of an expert have weights.
    fn add_up(&self, sums: &mut Self::Sums, x: &Self::Rows, weights: Option<&[f32]>) -> Result<()>;

    /// `count` is what the products of columns are divided by for their means.
    fn totals(&self, sums: Self::Sums, count: f64) -> Result<Totals>;
}

/// What attention needs beside queries, keys and values.
pub struct Heads<'a> {
    pub layer: usize,
    pub attention: &'a Attention,
    /// What positions turn heads by, where they do.
    pub angles: Option<(&'a Angles, Pairing)>,
}

/// What is to be added up of a site.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    pub columns: usize,
    /// Squares times the squares of weights too.
    pub weighted: bool,
    pub gram: bool,
}

/// Sums over rows, per column; what was not wanted is empty.
#[derive(Clone, Debug, Default)]
pub struct Totals {
    pub squares: Vec<f64>,
    pub sums: Vec<f64>,
    /// The largest magnitude.
    pub most: Vec<f32>,
    pub weighted: Vec<f64>,
    pub gram: Triangle,
}

/// Of the products of columns the upper triangle, row after row.
#[derive(Clone, Debug)]
pub enum Triangle {
    Sums(Vec<f64>),
    /// As a device divides them where they are: the same bits, of which half as many come over.
    Means(Vec<f32>),
}

impl Default for Triangle {
    fn default() -> Self {
        Triangle::Sums(Vec::new())
    }
}

//! A layer's operations beside its products, on what lies in a device's memory.

use safetensors::Dtype;

use super::{SIDE, int};
use crate::arch::Activation;
use crate::device::cpu::Attention;
use crate::device::cuda::runner::{Arg, Buffer, Shape, View};
use crate::device::cuda::source::Unit;
use crate::error::Result;

/// Runs a kernel of `layer.cu` with a thread for each of `n`: its first array, its other arguments, `n`.
///
/// # Safety
/// `rest` are what stands between these in the kernel's list, and with `n` threads it stays within the memory that they name.
unsafe fn each(kernel: &str, first: &View<'_>, rest: &[Arg], n: usize) -> Result<()> {
    if n == 0 {
        return Ok(());
    }
    let args: Vec<Arg> = [first.arg()].into_iter().chain(rest.iter().copied()).chain([Arg::Long(n as i64)]).collect();
    // SAFETY: the caller's word.
    unsafe { first.runner().launch(&Unit::of("layer")?, kernel, Shape::each(n as u64)?, &args) }
}

pub fn fill(x: &View<'_>, value: f32) -> Result<()> {
    // SAFETY: a thread has an element of `x`.
    unsafe { each("fill", x, &[Arg::Float(value)], x.singles()) }
}

/// `x += y`
pub fn add(x: &View<'_>, y: &View<'_>) -> Result<()> {
    assert!(x.singles() == y.singles());
    // SAFETY: a thread has an element of both.
    unsafe { each("add", x, &[y.arg()], x.singles()) }
}

/// `x *= factor`
pub fn scale(x: &View<'_>, factor: f32) -> Result<()> {
    // SAFETY: a thread has an element of `x`.
    unsafe { each("scale", x, &[Arg::Float(factor)], x.singles()) }
}

/// Adds `bias` to every row of `x`.
pub fn add_bias(x: &View<'_>, bias: &View<'_>) -> Result<()> {
    assert!(x.singles().is_multiple_of(bias.singles().max(1)));
    // SAFETY: a thread has an element of `x`, and `bias` one of each column.
    unsafe { each("add_bias", x, &[bias.arg(), Arg::Int(int(bias.singles())?)], x.singles()) }
}

/// `gate = activation(gate) * up`
pub fn gate(activation: Activation, gate: &View<'_>, up: &View<'_>) -> Result<()> {
    assert!(gate.singles() == up.singles());
    let kernel = match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::ClampedSilu => "clamped_silu",
    };
    // SAFETY: a thread has an element of both.
    unsafe { each(kernel, gate, &[up.arg()], gate.singles()) }
}

/// `cap * tanh(x / cap)`
pub fn softcap(x: &View<'_>, cap: f32) -> Result<()> {
    // SAFETY: a thread has an element of `x`.
    unsafe { each("softcap", x, &[Arg::Float(cap)], x.singles()) }
}

/// Whether no element is infinite or NaN. Waits for all that came before.
pub fn is_finite(x: &View<'_>) -> Result<bool> {
    let found = Buffer::of(x.runner(), &[0u32])?;
    // SAFETY: a thread has an element of `x`; `found` is one number.
    unsafe { each("find_not_finite", x, &[found.arg()], x.singles())? };
    Ok(found.read::<u32>(1)? == [0])
}

/// Numbers of 16 bits to single precision. `false`: another type than these.
pub fn widen(dtype: Dtype, x: &View<'_>, out: &View<'_>) -> Result<bool> {
    let kernel = match dtype {
        Dtype::F16 => "widen_f16",
        Dtype::BF16 => "widen_bf16",
        _ => return Ok(false),
    };
    assert!(x.bytes() >= out.singles() * 2);
    // SAFETY: a thread has an element of both.
    unsafe { each(kernel, out, &[x.arg()], out.singles()) }.map(|()| true)
}

/// `out[i] = x[places[i]]`, rows of `columns`.
pub fn pick(x: &View<'_>, places: &[u32], columns: usize, out: &View<'_>) -> Result<()> {
    let rows = x.singles() / columns.max(1);
    assert!(out.singles() == places.len() * columns && places.iter().all(|p| (*p as usize) < rows));
    let places = Buffer::of(x.runner(), places)?;
    // SAFETY: a thread has an element of `out`; its row of `x` is there, by the assert.
    unsafe { each("pick", out, &[x.arg(), places.arg(), Arg::Int(int(columns)?)], out.singles()) }
}

/// `out[places[i]] += weights[i] y[i]`, rows of `columns`. No place comes twice.
pub fn scatter(y: &View<'_>, places: &[u32], weights: &[f32], columns: usize, out: &View<'_>) -> Result<()> {
    let rows = out.singles() / columns.max(1);
    assert!(y.singles() == places.len() * columns && weights.len() == places.len());
    assert!(places.iter().all(|p| (*p as usize) < rows));
    let (places, weights) = (Buffer::of(y.runner(), places)?, Buffer::of(y.runner(), weights)?);
    let args = [out.arg(), places.arg(), weights.arg(), Arg::Int(int(columns)?)];
    // SAFETY: a thread has an element of `y`; its row of `out` is there, by the assert.
    unsafe { each("scatter", y, &args, y.singles()) }
}

/// The product of every row of `x` with `w`, added up from the first column to the last.
pub fn dots(x: &View<'_>, w: &View<'_>, out: &View<'_>) -> Result<()> {
    let columns = w.singles();
    assert!(x.singles() == out.singles() * columns);
    // SAFETY: a thread has a row of `x` and an element of `out`.
    unsafe { each("dots", out, &[x.arg(), w.arg(), Arg::Int(int(columns)?)], out.singles()) }
}

/// Rows of `gain`'s length, each divided by the root of its mean square.
pub fn rms_norm(x: &View<'_>, gain: &View<'_>, eps: f32, out: &View<'_>) -> Result<()> {
    let n = gain.singles();
    let rows = x.singles() / n.max(1);
    assert!(rows * n == x.singles() && out.singles() == x.singles());
    if rows == 0 {
        return Ok(());
    }
    let args = [x.arg(), gain.arg(), Arg::Int(int(n)?), Arg::Float(eps), out.arg()];
    let shape = Shape::new([rows as u64, 1], [256, 1])?;
    // SAFETY: a block has a row of `x` and of `out`.
    unsafe { x.runner().launch(&Unit::of("layer")?, "rms_norm", shape, &args) }
}

/// Turns every head of `x`, `[tokens][heads * head_dim]`, by cosines and sines `turns`, `[tokens][pairs][2]`.
pub fn rope(x: &View<'_>, turns: &View<'_>, tokens: usize, head_dim: usize, halves: bool) -> Result<()> {
    let (pairs, heads) = (turns.singles() / 2 / tokens.max(1), x.singles() / tokens.max(1) / head_dim.max(1));
    assert!(2 * pairs * tokens == turns.singles() && heads * head_dim * tokens == x.singles() && 2 * pairs <= head_dim);
    let n = tokens * heads * pairs;
    if n == 0 {
        return Ok(());
    }
    let sizes = [int(heads)?, int(head_dim)?, int(pairs)?, i32::from(halves)].map(Arg::Int);
    let args = [x.arg(), turns.arg(), Arg::Long(tokens as i64), sizes[0], sizes[1], sizes[2], sizes[3]];
    // SAFETY: a thread has a pair of a head; `turns` has `pairs` for each token.
    unsafe { x.runner().launch(&Unit::of("layer")?, "rope", Shape::each(n as u64)?, &args) }
}

/// Queries that a block of threads takes: as in `attention.cu`.
const QUERIES: usize = 64;

/// Queries `[tokens][heads][head_dim]`, keys and values `[positions][kv_heads][head_dim]` from the first on.
pub struct Heads<'v> {
    pub q: View<'v>,
    pub k: View<'v>,
    pub v: View<'v>,
}

/// [`cpu::Attention`](crate::device::cpu::Attention) of queries of which the first stands at position `first`; `out` is as they are.
pub fn attention(of: &Attention, first: usize, heads: &Heads<'_>, out: &View<'_>) -> Result<()> {
    let (runner, Heads { q, k, v }) = (out.runner(), heads);
    let tokens = q.singles() / (of.heads * of.head_dim);
    let positions = (first + tokens) * of.kv_heads * of.head_dim;
    assert!(tokens * of.heads * of.head_dim == q.singles() && out.singles() == q.singles());
    assert!(k.singles() >= positions && v.singles() >= positions);
    assert!(of.sinks.as_ref().is_none_or(|sinks| sinks.len() == of.heads));
    if tokens == 0 {
        return Ok(());
    }
    let sinks = of.sinks.as_ref().map(|sinks| Buffer::of(runner, sinks)).transpose()?;
    let args = [
        q.arg(),
        k.arg(),
        v.arg(),
        Arg::Int(int(tokens)?),
        Arg::Int(int(first)?),
        Arg::Int(int(of.heads)?),
        Arg::Int(int(of.kv_heads)?),
        Arg::Float(of.scale),
        Arg::Float(of.softcap.unwrap_or(0.0)),
        Arg::Int(int(of.window.unwrap_or(0))?),
        sinks.as_ref().map_or(Arg::Address(0), |sinks| sinks.arg()),
        out.arg(),
    ];
    let shape = Shape::new([tokens.div_ceil(QUERIES) as u64, of.heads as u64], [SIDE, SIDE])?;
    // SAFETY: a block has QUERIES tokens of one head, and each head its sink; keys and values reach to the last token's position, by the
    // asserts.
    unsafe { runner.launch(&Unit::of_head_dim(of.head_dim)?, "attention", shape, &args) }
}

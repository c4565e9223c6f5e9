//! A layer's operations beside its products, and the statistics of what comes out of the last.

use super::int;
use crate::arch::Activation;
use crate::device::cpu::{Attention, Running, Scores, TokenScore};
use crate::device::cuda::runner::{Arg, Buffer, Runner, Shape};
use crate::device::cuda::source::Unit;
use crate::error::Result;

/// An operation between products on rows of `x`: the kernel of `layer.cu`, its other arrays and numbers.
fn elementwise(runner: &dyn Runner, kernel: &str, x: &[f32], rest: &[Rest<'_>]) -> Result<Vec<f32>> {
    let at = Buffer::of(runner, x)?;
    let arrays: Vec<Option<Buffer<'_>>> = rest
        .iter()
        .map(|r| if let Rest::Array(a) = r { Buffer::of(runner, a).map(Some) } else { Ok(None) })
        .collect::<Result<_>>()?;
    let mut args = vec![at.arg()];
    for (rest, array) in rest.iter().zip(&arrays) {
        args.push(match (rest, array) {
            (_, Some(array)) => array.arg(),
            (Rest::Number(x), _) => Arg::Float(*x),
            (Rest::Array(_), None) => Arg::Address(0),
        });
    }
    args.push(Arg::Long(x.len() as i64));
    // SAFETY: each thread has an element of `x` and, in arrays as long, its own.
    unsafe { runner.launch(&Unit::of("layer")?, kernel, Shape::each(x.len() as u64)?, &args)? };
    at.read(x.len())
}

enum Rest<'a> {
    /// As long as `x`.
    Array(&'a [f32]),
    Number(f32),
}

/// `x + y`
pub fn add(runner: &dyn Runner, x: &[f32], y: &[f32]) -> Result<Vec<f32>> {
    assert!(x.len() == y.len());
    elementwise(runner, "add", x, &[Rest::Array(y)])
}

/// `activation(gate) * up`
pub fn gate(runner: &dyn Runner, activation: Activation, gate: &[f32], up: &[f32]) -> Result<Vec<f32>> {
    assert!(gate.len() == up.len());
    let kernel = match activation {
        Activation::Silu => "silu",
        Activation::Gelu => "gelu",
        Activation::ClampedSilu => "clamped_silu",
    };
    elementwise(runner, kernel, gate, &[Rest::Array(up)])
}

/// `cap * tanh(x / cap)`
pub fn softcap(runner: &dyn Runner, x: &[f32], cap: f32) -> Result<Vec<f32>> {
    elementwise(runner, "softcap", x, &[Rest::Number(cap)])
}

/// Rows of `gain.len()`, each divided by the root of its mean square.
pub fn rms_norm(runner: &dyn Runner, x: &[f32], gain: &[f32], eps: f32) -> Result<Vec<f32>> {
    let rows = x.len() / gain.len();
    assert!(rows * gain.len() == x.len());
    let (at, gain_at, out) = (Buffer::of(runner, x)?, Buffer::of(runner, gain)?, Buffer::new(runner, size_of_val(x))?);
    let args = [at.arg(), gain_at.arg(), Arg::Int(int(gain.len())?), Arg::Float(eps), out.arg()];
    // SAFETY: a block has a row of `x` and of `out`.
    unsafe { runner.launch(&Unit::of("layer")?, "rms_norm", Shape::new([rows as u64, 1], [256, 1])?, &args)? };
    out.read(x.len())
}

/// Turns every head of `x`, `[tokens][heads * head_dim]`, by cosines and sines `turns`, `[tokens][pairs]`.
pub fn rope(
    runner: &dyn Runner,
    x: &[f32],
    turns: &[[f32; 2]],
    tokens: usize,
    head_dim: usize,
    halves: bool,
) -> Result<Vec<f32>> {
    let (pairs, heads) = (turns.len() / tokens, x.len() / tokens / head_dim);
    assert!(pairs * tokens == turns.len() && heads * head_dim * tokens == x.len() && 2 * pairs <= head_dim);
    let (at, turns) = (Buffer::of(runner, x)?, Buffer::of(runner, turns.as_flattened())?);
    let sizes = [int(heads)?, int(head_dim)?, int(pairs)?, i32::from(halves)].map(Arg::Int);
    let args = [at.arg(), turns.arg(), Arg::Long(tokens as i64), sizes[0], sizes[1], sizes[2], sizes[3]];
    let shape = Shape::each((tokens * heads * pairs) as u64)?;
    // SAFETY: a thread has a pair of a head; `turns` has `pairs` for each token.
    unsafe { runner.launch(&Unit::of("layer")?, "rope", shape, &args)? };
    at.read(x.len())
}

/// Queries that a block of threads takes, and its warps: as in `attention.cu`.
const QUERIES: usize = 8;
const WARPS: u32 = 4;

/// [`cpu::Attention`](crate::device::cpu::Attention) of queries `[tokens][heads][head_dim]`, the first at position `first`, over keys
/// and values `[first + tokens][kv_heads][head_dim]`.
pub fn attention(
    runner: &dyn Runner,
    of: &Attention,
    first: usize,
    q: &[f32],
    k: &[f32],
    v: &[f32],
) -> Result<Vec<f32>> {
    let tokens = q.len() / (of.heads * of.head_dim);
    let positions = (first + tokens) * of.kv_heads * of.head_dim;
    assert!(tokens * of.heads * of.head_dim == q.len() && k.len() >= positions && v.len() >= positions);
    assert!(of.sinks.as_ref().is_none_or(|sinks| sinks.len() == of.heads));
    let sinks = of.sinks.as_ref().map(|sinks| Buffer::of(runner, sinks)).transpose()?;
    let [query, key, value] = [Buffer::of(runner, q)?, Buffer::of(runner, k)?, Buffer::of(runner, v)?];
    let out = Buffer::new(runner, size_of_val(q))?;
    let args = [
        query.arg(),
        key.arg(),
        value.arg(),
        Arg::Int(int(tokens)?),
        Arg::Int(int(first)?),
        Arg::Int(int(of.heads)?),
        Arg::Int(int(of.kv_heads)?),
        Arg::Float(of.scale),
        Arg::Float(of.softcap.unwrap_or(0.0)),
        Arg::Int(int(of.window.unwrap_or(0))?),
        sinks.as_ref().map_or(Arg::Address(0), Buffer::arg),
        out.arg(),
    ];
    let shape = Shape::new([tokens.div_ceil(QUERIES) as u64, of.heads as u64], [32, WARPS])?;
    // SAFETY: a block has QUERIES tokens of one head, and each head its sink; keys and values reach to the last token's position, by the assert.
    unsafe { runner.launch(&Unit::of_head_dim(of.head_dim)?, "attention", shape, &args)? };
    out.read(q.len())
}

/// What two models' logits `[positions][vocab]` say, gathered `part` tokens of the vocabulary at a time.
pub fn scores(
    runner: &dyn Runner,
    reference: &[f32],
    model: &[f32],
    targets: &[u32],
    part: usize,
) -> Result<Vec<TokenScore>> {
    let (positions, vocab) = (targets.len(), reference.len() / targets.len().max(1));
    assert!(reference.len() == model.len() && positions * vocab == reference.len());
    let none = vec![Running::NONE; positions];
    let (kept, other) = (Buffer::of(runner, &none)?, Buffer::of(runner, &none)?);
    let gaps = Buffer::zeros(runner, positions * 8)?;
    let aims = Buffer::of(runner, targets)?;
    let unit = Unit::of("scores")?;
    for first in (0..vocab).step_by(part.max(1)) {
        let n = part.min(vocab - first);
        let columns =
            |x: &[f32]| -> Vec<f32> { x.chunks_exact(vocab).flat_map(|row| &row[first..first + n]).copied().collect() };
        let (p, q) = (Buffer::of(runner, &columns(reference))?, Buffer::of(runner, &columns(model))?);
        let (n, first) = (Arg::Int(int(n)?), Arg::Int(int(first)?));
        let args = [p.arg(), q.arg(), n, first, aims.arg(), kept.arg(), other.arg(), gaps.arg()];
        // SAFETY: a block has a position: `n` logits of each model, and a place in what is gathered.
        unsafe { runner.launch(&unit, "scores", Shape::new([positions as u64, 1], [256, 1])?, &args)? };
    }
    let (kept, other, gaps) = (kept.read(positions)?, other.read(positions)?, gaps.read(positions)?);
    let gathered = Scores::gathered(
        kept.into_iter().zip(other).zip(gaps).map(|((p, q), gap): ((Running, Running), f64)| (p, q, gap)),
    );
    Ok(gathered.finish(0).collect())
}

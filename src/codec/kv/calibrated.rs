//! Formats that learn from the first tokens of a text what all of them share.
//!
//! Keys in fixed ranges of each channel, values in ranges of each token, the values that fit worst kept apart. Source: KVQuant
//! (2401.18079), with equal steps in place of its learned ones. And another format, of what differs from each channel's mean:
//! some models' biases are far larger than what tells their keys apart.

use super::Vectors;
use super::uniform::{Steps, code_bytes, get_codes, put_codes, read_half, write_half};
use crate::error::{Error, Result};

/// First tokens that decide the ranges.
const TOKENS: usize = 128;
/// Bytes of a value that is kept apart: its channel, and itself in half precision.
const APART: usize = 3;

/// Values of a vector that are kept apart: 1 %, rounded up.
const fn outliers(head_dim: usize) -> usize {
    head_dim.div_ceil(100)
}

fn check(head_dim: usize) -> Result<()> {
    match head_dim <= 256 {
        true => Ok(()),
        false => Err(Error::request(format!("this cache type has one byte for a channel, a head has {head_dim}"))),
    }
}

/// Writes those of `x` that `misfit` is largest for; returns their channels.
fn put_apart(x: &[f32], misfit: impl Fn(usize) -> f32, out: &mut [u8]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..x.len()).collect();
    order.sort_by(|a, b| misfit(*b).total_cmp(&misfit(*a)));
    order.truncate(outliers(x.len()));
    for (channel, out) in order.iter().zip(out.chunks_exact_mut(APART)) {
        out[0] = *channel as u8;
        write_half(x[*channel], &mut out[1..]);
    }
    order
}

fn get_apart(bytes: &[u8], out: &mut [f32]) {
    for bytes in bytes.chunks_exact(APART) {
        if let Some(out) = out.get_mut(usize::from(bytes[0])) {
            *out = read_half(&bytes[1..]);
        }
    }
}

/// Keys.
pub struct Calibrated {
    pub bits: usize,
}

impl Calibrated {
    fn steps(shared: &[u8]) -> Vec<Steps> {
        let step = |p: &[u8]| Steps { step: read_half(p), zero: 0.0, offset: read_half(&p[2..]) };
        shared.chunks_exact(4).map(step).collect()
    }
}

impl Vectors for Calibrated {
    fn check(&self, head_dim: usize) -> Result<()> {
        check(head_dim)
    }

    fn calibration(&self) -> usize {
        TOKENS
    }

    fn shared(&self, x: &[f32], head_dim: usize) -> Vec<u8> {
        let mut out = vec![0; self.shared_bytes(head_dim)];
        for (channel, out) in out.chunks_exact_mut(4).enumerate() {
            let run: Vec<f32> = x[channel..].iter().step_by(head_dim).copied().collect();
            let steps = Steps::spanning(&run, self.bits);
            write_half(steps.step, out);
            write_half(steps.offset, &mut out[2..]);
        }
        out
    }

    fn shared_bytes(&self, head_dim: usize) -> usize {
        head_dim * 4
    }

    fn bytes(&self, head_dim: usize) -> usize {
        outliers(head_dim) * APART + code_bytes(self.bits, head_dim)
    }

    fn encode(&self, x: &[f32], head_dim: usize, shared: &[u8], out: &mut [u8]) {
        let steps = Self::steps(shared);
        for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(self.bytes(head_dim))) {
            let (apart, codes) = out.split_at_mut(outliers(head_dim) * APART);
            let code = |i: usize| steps[i].code(x[i], self.bits);
            put_apart(x, |i| (x[i] - steps[i].value(code(i))).abs(), apart);
            put_codes(self.bits, (0..head_dim).map(code), codes);
        }
    }

    fn decode(&self, bytes: &[u8], head_dim: usize, shared: &[u8], out: &mut [f32]) {
        let steps = Self::steps(shared);
        for (bytes, out) in bytes.chunks_exact(self.bytes(head_dim)).zip(out.chunks_exact_mut(head_dim)) {
            let (apart, codes) = bytes.split_at(outliers(head_dim) * APART);
            get_codes(self.bits, codes, out, |code, i| steps[i].value(code));
            get_apart(apart, out);
        }
    }
}

/// Another format, of what is left of keys when the mean of every channel is taken off.
pub struct Centered(pub &'static dyn Vectors);

impl Vectors for Centered {
    fn check(&self, head_dim: usize) -> Result<()> {
        self.0.check(head_dim)
    }

    fn calibration(&self) -> usize {
        TOKENS
    }

    fn shared(&self, x: &[f32], head_dim: usize) -> Vec<u8> {
        let mut out = vec![0; self.shared_bytes(head_dim)];
        for (channel, out) in out.chunks_exact_mut(2).enumerate() {
            write_half(x[channel..].iter().step_by(head_dim).sum::<f32>() / TOKENS as f32, out);
        }
        out
    }

    fn shared_bytes(&self, head_dim: usize) -> usize {
        head_dim * 2
    }

    fn bytes(&self, head_dim: usize) -> usize {
        self.0.bytes(head_dim)
    }

    fn encode(&self, x: &[f32], head_dim: usize, shared: &[u8], out: &mut [u8]) {
        let means = shared.chunks_exact(2).map(read_half).cycle();
        let centered: Vec<f32> = x.iter().zip(means).map(|(x, mean)| x - mean).collect();
        self.0.encode(&centered, head_dim, &[], out);
    }

    fn decode(&self, bytes: &[u8], head_dim: usize, shared: &[u8], out: &mut [f32]) {
        self.0.decode(bytes, head_dim, &[], out);
        let means: Vec<f32> = shared.chunks_exact(2).map(read_half).collect();
        out.chunks_exact_mut(head_dim).for_each(|x| x.iter_mut().zip(&means).for_each(|(x, mean)| *x += mean));
    }
}

/// Values.
pub struct Outliers {
    pub bits: usize,
}

impl Vectors for Outliers {
    fn check(&self, head_dim: usize) -> Result<()> {
        check(head_dim)
    }

    fn bytes(&self, head_dim: usize) -> usize {
        outliers(head_dim) * APART + 4 + code_bytes(self.bits, head_dim)
    }

    fn encode(&self, x: &[f32], head_dim: usize, _: &[u8], out: &mut [u8]) {
        for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(self.bytes(head_dim))) {
            let (apart, rest) = out.split_at_mut(outliers(head_dim) * APART);
            let mean = x.iter().sum::<f32>() / head_dim as f32;
            let gone = put_apart(x, |i| (x[i] - mean).abs(), apart);
            let kept: Vec<f32> = (0..head_dim).filter(|i| !gone.contains(i)).map(|i| x[i]).collect();
            let steps = Steps::spanning(&kept, self.bits);
            write_half(steps.step, rest);
            write_half(steps.offset, &mut rest[2..]);
            put_codes(self.bits, x.iter().map(|x| steps.code(*x, self.bits)), &mut rest[4..]);
        }
    }

    fn decode(&self, bytes: &[u8], head_dim: usize, _: &[u8], out: &mut [f32]) {
        for (bytes, out) in bytes.chunks_exact(self.bytes(head_dim)).zip(out.chunks_exact_mut(head_dim)) {
            let (apart, rest) = bytes.split_at(outliers(head_dim) * APART);
            let steps = Steps { step: read_half(rest), zero: 0.0, offset: read_half(&rest[2..]) };
            get_codes(self.bits, &rest[4..], out, |code, _| steps.value(code));
            get_apart(apart, out);
        }
    }
}

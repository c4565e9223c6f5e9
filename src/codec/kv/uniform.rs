//! Equal steps: by token, and by channel over some tokens. Source: KIVI (2402.02750).
//!
//! A run of values is a half-precision step, perhaps a half-precision minimum, and the codes in whole 32-bit words.

use half::f16;

use super::Vectors;
use crate::codec::bits;

/// How step and offset follow from a run of values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fit {
    /// As many levels below zero as above; the largest magnitude decides.
    Symmetric,
    /// One level more on the side of the largest magnitude, as ggml's `q4_0`.
    Signed,
    /// From the smallest to the largest.
    Minimum,
}

/// Values of a token in runs of `group`.
pub struct Uniform {
    pub bits: usize,
    pub group: usize,
    pub fit: Fit,
}

impl Uniform {
    fn param_bytes(&self) -> usize {
        if self.fit == Fit::Minimum { 4 } else { 2 }
    }

    fn run_bytes(&self, values: usize) -> usize {
        self.param_bytes() + code_bytes(self.bits, values)
    }

    fn fitted(&self, x: &[f32]) -> Steps {
        let half = (1 << (self.bits - 1)) as f32;
        let largest = x.iter().fold(0f32, |max, x| if x.abs() > max.abs() { *x } else { max });
        match self.fit {
            Fit::Symmetric => Steps { step: stored(largest.abs() / (half - 1.0)), zero: half, offset: 0.0 },
            Fit::Signed => Steps { step: stored(largest / -half), zero: half, offset: 0.0 },
            Fit::Minimum => Steps::spanning(x, self.bits),
        }
    }

    fn put(&self, x: &[f32], out: &mut [u8]) {
        let (params, codes) = out.split_at_mut(self.param_bytes());
        let steps = self.fitted(x);
        write_half(steps.step, &mut params[..2]);
        if self.fit == Fit::Minimum {
            write_half(steps.offset, &mut params[2..]);
        }
        put_codes(self.bits, x.iter().map(|x| steps.code(*x, self.bits)), codes);
    }

    fn get(&self, bytes: &[u8], out: &mut [f32]) {
        let (params, codes) = bytes.split_at(self.param_bytes());
        let zero = if self.fit == Fit::Minimum { 0.0 } else { (1 << (self.bits - 1)) as f32 };
        let offset = if self.fit == Fit::Minimum { read_half(&params[2..]) } else { 0.0 };
        let steps = Steps { step: read_half(params), zero, offset };
        get_codes(self.bits, codes, out, |code, _| steps.value(code));
    }
}

impl Vectors for Uniform {
    fn bytes(&self, head_dim: usize) -> usize {
        let group = self.group.min(head_dim);
        let rest = head_dim % group;
        head_dim / group * self.run_bytes(group) + if rest > 0 { self.run_bytes(rest) } else { 0 }
    }

    fn encode(&self, x: &[f32], head_dim: usize, _: &[u8], out: &mut [u8]) {
        let step = self.run_bytes(self.group.min(head_dim));
        for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(self.bytes(head_dim))) {
            x.chunks(self.group).zip(out.chunks_mut(step)).for_each(|(x, out)| self.put(x, out));
        }
    }

    fn decode(&self, bytes: &[u8], head_dim: usize, _: &[u8], out: &mut [f32]) {
        let step = self.run_bytes(self.group.min(head_dim));
        for (bytes, out) in bytes.chunks_exact(self.bytes(head_dim)).zip(out.chunks_exact_mut(head_dim)) {
            bytes.chunks(step).zip(out.chunks_mut(self.group)).for_each(|(bytes, out)| self.get(bytes, out));
        }
    }
}

/// Every channel of a group of tokens is a run with a minimum: what is the same in all tokens costs nothing.
pub struct Channels {
    pub bits: usize,
    pub tokens: usize,
}

impl Channels {
    const fn channel(&self) -> Uniform {
        Uniform { bits: self.bits, group: self.tokens, fit: Fit::Minimum }
    }
}

impl Vectors for Channels {
    fn tokens(&self) -> usize {
        self.tokens
    }

    fn bytes(&self, head_dim: usize) -> usize {
        head_dim * self.channel().run_bytes(self.tokens)
    }

    fn encode(&self, x: &[f32], head_dim: usize, _: &[u8], out: &mut [u8]) {
        let channel = self.channel();
        let groups = x.chunks_exact(self.tokens * head_dim).zip(out.chunks_exact_mut(self.bytes(head_dim)));
        for (x, out) in groups {
            for (c, out) in out.chunks_exact_mut(channel.run_bytes(self.tokens)).enumerate() {
                let run: Vec<f32> = x[c..].iter().step_by(head_dim).copied().collect();
                channel.put(&run, out);
            }
        }
    }

    fn decode(&self, bytes: &[u8], head_dim: usize, _: &[u8], out: &mut [f32]) {
        let channel = self.channel();
        let groups = bytes.chunks_exact(self.bytes(head_dim)).zip(out.chunks_exact_mut(self.tokens * head_dim));
        let mut run = vec![0.0; self.tokens];
        for (bytes, out) in groups {
            for (c, bytes) in bytes.chunks_exact(channel.run_bytes(self.tokens)).enumerate() {
                channel.get(bytes, &mut run);
                out[c..].iter_mut().step_by(head_dim).zip(&run).for_each(|(out, x)| *out = *x);
            }
        }
    }
}

/// `value = (code - zero) * step + offset`
#[derive(Clone, Copy)]
pub struct Steps {
    pub step: f32,
    pub zero: f32,
    pub offset: f32,
}

impl Steps {
    /// From the smallest to the largest of `x`, as half precision has them.
    pub fn spanning(x: &[f32], bits: usize) -> Steps {
        let (low, high) = x.iter().fold((f32::MAX, f32::MIN), |(low, high), x| (low.min(*x), high.max(*x)));
        let offset = stored(low);
        Steps { step: stored((high - offset).max(0.0) / ((1 << bits) - 1) as f32), zero: 0.0, offset }
    }

    pub fn code(&self, x: f32, bits: usize) -> u8 {
        let level = if self.step == 0.0 { 0.0 } else { (x - self.offset) / self.step };
        (level + self.zero).round_ties_even().clamp(0.0, ((1 << bits) - 1) as f32) as u8
    }

    pub fn value(&self, code: u8) -> f32 {
        (f32::from(code) - self.zero) * self.step + self.offset
    }
}

/// As half precision has it.
fn stored(x: f32) -> f32 {
    f16::from_f32(x).to_f32()
}

pub fn write_half(x: f32, out: &mut [u8]) {
    out[..2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

pub fn read_half(bytes: &[u8]) -> f32 {
    f16::from_le_bytes([bytes[0], bytes[1]]).to_f32()
}

/// Bytes of so many codes.
pub const fn code_bytes(bits: usize, values: usize) -> usize {
    bits::words(values, bits) * 4
}

pub fn put_codes(bits: usize, mut codes: impl Iterator<Item = u8>, out: &mut [u8]) {
    for out in out.chunks_mut(4 * bits) {
        let mut unit = [0; bits::UNIT];
        unit.iter_mut().zip(codes.by_ref()).for_each(|(unit, code)| *unit = code);
        let words = bits::pack(bits, &unit);
        out.copy_from_slice(&bytemuck::cast::<_, [u8; 32]>(words.map(u32::to_le))[..out.len()]);
    }
}

/// `value` is handed a code and its place.
pub fn get_codes(bits: usize, bytes: &[u8], out: &mut [f32], value: impl Fn(u8, usize) -> f32) {
    for (n, (bytes, out)) in bytes.chunks(4 * bits).zip(out.chunks_mut(bits::UNIT)).enumerate() {
        let mut words = [0; 32];
        words[..bytes.len()].copy_from_slice(bytes);
        let unit = bits::unpack(bits, &bytemuck::cast::<_, [u32; 8]>(words).map(u32::from_le));
        out.iter_mut().zip(unit).enumerate().for_each(|(i, (o, code))| *o = value(code, n * bits::UNIT + i));
    }
}

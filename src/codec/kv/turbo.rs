//! A random rotation makes every value of a unit vector nearly normal, so that one codebook suits all of them. Source: TurboQuant
//! (2504.19874), the variant for the mean square error; its rotation is made of random signs and a Hadamard matrix, and what
//! is stored beside the codes makes the vector as long as it was.

use super::Vectors;
use super::rotate::hadamard;
use super::uniform::{code_bytes, get_codes, put_codes, read_half, write_half};

pub struct Turbo {
    /// 2 to 4.
    pub bits: usize,
}

/// The positive halves of the codebooks that lose least of a normal variable, of 2, 3 and 4 bits. Source: Max 1960.
pub static CODEBOOKS: [&[f32]; 3] =
    [&[0.4528, 1.510], &[0.2451, 0.7560, 1.344, 2.152], &[0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733]];

impl Turbo {
    fn codebook(&self) -> &'static [f32] {
        CODEBOOKS[self.bits - 2]
    }

    /// The nearest level: its place among the positive ones, and above them the sign.
    fn code(&self, x: f32) -> u8 {
        let levels = self.codebook();
        let place = levels.windows(2).take_while(|pair| x.abs() > (pair[0] + pair[1]) / 2.0).count();
        (place + if x < 0.0 { levels.len() } else { 0 }) as u8
    }

    fn value(&self, code: u8) -> f32 {
        let levels = self.codebook();
        let level = levels[usize::from(code) % levels.len()];
        if usize::from(code) < levels.len() { level } else { -level }
    }
}

/// The same for every head, token and run.
fn sign(channel: usize) -> f32 {
    let mixed = (channel as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ mixed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    if mixed >> 63 == 0 { 1.0 } else { -1.0 }
}

impl Vectors for Turbo {
    fn bytes(&self, head_dim: usize) -> usize {
        2 + code_bytes(self.bits, head_dim)
    }

    fn encode(&self, x: &[f32], head_dim: usize, _: &[u8], out: &mut [u8]) {
        for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(self.bytes(head_dim))) {
            let mut turned: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * sign(i)).collect();
            hadamard(&mut turned, head_dim);
            let length = norm(x);
            let unit = if length > 0.0 { (head_dim as f32).sqrt() / length } else { 0.0 };
            let codes: Vec<u8> = turned.iter().map(|x| self.code(x * unit)).collect();
            let levels: Vec<f32> = codes.iter().map(|code| self.value(*code)).collect();
            write_half(length / norm(&levels), out);
            put_codes(self.bits, codes.into_iter(), &mut out[2..]);
        }
    }

    fn decode(&self, bytes: &[u8], head_dim: usize, _: &[u8], out: &mut [f32]) {
        for (bytes, out) in bytes.chunks_exact(self.bytes(head_dim)).zip(out.chunks_exact_mut(head_dim)) {
            let scale = read_half(bytes);
            get_codes(self.bits, &bytes[2..], out, |code, _| self.value(code) * scale);
            hadamard(out, head_dim);
            out.iter_mut().enumerate().for_each(|(i, x)| *x *= sign(i));
        }
    }
}

fn norm(x: &[f32]) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

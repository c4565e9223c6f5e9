//! Names put together at compile time: a table of hundreds of formats spells none of them.

use safetensors::Dtype;

use super::{Naming, Scheme};

#[derive(Clone, Copy)]
pub struct Name {
    bytes: [u8; 32],
    len: usize,
}

impl Name {
    pub const EMPTY: Name = Name { bytes: [0; 32], len: 0 };

    pub const fn text(&self) -> &str {
        match std::str::from_utf8(self.bytes.split_at(self.len).0) {
            Ok(text) => text,
            Err(_) => "", // only ASCII is pushed
        }
    }

    /// `pack-4bit-g128-sym-f16`
    pub const fn of(naming: &Naming, scheme: &Scheme) -> Name {
        let mut name = Name::EMPTY;
        name.push(naming.prefix);
        name.push("-");
        name.number(scheme.bits);
        name.push("bit-");
        match scheme.group {
            None => name.push("channel"),
            Some(group) => {
                name.push("g");
                name.number(group);
            }
        }
        if naming.symmetry {
            name.push(if scheme.symmetric { "-sym" } else { "-asym" });
        }
        let suffix = match scheme.scales {
            Dtype::F16 => "-f16",
            Dtype::BF16 => "-bf16",
            _ => "-f32",
        };
        if scheme.scales as u8 != naming.scales as u8 {
            name.push(suffix);
        }
        name
    }

    pub const fn push(&mut self, text: &str) {
        let mut n = 0;
        while n < text.len() {
            self.bytes[self.len] = text.as_bytes()[n];
            self.len += 1;
            n += 1;
        }
    }

    pub const fn number(&mut self, n: usize) {
        if n >= 10 {
            self.number(n / 10);
        }
        self.bytes[self.len] = b'0' + (n % 10) as u8;
        self.len += 1;
    }
}

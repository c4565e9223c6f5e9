//! Which device is asked for, and how it is to multiply.

use std::fmt;
use std::str::FromStr;

use super::cuda::Card;
use crate::error::{Error, Result};

/// `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// The first card if there is one that can be used, else the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda(usize),
}

impl Device {
    /// The card that was asked for. `None`: the CPU.
    ///
    /// Errors: a card was asked for by name, and why it cannot be had.
    pub fn open(self, precision: Option<Precision>) -> Result<Option<Card>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Auto => Ok(Card::open(0, precision).ok()),
            Device::Cuda(index) => Card::open(index, precision).map(Some),
        }
    }
}

/// How a card multiplies activations and weights. Sums are in single precision always.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// By kernels whose every sum is the CPU's.
    Exact,
    /// By cuBLAS: in another order, on units that are not made for matrices.
    Single,
    /// By cuBLAS, what is multiplied rounded to 11 significant bits, which weights in F16 and BF16 have no more of.
    Tf32,
    /// The same, to 8.
    Bf16,
}

/// As `--precision` has them.
const PRECISIONS: [(&str, Precision); 4] =
    [("exact", Precision::Exact), ("f32", Precision::Single), ("tf32", Precision::Tf32), ("bf16", Precision::Bf16)];

impl FromStr for Precision {
    type Err = Error;

    fn from_str(s: &str) -> Result<Precision> {
        let found = PRECISIONS.iter().find(|(name, _)| *name == s);
        found
            .map(|(_, precision)| *precision)
            .ok_or_else(|| Error::request(format!("{s:?} is no precision")).help(PRECISIONS.map(|(n, _)| n).join(", ")))
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = PRECISIONS.iter().find(|(_, precision)| precision == self);
        f.write_str(name.map_or("", |(name, _)| name))
    }
}

impl FromStr for Device {
    type Err = Error;

    fn from_str(s: &str) -> Result<Device> {
        let card = |s: &str| {
            s.strip_prefix("cuda")
                .and_then(|rest| if rest.is_empty() { Some(0) } else { rest.strip_prefix(':')?.parse().ok() })
        };
        match (s, card(s)) {
            ("auto", _) => Ok(Device::Auto),
            ("cpu", _) => Ok(Device::Cpu),
            (_, Some(index)) => Ok(Device::Cuda(index)),
            _ => Err(Error::request(format!("{s:?} is no device")).help("auto, cpu, cuda:0, cuda:1 ...")),
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Device::Auto => f.write_str("auto"),
            Device::Cpu => f.write_str("cpu"),
            Device::Cuda(index) => write!(f, "cuda:{index}"),
        }
    }
}

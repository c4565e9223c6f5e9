//! Which device is asked for.

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
    pub fn open(self) -> Result<Option<Card>> {
        match self {
            Device::Cpu => Ok(None),
            Device::Auto => Ok(Card::open(0).ok()),
            Device::Cuda(index) => Card::open(index).map(Some),
        }
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

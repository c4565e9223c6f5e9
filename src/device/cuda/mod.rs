//! NVIDIA cards. The same operations as [`super::cpu`], from the sources in `kernels/`, which are compiled for the card in hand.

pub mod ops;
pub mod runner;
pub mod selftest;
pub mod source;

pub use runner::{Arg, Buffer, Runner, Shape};

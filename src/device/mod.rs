//! Where arithmetic runs.

pub mod check;
mod choice;
pub mod cpu;
pub mod cuda;
pub mod twins;
mod worker;

pub use choice::{Device, Precision};
pub use worker::Worker;

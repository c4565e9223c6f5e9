//! Where arithmetic runs.

pub mod check;
mod choice;
pub mod cpu;
pub mod cuda;
pub mod twins;

pub use choice::Device;

//! NVIDIA cards. The same operations as [`super::cpu`], from the sources in `kernels/`, which are compiled for the card in hand.
//!
//! Nothing of CUDA is needed to build: the driver and the compiler are looked for when a card is asked for. Their functions are loaded
//! here and not by a crate of bindings, because those end the process over a missing library or function; here each is an
//! error with its name.

pub mod bench;
mod blas;
mod cache;
mod card;
pub mod driver;
mod library;
pub mod memory;
pub mod nvrtc;
pub mod ops;
pub mod runner;
pub mod selftest;
mod solver;
pub mod source;
mod staging;

use std::path::PathBuf;

pub use card::Card;
pub use driver::{CardInfo, Driver};
pub use memory::Memory;
pub use nvrtc::Nvrtc;
pub use runner::{Arg, Buffer, Factor, Product, Runner, Shape, View};

/// NVIDIA's products and factors for a driver of this version, each where it lies if it loads.
pub fn libraries(driver: (i32, i32)) -> [(&'static str, Option<PathBuf>); 2] {
    let found = |paths| library::first(paths, |path| library::Library::open(path).map(|l| l.path)).ok();
    [("cuBLAS", found(blas::candidates(driver))), ("cuSOLVER", found(solver::candidates(driver)))]
}

//! What a device is told of a format. `kernels/grid` has its arithmetic; its numbers are printed in front of that from here, so that
//! none is typed twice.

use safetensors::Dtype;

use super::grid::Levels;
use super::scheme::Zero;

/// How one format is read and written on a device.
#[derive(Clone, Debug)]
pub struct Facts {
    pub grid: DeviceGrid,
    /// Rows under one scale.
    pub tall: usize,
    /// Columns under one scale; `None`: all of them.
    pub group: Option<usize>,
    /// The type of its scales, where it is one of several.
    pub scales: Option<Dtype>,
    /// How those are fitted, where a device can.
    pub fit: Option<DeviceFit>,
}

/// What `kernels/fit.cu` must know of a format's scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum DeviceFit {
    /// `top` is the last code, `range` has the smallest and the largest scale that can be stored.
    Integers { top: usize, zero: Zero, range: (f32, f32) },
    /// A byte: a power of two, or an E4M3.
    Fp4 { power: bool },
}

/// The struct of a format in `kernels/grid`. Formats that differ in what is passed with each matrix share it.
#[derive(Clone, Debug, PartialEq)]
pub struct DeviceGrid {
    /// `kernels/grid/<file>.cuh`
    pub file: &'static str,
    pub name: &'static str,
    /// Template arguments.
    pub arguments: Vec<usize>,
    /// Named constants of the struct itself.
    pub numbers: Vec<(&'static str, usize)>,
    /// What its codes stand for.
    pub levels: Levels,
    /// Whether it is a block with an encoder.
    pub block: bool,
}

impl DeviceGrid {
    pub fn facts(self) -> Facts {
        Facts { grid: self, tall: 1, group: None, scales: None, fit: None }
    }

    /// As C++ writes it.
    pub fn expression(&self) -> String {
        let arguments: Vec<String> = self.arguments.iter().map(usize::to_string).collect();
        match (self.block, arguments.is_empty()) {
            (true, _) => format!("Blocks<{}>", self.name),
            (_, true) => self.name.to_owned(),
            _ => format!("{}<{}>", self.name, arguments.join(", ")),
        }
    }

    /// The struct alone.
    pub fn id(&self) -> String {
        self.arguments.iter().fold(self.name.to_owned(), |id, n| format!("{id}_{n}"))
    }
}

/// A constant of the sources in `kernels/`.
#[derive(Clone, Debug, PartialEq)]
pub enum Number {
    Int(i32),
    Float(f32),
    Ints(Vec<i32>),
    Floats(Vec<f32>),
}

/// Where the fields of a block lie: `AT_d` and so on.
macro_rules! places {
    ($block:ty: $($field:ident)*) => {
        &[$((concat!("AT_", stringify!($field)), std::mem::offset_of!($block, $field))),*]
    };
}
pub(super) use places;

/// The name of a type without its path.
pub(super) fn type_name<T>() -> &'static str {
    let name = std::any::type_name::<T>();
    let name = name.split('<').next().unwrap_or(name);
    name.rsplit("::").next().unwrap_or(name)
}

//! What runs kernels, and the memory that they see.

use std::ffi::c_void;
use std::ops::{Deref, Range};

use super::source::Unit;
use crate::device::Precision;
use crate::error::{Error, Result};

/// A device that kernels run on: a card behind its driver; in tests the host, whose compiler reads the same sources.
pub trait Runner: Sync {
    /// Bytes that can still be allocated.
    fn room(&self) -> Result<usize>;

    fn allocate(&self, bytes: usize) -> Result<u64>;

    fn free(&self, at: u64);

    fn upload(&self, at: u64, bytes: &[u8]) -> Result<()>;

    /// Waits for all kernels before.
    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()>;

    /// Between two of its buffers.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()>;

    /// Starts `kernel` of `unit`; others may still be running, in their order.
    ///
    /// # Safety
    /// `args` are what the kernel takes, and with `shape` it stays within the memory that they name.
    unsafe fn launch(&self, unit: &Unit, kernel: &str, shape: Shape, args: &[Arg]) -> Result<()>;

    /// Waits for all kernels.
    fn finish(&self) -> Result<()>;

    /// How [`Runner::multiply`] does; `Exact`: it does not, and products are kernels with the CPU's sums.
    fn precision(&self) -> Precision {
        Precision::Exact
    }

    /// A product by a library, in order with the kernels.
    ///
    /// # Safety
    /// The factors and the product stay within memory of this device.
    unsafe fn multiply(&self, _: &Product) -> Result<()> {
        Err(Error::unsupported("this device multiplies by kernels alone"))
    }

    /// Whether [`Runner::cholesky`] can be asked.
    fn factors(&self) -> bool {
        false
    }

    /// [`cpu::cholesky`](crate::device::cpu::cholesky) of an `n` x `n` matrix in double precision. What memory that takes for a time is
    /// `work`'s.
    ///
    /// # Safety
    /// The matrix lies within memory of this device.
    unsafe fn cholesky(&self, _at: u64, _n: usize, _work: &dyn Runner) -> Result<Result<(), usize>> {
        Err(Error::unsupported("this device has no factors"))
    }
}

/// `c = a b`, of `m` x `k` and `k` x `n` in single precision, as BLAS counts: columns one after another, `stride` apart.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub a: Factor,
    pub b: Factor,
    pub c: u64,
    pub stride: usize,
    /// Not exact.
    pub precision: Precision,
}

#[derive(Clone, Copy, Debug)]
pub struct Factor {
    pub at: u64,
    pub stride: usize,
    /// Its rows lie one after another.
    pub transposed: bool,
}

/// Blocks, and threads of each: across and down.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub blocks: [u32; 2],
    pub threads: [u32; 2],
}

/// The most that blocks can be down.
const DOWN: u64 = 65_535;

impl Shape {
    /// Errors: more blocks than a device counts.
    pub fn new(blocks: [u64; 2], threads: [u32; 2]) -> Result<Shape> {
        match (u32::try_from(blocks[0]), u32::try_from(blocks[1].min(DOWN + 1))) {
            (Ok(across), Ok(down)) if across <= i32::MAX as u32 && u64::from(down) <= DOWN => {
                Ok(Shape { blocks: [across, down], threads })
            }
            _ => Err(Error::limits(format!("{} x {} blocks are more than one launch has", blocks[0], blocks[1]))),
        }
    }

    /// A thread for each of `n`.
    pub fn each(n: u64) -> Result<Shape> {
        Shape::new([n.div_ceil(256), 1], [256, 1])
    }
}

/// A kernel's argument. Structs are those of `kernels/common.cuh`.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Address(u64),
    Int(i32),
    Long(i64),
    Float(f32),
    Double(f64),
    Parts([u64; 4]),
    Stored(Stored),
}

/// `Shape` there: how a matrix is stored.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Stored {
    pub rows: i64,
    pub cols: i32,
    pub group: i32,
    pub tall: i32,
    pub scales: i32,
}

impl Arg {
    /// Where its value lies.
    pub fn pointer(&self) -> *mut c_void {
        let at: *const c_void = match self {
            Arg::Address(x) => std::ptr::from_ref(x).cast(),
            Arg::Int(x) => std::ptr::from_ref(x).cast(),
            Arg::Long(x) => std::ptr::from_ref(x).cast(),
            Arg::Float(x) => std::ptr::from_ref(x).cast(),
            Arg::Double(x) => std::ptr::from_ref(x).cast(),
            Arg::Parts(x) => x.as_ptr().cast(),
            Arg::Stored(x) => std::ptr::from_ref(x).cast(),
        };
        at.cast_mut()
    }
}

/// Some of a device's memory, that of a [`Buffer`].
pub struct View<'r> {
    runner: &'r dyn Runner,
    at: u64,
    bytes: usize,
}

impl<'r> View<'r> {
    /// These of its bytes.
    pub fn part(&self, bytes: Range<usize>) -> View<'_> {
        assert!(bytes.start <= bytes.end && bytes.end <= self.bytes);
        View { runner: self.runner, at: self.at + bytes.start as u64, bytes: bytes.len() }
    }

    /// These of its rows, of `columns` values in single precision.
    pub fn rows(&self, rows: Range<usize>, columns: usize) -> View<'_> {
        self.part(rows.start * columns * 4..rows.end * columns * 4)
    }

    /// The first `n` values.
    pub fn read<T: bytemuck::Pod>(&self, n: usize) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); n];
        self.read_into(&mut out)?;
        Ok(out)
    }

    /// The first values.
    pub fn read_into<T: bytemuck::Pod>(&self, out: &mut [T]) -> Result<()> {
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(out);
        assert!(bytes.len() <= self.bytes);
        self.runner.download(self.at, bytes)
    }

    pub fn runner(&self) -> &'r dyn Runner {
        self.runner
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Values in single precision.
    pub fn singles(&self) -> usize {
        self.bytes / 4
    }

    pub fn address(&self) -> u64 {
        self.at
    }

    pub fn arg(&self) -> Arg {
        Arg::Address(self.at)
    }
}

/// Memory of a device, freed when it goes.
pub struct Buffer<'r>(View<'r>);

impl<'r> Buffer<'r> {
    /// Room that holds anything.
    pub fn new(runner: &'r dyn Runner, bytes: usize) -> Result<Buffer<'r>> {
        Ok(Buffer(View { runner, at: runner.allocate(bytes.max(1))?, bytes }))
    }

    /// Room for `n` values in single precision.
    pub fn singles(runner: &'r dyn Runner, n: usize) -> Result<Buffer<'r>> {
        let bytes = n.checked_mul(4).ok_or_else(|| Error::limits(format!("{n} numbers are more than memory holds")))?;
        Buffer::new(runner, bytes)
    }

    pub fn zeros(runner: &'r dyn Runner, bytes: usize) -> Result<Buffer<'r>> {
        Buffer::of(runner, &vec![0u8; bytes])
    }

    pub fn of<T: bytemuck::Pod>(runner: &'r dyn Runner, values: &[T]) -> Result<Buffer<'r>> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        let out = Buffer::new(runner, bytes.len())?;
        out.runner.upload(out.at, bytes)?;
        Ok(out)
    }
}

impl<'r> Deref for Buffer<'r> {
    type Target = View<'r>;

    fn deref(&self) -> &View<'r> {
        &self.0
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.runner.free(self.at);
    }
}

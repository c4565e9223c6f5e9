//! What runs kernels, and the memory that they see.

use std::ffi::c_void;

use super::source::Unit;
use crate::error::{Error, Result};

/// A device that kernels run on: a card behind its driver; in tests the host, whose compiler reads the same sources.
pub trait Runner: Sync {
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
            Arg::Parts(x) => x.as_ptr().cast(),
            Arg::Stored(x) => std::ptr::from_ref(x).cast(),
        };
        at.cast_mut()
    }
}

/// Memory of a device, freed when it goes.
pub struct Buffer<'r> {
    runner: &'r dyn Runner,
    at: u64,
    bytes: usize,
}

impl<'r> Buffer<'r> {
    /// Room that holds anything.
    pub fn new(runner: &'r dyn Runner, bytes: usize) -> Result<Buffer<'r>> {
        Ok(Buffer { runner, at: runner.allocate(bytes.max(1))?, bytes })
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

    /// The first `n` values.
    pub fn read<T: bytemuck::Pod>(&self, n: usize) -> Result<Vec<T>> {
        let mut out = vec![T::zeroed(); n];
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut out);
        assert!(bytes.len() <= self.bytes);
        self.runner.download(self.at, bytes)?;
        Ok(out)
    }

    pub fn runner(&self) -> &'r dyn Runner {
        self.runner
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn address(&self) -> u64 {
        self.at
    }

    pub fn arg(&self) -> Arg {
        Arg::Address(self.at)
    }
}

impl Drop for Buffer<'_> {
    fn drop(&mut self) {
        self.runner.free(self.at);
    }
}

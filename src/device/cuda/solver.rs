//! cuSOLVER: Cholesky factors in double precision.

use std::ffi::{c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use super::library::{self, Library};
use super::runner::{Buffer, Runner};
use crate::error::{Error, Kind, Result};

type Handle = *mut c_void;
/// Handle, triangle, size, matrix, stride; then bytes of workspace, or workspace, its size, and how it went.
type Measure = unsafe extern "C" fn(Handle, c_int, c_int, *mut f64, c_int, *mut c_int) -> c_int;
type Factor = unsafe extern "C" fn(Handle, c_int, c_int, *mut f64, c_int, *mut f64, c_int, *mut c_int) -> c_int;

/// Used while its card's context is current, and dropped so.
pub struct Solver {
    /// Of one thread at a time.
    handle: Mutex<Handle>,
    measure: Measure,
    factor: Factor,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    _library: Library,
}

/// Versions of the library, and of the CUDA that they come with.
const VERSIONS: [(i32, i32); 2] = [(12, 13), (11, 12)];

/// `cublasFillMode_t`: of a matrix whose rows lie one after another, what is below the diagonal.
const BELOW: c_int = 1;

/// Where it is looked for, by a driver of this version.
pub fn candidates(driver: (i32, i32)) -> Vec<PathBuf> {
    let names = |(version, _): (i32, i32)| [format!("libcusolver.so.{version}"), format!("cusolver64_{version}.dll")];
    library::candidates("QUANT_CUSOLVER", VERSIONS.into_iter().filter(|(_, cuda)| *cuda <= driver.0).flat_map(names))
}

impl Solver {
    /// `None`: there is none for this driver, and factors are the CPU's.
    pub fn find(driver: (i32, i32)) -> Option<Solver> {
        library::first(candidates(driver), Solver::open).ok()
    }

    fn open(path: &Path) -> Result<Solver> {
        let library = Library::open(path)?;
        type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
        // SAFETY: the types are those of cusolverDn.h; the library lives as long as they do.
        let (create, measure, factor, destroy) = unsafe {
            (
                library.function::<Create>("cusolverDnCreate")?,
                library.function("cusolverDnDpotrf_bufferSize")?,
                library.function("cusolverDnDpotrf")?,
                library.function("cusolverDnDestroy")?,
            )
        };
        let mut handle = ptr::null_mut();
        // SAFETY: writes one handle; `Drop` destroys it.
        check(unsafe { create(&mut handle) }, "start")?;
        Ok(Solver { handle: Mutex::new(handle), measure, factor, destroy, _library: library })
    }

    /// Overwrites what is below the diagonal of the `n` x `n` matrix at `at`, rows one after another, with L of `a = L L^T`. The inner
    /// error: the first pivot that is not positive.
    ///
    /// # Safety
    /// The matrix lies in the card's memory.
    pub unsafe fn cholesky(&self, memory: &dyn Runner, at: u64, n: usize) -> Result<Result<(), usize>> {
        let size = c_int::try_from(n).map_err(|_| Error::limits(format!("{n} is more than cuSOLVER counts")))?;
        let (matrix, mut room) = (at as *mut f64, 0);
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's word on the matrix; one number is written.
        let code = unsafe { (self.measure)(*handle, BELOW, size, matrix, size, &mut room) };
        check(code, &format!("prepare a factor of {n} columns"))?;
        let work = Buffer::new(memory, usize::try_from(room).unwrap_or(0) * 8)?;
        let went = Buffer::zeros(memory, 4)?;
        let (work_at, went_at) = (work.address() as *mut f64, went.address() as *mut c_int);
        // SAFETY: as above; the workspace has the size that was asked for.
        let code = unsafe { (self.factor)(*handle, BELOW, size, matrix, size, work_at, room, went_at) };
        check(code, &format!("factor a matrix of {n} columns"))?;
        // Which waits for it.
        match went.read::<i32>(1)?[0] {
            0 => Ok(Ok(())),
            pivot @ 1.. => Ok(Err(pivot as usize - 1)),
            argument => check(argument, &format!("factor a matrix of {n} columns")).map(Ok),
        }
    }
}

fn check(code: c_int, what: &str) -> Result<()> {
    match code {
        0 => Ok(()),
        code => Err(Error::new(Kind::Device, format!("cuSOLVER cannot {what} (error {code} of cusolverStatus_t)"))
            .help("`--precision exact` does without it")),
    }
}

impl Drop for Solver {
    fn drop(&mut self) {
        let handle = *self.handle.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `open` made it, and nobody else destroys it.
        unsafe { (self.destroy)(handle) };
    }
}

//! cuBLAS: dense products on the units for matrices that cards have, which round what they multiply.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::path::Path;
use std::ptr;
use std::sync::{Mutex, PoisonError};

use super::library::{self, Library};
use super::runner::{Factor, Product};
use crate::device::Precision;
use crate::error::{Error, Kind, Result};

type Handle = *mut c_void;
type Gemm = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const f32,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const f32,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// Used while its card's context is current, and dropped so.
pub struct Blas {
    pub precision: Precision,
    /// Of one thread at a time.
    handle: Mutex<Handle>,
    gemm: Gemm,
    destroy: unsafe extern "C" fn(Handle) -> c_int,
    describe: unsafe extern "C" fn(c_int) -> *const c_char,
    _library: Library,
    /// What it is built on.
    _light: Option<Library>,
}

/// The versions of CUDA that it is looked for, the newest first.
const MAJORS: [i32; 2] = [13, 12];

/// What brings it.
const INSTALL: &str = "`pip install nvidia-cublas` (CUDA 13) or `pip install nvidia-cublas-cu12` brings it, as does NVIDIA's toolkit \
                       (CUDA_HOME); QUANT_CUBLAS names a libcublas elsewhere; `--precision exact` needs none";

/// `cudaDataType`, `cublasOperation_t` and `cublasGemmAlgo_t`.
const SINGLE: c_int = 0;
const AS_IT_IS: c_int = 0;
const TRANSPOSED: c_int = 1;
const ANY: c_int = -1;

/// `cublasComputeType_t`, sums always in single precision.
fn compute(precision: Precision) -> c_int {
    match precision {
        Precision::Exact | Precision::Single => 68,
        Precision::Bf16 => 75,
        Precision::Tf32 => 77,
    }
}

/// Where it is looked for, by a driver of this version.
pub fn candidates(driver: (i32, i32)) -> Vec<std::path::PathBuf> {
    let names = |major: i32| [format!("libcublas.so.{major}"), format!("cublas64_{major}.dll")];
    library::candidates("QUANT_CUBLAS", MAJORS.into_iter().filter(|major| *major <= driver.0).flat_map(names))
}

impl Blas {
    /// Errors: none is found for this driver (major and minor of its CUDA), or it does not start.
    pub fn find(driver: (i32, i32), precision: Precision) -> Result<Blas> {
        library::first(candidates(driver), |path| Blas::open(path, precision)).map_err(|why| {
            let why = why.unwrap_or_else(|| "it was not found".to_owned());
            Error::new(Kind::Device, format!("cuBLAS, which multiplies so, cannot be used: {why}")).help(INSTALL)
        })
    }

    fn open(path: &Path, precision: Precision) -> Result<Blas> {
        let light = library::beside(path, "libcublasLt.so");
        let library = Library::open(path)?;
        type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
        // SAFETY: the types are those of cublas_api.h; the library lives as long as they do.
        let (create, gemm, destroy, describe) = unsafe {
            (
                library.function::<Create>("cublasCreate_v2")?,
                library.function("cublasGemmEx")?,
                library.function("cublasDestroy_v2")?,
                library.function("cublasGetStatusString")?,
            )
        };
        let mut handle = ptr::null_mut();
        // SAFETY: writes one handle; `Drop` destroys it.
        let code = unsafe { create(&mut handle) };
        if code != 0 {
            return Err(failed("start", code, describe));
        }
        Ok(Blas { precision, handle: Mutex::new(handle), gemm, destroy, describe, _library: library, _light: light })
    }

    /// # Safety
    /// The factors and the product lie in the card's memory.
    pub unsafe fn multiply(&self, product: &Product) -> Result<()> {
        let int = |n: usize| {
            c_int::try_from(n).map_err(|_| Error::limits(format!("{n} is more than cuBLAS counts in a product")))
        };
        let operation = |f: &Factor| if f.transposed { TRANSPOSED } else { AS_IT_IS };
        let Product { m, n, k, a, b, c, stride, precision } = product;
        let ([m, n, k], [lda, ldb, ldc]) =
            ([int(*m)?, int(*n)?, int(*k)?], [int(a.stride)?, int(b.stride)?, int(*stride)?]);
        let (one, zero) = (1.0f32, 0.0f32);
        let handle = self.handle.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the caller's word on memory; the two factors are read before the call returns.
        let code = unsafe {
            (self.gemm)(
                *handle,
                operation(a),
                operation(b),
                m,
                n,
                k,
                &one,
                a.at as *const c_void,
                SINGLE,
                lda,
                b.at as *const c_void,
                SINGLE,
                ldb,
                &zero,
                *c as *mut c_void,
                SINGLE,
                ldc,
                compute(*precision),
                ANY,
            )
        };
        match code {
            0 => Ok(()),
            code => Err(failed(&format!("multiply {m} x {k} by {k} x {n}"), code, self.describe)),
        }
    }
}

fn failed(what: &str, code: c_int, describe: unsafe extern "C" fn(c_int) -> *const c_char) -> Error {
    // SAFETY: it knows every number, and its texts are constants that end in a zero.
    let text = unsafe {
        let text = describe(code);
        if text.is_null() { "unknown error".into() } else { CStr::from_ptr(text).to_string_lossy() }
    };
    Error::new(Kind::Device, format!("cuBLAS cannot {what}: {text} (error {code})"))
        .help("`--precision exact` does without it")
}

impl Drop for Blas {
    fn drop(&mut self) {
        let handle = *self.handle.get_mut().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: `open` made it, and nobody else destroys it.
        unsafe { (self.destroy)(handle) };
    }
}

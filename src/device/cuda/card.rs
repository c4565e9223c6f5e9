//! One card: its context, its compiled kernels, its memory.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use cudarc::driver::sys::{self, CUcontext, CUfunction, CUmodule};

use super::blas::Blas;
use super::cache;
use super::driver::{CardInfo, Driver, check};
use super::nvrtc::Nvrtc;
use super::runner::{Arg, Product, Runner, Shape};
use super::solver::Solver;
use super::source::Unit;
use super::staging::{SMALL, Staging};
use crate::device::Precision;
use crate::error::{Error, Kind, Result};

pub struct Card {
    driver: Driver,
    pub nvrtc: Nvrtc,
    pub info: CardInfo,
    /// What kernels are compiled for.
    pub arch: String,
    handle: c_int,
    context: CUcontext,
    /// NVIDIA's products and factors, unless all is to be exact.
    blas: Option<Blas>,
    solver: Option<Solver>,
    loaded: Mutex<HashMap<String, Loaded>>,
    /// `None`: not to be had; copies are plain ones.
    staging: Mutex<Option<Staging>>,
}

#[derive(Default)]
struct Loaded {
    module: Option<CUmodule>,
    functions: HashMap<String, CUfunction>,
}

// SAFETY: the driver's functions may be called from any thread once the context is current there, which every method sees to; the
// handles are used for nothing else.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

impl Card {
    /// Card `index`. Without `precision` it multiplies as TF32 where cuBLAS is found, else exactly.
    ///
    /// Errors: no driver, no such card, no compiler for it, no library that multiplies as is asked.
    pub fn open(index: usize, precision: Option<Precision>) -> Result<Card> {
        let driver = Driver::open()?;
        let cards = driver.cards()?;
        let Some(info) = cards.get(index).cloned() else {
            let message = format!("there is no card {index}, only {} of them", cards.len());
            return Err(Error::new(Kind::Device, message).help("`quant devices` lists them"));
        };
        let nvrtc = Nvrtc::find(driver.version)?;
        let arch = nvrtc.arch(info.capability)?;
        let handle = driver.handle(index as c_int)?;
        let mut context = ptr::null_mut();
        // SAFETY: writes one handle; `Drop` releases it.
        check(unsafe { sys::cuDevicePrimaryCtxRetain(&mut context, handle) }, "open the card")?;
        let (blas, solver, loaded, staging) = (None, None, Mutex::default(), Mutex::default());
        let mut card = Card { driver, nvrtc, info, arch, handle, context, blas, solver, loaded, staging };
        card.enter()?;
        card.staging = Mutex::new(Staging::new().ok());
        card.blas = match precision {
            Some(Precision::Exact) => None,
            Some(precision) => Some(Blas::find(card.driver.version, precision)?),
            None => Blas::find(card.driver.version, Precision::Tf32).ok(),
        };
        if card.blas.is_some() {
            card.solver = Solver::find(card.driver.version);
        }
        Ok(card)
    }

    pub fn driver_version(&self) -> (i32, i32) {
        self.driver.version
    }

    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as the card.
        check(unsafe { sys::cuCtxSetCurrent(self.context) }, "use the card")
    }

    /// Free and total bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        check(unsafe { sys::cuMemGetInfo_v2(&mut free, &mut total) }, "measure the card's memory")?;
        Ok((free, total))
    }

    /// Compiled and loaded on first use.
    fn function(&self, unit: &Unit, kernel: &str) -> Result<CUfunction> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = loaded.entry(unit.name()).or_default();
        if let Some(function) = entry.functions.get(kernel) {
            return Ok(*function);
        }
        let module = match entry.module {
            Some(module) => module,
            None => {
                let image = cache::cubin(&self.nvrtc, unit, &self.arch)?;
                let mut module = ptr::null_mut();
                // SAFETY: a whole CUBIN, which says its own size.
                let code = unsafe { sys::cuModuleLoadData(&mut module, image.as_ptr().cast()) };
                check(code, &format!("load {}", unit.name()))?;
                *entry.module.insert(module)
            }
        };
        let name = CString::new(kernel).map_err(|_| Error::new(Kind::Device, "a kernel's name has a zero in it"))?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in a zero.
        let code = unsafe { sys::cuModuleGetFunction(&mut function, module, name.as_ptr()) };
        check(code, &format!("find {kernel} in {}", unit.name()))?;
        entry.functions.insert(kernel.to_owned(), function);
        Ok(function)
    }
}

impl Runner for Card {
    fn room(&self) -> Result<usize> {
        self.memory().map(|(free, _)| free)
    }

    fn allocate(&self, bytes: usize) -> Result<u64> {
        self.enter()?;
        let mut at = 0;
        // SAFETY: writes one address.
        let code = unsafe { sys::cuMemAlloc_v2(&mut at, bytes) };
        check(code, "allocate memory").map(|()| at).map_err(|e| {
            let (free, total) = self.memory().unwrap_or_default();
            e.at(format!("an array of {bytes} bytes; of the card's {total} bytes {free} are free"))
        })
    }

    fn free(&self, at: u64) {
        if self.enter().is_ok() {
            // SAFETY: `allocate` gave it, and a buffer frees once. An error leaves nothing to do.
            unsafe { sys::cuMemFree_v2(at) };
        }
    }

    fn upload(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        let lock = || self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let mut staging = (bytes.len() > SMALL).then(lock);
        if let Some(staging) = staging.as_mut().and_then(|staging| staging.as_mut()) {
            // SAFETY: the buffer at `at` has room for them.
            return unsafe { staging.upload(at, bytes) };
        }
        // SAFETY: the buffer at `at` has room for them.
        check(unsafe { sys::cuMemcpyHtoD_v2(at, bytes.as_ptr().cast(), bytes.len()) }, "upload")
    }

    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        let lock = || self.staging.lock().unwrap_or_else(PoisonError::into_inner);
        let mut staging = (bytes.len() > SMALL).then(lock);
        if let Some(staging) = staging.as_mut().and_then(|staging| staging.as_mut()) {
            // SAFETY: the buffer at `at` has as many.
            return unsafe { staging.download(at, bytes) };
        }
        // SAFETY: the buffer at `at` has as many.
        check(unsafe { sys::cuMemcpyDtoH_v2(bytes.as_mut_ptr().cast(), at, bytes.len()) }, "download")
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: both buffers have as many, by the caller.
        check(unsafe { sys::cuMemcpyDtoD_v2(to, from, bytes) }, "copy")
    }

    unsafe fn launch(&self, unit: &Unit, kernel: &str, shape: Shape, args: &[Arg]) -> Result<()> {
        self.enter()?;
        let function = self.function(unit, kernel)?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let ([bx, by], [tx, ty]) = (shape.blocks, shape.threads);
        let (args, none) = (pointers.as_mut_ptr(), ptr::null_mut());
        // SAFETY: the caller's word on arguments and memory; they are copied before the call returns.
        let code = unsafe { sys::cuLaunchKernel(function, bx, by, 1, tx, ty, 1, 0, none, args, ptr::null_mut()) };
        check(code, &format!("launch {kernel} of {}", unit.name()))
    }

    fn finish(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the context is current.
        check(unsafe { sys::cuCtxSynchronize() }, "finish")
    }

    fn precision(&self) -> Precision {
        self.blas.as_ref().map_or(Precision::Exact, |blas| blas.precision)
    }

    unsafe fn multiply(&self, product: &Product) -> Result<()> {
        self.enter()?;
        let blas = self.blas.as_ref().ok_or_else(|| Error::unsupported("this card multiplies by kernels alone"))?;
        // SAFETY: the caller's word.
        unsafe { blas.multiply(product) }
    }

    fn factors(&self) -> bool {
        self.solver.is_some()
    }

    unsafe fn cholesky(&self, at: u64, n: usize, work: &dyn Runner) -> Result<Result<(), usize>> {
        self.enter()?;
        let solver = self.solver.as_ref().ok_or_else(|| Error::unsupported("this card has no factors"))?;
        // SAFETY: the caller's word.
        unsafe { solver.cholesky(work, at, n) }
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            (self.blas, self.solver) = (None, None);
            *self.staging.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
            let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
            for module in loaded.values().filter_map(|l| l.module) {
                // SAFETY: loaded here, and no kernel runs any more: results were read before.
                unsafe { sys::cuModuleUnload(module) };
            }
        } else {
            // What belongs to a context that is lost cannot be given back.
            std::mem::forget((self.blas.take(), self.solver.take()));
            std::mem::forget(self.staging.get_mut().unwrap_or_else(PoisonError::into_inner).take());
        }
        // SAFETY: `open` retained it once.
        unsafe { sys::cuDevicePrimaryCtxRelease_v2(self.handle) };
    }
}

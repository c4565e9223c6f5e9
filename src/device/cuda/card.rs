//! One card: its context, its compiled kernels, its memory.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use super::cache;
use super::driver::{CardInfo, Context, Driver, Function, Module};
use super::nvrtc::Nvrtc;
use super::runner::{Arg, Runner, Shape};
use super::source::Unit;
use crate::error::{Error, Kind, Result};

pub struct Card {
    driver: Arc<Driver>,
    pub nvrtc: Nvrtc,
    pub info: CardInfo,
    /// What kernels are compiled for.
    pub arch: String,
    handle: c_int,
    context: Context,
    loaded: Mutex<HashMap<String, Loaded>>,
}

#[derive(Default)]
struct Loaded {
    module: Option<Module>,
    functions: HashMap<String, Function>,
}

// SAFETY: the driver's functions may be called from any thread once the context is current there, which every method sees to; the
// handles are used for nothing else.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

impl Card {
    /// Card `index`.
    ///
    /// Errors: no driver, no such card, no compiler for it.
    pub fn open(index: usize) -> Result<Card> {
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
        driver.check(unsafe { (driver.context_retain)(&mut context, handle) }, "open the card")?;
        Ok(Card { driver, nvrtc, info, arch, handle, context, loaded: Mutex::default() })
    }

    pub fn driver_version(&self) -> (i32, i32) {
        self.driver.version
    }

    fn enter(&self) -> Result<()> {
        // SAFETY: the context lives as long as the card.
        self.driver.check(unsafe { (self.driver.context_enter)(self.context) }, "use the card")
    }

    /// Free and total bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.enter()?;
        let (mut free, mut total) = (0, 0);
        // SAFETY: writes two numbers.
        self.driver.check(unsafe { (self.driver.memory_info)(&mut free, &mut total) }, "measure the card's memory")?;
        Ok((free, total))
    }

    /// Compiled and loaded on first use.
    fn function(&self, unit: &Unit, kernel: &str) -> Result<Function> {
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
                let code = unsafe { (self.driver.module_load)(&mut module, image.as_ptr().cast()) };
                self.driver.check(code, &format!("load {}", unit.name()))?;
                *entry.module.insert(module)
            }
        };
        let name = CString::new(kernel).map_err(|_| Error::new(Kind::Device, "a kernel's name has a zero in it"))?;
        let mut function = ptr::null_mut();
        // SAFETY: the module is loaded, the name ends in a zero.
        let code = unsafe { (self.driver.module_function)(&mut function, module, name.as_ptr()) };
        self.driver.check(code, &format!("find {kernel} in {}", unit.name()))?;
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
        let code = unsafe { (self.driver.allocate)(&mut at, bytes) };
        self.driver.check(code, "allocate memory").map(|()| at).map_err(|e| {
            let (free, total) = self.memory().unwrap_or_default();
            e.at(format!("an array of {bytes} bytes; of the card's {total} bytes {free} are free"))
        })
    }

    fn free(&self, at: u64) {
        if self.enter().is_ok() {
            // SAFETY: `allocate` gave it, and a buffer frees once. An error leaves nothing to do.
            unsafe { (self.driver.free)(at) };
        }
    }

    fn upload(&self, at: u64, bytes: &[u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the buffer at `at` has room for them.
        self.driver.check(unsafe { (self.driver.upload)(at, bytes.as_ptr().cast(), bytes.len()) }, "upload")
    }

    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        self.enter()?;
        // SAFETY: the buffer at `at` has as many.
        self.driver.check(unsafe { (self.driver.download)(bytes.as_mut_ptr().cast(), at, bytes.len()) }, "download")
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        self.enter()?;
        // SAFETY: both buffers have as many, by the caller.
        self.driver.check(unsafe { (self.driver.copy)(to, from, bytes) }, "copy")
    }

    unsafe fn launch(&self, unit: &Unit, kernel: &str, shape: Shape, args: &[Arg]) -> Result<()> {
        self.enter()?;
        let function = self.function(unit, kernel)?;
        let mut pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let ([bx, by], [tx, ty]) = (shape.blocks, shape.threads);
        let (args, none) = (pointers.as_mut_ptr(), ptr::null_mut());
        // SAFETY: the caller's word on arguments and memory; they are copied before the call returns.
        let code = unsafe { (self.driver.launch)(function, bx, by, 1, tx, ty, 1, 0, none, args, ptr::null_mut()) };
        self.driver.check(code, &format!("launch {kernel} of {}", unit.name()))
    }

    fn finish(&self) -> Result<()> {
        self.enter()?;
        // SAFETY: the context is current.
        self.driver.check(unsafe { (self.driver.synchronize)() }, "finish")
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        if self.enter().is_ok() {
            let loaded = self.loaded.get_mut().unwrap_or_else(PoisonError::into_inner);
            for module in loaded.values().filter_map(|l| l.module) {
                // SAFETY: loaded here, and no kernel runs any more: results were read before.
                unsafe { (self.driver.module_unload)(module) };
            }
        }
        // SAFETY: `open` retained it once.
        unsafe { (self.driver.context_release)(self.handle) };
    }
}

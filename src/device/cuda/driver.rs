//! The driver, `libcuda`: which cards there are. Its functions are looked up one by one when it is opened, so that a library without
//! one of them is an error with its name.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

use super::library::Library;
use crate::error::{Error, Kind, Result};

pub type Context = *mut c_void;
pub type Module = *mut c_void;
pub type Function = *mut c_void;

macro_rules! functions {
    ($($name:ident = $symbol:literal ($($arg:ty),*);)*) => {
        /// Functions of `cuda.h`, each with the version of its ABI that it names.
        pub struct Driver {
            $(pub $name: unsafe extern "system" fn($($arg),*) -> c_int,)*
            /// Major and minor of the CUDA that it is for.
            pub version: (i32, i32),
            _library: Library,
        }

        impl Driver {
            fn load(library: Library) -> Result<Driver> {
                // SAFETY: the types are those of cuda.h; the library lives as long as they do.
                let driver = unsafe {
                    Driver { $($name: library.function($symbol)?,)* version: (0, 0), _library: library }
                };
                Ok(driver)
            }
        }
    };
}

functions! {
    init = "cuInit" (c_uint);
    driver_version = "cuDriverGetVersion" (*mut c_int);
    error_string = "cuGetErrorString" (c_int, *mut *const c_char);
    device_count = "cuDeviceGetCount" (*mut c_int);
    device = "cuDeviceGet" (*mut c_int, c_int);
    device_name = "cuDeviceGetName" (*mut c_char, c_int, c_int);
    device_memory = "cuDeviceTotalMem_v2" (*mut usize, c_int);
    device_attribute = "cuDeviceGetAttribute" (*mut c_int, c_int, c_int);
    context_retain = "cuDevicePrimaryCtxRetain" (*mut Context, c_int);
    context_release = "cuDevicePrimaryCtxRelease_v2" (c_int);
    context_enter = "cuCtxSetCurrent" (Context);
    synchronize = "cuCtxSynchronize" ();
    memory_info = "cuMemGetInfo_v2" (*mut usize, *mut usize);
    allocate = "cuMemAlloc_v2" (*mut u64, usize);
    free = "cuMemFree_v2" (u64);
    upload = "cuMemcpyHtoD_v2" (u64, *const c_void, usize);
    download = "cuMemcpyDtoH_v2" (*mut c_void, u64, usize);
    copy = "cuMemcpyDtoD_v2" (u64, u64, usize);
    module_load = "cuModuleLoadData" (*mut Module, *const c_void);
    module_unload = "cuModuleUnload" (Module);
    module_function = "cuModuleGetFunction" (*mut Function, Module, *const c_char);
    launch = "cuLaunchKernel" (
        Function, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void
    );
}

/// `cudaError_enum`: what calls for other advice.
const OUT_OF_MEMORY: c_int = 2;
const STUB: c_int = 34;
const NO_DEVICE: c_int = 100;
const MISMATCH: c_int = 803;

/// `CU_DEVICE_ATTRIBUTE_*`
const MULTIPROCESSORS: c_int = 16;
const MAJOR: c_int = 75;
const MINOR: c_int = 76;

/// The oldest driver whose CUBINs and functions suffice.
const OLDEST: (i32, i32) = (12, 0);

const NAMES: [&str; 3] = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"];

/// A card, as the driver describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardInfo {
    pub index: usize,
    pub name: String,
    /// Compute capability.
    pub capability: (i32, i32),
    pub multiprocessors: usize,
    /// Bytes.
    pub memory: usize,
}

impl Driver {
    /// Errors: no driver, one that is damaged or too old, or no card: which, and what helps.
    pub fn open() -> Result<Arc<Driver>> {
        let mut why = Vec::new();
        for name in NAMES {
            match Library::open(name) {
                Ok(library) => return Driver::load(library)?.start().map(Arc::new),
                Err(e) => why.push(e.message().to_owned()),
            }
        }
        Err(Error::new(Kind::Device, format!("no NVIDIA driver was found: {}", why[0])).help(
            "a card needs NVIDIA's driver, whose libcuda.so.1 must be on the loader's path (in a container: `--gpus all`); `--device cpu` needs none",
        ))
    }

    fn start(mut self) -> Result<Driver> {
        // SAFETY: no flags are defined.
        self.check(unsafe { (self.init)(0) }, "start")?;
        let mut version = 0;
        // SAFETY: writes one number.
        self.check(unsafe { (self.driver_version)(&mut version) }, "ask for the version")?;
        self.version = (version / 1000, version % 1000 / 10);
        if self.version < OLDEST {
            let (major, minor) = self.version;
            let message = format!("the NVIDIA driver is for CUDA {major}.{minor}, {}.{} is needed", OLDEST.0, OLDEST.1);
            return Err(Error::new(Kind::Device, message).help("update the driver to version 525 or later"));
        }
        Ok(self)
    }

    /// Turns a status into an error that says what was attempted.
    pub fn check(&self, code: c_int, what: &str) -> Result<()> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: writes a pointer to a constant, or null for a status that it does not know.
        let known = unsafe { (self.error_string)(code, &mut text) } == 0 && !text.is_null();
        // SAFETY: such constants end in a zero.
        let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
        let error = Error::new(Kind::Device, format!("the NVIDIA driver cannot {what}: {text} (error {code})"));
        Err(match code {
            OUT_OF_MEMORY => error.help("close what else uses the card, or `--device cpu`"),
            STUB => error.help("a toolkit's stub stands in for the driver: take its folder off LD_LIBRARY_PATH"),
            NO_DEVICE => error.help("no card is visible: see `nvidia-smi` and CUDA_VISIBLE_DEVICES"),
            MISMATCH => {
                error.help("the driver in the kernel and libcuda are of two versions: reboot, or reinstall the driver")
            }
            _ => error,
        })
    }

    pub fn cards(&self) -> Result<Vec<CardInfo>> {
        let mut count = 0;
        // SAFETY: writes one number.
        self.check(unsafe { (self.device_count)(&mut count) }, "count the cards")?;
        (0..count).map(|i| self.card(i)).collect()
    }

    /// The driver's handle of a card.
    pub fn handle(&self, index: c_int) -> Result<c_int> {
        let mut device = 0;
        // SAFETY: writes one number.
        self.check(unsafe { (self.device)(&mut device, index) }, "find the card")?;
        Ok(device)
    }

    fn card(&self, index: c_int) -> Result<CardInfo> {
        let device = self.handle(index)?;
        let mut name = [0 as c_char; 256];
        // SAFETY: at most so many bytes are written, a zero among them.
        self.check(unsafe { (self.device_name)(name.as_mut_ptr(), name.len() as c_int - 1, device) }, "name the card")?;
        let mut memory = 0;
        // SAFETY: writes one number.
        self.check(unsafe { (self.device_memory)(&mut memory, device) }, "measure the card's memory")?;
        let attribute = |which: c_int| {
            let mut value = 0;
            // SAFETY: writes one number.
            self.check(unsafe { (self.device_attribute)(&mut value, which, device) }, "describe the card")?;
            Ok::<_, Error>(value)
        };
        // SAFETY: the last byte is still zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(CardInfo {
            index: index as usize,
            name,
            capability: (attribute(MAJOR)?, attribute(MINOR)?),
            multiprocessors: attribute(MULTIPROCESSORS)?.max(0) as usize,
            memory,
        })
    }
}

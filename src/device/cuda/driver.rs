//! The driver, `libcuda`, by way of cudarc: which cards there are. cudarc looks functions up when they are first called, and panics
//! where one is missing; so each that is used is looked for when the driver is opened, and its absence is an error with its name.

use std::ffi::{CStr, c_char, c_int};

use cudarc::driver::sys::{self, CUdevice_attribute as Attribute, CUresult};

use super::library::Library;
use crate::error::{Error, Kind, Result};

/// What is called here, in `card` and in `staging`.
const FUNCTIONS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDeviceGet",
    "cuDeviceGetName",
    "cuDeviceTotalMem_v2",
    "cuDeviceGetAttribute",
    "cuDevicePrimaryCtxRetain",
    "cuDevicePrimaryCtxRelease_v2",
    "cuCtxSetCurrent",
    "cuCtxSynchronize",
    "cuMemGetInfo_v2",
    "cuMemAlloc_v2",
    "cuMemFree_v2",
    "cuMemcpyHtoD_v2",
    "cuMemcpyDtoH_v2",
    "cuMemcpyDtoD_v2",
    "cuMemAllocHost_v2",
    "cuMemFreeHost",
    "cuMemcpyHtoDAsync_v2",
    "cuMemcpyDtoHAsync_v2",
    "cuEventCreate",
    "cuEventRecord",
    "cuEventSynchronize",
    "cuEventDestroy_v2",
    "cuModuleLoadData",
    "cuModuleUnload",
    "cuModuleGetFunction",
    "cuLaunchKernel",
];

/// The oldest driver whose CUBINs and functions suffice.
const OLDEST: (i32, i32) = (12, 0);

/// As the driver calls itself, on Linux and on Windows.
const LIBRARY: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

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

/// A driver that was found whole.
#[derive(Clone, Copy, Debug)]
pub struct Driver {
    /// Major and minor of the CUDA that it is for.
    pub version: (i32, i32),
}

impl Driver {
    /// Errors: no driver, one that is damaged or too old, or no card: which, and what helps.
    pub fn open() -> Result<Driver> {
        // SAFETY: NVIDIA's library, whose initializers ask for nothing.
        if !unsafe { sys::is_culib_present() } {
            let why = Library::open(LIBRARY).err().map_or_else(String::new, |e| format!(": {}", e.message()));
            return Err(Error::new(Kind::Device, format!("no NVIDIA driver was found{why}")).help(
                "a card needs NVIDIA's driver, whose libcuda.so.1 must be on the loader's path (in a container: `--gpus all`); `--device cpu` needs none",
            ));
        }
        // SAFETY: as above; it is there. Nothing is called by these addresses.
        let missing = |name: &&&str| unsafe { sys::culib().get::<*const ()>(name.as_bytes()) }.is_err();
        if let Some(name) = FUNCTIONS.iter().find(missing) {
            return Err(Error::new(Kind::Device, format!("{LIBRARY} has no {name}"))
                .help("it is damaged, a stub, or of a version before CUDA 12: install the driver anew"));
        }
        // SAFETY: no flags are defined.
        check(unsafe { sys::cuInit(0) }, "start")?;
        let mut version = 0;
        // SAFETY: writes one number.
        check(unsafe { sys::cuDriverGetVersion(&mut version) }, "ask for the version")?;
        let version = (version / 1000, version % 1000 / 10);
        if version < OLDEST {
            let message = format!(
                "the NVIDIA driver is for CUDA {}.{}, {}.{} is needed",
                version.0, version.1, OLDEST.0, OLDEST.1
            );
            return Err(Error::new(Kind::Device, message).help("update the driver to version 525 or later"));
        }
        Ok(Driver { version })
    }

    pub fn cards(&self) -> Result<Vec<CardInfo>> {
        let mut count = 0;
        // SAFETY: writes one number.
        check(unsafe { sys::cuDeviceGetCount(&mut count) }, "count the cards")?;
        (0..count).map(|i| self.card(i)).collect()
    }

    /// The driver's handle of a card.
    pub fn handle(&self, index: c_int) -> Result<c_int> {
        let mut device = 0;
        // SAFETY: writes one number.
        check(unsafe { sys::cuDeviceGet(&mut device, index) }, "find the card")?;
        Ok(device)
    }

    fn card(&self, index: c_int) -> Result<CardInfo> {
        let device = self.handle(index)?;
        let mut name = [0 as c_char; 256];
        // SAFETY: at most so many bytes are written, a zero among them.
        check(unsafe { sys::cuDeviceGetName(name.as_mut_ptr(), name.len() as c_int - 1, device) }, "name the card")?;
        let mut memory = 0;
        // SAFETY: writes one number.
        check(unsafe { sys::cuDeviceTotalMem_v2(&mut memory, device) }, "measure the card's memory")?;
        let attribute = |which: Attribute| {
            let mut value = 0;
            // SAFETY: writes one number.
            check(unsafe { sys::cuDeviceGetAttribute(&mut value, which, device) }, "describe the card")?;
            Ok::<_, Error>(value)
        };
        // SAFETY: the last byte is still zero.
        let name = unsafe { CStr::from_ptr(name.as_ptr()) }.to_string_lossy().into_owned();
        Ok(CardInfo {
            index: index as usize,
            name,
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?.max(0) as usize,
            memory,
        })
    }
}

/// Turns a status into an error that says what was attempted.
pub fn check(code: CUresult, what: &str) -> Result<()> {
    if code == CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut text = std::ptr::null();
    // SAFETY: writes a pointer to a constant, or null for a status that it does not know.
    let known = unsafe { sys::cuGetErrorString(code, &mut text) } == CUresult::CUDA_SUCCESS && !text.is_null();
    // SAFETY: such constants end in a zero.
    let text = if known { unsafe { CStr::from_ptr(text) }.to_string_lossy() } else { "unknown error".into() };
    let error = Error::new(Kind::Device, format!("the NVIDIA driver cannot {what}: {text} (error {})", code as u32));
    Err(match code {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => error.help("close what else uses the card, or `--device cpu`"),
        CUresult::CUDA_ERROR_STUB_LIBRARY => {
            error.help("a toolkit's stub stands in for the driver: take its folder off LD_LIBRARY_PATH")
        }
        CUresult::CUDA_ERROR_NO_DEVICE => error.help("no card is visible: see `nvidia-smi` and CUDA_VISIBLE_DEVICES"),
        CUresult::CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => {
            error.help("the driver in the kernel and libcuda are of two versions: reboot, or reinstall the driver")
        }
        _ => error,
    })
}

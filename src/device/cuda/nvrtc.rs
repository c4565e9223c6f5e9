//! NVRTC, NVIDIA's compiler as a library: kernels to CUBIN for one kind of card. It comes with the toolkit, and alone as a Python wheel: in
//! folders that no loader knows, which is why it is opened by its path, and not by cudarc.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

use super::library::{self, Library};
use super::source::Unit;
use crate::error::{Error, Kind, Result};

type Program = *mut c_void;

pub struct Nvrtc {
    /// Major and minor.
    pub version: (i32, i32),
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    log: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    cubin_size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    cubin: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    archs_count: unsafe extern "C" fn(*mut c_int) -> c_int,
    archs: unsafe extern "C" fn(*mut c_int) -> c_int,
    library: Library,
    /// Looked up by name while compiling.
    _builtins: Option<Library>,
}

/// A program, and its end.
struct Compiling<'a>(&'a Nvrtc, Program);

impl Drop for Compiling<'_> {
    fn drop(&mut self) {
        // SAFETY: `create` made it, and nobody else destroys it.
        unsafe { (self.0.destroy)(&mut self.1) };
    }
}

/// The versions of CUDA whose NVRTC is looked for, the newest first.
const MAJORS: [i32; 2] = [13, 12];

/// What brings it.
const INSTALL: &str = "`pip install nvidia-cuda-nvrtc` (CUDA 13) or `pip install nvidia-cuda-nvrtc-cu12` brings it, as do NVIDIA's \
                       toolkit (CUDA_HOME) and conda's cuda-nvrtc; QUANT_NVRTC names a libnvrtc elsewhere";

impl Nvrtc {
    /// The newest that the driver can take the results of.
    ///
    /// Errors: none is found, or none for this driver (major and minor of its CUDA).
    pub fn find(driver: (i32, i32)) -> Result<Nvrtc> {
        let newer = std::cell::Cell::new(None);
        let open = |path: &Path| match Nvrtc::open(path)? {
            found if found.version.0 <= driver.0 => Ok(found),
            found => {
                newer.set(newer.get().or(Some(found.version)));
                Err(Error::new(Kind::Device, "it is for a newer driver"))
            }
        };
        let why = match library::first(candidates(), open) {
            Ok(found) => return Ok(found),
            Err(why) => why,
        };
        if let Some((major, minor)) = newer.get() {
            let message = format!("the driver is for CUDA {}.{}, NVRTC for CUDA {major}.{minor}", driver.0, driver.1);
            let advice = format!("update the driver, or `pip install nvidia-cuda-nvrtc-cu{}`", driver.0);
            return Err(Error::new(Kind::Device, message).help(advice));
        }
        let why = why.map_or_else(String::new, |why| format!(" ({why})"));
        Err(Error::new(Kind::Device, format!("NVRTC, which compiles the kernels, was not found{why}")).help(INSTALL))
    }

    pub fn open(path: &Path) -> Result<Nvrtc> {
        // A toolkit's folder has static ones too, and such for other drivers.
        let builtins = library::beside(path, "libnvrtc-builtins.so");
        let library = Library::open(path)?;
        // SAFETY: the types are those of nvrtc.h; the library lives as long as they do.
        let nvrtc = unsafe {
            Nvrtc {
                version: version(library.function("nvrtcVersion")?)?,
                create: library.function("nvrtcCreateProgram")?,
                destroy: library.function("nvrtcDestroyProgram")?,
                compile: library.function("nvrtcCompileProgram")?,
                log_size: library.function("nvrtcGetProgramLogSize")?,
                log: library.function("nvrtcGetProgramLog")?,
                cubin_size: library.function("nvrtcGetCUBINSize")?,
                cubin: library.function("nvrtcGetCUBIN")?,
                archs_count: library.function("nvrtcGetNumSupportedArchs")?,
                archs: library.function("nvrtcGetSupportedArchs")?,
                library,
                _builtins: builtins,
            }
        };
        Ok(nvrtc)
    }

    pub fn path(&self) -> &Path {
        &self.library.path
    }

    /// What to compile for a card of this compute capability: its own architecture, else the nearest below of the same generation.
    ///
    /// Errors: a card that this version does not know.
    pub fn arch(&self, (major, minor): (i32, i32)) -> Result<String> {
        let mut count = 0;
        // SAFETY: writes one number.
        unsafe { (self.archs_count)(&mut count) };
        let mut known = vec![0; usize::try_from(count).unwrap_or(0)];
        if !known.is_empty() {
            // SAFETY: `known` has as many as were announced.
            unsafe { (self.archs)(known.as_mut_ptr()) };
        }
        let own = major * 10 + minor;
        match known.into_iter().filter(|a| a / 10 == major && *a <= own).max() {
            // From Hopper on an architecture has instructions of its own.
            Some(arch) if arch == own && major >= 9 => Ok(format!("sm_{arch}a")),
            Some(arch) => Ok(format!("sm_{arch}")),
            None => Err(Error::new(
                Kind::Device,
                format!(
                    "NVRTC {}.{} does not know cards of compute capability {major}.{minor}",
                    self.version.0, self.version.1
                ),
            )
            .help("`pip install -U nvidia-cuda-nvrtc` brings the newest; it may ask for a newer driver")),
        }
    }

    /// Errors: what the compiler says.
    pub fn cubin(&self, unit: &Unit, arch: &str) -> Result<Vec<u8>> {
        let name = unit.name();
        let failed = |what: &str| Error::new(Kind::Device, format!("NVRTC cannot {what} {name} for {arch}"));
        let text = |s: String| CString::new(s).map_err(|_| failed("read"));
        let (source, file) = (text(unit.source())?, text(format!("{name}.cu"))?);
        let mut program = ptr::null_mut();
        // SAFETY: both texts end in a zero; there are no headers.
        if unsafe { (self.create)(&mut program, source.as_ptr(), file.as_ptr(), 0, ptr::null(), ptr::null()) } != 0 {
            return Err(failed("begin"));
        }
        let program = Compiling(self, program);
        let options: Vec<CString> = unit.options(arch).into_iter().map(text).collect::<Result<_>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        // SAFETY: as many options as are announced, each ending in a zero.
        if unsafe { (self.compile)(program.1, pointers.len() as c_int, pointers.as_ptr()) } != 0 {
            let log = self.bytes(&program, self.log_size, self.log).unwrap_or_default();
            let log = String::from_utf8_lossy(&log);
            return Err(failed(&format!("compile:\n{}\nof", log.trim_end_matches(['\0', '\n']))));
        }
        self.bytes(&program, self.cubin_size, self.cubin).filter(|b| !b.is_empty()).ok_or_else(|| failed("finish"))
    }

    fn bytes(
        &self,
        program: &Compiling<'_>,
        size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
        get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
    ) -> Option<Vec<u8>> {
        let mut n = 0;
        // SAFETY: the program lives; one number is written.
        (unsafe { size(program.1, &mut n) } == 0).then_some(())?;
        let mut out = vec![0u8; n];
        // SAFETY: `out` has the announced size.
        (unsafe { get(program.1, out.as_mut_ptr().cast()) } == 0).then_some(out)
    }
}

fn version(get: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int) -> Result<(i32, i32)> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: writes two numbers.
    match unsafe { get(&mut major, &mut minor) } {
        0 => Ok((major, minor)),
        code => Err(Error::new(Kind::Device, format!("NVRTC does not say its version (error {code})"))),
    }
}

/// Where it may be, the newest version first.
fn candidates() -> Vec<PathBuf> {
    let names = |major: i32| {
        [format!("libnvrtc.so.{major}"), format!("nvrtc64_{major}0_0.dll"), format!("nvrtc64_{major}_0.dll")]
    };
    library::candidates("QUANT_NVRTC", MAJORS.into_iter().flat_map(names))
}

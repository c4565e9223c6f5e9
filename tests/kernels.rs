//! The kernels without a card: the host's C++ compiler builds the very sources that are embedded for NVRTC, behind a header that knows
//! CUDA's language, and every check of `quant selftest` is held to the CPU's answers.

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use quant::device::cuda::selftest;
use quant::device::cuda::source::{self, Unit};
use quant::device::cuda::{Arg, Runner, Shape};
use quant::error::{Error, Kind, Result};

type Launch = unsafe extern "C" fn(*const c_char, *const c_uint, *const *mut c_void, c_int) -> c_int;

/// The host in a card's place. Its library runs one kernel at a time.
struct Host {
    launch: libloading::Symbol<'static, Launch>,
    lock: Mutex<()>,
    /// Threads and blocks run in the opposite order: what only works in one has no barrier where it needs one.
    reverse: bool,
    blocks: Mutex<BTreeMap<u64, Vec<u8>>>,
}

/// Around every allocation, to see writes beyond it.
const GUARD: usize = 64;
const GUARD_BYTE: u8 = 0xa5;

impl Runner for Host {
    fn allocate(&self, bytes: usize) -> Result<u64> {
        // What nobody wrote is no number.
        let mut block = vec![0xff; bytes + 2 * GUARD + 16];
        let skip = block.as_ptr().align_offset(16);
        block[..skip + GUARD].fill(GUARD_BYTE);
        let end = skip + GUARD + bytes;
        block[end..].fill(GUARD_BYTE);
        let at = block[skip + GUARD..].as_mut_ptr() as u64;
        self.blocks.lock().unwrap().insert(at, block);
        Ok(at)
    }

    fn free(&self, at: u64) {
        let block = self.blocks.lock().unwrap().remove(&at).expect("freed once");
        let skip = at as usize - block.as_ptr() as usize;
        let intact = block[..skip].iter().chain(&block[block.len() - GUARD..]).all(|b| *b == GUARD_BYTE);
        assert!(intact || std::thread::panicking(), "a kernel wrote beyond its memory");
    }

    fn upload(&self, at: u64, bytes: &[u8]) -> Result<()> {
        // SAFETY: `Buffer` passes addresses and sizes of its own.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        Ok(())
    }

    fn download(&self, at: u64, bytes: &mut [u8]) -> Result<()> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(at as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<()> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    unsafe fn launch(&self, unit: &Unit, kernel: &str, shape: Shape, args: &[Arg]) -> Result<()> {
        let name = CString::new(format!("{}/{kernel}", unit.name())).unwrap();
        let pointers: Vec<*mut c_void> = args.iter().map(Arg::pointer).collect();
        let sizes = [shape.blocks, shape.threads].concat();
        let _one = self.lock.lock().unwrap();
        // SAFETY: the caller's word; the library checks the name and copies the arguments.
        let answer =
            unsafe { (self.launch)(name.as_ptr(), sizes.as_ptr(), pointers.as_ptr(), c_int::from(self.reverse)) };
        let refuse = |why: &str| Err(Error::new(Kind::Device, format!("{}: {why}", name.to_string_lossy())));
        match answer {
            0 => Ok(()),
            1 => refuse("some threads wait at a barrier that others never reach"),
            _ => refuse("the library has no such kernel"),
        }
    }

    fn finish(&self) -> Result<()> {
        Ok(())
    }
}

fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let known = named.into_iter().chain(["c++", "g++", "clang++"].map(str::to_owned));
    known.into_iter().find(|c| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// Everything as one C++ file: a namespace for each unit.
fn program() -> String {
    let host = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host/cuda.h")).unwrap();
    let mut text = format!("{host}\n{}\n{}\n", source::prelude(), source::grid_files());
    let mut table = String::new();
    for (n, unit) in source::units().unwrap().iter().enumerate() {
        let (define, undo) = match &unit.define {
            Some((name, value)) => (format!("#define {name} {value}\n"), format!("#undef {name}\n")),
            None => Default::default(),
        };
        text += &format!("{define}namespace unit{n} {{\n{}\n}}\n{undo}", unit.body());
        for kernel in unit.kernels() {
            table += &format!(
                "    if (!strcmp(name, \"{}/{kernel}\")) return !host::launch(unit{n}::{kernel}, shape, args, reverse);\n",
                unit.name()
            );
        }
    }
    format!(
        "{text}\nextern \"C\" int quant_launch(const char *name, const unsigned *shape, void **args, int reverse) {{\n{table}    return 2;\n}}\n"
    )
}

/// The library of this program, built once for each of its versions.
fn build(compiler: &str, folder: &Path) -> PathBuf {
    let text = program();
    let key = blake3::hash(format!("{compiler}\n{text}").as_bytes()).to_hex();
    let library = folder.join(format!("kernels-{}.so", &key[..16]));
    if library.exists() {
        return library;
    }
    let file = folder.join(format!("kernels-{}.cpp", &key[..16]));
    let half_built = folder.join(format!("kernels-{}.{}", &key[..16], std::process::id()));
    std::fs::write(&file, text).unwrap();
    let flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-fno-strict-aliasing"];
    let warnings = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-function", "-Wno-unused-parameter"];
    let out = Command::new(compiler).args(flags).args(warnings).arg("-o").arg(&half_built).arg(&file).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{compiler} does not compile the kernels:\n{}", &said[..said.len().min(6000)]);
    assert!(!said.contains("warning"), "{said}");
    std::fs::rename(&half_built, &library).unwrap();
    library
}

fn host(reverse: bool) -> Option<Host> {
    let compiler = compiler()?;
    let library = build(&compiler, Path::new(env!("CARGO_TARGET_TMPDIR")));
    // SAFETY: the library has no initializers but those of C++'s own containers.
    let library = Box::leak(Box::new(unsafe { libloading::Library::new(library) }.unwrap()));
    // SAFETY: `program` defines it so.
    let launch = unsafe { library.get(b"quant_launch\0") }.unwrap();
    Some(Host { launch, lock: Mutex::new(()), reverse, blocks: Mutex::default() })
}

#[test]
fn kernels_give_the_cpu_s_answers() {
    for reverse in [false, true] {
        let Some(host) = host(reverse) else {
            eprintln!("SKIPPED: no C++ compiler (c++, g++, clang++): kernels were not compared with the CPU");
            return;
        };
        let (mut wrong, mut numbers) = (Vec::new(), 0);
        for check in selftest::checks() {
            let name = format!("{} {} [{}] {}", check.op, check.of, check.shape, check.dtype);
            let start = std::time::Instant::now();
            match check.run(&host) {
                Ok(found) if check.passes(&found) => numbers += found.numbers,
                Ok(found) => wrong.push(format!("{name}: {found:?}, {:e} is allowed", check.allowed)),
                Err(e) => wrong.push(format!("{name}: {e}")),
            }
            if std::env::var_os("QUANT_KERNEL_TIMES").is_some() {
                eprintln!("{:8.3} {name}", start.elapsed().as_secs_f64());
            }
        }
        assert!(
            wrong.is_empty(),
            "{} checks, threads {}:\n{}",
            wrong.len(),
            if reverse { "reversed" } else { "in order" },
            wrong.join("\n")
        );
        assert!(numbers > 100_000, "{numbers}");
    }
}

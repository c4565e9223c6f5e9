//! The kernels without a card: the host's C++ compiler builds the very sources that are embedded for NVRTC, behind a header that knows
//! CUDA's language, and every check of `quant selftest` is held to the CPU's answers.

mod common;

use std::collections::BTreeMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use common::card::{FakeCard, build, compiler, program};
use quant::device::Precision;
use quant::device::cuda::selftest;
use quant::device::cuda::source::Unit;
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
    fn room(&self) -> Result<usize> {
        Ok(usize::MAX)
    }

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

fn host(reverse: bool) -> Option<Host> {
    let compiler = compiler()?;
    let library = build(&compiler, Path::new(env!("CARGO_TARGET_TMPDIR")), &program());
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
        for check in selftest::checks(Precision::Exact) {
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

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Everything between `quant` and a card: looking for the driver and the compiler, the cache, modules, arguments, memory.
#[cfg(target_os = "linux")]
#[test]
fn a_card_that_is_the_host_passes_the_selftest() {
    let Some(card) = FakeCard::new() else {
        return eprintln!("SKIPPED: no C++ compiler: no card was made of the host");
    };
    let devices = card.quant(&["devices", "--json"], "");
    let devices: serde_json::Value = serde_json::from_slice(&devices.stdout).unwrap();
    assert_eq!(
        (&devices["cuda"]["cards"][0]["name"], &devices["cuda"]["nvrtc"]["version"]),
        (&"the host".into(), &"13.0".into())
    );
    let first = card.quant(&["selftest", "--device", "cuda:0", "--json"], "");
    let report: serde_json::Value =
        serde_json::from_slice(&first.stdout).unwrap_or_else(|_| panic!("{}", text(&first.stderr)));
    let checks = report["checks"].as_array().unwrap();
    assert!(first.status.success() && report["failed"] == 0 && checks.len() > 100, "{report:#}");
    // Compiled kernels are there for the next run, which asks NVRTC for nothing.
    assert!(std::fs::read_dir(card.folder.path().join("cache/cubin")).unwrap().count() > 50);
    let speeds = card.quant(&["selftest", "--only", "add", "--bench", "--small", "--json"], "");
    let report: serde_json::Value = serde_json::from_slice(&speeds.stdout).unwrap();
    assert!(report["speeds"].as_array().is_some_and(|s| s.len() > 60), "{report:#}");
    let again = card.quant(&["selftest", "--only", "decode"], "nvrtcCompileProgram:6");
    assert!(again.status.success(), "{}", text(&again.stderr));
}

/// Whatever the driver refuses ends as one error that says what was attempted.
#[cfg(target_os = "linux")]
#[test]
fn a_card_that_fails_is_an_error() {
    let Some(card) = FakeCard::new() else {
        return eprintln!("SKIPPED: no C++ compiler: no card was made of the host");
    };
    for (fails, says) in [
        ("cuInit:100", "cannot start"),
        ("cuDriverGetVersion:1", "ask for the version"),
        ("cuDeviceGetCount:100", "count the cards"),
        ("cuDeviceGet:101", "find the card"),
        ("cuDeviceGetAttribute:1", "describe the card"),
        ("cuDevicePrimaryCtxRetain:2", "open the card"),
        ("cuMemAlloc_v2:2", "allocate memory: out of memory"),
        ("cuMemcpyHtoD_v2:700", "cannot upload"),
        ("cuMemcpyDtoH_v2:700", "cannot download"),
        ("cuModuleLoadData:209", "cannot load moments"),
        ("cuModuleGetFunction:500", "find moments_f32 in moments"),
        ("cuLaunchKernel:719", "launch moments_f32 of moments"),
        ("nvrtcVersion:1", "does not say its version"),
        ("nvrtcGetNumSupportedArchs:1", "does not know cards of compute capability 9.0"),
        ("nvrtcCreateProgram:1", "cannot begin moments"),
        ("nvrtcGetCUBIN:1", "cannot finish moments"),
    ] {
        let _ = std::fs::remove_dir_all(card.folder.path().join("cache"));
        let out = card.quant(&["selftest", "--only", "moments"], fails);
        let said = text(&out.stdout) + &text(&out.stderr);
        assert!(out.status.code() == Some(1) && said.contains(says), "{fails}: {said}");
        card.quant(&["devices"], fails);
    }
    let _ = std::fs::remove_dir_all(card.folder.path().join("cache"));
    let out = card.quant(&["selftest", "--only", "moments"], "nvrtcCompileProgram:6");
    assert!(text(&out.stdout).contains("no log"), "what the compiler says is passed on: {}", text(&out.stdout));
    let out = card.quant(&["selftest", "--device", "cuda:3"], "");
    assert!(text(&out.stderr).contains("there is no card 3"), "{}", text(&out.stderr));
}

/// NVIDIA's libraries beside the kernels: found, held to the kernels, refused, absent.
#[cfg(target_os = "linux")]
#[test]
fn products_by_a_library_are_held_to_the_kernels() {
    let Some(card) = FakeCard::new() else {
        return eprintln!("SKIPPED: no C++ compiler: no card was made of the host");
    };
    let ops = ["linear", "gram", "cholesky"];
    for precision in ["f32", "tf32", "bf16"] {
        let mut count = 0;
        for op in ops {
            let args = ["selftest", "--only", op, "--precision", precision, "--json"];
            let out = card.quant_fast(&args, "");
            let report: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
            assert_eq!(report["failed"], 0, "{report:#}");
            let checks = report["checks"].as_array().unwrap().iter().filter(|c| c["of"] == precision);
            count += checks.clone().count();
            // Nothing but 1 x 1 comes out the same to the bit: it was the library.
            let differ: Vec<_> = checks.map(|c| c["differ"].as_u64().unwrap()).collect();
            assert!(op == "cholesky" || differ.iter().filter(|n| **n > 0).count() >= 2, "{op} {precision}: {differ:?}");
        }
        assert_eq!(count, 10);
    }
    // Not asked for, it is used where it is; asked for, it must be.
    let said = |out: &std::process::Output| text(&out.stdout) + &text(&out.stderr);
    let by_itself = said(&card.quant_fast(&["selftest", "--only", "linear"], ""));
    assert!(by_itself.contains("tf32") && by_itself.contains("0 failed"), "{by_itself}");
    assert!(!said(&card.quant(&["selftest", "--only", "linear"], "")).contains("tf32"));
    assert!(!said(&card.quant_fast(&["selftest", "--only", "linear"], "cublasCreate_v2:3")).contains("tf32"));
    for (args, fails, says) in [
        (&["--precision", "tf32"][..], "cublasCreate_v2:3", "cuBLAS, which multiplies so, cannot be used"),
        (&[][..], "cublasGemmEx:13", "cuBLAS cannot multiply 3 x 8 by 8 x 1: a failure that was asked for (error 13)"),
        (&["--precision", "double"][..], "", "\"double\" is no precision"),
    ] {
        let out = card.quant_fast(&[&["selftest", "--only", "linear"], args].concat(), fails);
        assert!(!out.status.success() && said(&out).contains(says), "{}", said(&out));
    }
    let out = said(&card.quant_fast(&["selftest", "--only", "cholesky"], "cusolverDnDpotrf:6"));
    assert!(out.contains("cuSOLVER cannot factor a matrix of 65 columns (error 6 of cusolverStatus_t)"), "{out}");
    let out = said(&card.quant(&["selftest", "--precision", "tf32"], ""));
    assert!(out.contains("pip install nvidia-cublas"), "{out}");
}

/// Libraries that are no driver, in its place.
#[cfg(target_os = "linux")]
#[test]
fn a_broken_driver_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("libcuda.so.1");
    let run = |args: &[&str]| {
        let out = Command::new(env!("CARGO_BIN_EXE_quant"))
            .args(args)
            .env("LD_LIBRARY_PATH", folder.path())
            .output()
            .unwrap();
        let said = text(&out.stdout) + &text(&out.stderr);
        assert!(!said.contains("panicked"), "{said}");
        (out.status.code(), said)
    };
    let mut wrong: Vec<(&str, Vec<u8>)> = vec![("empty", Vec::new()), ("garbage", b"\x7fELF garbage".repeat(100))];
    // A library that is whole and has nothing that is looked for.
    let other =
        ["/lib/x86_64-linux-gnu/libz.so.1", "/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6"];
    wrong.extend(other.into_iter().find_map(|p| std::fs::read(p).ok()).map(|bytes| ("another library", bytes)));
    for (what, bytes) in wrong {
        std::fs::write(&place, bytes).unwrap();
        for args in [&["selftest"][..], &["devices", "--json"], &["selftest", "--device", "auto", "--only", "decode"]] {
            let (code, said) = run(args);
            let refused = args == ["selftest"];
            assert_eq!(code, Some(i32::from(refused)), "{what}: {said}");
            let reason = ["no NVIDIA driver was found", "has no cuInit", "a card needs NVIDIA's driver"];
            assert!(args.contains(&"auto") || reason.iter().any(|r| said.contains(r)), "{what}: {said}");
        }
    }
}

/// The bytes that a card writes are the CPU's: encoders and the column solver.
#[cfg(target_os = "linux")]
#[test]
fn conversions_on_a_card_give_the_same_files() {
    let Some(card) = FakeCard::new() else {
        return eprintln!("SKIPPED: no C++ compiler: no card was made of the host");
    };
    // Every lane of every warp is a fiber: a large model would take minutes.
    let model = common::model::model(&common::model::Shape { layers: 1, inter: 256, ..common::model::DENSE });
    let dir = tempfile::tempdir().unwrap();
    let stats = common::statistics(dir.path(), &model);
    let plain = "q4_k_m,q3_k_m,q5_0,q4_0,iq4_xs,q2_k,q6_k,q8_0";
    let solved = ["--stats", stats.to_str().unwrap(), "--method"];
    let by = |method: &'static str| [&solved[..], &[method]].concat();
    for (name, to, more) in [
        ("plain", plain, vec![]),
        ("solved", "gptq", by("awq+gptq")),
        ("cut", "awq,w4a16", by("awq")),
        ("free", "mlx-4bit", by("gptq")),
        ("floats", "nvfp4a16,fp8", by("gptq")),
        ("blocks", "q4_k_m,q4_0", by("gptq")),
    ] {
        let outputs = ["cpu", "cuda:0"].map(|device| {
            let out = dir.path().join(format!("{name}-{}", &device[..3]));
            let args = ["convert", model.path().to_str().unwrap(), "--to", to, "--quiet", "--device", device, "-o"];
            let made = card.quant(&[&args[..], &[out.to_str().unwrap()], &more[..]].concat(), "");
            assert!(made.status.success(), "{}", text(&made.stderr));
            files(&out)
        });
        assert!(!outputs[0].is_empty() && outputs[0].keys().eq(outputs[1].keys()));
        for (file, bytes) in &outputs[0] {
            assert!(outputs[1][file] == *bytes, "{} differs", file.display());
        }
    }
    // It was the card that did it.
    let out = dir.path().join("none.gguf");
    let args = [
        "convert",
        model.path().to_str().unwrap(),
        "--to",
        "q4_k_m",
        "--quiet",
        "--device",
        "cuda",
        "-o",
        out.to_str().unwrap(),
    ];
    let failed = card.quant(&args, "cuLaunchKernel:719");
    assert!(failed.status.code() == Some(1) && !out.exists(), "{}", text(&failed.stderr));
}

/// Every file below a folder, by its place there.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut out = BTreeMap::new();
    let mut open = vec![folder.to_owned()];
    while let Some(next) = open.pop() {
        for path in std::fs::read_dir(next).unwrap().map(|e| e.unwrap().path()) {
            if path.is_dir() {
                open.push(path);
            } else {
                out.insert(path.strip_prefix(folder).unwrap().to_owned(), std::fs::read(&path).unwrap());
            }
        }
    }
    out
}

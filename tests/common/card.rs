//! A card that is the host: the kernels as C++, behind a driver and libraries that run them there.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Mutex;

use quant::device::cuda::source;

pub fn compiler() -> Option<String> {
    let named = std::env::var("CXX").ok();
    let known = named.into_iter().chain(["c++", "g++", "clang++"].map(str::to_owned));
    known.into_iter().find(|c| Command::new(c).arg("--version").output().is_ok_and(|o| o.status.success()))
}

/// Everything as one C++ file: a namespace for each unit.
pub fn program() -> String {
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
pub fn build(compiler: &str, folder: &Path, text: &str) -> PathBuf {
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let key = blake3::hash(format!("{compiler}\n{text}").as_bytes()).to_hex();
    let library = folder.join(format!("kernels-{}.so", &key[..16]));
    if library.exists() {
        return library;
    }
    let half_built =
        folder.join(format!("kernels-{}.{}.{:?}", &key[..16], std::process::id(), std::thread::current().id()));
    let file = half_built.with_extension("cpp");
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

/// A driver, an NVRTC, a cuBLAS and a cuSOLVER that run on the host, where the loader finds them; `quant` in their company.
pub struct FakeCard {
    pub folder: tempfile::TempDir,
    library: PathBuf,
}

impl FakeCard {
    pub fn new() -> Option<FakeCard> {
        let compiler = compiler()?;
        let driver =
            std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/host/driver.h")).unwrap();
        let library = build(&compiler, Path::new(env!("CARGO_TARGET_TMPDIR")), &(program() + &driver));
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(&library, folder.path().join("libcuda.so.1")).unwrap();
        Some(FakeCard { folder, library })
    }

    /// `quant`, for which one of the driver's functions fails; see `kernels/host/driver.h`.
    pub fn quant(&self, args: &[&str], fails: &str) -> Output {
        self.quant_with(args, &[("HOST_CARD_FAILS", fails)])
    }

    /// The same beside NVIDIA's libraries.
    pub fn quant_fast(&self, args: &[&str], fails: &str) -> Output {
        let library = self.library.to_str().unwrap();
        self.quant_with(args, &[("HOST_CARD_FAILS", fails), ("QUANT_CUBLAS", library), ("QUANT_CUSOLVER", library)])
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_quant"));
        command.args(args).env("LD_LIBRARY_PATH", self.folder.path()).env("QUANT_NVRTC", &self.library);
        // Whatever this machine has is not asked.
        command.env("QUANT_CUBLAS", "/none").env("QUANT_CUSOLVER", "/none");
        command.env("QUANT_CACHE", self.folder.path().join("cache")).env("NO_COLOR", "1");
        command
    }

    pub fn quant_with(&self, args: &[&str], settings: &[(&str, &str)]) -> Output {
        let out = self.command(args).envs(settings.iter().copied()).output().unwrap();
        let stderr = String::from_utf8_lossy(&out.stderr);
        assert!(
            matches!(out.status.code(), Some(0..=2)) && !stderr.contains("panicked"),
            "{args:?} {settings:?}: {stderr}"
        );
        out
    }
}

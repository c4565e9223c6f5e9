#!/usr/bin/env python3
"""Compiles every kernel for every kind of card with the real NVRTC, which needs no card: the sources and options are those that
`quant` would give it, printed by `quant kernels`. A kernel whose registers do not suffice, so that some lie in memory, is an error.
NVRTC comes from PyPI, pinned, into $QUANT_CI_CACHE (default ~/.cache/quant-ci).

    QUANT_BIN=target/release/quant tests/interop/cubin.py [sm_80 ...]

Exit status 77: NVRTC cannot be had here, and stderr says why."""
import ctypes
import hashlib
import json
import os
import platform
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

# The oldest of CUDA 13 and the newest of CUDA 12: what compiles with both does so with those between.
PACKAGES = ["nvidia-cuda-nvrtc==13.0.88", "nvidia-cuda-nvrtc-cu12==12.9.86"]
ARCHS = ["sm_80", "sm_86", "sm_89", "sm_90a", "sm_100a", "sm_120a"]


def cannot(reason):
    print(f"skipped: {reason}", file=sys.stderr)
    raise SystemExit(77)


def folder_of(package):
    """The folder with the libraries of a package."""
    key = hashlib.sha256(f"{package} {platform.machine()}".encode()).hexdigest()[:12]
    cache = Path(os.environ.get("QUANT_CI_CACHE") or Path.home() / ".cache" / "quant-ci")
    folder = cache / f"nvrtc-{key}"
    if not (folder / "ready").exists():
        command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--no-deps",
                   "--only-binary=:all:", "--target", folder, "--upgrade", package]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            cannot(f"`pip install {package}` failed\n{done.stderr[-1500:]}")
        (folder / "ready").touch()
    return folder


class Nvrtc:
    def __init__(self, package):
        found = [p for p in folder_of(package).glob("nvidia/*/lib/libnvrtc*.so*") if ".alt." not in p.name]
        for builtins in (p for p in found if "builtins" in p.name):
            ctypes.CDLL(str(builtins), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(str(next(p for p in found if "builtins" not in p.name)))
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.lib.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
        self.version = f"{major.value}.{minor.value}"

    def text(self, program, what):
        size = ctypes.c_size_t()
        getattr(self.lib, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        out = ctypes.create_string_buffer(max(size.value, 1))
        getattr(self.lib, f"nvrtcGet{what}")(program, out)
        return out.raw[: size.value]

    def compile(self, unit, arch):
        """What went wrong, how many bytes it came to, and the registers of each kernel."""
        program = ctypes.c_void_p()
        self.lib.nvrtcCreateProgram(ctypes.byref(program), unit["source"].encode(), unit["name"].encode(), 0, None, None)
        options = [o.encode() for o in [*unit["options"][arch], "--ptxas-options=-v"]]
        failed = self.lib.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        log = self.text(program, "ProgramLog").rstrip(b"\0\n ").decode(errors="replace")
        told = [line for line in log.splitlines() if line.startswith("ptxas")]
        log = "\n".join(line for line in log.splitlines() if not line.startswith("ptxas"))
        registers = [int(n) for n in re.findall(r"Used (\d+) registers", "\n".join(told))]
        spilled = sum(map(int, re.findall(r"(\d+) bytes spill", "\n".join(told))))
        cubin = b"" if failed else self.text(program, "CUBIN")
        self.lib.nvrtcDestroyProgram(ctypes.byref(program))
        wrong = log if failed or log else "" if cubin.startswith(b"\x7fELF") else "the result is no CUBIN"
        wrong = wrong or (f"{spilled} bytes of registers are spilled" if spilled else "")
        missing = [k for k in unit["kernels"] if k.encode() not in cubin]
        wrong = wrong or ("the compiler does not tell of its registers" if len(registers) < len(unit["kernels"]) else "")
        return wrong or (f"its entry points lack {missing}" if missing else ""), len(cubin), registers


def main():
    if platform.system() != "Linux":
        cannot("the pinned wheels are for Linux")
    archs = sys.argv[1:] or ARCHS
    quant = os.environ.get("QUANT_BIN", "target/release/quant")
    units = json.loads(subprocess.run([quant, "kernels", *archs], check=True, capture_output=True, text=True).stdout)["units"]
    failed = 0
    for nvrtc in map(Nvrtc, PACKAGES):
        for arch in archs:
            start = time.time()
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                results = list(pool.map(lambda unit: nvrtc.compile(unit, arch), units))
            wrong = [(unit["name"], what) for unit, (what, _, _) in zip(units, results) if what]
            size, most = sum(size for _, size, _ in results), max(max(r, default=0) for _, _, r in results)
            print(f"NVRTC {nvrtc.version:5} {arch:8} {len(units) - len(wrong)} of {len(units)} units, {size / 1e6:.1f} MB of CUBINs, "
                  f"at most {most} registers, {time.time() - start:.0f} s", flush=True)
            for name, what in wrong[:5]:
                print(f"  {name}: {what[:800]}")
            failed += len(wrong)
    return failed != 0


if __name__ == "__main__":
    sys.exit(main())

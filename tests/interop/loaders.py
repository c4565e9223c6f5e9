#!/usr/bin/env python3
"""Prints the Python that has the packages which own the Hugging Face formats: compressed-tensors and bitsandbytes with transformers,
gptqmodel, mlx-lm. Builds it on first use (about 4 minutes and 1.7 GB), CPU only.

torch's wheel for Linux is linked against CUDA libraries that no product on a CPU calls. It is installed without them; of the
two that run code while torch is imported the real ones are taken out of their wheels, the others are replaced by stubs with the
same names, symbols and symbol versions. Such an environment must not be used on a GPU.

The environment lies in $QUANT_CI_CACHE (default ~/.cache/quant-ci), or is what $QUANT_LOADERS names: a Python that has all
packages already. Exit status 77: it cannot be built here, and stderr says what is missing.
"""
import collections
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

TORCH = "torch==2.11.0"
CALLED_AT_IMPORT = {"nvidia-cuda-runtime==13.0.88": "libcudart.so.13", "nvidia-cuda-cupti==13.0.85": "libcupti.so.13"}
FIRST = ["setuptools==81.0.0", "wheel==0.45.1", "numpy==2.4.6", "ml_dtypes==0.6.0", "safetensors==0.8.0",
         "tokenizers==0.23.2", "transformers==5.17.0"]
WITH_TORCH = ["compressed-tensors==0.20.0", "accelerate==1.15.0", "mlx==0.32.4", "mlx-cpu==0.32.4", "mlx-lm==0.32.2",
              "threadpoolctl==3.8.0", "Device-SMI==0.5.7", "protobuf==7.36.2", "pillow==13.0.0", "PyPcre==0.6.4",
              "TokeNicer==0.0.14", "LogBar==0.4.15", "dill==0.4.1", "requests==2.34.2", "torchao==0.18.0", "Defuser==0.0.28",
              "bitsandbytes==0.50.2"]
ALONE = "gptqmodel==7.7.0"  # asks for a newer torch than it needs here
TRIAL = "import bitsandbytes, compressed_tensors, gptqmodel, mlx_lm, torch; x = torch.ones(8, 64); assert (x @ x.T == 64).all()"
VERSION = (3, 11)  # which the pinned wheels are for


def cannot(reason):
    print(f"skipped: {reason}", file=sys.stderr)
    raise SystemExit(77)


class Builder:
    def __init__(self, folder, log):
        self.folder, self.log = folder, log
        self.python = folder / "bin" / "python"
        self.packages = folder / "lib" / f"python{VERSION[0]}.{VERSION[1]}" / "site-packages"

    def run(self, *command):
        with open(self.log, "ab") as out:
            if subprocess.run(command, stdout=out, stderr=out).returncode:
                tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])
                cannot(f"`{' '.join(map(str, command))[:200]}` failed (log: {self.log})\n{tail}")

    def pip(self, *arguments):
        self.run(self.python, "-m", "pip", "--disable-pip-version-check", *arguments)

    def build(self):
        self.run(sys.executable, "-m", "venv", self.folder)
        self.pip("install", *FIRST)
        self.pip("install", "--no-deps", TORCH)
        self.forget_cuda()
        libraries = self.packages / "torch" / "lib"
        for wheel, name in CALLED_AT_IMPORT.items():
            self.extract(wheel, name, libraries)
        self.stub(libraries)
        self.pip("install", *WITH_TORCH)
        self.pip("install", "--no-deps", "--no-build-isolation", ALONE)
        self.run(self.python, "-c", TRIAL)

    def forget_cuda(self):
        """Without these lines pip does not miss what is not there."""
        for path in self.packages.glob("torch-*.dist-info/METADATA"):
            kept = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True)
                    if not re.match(r"Requires-Dist: (cuda-|nvidia-|triton)", line)]
            path.write_text("".join(kept), encoding="utf-8")

    def extract(self, requirement, name, into):
        with tempfile.TemporaryDirectory() as work:
            self.pip("download", "--no-deps", "--only-binary=:all:", "-d", work, requirement)
            with zipfile.ZipFile(next(Path(work).glob("*.whl"))) as wheel:
                member = next(n for n in wheel.namelist() if n.endswith("/" + name))
                (into / name).write_bytes(wheel.read(member))

    def stub(self, libraries):
        present = {path.name for path in libraries.glob("*.so*")}
        wanted = Wanted()
        for path in libraries.glob("*.so*"):
            if path.name not in CALLED_AT_IMPORT.values():
                wanted.add(path)
        for name in CALLED_AT_IMPORT.values():
            wanted.unversioned -= set(tool("nm", "-D", "--defined-only", "-j", libraries / name).replace("@@", "@").split())
        spare = wanted.unversioned  # it does not matter which stub has them
        for name in sorted(wanted.libraries - present):
            if re.match(r"lib(cu|nccl|nv)", name):
                versions = {v: wanted.symbols[v] for v, owner in wanted.owner.items() if owner == name}
                self.compile(libraries / name, versions, spare)
                spare = set()

    def compile(self, path, versions, plain):
        names = sorted(set().union(plain, *versions.values()))
        # Whoever calls one after all is told of an error.
        source = "int answer(void) { return 100; }\n" + "".join(f'int {n}(void) __attribute__((alias("answer")));\n' for n in names)
        with tempfile.TemporaryDirectory() as work:
            work = Path(work)
            (work / "stub.c").write_text(source)
            (work / "stub.map").write_text("".join(
                f"{version} {{ global: {'; '.join(sorted(symbols)) or 'none'}; }};\n" for version, symbols in versions.items()))
            script = [f"-Wl,--version-script={work / 'stub.map'}"] if versions else []
            self.run("gcc", "-shared", "-fPIC", f"-Wl,-soname,{path.name}", "-o", path, work / "stub.c", *script)


def tool(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


class Wanted:
    """What shared libraries look for in others."""

    def __init__(self):
        self.libraries, self.unversioned = set(), set()
        self.owner, self.symbols = {}, collections.defaultdict(set)  # by version

    def add(self, path):
        self.libraries |= set(re.findall(r"\(NEEDED\).*\[(.+?)\]", tool("readelf", "-dW", path)))
        library = None
        for kind, name in re.findall(r"\b(File|Name): (\S+)", tool("readelf", "-VW", path)):
            if kind == "File":
                library = name
            elif library:
                self.owner[name] = library
        for kind, symbol in re.findall(r"^\s+([Uw]) (\S+)$", tool("nm", "-D", "--with-symbol-versions", path), re.M):
            name, _, version = symbol.replace("@@", "@").partition("@")
            if version:
                self.symbols[version].add(name)
            elif re.match(r"(cu[A-Zdbfs]|nccl|nvshmem|nvrtc|nvJit)", name):
                self.unversioned.add(name)


def main():
    if named := os.environ.get("QUANT_LOADERS"):
        print(named)
        return
    if sys.version_info[:2] != VERSION or platform.system() != "Linux" or platform.machine() != "x86_64":
        cannot(f"the loaders are pinned for Python {VERSION[0]}.{VERSION[1]} on Linux x86-64, this is {platform.python_version()} on {platform.platform()}")
    if missing := [t for t in ("gcc", "nm", "readelf") if not shutil.which(t)]:
        cannot(f"{', '.join(missing)} not found (Debian: apt-get install gcc binutils)")
    key = "\n".join([Path(__file__).read_text(), platform.python_version()])
    cache = Path(os.environ.get("QUANT_CI_CACHE") or Path.home() / ".cache" / "quant-ci")
    folder = cache / f"loaders-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    if not (folder / "ready").exists():
        cache.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(cache).free < 4e9:
            cannot(f"less than 4 GB free in {cache}")
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted build left
        log = cache / f"{folder.name}.log"
        log.unlink(missing_ok=True)
        print(f"building the loaders in {folder} (log: {log})", file=sys.stderr)
        Builder(folder, log).build()
        (folder / "ready").touch()
    print(folder / "bin" / "python")


if __name__ == "__main__":
    main()

#!/usr/bin/env python3
"""Prints the Python that has real llama.cpp in it, building it on first use (about 4 minutes on 2 cores).

    PY=$(python3 tests/interop/env.py) && "$PY" tests/interop/byte_identity.py

The environment lies in $QUANT_CI_CACHE (default ~/.cache/quant-ci), in a folder named after everything it
depends on: the pinned packages, the Python, and the processor, because llama.cpp is built for the one at hand.
Exit status 77: it cannot be built here, and stderr says what is missing.
"""
import hashlib
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
REQUIREMENTS = HERE / "requirements.txt"
BUILD = {"CMAKE_ARGS": "-DLLAVA_BUILD=OFF", "CMAKE_BUILD_PARALLEL_LEVEL": "2", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def cannot(reason):
    print(f"skipped: {reason}", file=sys.stderr)
    raise SystemExit(77)


def processor():
    """The instruction sets of this machine, or its name where the system does not list them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def run(command, log):
    with open(log, "ab") as out:
        done = subprocess.run(command, stdout=out, stderr=out, env={**os.environ, **BUILD})
    if done.returncode:
        tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        cannot(f"`{' '.join(map(str, command))}` failed (log: {log})\n{tail}")


def main():
    if sys.version_info < (3, 10):
        cannot(f"Python 3.10 or newer is needed, this is {platform.python_version()}")
    key = "\n".join([REQUIREMENTS.read_text(), platform.python_version(), platform.machine(), processor(), str(BUILD)])
    cache = Path(os.environ.get("QUANT_CI_CACHE") or Path.home() / ".cache" / "quant-ci")
    folder = cache / f"llama-{hashlib.sha256(key.encode()).hexdigest()[:12]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        if not any(shutil.which(c) for c in (os.environ.get("CXX", "c++"), "g++", "clang++")):
            cannot("llama.cpp is built from source and no C++ compiler was found; install one (Debian: apt-get install g++)")
        shutil.rmtree(folder, ignore_errors=True)  # what an interrupted build left
        cache.mkdir(parents=True, exist_ok=True)
        log = cache / f"{folder.name}.log"
        log.unlink(missing_ok=True)
        print(f"building llama.cpp in {folder} (log: {log})", file=sys.stderr)
        run([sys.executable, "-m", "venv", folder], log)
        run([python, "-m", "pip", "install", "-r", REQUIREMENTS], log)
        run([python, "-c", "import llama_cpp, gguf, numpy, tokenizers"], log)
        ready.touch()
    print(python)


if __name__ == "__main__":
    main()

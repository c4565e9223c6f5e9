#!/usr/bin/env python3
"""A benchmark, not a test: how memory and time of an evaluation grow.

    eval_scale.py --large [--dir DIR]         a llama of 8B shape (random weights) as Q4_K_M, 512 tokens: memory
    eval_scale.py --curve MODEL.gguf          512 ... 8192 tokens in windows of 512: seconds per token

--large needs 22 GB of disk in DIR while it makes the model. Memory is the process's: "resident" counts mapped pages of the
file, which the system takes back when it needs them, "anonymous" what quant allocated.
"""
import argparse
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

import engine
import synthetic
from common import Report, binary, convert, main, watch

LLAMA_8B = {"hidden": 4096, "inter": 14336, "layers": 32, "heads": 32, "kv_heads": 8, "head_dim": 128, "vocab": 128256}
GIB = 2**30


def measure(*arguments):
    return watch(subprocess.Popen([binary(), *map(str, arguments)], stdout=subprocess.DEVNULL).pid)


def tiled(seed, family, name, shape, spread):
    """The same noise again and again: random enough for a benchmark, and made in a moment."""
    noise = np.random.default_rng(len(name)).standard_normal(1 << 20, dtype=np.float32) * (spread or 0.1) + (spread is None)
    return np.resize(noise, shape)


def large(a):
    report = Report("8B shape", "file GiB", "tokens", "wall s", "tokens/s", "resident GiB", "anonymous GiB", "limit GiB")
    synthetic.tensor = tiled
    with tempfile.TemporaryDirectory(dir=a.dir) as work:
        work = Path(work)
        folder = synthetic.make(work / "model", "llama", LLAMA_8B, dtype="bf16")
        file = convert(folder, "q4_k_m", work / "q4_k_m.gguf")
        shutil.rmtree(folder)
        text = [option for path in engine.BUNDLED for option in ("--data", path)]
        run = measure("reference", file, "-o", work / "x.ref", "--quiet", "--protocol", "gptq-2048",
                                               "--context", 512, "--chunks", 1, *text)
        good = run.resident < 8 * GIB
        report.row("ok" if good else "FAIL", f"{file.stat().st_size / GIB:.2f}", 512, f"{run.wall:.1f}", f"{512 / run.wall:.1f}",
                   f"{run.resident / GIB:.2f}", f"{run.anonymous / GIB:.2f}", 8)
    return report.finish()


def curve(a):
    report = Report("cost by tokens", "tokens", "CPU s", "CPU ms a token", "anonymous MiB")
    text = [option for path in engine.BUNDLED for option in ("--data", path)]
    rates = []
    with tempfile.TemporaryDirectory() as work:
        for chunks in (1, 2, 4, 8, 16):
            run = measure("reference", a.curve, "-o", Path(work) / "x.ref", "--quiet", "--chunks", chunks, *text)
            rates.append(run.cpu / chunks / 512 * 1e3)
            # Tokenizing the text costs the same each time, so the first is the dearest.
            good = rates[-1] <= rates[0] * 1.1
            report.row("ok" if good else "FAIL", chunks * 512, f"{run.cpu:.1f}", f"{rates[-1]:.2f}", f"{run.anonymous / 2**20:.0f}")
    return report.finish()


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--large", action="store_true")
    what.add_argument("--curve", type=Path, metavar="MODEL.gguf")
    p.add_argument("--dir", metavar="DIR")
    a = p.parse_args()
    return large(a) if a.large else curve(a)


if __name__ == "__main__":
    main(run)

#!/usr/bin/env python3
"""A benchmark, not a test: collecting importance, `quant calibrate` against llama.cpp decoding the same tokens, alternately.

    calibrate_speed.py MODEL.gguf [--rows 16] [--length 512] [--runs 3] [--threads 2] [--logits all|last] [--gram]

llama.cpp decodes every sequence on its own and computes the logits of all its tokens, as its imatrix tool does (--logits last
spares it that), in a forked child, so that Python's start does not count; adding up squares, which the tool does on one thread
between the products, is not counted at all. quant's time is the whole command: reading and tokenizing the text, statistics,
writing the file. On a machine that does other work too, compare CPU seconds.
"""
import argparse
import os
import statistics
import subprocess
import tempfile
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import engine
import eval_speed
from calibrate import about
from common import Report, binary, main, quant, watch


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("model", type=Path, help="an F16 or F32 GGUF")
    p.add_argument("--rows", type=int, default=16)
    p.add_argument("--length", type=int, default=eval_speed.CONTEXT)
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--logits", choices=("all", "last"), default="all")
    p.add_argument("--gram", action="store_true")
    a = p.parse_args()
    eval_speed.CONTEXT = a.length
    report = Report("calibration speed", "tokens", "tokens/s quant", "tokens/s llama.cpp", "ratio", "CPU s quant",
                    "CPU s llama.cpp", "ratio of CPU s", "at least", "MiB quant", "MiB llama.cpp")
    print(f"{a.model.name}, {a.threads} threads, {os.cpu_count()} cores, {a.runs} runs, load {os.getloadavg()[0]:.1f} before")
    with tempfile.TemporaryDirectory() as work:
        stats = Path(work) / "stats.safetensors"
        command = ["calibrate", a.model, *(x for path in engine.BUNDLED for x in ("--data", path)), "--rows", a.rows,
                   "--length", a.length, "--pack", "-o", stats, "--quiet", "--threads", a.threads, *["--gram"] * a.gram]
        quant(*command, "--keep-tokens")
        sequences = about(stats)["runs"][0]["kept"]
        windows = [(tokens, 0 if a.logits == "all" else len(tokens) - 1, None) for tokens in sequences]
        tokens, runs = sum(map(len, sequences)), []
        for _ in range(a.runs):
            process = subprocess.Popen([binary(), *map(str, command)], stdout=subprocess.DEVNULL)
            runs.append((watch(process.pid), eval_speed.run_llama(a.model, windows, a.threads)))
        figures = lambda name: [statistics.median(getattr(r[side], name) for r in runs) for side in (0, 1)]
        (wall, wall_llama), (cpu, cpu_llama), memory = figures("wall"), figures("cpu"), figures("anonymous")
        bar = 1.2
        report.row("ok" if cpu_llama / cpu >= bar else "FAIL", tokens, f"{tokens / wall:.0f}", f"{tokens / wall_llama:.0f}",
                   f"{wall_llama / wall:.2f}", f"{cpu:.1f}", f"{cpu_llama:.1f}", f"{cpu_llama / cpu:.2f}", bar,
                   *(f"{m / 2**20:.0f}" for m in memory))
    print(f"load {os.getloadavg()[0]:.1f} after; llama.cpp is the build that tests/interop/env.py makes")
    return report.finish()


if __name__ == "__main__":
    main(run)

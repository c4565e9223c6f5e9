#!/usr/bin/env python3
"""A benchmark, not a test: `quant convert` against llama_model_quantize, both with 2 threads, alternately on one machine.

    speed.py [--model F16.gguf] [--presets q4_k_m,q8_0] [--runs 3] [--threads 2]

Medians over the runs. CPU seconds are user + system of the process; llama.cpp runs in a forked child, so that Python's
start and imports do not count. Wall seconds of quant include its fsync, which llama.cpp does not do. "anonymous" is the
highest RssAnon of quant seen (polled): what it allocates; mapped files come and go with the page cache. Without a model,
a llama of 483 M random weights is made first. A missed bar is a FAIL row.
"""
import argparse
import filecmp
import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import peer
import synthetic
from common import QuantError, Report, binary, convert, main, watch

SIZE = {"hidden": 2048, "inter": 5632, "layers": 8, "heads": 32, "kv_heads": 4, "head_dim": 64, "vocab": 32000}
CPU, WALL, ANONYMOUS = "cpu", "wall", 256 << 20
BARS = {  # preset -> (what is compared, at most this part of llama.cpp's)
    "q4_k_m": (CPU, 1 / 4), "q5_k_m": (CPU, 1 / 4), "q6_k": (CPU, 1 / 4), "q2_k": (CPU, 1 / 4), "iq4_xs": (CPU, 1 / 4),
    "q8_0": (WALL, 1 / 2), "q4_0": (WALL, 1 / 2),
}


def ours(model, preset, output, threads):
    """{cpu, wall, peak} of one `quant convert`."""
    command = [binary(), "convert", model, "--to", preset, "-o", output, "--threads", str(threads), "--quiet"]
    run = watch(subprocess.Popen(command, stdout=subprocess.DEVNULL).pid)
    return {CPU: run.cpu, WALL: run.wall, "peak": run.anonymous}


def theirs(model, preset, output, threads):
    """{cpu, wall} of llama.cpp; its child is the only one that ends meanwhile."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    peer.quantize(model, output, preset, threads=threads)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return {CPU: used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime, WALL: time.perf_counter() - start}


def compare(report, model, preset, a, work):
    pairs = []
    for i in range(a.runs):
        pairs.append((ours(model, preset, work / "ours.gguf", a.threads),
                      theirs(model, preset, work / "theirs.gguf", a.threads)))
        if i == 0:
            same = filecmp.cmp(work / "ours.gguf", work / "theirs.gguf", shallow=False)
        for name in ("ours.gguf", "theirs.gguf"):  # or the next run would wait for the disk to take these
            (work / name).unlink()
    median = {(who, what): statistics.median(p[who][what] for p in pairs) for who in (0, 1) for what in (CPU, WALL)}
    ratio = {what: median[0, what] / median[1, what] for what in (CPU, WALL)}
    peak = max(p[0]["peak"] for p in pairs)
    what, bar = BARS.get(preset, (CPU, float("inf")))
    good = same and ratio[what] <= bar and peak < ANONYMOUS
    report.row("ok" if good else "FAIL", preset, *(f"{median[who, w]:.2f}" for w in (CPU, WALL) for who in (0, 1)),
               f"{ratio[CPU]:.3f}", f"{ratio[WALL]:.3f}", f"{what} <= {bar:.2f}", f"{peak / 2**20:.1f}",
               "same bytes" if same else "OTHER BYTES")


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", type=Path, help="an F16 GGUF")
    p.add_argument("--presets", default=",".join(BARS))
    p.add_argument("--runs", type=int, default=3)
    p.add_argument("--threads", type=int, default=2)
    a = p.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        work, model = Path(temporary), a.model
        if not model:
            folder = synthetic.make(work / "llama-483m", "llama", SIZE, dtype="f16")
            model = convert(folder, "f16", work / "llama-483m-f16.gguf")
        with open(model, "rb") as f:  # both find it in memory
            while f.read(1 << 24):
                pass
        print(f"{model.name}, {model.stat().st_size / 1e6:.0f} MB, {a.threads} threads, {os.cpu_count()} cores, "
              f"{a.runs} runs, load {os.getloadavg()[0]:.1f} before")
        report = Report("speed", "preset", "CPU s quant", "CPU s llama.cpp", "wall s quant", "wall s llama.cpp",
                        "CPU ratio", "wall ratio", "bar", "anonymous MiB", "output")
        for preset in a.presets.split(","):
            try:
                compare(report, model, preset, a, work)
            except (QuantError, peer.PeerError) as error:
                report.row("FAIL", preset, *"-" * 8, error)
        print(f"load {os.getloadavg()[0]:.1f} after")
        return report.finish()


if __name__ == "__main__":
    main(run)

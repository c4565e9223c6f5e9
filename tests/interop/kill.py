#!/usr/bin/env python3
"""Nothing half-written under the final name: conversions killed at random moments, full disks, an output that is the input.

    kill.py [--times 20] [--seed 0]

--times kills for each of RUNS, every other one over older files. After every kill each file under its final name is
byte-equal to that of an undisturbed run, or untouched; the run after the last kill makes them all, equal, and leaves no
temporary file.
"""
import argparse
import contextlib
import filecmp
import os
import random
import resource
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import synthetic
from common import Report, binary, convert, main

SIZE = {"hidden": 1024, "inter": 2816, "layers": 16, "heads": 16, "kv_heads": 4, "head_dim": 64, "vocab": 8192}
# What is written -> its options; the output is a folder or a file in one.
RUNS = {
    "q8_0": ("--to", "q8_0", "-o", "m.gguf"),
    "q4_k_m": ("--to", "q4_k_m", "-o", "m.gguf"),
    "iq4_xs, one thread": ("--to", "iq4_xs", "--threads", "1", "-o", "m.gguf"),
    "two targets": ("--to", "q6_k,q4_0", "-o", "."),
    "shards": ("--to", "q5_k_m", "--split-max-size", "20MiB", "-o", "m.gguf"),
}
FIRST = "-00001-of-"  # a reader starts at this shard: where it is, all of its run must be
OLD = b"what an earlier run made"


def start(model, options, folder, **how):
    """`quant convert` as a process that writes into `folder`."""
    folder.mkdir(exist_ok=True)
    return subprocess.Popen([binary(), "convert", model, "--quiet", *options], cwd=folder, text=True,
                            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, **how)


def finished(process):
    """(exit status, what it said)."""
    said = process.communicate()[1]
    return process.returncode, said


def files(folder):
    """({name: path} under final names, bytes under temporary names)."""
    found = {p.name: p for p in folder.rglob("*") if p.is_file()}
    hidden = [p for name, p in found.items() if name.startswith(".")]
    return {n: p for n, p in found.items() if p not in hidden}, sum(p.stat().st_size for p in hidden)


def generation(path, expected):
    """Whose file this is: "old", "new" or "incomplete"."""
    if path.stat().st_size == len(OLD) and path.read_bytes() == OLD:
        return "old"
    return "new" if filecmp.cmp(path, expected, shallow=False) else "incomplete"


def wrong(folder, reference):
    """What in `folder` is neither as it was nor as in the undisturbed run."""
    got, expected = files(folder)[0], files(reference)[0]
    if strange := got.keys() - expected.keys():
        return [f"{', '.join(strange)} not part of the output"]
    found = {name: generation(path, expected[name]) for name, path in got.items()}
    out = [f"{name} is incomplete" for name, whose in found.items() if whose == "incomplete"]
    if any(FIRST in name for name in found) and (len(found) < len(expected) or len(set(found.values())) > 1):
        out.append("the first shard is there, and not all others of its run")
    return out


def killed(report, name, model, work, times, dice):
    options, reference, folder = RUNS[name], work / "reference", work / "killed"
    for old in (reference, folder):
        shutil.rmtree(old, ignore_errors=True)
    began = time.perf_counter()
    status, said = finished(start(model, options, reference))
    duration = time.perf_counter() - began
    if status:
        report.row("FAIL", name, f"{duration:.2f}", "-", "-", "-", said)
        return
    notes, ended, left = [], 0, 0
    for i in range(times):
        folder.mkdir(exist_ok=True)
        for output in files(reference)[0]:  # or the next kill would find what this run finished
            (folder / output).write_bytes(OLD) if i % 2 else (folder / output).unlink(missing_ok=True)
        process = start(model, options, folder)
        time.sleep(dice.uniform(0, 1.1 * duration))
        process.kill()
        ended += finished(process)[0] != -signal.SIGKILL
        notes += wrong(folder, reference)
        left = max(left, files(folder)[1])
    status, said = finished(start(model, options, folder))
    if status:
        notes.append(f"the last run fails: {said}")
    elif {n: generation(p, reference / n) for n, p in files(folder)[0].items()} != dict.fromkeys(files(reference)[0], "new"):
        notes.append("the last run's output differs")
    elif files(folder)[1]:
        notes.append(f"the last run leaves {files(folder)[1]} bytes under temporary names")
    report.row("FAIL" if notes else "ok", name, f"{duration:.2f}", f"{times - ended}/{times}", ended, f"{left / 1e6:.0f}",
               "; ".join(dict.fromkeys(notes)))


# ---------------------------------------------------------------- what must be refused

def small_files(limit):
    """For a child: no file may grow past `limit` bytes, and trying is an error instead of a signal."""
    def limited():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return limited


@contextlib.contextmanager
def small_disk(folder, megabytes):
    """Mounts a file system of that size; None where that is not allowed."""
    folder.mkdir()
    mounted = os.getuid() == 0 and shutil.which("mount") and not subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "none", folder], stderr=subprocess.DEVNULL).returncode
    try:
        yield folder if mounted else None
    finally:
        if mounted:
            subprocess.run(["umount", folder], check=True)


def refused(report, name, process, folder, expected=()):
    """One clear error, status 1 or 2, and nothing in `folder` but what was `expected`."""
    status, said = finished(process)
    notes = [] if status in (1, 2) else [f"exit status {status}"]
    if said.count("error:") != 1 or not said.startswith("error:") or "panicked" in said:
        notes.append(f"not one clear error: {said!r}")
    if names := {p.name for p in folder.rglob("*") if p.is_file()} - set(expected):
        notes.append(f"it leaves {', '.join(sorted(names))}")
    report.row("FAIL" if notes else "ok", name, "-", "-", "-", "-", "; ".join(notes) or said.splitlines()[0])


def full_disks(report, model, work):
    to = ("--to", "q8_0", "-o", "m.gguf")
    with small_disk(work / "disk", 8) as disk:
        if disk:
            refused(report, "small disk", start(model, to, disk), disk)
        else:
            report.row("skipped", "small disk", "-", "-", "-", "-", "mounting a tmpfs needs root")
    limit = start(model, to, work / "limit", restore_signals=False, preexec_fn=small_files(4 << 20))
    refused(report, "file size limit", limit, work / "limit")


def own_input(report, model, work):
    folder = work / "inputs"
    folder.mkdir()
    same, hard, link = folder / "same.gguf", folder / "hard.gguf", folder / "link.gguf"
    shutil.copyfile(model, same)
    os.link(same, hard)
    link.symlink_to(same)
    for output in (same, hard, link):
        options = ("--to", "q8_0", "--threads", "2", "-o", output.name)
        refused(report, f"input as output: {output.stem}", start(same, options, folder), folder, (same.name, hard.name, link.name))
        if not filecmp.cmp(model, same, shallow=False):
            report.row("FAIL", f"input as output: {output.stem}", "-", "-", "-", "-", "the input has changed")
            shutil.copyfile(model, same)


def run():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--times", type=int, default=20)
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    dice = random.Random(a.seed)
    report = Report("kill", "what", "seconds undisturbed", "killed", "already done", "most MB left", "found")
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        model = convert(synthetic.make(work / "model", "llama", SIZE, dtype="f16"), "f16", work / "model.gguf")
        for name in RUNS:
            killed(report, name, model, work, a.times, dice)
        full_disks(report, model, work)
        own_input(report, model, work)
    return report.finish()


if __name__ == "__main__":
    main(run)
